//! By which records of the two sides are paired.

use crate::proto;
use crate::proto::ExportKind;

/// One record; all artifacts or all points of an execution, which have no names that both sides share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    Execution(String),
    Step(String, i32),
    /// In files: it gets its number from a server.
    UnnumberedStep(String, String),
    Artifacts(String),
    Points(String),
    Configuration {
        app_id: Option<i32>,
        app_name: String,
        sub_app_id: Option<i32>,
        sub_app_name: Option<String>,
        version: String,
    },
}

impl Name {
    pub fn of(record: &proto::RecordDigest) -> Name {
        let id = || record.execution_id.clone();
        match (record.kind(), &record.configuration) {
            (ExportKind::Steps, _) => match (record.step_id, &record.step_key) {
                (Some(step_id), _) => Name::Step(id(), step_id),
                (None, key) => Name::UnnumberedStep(id(), key.clone().unwrap_or_default()),
            },
            (ExportKind::Artifacts, _) => Name::Artifacts(id()),
            (ExportKind::Metrics, _) => Name::Points(id()),
            (ExportKind::Configurations, Some(key)) => Name::Configuration {
                app_id: key.app_id,
                app_name: key.app_name().to_owned(),
                sub_app_id: key.sub_app_id,
                sub_app_name: key.sub_app_name.clone(),
                version: key.version().to_owned(),
            },
            _ => Name::Execution(id()),
        }
    }

    pub fn kind(&self) -> ExportKind {
        match self {
            Name::Execution(_) => ExportKind::Executions,
            Name::Step(..) | Name::UnnumberedStep(..) => ExportKind::Steps,
            Name::Artifacts(_) => ExportKind::Artifacts,
            Name::Points(_) => ExportKind::Metrics,
            Name::Configuration { .. } => ExportKind::Configurations,
        }
    }

    /// As a server is asked for it. `None`: it has no such record.
    pub fn key(&self) -> Option<proto::DigestKey> {
        let kind = self.kind().into();
        Some(match self {
            Name::Execution(id) | Name::Artifacts(id) | Name::Points(id) => {
                proto::DigestKey { kind, execution_id: id.clone(), ..Default::default() }
            }
            Name::Step(id, step_id) => proto::DigestKey {
                kind,
                execution_id: id.clone(),
                step_id: Some(*step_id),
                ..Default::default()
            },
            Name::UnnumberedStep(..) => return None,
            Name::Configuration { app_name, .. } => {
                proto::DigestKey { kind, app_name: app_name.clone(), ..Default::default() }
            }
        })
    }
}

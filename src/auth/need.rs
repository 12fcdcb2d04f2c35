//! Who may call what: the one table. A method without a row is denied to everybody.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::domain::access::Role;

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Nothing, not even a credential.
    Open,
    /// A credential.
    Known,
    /// To report runs. A stream of many kinds of writes needs this, and each write what it needs by itself.
    Report,
    /// To know the configuration that is active.
    Configured,
    /// To read.
    Read,
    /// To change what is there.
    Edit,
    /// To look after the server, for all apps.
    Operate,
    /// To see who did what.
    Audit,
    /// To see all of that, and whether it is as it was written.
    AuditAll,
    /// To decide who may do what.
    Administer,
}

impl Need {
    pub const ALL: [Need; 10] = [
        Need::Open,
        Need::Known,
        Need::Report,
        Need::Configured,
        Need::Read,
        Need::Edit,
        Need::Operate,
        Need::Audit,
        Need::AuditAll,
        Need::Administer,
    ];

    /// Whether this role is enough. An admin may do everything.
    pub fn is_met_by(self, role: Role) -> bool {
        use Role::{Admin, Auditor, Editor, Operator, Reporter, Viewer};
        role == Admin
            || match self {
                Need::Open | Need::Known => true,
                Need::Report => matches!(role, Reporter | Editor),
                Need::Configured => matches!(role, Reporter | Viewer | Editor),
                Need::Read => matches!(role, Viewer | Editor),
                Need::Edit => role == Editor,
                Need::Operate => role == Operator,
                Need::Audit | Need::AuditAll => role == Auditor,
                Need::Administer => false,
            }
    }

    /// Whether only a grant for all apps will do.
    pub fn is_about_the_server(self) -> bool {
        matches!(self, Need::Operate | Need::AuditAll)
    }
}

/// Service, methods, and what they need. UpdateExecution needs more where it pins, and every write of an Ingest what
/// the call by itself needs.
const TABLE: &[(&str, &[&str], Need)] = &[
    ("grpc.health.v1.Health", &["Check", "Watch"], Need::Open),
    ("grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"], Need::Known),
    ("grpc.reflection.v1alpha.ServerReflection", &["ServerReflectionInfo"], Need::Known),
    ("stepwell.v1.AuthService", &["WhoAmI"], Need::Known),
    ("stepwell.v1.AuthService", &["ListKeys"], Need::Audit),
    ("stepwell.v1.AuditService", &["ListAuditEvents"], Need::Audit),
    ("stepwell.v1.AuditService", &["GetAuditHeads", "VerifyAudit"], Need::AuditAll),
    ("stepwell.v1.AuthService", &["CreateKey", "RotateKey", "RevokeKey"], Need::Administer),
    ("stepwell.v1.AdminService", &["GetServerInfo"], Need::Known),
    (
        "stepwell.v1.AdminService",
        &["CheckIndexes", "RunRetention", "RebuildAnalytics"],
        Need::Operate,
    ),
    (
        "stepwell.v1.ExecutionService",
        &["CreateExecution", "UpdateExecution", "FinishExecution", "Heartbeat"],
        Need::Report,
    ),
    (
        "stepwell.v1.ExecutionService",
        &["GetExecution", "ListExecutions", "CountExecutions", "WatchExecution", "WatchExecutions"],
        Need::Read,
    ),
    ("stepwell.v1.ExecutionService", &["RequestCancel", "DeleteExecution"], Need::Edit),
    (
        "stepwell.v1.StepService",
        &["PlanSteps", "StartStep", "UpdateStep", "FinishStep"],
        Need::Report,
    ),
    ("stepwell.v1.StepService", &["GetStep", "ListSteps"], Need::Read),
    ("stepwell.v1.IngestService", &["Ingest"], Need::Report),
    ("stepwell.v1.ArtifactService", &["UploadArtifact", "GetUpload"], Need::Report),
    (
        "stepwell.v1.ArtifactService",
        &["GetArtifact", "ListArtifacts", "DownloadArtifact"],
        Need::Read,
    ),
    ("stepwell.v1.ArtifactService", &["DeleteArtifact"], Need::Edit),
    ("stepwell.v1.MetricService", &["RecordMetrics", "StreamMetrics"], Need::Report),
    ("stepwell.v1.MetricService", &["QueryMetrics"], Need::Read),
    ("stepwell.v1.ConfigurationService", &["GetConfiguration"], Need::Configured),
    ("stepwell.v1.ConfigurationService", &["ListConfigurations", "DiffConfigurations"], Need::Read),
    (
        "stepwell.v1.ConfigurationService",
        &["PublishConfiguration", "ActivateConfiguration"],
        Need::Edit,
    ),
    (
        "stepwell.v1.AnalyticsService",
        &[
            "GetSuccessRates",
            "GetReport",
            "GetTrends",
            "GetUserActivity",
            "ListSlowestSteps",
            "ListTopErrors",
        ],
        Need::Read,
    ),
    ("stepwell.v1.SearchService", &["Search"], Need::Read),
    ("stepwell.v1.ExportService", &["Export"], Need::Read),
    ("stepwell.v1.VerifyService", &["GetDigests"], Need::Read),
    ("stepwell.v1.MirrorService", &["Begin", "Advance", "Get", "Finish"], Need::Operate),
    (
        "stepwell.v1.NotificationService",
        &[
            "CreateSubscription",
            "GetSubscription",
            "ListSubscriptions",
            "UpdateSubscription",
            "DeleteSubscription",
            "RotateSecret",
            "TestSubscription",
            "ListDeliveries",
            "Redeliver",
        ],
        Need::Edit,
    ),
];

/// What the method of this path (`/package.Service/Method`) needs. `None`: it has no row.
pub fn of_path(path: &str) -> Option<Need> {
    static BY_PATH: LazyLock<HashMap<String, Need>> = LazyLock::new(|| {
        let rows = TABLE.iter().flat_map(|(service, methods, need)| {
            methods.iter().map(move |method| (format!("/{service}/{method}"), *need))
        });
        rows.collect()
    });
    BY_PATH.get(path).copied()
}

/// Every method of the table, as `package.Service/Method`.
pub fn methods() -> impl Iterator<Item = (String, Need)> {
    TABLE.iter().flat_map(|(service, methods, need)| {
        methods.iter().map(move |method| (format!("{service}/{method}"), *need))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_method_has_two_rows() {
        let mut seen = HashSet::new();
        for (method, need) in methods() {
            assert!(seen.insert(method.clone()), "{method}");
            assert_eq!(of_path(&format!("/{method}")), Some(need));
        }
        assert_eq!(of_path("/stepwell.v1.ExecutionService/NoSuchMethod"), None);
    }
}

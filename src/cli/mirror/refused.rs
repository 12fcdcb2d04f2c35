//! What could not be brought: counted by reason, and kept as documents in a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use bson::Document;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::RpcStatusExt as _;

use crate::cli::connection;
use crate::cli::exit::{Failure, Result};
use crate::cli::export::document;
use crate::cli::output::message;
use crate::proto::ingest_request::Write;

/// Refusals that are told without a file for them.
const TOLD: u64 = 100;

/// Keeps them.
pub struct Refused {
    file: Option<File>,
    told: u64,
    pub by_reason: BTreeMap<String, i64>,
    pub conflicts: i64,
}

impl Refused {
    pub fn open(path: Option<&Path>) -> Result<Refused> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|error| Failure::CouldNotStart(format!("{}: {error}", path.display())))
        };
        let file = path.map(open).transpose()?;
        Ok(Refused { file, told: 0, by_reason: BTreeMap::new(), conflicts: 0 })
    }

    /// A write that was refused for good.
    pub fn add(&mut self, write: &Write, error: &tonic_types::Status) -> Result<()> {
        let reason = error.get_details_error_info().map(|info| info.reason);
        let reason = reason.unwrap_or_else(|| "UNKNOWN".to_owned());
        let fields: Vec<(String, String)> = error
            .get_details_bad_request()
            .map(|bad| bad.field_violations)
            .unwrap_or_default()
            .into_iter()
            .map(|violation| (violation.field, violation.description))
            .collect();
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(field, why)| (field.as_str(), why.as_str())).collect();
        let why = connection::sentence(&error.message, &fields, Code::from_i32(error.code));
        let (collection, documents) = documents(write);
        for document in documents {
            self.keep(&reason, &why, collection, &document)?;
        }
        Ok(())
    }

    /// Something else that cannot be brought.
    pub fn note(
        &mut self,
        reason: &str,
        why: &str,
        collection: &str,
        what: Document,
    ) -> Result<()> {
        self.keep(reason, why, collection, &what)
    }

    fn keep(&mut self, reason: &str, why: &str, collection: &str, what: &Document) -> Result<()> {
        match reason {
            "MIRROR_CONFLICT" => self.conflicts += 1,
            reason => *self.by_reason.entry(reason.to_owned()).or_default() += 1,
        }
        let document: Value = bson::Bson::Document(what.clone()).into_relaxed_extjson();
        match &mut self.file {
            Some(file) => {
                let line = json!({
                    "reason": reason, "message": why, "collection": collection, "document": document,
                });
                let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
                line.push(b'\n');
                file.write_all(&line)?;
            }
            None if self.told < TOLD => {
                self.told += 1;
                let name = ["execution_id", "step_id", "artifact_name", "version"]
                    .into_iter()
                    .filter_map(|key| what.get(key).map(|value| format!("{key} {value}")))
                    .collect::<Vec<_>>()
                    .join(", ");
                message(&format!("refused: {collection}: {name}: {why}"));
            }
            None => {}
        }
        Ok(())
    }

    /// Before its place is remembered, what was refused has to be there after a crash too.
    pub fn sync(&mut self) -> Result<()> {
        if let Some(file) = &self.file {
            file.sync_data()?;
        }
        Ok(())
    }
}

fn documents(write: &Write) -> (&'static str, Vec<Document>) {
    match write {
        Write::PutExecution(record) => ("executions", vec![document::execution(record)]),
        Write::PutStep(record) => ("execution_steps", vec![document::step(record)]),
        Write::PutArtifact(record) => ("execution_artifacts", vec![document::artifact(record)]),
        Write::PutConfiguration(record) => {
            ("app_configurations", vec![document::configuration(record)])
        }
        Write::PutMetrics(request) => {
            ("execution_metrics", request.points.iter().map(document::point).collect())
        }
        Write::DeleteExecution(request) => {
            let deleted = bson::doc! { "execution_id": &request.execution_id, "deleted": true };
            ("executions", vec![deleted])
        }
        _ => ("", Vec::new()),
    }
}

//! What a put_* would store, as VerifyService tells of it once it is stored: for who compares files with a server.

use super::{ingest, verify};
use crate::app;
use crate::app::digests::{Level, digested, part_of, place_of};
use crate::app::export::wants_configuration;
use crate::domain::limits::Limits;
use crate::domain::plain::{Part, Sum, range_of};
use crate::domain::query::ExecutionFilter;
use crate::proto;
use crate::proto::ingest_request::Write;
use crate::store::scan::Scanned;

/// One record.
pub struct Put(Scanned);

/// The records of a put_*. `Err`: why it would be refused.
pub fn of(limits: &Limits, write: Write) -> Result<Vec<Put>, String> {
    let records = ingest::put_records(limits, write).map_err(|error| words(&error))?;
    Ok(records.into_iter().map(Put).collect())
}

fn words(error: &app::Error) -> String {
    match error {
        app::Error::Invalid(violations) => {
            let each = violations.listed().iter();
            let each =
                each.map(|violation| format!("{} {}", violation.field, violation.description));
            each.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

impl Put {
    pub fn part(&self) -> Part {
        part_of(&self.0)
    }

    /// The execution that it is, or is of.
    pub fn execution_id(&self) -> &str {
        place_of(&self.0)
    }

    pub fn range(&self) -> usize {
        range_of(place_of(&self.0))
    }

    /// Whether an execution or a configuration matches by itself; `None`: it does as its execution does.
    pub fn matches(&self, filter: &ExecutionFilter) -> Option<bool> {
        match &self.0 {
            Scanned::Execution(record) => Some(filter.matches(record)),
            Scanned::Configuration(record) => Some(wants_configuration(filter, record)),
            Scanned::Step(_) | Scanned::Artifact(_) | Scanned::Point { .. } => None,
        }
    }

    pub fn digest(self, buffer: &mut Vec<u8>) -> Sum {
        digested(self.0, Level::Records, buffer).digest
    }

    /// With its fields.
    pub fn told(self, values: bool, buffer: &mut Vec<u8>) -> proto::RecordDigest {
        verify::record(digested(self.0, Level::Fields { values }, buffer))
    }
}

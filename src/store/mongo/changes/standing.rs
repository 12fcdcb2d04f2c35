//! What an update says of where its record stands: which of the fields that tell that it set.

use bson::raw::{RawBsonRef, RawDocument};

use crate::domain::execution::HEARTBEAT_TIMEOUT;
use crate::domain::notification::{ERROR_BYTES, Standing, Status, cut};
use crate::domain::{ExecutionStatus, RunError, StepStatus};
use crate::store::Collection;
use crate::store::mongo::db::values::{field, millis, small, text};
use crate::store::mongo::records::parts::error_message;

/// Of the fields that an update set.
#[derive(Default)]
struct Set {
    status: Option<String>,
    /// Its error has another code now; `None`: it has the one that it had.
    code: Option<String>,
    message: Option<String>,
    /// A client said how it ended.
    finished: bool,
    standing: Standing,
}

/// What an update says that set these fields.
pub fn read(collection: Collection, updated: &RawDocument) -> Standing {
    let mut set = Set::default();
    for element in updated.into_iter().flatten() {
        let (name, value) = element;
        set.take(name.as_str(), value);
    }
    match collection {
        Collection::Executions => set.of_execution(),
        Collection::Steps => set.of_step(),
        Collection::Artifacts => Standing::default(),
    }
}

impl Set {
    fn take(&mut self, name: &str, value: RawBsonRef<'_>) {
        match name {
            "status" => self.status = Some(text(value).unwrap_or_default()),
            "error" => self.message = error_message(value),
            "error_info" => {
                let info = value.as_document();
                let code = info.and_then(|info| field(info, "code")).and_then(text);
                self.code = Some(code.unwrap_or_default());
            }
            "error_info.code" => self.code = Some(text(value).unwrap_or_default()),
            "digests" => {
                let digests = value.as_document();
                self.finished |= digests
                    .is_some_and(|digests| field(digests, "finish").and_then(text).is_some());
            }
            "digests.finish" => self.finished |= text(value).is_some(),
            "cancel_requested_at" => self.standing.cancel_requested = millis(value).is_some(),
            "completed_at" => self.standing.completed_at = millis(value),
            "retry_count" => self.standing.retry_count = small(value),
            _ => {}
        }
    }

    fn ended(self) -> Standing {
        let (code, message) = (self.code.unwrap_or_default(), self.message.unwrap_or_default());
        let message = cut(&message, ERROR_BYTES).to_owned();
        let is_there = !(code.is_empty() && message.is_empty());
        let error = RunError { message, code, ..RunError::default() };
        Standing { error: is_there.then(|| Box::new(error)), ..self.standing }
    }

    fn of_execution(mut self) -> Standing {
        self.standing.retry_count = None;
        let silent = self.code.as_deref() == Some(HEARTBEAT_TIMEOUT) && !self.finished;
        let status = self.status.as_deref().and_then(ExecutionStatus::parse);
        self.standing.status = status.map(|status| match status {
            ExecutionStatus::Failed if silent => Status::Silent,
            status => Status::plain(status),
        });
        // What was given up for its silence has another end now, with the same status.
        self.standing.heard = status.is_none() && !silent && (self.finished || self.code.is_some());
        match self.standing.heard || status.is_some_and(ExecutionStatus::is_terminal) {
            true => self.ended(),
            false => Standing { completed_at: None, ..self.standing },
        }
    }

    fn of_step(mut self) -> Standing {
        self.standing.cancel_requested = false;
        self.standing.failed =
            self.status.as_deref().map(|status| status == StepStatus::Failed.as_str());
        match self.standing.failed {
            Some(true) => self.ended(),
            _ => Standing { completed_at: None, ..self.standing },
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, Document, RawDocumentBuf, doc};

    use super::*;

    fn said(collection: Collection, updated: Document) -> Standing {
        read(collection, &RawDocumentBuf::try_from(&updated).unwrap())
    }

    #[test]
    fn an_update_says_what_it_set() {
        let execution = |updated| said(Collection::Executions, updated);
        let silent = doc! { "status": "failed", "error": "silence", "completed_at": DateTime::from_millis(5),
        "error_info": { "code": "HEARTBEAT_TIMEOUT", "details": {} } };
        let told = execution(silent.clone());
        assert_eq!((told.status, told.completed_at), (Some(Status::Silent), Some(5)));
        assert_eq!(told.error.unwrap().message, "silence");
        let mut finished = silent;
        finished.insert("digests.finish", "d");
        assert_eq!(execution(finished).status, Some(Status::Failed), "a client says the same");
        let heard = execution(
            doc! { "error": "real", "error_info": { "code": "X" }, "digests": { "finish": "d" } },
        );
        assert!(heard.heard && heard.status.is_none() && heard.error.is_some());
        assert_eq!(
            execution(doc! { "status": "running", "completed_at": null }).status,
            Some(Status::Running)
        );
        assert!(
            execution(doc! { "cancel_requested_at": DateTime::from_millis(1) }).cancel_requested
        );
        assert!(
            execution(doc! { "metadata.a": 1, "updated_at": DateTime::from_millis(1) }).is_empty()
        );
        assert!(execution(doc! { "status": "queued" }).is_empty(), "a word that is no status");
        assert!(!execution(doc! { "digests.create": "d" }).heard);
    }

    #[test]
    fn an_update_of_a_step_says_of_failures_and_retries() {
        let step = |updated| said(Collection::Steps, updated);
        let failed =
            step(doc! { "status": "failed", "error": { "message": "m" }, "retry_count": 2.0 });
        assert_eq!((failed.failed, failed.retry_count), (Some(true), Some(2)));
        assert_eq!(failed.error.unwrap().message, "m");
        let retried = step(doc! { "status": "running", "retry_count": 1_i64, "error": null });
        assert_eq!((retried.failed, retried.retry_count), (Some(false), Some(1)));
        assert!(retried.error.is_none());
        assert!(step(doc! { "progress": 0.5, "metadata": {} }).is_empty());
    }
}

//! What is known of an execution that is gone when it is told of.

use bson::Document;

use super::status::Status;
use crate::domain::access::App;
use crate::domain::{Digests, Execution, Millis};

/// Whose an execution is: what never changes of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub user_id: Option<String>,
    pub started_at: Option<Millis>,
}

impl Identity {
    pub fn of(execution: &Execution) -> Identity {
        Identity {
            app_id: execution.app_id,
            app_name: execution.app_name.clone(),
            sub_app_id: execution.sub_app_id,
            sub_app_name: execution.sub_app_name.clone(),
            user_id: execution.user_id.clone(),
            started_at: execution.started_at,
        }
    }

    pub fn app(&self) -> App<'_> {
        App {
            name: &self.app_name,
            number: self.app_id,
            part: self.sub_app_id,
            part_name: self.sub_app_name.as_deref(),
        }
    }

    /// The execution as far as it is known.
    pub fn execution(&self, execution_id: &str, status: Option<Status>) -> Execution {
        Execution {
            execution_id: execution_id.to_owned(),
            app_id: self.app_id,
            app_name: self.app_name.clone(),
            sub_app_id: self.sub_app_id,
            sub_app_name: self.sub_app_name.clone(),
            user_id: self.user_id.clone(),
            status: status.map(Status::stored),
            started_at: self.started_at,
            odd_start: None,
            completed_at: None,
            duration_ms: None,
            error: None,
            metadata: Document::new(),
            created_at: None,
            updated_at: None,
            revision: 0,
            heartbeat_timeout_ms: None,
            last_heartbeat_at: None,
            cancel_requested_at: None,
            cancel_reason: None,
            parent_execution_id: None,
            pinned: None,
            configuration_version: None,
            update_sequence: None,
            mirrored_position: None,
            mirrored_revision: None,
            digests: Digests::default(),
            deleted_at: None,
        }
    }
}

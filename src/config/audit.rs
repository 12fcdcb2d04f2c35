//! What is recorded of who does what: `[audit]`.

use serde::{Deserialize, Serialize};

use super::Config;

/// The audit log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub level: Option<AuditLevel>,
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditLevel {
    Off,
    Security,
    Writes,
    All,
}

impl Config {
    /// How much is recorded: where callers are asked who they are, at least what is about security.
    pub fn audit_level(&self) -> AuditLevel {
        self.audit.level.unwrap_or(match self.asks_callers() {
            true => AuditLevel::Security,
            false => AuditLevel::Off,
        })
    }
}

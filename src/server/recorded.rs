//! The record of who does what, put together.

use std::sync::Arc;

use crate::app::ids;
use crate::audit::{Audit, Level, Settings};
use crate::clock::Clock;
use crate::config::{AuditLevel, Config};
use crate::rpc::audited;
use crate::store::audit::AuditStore;

/// Begins to record as the configuration has it.
pub(super) fn start(config: &Config, clock: &Arc<dyn Clock>, store: &Arc<dyn AuditStore>) -> Audit {
    let level = match config.audit_level() {
        AuditLevel::Off => Level::Off,
        AuditLevel::Security => Level::Security,
        AuditLevel::Writes => Level::Writes,
        AuditLevel::All => Level::All,
    };
    let settings = Settings {
        level,
        server: ids::server(),
        version: env!("CARGO_PKG_VERSION"),
        kept: Some(config.retention.audit).filter(|kept| !kept.is_zero()),
        codes: audited::code_of,
    };
    Audit::start(settings, Arc::clone(store), Arc::clone(clock))
}

//! Settings that have no effect beside others.

use super::settings::settings;
use super::{Config, StorageKind};

/// Keys of settings that do nothing, whether somebody gave them or not, and why.
pub(super) fn without_effect(config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut idle = Vec::new();
    let mut warn = |key: &'static str, because: &'static str| idle.push((key, because));
    if config.artifacts.s3_bucket.is_none() {
        for setting in settings().iter().filter(|one| one.key.starts_with("artifacts.s3_")) {
            warn(setting.key, "artifacts.s3_bucket is not set");
        }
    }
    let files = config.artifacts.storage == Some(StorageKind::Local);
    if config.mongodb.uri.is_some() {
        if !files || config.artifacts.local_dir.is_some() {
            warn("data_dir", "mongodb.uri selects MongoDB");
        }
    } else {
        for setting in settings().iter().filter(|setting| setting.key.starts_with("mongodb.")) {
            warn(setting.key, "mongodb.uri is not set, so the embedded store is used");
        }
    }
    if config.telemetry.otlp_endpoint.is_none() {
        warn("telemetry.service_name", "telemetry.otlp_endpoint is not set");
        warn("telemetry.sample_ratio", "telemetry.otlp_endpoint is not set");
    }
    idle
}

//! What an export that goes on knows of what it has sent.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

use crate::domain::{Configuration, MetricPoint};

/// Sums of what an export that goes on has sent.
#[derive(Default)]
pub(super) struct Sent {
    /// By execution: count and sum of the hashes of its points.
    pub(super) points: HashMap<u64, (u64, u64)>,
    /// By scope and version: the hash of what it is, and whether it is the active one.
    configurations: HashMap<u64, HashMap<u64, (u64, bool)>>,
}

pub(super) fn hash(value: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn hash_of_point(point: &MetricPoint) -> u64 {
    let mut metrics: Vec<(&str, u64)> =
        point.metrics.iter().map(|(name, value)| (name.as_str(), value.to_bits())).collect();
    metrics.sort_unstable();
    hash((point.at, point.step_id, &point.step_key, metrics))
}

fn hash_of_configuration(record: &Configuration) -> u64 {
    let document = record.configuration.to_vec().unwrap_or_default();
    hash((
        &record.app_name,
        &record.sub_app_name,
        document,
        record.active,
        record.created_at,
        &record.created_by,
    ))
}

impl Sent {
    /// Points of an execution that are sent from its first one on.
    pub fn begin_points(&mut self, execution_id: &str) {
        self.points.remove(&hash(execution_id));
    }

    pub fn points(&mut self, execution_id: &str, points: &[MetricPoint]) {
        let (count, sum) = self.points.entry(hash(execution_id)).or_default();
        for point in points {
            *count += 1;
            *sum = sum.wrapping_add(hash_of_point(point));
        }
    }

    /// Whether this version was not sent as it is, which it is from now on.
    pub fn is_new(&mut self, record: &Configuration) -> bool {
        let versions = self.configurations.entry(hash(record.scope().identity())).or_default();
        let what = hash_of_configuration(record);
        let before = versions.insert(hash(&record.version), (what, record.active));
        if !record.active && before.is_some_and(|(_, was_active)| was_active) {
            // Whoever took it in as the active one made it that instead of another, which may be that again as it was before.
            versions.retain(|_, (_, active)| !*active);
        }
        before.map(|(what, _)| what) != Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_back_between_two_looks_is_sent() {
        let version = |version: &str, active| Configuration {
            app_id: Some(1),
            app_name: "app".to_owned(),
            sub_app_id: None,
            sub_app_name: None,
            version: version.to_owned(),
            configuration: bson::Document::new(),
            active,
            created_at: None,
            created_by: None,
        };
        let mut sent = Sent::default();
        let mut look =
            |all: [(&str, bool); 2]| all.map(|(name, active)| sent.is_new(&version(name, active)));
        assert_eq!(look([("1", true), ("2", false)]), [true, true]);
        assert_eq!(look([("1", true), ("2", false)]), [false, false]);
        // It was switched to the second one and back, and the look fell in between.
        assert_eq!(look([("1", true), ("2", true)]), [false, true]);
        assert_eq!(look([("1", true), ("2", false)]), [false, true]);
        assert_eq!(look([("1", true), ("2", false)]), [true, false]);
        // Two at once, which should not be, go on as they are.
        assert_eq!(look([("1", true), ("2", true)]), [false, true]);
        assert_eq!(look([("1", true), ("2", true)]), [false, false]);
    }
}

//! A few records by their names: what seemed to differ, looked at again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::sink::{Ended, Sink};
use super::{Key, Reading, WAITING};
use crate::app::Result;
use crate::store::scan::Scanned;
use crate::store::{ChangeLog, Changed, Record, RecordKey};

/// Records loaded with their payloads at a time, which may have 12 MiB each.
const LOADED: usize = 16;

impl Reading {
    pub(super) async fn keyed(
        &self,
        keys: &[Key],
        sink: &mut Sink<'_>,
    ) -> std::result::Result<u64, Ended> {
        let log = self.digests.exports.app().store().log()?;
        let matching = self.matching(log.as_ref(), keys).await?;
        let matches = |id: &String| matching.as_ref().is_none_or(|matching| matching.contains(id));
        let mut records = Vec::new();
        let (mut artifacts, mut points, mut apps) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for key in keys {
            match key {
                Key::Execution(id) if matches(id) => {
                    records.push(Changed::Record(RecordKey::execution(id)));
                }
                Key::Step(id, step_id) if matches(id) => {
                    records.push(Changed::Record(RecordKey::step(id, *step_id)));
                }
                Key::Artifacts(id) if matches(id) => drop(artifacts.insert(id)),
                Key::Points(id) if matches(id) => drop(points.insert(id)),
                Key::Configurations(name) => drop(apps.insert(name.as_str())),
                Key::Execution(_) | Key::Step(..) | Key::Artifacts(_) | Key::Points(_) => {}
            }
        }
        for some in records.chunks(LOADED) {
            let loaded = log.load(some, true).await?;
            let piece = loaded.into_iter().filter_map(|(_, record)| match record {
                Record::Execution(record) => Some(Scanned::Execution(Arc::unwrap_or_clone(record))),
                Record::Step(record) => Some(Scanned::Step(Arc::unwrap_or_clone(record))),
                Record::Artifact(_) => None,
            });
            sink.take(piece.collect()).await?;
        }
        let (out, mut read) = mpsc::channel(WAITING);
        let parts = async move {
            for id in artifacts {
                self.artifacts_of(id, &out).await?;
            }
            for id in points {
                self.points_of(id, &out).await?;
            }
            if !apps.is_empty() {
                self.configurations(&out, |name| apps.contains(name)).await?;
            }
            Ok(()) as Result<()>
        };
        let digest = async {
            while let Some(piece) = read.recv().await {
                sink.take(piece).await?;
            }
            Ok::<(), Ended>(())
        };
        let (done, digested) = tokio::join!(parts, digest);
        digested?;
        done?;
        Ok(0)
    }

    /// Executions of these keys that match the filter. `None`: whatever they are.
    async fn matching(
        &self,
        log: &dyn ChangeLog,
        keys: &[Key],
    ) -> std::result::Result<Option<HashSet<String>>, Ended> {
        if self.question.filter.is_empty() {
            return Ok(None);
        }
        let ids: HashMap<&String, Changed> = keys
            .iter()
            .filter_map(|key| match key {
                Key::Execution(id) | Key::Step(id, _) | Key::Artifacts(id) | Key::Points(id) => {
                    Some((id, Changed::Record(RecordKey::execution(id))))
                }
                Key::Configurations(_) => None,
            })
            .collect();
        let what: Vec<Changed> = ids.into_values().collect();
        let loaded = log.load(&what, false).await?;
        let matching = loaded.into_iter().filter_map(|(_, record)| match record {
            Record::Execution(record) if self.question.filter.matches(&record) => {
                Some(record.execution_id.clone())
            }
            _ => None,
        });
        Ok(Some(matching.collect()))
    }
}

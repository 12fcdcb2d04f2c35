//! What belongs to an execution: its steps, artifacts and points, page by page.

use std::sync::Arc;

use super::{At, Ended, Export, Key, Part, Piece, RECORDS, Within};
use crate::domain::query::{ArtifactKey, ArtifactQuery, StepQuery};
use crate::store::metrics::{PointKey, Span};

/// Steps asked of the store at a time; they end earlier where their payloads are large.
const STEPS: usize = 250;
/// Points in one message.
const POINTS: usize = 1_000;

impl Export {
    /// What belongs to an execution, as far as it is left.
    pub(super) async fn parts_of(&mut self, key: Key, mut within: Within) -> Result<(), Ended> {
        let id = key.1.clone();
        while within != Within::Nothing {
            let (pieces, next) = self.some_of(&id, &within).await?;
            for (after_it, piece) in pieces {
                self.push(piece).await?;
                if let Some(within) = after_it {
                    self.moved_to(At::Executions { after: Some(key.clone()), within }).await?;
                }
            }
            within = next.clone();
            self.moved_to(At::Executions { after: Some(key.clone()), within: next }).await?;
        }
        Ok(())
    }

    /// The next pieces of an execution, each with what is left after it where that can be said, and what is left after all
    /// of them.
    pub(super) async fn some_of(
        &mut self,
        execution_id: &str,
        within: &Within,
    ) -> Result<(Vec<(Option<Within>, Piece)>, Within), Ended> {
        let exports = Arc::clone(&self.exports);
        let (limits, store) = (exports.app.limits(), exports.store());
        Ok(match within {
            Within::Steps(_) if !self.question.wants(Part::Steps) => {
                (Vec::new(), Within::Artifacts(None))
            }
            Within::Steps(after) => {
                let query = StepQuery {
                    execution_id: execution_id.to_owned(),
                    statuses: Vec::new(),
                    after: *after,
                    limit: STEPS,
                    examine: limits.page_examined_records,
                    payloads: Some(limits.page_bytes),
                };
                let page = store.steps(&query).await?;
                let pieces = page.records.into_iter().map(|step| {
                    (Some(Within::Steps(Some(step.step_id))), Piece::Step(Arc::new(step)))
                });
                let next = page.next.map_or(Within::Artifacts(None), |id| Within::Steps(Some(id)));
                (pieces.collect(), next)
            }
            Within::Artifacts(_) if !self.question.wants(Part::Artifacts) => {
                (Vec::new(), Within::Points(None))
            }
            Within::Artifacts(after) => {
                let query = ArtifactQuery {
                    execution_id: execution_id.to_owned(),
                    after: after.clone().map(ArtifactKey),
                    limit: RECORDS,
                };
                let page = store.artifacts(&query).await?;
                let next = page.next.map(|key| Within::Artifacts(Some(key.0)));
                // The place of each is the store's secret.
                let pieces = page
                    .records
                    .into_iter()
                    .map(|artifact| (None, Piece::Artifact(Arc::new(artifact))));
                (pieces.collect(), next.unwrap_or(Within::Points(None)))
            }
            Within::Points(_) if !self.question.wants(Part::Points) => {
                (Vec::new(), Within::Nothing)
            }
            Within::Points(after) => {
                if after.is_none() {
                    self.sent.begin_points(execution_id);
                }
                let after = after.clone().map(|(at, id)| PointKey { at, id });
                let span = Span { execution_id: execution_id.to_owned(), from: None, until: None };
                let page = exports.metrics.points(&span, after.as_ref(), POINTS).await?;
                let next =
                    page.next.map_or(Within::Nothing, |key| Within::Points(Some((key.at, key.id))));
                let points: Vec<_> = page
                    .records
                    .into_iter()
                    .map(|(_, point)| point)
                    // Of another program: without a number there is nothing to tell.
                    .filter(|point| !point.metrics.is_empty())
                    .collect();
                if self.question.follow {
                    self.sent.points(execution_id, &points);
                }
                let piece = Piece::Points { execution_id: execution_id.to_owned(), points };
                let empty = matches!(&piece, Piece::Points { points, .. } if points.is_empty());
                (if empty { Vec::new() } else { vec![(None, piece)] }, next)
            }
            Within::Nothing => (Vec::new(), Within::Nothing),
        })
    }
}

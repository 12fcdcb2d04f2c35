//! ExportService.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::verify::part;
use super::{authenticate, convert, records, requests, status};
use crate::app;
use crate::app::export::{Exported, Exports, Piece, Question};
use crate::domain::access::AppScope;
use crate::proto;
use crate::proto::export_response::Record;

/// Pieces that wait for a client that reads slowly. Each may have 12 MiB.
const WAITING: usize = 1;

/// Serves ExportService.
pub struct ExportRpc {
    pub exports: Arc<Exports>,
    pub tasks: TaskTracker,
    /// Ends exports under way; their clients go on from the last token.
    pub stop: CancellationToken,
}

fn message((resume_token, position, piece): Exported) -> proto::ExportResponse {
    let number = |position: u64| i64::try_from(position).unwrap_or(i64::MAX);
    let record = match piece {
        Piece::Execution(record) => Record::Execution(records::execution(&record)),
        Piece::Step(record) => Record::Step(records::step(&record, true)),
        Piece::Artifact(record) => Record::Artifact(convert::artifact(&record)),
        Piece::Points { execution_id, points } => {
            let points = points.iter().map(|point| convert::metric_point(&execution_id, point));
            Record::Points(proto::ExportedPoints { points: points.collect() })
        }
        Piece::Configuration(record) => Record::Configuration(convert::configuration(&record)),
        Piece::Removed { execution_id, step_id, artifact_id } => {
            Record::Removed(proto::ExportedRemoval { execution_id, step_id, artifact_id })
        }
        Piece::Walked(unreadable) => {
            Record::Walked(proto::ExportWalked { unreadable: number(unreadable) })
        }
        Piece::Complete(positions) => Record::Complete(proto::ExportComplete {
            since_position: positions.map(|(since, _)| number(since)),
            until_position: positions.map(|(_, until)| number(until)),
        }),
        Piece::CaughtUp { position, age } => Record::CaughtUp(proto::ExportCaughtUp {
            position: number(position),
            age_ms: i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        }),
    };
    let position = position.map(number);
    proto::ExportResponse { resume_token, record: Some(record), position }
}

impl ExportRpc {
    fn question(&self, scope: AppScope, request: proto::ExportRequest) -> app::Result<Question> {
        let mut check = requests::Check::new(self.exports.app().limits());
        let filter = check.filter(request.filter.as_ref()).within(scope);
        let mut parts = BTreeSet::new();
        for kind in check.few("kinds", &request.kinds) {
            match part(*kind) {
                Some(part) => {
                    parts.insert(part);
                }
                None => {
                    check.bad(
                        "kinds",
                        format!("has {kind}, which is not a kind that can be exported"),
                    );
                }
            }
        }
        let follow = request.follow;
        if follow && !filter.is_empty() {
            let why = "is for everything: no filter, and a caller who may see every app";
            check.bad("follow", why);
        }
        check.done(())?;
        let token = request.resume_token.unwrap_or_default();
        Ok(Question { filter, parts, token, follow })
    }
}

#[tonic::async_trait]
impl proto::export_service_server::ExportService for ExportRpc {
    type ExportStream = Pin<Box<dyn Stream<Item = Result<proto::ExportResponse, Status>> + Send>>;

    async fn export(
        &self,
        request: Request<proto::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let scope = authenticate::scope(&request)?;
        let (out, pieces) = mpsc::channel(WAITING);
        let begun = async {
            let question = self.question(scope, request.into_inner())?;
            self.exports.begin(question, out).await
        };
        let export = begun.await.map_err(|error| status::of(&error))?;
        self.tasks.spawn(export.run(self.stop.clone()));
        let answers = ReceiverStream::new(pieces)
            .map(|piece| piece.map(message).map_err(|error| status::of(&error)));
        Ok(Response::new(Box::pin(answers)))
    }
}

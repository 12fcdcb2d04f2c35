//! VerifyService.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{authenticate, convert, requests, status};
use crate::app;
use crate::app::digests::{
    Digested, Digests, Key, Level, Named, Question, RangeTotal, Ranges, Told,
};
use crate::domain::access::AppScope;
use crate::domain::limits::DIGEST_KEYS;
use crate::domain::plain::{Part, RANGES};
use crate::proto;
use crate::proto::get_digests_response::Part as Answer;

/// Answers that wait for a client that reads slowly.
const WAITING: usize = 4;

/// Serves VerifyService.
pub struct VerifyRpc {
    pub digests: Arc<Digests>,
    pub tasks: TaskTracker,
    /// Ends readings under way.
    pub stop: CancellationToken,
}

/// The kind of records that is meant.
pub fn part(kind: i32) -> Option<Part> {
    match proto::ExportKind::try_from(kind).ok()? {
        proto::ExportKind::Unspecified => None,
        proto::ExportKind::Executions => Some(Part::Executions),
        proto::ExportKind::Steps => Some(Part::Steps),
        proto::ExportKind::Artifacts => Some(Part::Artifacts),
        proto::ExportKind::Metrics => Some(Part::Points),
        proto::ExportKind::Configurations => Some(Part::Configurations),
    }
}

/// The same as it is sent.
pub fn kind(part: Part) -> proto::ExportKind {
    match part {
        Part::Executions => proto::ExportKind::Executions,
        Part::Steps => proto::ExportKind::Steps,
        Part::Artifacts => proto::ExportKind::Artifacts,
        Part::Points => proto::ExportKind::Metrics,
        Part::Configurations => proto::ExportKind::Configurations,
    }
}

impl VerifyRpc {
    fn question(
        &self,
        scope: AppScope,
        request: proto::GetDigestsRequest,
    ) -> app::Result<Question> {
        let mut check = requests::Check::new(self.digests.exports().app().limits());
        let filter = check.filter(request.filter.as_ref()).within(scope);
        let mut selections: HashMap<Part, Ranges> = HashMap::new();
        for selection in check.few("selections", &request.selections) {
            let Some(part) = part(selection.kind) else {
                check.bad("selections.kind", not_a_kind(selection.kind));
                continue;
            };
            let ranges = &selection.ranges;
            if !check.fits("selections.ranges", ranges.len(), "values", RANGES) {
                continue;
            }
            let mut wanted = Vec::with_capacity(ranges.len());
            for number in ranges {
                match usize::try_from(*number) {
                    Ok(range) if range < RANGES => wanted.push(range),
                    _ => {
                        check.bad(
                            "selections.ranges",
                            format!("has {number}, not 0 to {}", RANGES - 1),
                        );
                        break;
                    }
                }
            }
            let wanted = (!wanted.is_empty()).then_some(wanted);
            if selections.insert(part, wanted).is_some() {
                check.bad("selections.kind", "is there twice");
            }
        }
        let values = request.include_values;
        let level = match proto::DigestLevel::try_from(request.level) {
            Ok(proto::DigestLevel::Unspecified | proto::DigestLevel::Ranges) => Level::Ranges,
            Ok(proto::DigestLevel::Records) => Level::Records,
            Ok(proto::DigestLevel::Fields) => Level::Fields { values },
            Err(_) => {
                check.bad("level", format!("has {}, which is not a level", request.level));
                Level::Ranges
            }
        };
        if values && !matches!(level, Level::Fields { .. }) {
            check.bad("include_values", "needs level FIELDS");
        }
        let mut keys = Vec::new();
        let few = check.fits("keys", request.keys.len(), "values", DIGEST_KEYS);
        for key in request.keys.iter().take(if few { DIGEST_KEYS } else { 0 }) {
            keys.push(match (part(key.kind), key.step_id) {
                (Some(Part::Executions), _) => Key::Execution(key.execution_id.clone()),
                (Some(Part::Steps), Some(step_id)) => Key::Step(key.execution_id.clone(), step_id),
                (Some(Part::Steps), None) => {
                    check.bad("keys.step_id", "is required");
                    break;
                }
                (Some(Part::Artifacts), _) => Key::Artifacts(key.execution_id.clone()),
                (Some(Part::Points), _) => Key::Points(key.execution_id.clone()),
                (Some(Part::Configurations), _) => Key::Configurations(key.app_name.clone()),
                (None, _) => {
                    check.bad("keys.kind", not_a_kind(key.kind));
                    break;
                }
            });
        }
        if !request.keys.is_empty() {
            if level == Level::Ranges {
                check.bad("keys", "need level RECORDS or FIELDS");
            }
            if !request.selections.is_empty() {
                check.bad("keys", "cannot be combined with selections");
            }
        }
        check.done(())?;
        let keys = (!request.keys.is_empty()).then_some(keys);
        Ok(Question { filter, selections, level, keys })
    }
}

fn not_a_kind(kind: i32) -> String {
    format!("has {kind}, which is not a kind of records")
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn range(told: &RangeTotal) -> proto::RangeDigest {
    proto::RangeDigest {
        kind: kind(told.part).into(),
        range: i32::try_from(told.range).unwrap_or(i32::MAX),
        count: number(told.total.count),
        digest: told.total.sum.to_vec(),
    }
}

/// A record as it is sent.
pub fn record(told: Digested) -> proto::RecordDigest {
    let bytes_sha256 = told.named.bytes_sha256().map(str::to_owned);
    let fields = told.fields.into_iter().map(|field| proto::FieldDigest {
        name: field.name.to_owned(),
        digest: field.digest.to_vec(),
        value: field.value,
    });
    let bare = proto::RecordDigest {
        digest: told.digest.to_vec(),
        fields: fields.collect(),
        bytes_sha256,
        ..Default::default()
    };
    match told.named {
        Named::Execution { execution_id } => {
            proto::RecordDigest { kind: proto::ExportKind::Executions.into(), execution_id, ..bare }
        }
        Named::Step { execution_id, step_id, step_key } => proto::RecordDigest {
            kind: proto::ExportKind::Steps.into(),
            execution_id,
            step_id: Some(step_id),
            step_key,
            ..bare
        },
        Named::Artifact { artifact } => proto::RecordDigest {
            kind: proto::ExportKind::Artifacts.into(),
            execution_id: artifact.execution_id,
            step_id: artifact.step_id,
            step_key: artifact.step_key,
            artifact_id: Some(artifact.artifact_id),
            ..bare
        },
        Named::Point { execution_id, at, step_id, step_key } => proto::RecordDigest {
            kind: proto::ExportKind::Metrics.into(),
            execution_id,
            step_id,
            step_key,
            timestamp: convert::shown_time(at),
            ..bare
        },
        Named::Configuration { record } => proto::RecordDigest {
            kind: proto::ExportKind::Configurations.into(),
            configuration: Some(proto::ConfigurationKey {
                app_id: record.app_id,
                app_name: Some(record.app_name),
                sub_app_id: record.sub_app_id,
                sub_app_name: record.sub_app_name,
                version: Some(record.version),
            }),
            ..bare
        },
    }
}

fn message(told: Told) -> proto::GetDigestsResponse {
    let part = match told {
        Told::Begun(position) => {
            Answer::Begun(proto::DigestsBegun { position: position.map(number) })
        }
        Told::Ranges(ranges) => {
            Answer::Ranges(proto::RangeDigests { ranges: ranges.iter().map(range).collect() })
        }
        Told::Records(records) => {
            let records = records.into_iter().map(record).collect();
            Answer::Records(proto::RecordDigests { records })
        }
        Told::Progress(records) => {
            Answer::Progress(proto::DigestsProgress { records: number(records) })
        }
        Told::Complete(unreadable) => {
            Answer::Complete(proto::DigestsComplete { unreadable: number(unreadable) })
        }
    };
    proto::GetDigestsResponse { part: Some(part) }
}

#[tonic::async_trait]
impl proto::verify_service_server::VerifyService for VerifyRpc {
    type GetDigestsStream =
        Pin<Box<dyn Stream<Item = Result<proto::GetDigestsResponse, Status>> + Send>>;

    async fn get_digests(
        &self,
        request: Request<proto::GetDigestsRequest>,
    ) -> Result<Response<Self::GetDigestsStream>, Status> {
        let scope = authenticate::scope(&request)?;
        let question = self.question(scope, request.into_inner());
        let question = question.map_err(|error| status::of(&error))?;
        let (out, told) = mpsc::channel(WAITING);
        self.tasks.spawn(self.digests.read(question, out).run(self.stop.clone()));
        let answers = ReceiverStream::new(told)
            .map(|told| told.map(message).map_err(|error| status::of(&error)));
        Ok(Response::new(Box::pin(answers)))
    }
}

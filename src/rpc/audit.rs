//! AuditService.

use std::collections::HashSet;
use std::sync::Arc;

use bson::RawDocumentBuf;
use bson::raw::RawBsonRef;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::requests::Check;
use super::{authenticate, convert, status};
use crate::app::{App, Error, Result, token};
use crate::audit::read::{Reader, Step};
use crate::auth::Permit;
use crate::auth::keys::Keys;
use crate::domain::audit::entry::short;
use crate::domain::audit::verify::{Finding, Flaw};
use crate::domain::audit::{AuditFilter, Head, Outcome, Record};
use crate::domain::limits::FILTER_VALUES;
use crate::proto;
use crate::proto::verify_audit_response::Message;
use crate::store::audit::{AuditKey, AuditQuery};

/// Heads that a verification may be given.
const HEADS: usize = 10_000;
/// What waits for a client that reads slowly.
const WAITING: usize = 64;
/// Longest name of a server, an event and an actor that can be asked for.
const NAME_CHARACTERS: usize = 512;
/// Bytes of a reply beside the records in it.
const FRAMING_BYTES: usize = 16 * 1024;
/// A message of a record is hardly larger than so many times its document.
const PER_DOCUMENT: usize = 3;

/// Serves AuditService.
pub struct AuditCalls {
    pub app: Arc<App>,
    pub reader: Arc<Reader>,
    /// Who is within whose reach.
    pub keys: Arc<Keys>,
    pub tasks: TaskTracker,
    /// Ends verifications.
    pub stop: CancellationToken,
}

fn text(text: Option<String>) -> String {
    text.unwrap_or_default()
}

/// Values of details are few: numbers, texts, lists and objects of those; hashes are shown in hexadecimal.
fn value(raw: RawBsonRef<'_>) -> prost_types::Value {
    match raw {
        RawBsonRef::Binary(binary) => convert::value(&hex::encode(binary.bytes).into()),
        RawBsonRef::Document(document) => {
            let kind = prost_types::value::Kind::StructValue(object(document));
            prost_types::Value { kind: Some(kind) }
        }
        RawBsonRef::Array(array) => {
            let values = array.into_iter().flatten().map(value).collect();
            let list = prost_types::ListValue { values };
            prost_types::Value { kind: Some(prost_types::value::Kind::ListValue(list)) }
        }
        other => convert::value(&bson::Bson::try_from(other).unwrap_or(bson::Bson::Null)),
    }
}

fn object(raw: &bson::RawDocument) -> prost_types::Struct {
    let fields =
        raw.into_iter().flatten().map(|(name, field)| (name.as_str().to_owned(), value(field)));
    prost_types::Struct { fields: fields.collect() }
}

fn event(document: &RawDocumentBuf, whole: bool) -> proto::AuditEvent {
    let bytes = |wanted: bool| if wanted { document.as_bytes().to_vec() } else { Vec::new() };
    let Some(record) = Record::read(document) else {
        // Somebody has put it there, or made it unreadable: it is shown as it is.
        return proto::AuditEvent { document: bytes(true), ..Default::default() };
    };
    let target = record.target;
    proto::AuditEvent {
        id: record.id,
        server: record.server,
        seq: record.seq,
        at: Some(convert::timestamp(record.at)),
        event: record.event,
        phase: record.phase,
        outcome: text(record.outcome),
        code: record.code,
        reason: text(record.reason),
        actor: Some(proto::AuditActor {
            kind: record.actor.kind,
            id: record.actor.id,
            name: record.actor.name,
        }),
        peer: record.peer,
        rpc: record.rpc,
        target: Some(proto::AuditTarget {
            execution_id: text(target.execution_id),
            step_id: target.step_id,
            artifact_id: text(target.artifact_id),
            key_id: text(target.key_id),
            app_name: text(target.app_name),
            version: text(target.version),
        }),
        count: record.count,
        details: Some(object(&record.details)),
        request_id: record.request_id,
        prev: record.prev.to_vec(),
        hash: record.hash.to_vec(),
        document: bytes(whole),
    }
}

fn head(head: Head) -> proto::AuditHead {
    proto::AuditHead {
        server: head.server,
        seq: head.seq,
        hash: head.hash.to_vec(),
        at: Some(convert::timestamp(head.at)),
        stopped: head.stopped,
    }
}

fn finding(finding: Finding) -> proto::AuditFinding {
    let flaw = match finding.flaw {
        Flaw::Break => proto::AuditFlaw::Break,
        Flaw::Gap => proto::AuditFlaw::Gap,
        Flaw::LostTail => proto::AuditFlaw::LostTail,
        Flaw::MissingChain => proto::AuditFlaw::MissingChain,
    };
    proto::AuditFinding {
        flaw: flaw.into(),
        server: finding.server,
        seq: finding.seq,
        description: finding.words,
    }
}

fn step(step: Step) -> proto::VerifyAuditResponse {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let message = match step {
        Step::Progress { chains, records } => Message::Progress(proto::AuditProgress {
            chains: number(chains),
            records: number(records),
        }),
        Step::Finding(found) => Message::Finding(finding(found)),
        Step::Done { chains, records, findings } => Message::Verdict(proto::AuditVerdict {
            chains: number(chains),
            records: number(records),
            findings: number(findings),
        }),
    };
    proto::VerifyAuditResponse { message: Some(message) }
}

impl AuditCalls {
    fn check(&self) -> Check<'_> {
        Check::new(self.app.limits())
    }

    /// Only what keys did that are wholly within the apps of whoever asks.
    async fn keys_within(&self, permit: &Permit) -> Result<Option<Vec<String>>> {
        if permit.scope().is_all() {
            return Ok(None);
        }
        let keys = self.keys.list(permit).await?;
        Ok(Some(keys.into_iter().map(|key| key.id).collect()))
    }

    fn filter(&self, request: &proto::ListAuditEventsRequest) -> Result<(AuditFilter, usize)> {
        let mut check = self.check();
        let since = check.time("since", request.since.as_ref());
        let until = check.time("until", request.until.as_ref());
        let mut list = |field: &str, values: &[String]| {
            if !check.fits(field, values.len(), "values", FILTER_VALUES) {
                return Vec::new();
            }
            for (place, value) in values.iter().enumerate() {
                check.characters(&format!("{field}[{place}]"), value, NAME_CHARACTERS);
            }
            values.to_vec()
        };
        let actors = list("actors", &request.actors);
        let events = list("events", &request.events);
        let outcomes = list("outcomes", &request.outcomes);
        let known = Outcome::ALL.map(Outcome::as_str);
        for (place, outcome) in outcomes.iter().enumerate() {
            if !known.contains(&outcome.as_str()) {
                let words = format!("must be one of: {}", known.join(", "));
                check.bad(&format!("outcomes[{place}]"), words);
            }
        }
        let execution_id = Some(request.execution_id.as_str()).filter(|id| !id.is_empty());
        if let Some(id) = execution_id {
            check.execution_id(id);
        }
        let size = check.page_size(request.page_size);
        let execution_id = execution_id.map(short);
        let keys = None;
        check.done((
            AuditFilter { since, until, actors, events, outcomes, execution_id, keys },
            size,
        ))
    }

    async fn list(
        &self,
        permit: &Permit,
        request: proto::ListAuditEventsRequest,
    ) -> Result<proto::ListAuditEventsResponse> {
        let (filter, size) = self.filter(&request)?;
        let tokens = self.app.tokens().await?;
        let words: Vec<String> = permit.scope().words().collect();
        let identity =
            format!("{}\n{}\n{}", filter.identity(), request.oldest_first, words.join("\n"));
        let kind = token::Kind::AuditPage;
        let after = match request.page_token.as_str() {
            "" => None,
            sent => {
                let opened = tokens.open(kind, identity.as_bytes(), sent);
                Some(AuditKey(opened.ok_or(Error::BadToken("page_token"))?))
            }
        };
        let limits = self.app.limits();
        let query = AuditQuery {
            filter: AuditFilter { keys: self.keys_within(permit).await?, ..filter },
            oldest_first: request.oldest_first,
            after,
            limit: size,
            examine: limits.page_examined_records,
            bytes: limits.page_bytes.saturating_sub(FRAMING_BYTES) / PER_DOCUMENT,
        };
        let page = self.reader.events(&query).await?;
        let seal = |key: AuditKey| tokens.seal(kind, identity.as_bytes(), &key.0);
        let whole = request.include_documents;
        Ok(proto::ListAuditEventsResponse {
            events: page.records.iter().map(|document| event(document, whole)).collect(),
            next_page_token: page.next.map(seal).unwrap_or_default(),
        })
    }

    async fn heads(
        &self,
        request: proto::GetAuditHeadsRequest,
    ) -> Result<proto::GetAuditHeadsResponse> {
        let mut check = self.check();
        let size = check.page_size(request.page_size);
        check.done(())?;
        let tokens = self.app.tokens().await?;
        let kind = token::Kind::AuditHeadPage;
        let after = match request.page_token.as_str() {
            "" => None,
            sent => {
                let opened = tokens.open(kind, b"", sent);
                let after = opened.and_then(|bytes| String::from_utf8(bytes).ok());
                Some(after.ok_or(Error::BadToken("page_token"))?)
            }
        };
        let mut heads = self.reader.heads(after.as_deref(), size + 1).await?;
        let more = heads.len() > size;
        heads.truncate(size);
        let last = heads.last().filter(|_| more);
        let next_page_token =
            last.map(|head| tokens.seal(kind, b"", head.server.as_bytes())).unwrap_or_default();
        Ok(proto::GetAuditHeadsResponse {
            heads: heads.into_iter().map(head).collect(),
            next_page_token,
        })
    }

    fn known(&self, sent: Vec<proto::AuditHead>) -> Result<Vec<Head>> {
        let mut check = self.check();
        if !check.fits("heads", sent.len(), "heads", HEADS) {
            return check.done(Vec::new());
        }
        let mut servers = HashSet::new();
        let mut heads = Vec::with_capacity(sent.len());
        for (place, sent) in sent.into_iter().enumerate() {
            let field = |name: &str| format!("heads[{place}].{name}");
            if sent.server.is_empty() {
                check.bad(&field("server"), "is required");
            }
            check.characters(&field("server"), &sent.server, NAME_CHARACTERS);
            if sent.seq < 1 {
                check.bad(&field("seq"), "must be at least 1");
            }
            let hash = <[u8; 32]>::try_from(sent.hash.as_slice());
            if hash.is_err() {
                check.bad(&field("hash"), "must have 32 bytes");
            }
            // Of one without a time it is not known that it may be gone for its age.
            let at = check.time(&field("at"), sent.at.as_ref()).unwrap_or(i64::MAX);
            if !servers.insert((sent.server.clone(), sent.seq)) {
                continue;
            }
            let hash = hash.unwrap_or_default();
            heads.push(Head { server: sent.server, seq: sent.seq, hash, at, stopped: false });
        }
        check.done(heads)
    }
}

#[tonic::async_trait]
impl proto::audit_service_server::AuditService for AuditCalls {
    async fn list_audit_events(
        &self,
        request: Request<proto::ListAuditEventsRequest>,
    ) -> Result<Response<proto::ListAuditEventsResponse>, Status> {
        let permit = authenticate::permit(&request)?;
        let listed = self.list(&permit, request.into_inner()).await;
        let mut listed = listed.map_err(|error| status::of(&error))?;
        // One record alone may pass what a reply may have with its document twice.
        if listed.encoded_len() > self.app.limits().page_bytes {
            listed.events.iter_mut().for_each(|event| event.document.clear());
        }
        Ok(Response::new(listed))
    }

    async fn get_audit_heads(
        &self,
        request: Request<proto::GetAuditHeadsRequest>,
    ) -> Result<Response<proto::GetAuditHeadsResponse>, Status> {
        let heads = self.heads(request.into_inner()).await;
        heads.map(Response::new).map_err(|error| status::of(&error))
    }

    type VerifyAuditStream = std::pin::Pin<
        Box<dyn futures::Stream<Item = Result<proto::VerifyAuditResponse, Status>> + Send>,
    >;

    async fn verify_audit(
        &self,
        request: Request<proto::VerifyAuditRequest>,
    ) -> Result<Response<Self::VerifyAuditStream>, Status> {
        let known = self.known(request.into_inner().heads).map_err(|error| status::of(&error))?;
        let (out, answers) = mpsc::channel(WAITING);
        let (reader, stop) = (Arc::clone(&self.reader), self.stop.clone());
        self.tasks.spawn(async move {
            let (told, mut steps) = mpsc::channel::<crate::store::Result<Step>>(1);
            let answers = out.clone();
            let telling = async move {
                while let Some(found) = steps.recv().await {
                    let answer = found.map(step).map_err(|error| status::of(&error.into()));
                    if answers.send(answer).await.is_err() {
                        break;
                    }
                }
            };
            let verified = futures::future::join(reader.verify(known, told), telling);
            if stop.run_until_cancelled(verified).await.is_none() {
                // Whoever asked may be gone, or not reading.
                let _ = out.try_send(Err(status::of(&Error::ShuttingDown)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

//! What a record says: who did what to what, and how it ended. Never a value, a key or a payload.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};

/// Bytes of a text that comes from a client. What is longer is cut: it was made so to be long.
const TEXT_BYTES: usize = 512;
/// Writes of one batch in one record at most; more make more records.
const WRITES: usize = 1000;
/// The same in bytes. A document may have 16 MiB.
const WRITES_BYTES: usize = 512 * 1024;

/// A text of a client, or its beginning where it is longer than it may be.
pub fn short(text: &str) -> String {
    if text.len() <= TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Actor {
    /// How they are known: `key`, `admin_key`, and so on; of the server itself `server`.
    pub kind: String,
    pub id: String,
    pub name: String,
}

impl Actor {
    pub fn new(kind: &str, id: &str, name: &str) -> Actor {
        Actor { kind: short(kind), id: short(id), name: short(name) }
    }

    /// What the server does by itself.
    pub fn server() -> Arc<Actor> {
        Arc::new(Actor::new("server", "", ""))
    }
}

/// The id of a call, as its client and the log know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// By the client.
    Given(Arc<str>),
    /// By the server: which one, and which of its calls.
    Numbered { server: u32, number: u64 },
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestId::Given(id) => f.write_str(id),
            RequestId::Numbered { server, number } => write!(f, "{server:08x}-{number}"),
        }
    }
}

/// A call that is asked for, as far as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub actor: Arc<Actor>,
    /// The address it came from.
    pub peer: Option<IpAddr>,
    /// The full name of the method; of a write within a stream with the name of the write behind it.
    pub rpc: &'static str,
    pub request_id: Option<RequestId>,
}

/// What a call is about, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Target {
    pub execution_id: Option<String>,
    pub step_id: Option<i32>,
    pub artifact_id: Option<String>,
    pub key_id: Option<String>,
    pub app_name: Option<String>,
    pub version: Option<String>,
}

impl Target {
    pub fn execution(execution_id: &str) -> Target {
        Target { execution_id: Some(short(execution_id)), ..Target::default() }
    }

    /// With what is known from elsewhere of what is not known here.
    pub fn or(self, other: Target) -> Target {
        Target {
            execution_id: self.execution_id.or(other.execution_id),
            step_id: self.step_id.or(other.step_id),
            artifact_id: self.artifact_id.or(other.artifact_id),
            key_id: self.key_id.or(other.key_id),
            app_name: self.app_name.or(other.app_name),
            version: self.version.or(other.version),
        }
    }

    fn document(&self) -> RawDocumentBuf {
        let mut to = RawDocumentBuf::new();
        if let Some(id) = &self.execution_id {
            to.append(cstr!("execution_id"), id.as_str());
        }
        if let Some(id) = self.step_id {
            to.append(cstr!("step_id"), id);
        }
        if let Some(id) = &self.artifact_id {
            to.append(cstr!("artifact_id"), id.as_str());
        }
        if let Some(id) = &self.key_id {
            to.append(cstr!("key_id"), id.as_str());
        }
        if let Some(name) = &self.app_name {
            to.append(cstr!("app_name"), name.as_str());
        }
        if let Some(version) = &self.version {
            to.append(cstr!("version"), version.as_str());
        }
        to
    }
}

/// When a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before it is done.
    Begin,
    /// After that; without it what was begun is perhaps done.
    End,
    /// Once, for all of it.
    Once,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Begin => "begin",
            Phase::End => "end",
            Phase::Once => "once",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Ok,
    Denied,
    Failed,
}

impl Outcome {
    pub const ALL: [Outcome; 3] = [Outcome::Ok, Outcome::Denied, Outcome::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Denied => "denied",
            Outcome::Failed => "failed",
        }
    }

    /// How a call ended that has this canonical code.
    pub fn of_code(code: &str) -> Outcome {
        match code {
            "OK" => Outcome::Ok,
            "PERMISSION_DENIED" | "UNAUTHENTICATED" => Outcome::Denied,
            _ => Outcome::Failed,
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it is, as `key.create`.
    pub event: &'static str,
    pub phase: Phase,
    /// `None` of what is only begun.
    pub outcome: Option<Outcome>,
    /// The canonical code; empty of what is only begun.
    pub code: &'static str,
    pub reason: Option<String>,
    pub actor: Arc<Actor>,
    pub peer: Option<IpAddr>,
    pub rpc: &'static str,
    pub target: Target,
    /// How many it stands for.
    pub count: i32,
    pub details: RawDocumentBuf,
    pub request_id: Option<RequestId>,
}

impl Entry {
    /// Of what the server does by itself.
    pub fn of_server(event: &'static str) -> Entry {
        Entry {
            event,
            phase: Phase::Once,
            outcome: Some(Outcome::Ok),
            code: "OK",
            reason: None,
            actor: Actor::server(),
            peer: None,
            rpc: "",
            target: Target::default(),
            count: 1,
            details: RawDocumentBuf::new(),
            request_id: None,
        }
    }

    /// The beginning of a call.
    pub fn begin(event: &'static str, asked: &Asked, target: Target) -> Entry {
        Entry {
            event,
            phase: Phase::Begin,
            outcome: None,
            code: "",
            reason: None,
            actor: Arc::clone(&asked.actor),
            peer: asked.peer,
            rpc: asked.rpc,
            target,
            count: 1,
            details: RawDocumentBuf::new(),
            request_id: asked.request_id.clone(),
        }
    }

    /// The same, ended with this code.
    pub fn ended(self, phase: Phase, code: &'static str, reason: Option<String>) -> Entry {
        Entry { phase, outcome: Some(Outcome::of_code(code)), code, reason, ..self }
    }

    /// Bytes of it in memory and in a record, roughly.
    pub fn weight(&self) -> usize {
        let texts = [&self.target.execution_id, &self.target.app_name, &self.target.version];
        512 + self.details.as_bytes().len()
            + self.actor.id.len()
            + self.actor.name.len()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }

    pub(super) fn append(&self, to: &mut RawDocumentBuf) {
        to.append(cstr!("event"), self.event);
        to.append(cstr!("phase"), self.phase.as_str());
        if let Some(outcome) = self.outcome {
            to.append(cstr!("outcome"), outcome.as_str());
        }
        to.append(cstr!("code"), self.code);
        if let Some(reason) = &self.reason {
            to.append(cstr!("reason"), reason.as_str());
        }
        let mut actor = RawDocumentBuf::new();
        actor.append(cstr!("kind"), self.actor.kind.as_str());
        actor.append(cstr!("id"), self.actor.id.as_str());
        actor.append(cstr!("name"), self.actor.name.as_str());
        to.append(cstr!("actor"), actor);
        let peer = self.peer.map(|peer| peer.to_string()).unwrap_or_default();
        to.append(cstr!("peer"), peer.as_str());
        to.append(cstr!("rpc"), self.rpc);
        to.append(cstr!("target"), self.target.document());
        to.append(cstr!("count"), self.count);
        to.append(cstr!("details"), &self.details);
        let request_id = self.request_id.as_ref().map(ToString::to_string).unwrap_or_default();
        to.append(cstr!("request_id"), request_id.as_str());
    }
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub asked: Asked,
    pub execution_id: String,
    pub step_id: Option<i32>,
    /// `None`: it is about to be done.
    pub code: Option<&'static str>,
}

impl Written {
    fn document(&self) -> RawDocumentBuf {
        let mut to = RawDocumentBuf::new();
        to.append(cstr!("rpc"), self.asked.rpc);
        to.append(cstr!("execution_id"), short(&self.execution_id));
        if let Some(step_id) = self.step_id {
            to.append(cstr!("step_id"), step_id);
        }
        if let Some(code) = self.code {
            to.append(cstr!("code"), code);
        }
        to
    }
}

/// The event of writes that are recorded together.
pub const WRITES_EVENT: &str = "records.write";

/// The writes of one batch, one record per caller, or more where there are too many for one. `begin` is the number of
/// the record with which they began.
pub fn packed(phase: Phase, written: &[Written], begin: Option<i64>) -> Vec<Entry> {
    let mut callers: Vec<(&Arc<Actor>, Vec<&Written>)> = Vec::new();
    for write in written {
        let actor = &write.asked.actor;
        let known =
            callers.iter_mut().find(|(known, _)| Arc::ptr_eq(known, actor) || known == &actor);
        match known {
            Some((_, writes)) => writes.push(write),
            None => callers.push((actor, vec![write])),
        }
    }
    let mut entries = Vec::with_capacity(callers.len());
    for (actor, writes) in callers {
        let mut rest = writes.as_slice();
        while let Some(first) = rest.first() {
            let mut listed = RawArrayBuf::new();
            let (mut count, mut bytes) = (0, 0);
            for write in rest.iter().take(WRITES) {
                let document = write.document();
                bytes += document.as_bytes().len();
                if count > 0 && bytes > WRITES_BYTES {
                    break;
                }
                listed.push(document);
                count += 1;
            }
            let (these, more) = rest.split_at(count);
            rest = more;
            let mut details = RawDocumentBuf::new();
            if let Some(begin) = begin {
                details.append(cstr!("begin"), begin);
            }
            details.append(cstr!("writes"), listed);
            entries.push(of_writes(phase, actor, first, these, details));
        }
    }
    entries
}

fn of_writes(
    phase: Phase,
    actor: &Arc<Actor>,
    first: &Written,
    writes: &[&Written],
    details: RawDocumentBuf,
) -> Entry {
    let asked = &first.asked;
    let all = |same: &dyn Fn(&Asked) -> bool| writes.iter().all(|write| same(&write.asked));
    let one_peer = all(&|other| other.peer == asked.peer);
    let one_request = all(&|other| other.request_id == asked.request_id);
    let one_rpc = all(&|other| other.rpc == asked.rpc);
    let execution = writes.iter().all(|write| write.execution_id == first.execution_id);
    // The worst of them: denied, failed, done.
    let code = match phase {
        Phase::Begin => "",
        Phase::End | Phase::Once => {
            let codes = || writes.iter().filter_map(|write| write.code);
            let denied = codes().find(|code| Outcome::of_code(code) == Outcome::Denied);
            denied.or_else(|| codes().find(|code| *code != "OK")).unwrap_or("OK")
        }
    };
    Entry {
        event: WRITES_EVENT,
        phase,
        outcome: (phase != Phase::Begin).then(|| Outcome::of_code(code)),
        code,
        reason: None,
        actor: Arc::clone(actor),
        peer: asked.peer.filter(|_| one_peer),
        rpc: if one_rpc { asked.rpc } else { "" },
        target: if execution { Target::execution(&first.execution_id) } else { Target::default() },
        count: i32::try_from(writes.len()).unwrap_or(i32::MAX),
        details,
        request_id: asked.request_id.clone().filter(|_| one_request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(actor: &Arc<Actor>, rpc: &'static str, id: &str, code: &'static str) -> Written {
        let asked = Asked {
            actor: Arc::clone(actor),
            peer: Some(IpAddr::from([10, 0, 0, 1])),
            rpc,
            request_id: Some(RequestId::Given(Arc::from(id))),
        };
        Written { asked, execution_id: id.to_owned(), step_id: Some(1), code: Some(code) }
    }

    #[test]
    fn a_batch_is_one_record_per_caller() {
        let ann = Arc::new(Actor::new("key", "a", "ann"));
        // The same caller on another connection is the same caller.
        let also_ann = Arc::new(Actor::new("key", "a", "ann"));
        let bob = Arc::new(Actor::new("key", "b", "bob"));
        let all = [
            written(&ann, "S/A", "e1", "OK"),
            written(&bob, "S/A", "e2", "NOT_FOUND"),
            written(&also_ann, "S/B", "e3", "OK"),
        ];
        let entries = packed(Phase::Once, &all, None);
        assert_eq!(entries.len(), 2);
        let one = &entries[0];
        assert_eq!((one.actor.id.as_str(), one.count, one.rpc, one.code), ("a", 2, "", "OK"));
        assert!(one.peer.is_some() && one.request_id.is_none());
        assert_eq!(one.target, Target::default());
        let two = &entries[1];
        assert_eq!((two.actor.id.as_str(), two.rpc, two.code), ("b", "S/A", "NOT_FOUND"));
        assert_eq!(two.outcome, Some(Outcome::Failed));
        assert_eq!(two.request_id.as_ref().map(ToString::to_string).as_deref(), Some("e2"));
        assert_eq!(two.target, Target::execution("e2"));
        let writes = two.details.get_array("writes").unwrap();
        let first = writes.into_iter().next().unwrap().unwrap();
        let names: Vec<_> = first
            .as_document()
            .unwrap()
            .iter()
            .map(|element| element.unwrap().0.as_str().to_owned())
            .collect();
        assert_eq!(names, ["rpc", "execution_id", "step_id", "code"]);
    }

    #[test]
    fn a_record_of_a_batch_is_bounded_in_number_and_bytes() {
        let ann = Arc::new(Actor::new("key", "a", "ann"));
        let long = "x".repeat(10_000);
        let all: Vec<Written> = (0..4000).map(|_| written(&ann, "S/A", &long, "OK")).collect();
        let entries = packed(Phase::Begin, &all, None);
        assert_eq!(entries.iter().map(|entry| entry.count).sum::<i32>(), 4000);
        for entry in &entries {
            assert!(entry.count <= WRITES as i32);
            assert!(entry.details.as_bytes().len() < WRITES_BYTES + 32 * 1024);
            assert_eq!((entry.outcome, entry.code), (None, ""));
        }
    }

    #[test]
    fn what_a_client_made_long_is_cut() {
        assert_eq!(short("abc"), "abc");
        let cut = short(&"ä".repeat(400));
        assert!(cut.len() <= TEXT_BYTES && cut.ends_with('…'), "{}", cut.len());
    }
}

//! `stepwell audit`: shows, exports and verifies the record of who did what.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value as Json, json};

use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use super::time::{Moment, rfc3339};
use super::{json, table, text};
use crate::clock::Clock;
use crate::proto;
use crate::proto::verify_audit_response::Message;

/// Records and heads asked for at a time.
const PAGE: i32 = 500;
/// A file of heads is not longer.
const HEADS_BYTES: u64 = 64 * 1024 * 1024;
/// Heads that a server takes.
const HEADS: usize = 10_000;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Go through every chain and name what was changed, taken away or exchanged; exit code 1 if anything was.
    Verify(Verify),
    /// List records, the newest first.
    List(List),
    /// Write the documents of records as Extended JSON, one a line, the oldest first: by them the hashes can be computed
    /// elsewhere.
    Export(Export),
    /// Show the newest record of each chain. Kept elsewhere, `--output json` is what `verify --heads` takes.
    Heads,
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    /// A file of heads as `audit heads --output json` writes them, one a line; lines of the server's log as JSON will do
    /// too. Their records have to be there as they were.
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Which {
    /// At this time or later: RFC 3339 with a time zone, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Before this time; written like --since.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Who did it: an id or a name; may be repeated.
    #[arg(long, value_name = "ID_OR_NAME")]
    actor: Vec<String>,
    /// Which event, such as key.create; may be repeated.
    #[arg(long, value_name = "EVENT")]
    event: Vec<String>,
    /// ok, denied or failed; may be repeated.
    #[arg(long, value_name = "OUTCOME")]
    outcome: Vec<String>,
    /// What was done to this execution.
    #[arg(long, value_name = "EXECUTION_ID")]
    execution: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    which: Which,
    /// How many at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    which: Which,
}

impl Which {
    fn request(&self, clock: &dyn Clock) -> proto::ListAuditEventsRequest {
        let now = clock.now();
        proto::ListAuditEventsRequest {
            since: self.since.as_ref().map(|moment| moment.resolve(now)),
            until: self.until.as_ref().map(|moment| moment.resolve(now)),
            actors: self.actor.clone(),
            events: self.event.clone(),
            outcomes: self.outcome.clone(),
            execution_id: self.execution.clone().unwrap_or_default(),
            page_size: PAGE,
            ..Default::default()
        }
    }
}

pub async fn run(
    command: Command,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    match command {
        Command::Verify(args) => verify(args.heads.as_deref(), connection, output).await,
        Command::List(args) => list(&args, connection, output, clock).await,
        Command::Export(args) => export(&args.which, connection, output, clock).await,
        Command::Heads => heads(connection, output).await,
    }
}

async fn list(
    args: &List,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    const COLUMNS: [table::Column; 7] = [
        table::Column::whole("TIME"),
        table::Column::whole("EVENT"),
        table::Column::whole("PHASE").spare(3),
        table::Column::whole("ENDED"),
        table::Column::cut("WHO", 10),
        table::Column::cut("WHAT", 12),
        table::Column::whole("FROM").spare(1),
    ];
    let mut client = connection.audits();
    let mut request = args.which.request(clock);
    let mut rows = Vec::new();
    let mut left = args.limit;
    while left > 0 {
        request.page_size = i32::try_from(left).unwrap_or(PAGE).min(PAGE);
        let page = client.list_audit_events(call(request.clone())).await?.into_inner();
        for event in &page.events {
            left = left.saturating_sub(1);
            match output.is_json() {
                true => output.json(&shown(event))?,
                false => rows.push(row(event)),
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if !output.is_json() {
        for line in table::render(output, &COLUMNS, rows) {
            output.line(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn row(event: &proto::AuditEvent) -> Vec<table::Content> {
    let who = event.actor.as_ref().map_or_else(String::new, |actor| {
        let name = if actor.name.is_empty() { &actor.kind } else { &actor.name };
        text::one_line(name)
    });
    let ended = match (event.outcome.as_str(), event.reason.as_str()) {
        ("", _) => text::NOTHING.to_owned(),
        (outcome, "") => text::one_line(outcome),
        (outcome, reason) => format!("{} {}", text::one_line(outcome), text::one_line(reason)),
    };
    let ended = match event.count {
        0 | 1 => ended,
        count => format!("{ended} ×{count}"),
    };
    let colour = match event.outcome.as_str() {
        "denied" | "failed" => Some(table::Colour::Bad),
        _ => None,
    };
    vec![
        text::time(event.at.as_ref()).into(),
        text::one_line(&event.event).into(),
        text::one_line(&event.phase).into(),
        table::coloured(&ended, colour),
        who.into(),
        what(event).into(),
        text::one_line(&event.peer).into(),
    ]
}

/// What it was done to, in short.
fn what(event: &proto::AuditEvent) -> String {
    let Some(target) = &event.target else { return String::new() };
    let step = target.step_id.map(|step| format!("step {step}"));
    let named = |what: &str, name: &str| (!name.is_empty()).then(|| format!("{what} {name}"));
    let parts = [
        named("execution", &target.execution_id),
        step,
        named("artifact", &target.artifact_id),
        named("key", &target.key_id),
        named("app", &target.app_name),
        named("version", &target.version),
    ];
    text::one_line(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn shown(event: &proto::AuditEvent) -> Json {
    let actor = event.actor.clone().unwrap_or_default();
    let target = event.target.clone().unwrap_or_default();
    json!({
        "id": event.id,
        "server": event.server,
        "seq": event.seq,
        "at": json::time(event.at.as_ref()),
        "event": event.event,
        "phase": event.phase,
        "outcome": event.outcome,
        "code": event.code,
        "reason": event.reason,
        "actor": { "kind": actor.kind, "id": actor.id, "name": actor.name },
        "peer": event.peer,
        "rpc": event.rpc,
        "target": {
            "execution_id": target.execution_id,
            "step_id": target.step_id,
            "artifact_id": target.artifact_id,
            "key_id": target.key_id,
            "app_name": target.app_name,
            "version": target.version,
        },
        "count": event.count,
        "details": json::object(event.details.as_ref()),
        "request_id": event.request_id,
        "prev": hex::encode(&event.prev),
        "hash": hex::encode(&event.hash),
    })
}

async fn export(
    which: &Which,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut client = connection.audits();
    let mut request = proto::ListAuditEventsRequest {
        oldest_first: true,
        include_documents: true,
        ..which.request(clock)
    };
    let (mut count, mut unread) = (0_u64, 0_u64);
    loop {
        let page = client.list_audit_events(call(request.clone())).await?.into_inner();
        for event in &page.events {
            match bson::Document::from_reader(event.document.as_slice()) {
                Ok(document) => {
                    count += 1;
                    output.line(&in_order(&bson::Bson::from(document)))?;
                }
                Err(_) => unread += 1,
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    message(&format!("exported {count} records"));
    if unread > 0 {
        message(&format!("{unread} records cannot be read: see `stepwell audit verify`"));
    }
    Ok(Exit::refused_if(unread > 0))
}

/// Canonical Extended JSON with the fields in the order of the document, which a JSON value would not keep: the hash is of
/// the fields in that order.
fn in_order(value: &bson::Bson) -> String {
    match value {
        bson::Bson::Document(document) => {
            let fields: Vec<String> = document
                .iter()
                .map(|(name, value)| format!("{}:{}", Json::from(name.as_str()), in_order(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        bson::Bson::Array(values) => {
            let values: Vec<String> = values.iter().map(in_order).collect();
            format!("[{}]", values.join(","))
        }
        value => value.clone().into_canonical_extjson().to_string(),
    }
}

fn head(head: &proto::AuditHead) -> Json {
    json!({
        "server": head.server,
        "seq": head.seq,
        "hash": hex::encode(&head.hash),
        "at": json::time(head.at.as_ref()),
        "stopped": head.stopped,
    })
}

async fn heads(connection: &Connection, output: &Output) -> Result<Exit> {
    const COLUMNS: [table::Column; 5] = [
        table::Column::whole("SERVER"),
        table::Column::whole("RECORDS").right(),
        table::Column::whole("NEWEST"),
        table::Column::whole("STOPPED").spare(1),
        table::Column::cut("HASH", 16),
    ];
    let mut client = connection.audits();
    let mut request = proto::GetAuditHeadsRequest { page_size: PAGE, ..Default::default() };
    let mut rows = Vec::new();
    loop {
        let page = client.get_audit_heads(call(request.clone())).await?.into_inner();
        for found in &page.heads {
            if output.is_json() {
                output.json(&head(found))?;
                continue;
            }
            rows.push(vec![
                text::one_line(&found.server).into(),
                found.seq.to_string().into(),
                text::time(found.at.as_ref()).into(),
                if found.stopped { "yes" } else { "no" }.into(),
                hex::encode(&found.hash).into(),
            ]);
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if !output.is_json() {
        for line in table::render(output, &COLUMNS, rows) {
            output.line(&line)?;
        }
    }
    Ok(Exit::Done)
}

/// The heads in a file. Lines of a log that are about something else are passed over.
fn kept(path: &Path) -> Result<Vec<proto::AuditHead>> {
    let cannot = |why: String| Failure::CouldNotStart(format!("--heads {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
    if size > HEADS_BYTES {
        return Err(cannot(format!("is larger than {HEADS_BYTES} bytes")));
    }
    let lines = std::fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    let mut heads = Vec::new();
    for (number, line) in lines.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |why: &str| cannot(format!("line {}: {why}", number + 1));
        let parsed: Json = serde_json::from_str(line).map_err(|_| wrong("is not JSON"))?;
        let (Some(server), Some(seq), Some(hash)) = (
            parsed.get("server").and_then(Json::as_str),
            parsed.get("seq").and_then(Json::as_i64),
            parsed.get("hash").and_then(Json::as_str),
        ) else {
            continue;
        };
        let hash = hex::decode(hash).map_err(|_| wrong("hash is not hexadecimal"))?;
        let at = parsed.get("at").and_then(Json::as_str).and_then(rfc3339);
        heads.push(proto::AuditHead { server: server.to_owned(), seq, hash, at, stopped: false });
    }
    if heads.is_empty() {
        return Err(cannot("has no heads".to_owned()));
    }
    // Of each chain the newest ones say all.
    heads.sort_by(|one, other| (&other.server, other.seq).cmp(&(&one.server, one.seq)));
    heads.dedup();
    if heads.len() > HEADS {
        let mut of_chain = String::new();
        heads.retain(|head| std::mem::replace(&mut of_chain, head.server.clone()) != head.server);
    }
    Ok(heads)
}

async fn verify(file: Option<&Path>, connection: &Connection, output: &Output) -> Result<Exit> {
    let heads = file.map(kept).transpose()?.unwrap_or_default();
    let mut client = connection.audits();
    // However long it takes: it tells how far it is.
    let request = tonic::Request::new(proto::VerifyAuditRequest { heads });
    let mut steps = client.verify_audit(request).await?.into_inner();
    let mut verdict = None;
    while let Some(step) = steps.message().await? {
        match step.message {
            Some(Message::Finding(finding)) => tell(&finding, output)?,
            Some(Message::Verdict(found)) => verdict = Some(found),
            Some(Message::Progress(_)) | None => {}
        }
    }
    let Some(proto::AuditVerdict { chains, records, findings }) = verdict else {
        return Err(Failure::Refused("the server ended before it had looked at all".to_owned()));
    };
    match output.is_json() {
        true => output.json(&json!({
            "chains": chains, "records": records, "findings": findings,
        }))?,
        false => {
            let verdict = match findings {
                0 => "all as it was written".to_owned(),
                1 => "1 finding".to_owned(),
                findings => format!("{findings} findings"),
            };
            output.line(&format!("{chains} chains, {records} records: {verdict}"))?;
        }
    }
    Ok(Exit::refused_if(findings > 0))
}

fn tell(finding: &proto::AuditFinding, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(&json!({
            "flaw": finding.flaw().as_str_name(),
            "server": finding.server,
            "seq": finding.seq,
            "description": finding.description,
        }));
    }
    let flaw = match finding.flaw() {
        proto::AuditFlaw::Break => "break",
        proto::AuditFlaw::Gap => "gap",
        proto::AuditFlaw::LostTail => "lost tail",
        proto::AuditFlaw::MissingChain => "missing chain",
        proto::AuditFlaw::Unspecified => "flaw",
    };
    let description = text::one_line(&finding.description);
    let server = text::one_line(&finding.server);
    output.line(&format!("{flaw}: chain {server}, record {}: {description}", finding.seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_exported_in_its_order() {
        let document = bson::doc! {
            "z": 1_i64, "a": { "kind": "key", "id": "\"x\"" }, "list": [{ "rpc": "R", "code": 2 }, true],
        };
        assert_eq!(
            in_order(&bson::Bson::from(document)),
            "{\"z\":{\"$numberLong\":\"1\"},\"a\":{\"kind\":\"key\",\"id\":\"\\\"x\\\"\"},\
             \"list\":[{\"rpc\":\"R\",\"code\":{\"$numberInt\":\"2\"}},true]}"
        );
    }

    #[test]
    fn heads_are_read_from_a_list_and_from_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heads");
        let hash = "ab".repeat(32);
        let lines = [
            json!({ "server": "a", "seq": 3, "hash": hash, "at": "2026-01-31T08:00:00Z" }),
            json!({ "level": "INFO", "message": "something else" }),
            json!({ "message": "the newest audit record", "server": "b", "seq": 5, "hash": hash, "at": 7 }),
            json!({ "server": "a", "seq": 4, "hash": hash }),
        ];
        let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
        std::fs::write(&path, text.join("\n") + "\n\n").unwrap();
        let heads = kept(&path).unwrap();
        let found: Vec<_> =
            heads.iter().map(|head| (head.server.as_str(), head.seq, head.at.is_some())).collect();
        assert_eq!(found, [("b", 5, false), ("a", 4, false), ("a", 3, true)]);
        for wrong in ["", "{}", "nonsense", "{\"server\":\"a\",\"seq\":1,\"hash\":\"xy\"}"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(kept(&path).is_err(), "{wrong}");
        }
    }
}

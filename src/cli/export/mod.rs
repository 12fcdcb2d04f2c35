//! `stepwell export --out DIR`: the files that `import` reads, out of a running server.

pub mod document;
mod folder;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::artifacts::{get, progress};
use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::filter::FilterArgs;
use super::import::{Collection, Line, Lines};
use super::json;
use super::output::{Output, message};
use super::table::{self, Column};
use super::text;
use crate::clock::Clock;
use crate::domain::Now;
use crate::proto;
use crate::proto::export_response::Record;
use crate::rpc::convert;
use folder::{Folder, Written};

/// How much may come again after an interruption.
const REMEMBER_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write to; it is created if needed.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Compress the files with gzip.
    #[arg(long)]
    gzip: bool,
    /// Also download the bytes of artifacts, to DIR/artifacts/ARTIFACT_ID.
    #[arg(long)]
    artifacts: bool,
    /// Continue an export that was interrupted in this folder; give the same flags.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let info = connection
        .admin()
        .get_server_info(call(proto::GetServerInfoRequest {}))
        .await
        .map_err(|status| match Failure::from(status) {
            Failure::Refused(message) => Failure::CouldNotStart(message),
            other => other,
        })?
        .into_inner();
    // As it was written: a time ago is another time after an interruption.
    let what = json!(format!("{:?}", args.filter));
    let mut folder = Folder::open(&args.out, what, args.gzip, args.resume)?;
    if folder.state.filter.is_empty() {
        folder.state.filter = hex::encode(args.filter.resolve(clock.now()).encode_to_vec());
        folder.remember()?;
    }
    let filter = hex::decode(&folder.state.filter).ok();
    let filter = filter.and_then(|bytes| proto::ExecutionFilter::decode(bytes.as_slice()).ok());
    let filter = filter.unwrap_or_default();
    if folder.state.complete.is_none() {
        receive(connection, &filter, &mut folder, clock).await?;
    }
    let (since, until) = folder.state.complete.unwrap_or_default();
    if until.is_none() {
        message(
            "note: this database keeps no log of changes: each record is as it was when the export came to it",
        );
    }
    let mut manifest = Map::new();
    manifest.insert("format".to_owned(), json!(1));
    manifest.insert("server_version".to_owned(), json!(info.version));
    manifest.insert("store".to_owned(), json!(info.store));
    manifest.insert("exported_at".to_owned(), time(clock.now()));
    manifest.insert("since_position".to_owned(), json!(since));
    manifest.insert("until_position".to_owned(), json!(until));
    let files = folder.finish(manifest)?;
    let bytes = match args.artifacts {
        true => Some(artifacts(args, connection, &files).await?),
        false => None,
    };
    print(output, &files, bytes)?;
    Ok(Exit::refused_if(bytes.is_some_and(|(_, missing)| missing > 0)))
}

fn time(now: Now) -> Value {
    json::time(Some(&convert::timestamp(now.millis())))
}

/// Receives everything that is left, over as many streams as it takes.
async fn receive(
    connection: &Connection,
    filter: &proto::ExecutionFilter,
    folder: &mut Folder,
    clock: &dyn Clock,
) -> Result<()> {
    let bar = ProgressBar::hidden();
    let mut patience = progress::Patience::default();
    let mut received = 0;
    loop {
        match stream(connection, filter, folder, &mut received, clock).await? {
            Ok(()) => return Ok(()),
            Err(status) => {
                if status.code() == tonic::Code::OutOfRange {
                    return Err(Failure::Refused(
                        "the log of the server no longer reaches back to the beginning of this \
                         export: begin a new one in another folder"
                            .to_owned(),
                    ));
                }
                patience.wait(status, received, &bar).await?;
                folder.rewind()?;
            }
        }
    }
}

/// Receives until the stream ends. The outer error is one of writing.
async fn stream(
    connection: &Connection,
    filter: &proto::ExecutionFilter,
    folder: &mut Folder,
    received: &mut u64,
    clock: &dyn Clock,
) -> Result<std::result::Result<(), Status>> {
    let request = proto::ExportRequest {
        filter: Some(filter.clone()),
        kinds: Vec::new(),
        resume_token: Some(folder.state.token.clone()),
        follow: false,
    };
    let mut stream = match connection.exports().export(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut remembered = clock.instant();
    loop {
        let answer = match stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Err(Status::unavailable("the export ended early"))),
            Err(status) => return Ok(Err(status)),
        };
        *received += 1;
        // The same token again: a resume sends this record once more, with those since the token came first.
        let goes_on = answer.resume_token != folder.state.token;
        let complete = take(folder, answer.record)?;
        if goes_on {
            folder.state.token = answer.resume_token;
        }
        if let Some(positions) = complete {
            folder.state.complete = Some(positions);
            folder.remember()?;
            return Ok(Ok(()));
        }
        if goes_on && clock.elapsed(remembered) > REMEMBER_EVERY {
            folder.remember()?;
            remembered = clock.instant();
        }
    }
}

/// Takes one message in; the answer is the two positions once everything is there.
fn take(folder: &mut Folder, record: Option<Record>) -> Result<Option<(Option<i64>, Option<i64>)>> {
    match record {
        Some(Record::Execution(record)) => {
            folder.add(Collection::Executions, document::execution(&record))?;
        }
        Some(Record::Step(record)) => folder.add(Collection::Steps, document::step(&record))?,
        Some(Record::Artifact(record)) => {
            folder.add(Collection::Artifacts, document::artifact(&record))?;
        }
        Some(Record::Points(points)) => {
            for point in &points.points {
                folder.add(Collection::Metrics, document::point(point))?;
            }
        }
        Some(Record::Configuration(record)) => {
            folder.add(Collection::Configurations, document::configuration(&record))?;
        }
        Some(Record::Removed(removed)) => folder.remove(&removed)?,
        Some(Record::Walked(_)) => folder.state.walked = true,
        Some(Record::Complete(complete)) => {
            return Ok(Some((complete.since_position, complete.until_position)));
        }
        // Of an export that goes on, or of a newer server.
        Some(Record::CaughtUp(_)) | None => {}
    }
    Ok(None)
}

/// Gets the bytes of the artifacts of the export that are not there yet. The answer: how many are there, and how many are not
/// to be had.
async fn artifacts(args: &Args, connection: &Connection, files: &[Written]) -> Result<(u64, u64)> {
    let folder = args.out.join("artifacts");
    std::fs::create_dir_all(&folder)?;
    let name = files.iter().find(|file| file.name.starts_with(Collection::Artifacts.name()));
    let path = args.out.join(name.map_or("", |file| &file.name));
    let mut lines = Lines::open(&path)?;
    let (mut there, mut missing) = (0, 0);
    while let Some(line) = lines.next()? {
        let Line::Text { text, .. } = line else { continue };
        let record: Value = serde_json::from_slice(text).map_err(std::io::Error::other)?;
        let Some(id) = record["_id"]["$oid"].as_str() else { continue };
        let target = folder.join(id);
        let size = target.metadata().ok().map(|meta| meta.len());
        if size.is_none() || size != record["size_bytes"].as_u64() {
            let whole = get::Args::whole(id.to_owned(), target);
            match get::get(&whole, connection).await {
                Ok(_) => {}
                Err(Failure::Refused(why)) => {
                    missing += 1;
                    message(&format!("note: no bytes of artifact {id}: {why}"));
                    continue;
                }
                Err(failure) => return Err(failure),
            }
        }
        there += 1;
    }
    Ok((there, missing))
}

const COLUMNS: [Column; 3] =
    [Column::cut("FILE", 16), Column::whole("DOCUMENTS").right(), Column::whole("BYTES").right()];

fn print(output: &Output, files: &[Written], artifacts: Option<(u64, u64)>) -> Result<()> {
    if output.is_json() {
        let listed = files.iter().map(|file| {
            let Written { name, documents, bytes, sha256 } = file;
            json!({ "file": name, "documents": documents, "bytes": bytes, "sha256": sha256 })
        });
        let mut all = json!({ "files": listed.collect::<Vec<_>>() });
        if let Some((there, missing)) = artifacts {
            all["artifacts"] = json!(there);
            all["artifacts_without_bytes"] = json!(missing);
        }
        return output.json(&all);
    }
    let rows = files
        .iter()
        .map(|file| {
            vec![
                file.name.as_str().into(),
                file.documents.to_string().into(),
                file.bytes.to_string().into(),
            ]
        })
        .collect();
    for line in table::render(output, &COLUMNS, rows) {
        output.line(&line)?;
    }
    if let Some((there, _)) = artifacts {
        output.line(&format!("bytes of {}", text::count(there, "artifact", "artifacts")))?;
    }
    Ok(())
}

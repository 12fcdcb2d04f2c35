//! `stepwell artifacts put`. The id of an upload follows from what is uploaded, so the same command goes on with
//! what an earlier one left.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};

use super::progress::{Patience, bar};
use crate::cli::connection::{self, Connection, call};
use crate::cli::exit::{Exit, Failure, Result};
use crate::cli::output::{Output, message};
use crate::cli::{json, text};
use crate::proto;
use crate::proto::upload_artifact_request::Part;

/// Bytes in one message.
const CHUNK_BYTES: usize = 512 * 1024;
/// What is read at a time where nothing is sent.
const READ_BYTES: usize = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The execution they belong to.
    #[arg(value_name = "EXECUTION")]
    execution_id: String,
    /// The files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The step that made them.
    #[arg(long, value_name = "NUMBER", conflicts_with = "step_key")]
    step: Option<i32>,
    /// The step that made them, by its own key.
    #[arg(long, value_name = "KEY")]
    step_key: Option<String>,
    /// Their type; by default chosen from the file name.
    #[arg(long = "type", value_name = "TYPE")]
    artifact_type: Option<String>,
    /// The name of the artifact, if there is only one file; by default the file name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Their media type; by default chosen from the file name.
    #[arg(long, value_name = "TYPE")]
    mime: Option<String>,
}

/// Each file is tried, whatever became of those before; only a server that is not there ends it early.
pub async fn run(args: &Args, connection: &Connection, output: &Output) -> Result<Exit> {
    if args.name.is_some() && args.files.len() > 1 {
        return Err(Failure::CouldNotStart("--name can be used with one file only".to_owned()));
    }
    for file in &args.files {
        // Known before anything is sent.
        let is_file = std::fs::metadata(file).map_err(|error| unreadable(file, &error))?.is_file();
        if !is_file {
            return Err(Failure::CouldNotStart(format!("{}: not a file", file.display())));
        }
    }
    let mut refused = false;
    for file in &args.files {
        match put(args, file, connection).await {
            Ok(artifact) if output.is_json() => output.json(&json::artifact(&artifact))?,
            Ok(artifact) => output.line(&text::one_line(&format!(
                "{} {}",
                artifact.artifact_id, artifact.artifact_name
            )))?,
            Err(Failure::Refused(reason)) => {
                refused = true;
                let said = format!("error: {}: {reason}", file.display());
                message(&text::one_line(&said));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Exit::refused_if(refused))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::CouldNotStart(format!("{}: {error}", path.display()))
}

async fn put(args: &Args, path: &Path, connection: &Connection) -> Result<proto::Artifact> {
    let (size, sha256) = digest(path).await.map_err(|error| unreadable(path, &error))?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (artifact_type, mime_type) = guess(&file_name);
    let mut description = proto::ArtifactDescription {
        execution_id: args.execution_id.clone(),
        step_id: args.step,
        step_key: args.step_key.clone(),
        artifact_type: args.artifact_type.clone().unwrap_or_else(|| artifact_type.to_owned()),
        artifact_name: args.name.clone().unwrap_or(file_name),
        mime_type: args.mime.clone().or(mime_type.map(str::to_owned)),
        metadata: None,
        size_bytes: Some(i64::try_from(size).unwrap_or(i64::MAX)),
        sha256: Some(sha256),
        upload_id: None,
        offset: 0,
    };
    description.upload_id = Some(upload_id(&description));
    transfer(description, path, size, connection).await.map_err(|broken| match broken {
        Broken::Call(status) => Failure::from(*status),
        Broken::File(error) => Failure::Refused(format!("cannot be read: {error}")),
    })
}

/// Why an upload did not come to its end.
#[derive(Debug)]
pub enum Broken {
    Call(Box<Status>),
    File(io::Error),
}

/// Uploads the bytes of a file whose description, with an id, lacks only what they are.
pub async fn upload(
    mut description: proto::ArtifactDescription,
    path: &Path,
    connection: &Connection,
) -> std::result::Result<proto::Artifact, Broken> {
    let (size, sha256) = digest(path).await.map_err(Broken::File)?;
    description.size_bytes = Some(i64::try_from(size).unwrap_or(i64::MAX));
    description.sha256 = Some(sha256);
    transfer(description, path, size, connection).await
}

/// Goes on where an upload with the same id has stopped, and again where it breaks.
async fn transfer(
    mut description: proto::ArtifactDescription,
    path: &Path,
    size: u64,
    connection: &Connection,
) -> std::result::Result<proto::Artifact, Broken> {
    let bar = bar(&description.artifact_name, size);
    let mut patience = Patience::default();
    let stored = loop {
        match attempt(&mut description, path, connection, &bar).await {
            Ok(Ok(artifact)) => break Ok(artifact),
            Ok(Err(status)) => {
                let reached = u64::try_from(description.offset).unwrap_or(0);
                if let Err(status) = patience.wait(status, reached, &bar).await {
                    break Err(Broken::Call(Box::new(status)));
                }
            }
            Err(error) => break Err(Broken::File(error)),
        }
    };
    bar.finish_and_clear();
    stored
}

/// The same upload has the same id.
fn upload_id(description: &proto::ArtifactDescription) -> String {
    use prost::Message as _;
    hex::encode(Sha256::digest(description.encode_to_vec()))
}

async fn digest(path: &Path) -> io::Result<(u64, String)> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut piece = vec![0; READ_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok((size, hex::encode(hash.finalize()))),
                read => {
                    hash.update(&piece[..read]);
                    size += read as u64;
                }
            }
        }
    });
    read.await.map_err(io::Error::other)?
}

/// One try, from wherever the upload is. The outer error is one of the file.
async fn attempt(
    description: &mut proto::ArtifactDescription,
    path: &Path,
    connection: &Connection,
    bar: &ProgressBar,
) -> io::Result<std::result::Result<proto::Artifact, Status>> {
    let mut client = connection.artifacts();
    let upload_id = description.upload_id.clone().unwrap_or_default();
    let received = client.get_upload(call(proto::GetUploadRequest { upload_id })).await;
    description.offset = match received {
        Ok(received) => received.into_inner().received_bytes,
        Err(status) if status.code() == Code::NotFound => 0,
        Err(status) => return Ok(Err(status)),
    };
    let offset = u64::try_from(description.offset).unwrap_or(0);
    bar.set_position(offset);
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    // A stream of requests cannot say that it failed.
    let failed = Arc::new(Mutex::new(None));
    let first = proto::UploadArtifactRequest { part: Some(Part::Description(description.clone())) };
    let fails = Arc::clone(&failed);
    let bar = bar.clone();
    let chunks = stream::unfold(Some(file), move |file| {
        let (fails, bar) = (Arc::clone(&fails), bar.clone());
        async move {
            let mut file = file?;
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
                io::Result::Ok((file, chunk))
            });
            match read.await.map_err(io::Error::other).and_then(|read| read) {
                Ok((_, chunk)) if chunk.is_empty() => None,
                Ok((file, chunk)) => {
                    bar.inc(chunk.len() as u64);
                    let part = Some(Part::Chunk(Bytes::from(chunk)));
                    Some((proto::UploadArtifactRequest { part }, Some(file)))
                }
                Err(error) => {
                    *fails.lock() = Some(error);
                    None
                }
            }
        }
    });
    let stream = futures::StreamExt::chain(stream::iter([first]), chunks);
    let answer = client.upload_artifact(stream).await;
    if let Some(error) = failed.lock().take() {
        return Err(error);
    }
    Ok(answer.and_then(|answer| {
        let artifact = answer.into_inner().artifact;
        artifact.ok_or_else(|| Status::unavailable(connection::code_name(Code::Unknown)))
    }))
}

/// Type and media type by the ending of a file's name.
fn guess(name: &str) -> (&'static str, Option<&'static str>) {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        Some("png") => ("screenshot", Some("image/png")),
        Some("jpg" | "jpeg") => ("screenshot", Some("image/jpeg")),
        Some("webp") => ("screenshot", Some("image/webp")),
        Some("log") => ("log", Some("text/plain")),
        Some("txt") => ("log", Some("text/plain")),
        Some("html" | "htm") => ("report", Some("text/html")),
        Some("pdf") => ("report", Some("application/pdf")),
        Some("md") => ("report", Some("text/markdown")),
        Some("csv") => ("report", Some("text/csv")),
        Some("json") => ("report", Some("application/json")),
        Some("diff" | "patch") => ("code", Some("text/x-diff")),
        Some("py" | "rs" | "js" | "ts" | "go" | "java" | "c" | "h" | "cpp" | "sh" | "sql") => {
            ("code", Some("text/plain"))
        }
        _ => ("file", None),
    }
}

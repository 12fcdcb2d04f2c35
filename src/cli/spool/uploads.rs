//! The artifacts of a spool.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use serde_json::Value as Json;
use tonic_types::StatusExt as _;

use super::format::{self, Maker, Records};
use crate::cli::artifacts::{self, Broken};
use crate::cli::connection::{self, Connection};
use crate::cli::import::is_denied;
use crate::cli::json;
use crate::proto;

/// What became of one.
#[derive(Debug)]
pub enum Uploaded {
    Stored,
    Refused(String),
    /// The server does not know its run.
    NoExecution(String),
    /// It stays for this once.
    ForNow(String),
    /// And so would all others.
    Away(String),
}

/// An artifact as a file of the spool describes it.
#[derive(Debug)]
pub struct Described {
    pub description: proto::ArtifactDescription,
    /// Where its bytes are.
    pub bytes: PathBuf,
    /// They are in the spool.
    pub is_copy: bool,
}

fn ending_of_bytes(maker: Maker) -> &'static str {
    match maker {
        Maker::Python => "blob",
        Maker::TypeScript => "nodeblob",
        Maker::Refused => "refused-blob",
    }
}

fn said(path: &Path) -> Option<Json> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The bytes that a description of the library for TypeScript names: those in the spool are beside it, wherever the spool
/// was when it was written.
fn named_by(said: &Json, folder: &Path) -> Option<PathBuf> {
    let blob = Path::new(said.get("blob")?.as_str()?);
    Some(folder.join(blob.file_name()?))
}

/// The bytes in the spool of which a file is the description.
pub fn bytes_in_spool(path: &Path, maker: Maker) -> Option<PathBuf> {
    match maker {
        Maker::TypeScript => named_by(&said(path)?, path.parent()?),
        Maker::Python | Maker::Refused => Some(path.with_extension(ending_of_bytes(maker))),
    }
}

/// A refused one: the note, and the description behind it.
fn refused(path: &Path) -> Option<(Json, proto::ArtifactDescription)> {
    let mut records = Records::open(path, Maker::Refused).ok()?;
    let note = format::note(&records.next()?.ok()?).filter(format::is_known)?;
    let description = proto::ArtifactDescription::decode(records.next()?.ok()?.as_slice()).ok()?;
    Some((note, description))
}

/// For which server an artifact is. Those of Python leave that to the records beside them.
pub fn server_of(path: &Path, maker: Maker) -> Option<String> {
    let said = match maker {
        Maker::Python => return None,
        Maker::TypeScript => said(path)?,
        Maker::Refused => refused(path)?.0,
    };
    said.get("server")?.as_str().map(str::to_owned)
}

/// What was refused, and why.
pub fn refusal(path: &Path) -> (String, String) {
    match refused(path) {
        Some((note, description)) => {
            (title(&description), note["refused"].as_str().unwrap_or_default().to_owned())
        }
        None => ("an artifact".to_owned(), "its description cannot be read".to_owned()),
    }
}

/// An artifact as a person is told of it.
pub fn title(description: &proto::ArtifactDescription) -> String {
    let (name, execution) = (&description.artifact_name, &description.execution_id);
    format!("artifact {name} of execution {execution}")
}

/// The names of all bytes that are described; `None`: somebody is taking some of them just now.
pub fn named_bytes(folder: &Path, names: &[String]) -> Option<HashSet<String>> {
    let mut named = HashSet::new();
    for name in names {
        let path = folder.join(name);
        let bytes = if name.ends_with(".nodeartifact") {
            // One that cannot be read may name anything.
            let said = said(&path)?;
            named_by(&said, folder)
        } else if name.ends_with(".artifact") {
            bytes_in_spool(&path, Maker::Python)
        } else if name.ends_with(".refused-artifact") {
            bytes_in_spool(&path, Maker::Refused)
        } else {
            continue;
        };
        let name = bytes.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        named.extend(name.map(str::to_owned));
    }
    Some(named)
}

/// What a file describes; `None`: it cannot be read.
pub fn describe(path: &Path, maker: Maker) -> Option<Described> {
    if maker == Maker::Refused {
        let (_, description) = refused(path)?;
        return Some(Described { description, bytes: bytes_in_spool(path, maker)?, is_copy: true });
    }
    if maker == Maker::Python {
        let description =
            proto::ArtifactDescription::decode(fs::read(path).ok()?.as_slice()).ok()?;
        let bytes = bytes_in_spool(path, maker)?;
        return Some(Described { description, bytes, is_copy: true });
    }
    let said = said(path)?;
    let word = |name: &str| said.get(name).and_then(Json::as_str).map(str::to_owned);
    let blob = named_by(&said, path.parent()?);
    let is_copy = blob.is_some();
    let metadata = said.get("metadata").map(|metadata| json::parse(metadata).kind);
    Some(Described {
        description: proto::ArtifactDescription {
            execution_id: word("executionId")?,
            artifact_type: word("type").unwrap_or_default(),
            artifact_name: word("name").unwrap_or_default(),
            mime_type: word("mimeType"),
            step_key: word("stepKey"),
            metadata: match metadata {
                Some(Some(prost_types::value::Kind::StructValue(object))) => Some(object),
                _ => None,
            },
            upload_id: word("uploadId"),
            ..proto::ArtifactDescription::default()
        },
        bytes: blob.or(word("file").map(PathBuf::from))?,
        is_copy,
    })
}

/// Uploads one; goes on where an earlier upload of it stopped.
pub async fn send(connection: &Connection, described: &Described) -> Uploaded {
    let description = described.description.clone();
    match artifacts::upload(description, &described.bytes, connection).await {
        Ok(_) => Uploaded::Stored,
        Err(Broken::Call(status)) => {
            let said = connection::describe(&status);
            let details = status.get_error_details();
            let reason = details.error_info().map_or("", |info| info.reason.as_str());
            if is_denied(status.code()) {
                Uploaded::ForNow(said)
            } else if reason == "EXECUTION_NOT_FOUND" {
                Uploaded::NoExecution(said)
            } else if connection::is_passing(&status) {
                Uploaded::Away(said)
            } else {
                Uploaded::Refused(said)
            }
        }
        Err(Broken::File(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Uploaded::Refused("its bytes are not there any more".to_owned())
        }
        Err(Broken::File(error)) => Uploaded::ForNow(format!("its bytes cannot be read: {error}")),
    }
}

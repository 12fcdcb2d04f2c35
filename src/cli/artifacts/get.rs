//! `stepwell artifacts get`. Bytes go to `FILE.part` first; the file appears when all of it is there and has its
//! digest. A download that breaks goes on where it was.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::progress::{Patience, bar};
use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Failure, Result};
use crate::cli::output::Output;
use crate::cli::{json, text};
use crate::proto;
use crate::proto::download_artifact_response::Part;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which artifact.
    #[arg(value_name = "ARTIFACT")]
    artifact_id: String,
    /// Where to write it; `-`: stdout. Default: a file with the artifact's name in the current folder.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Start at this byte.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Maximum number of bytes.
    #[arg(long, value_name = "BYTES")]
    limit: Option<u64>,
    /// Only this many bytes from the end.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["offset", "limit"])]
    tail: Option<u64>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

/// Where the bytes go.
enum Target {
    Stdout,
    File { path: PathBuf, part: PathBuf, file: File },
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().write_all(bytes),
            Target::File { file, .. } => file.write_all(bytes),
        }
    }
}

impl Args {
    /// All bytes of an artifact into a file, which is replaced.
    pub fn whole(artifact_id: String, file: PathBuf) -> Self {
        Args { artifact_id, file: Some(file), offset: None, limit: None, tail: None, force: true }
    }
}

pub async fn run(args: &Args, connection: &Connection, output: &Output) -> Result<Exit> {
    let (artifact, path) = get(args, connection).await?;
    if let Some(path) = path {
        if output.is_json() {
            output.json(&json::artifact(&artifact))?;
        } else {
            output.line(&text::one_line(&path.display().to_string()))?;
        }
    }
    Ok(Exit::Done)
}

/// Gets the bytes; the answer is the record, and the file where they are in one.
pub async fn get(
    args: &Args,
    connection: &Connection,
) -> Result<(proto::Artifact, Option<PathBuf>)> {
    let mut client = connection.artifacts();
    let request = proto::GetArtifactRequest { artifact_id: args.artifact_id.clone() };
    let artifact = client.get_artifact(call(request)).await?.into_inner().artifact;
    let artifact = artifact.unwrap_or_default();
    let mut target = open(args, &artifact)?;
    let size = u64::try_from(artifact.size_bytes.unwrap_or(0)).unwrap_or(0);
    let begin = match args.tail {
        Some(tail) => size.saturating_sub(tail),
        None => args.offset.unwrap_or(0),
    };
    let expected = size.saturating_sub(begin).min(args.limit.unwrap_or(u64::MAX));
    let whole = begin == 0 && expected == size;

    let bar = bar(&artifact.artifact_name, expected);
    let mut hash = Sha256::new();
    let mut patience = Patience::default();
    let mut came = 0;
    let fetched = loop {
        let broke = fetch(args, connection, begin, &mut came, |bytes: &[u8]| {
            hash.update(bytes);
            bar.inc(bytes.len() as u64);
            target.write(bytes)
        })
        .await;
        match broke {
            Ok(Ok(())) => break Ok(()),
            Ok(Err(status)) => {
                if let Err(status) = patience.wait(status, came, &bar).await {
                    break Err(Failure::from(status));
                }
            }
            Err(error) => break Err(Failure::from(error)),
        }
    };
    bar.finish_and_clear();
    let fetched = fetched.and_then(|()| {
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let stored = artifact.sha256.as_ref().filter(|_| whole);
        match stored {
            Some(stored) if !stored.eq_ignore_ascii_case(&found) => Err(Failure::Refused(
                "the bytes received are not those that were stored".to_owned(),
            )),
            _ => Ok(()),
        }
    });
    let path = close(target, fetched)?;
    Ok((artifact, path))
}

fn open(args: &Args, artifact: &proto::Artifact) -> Result<Target> {
    let path = match &args.file {
        Some(path) if path.as_os_str() == "-" => return Ok(Target::Stdout),
        Some(path) => path.clone(),
        // A name is data: of one that looks like a path only the last part is taken.
        None => {
            let last = artifact.artifact_name.rsplit(['/', '\\']).next().unwrap_or_default();
            if matches!(last, "" | "." | "..") || last.contains('\0') {
                return Err(Failure::CouldNotStart(format!(
                    "the artifact's name {:?} cannot be used as a file name: give FILE",
                    artifact.artifact_name
                )));
            }
            PathBuf::from(last)
        }
    };
    if path.exists() && !args.force {
        let path = path.display();
        return Err(Failure::CouldNotStart(format!(
            "{path} already exists: use --force to replace it"
        )));
    }
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let file = File::create(&part).map_err(|error| unwritable(&part, &error))?;
    Ok(Target::File { path, part, file })
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::CouldNotStart(format!("{}: {error}", path.display()))
}

/// Fetches what has not come yet. The outer error is one of writing it.
async fn fetch(
    args: &Args,
    connection: &Connection,
    begin: u64,
    came: &mut u64,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<std::result::Result<(), Status>> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut request = proto::DownloadArtifactRequest {
        artifact_id: args.artifact_id.clone(),
        ..Default::default()
    };
    if let Some(tail) = args.tail
        && *came == 0
    {
        request.tail = Some(number(tail));
    } else {
        request.offset = Some(number(begin + *came)).filter(|offset| *offset > 0);
        request.limit = args.limit.map(|limit| number(limit.saturating_sub(*came)));
    }
    let mut stream = match connection.artifacts().download_artifact(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        match stream.message().await {
            Ok(None) => return Ok(Ok(())),
            Err(status) => return Ok(Err(status)),
            Ok(Some(message)) => {
                if let Some(Part::Chunk(bytes)) = message.part {
                    write(&bytes)?;
                    *came += bytes.len() as u64;
                }
            }
        }
    }
}

fn close(target: Target, fetched: Result<()>) -> Result<Option<PathBuf>> {
    match target {
        Target::Stdout => {
            fetched?;
            io::stdout().lock().flush()?;
            Ok(None)
        }
        Target::File { path, part, file } => {
            let kept = fetched.and_then(|()| {
                file.sync_all()?;
                fs::rename(&part, &path)?;
                Ok(())
            });
            if let Err(failure) = kept {
                // Nobody can go on with it: the next run asks for all of it again.
                let _ = fs::remove_file(&part);
                return Err(failure);
            }
            Ok(Some(path))
        }
    }
}

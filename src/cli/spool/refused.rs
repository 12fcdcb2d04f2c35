//! What a server has refused is kept beside the spool, under names that the libraries leave alone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::Message as _;

use super::format;
use super::hold::{Claimed, unused};
use super::uploads::Described;
use crate::clock::Clock;
use crate::proto;
use crate::proto::ingest_request::Write;

/// Refused writes of one process on their way to a file, which has its name only once they are all in it.
#[derive(Debug)]
pub struct Keeping {
    path: PathBuf,
    server: Option<String>,
    /// Made with the first.
    file: Option<BufWriter<File>>,
    error: Option<io::Error>,
}

impl Keeping {
    pub fn new(one: &Claimed, clock: &dyn Clock) -> Self {
        let left = one.left();
        Keeping {
            path: left.folder.join(format!("{}.{}.refused", left.owner, unused(clock))),
            server: one.server().map(str::to_owned),
            file: None,
            error: None,
        }
    }

    fn half(&self) -> PathBuf {
        self.path.with_extension("refused.half")
    }

    pub fn keep_write(&mut self, write: &Write, reason: &str) {
        let request =
            proto::IngestRequest { sequence: 0, write: Some(write.clone()), mirrored: None };
        self.keep(&request.encode_to_vec(), reason);
    }

    /// Keeps a record as it is.
    pub fn keep(&mut self, record: &[u8], reason: &str) {
        if self.error.is_none() {
            self.error = self.append(record, reason).err();
        }
    }

    fn append(&mut self, record: &[u8], reason: &str) -> io::Result<()> {
        let half = self.half();
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(create(&half)?)),
        };
        let note = format::framed_note(self.server.as_deref(), &[("refused", reason)]);
        file.write_all(&note)?;
        file.write_all(&format::framed(record))
    }

    /// From here on the file is there, as if it was written when the process died.
    pub fn commit(mut self, died_at: SystemTime) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some(file) = self.file.take() else { return Ok(()) };
        let result = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
            file.set_modified(died_at)?;
            file.sync_all()?;
            fs::rename(self.half(), &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        });
        if result.is_err() {
            let _ = fs::remove_file(self.half());
        }
        result
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(self.half());
        }
    }
}

/// Keeps an artifact: its description behind a note, and its bytes.
pub fn keep_artifact(
    one: &Claimed,
    described: &Described,
    reason: &str,
    clock: &dyn Clock,
) -> io::Result<()> {
    let left = one.left();
    let path = left.folder.join(format!("{}.{}.refused-artifact", left.owner, unused(clock)));
    let half = path.with_extension("refused.half");
    // Its lock says until the end that somebody is at work on it.
    let mut file = create(&half)?;
    let kept = path.with_extension("refused-blob");
    let note = format::framed_note(one.server(), &[("refused", reason)]);
    let result = file
        .write_all(&[note, format::framed(&described.description.encode_to_vec())].concat())
        .and_then(|()| match &described.bytes {
            // Both names until the old one is forgotten.
            bytes if described.is_copy => match fs::hard_link(bytes, &kept) {
                // They are gone: the description is all that is left.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                linked => linked,
            },
            bytes => std::os::unix::fs::symlink(bytes, &kept),
        })
        .and_then(|()| fs::rename(&half, &path));
    if result.is_err() {
        let _ = (fs::remove_file(&half), fs::remove_file(&kept));
    }
    result
}

/// A file of one's own, with its lock.
fn create(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.try_lock().map_err(io::Error::from)?;
    Ok(file)
}

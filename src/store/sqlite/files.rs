//! The files of the database while it is open: whether they still are the ones at their paths, and why one of them
//! cannot be written to.
//!
//! SQLite goes on with a file that was deleted, moved or replaced, and what it commits there is gone at the next start.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::store::{Error, Outage, Result};

/// A file that is made and removed to find out what is wrong.
const PROBE_FILE: &str = "stepwell.probe";
/// How much is written to it.
const PROBE_BYTES: usize = 64 * 1024;

/// Which file it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
}

impl Identity {
    fn of(file: &Metadata) -> Identity {
        Identity { device: file.dev(), number: file.ino() }
    }
}

/// The database file, its write-ahead log, and the index of that.
#[derive(Debug)]
pub struct Files {
    paths: Vec<(PathBuf, Identity)>,
    /// Open for as long as the database is: a process that closes any descriptor of a file lets go of SQLite's locks on it.
    _database: File,
}

impl Files {
    /// Of a database that is open, and whose file was opened here before.
    pub fn of(database: File, path: &Path) -> std::io::Result<Files> {
        let mut paths = vec![(path.to_owned(), Identity::of(&database.metadata()?))];
        for suffix in ["-wal", "-shm"] {
            let mut beside = OsString::from(path);
            beside.push(suffix);
            let beside = PathBuf::from(beside);
            let identity = Identity::of(&std::fs::metadata(&beside)?);
            paths.push((beside, identity));
        }
        Ok(Files { paths, _database: database })
    }

    /// `Outage::Gone`: what is written now is found by nobody.
    pub fn check(&self) -> Result<()> {
        for (number, (path, identity)) in self.paths.iter().enumerate() {
            let found = match std::fs::metadata(path) {
                Ok(found) => found,
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
                {
                    return Err(gone(path, "is not there any more"));
                }
                Err(error) => return Err(Error::unavailable(error)),
            };
            if Identity::of(&found) != *identity {
                return Err(gone(path, "is another file"));
            }
            // The log may be empty; the database never is.
            if number == 0 && found.len() == 0 {
                return Err(gone(path, "was emptied"));
            }
        }
        Ok(())
    }

    /// A failure with the reason that the files show.
    pub fn judged(&self, error: Error) -> Error {
        match error {
            Error::Unavailable(why) if why.outage == Outage::Away => match self.cause() {
                Some((outage, cause)) => {
                    let said = why.why().unwrap_or_default();
                    Error::out(outage, format!("{said}: {cause}"))
                }
                None => Error::Unavailable(why),
            },
            // A file that was overwritten is no database any more.
            Error::Failed(source) => match self.check() {
                Ok(()) => Error::Failed(source),
                Err(gone) => gone,
            },
            other => other,
        }
    }

    /// What is wrong with the files, if it can be found.
    fn cause(&self) -> Option<(Outage, String)> {
        if let Err(Error::Unavailable(why)) = self.check() {
            return Some((why.outage, why.why().unwrap_or_default()));
        }
        let (log, _) = self.paths.get(1)?;
        let dir = log.parent()?;
        let tried = File::options().append(true).open(log).and_then(|log| {
            let probe = dir.join(PROBE_FILE);
            let written = write_probe(&probe);
            let _ = std::fs::remove_file(&probe);
            written?;
            log.metadata()
        });
        let error = match tried {
            Ok(log) => {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
                let over = limit.is_some_and(|limit| log.len() + PROBE_BYTES as u64 > limit);
                return over
                    .then(|| (Outage::Full, "the limit of file sizes is reached".to_owned()));
            }
            Err(error) => error,
        };
        let outage = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Outage::Full
            }
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Outage::ReadOnly,
            _ => return None,
        };
        Some((outage, error.to_string()))
    }
}

fn write_probe(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&[0; PROBE_BYTES])?;
    file.sync_data()
}

fn gone(path: &Path, what: &str) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::out(Outage::Gone, format!("{name} {what}"))
}

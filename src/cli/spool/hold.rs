//! Who holds the files of a spool, and making them one's own: processes of Python by a flock on each file, those of
//! TypeScript by a socket on which they listen, where files are taken by renaming them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::format::{self, Maker};
use super::left::Left;
use super::uploads;
use crate::clock::Clock;

/// What kernels take as the path of a socket, with some room.
const SOCKET_PATH_BYTES: usize = 100;

/// Eight digits that no other file of this spool has in its name.
pub fn unused(clock: &dyn Clock) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let said = format!("{} {} {count}", clock.now().micros, std::process::id());
    hex::encode(&Sha256::digest(said)[..4])
}

/// Whether the process of these files lives, or somebody else has them.
pub fn is_in_use(left: &Left) -> bool {
    match left.maker {
        Maker::Python | Maker::Refused => !matches!(lock_all(left), Ok(Some(_))),
        Maker::TypeScript => is_held(&left.folder, &left.owner),
    }
}

/// Whether nobody has a lock on this file.
pub fn is_unlocked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// The files, each locked; `None`: somebody else has them.
fn lock_all(left: &Left) -> io::Result<Option<Vec<File>>> {
    let mut locked = Vec::new();
    // What was refused has no process whose one lock would stand for all of it.
    let others = left.artifacts.iter().filter(|_| left.maker == Maker::Refused);
    for path in left.records.iter().chain(others) {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.try_lock().is_err() {
            return Ok(None);
        }
        // Whoever had it before may have removed it just now.
        if fs::metadata(path).map(|now| now.ino()).ok() != Some(file.metadata()?.ino()) {
            return Ok(None);
        }
        locked.push(file);
    }
    Ok(Some(locked))
}

/// What this process has made its own, until it is dropped. What is left then is for the next one.
#[derive(Debug)]
pub struct Claimed {
    left: Left,
    server: Option<String>,
    _hold: Hold,
}

#[derive(Debug)]
#[expect(dead_code, reason = "kept for what it holds")]
enum Hold {
    Files(Vec<File>),
    Socket(Socket),
}

/// Makes files this process's own; `None`: their process lives, or somebody else has them. `server`: for which they are.
pub fn claim(
    mut left: Left,
    server: Option<String>,
    clock: &dyn Clock,
) -> io::Result<Option<Claimed>> {
    if left.maker != Maker::TypeScript {
        let files = lock_all(&left)?;
        return Ok(files.map(|files| Claimed { left, server, _hold: Hold::Files(files) }));
    }
    if is_held(&left.folder, &left.owner) {
        return Ok(None);
    }
    // First the lock, then files: a file whose lock nobody holds is free to take.
    let socket = Socket::listen(&left.folder, clock)?;
    let before = std::mem::replace(&mut left.owner, socket.owner.clone());
    let mut number = 0_u64;
    let mut rename = |path: &PathBuf| -> Option<PathBuf> {
        number += 1;
        let ending = path.extension()?.to_str()?;
        let to = left.folder.join(format!("{}~{number}.{ending}", socket.owner));
        // Of several that try, the one whose rename succeeds has it.
        fs::rename(path, &to).ok().map(|()| to)
    };
    left.records = left.records.iter().filter_map(&mut rename).collect();
    left.artifacts = left.artifacts.iter().filter_map(&mut rename).collect();
    let _ = fs::remove_file(left.folder.join(format!("{before}.lock")));
    if left.files() == 0 {
        return Ok(None);
    }
    Ok(Some(Claimed { left, server, _hold: Hold::Socket(socket) }))
}

impl Claimed {
    pub fn left(&self) -> &Left {
        &self.left
    }

    /// For which server it is, as it says.
    pub fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// When something was last written to it.
    pub fn died_at(&self) -> SystemTime {
        let modified =
            |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        self.left.records.iter().filter_map(modified).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// An artifact is sent, or has another name.
    pub fn forget_artifact(&mut self, description: &Path, bytes: Option<&Path>) {
        // The description first: bytes that nothing describes are swept away.
        for path in [Some(description), bytes].into_iter().flatten() {
            let _ = fs::remove_file(path);
        }
        self.left.artifacts.retain(|path| path != description);
    }

    /// All records are sent, or kept elsewhere.
    pub fn forget_records(&mut self) -> io::Result<()> {
        // Artifacts are held by the lock of the last file.
        let keep = usize::from(self.left.maker == Maker::Python && !self.left.artifacts.is_empty());
        let gone = self.left.records.len() - keep.min(self.left.records.len());
        for path in self.left.records.drain(..gone) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for path in &self.left.records {
            let mut file = File::options().write(true).open(path)?;
            file.set_len(0)?;
            file.write_all(&format::framed_note(self.server.as_deref(), &[]))?;
        }
        Ok(())
    }

    /// Deletes all of it.
    pub fn remove(mut self) -> io::Result<()> {
        for description in std::mem::take(&mut self.left.artifacts) {
            let bytes = uploads::bytes_in_spool(&description, self.left.maker);
            self.forget_artifact(&description, bytes.as_deref());
        }
        self.forget_records()
    }
}

/// A socket that says that this process lives.
#[derive(Debug)]
struct Socket {
    _listener: UnixListener,
    owner: String,
    path: PathBuf,
}

impl Socket {
    fn listen(folder: &Path, clock: &dyn Clock) -> io::Result<Self> {
        let owner =
            format!("{}-{}-{}", clock.now().micros / 1000, std::process::id(), unused(clock));
        let name = format!("{owner}.lock");
        let listener = with_short_path(folder, &name, |path| UnixListener::bind(path))?;
        Ok(Socket { _listener: listener, owner, path: folder.join(name) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a process of the library for TypeScript lives. In doubt it does.
pub fn is_held(folder: &Path, owner: &str) -> bool {
    match with_short_path(folder, &format!("{owner}.lock"), |path| UnixStream::connect(path)) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
        }
    }
}

/// Calls `with` with a path that is short enough for a socket. On Linux an open folder has one.
fn with_short_path<T>(
    folder: &Path,
    name: &str,
    with: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let path = folder.join(name);
    if path.as_os_str().len() <= SOCKET_PATH_BYTES || !cfg!(target_os = "linux") {
        return with(&path);
    }
    let open = File::open(folder)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&open);
    with(&PathBuf::from(format!("/proc/self/fd/{fd}")).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_lock_is_seen_also_where_the_path_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        for folder in [dir.path(), &long] {
            let socket = Socket::listen(folder, &SystemClock).unwrap();
            assert!(is_held(folder, &socket.owner));
            let owner = socket.owner.clone();
            drop(socket);
            assert!(!is_held(folder, &owner));
        }
    }
}

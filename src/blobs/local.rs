//! Bytes as files under one folder. A file is written under `partial/`, made durable, and then moved to its
//! place in two levels of folders, so that no folder gets large.
//!
//! A path is `file:ab/cd/<uuid>`, relative to the folder, which may be moved as a whole. Nothing but a UUID is
//! ever taken from it, so no path leads out, and each file has one path only.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;

use super::under_way::UnderWay;
use super::{Error, PIECE_BYTES, Pieces, Result, Storage, Writer, is_blob_id};

/// Folder of files that are not complete.
const PARTIAL: &str = "partial";

/// Files under one folder.
pub struct Local {
    root: PathBuf,
}

impl Local {
    pub fn new(root: PathBuf) -> Self {
        Local { root }
    }

    fn names(&self, path: &str) -> Result<Names> {
        let name = blob_id(path).ok_or(Error::Missing)?;
        Ok(Names {
            partial: self.root.join(PARTIAL).join(name),
            complete: self.root.join(&name[..2]).join(&name[2..4]).join(name),
        })
    }
}

/// Where a file is before and after its completion.
struct Names {
    partial: PathBuf,
    complete: PathBuf,
}

/// The UUID in a path of ours.
fn blob_id(path: &str) -> Option<&str> {
    let (_, name) = path.rsplit_once('/')?;
    (is_blob_id(name) && path == path_of(name)).then_some(name)
}

/// The path of a UUID.
fn path_of(blob_id: &str) -> String {
    format!("file:{}/{}/{blob_id}", &blob_id[..2], &blob_id[2..4])
}

/// A file that is one itself, and no link to another.
fn metadata(file: &Path) -> io::Result<fs::Metadata> {
    let found = fs::symlink_metadata(file)?;
    found.is_file().then_some(found).ok_or_else(|| ErrorKind::NotFound.into())
}

fn failure(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::Missing,
        ErrorKind::InvalidInput | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            Error::Failed(error.into())
        }
        // Full, out of quota, no permission, an I/O error: the state of the machine, which may pass.
        _ => Error::Unavailable(error.into()),
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(failure),
        Err(error) => Err(Error::Failed(error.into())),
    }
}

/// Makes folders, each durable in the one above it.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_folders(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(above.unwrap_or(Path::new(".")))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Only one writer at a time, also where servers share the folder. The kernel lets go however one ends.
fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|_| io::Error::new(ErrorKind::ResourceBusy, "another writer has it"))
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[async_trait]
impl Storage for Local {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn owns(&self, path: &str) -> bool {
        blob_id(path).is_some()
    }

    fn path(&self, blob_id: &str) -> String {
        path_of(blob_id)
    }

    fn unit_bytes(&self) -> usize {
        PIECE_BYTES
    }

    async fn create(&self, path: &str) -> Result<Box<dyn Writer>> {
        let names = self.names(path)?;
        blocking(move || {
            let folder = names.partial.parent().unwrap_or(Path::new("."));
            make_folders(folder)?;
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&names.partial)?;
            sync_folder(folder)?;
            lock(&file)?;
            file.set_len(0)?;
            Ok(Box::new(LocalWriter::of(names, file)) as Box<dyn Writer>)
        })
        .await
    }

    async fn resume(&self, path: &str, bytes: u64, _state: &[u8]) -> Result<Box<dyn Writer>> {
        let names = self.names(path)?;
        let found = blocking(move || {
            use std::io::Seek as _;
            let mut file = File::options().write(true).open(&names.partial)?;
            lock(&file)?;
            if file.metadata()?.len() < bytes {
                return Ok(None);
            }
            file.set_len(bytes)?;
            file.seek(io::SeekFrom::Start(bytes))?;
            Ok(Some(Box::new(LocalWriter::of(names, file)) as Box<dyn Writer>))
        })
        .await?;
        found.ok_or(Error::Missing)
    }

    async fn size(&self, path: &str) -> Result<u64> {
        let names = self.names(path)?;
        blocking(move || Ok(metadata(&names.complete)?.len())).await
    }

    fn read(&self, path: &str, range: Range<u64>, _at_once_bytes: usize) -> Pieces {
        // Opened for each piece anew: a reader that does not read keeps no descriptor.
        let names = self.names(path);
        let found = async move {
            let names = names?;
            let complete = names.complete.clone();
            blocking(move || metadata(&complete)).await?;
            Ok(names)
        };
        let pieces = stream::once(found).flat_map(move |found| match found {
            Err(error) => stream::once(async { Err(error) }).boxed(),
            Ok(names) => stream::try_unfold(range.clone(), move |left| {
                let complete = names.complete.clone();
                async move {
                    let want = (left.end - left.start).min(PIECE_BYTES as u64);
                    if want == 0 {
                        return Ok(None);
                    }
                    let piece = blocking(move || {
                        let mut piece = vec![0; want as usize];
                        // It is no link, nor has become one.
                        metadata(&complete)?;
                        match File::open(&complete)?.read_exact_at(&mut piece, left.start) {
                            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
                            Err(error) => Err(error),
                            Ok(()) => Ok(Some(piece)),
                        }
                    })
                    .await?;
                    let piece = piece.ok_or(Error::Missing)?;
                    Ok(Some((Bytes::from(piece), left.start + want..left.end)))
                }
            })
            .boxed(),
        });
        pieces.boxed()
    }

    async fn remove(&self, path: &str, _state: &[u8]) -> Result<()> {
        let names = self.names(path)?;
        blocking(move || {
            remove(&names.partial)?;
            if names.complete.exists() {
                remove(&names.complete)?;
                if let Some(folder) = names.complete.parent() {
                    sync_folder(folder)?;
                }
            }
            Ok(())
        })
        .await
    }
}

struct LocalWriter {
    names: Arc<Names>,
    file: Arc<File>,
    /// The unit that is being written while the next one comes.
    under_way: UnderWay<()>,
}

impl LocalWriter {
    fn of(names: Names, file: File) -> Self {
        let under_way = UnderWay::default();
        LocalWriter { names: Arc::new(names), file: Arc::new(file), under_way }
    }
}

#[async_trait]
impl Writer for LocalWriter {
    async fn write(&mut self, unit: Bytes) -> Result<()> {
        // One after the other: they go where the last one ended.
        self.under_way.settle(0).await?;
        let file = Arc::clone(&self.file);
        self.under_way.add(blocking(move || (&*file).write_all(&unit)));
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        self.under_way.settle(0).await?;
        let file = Arc::clone(&self.file);
        blocking(move || file.sync_data()).await?;
        Ok(Vec::new())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        self.under_way.settle(0).await?;
        let (names, file) = (Arc::clone(&self.names), Arc::clone(&self.file));
        blocking(move || {
            file.sync_all()?;
            let folder = names.complete.parent().unwrap_or(Path::new("."));
            make_folders(folder)?;
            fs::rename(&names.partial, &names.complete)?;
            sync_folder(folder)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn no_path_leads_out_of_the_folder() {
        let good = "file:3f/2a/3f2a0000-0000-4000-8000-000000000000";
        assert_eq!(blob_id(good), Some("3f2a0000-0000-4000-8000-000000000000"));
        for bad in [
            "file:../../etc/passwd",
            "file:///etc/passwd",
            "/etc/passwd",
            "file:3f/2a/3f2a0000-0000-4000-8000-00000000000/",
            "file:3f/2a/../2a/3f2a0000-0000-4000-8000-000000000000",
            "file:aa/2a/3f2a0000-0000-4000-8000-000000000000",
            "raw/test_failure.png",
            "",
            "file:3f/2a00/3f2a0000-0000-4000-8000-000000000000",
            "file:3f/2a0000/3f2a0000-0000-4000-8000-000000000000",
            "file:3F/2A/3F2A0000-0000-4000-8000-000000000000",
            "file:3f/2a/3F2A0000-0000-4000-8000-000000000000",
            "FILE:3f/2a/3f2a0000-0000-4000-8000-000000000000",
            "file:/3f/2a/3f2a0000-0000-4000-8000-000000000000",
            "file:3f//2a/3f2a0000-0000-4000-8000-000000000000",
            "file:./3f/2a/3f2a0000-0000-4000-8000-000000000000",
            "file:3f/2a/3f2a0000%2D0000-4000-8000-000000000000",
            "file:3f/2a/3f2a0000000000000000-000000000000-000",
            "file:partial/3f2a0000-0000-4000-8000-000000000000",
        ] {
            assert_eq!(blob_id(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_link_is_no_file_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path().join("root"));
        let path = local.path("3f2a0000-0000-4000-8000-000000000000");
        let names = local.names(&path).unwrap();
        fs::create_dir_all(names.complete.parent().unwrap()).unwrap();
        let outside = dir.path().join("secret");
        fs::write(&outside, b"secret").unwrap();
        std::os::unix::fs::symlink(&outside, &names.complete).unwrap();
        assert!(matches!(local.size(&path).await, Err(Error::Missing)));
        let pieces: Vec<_> = local.read(&path, 0..6, 0).collect().await;
        assert!(matches!(pieces.as_slice(), [Err(Error::Missing)]));
        local.remove(&path, &[]).await.unwrap();
        assert_eq!(fs::read(outside).unwrap(), b"secret");
    }

    #[tokio::test]
    async fn what_a_checkpoint_covers_can_be_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path().join("a/b"));
        let path = local.path("3f2a0000-0000-4000-8000-000000000000");
        let mut writer = local.create(&path).await.unwrap();
        writer.write(Bytes::from_static(b"0123456789")).await.unwrap();
        let state = writer.checkpoint().await.unwrap();
        writer.write(Bytes::from_static(b"lost")).await.unwrap();
        assert!(matches!(local.resume(&path, 10, &state).await, Err(Error::Unavailable(_))));
        // What is under way holds the file until it is written.
        writer.checkpoint().await.unwrap();
        drop(writer);
        assert!(matches!(local.size(&path).await, Err(Error::Missing)));
        assert!(matches!(local.resume(&path, 15, &state).await, Err(Error::Missing)));
        let mut writer = local.resume(&path, 10, &state).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(local.size(&path).await.unwrap(), 13);
        // Nobody else on the machine reads it.
        let names = local.names(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&names.complete), 0o600);
        assert_eq!(mode(names.complete.parent().unwrap()), 0o700);
        let read = async |range| {
            let pieces: Vec<_> = local.read(&path, range, 0).collect().await;
            pieces.into_iter().collect::<Result<Vec<_>>>().map(|pieces| pieces.concat())
        };
        assert_eq!(read(0..13).await.unwrap(), b"0123456789abc");
        assert_eq!(read(9..11).await.unwrap(), b"9a");
        assert_eq!(read(5..5).await.unwrap(), b"");
        assert!(matches!(read(5..14).await, Err(Error::Missing)));
        local.remove(&path, &[]).await.unwrap();
        local.remove(&path, &[]).await.unwrap();
        assert!(matches!(read(0..1).await, Err(Error::Missing)));
    }
}

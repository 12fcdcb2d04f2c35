//! The same bytes straight to a storage, as an app does that keeps its files by itself. Each kind makes a place of
//! its own, `stepwell_bench_` and eight hex digits, and removes it in the end.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use bson::Bson;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use futures::{StreamExt as _, TryStreamExt as _};
use mongodb::Database;
use mongodb::gridfs::GridFsBucket;
use mongodb::options::GridFsBucketOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, WriteMultipart};

use super::pieces::{PIECE_BYTES, Pieces};
use super::place::Place;
use crate::track;

/// The driver's own GridFS, with chunks as large as the server's.
pub struct GridFs {
    database: Database,
    bucket: GridFsBucket,
}

impl GridFs {
    pub async fn new(uri: &str) -> anyhow::Result<Self> {
        let database = track::database_of_its_own(uri, "--direct-mongodb").await?;
        let options = GridFsBucketOptions::builder()
            .chunk_size_bytes(u32::try_from(PIECE_BYTES).ok())
            .build();
        let bucket = database.gridfs_bucket(options);
        Ok(GridFs { database, bucket })
    }
}

#[async_trait]
impl Place for GridFs {
    fn name(&self) -> &'static str {
        "GridFS"
    }

    async fn write(&self, _slot: usize, pieces: Pieces) -> anyhow::Result<String> {
        let key = pieces.artifact().to_string();
        let open = self.bucket.open_upload_stream(&key).id(Bson::String(key.clone()));
        let mut upload = open.await?;
        for piece in pieces {
            upload.write_all(&piece).await?;
        }
        upload.close().await?;
        Ok(key)
    }

    async fn read(&self, _slot: usize, key: &str) -> anyhow::Result<u64> {
        let mut download = self.bucket.open_download_stream(Bson::from(key)).await?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            match download.read(&mut piece).await? {
                0 => return Ok(bytes),
                read => bytes += read as u64,
            }
        }
    }

    async fn remove(&self, key: &str) -> anyhow::Result<()> {
        Ok(self.bucket.delete(Bson::from(key)).await?)
    }

    async fn close(&self) -> anyhow::Result<()> {
        let name = self.database.name();
        let dropped = self.database.drop().await;
        dropped.with_context(|| format!("the database {name} could not be dropped"))
    }
}

/// Plain files in a folder.
pub struct Folder {
    folder: Arc<PathBuf>,
}

impl Folder {
    pub fn new(directory: &std::path::Path) -> Self {
        Folder { folder: Arc::new(directory.join(track::name_of_its_own())) }
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

#[async_trait]
impl Place for Folder {
    fn name(&self) -> &'static str {
        "files"
    }

    async fn write(&self, _slot: usize, pieces: Pieces) -> anyhow::Result<String> {
        let (folder, key) = (Arc::clone(&self.folder), pieces.artifact().to_string());
        let named = key.clone();
        blocking(move || {
            fs::create_dir_all(&*folder)?;
            let partial = folder.join(format!("{named}.partial"));
            let mut file = File::create(&partial)?;
            for piece in pieces {
                file.write_all(&piece)?;
            }
            file.sync_all()?;
            fs::rename(&partial, folder.join(named))?;
            // The new name is only durable with its folder.
            File::open(&*folder)?.sync_all()
        })
        .await?;
        Ok(key)
    }

    async fn read(&self, _slot: usize, key: &str) -> anyhow::Result<u64> {
        let path = self.folder.join(key);
        blocking(move || {
            let mut file = File::open(path)?;
            let mut piece = vec![0; PIECE_BYTES];
            let mut bytes = 0;
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(bytes),
                    read => bytes += read as u64,
                }
            }
        })
        .await
    }

    async fn remove(&self, key: &str) -> anyhow::Result<()> {
        let path = self.folder.join(key);
        blocking(move || fs::remove_file(path)).await
    }

    async fn close(&self) -> anyhow::Result<()> {
        let folder = Arc::clone(&self.folder);
        let removed = blocking(move || match fs::remove_dir_all(&*folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        });
        removed
            .await
            .with_context(|| format!("the folder {} could not be removed", self.folder.display()))
    }
}

/// How to reach an S3 bucket; the rest comes from the usual environment.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct S3Options {
    /// With --direct-s3: URL of a service that is compatible with S3, as the server has it.
    #[arg(long, value_name = "URL", env = "STEPWELL_ARTIFACTS_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    /// With --direct-s3: region of the bucket, as the server has it.
    #[arg(long, value_name = "REGION", env = "STEPWELL_ARTIFACTS_S3_REGION")]
    s3_region: Option<String>,
    /// With --direct-s3: the endpoint may be one without TLS.
    #[arg(long, env = "STEPWELL_ARTIFACTS_S3_ALLOW_HTTP")]
    s3_allow_http: bool,
}

/// Objects of one S3 bucket.
pub struct S3 {
    store: AmazonS3,
    /// Begins every key.
    folder: Path,
}

/// Parts of one object that are sent before the first of them is acknowledged.
const PARTS_AHEAD: usize = 2;

/// Bucket and prefix of `s3://BUCKET/PREFIX`.
pub fn bucket_and_prefix(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then_some((bucket, prefix.trim_matches('/')))
}

impl S3 {
    pub fn new(url: &str, options: &S3Options) -> anyhow::Result<Self> {
        let (bucket, prefix) =
            bucket_and_prefix(url).context("--direct-s3 is not of the form s3://BUCKET/PREFIX")?;
        // The one of the MongoDB driver; an error means that it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_allow_http(options.s3_allow_http);
        if let Some(region) = &options.s3_region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &options.s3_endpoint {
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        let folder = Path::parse(format!("{prefix}/{}", track::name_of_its_own()))?;
        Ok(S3 { store: builder.build()?, folder })
    }

    fn path(&self, key: &str) -> Path {
        self.folder.clone().join(key)
    }
}

#[async_trait]
impl Place for S3 {
    fn name(&self) -> &'static str {
        "S3"
    }

    async fn write(&self, _slot: usize, pieces: Pieces) -> anyhow::Result<String> {
        let key = pieces.artifact().to_string();
        let mut upload = WriteMultipart::new(self.store.put_multipart(&self.path(&key)).await?);
        for piece in pieces {
            upload.wait_for_capacity(PARTS_AHEAD).await?;
            upload.put(piece);
        }
        upload.finish().await?;
        Ok(key)
    }

    async fn read(&self, _slot: usize, key: &str) -> anyhow::Result<u64> {
        let mut pieces = self.store.get(&self.path(key)).await?.into_stream();
        let mut bytes = 0;
        while let Some(piece) = pieces.try_next().await? {
            bytes += piece.len() as u64;
        }
        Ok(bytes)
    }

    async fn remove(&self, key: &str) -> anyhow::Result<()> {
        Ok(self.store.delete(&self.path(key)).await?)
    }

    async fn close(&self) -> anyhow::Result<()> {
        let mut objects = self.store.list(Some(&self.folder));
        while let Some(object) = objects.next().await {
            let removed = async { self.store.delete(&object?.location).await }.await;
            removed.with_context(|| format!("{} could not be emptied", self.folder))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::pieces::Source;

    #[test]
    fn an_s3_url_has_a_bucket_and_maybe_a_prefix() {
        for (url, expected) in [
            ("s3://b", Some(("b", ""))),
            ("s3://b/", Some(("b", ""))),
            ("s3://b/one/two/", Some(("b", "one/two"))),
            ("s3://", None),
            ("s3:///one", None),
            ("https://b/one", None),
            ("b", None),
        ] {
            assert_eq!(bucket_and_prefix(url), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn files_are_read_as_they_were_written_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        folder.close().await.unwrap();
        let size = PIECE_BYTES as u64 + 5;
        let pieces = Source::new(1).pieces(4, size);
        let key = folder.write(0, pieces.clone()).await.unwrap();
        assert_eq!(folder.read(0, &key).await.unwrap(), size);
        let expected: Vec<u8> = pieces.flatten().collect();
        assert_eq!(fs::read(folder.folder.join(&key)).unwrap(), expected);
        folder.remove(&key).await.unwrap();
        assert!(folder.read(0, &key).await.is_err());
        folder.close().await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! Bytes as objects of one S3 bucket, or of a service that speaks the same. Credentials come from the usual
//! environment (`AWS_ACCESS_KEY_ID` and its like, or the machine's role).
//!
//! An object is a multipart upload until it is complete, and a checkpoint is the list of its parts. Only objects
//! whose key we could have made are read or removed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutPayload, RetryConfig,
};
use serde::{Deserialize, Serialize};

use super::under_way::UnderWay;
use super::{Error, PIECE_BYTES, Pieces, Result, Storage, Writer, is_blob_id, pieces};

/// The smallest part that S3 takes, but for the last one. It takes 10,000 of them.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// Parts of one object that are sent before the first of them is acknowledged.
const PARTS_AHEAD: usize = 2;

/// Where the bucket is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3Options {
    pub bucket: String,
    /// Begins every key.
    pub prefix: String,
    pub region: Option<String>,
    /// Of a service other than AWS.
    pub endpoint: Option<String>,
    pub allow_http: bool,
}

/// One bucket.
pub struct S3 {
    store: Arc<AmazonS3>,
    /// `s3://bucket/prefix`.
    root: String,
    prefix: String,
}

/// What is needed to go on with an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    upload: String,
    parts: Vec<String>,
}

fn failure(error: object_store::Error) -> Error {
    use object_store::Error as Told;
    match error {
        Told::NotFound { .. } => Error::Missing,
        // Credentials that ran out or a policy that is being changed say nothing of the bytes.
        Told::Generic { .. } | Told::PermissionDenied { .. } | Told::Unauthenticated { .. } => {
            Error::Unavailable(error.into())
        }
        _ => Error::Failed(error.into()),
    }
}

/// The failure of a part or of the end of an upload. One that the service began and now refuses is one that it has
/// forgotten: nothing of it can be gone on with. Some services deny access to what they do not know; where they
/// let another one begin with the same credentials, that is what they mean.
async fn forgotten(store: &AmazonS3, key: &Path, error: object_store::Error) -> Error {
    let denied = matches!(error, object_store::Error::PermissionDenied { .. });
    match failure(error) {
        Error::Unavailable(error) if denied => match store.create_multipart(key).await {
            Ok(other) => {
                let _ = store.abort_multipart(key, &other).await;
                Error::Missing
            }
            Err(_) => Error::Unavailable(error),
        },
        Error::Failed(_) => Error::Missing,
        other => other,
    }
}

impl S3 {
    /// Talks to nobody yet.
    pub fn new(options: &S3Options) -> Result<Self> {
        // The one of the MongoDB driver; a second one would be built in for nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&options.bucket)
            .with_allow_http(options.allow_http)
            .with_retry(RetryConfig {
                max_retries: 3,
                retry_timeout: Duration::from_secs(20),
                ..RetryConfig::default()
            });
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        let store = builder.build().map_err(|error| Error::Failed(error.into()))?;
        let prefix = match options.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(S3 { store: Arc::new(store), root: format!("s3://{}/{prefix}", options.bucket), prefix })
    }

    /// The key of a path, if it is one that we could have made.
    fn key(&self, path: &str) -> Option<Path> {
        let (_, name) = path.rsplit_once('/')?;
        if !is_blob_id(name) || path != self.path(name) {
            return None;
        }
        Path::parse(format!("{}{}/{name}", self.prefix, &name[..2])).ok()
    }

    fn writer(&self, key: Path, state: State, bytes: u64) -> Box<dyn Writer> {
        Box::new(PartWriter {
            store: Arc::clone(&self.store),
            key,
            upload: state.upload,
            parts: state.parts.into_iter().map(Some).collect(),
            length: bytes,
            under_way: UnderWay::default(),
        })
    }
}

#[async_trait]
impl Storage for S3 {
    fn kind(&self) -> &'static str {
        "s3"
    }

    fn owns(&self, path: &str) -> bool {
        self.key(path).is_some()
    }

    fn path(&self, blob_id: &str) -> String {
        format!("{}{}/{blob_id}", self.root, &blob_id[..2])
    }

    fn unit_bytes(&self) -> usize {
        PART_BYTES
    }

    async fn create(&self, path: &str) -> Result<Box<dyn Writer>> {
        let key = self.key(path).ok_or(Error::Missing)?;
        let upload = self.store.create_multipart(&key).await.map_err(failure)?;
        Ok(self.writer(key, State { upload, parts: Vec::new() }, 0))
    }

    async fn resume(&self, path: &str, bytes: u64, state: &[u8]) -> Result<Box<dyn Writer>> {
        let key = self.key(path).ok_or(Error::Missing)?;
        let state: State = serde_json::from_slice(state).map_err(|_| Error::Missing)?;
        if state.parts.len() as u64 * PART_BYTES as u64 != bytes {
            return Err(Error::Missing);
        }
        // Completed, by a server that got no further: its parts are gone.
        match self.store.head(&key).await.map_err(failure) {
            Ok(_) => Err(Error::Missing),
            Err(Error::Missing) => Ok(self.writer(key, state, bytes)),
            Err(error) => Err(error),
        }
    }

    async fn size(&self, path: &str) -> Result<u64> {
        let key = self.key(path).ok_or(Error::Missing)?;
        Ok(self.store.head(&key).await.map_err(failure)?.size)
    }

    fn read(&self, path: &str, range: Range<u64>, _at_once_bytes: usize) -> Pieces {
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let due = range.end - range.start;
        let (store, key) = (Arc::clone(&self.store), self.key(path));
        let open = async move {
            let key = key.ok_or(Error::Missing)?;
            let range = Some(GetRange::Bounded(range));
            let options = GetOptions { range, ..GetOptions::default() };
            let found = store.get_opts(&key, options).await.map_err(failure)?;
            Ok(found.into_stream().map_err(failure))
        };
        // What comes off the wire is of any length, and may end early.
        let pieces = stream::once(open).try_flatten();
        let counted = stream::try_unfold((pieces.boxed(), Bytes::new(), due), |going| async move {
            let (mut pieces, mut rest, left) = going;
            if left == 0 {
                return Ok(None);
            }
            while rest.is_empty() {
                rest = pieces.try_next().await?.ok_or(Error::Missing)?;
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let piece = rest.split_to(rest.len().min(most));
            let left = left - piece.len() as u64;
            Ok(Some((piece, (pieces, rest, left))))
        });
        pieces::joined(counted.boxed())
    }

    async fn remove(&self, path: &str, state: &[u8]) -> Result<()> {
        let key = self.key(path).ok_or(Error::Missing)?;
        let gone = |done: object_store::Result<()>| match done.map_err(failure) {
            Ok(()) | Err(Error::Missing) => Ok(()),
            Err(error) => Err(error),
        };
        if let Ok(state) = serde_json::from_slice::<State>(state) {
            // Where the object is there its parts are not: services differ in what they say to an abort then.
            match self.store.head(&key).await.map_err(failure) {
                Ok(_) => {}
                Err(Error::Missing) => {
                    let aborted = self.store.abort_multipart(&key, &state.upload).await;
                    // What some services say of an upload that they do not know any more. Where it is true,
                    // trying for ever would not help either.
                    if let Err(object_store::Error::PermissionDenied { .. }) = aborted {
                        tracing::warn!(
                            "the S3 service refuses to abort a multipart upload; a lifecycle rule \
                             has to remove what is left of it"
                        );
                        return Ok(());
                    }
                    return gone(aborted);
                }
                Err(error) => return Err(error),
            }
        }
        gone(self.store.delete(&key).await)
    }
}

struct PartWriter {
    store: Arc<AmazonS3>,
    key: Path,
    upload: String,
    /// Those that are acknowledged, by number.
    parts: Vec<Option<String>>,
    length: u64,
    under_way: UnderWay<(usize, String)>,
}

impl PartWriter {
    /// Waits until at most so many parts are under way.
    async fn settle(&mut self, left: usize) -> Result<()> {
        for (index, part) in self.under_way.settle(left).await? {
            self.parts[index] = Some(part);
        }
        Ok(())
    }

    fn acknowledged(&self) -> Result<Vec<String>> {
        let parts: Option<Vec<String>> = self.parts.iter().cloned().collect();
        parts.ok_or_else(|| Error::Unavailable("a part was not acknowledged".into()))
    }
}

#[async_trait]
impl Writer for PartWriter {
    async fn write(&mut self, unit: Bytes) -> Result<()> {
        self.settle(PARTS_AHEAD - 1).await?;
        self.length += unit.len() as u64;
        let index = self.parts.len();
        self.parts.push(None);
        let (store, key, upload) = (Arc::clone(&self.store), self.key.clone(), self.upload.clone());
        self.under_way.add(async move {
            let part = store.put_part(&key, &upload, index, PutPayload::from(unit)).await;
            match part {
                Ok(part) => Ok((index, part.content_id)),
                Err(error) => Err(forgotten(&store, &key, error).await),
            }
        });
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        self.settle(0).await?;
        let state = State { upload: self.upload.clone(), parts: self.acknowledged()? };
        serde_json::to_vec(&state).map_err(|error| Error::Failed(error.into()))
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        self.settle(0).await?;
        let parts = self.acknowledged()?;
        if parts.is_empty() {
            // Nothing makes no part.
            self.store.put(&self.key, PutPayload::new()).await.map_err(failure)?;
            let _ = self.store.abort_multipart(&self.key, &self.upload).await;
            return Ok(());
        }
        let parts = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        let done = self.store.complete_multipart(&self.key, &self.upload, parts).await;
        let Err(error) = done else { return Ok(()) };
        // Whoever lost the answer may end it once more.
        match self.store.head(&self.key).await {
            Ok(found) if found.size == self.length => Ok(()),
            _ => Err(forgotten(&self.store, &self.key, error).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_ours_are_touched() {
        let options = S3Options {
            bucket: "b".to_owned(),
            prefix: "/runs/x/".to_owned(),
            region: Some("eu-central-1".to_owned()),
            ..S3Options::default()
        };
        let s3 = S3::new(&options).unwrap();
        let path = s3.path("3f2a0000-0000-4000-8000-000000000000");
        assert_eq!(path, "s3://b/runs/x/3f/3f2a0000-0000-4000-8000-000000000000");
        assert_eq!(
            s3.key(&path).map(|key| key.to_string()).as_deref(),
            Some("runs/x/3f/3f2a0000-0000-4000-8000-000000000000")
        );
        for bad in [
            "s3://b/3f/3f2a0000-0000-4000-8000-000000000000",
            "s3://other/runs/x/3f/3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/aa/3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/backup.tar",
            "s3://b/runs/x/3f/../x",
            "s3://b/runs/x/3F/3F2A0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/3f/3F2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x//3f/3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/3f//3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/3f/3f2a0000-0000-4000-8000-000000000000/",
            "s3://b/runs/x/3f/3f2a0000%2D0000-4000-8000-000000000000",
            "s3://b/runs/x/3f2a00/3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/y/../x/3f/3f2a0000-0000-4000-8000-000000000000",
            "s3://B/runs/x/3f/3f2a0000-0000-4000-8000-000000000000",
            "S3://b/runs/x/3f/3f2a0000-0000-4000-8000-000000000000",
            "s3://b/runs/x/3f/3f2a000000004000-8000-000000000000-00",
        ] {
            assert_eq!(s3.key(bad), None, "{bad}");
        }
    }
}

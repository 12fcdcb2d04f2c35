//! Uploads and downloads: the calls of ArtifactService that stream.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use mongodb::bson::{Document, doc};
use stepwell::proto::download_artifact_response::Part as Received;
use stepwell::proto::upload_artifact_request::Part;
use stepwell::proto::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::backend::{Backend, Kind};
use super::client::{Answer, Client};
use super::{eventually, in_time};

/// Bytes in one message of a test.
const CHUNK: usize = 256 * 1024;

/// What an upload to this execution says first.
pub fn describe(execution_id: &str, name: &str) -> ArtifactDescription {
    ArtifactDescription {
        execution_id: execution_id.into(),
        artifact_type: "log".into(),
        artifact_name: name.into(),
        ..Default::default()
    }
}

/// So many bytes that no two places of them look alike.
pub fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Lower-case hex digits of the SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

pub fn first(description: ArtifactDescription) -> UploadArtifactRequest {
    UploadArtifactRequest { part: Some(Part::Description(description)) }
}

pub fn chunk(bytes: Bytes) -> UploadArtifactRequest {
    UploadArtifactRequest { part: Some(Part::Chunk(bytes)) }
}

/// The messages of a whole upload.
pub fn messages(
    description: ArtifactDescription,
    bytes: &Bytes,
) -> impl Iterator<Item = UploadArtifactRequest> + Send + use<> {
    let bytes = bytes.clone();
    let chunks = (0..bytes.len().div_ceil(CHUNK))
        .map(move |index| chunk(bytes.slice(index * CHUNK..bytes.len().min((index + 1) * CHUNK))));
    std::iter::once(first(description)).chain(chunks)
}

/// An upload whose messages a test sends one by one.
pub struct Uploading {
    sender: mpsc::Sender<UploadArtifactRequest>,
    answer: tokio::task::JoinHandle<Answer<Artifact>>,
    line: tokio::task::JoinHandle<()>,
}

impl Uploading {
    /// Sends a message; waits while the server takes no more.
    pub async fn send(&self, message: UploadArtifactRequest) {
        // One that has ended says why in its answer.
        let _ = self.sender.send(message).await;
    }

    /// Ends the stream in order.
    pub async fn end(self) -> Answer<Artifact> {
        drop(self.sender);
        in_time("the answer to an upload", self.answer).await.expect("the upload does not panic")
    }

    /// The answer that comes without the end of the stream.
    pub async fn answer(self) -> Answer<Artifact> {
        let answer = in_time("the answer to an upload", self.answer).await;
        drop(self.sender);
        answer.expect("the upload does not panic")
    }

    /// The answer that comes without the end of the stream, as when the deadline passes. What is returned keeps the stream
    /// from ending: the library ends it in order where nothing more can be sent, and its deadline passes a moment before
    /// that of the server.
    pub async fn outlast(self) -> (Answer<Artifact>, impl Sized) {
        let answer = in_time("the answer to an upload", self.answer).await;
        (answer.expect("the upload does not panic"), self.sender)
    }

    /// Gives the call up: the stream is reset without an end. What is returned keeps it from ending otherwise.
    #[must_use]
    pub async fn cancel(self) -> impl Sized {
        self.answer.abort();
        let _ = self.answer.await;
        self.sender
    }

    /// Cuts the connection, as a client or a network that dies does.
    pub async fn break_off(self) {
        self.line.abort();
        let _ = self.line.await;
        let _ = self.answer.await;
    }
}

/// A way to the server that can be cut.
async fn line(server: String) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    let line = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.expect("a connection");
        let mut far = tokio::net::TcpStream::connect(server).await.expect("the server listens");
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    (address, line)
}

impl Client {
    pub async fn try_upload(
        &self,
        description: ArtifactDescription,
        bytes: &Bytes,
    ) -> Answer<Artifact> {
        self.try_upload_messages(messages(description, bytes)).await
    }

    pub async fn try_upload_messages(
        &self,
        messages: impl Iterator<Item = UploadArtifactRequest> + Send + 'static,
    ) -> Answer<Artifact> {
        let stream = tokio_stream::iter(messages);
        let answer = in_time("upload_artifact", self.artifacts().upload_artifact(stream)).await?;
        Ok(answer.into_inner().artifact.expect("the answer carries the record"))
    }

    #[track_caller]
    pub fn upload(
        &self,
        description: ArtifactDescription,
        bytes: &Bytes,
    ) -> impl Future<Output = Artifact> + Send + use<> {
        let caller = std::panic::Location::caller();
        let (client, bytes) = (self.clone(), bytes.clone());
        async move {
            match client.try_upload(description, &bytes).await {
                Ok(artifact) => artifact,
                Err(status) => {
                    panic!(
                        "upload at {caller} is refused: {:?} {}",
                        status.code(),
                        status.message()
                    )
                }
            }
        }
    }

    /// Begins an upload that is sent message by message.
    pub async fn begin_upload(&self, description: ArtifactDescription) -> Uploading {
        self.begin_upload_within(description, None).await
    }

    /// The same with a deadline for the whole call.
    pub async fn begin_upload_within(
        &self,
        description: ArtifactDescription,
        deadline: Option<Duration>,
    ) -> Uploading {
        let (sender, receiver) = mpsc::channel(1);
        let (address, line) = line(self.address.clone()).await;
        let mut client = Client::of(address).artifacts();
        let answer = tokio::spawn(async move {
            let mut request = tonic::Request::new(ReceiverStream::new(receiver));
            if let Some(deadline) = deadline {
                request.set_timeout(deadline);
            }
            let answer = client.upload_artifact(request).await?;
            Ok(answer.into_inner().artifact.expect("the answer carries the record"))
        });
        let uploading = Uploading { sender, answer, line };
        uploading.send(first(description)).await;
        uploading
    }

    /// The record and all bytes that come.
    pub async fn try_download_part(
        &self,
        request: DownloadArtifactRequest,
    ) -> Answer<(Artifact, Vec<u8>)> {
        let answer = in_time("download", self.artifacts().download_artifact(request)).await?;
        let mut stream = answer.into_inner();
        let first = in_time("the record of a download", stream.message()).await?;
        let Some(Received::Artifact(artifact)) = first.and_then(|message| message.part) else {
            panic!("a download begins with the record");
        };
        let mut bytes = Vec::new();
        while let Some(message) = in_time("more of a download", stream.message()).await? {
            match message.part {
                Some(Received::Chunk(chunk)) => {
                    assert!(chunk.len() <= 1024 * 1024, "a chunk of {} bytes", chunk.len());
                    bytes.extend_from_slice(&chunk);
                }
                other => panic!("bytes were to follow, not {other:?}"),
            }
        }
        Ok((artifact, bytes))
    }

    pub async fn try_download(&self, artifact_id: &str) -> Answer<Vec<u8>> {
        let request =
            DownloadArtifactRequest { artifact_id: artifact_id.into(), ..Default::default() };
        self.try_download_part(request).await.map(|(_, bytes)| bytes)
    }

    pub async fn try_artifact(&self, artifact_id: &str) -> Answer<Artifact> {
        self.try_get_artifact(GetArtifactRequest { artifact_id: artifact_id.into() }).await
    }

    pub async fn try_delete(&self, artifact_id: &str) -> Answer<DeleteArtifactResponse> {
        self.try_delete_artifact(DeleteArtifactRequest { artifact_id: artifact_id.into() }).await
    }

    /// All artifacts of an execution, newest first.
    pub async fn artifacts_of(&self, execution_id: &str) -> Vec<Artifact> {
        let mut request = ListArtifactsRequest {
            execution_id: execution_id.into(),
            page_size: 1000,
            ..Default::default()
        };
        let mut all = Vec::new();
        loop {
            let page = self.list_artifacts(request.clone()).await;
            all.extend(page.artifacts);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return all;
            }
        }
    }

    /// How many bytes of an upload are safe.
    pub async fn try_received(&self, upload_id: &str) -> Answer<i64> {
        let request = GetUploadRequest { upload_id: upload_id.into() };
        Ok(self.try_get_upload(request).await?.received_bytes)
    }
}

impl Backend {
    /// Names of all bytes that are kept, complete or not.
    pub async fn blobs(&self) -> BTreeSet<String> {
        match self.kind {
            Kind::Sqlite => files_below(&self.data_dir().join("artifacts"))
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect(),
            Kind::Mongodb => {
                let database = self.mongodb().await;
                let chunks = database.collection::<Document>("artifacts.chunks");
                let files = database.collection::<Document>("artifacts.files");
                let of_chunks = chunks.distinct("files_id", doc! {}).await.expect("readable");
                let of_files = files.distinct("_id", doc! {}).await.expect("readable");
                let names = of_chunks.into_iter().chain(of_files);
                names.map(|name| name.as_str().expect("a name of ours").to_owned()).collect()
            }
        }
    }

    /// How many bytes are kept, complete or not.
    pub async fn stored_bytes(&self) -> usize {
        match self.kind {
            Kind::Sqlite => files_below(&self.data_dir().join("artifacts"))
                .iter()
                .filter_map(|path| Some(std::fs::metadata(path).ok()?.len() as usize))
                .sum(),
            Kind::Mongodb => {
                let database = self.mongodb().await;
                let chunks = database.collection::<Document>("artifacts.chunks");
                let sum = doc! { "$group": {
                    "_id": null, "bytes": { "$sum": { "$binarySize": "$data" } },
                } };
                let mut found = chunks.aggregate([sum]).await.expect("readable");
                match found.advance().await.expect("readable") {
                    false => 0,
                    true => found.current().get_i32("bytes").expect("a number") as usize,
                }
            }
        }
    }

    /// Waits until exactly these are kept.
    pub async fn blobs_become(&self, expected: &[&Artifact]) {
        let expected: BTreeSet<String> =
            expected.iter().map(|artifact| blob_of(artifact)).collect();
        eventually("only the bytes of records are kept", async || {
            (self.blobs().await == expected).then_some(())
        })
        .await;
    }

    /// Marks an artifact as deleted and does no more, as a delete that a crash cut short.
    pub async fn mark_artifact_alone(&self, artifact_id: &str) {
        match self.kind {
            Kind::Sqlite => {
                let sql = "UPDATE artifacts SET deleted_at = 1 WHERE artifact_id = ?1";
                let marked = self.sqlite().execute(sql, [artifact_id]).expect("marked");
                assert_eq!(marked, 1);
            }
            Kind::Mongodb => {
                let id = mongodb::bson::oid::ObjectId::parse_str(artifact_id).expect("an id");
                let now = mongodb::bson::DateTime::from_millis(1);
                let change = doc! { "$set": { "deleted_at": now } };
                let artifacts = self.artifact_documents().await;
                let marked =
                    artifacts.update_one(doc! { "_id": id }, change).await.expect("marked");
                assert_eq!(marked.matched_count, 1);
            }
        }
    }

    pub async fn artifact_documents(&self) -> mongodb::Collection<Document> {
        self.mongodb().await.collection("execution_artifacts")
    }

    /// How many records of artifacts there are, marked or not.
    pub async fn artifact_records(&self) -> u64 {
        match self.kind {
            Kind::Sqlite => self
                .sqlite()
                .query_row("SELECT count(*) FROM artifacts", [], |row| row.get::<_, i64>(0))
                .expect("readable")
                .unsigned_abs(),
            Kind::Mongodb => {
                let artifacts = self.artifact_documents().await;
                artifacts.count_documents(doc! {}).await.expect("readable")
            }
        }
    }

    /// Replaces the bytes of an artifact behind the server's back; none: they are removed.
    pub async fn tamper(&self, artifact: &Artifact, bytes: Option<&[u8]>) {
        let name = blob_of(artifact);
        match self.kind {
            Kind::Sqlite => {
                let root = self.data_dir().join("artifacts");
                let path = root.join(&name[..2]).join(&name[2..4]).join(&name);
                match bytes {
                    Some(bytes) => std::fs::write(path, bytes).expect("the file can be written"),
                    None => std::fs::remove_file(path).expect("the file is there"),
                }
            }
            Kind::Mongodb => {
                let database = self.mongodb().await;
                let chunks = database.collection::<Document>("artifacts.chunks");
                match bytes {
                    None => {
                        chunks.delete_many(doc! { "files_id": name }).await.expect("deleted");
                    }
                    Some(bytes) => {
                        let data = mongodb::bson::Binary {
                            subtype: mongodb::bson::spec::BinarySubtype::Generic,
                            bytes: bytes.to_vec(),
                        };
                        let only = doc! { "files_id": name, "n": 0 };
                        let change = doc! { "$set": { "data": data } };
                        chunks.update_one(only, change).await.expect("changed");
                    }
                }
            }
        }
    }
}

/// Name of the bytes of an artifact.
pub fn blob_of(artifact: &Artifact) -> String {
    let path = artifact.storage_path.as_deref().expect("an uploaded artifact has its path");
    path.rsplit('/').next().expect("a path has a last part").to_owned()
}

fn files_below(folder: &std::path::Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}

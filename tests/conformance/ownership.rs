//! Whose bytes are whose: a name alone gives nobody a right to them, and they go with the last record that has them.

use bytes::Bytes;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use stepwell::proto::*;
use tonic::Code;

use crate::support::artifacts::{blob_of, chunk, describe, noise, sha256};
use crate::support::backend::{Backend, Kind};
use crate::support::client::{Client, ok, refused};
use crate::support::eventually;

const MIB: usize = 1024 * 1024;

/// Imports a record that names bytes; its id.
async fn import(s: &Client, name: &str, storage: &str, path: &str, like: &Artifact) -> String {
    let record = Artifact {
        artifact_id: String::new(),
        artifact_name: name.into(),
        storage_type: Some(storage.into()),
        storage_path: Some(path.into()),
        ..like.clone()
    };
    let write = ingest_request::Write::PutArtifact(record);
    match s.ingest_all(vec![write]).await.remove(0) {
        ingest_response::Result::Artifact(stored) => stored.artifact_id,
        other => panic!("{path}: {other:?}"),
    }
}

async fn without_bytes(s: &Client, artifact_id: &str, what: &str) {
    println!("{what}");
    let answer = s.try_download(artifact_id).await.map(|bytes| bytes.len());
    refused(answer, Code::FailedPrecondition, "ARTIFACT_WITHOUT_BYTES");
}

/// A file in the bucket `artifacts` as another program puts it there.
async fn store_file(b: &Backend, id: impl Into<Bson>, filename: &str, bytes: &[u8]) {
    let id: Bson = id.into();
    let database = b.mongodb().await;
    let data = Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() };
    let chunk = doc! { "_id": ObjectId::new(), "files_id": &id, "n": 0, "data": data };
    let file = doc! {
        "_id": id, "length": bytes.len() as i64, "chunkSize": 255 * 1024,
        "uploadDate": DateTime::now(), "filename": filename,
    };
    let chunks = database.collection::<Document>("artifacts.chunks");
    chunks.insert_one(chunk).await.expect("inserted");
    database.collection::<Document>("artifacts.files").insert_one(file).await.expect("inserted");
}

async fn files(b: &Backend) -> u64 {
    let files = b.mongodb().await.collection::<Document>("artifacts.files");
    files.count_documents(doc! {}).await.expect("readable")
}

/// A record as another program writes it into the database; its id.
async fn foreign(b: &Backend, name: &str, path: &str) -> String {
    let id = ObjectId::new();
    let record = doc! {
        "_id": id, "execution_id": "e", "step_id": null, "artifact_type": "log",
        "artifact_name": name, "mime_type": null, "size_bytes": null,
        "storage_type": "gridfs", "storage_path": path, "metadata": {},
        "created_at": DateTime::now(),
    };
    b.artifacts().await.insert_one(record).await.expect("inserted");
    id.to_hex()
}

pub async fn importing_a_record_gives_no_right_to_the_bytes_it_names(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let bytes = noise(MIB + 3, 1);
    let stored = s.upload(describe("e", "x"), &bytes).await;
    let path = stored.storage_path.clone().expect("it has its path");
    let name = blob_of(&stored);
    let (one, two) = (&name[..2], &name[2..4]);
    let upper = name.to_ascii_uppercase();
    let mut paths = vec![
        path.clone(),
        path.to_ascii_uppercase(),
        path.replace(&name, &upper),
        path.replace(&name, &name.replace('-', "")),
        path.replace(&name, &format!("{{{name}}}")),
        path.replace(&name, &name.replace('-', "%2D")),
        format!("{path}/"),
        format!("{path}?x"),
        format!("{path}#x"),
        format!(" {path}"),
        path.replacen('/', "//", 1),
    ];
    paths.extend(match b.kind {
        Kind::Sqlite => vec![
            format!("file:{one}/{two}{}/{name}", &name[4..8]),
            format!("file:{one}/{}/{name}", &name[2..8]),
            format!("file:{}/{}/{name}", one.to_ascii_uppercase(), two.to_ascii_uppercase()),
            format!("file:/{one}/{two}/{name}"),
            format!("file:./{one}/{two}/{name}"),
            format!("file:{one}/../{one}/{two}/{name}"),
            format!("file://{}/artifacts/{one}/{two}/{name}", b.data_dir().display()),
            format!("{}/artifacts/{one}/{two}/{name}", b.data_dir().display()),
            format!("file:partial/{name}"),
        ],
        Kind::Mongodb => {
            // Files of other programs, by each of the names they have.
            let id = ObjectId::new();
            store_file(&b, id, "report.txt", b"another's").await;
            let uuid = mongodb::bson::Uuid::new();
            store_file(&b, uuid, "other.txt", b"another's").await;
            let names = [
                id.to_hex(),
                id.to_hex().to_ascii_uppercase(),
                "report.txt".into(),
                uuid.to_string(),
                uuid.to_string().replace('-', ""),
                "other.txt".into(),
            ];
            names.iter().map(|name| format!("gridfs://artifacts/{name}")).collect()
        }
    });
    let kept = if b.kind == Kind::Mongodb { files(&b).await } else { 0 };
    let storage = stored.storage_type.clone().expect("it has its storage");
    let mut imported = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let id = import(&s, &format!("once {number}"), &storage, path, &stored).await;
        without_bytes(&s, &id, path).await;
        ok(s.try_delete(&id).await);
        assert!(ok(s.try_download(&stored.artifact_id).await) == bytes, "{path}");
        imported.push(import(&s, &format!("again {number}"), &storage, path, &stored).await);
    }
    if b.kind == Kind::Mongodb {
        assert_eq!(files(&b).await, kept);
    }
    // Nor does it keep them: they go with the record that has them.
    ok(s.try_delete(&stored.artifact_id).await);
    match b.kind {
        Kind::Sqlite => b.blobs_become(&[]).await,
        Kind::Mongodb => assert_eq!(files(&b).await, kept - 1),
    }
    for id in &imported {
        without_bytes(&s, id, id).await;
        ok(s.try_delete(id).await);
    }
    if b.kind == Kind::Mongodb {
        assert_eq!(files(&b).await, kept - 1);
    }
}

pub async fn a_record_of_another_program_has_the_bytes_it_names(b: Backend) {
    let mut id = match b.kind {
        Kind::Mongodb => String::new(),
        Kind::Sqlite => {
            let s = b.serve().await;
            s.create("e").await;
            s.shutdown().await;
            b.store_artifact("e", "absent", 7).await
        }
    };
    let s = b.serve().await;
    if b.kind == Kind::Sqlite {
        return without_bytes(&s, &id, "a record only").await;
    }
    s.create("e").await;
    // A record alone, as trackers write it: nothing was lost.
    id = b.store_artifact("e", "absent", 7).await;
    without_bytes(&s, &id, "a record only").await;
    for path in ["gridfs://artifacts/no such file", "gridfs://fs/x", "s3://b/k", "/x", "file:x"] {
        let id = foreign(&b, path, path).await;
        without_bytes(&s, &id, path).await;
        ok(s.try_delete(&id).await);
    }
    let file = ObjectId::new();
    store_file(&b, file, "report.txt", b"theirs").await;
    let by_id = foreign(&b, "by id", &format!("gridfs://artifacts/{file}")).await;
    let by_name = foreign(&b, "by name", "gridfs://artifacts/report.txt").await;
    for id in [&by_id, &by_name] {
        assert_eq!(ok(s.try_download(id).await), b"theirs");
    }
    // Both names are those of one file, which goes with the last of them.
    ok(s.try_delete(&by_id).await);
    assert_eq!(ok(s.try_download(&by_name).await), b"theirs");
    ok(s.try_delete(&by_name).await);
    assert_eq!(files(&b).await, 0);
    // And so for bytes of ours that another program names, whichever goes first.
    let bytes = noise(1000, 1);
    for foreign_first in [true, false] {
        let stored = s.upload(describe("e", "x"), &bytes).await;
        let second = foreign(&b, "y", stored.storage_path.as_deref().expect("a path")).await;
        let (first, last) = match foreign_first {
            true => (&second, &stored.artifact_id),
            false => (&stored.artifact_id, &second),
        };
        ok(s.try_delete(first).await);
        assert!(ok(s.try_download(last).await) == bytes);
        ok(s.try_delete(last).await);
        b.blobs_become(&[]).await;
    }
    // Bytes on their way are not theirs to remove.
    let uploading = s.begin_upload(describe("e", "z")).await;
    uploading.send(chunk(bytes.slice(..500))).await;
    uploading.send(chunk(noise(MIB, 2))).await;
    eventually("it is under way", async || (b.blobs().await.len() == 1).then_some(())).await;
    let blob = b.blobs().await.pop_first().expect("one");
    let named = foreign(&b, "named", &format!("gridfs://artifacts/{blob}")).await;
    without_bytes(&s, &named, "not complete").await;
    ok(s.try_delete(&named).await);
    let expected = [&bytes[..500], &noise(MIB, 2)].concat();
    let stored = ok(uploading.end().await);
    assert_eq!(stored.sha256, Some(sha256(&expected)));
    assert!(ok(s.try_download(&stored.artifact_id).await) == expected);
}

async fn uploads(b: &Backend) -> u64 {
    match b.kind {
        Kind::Sqlite => b
            .sqlite()
            .query_row("SELECT count(*) FROM artifact_uploads", [], |row| row.get::<_, i64>(0))
            .expect("readable")
            .unsigned_abs(),
        Kind::Mongodb => {
            let uploads = b.mongodb().await.collection::<Document>("stepwell_uploads");
            uploads.count_documents(doc! {}).await.expect("readable")
        }
    }
}

pub async fn unfinished_uploads_go_with_their_execution(b: Backend) {
    let s = b.serve().await;
    for id in ["e", "other"] {
        s.create(id).await;
    }
    let kept = s.upload(describe("other", "kept"), &noise(MIB, 1)).await;
    let bytes = noise(3 * MIB, 2);
    let begin = async |upload_id: Option<&str>, name: &str| {
        let before = b.stored_bytes().await;
        let sent =
            ArtifactDescription { upload_id: upload_id.map(str::to_owned), ..describe("e", name) };
        let uploading = s.begin_upload(sent).await;
        uploading.send(chunk(bytes.slice(..2 * MIB))).await;
        let stored = async || (b.stored_bytes().await >= before + 2 * MIB).then_some(());
        eventually("the chunk is stored", stored).await;
        uploading
    };
    begin(Some("broken"), "broken").await.break_off().await;
    let is_safe = async || (s.try_received("broken").await.ok()? == 2 * MIB as i64).then_some(());
    eventually("what came is safe", is_safe).await;
    let ended = ArtifactDescription { upload_id: Some("ended".into()), ..describe("e", "ended") };
    s.upload(ended, &bytes).await;
    let silent = [begin(None, "silent").await, begin(Some("silent"), "silent too").await];
    let going = [begin(None, "going").await, begin(Some("going"), "going too").await];
    assert!(uploads(&b).await >= 5);
    s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
    for id in ["broken", "ended", "silent", "going"] {
        refused(s.try_received(id).await, Code::NotFound, "UPLOAD_NOT_FOUND");
    }
    // Those that go on meet it at their end, the others without a word of their client.
    for uploading in going {
        uploading.send(chunk(bytes.slice(2 * MIB..))).await;
        refused(uploading.end().await, Code::NotFound, "EXECUTION_NOT_FOUND");
    }
    for uploading in silent {
        refused(uploading.answer().await, Code::NotFound, "EXECUTION_NOT_FOUND");
    }
    b.blobs_become(&[&kept]).await;
    eventually("nothing is written down", async || (uploads(&b).await == 0).then_some(())).await;
    let rest = ArtifactDescription {
        upload_id: Some("broken".into()),
        offset: 2 * MIB as i64,
        ..describe("e", "broken")
    };
    let answer = s.try_upload(rest.clone(), &bytes.slice(2 * MIB..)).await;
    refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    // The ids are free for a new execution.
    s.create("e").await;
    let answer = s.try_upload(rest.clone(), &Bytes::new()).await;
    refused(answer, Code::NotFound, "UPLOAD_NOT_FOUND");
    let stored = s.upload(ArtifactDescription { offset: 0, ..rest }, &bytes).await;
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
    b.blobs_become(&[&kept, &stored]).await;
}

"""Bytes in GridFS are shared with every program that has a driver: pymongo reads ours, and we read pymongo's."""

import datetime
import hashlib
import os
import time
import unittest

import bson
import gridfs
import grpc

import harness

MIB = 1 << 20


class GridFs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mongodb = harness.shared_mongodb()
        cls.name = f"gridfs_{time.time_ns()}"
        cls.database = cls.mongodb.client[cls.name]
        cls.server = cls.enterClassContext(harness.Server(cls.mongodb.uri, cls.name))
        cls.pb = harness.stubs()
        cls.calls = cls.pb.artifact_grpc.ArtifactServiceStub(cls.server.channel)
        executions = cls.pb.execution_grpc.ExecutionServiceStub(cls.server.channel)
        executions.CreateExecution(cls.pb.execution.CreateExecutionRequest(execution_id="e", app_name="app"))

    def upload(self, name, data):
        pb = self.pb.artifact

        def messages():
            description = pb.ArtifactDescription(
                execution_id="e",
                artifact_type="log",
                artifact_name=name,
                mime_type="text/plain",
                sha256=hashlib.sha256(data).hexdigest(),
            )
            yield pb.UploadArtifactRequest(description=description)
            for at in range(0, len(data), MIB):
                yield pb.UploadArtifactRequest(chunk=data[at : at + MIB])

        return self.calls.UploadArtifact(messages()).artifact

    def download(self, artifact_id, **part):
        answers = self.calls.DownloadArtifact(
            self.pb.artifact.DownloadArtifactRequest(artifact_id=artifact_id, **part)
        )
        return b"".join(answer.chunk for answer in answers)

    def test_pymongo_reads_what_we_wrote(self):
        for size in (0, 1, MIB, 3 * MIB + 5):
            data = os.urandom(size)
            artifact = self.upload(f"ours-{size}", data)
            document = self.database.execution_artifacts.find_one({"_id": bson.ObjectId(artifact.artifact_id)})
            self.assertEqual(document["storage_type"], "gridfs")
            name = document["storage_path"].removeprefix("gridfs://artifacts/")
            bucket = gridfs.GridFSBucket(self.database, "artifacts")
            with bucket.open_download_stream(name) as stream:
                self.assertEqual(stream.length, size)
                self.assertEqual(stream.chunk_size, MIB)
                self.assertEqual(stream.read(), data)
            with bucket.open_download_stream_by_name(name) as stream:
                self.assertEqual(stream.read(), data)

    def test_the_document_is_that_of_the_contract(self):
        artifact = self.upload("document", b"x")
        document = self.database.execution_artifacts.find_one({"_id": bson.ObjectId(artifact.artifact_id)})
        self.assertEqual(document.pop("digests").keys(), {"create"})
        self.assertEqual(document.pop("last_change"), f"e//{artifact.artifact_id}")
        self.assertIsInstance(document.pop("_id"), bson.ObjectId)
        self.assertIsInstance(document.pop("created_at"), datetime.datetime)
        self.assertIsInstance(document["size_bytes"], bson.Int64)
        self.assertTrue(document.pop("storage_path").startswith("gridfs://artifacts/"))
        self.assertEqual(
            document,
            {
                "execution_id": "e",
                "step_id": None,
                "artifact_type": "log",
                "artifact_name": "document",
                "mime_type": "text/plain",
                "size_bytes": 1,
                "storage_type": "gridfs",
                "metadata": {},
                "sha256": hashlib.sha256(b"x").hexdigest(),
            },
        )

    def test_we_read_and_delete_what_pymongo_wrote(self):
        bucket = gridfs.GridFSBucket(self.database, "artifacts")
        data = os.urandom(2 * MIB + 77)
        files = {"by-name": None, "of-our-kind": "0b5b0a34-3d1c-4a53-9a0c-9d1c5f0b7c11"}
        for name, id in files.items():
            # Its own chunks have 255 KiB.
            if id:
                bucket.upload_from_stream_with_id(id, name, data)
            else:
                id = bucket.upload_from_stream(name, data)
            stored = []
            for path in (str(id), name):
                inserted = self.database.execution_artifacts.insert_one(
                    {
                        "execution_id": "e",
                        "artifact_type": "report",
                        "artifact_name": name,
                        "mime_type": "text/plain",
                        "size_bytes": len(data),
                        "storage_type": "gridfs",
                        "storage_path": f"gridfs://artifacts/{path}",
                        "created_at": datetime.datetime.now(datetime.timezone.utc),
                    }
                )
                artifact_id = str(inserted.inserted_id)
                stored.append(artifact_id)
                self.assertEqual(self.download(artifact_id), data)
                self.assertEqual(self.download(artifact_id, offset=255 * 1024 - 2, limit=5), data[261118:261123])
                self.assertEqual(self.download(artifact_id, tail=9), data[-9:])
            listed = self.calls.ListArtifacts(self.pb.artifact.ListArtifactsRequest(execution_id="e"))
            self.assertIn(artifact_id, [artifact.artifact_id for artifact in listed.artifacts])
            # Both records name the file, each in its own way: it goes with the last of them.
            first, last = stored
            self.calls.DeleteArtifact(self.pb.artifact.DeleteArtifactRequest(artifact_id=first))
            self.assertEqual(self.download(last), data)
            self.calls.DeleteArtifact(self.pb.artifact.DeleteArtifactRequest(artifact_id=last))
            self.assertIsNone(self.database["artifacts.files"].find_one({"_id": id}))
            self.assertIsNone(self.database["artifacts.chunks"].find_one({"files_id": id}))

    def test_files_of_other_buckets_are_theirs(self):
        theirs = gridfs.GridFSBucket(self.database, "fs")
        id = theirs.upload_from_stream("private", b"private")
        inserted = self.database.execution_artifacts.insert_one(
            {"execution_id": "e", "storage_type": "gridfs", "storage_path": f"gridfs://fs/{id}"}
        )
        with self.assertRaises(grpc.RpcError) as refused:
            self.download(str(inserted.inserted_id))
        self.assertEqual(refused.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.calls.DeleteArtifact(self.pb.artifact.DeleteArtifactRequest(artifact_id=str(inserted.inserted_id)))
        self.assertEqual(theirs.open_download_stream(id).read(), b"private")


if __name__ == "__main__":
    unittest.main()

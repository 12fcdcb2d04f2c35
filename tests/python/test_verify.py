"""verify: digests as docs/moving.md has them, computed here from the documents alone; and two databases compared, equal
and with differences planted, at rest and while both change.

$STEPWELL_DATA_SETS may name a folder with real run records (see test_real_data); without one records are made up.
"""

import base64
import datetime
import hashlib
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import unittest

import bson
import harness
from test_moving import made_up

SETS = os.environ.get("STEPWELL_DATA_SETS")
EXECUTIONS, STEPS, ARTIFACTS, METRICS, CONFIGURATIONS = range(1, 6)
EPOCH = datetime.datetime(1970, 1, 1)


# --- the canonical form, from docs/moving.md --------------------------------------------------------------------------

TEXT, NAME, WHOLE, ZERO, TIME, WORD, INPUT, ANY, OBJECT, BOOL, METRIC, ERROR = range(12)
STATUSES = {
    "executions": {"running", "completed", "failed", "cancelled"},
    "execution_steps": {"pending", "running", "completed", "failed", "skipped"},
}
FIELDS = {
    "executions": [
        ("execution_id", NAME), ("app_id", WHOLE), ("app_name", NAME), ("sub_app_id", WHOLE), ("sub_app_name", TEXT),
        ("user_id", TEXT), ("status", WORD), ("started_at", TIME), ("completed_at", TIME), ("duration_ms", WHOLE),
        ("error", ERROR), ("metadata", OBJECT), ("created_at", TIME), ("updated_at", TIME),
    ],
    "execution_steps": [
        ("execution_id", NAME), ("step_id", WHOLE), ("step_name", NAME), ("step_version", TEXT), ("status", WORD),
        ("started_at", TIME), ("completed_at", TIME), ("duration_ms", WHOLE), ("input", INPUT), ("output", ANY),
        ("error", ERROR), ("retry_count", ZERO), ("metadata", OBJECT),
    ],
    "execution_artifacts": [
        ("execution_id", NAME), ("step_id", WHOLE), ("artifact_type", NAME), ("artifact_name", NAME), ("mime_type", TEXT),
        ("size_bytes", WHOLE), ("storage_type", TEXT), ("storage_path", TEXT), ("metadata", OBJECT), ("created_at", TIME),
    ],
    "execution_metrics": [("timestamp", TIME), ("execution_id", NAME), ("metrics", METRIC)],
    "app_configurations": [
        ("app_id", WHOLE), ("app_name", NAME), ("sub_app_id", WHOLE), ("sub_app_name", TEXT), ("version", NAME),
        ("configuration", OBJECT), ("active", BOOL), ("created_at", TIME), ("created_by", TEXT),
    ],
}
KINDS = {name: kind for kind, name in enumerate(FIELDS, start=1)}


def text(value):
    encoded = value.encode()
    return b"s" + struct.pack(">Q", len(encoded)) + encoded


def rfc3339(at):
    shown = at.strftime("%Y-%m-%dT%H:%M:%S")
    millis = at.microsecond // 1000
    return shown + (f".{millis:03}".rstrip("0") if millis else "") + "Z"


def value(found):
    """Any JSON value, and what JSON lacks as text."""
    if found is None:
        return b"n"
    if isinstance(found, bool):
        return b"t" if found else b"f"
    if isinstance(found, int):
        if abs(found) > 2**53:
            return text(str(found))
        return b"d" + struct.pack(">d", found)
    if isinstance(found, float):
        if found != found:
            return text("NaN")
        if found in (float("inf"), float("-inf")):
            return text("Infinity" if found > 0 else "-Infinity")
        return b"d" + struct.pack(">d", found + 0.0 if found else 0.0)
    if isinstance(found, str):
        return text(found)
    if isinstance(found, datetime.datetime):
        return text(rfc3339(found))
    if isinstance(found, bson.ObjectId):
        return text(str(found))
    if isinstance(found, bytes):
        return text(base64.b64encode(found).decode())
    if isinstance(found, bson.Decimal128):
        return text(str(found))
    if isinstance(found, list):
        return b"[" + b"".join(map(value, found)) + b"]"
    if isinstance(found, dict):
        keys = sorted(found, key=str.encode)
        return b"{" + b"".join(text(key) + value(found[key]) for key in keys) + b"}"
    raise TypeError(type(found))


def whole(found):
    if isinstance(found, float) and found == int(found):
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        return b"n"
    return b"i" + struct.pack(">q", found)


def field(collection, kind, found):
    if kind in (TEXT, ERROR):
        return text(found) if isinstance(found, str) else b"n"
    if kind == NAME:
        return text(found) if isinstance(found, str) and found else b"n"
    if kind == WORD:
        return text(found) if found in STATUSES[collection] else b"n"
    if kind == WHOLE:
        return whole(found)
    if kind == ZERO:
        return whole(0 if found is None else found)
    if kind == TIME:
        if not isinstance(found, datetime.datetime):
            return b"n"
        return b"m" + struct.pack(">q", (found - EPOCH) // datetime.timedelta(milliseconds=1))
    if kind == INPUT:
        return value({} if found is None else found)
    if kind == OBJECT:
        return value(found if isinstance(found, dict) else {})
    if kind == BOOL:
        return b"t" if found is True else b"f"
    if kind == METRIC:
        return value({name: float(number) for name, number in found.items()})
    return value(found)


def digest(collection, document):
    canonical = text(collection)
    for name, kind in FIELDS[collection]:
        canonical += text(name) + field(collection, kind, document.get(name))
    return hashlib.sha256(canonical).digest()


def range_of(name):
    hashed = hashlib.sha256(name.encode()).digest()
    return hashed[0] << 4 | hashed[1] >> 4


def totals(database):
    """(kind, range) -> (count, digest), from the documents alone."""
    sums = {}
    for collection in FIELDS:
        for document in database[collection].find():
            name = document.get("app_name" if collection == "app_configurations" else "execution_id") or ""
            key = KINDS[collection], range_of(name)
            count, sum_ = sums.get(key, (0, 0))
            sums[key] = count + 1, (sum_ + int.from_bytes(digest(collection, document), "big")) % 2**256
    return {key: (count, sum_.to_bytes(32, "big")) for key, (count, sum_) in sums.items()}


# --- tests ------------------------------------------------------------------------------------------------------------


def told(server, **request):
    from stepwell.v1 import verify_service_pb2, verify_service_pb2_grpc

    stub = verify_service_pb2_grpc.VerifyServiceStub(server.channel)
    answers = list(stub.GetDigests(verify_service_pb2.GetDigestsRequest(**request)))
    assert answers[0].WhichOneof("part") == "begun" and answers[-1].WhichOneof("part") == "complete"
    return answers


def served_totals(server):
    return {
        (found.kind, found.range): (found.count, found.digest)
        for answer in told(server)
        for found in answer.ranges.ranges
    }


def odd_documents():
    """What Python programs store."""
    at = datetime.datetime(2026, 3, 1, 12, 0, 0, 120000)
    yield "executions", {
        "execution_id": "odd", "app_id": 7.0, "app_name": "é", "status": "running", "started_at": at, "updated_at": at,
        "duration_ms": bson.Int64(2**60), "error": None, "metadata": {
            "date": at, "whole second": at.replace(microsecond=0), "long": bson.Int64(2**53 + 1), "exact": bson.Int64(2**53),
            "id": bson.ObjectId(), "binary": b"\x00\x01", "decimal": bson.Decimal128("1.50"), "nan": float("nan"),
            "infinite": [float("inf"), float("-inf")], "zero": -0.0, "one": 1.0, "nested": {"b": {"$oid": "x"}, "a.b": [[]]},
            "é": "\u0001\U0001f600", "": None,
        },
    }
    yield "executions", {"execution_id": "strange", "app_name": 5, "status": "waiting", "metadata": "text", "extra": 1}
    yield "execution_steps", {"execution_id": "odd", "step_id": 1.0, "step_name": "s", "status": "done", "input": None}
    yield "execution_steps", {"execution_id": "odd", "step_id": bson.Int64(2), "step_name": "s", "output": {}, "retry_count": 3.0}
    yield "execution_steps", {"execution_id": "of nobody", "step_id": 1, "step_name": "s", "output": [1, "x", None, 0.1]}
    yield "execution_artifacts", {"execution_id": None, "artifact_type": "log", "artifact_name": "a", "created_at": at}
    yield "execution_artifacts", {"execution_id": "odd", "step_id": 1, "artifact_name": "b", "size_bytes": 2.0}
    yield "execution_metrics", {"execution_id": "odd", "timestamp": at, "metrics": {"n": 1, "cost": 0.1}, "step_id": 4}
    yield "app_configurations", {"app_name": "é", "version": "1", "configuration": {"settings": {"n": 2.0}}, "active": True}


class Digests(unittest.TestCase):
    def test_they_can_be_computed_in_another_language(self):
        harness.stubs()
        mongodb = harness.shared_mongodb()
        self.addCleanup(mongodb.client.drop_database, "digests")
        database = mongodb.client["digests"]
        env = {"STEPWELL_RETENTION_METRICS": "0"}
        server = harness.Server(mongodb_uri=mongodb.uri, database="digests", env=env)
        self.addCleanup(server.stop)
        with tempfile.TemporaryDirectory() as folder:
            made_up(pathlib.Path(folder))
            harness.stepwell("import", folder, "--server", server.address)
        for collection, document in odd_documents():
            database[collection].insert_one(document)
        expected = totals(database)
        self.assertEqual(sum(count for count, _ in expected.values()), 2000 * 7 + 9)
        served = served_totals(server)
        for key in expected.keys() | served.keys():
            self.assertEqual(served.get(key), expected.get(key), key)


class Verify(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stepwell-verify-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.source = pathlib.Path(SETS) if SETS else self.folder / "source"
        if not SETS:
            self.source.mkdir()
            made_up(self.source)
        self.mongodb = harness.shared_mongodb()
        self.addCleanup(self.mongodb.client.drop_database, "verified")
        self.database = self.mongodb.client["verified"]
        env = {"STEPWELL_RETENTION_METRICS": "0"}
        self.a = harness.Server(env=env)
        self.addCleanup(self.a.stop)
        self.b = harness.Server(mongodb_uri=self.mongodb.uri, database="verified", env=env)
        self.addCleanup(self.b.stop)
        self.uri = self.mongodb.uri.replace("/?", "/verified?")

    def bring(self, server):
        harness.stepwell("import", str(self.source), "--server", server.address, "--assume-status", "completed", check=False)

    def verify(self, *args):
        report = self.folder / "report.jsonl"
        done = harness.stepwell("verify", *map(str, args), "--report", str(report), "--output", "json", check=False)
        self.assertIn(done.returncode, (0, 1, 2), done.stderr)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        summary = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        return done.returncode, lines, summary, done

    def grpc(self, server):
        return f"grpc://{server.address}"

    def test_the_same_records_are_equal_wherever_they_are(self):
        self.bring(self.a)
        self.bring(self.b)
        code, lines, summary, done = self.verify(self.grpc(self.a), self.grpc(self.b))
        self.assertEqual((code, lines), (0, []), done.stdout)
        self.assertEqual(summary["result"], "equal")
        counts = {name: facts["A"] for name, facts in summary["collections"].items()}
        self.assertEqual(counts, {name: facts["B"] for name, facts in summary["collections"].items()})
        self.assertGreater(counts["executions"], 0)
        self.assertGreater(counts["execution_steps"], 0)
        # The database itself, which is only read.
        self.b.stop()
        before = self.database.command("dbHash")["collections"]
        code, lines, summary, done = self.verify(self.uri, self.grpc(self.a))
        self.assertEqual((code, lines), (0, []), done.stdout + done.stderr)
        self.assertEqual({name: facts["A"] for name, facts in summary["collections"].items()}, counts)
        self.assertEqual(self.database.command("dbHash")["collections"], before)
        # The files that it all came from.
        code, lines, summary, done = self.verify(self.source, self.grpc(self.a), "--assume-status", "completed")
        refused = summary["unreadable_in_A"]
        self.assertEqual(lines, [], done.stdout + done.stderr)
        self.assertEqual(code, 2 if refused else 0, done.stdout)

    def test_planted_differences_are_all_found_and_none_is_invented(self):
        self.bring(self.a)
        self.bring(self.b)
        self.b.stop()
        chance = random.Random(5)
        database, planted = self.database, set()

        def some(collection, count):
            found = list(database[collection].aggregate([{"$sample": {"size": 4 * count}}, {"$sort": {"_id": 1}}]))
            chance.shuffle(found)
            return found

        def plant(collection, document, change, what):
            key = (collection, document["execution_id"], document.get("step_id"))
            if any(known[:3] == key for known in planted):
                return False
            if change is None:
                database[collection].delete_one({"_id": document["_id"]})
            else:
                database[collection].update_one({"_id": document["_id"]}, change)
            planted.add((*key, what))
            return True

        wanted = 40
        for document in some("executions", wanted)[:wanted]:
            change, what = chance.choice([
                ({"$set": {"user_id": "planted"}}, ("user_id",)),
                ({"$set": {"metadata.planted": 0.5}}, ("metadata",)),
                ({"$set": {"duration_ms": 123456789, "error": "planted"}}, ("duration_ms", "error")),
            ])
            plant("executions", document, change, what)
        for document in some("execution_steps", wanted)[:wanted]:
            change, what = chance.choice([
                ({"$set": {"output": ["planted"]}}, ("output",)),
                ({"$set": {"retry_count": 77}}, ("retry_count",)),
                (None, "missing_in_B"),
            ])
            plant("execution_steps", document, change, what)
        for n in range(20):
            document = {"execution_id": f"only in B {n}", "app_name": "planted", "status": "failed"}
            database["executions"].insert_one(document)
            planted.add(("executions", document["execution_id"], None, "missing_in_A"))
        at = datetime.datetime(2026, 1, 1)
        database["execution_metrics"].insert_one({"execution_id": "only in B 1", "timestamp": at, "metrics": {"n": 1.0}})
        code, lines, summary, done = self.verify(self.grpc(self.a), self.uri)
        self.assertEqual(code, 1, done.stderr)
        points = [line for line in lines if line["kind"] == "metric_point"]
        self.assertEqual([line["missing_in"] for line in points], ["A"])
        kinds = {"execution": "executions", "step": "execution_steps"}
        found = {
            (kinds[line["kind"]], line["execution_id"], line.get("step_id"),
             tuple(line["fields"]) if "fields" in line else f"missing_in_{line['missing_in']}")
            for line in lines
            if line["kind"] != "metric_point"
        }
        self.assertEqual(found, planted)
        self.assertEqual(len(lines), len(planted) + 1)
        self.assertEqual(summary["differences"], len(lines))
        # A part of it, and with values.
        name = next(what for what in planted if what[3] == ("user_id",))
        user = ["--user", "planted"]
        code, lines, _, done = self.verify(self.grpc(self.a), self.uri, *user, "--values")
        self.assertTrue(lines and all(line["missing_in"] == "A" for line in lines), "of A none has this user")
        self.assertIn(name[1], {line["execution_id"] for line in lines})

    def test_nothing_is_invented_while_both_sides_change(self):
        from stepwell.v1 import common_pb2, ingest_service_pb2, ingest_service_pb2_grpc

        self.bring(self.a)
        self.bring(self.b)
        stop, made = threading.Event(), []

        def put(server, writes):
            stub = ingest_service_pb2_grpc.IngestServiceStub(server.channel)
            requests = [ingest_service_pb2.IngestRequest(sequence=n, **write) for n, write in enumerate(writes)]
            for answer in stub.Ingest(iter(requests)):
                assert answer.WhichOneof("result") != "error", answer

        def work():
            n = 0
            while not stop.is_set():
                writes = []
                for _ in range(20):
                    n += 1
                    from stepwell.v1 import execution_service_pb2 as executions

                    record = executions.Execution(execution_id=f"new-{n}", app_name="app", status=2)
                    step = common_pb2.Step(execution_id=f"new-{n}", step_id=1, step_name="s", status=3)
                    writes += [{"put_execution": record}, {"put_step": step}]
                put(self.a, writes)
                # As a mirror, which is a little behind.
                stop.wait(0.3)
                put(self.b, writes)
                made.append(n)

        writer = threading.Thread(target=work)
        writer.start()
        try:
            harness.wait_until("something is written", lambda: len(made) > 2)
            for _ in range(3):
                code, lines, summary, done = self.verify(self.grpc(self.a), self.grpc(self.b))
                self.assertEqual((code, lines), (0, []), done.stdout)
        finally:
            stop.set()
            writer.join()

    def test_what_cannot_be_checked_is_neither_equal_nor_different(self):
        nobody = f"grpc://127.0.0.1:{harness.free_port()}"
        code, _, _, done = self.verify(self.grpc(self.a), nobody)
        self.assertEqual(code, 2, done.stdout)
        self.assertTrue(done.stderr)
        self.assertEqual(self.verify(self.folder / "absent", self.grpc(self.a))[0], 2)
        code, _, _, done = self.verify("mongodb://127.0.0.1:1/?", self.grpc(self.a))
        self.assertEqual(code, 2)
        self.assertIn("name of the database", done.stderr)


if __name__ == "__main__":
    unittest.main()

"""verify: digests as docs/moving.md has them, computed here from the documents alone; and two databases compared, equal
and with differences planted, at rest and while both change.

$STEPWELL_DATA_SETS may name a folder with real run records (see test_real_data); without one records are made up.
$STEPWELL_VERIFY_EXECUTIONS says how many executions, each with ten steps, two databases of MongoDB have that are compared as a
whole (2,000); how long that takes, and the memory at most, are printed:

    STEPWELL_VERIFY_EXECUTIONS=1000000 python -m unittest test_verify.Large
"""

import base64
import concurrent.futures
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
import time
import unittest
import uuid

import bson
import harness
import pymongo
from test_moving import made_up

SETS = os.environ.get("STEPWELL_DATA_SETS")
LARGE = int(os.environ.get("STEPWELL_VERIFY_EXECUTIONS", "2000"))
STEPS_EACH = 10
DIFFERENCES = 100
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


def name_of(n):
    """The id of the execution of this number: as any other UUID, and never twice."""
    return str(uuid.UUID(int=(n + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4))


def load(uri, database, numbers):
    """Executions of these numbers with their steps, as servers store them."""
    start = datetime.datetime(2026, 3, 1, 12)
    with pymongo.MongoClient(uri, w=1, journal=False) as client:
        for begin in range(numbers.start, numbers.stop, 500):
            executions, steps = [], []
            for n in range(begin, min(begin + 500, numbers.stop)):
                identity, revision = name_of(n), bson.Int64(1_772_366_400_000_000 + n)
                began = start + datetime.timedelta(milliseconds=n)
                ended = began + datetime.timedelta(milliseconds=n % 10_000)
                executions.append({
                    "execution_id": identity, "app_id": None, "app_name": f"app-{n % 20}", "sub_app_id": None,
                    "sub_app_name": None, "user_id": f"user-{n % 1000}", "status": "completed", "started_at": began,
                    "completed_at": ended, "duration_ms": bson.Int64(n % 10_000), "error": None,
                    "metadata": {"n": float(n), "tags": ["a", "b"]}, "created_at": began, "updated_at": ended,
                    "revision": revision, "last_change": f"{identity}//{revision}",
                })
                for step_id in range(1, 1 + STEPS_EACH):
                    steps.append({
                        "execution_id": identity, "step_id": step_id, "step_name": f"step {step_id}", "step_version": None,
                        "status": "completed", "started_at": began, "completed_at": ended,
                        "duration_ms": bson.Int64(n % 10_000), "input": {"query": {"n": float(n), "texts": ["x" * (n % 200)]}},
                        "output": {"answer": f"of {n} and {step_id}", "score": n / 7}, "error": None, "retry_count": 0,
                        "metadata": {}, "revision": revision, "created_at": began, "updated_at": ended,
                        "last_change": f"{identity}/{step_id}/{revision}",
                    })
            client[database].executions.insert_many(executions, ordered=False)
            client[database].execution_steps.insert_many(steps, ordered=False)


class Large(unittest.TestCase):
    maxDiff = 2000

    def verify(self, *args):
        """The exit code of a comparison, its summary and the lines of its report; time and memory are printed."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            command = [harness.binary(), "verify", *args, "--output", "json", "--report", str(folder / "report")]
            began = time.monotonic()
            with open(folder / "out", "wb") as out, open(folder / "error", "wb") as error:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=error)
                _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            took = time.monotonic() - began
            self.assertIn(child.returncode, (0, 1), (folder / "error").read_text())
            lines = [json.loads(line) for line in (folder / "report").read_text().splitlines()]
            summary = json.loads((folder / "out").read_text().splitlines()[-1])
        print(f"{LARGE} executions with {STEPS_EACH} steps each, {len(lines)} differences: {took:.1f} s, "
              f"{used.ru_utime + used.ru_stime:.1f} s of CPU, {used.ru_maxrss // 1024} MiB at most")
        return child.returncode, summary, lines

    def database(self, mongodb, name):
        mongodb.client.drop_database(name)
        self.addCleanup(mongodb.client.drop_database, name)
        return mongodb.client[name]

    def test_every_difference_is_found_among_many_records(self):
        mongodb = harness.shared_mongodb()
        a, b = self.database(mongodb, "large_a"), self.database(mongodb, "large_b")
        began = time.monotonic()
        pieces = [range(begin, min(begin + 5_000, LARGE)) for begin in range(0, LARGE, 5_000)]
        with concurrent.futures.ProcessPoolExecutor(2) as workers:
            list(workers.map(load, [mongodb.uri] * len(pieces), ["large_a"] * len(pieces), pieces))
        for name in ("executions", "execution_steps"):
            a[name].aggregate([{"$out": {"db": "large_b", "coll": name}}])
        for database in (a, b):
            database.executions.create_index("execution_id", unique=True)
            database.execution_steps.create_index([("execution_id", 1), ("step_id", 1)], unique=True)
        print(f"loaded in {time.monotonic() - began:.0f} s")
        sides = [mongodb.uri.replace("/?", f"/{name}?") for name in ("large_a", "large_b")]
        code, summary, lines = self.verify(*sides)
        self.assertEqual((code, summary["result"], lines), (0, "equal", []))
        counts = {name: summary["collections"][name]["A"] for name in ("executions", "execution_steps")}
        self.assertEqual(counts, {"executions": LARGE, "execution_steps": LARGE * STEPS_EACH})
        planted = self.plant(a, b)
        code, summary, lines = self.verify(*sides)
        kinds = {"execution": "executions", "step": "execution_steps"}
        found = [
            (kinds[line["kind"]], line["execution_id"], line.get("step_id"),
             tuple(line["fields"]) if "fields" in line else f"missing_in_{line['missing_in']}")
            for line in lines
        ]
        self.assertEqual((code, len(found)), (1, DIFFERENCES))
        self.assertEqual(set(found), planted)

    def plant(self, a, b):
        """Each of another record, so that none hides another."""
        chance, planted = random.Random(9), set()
        numbers = chance.sample(range(LARGE), DIFFERENCES)
        for n, number in enumerate(numbers):
            identity, step_id = name_of(number), chance.randint(1, STEPS_EACH)
            execution, step = {"execution_id": identity}, {"execution_id": identity, "step_id": step_id}
            of_execution, of_step = ("executions", identity, None), ("execution_steps", identity, step_id)
            side = chance.choice([a, b])
            match n % 7:
                case 0:
                    done = side.executions.update_one(execution, {"$set": {"user_id": "planted"}}).modified_count
                    planted.add((*of_execution, ("user_id",)))
                case 1:
                    change = {"status": "failed", "error": "planted", "metadata.n": 0.5}
                    done = side.executions.update_one(execution, {"$set": change}).modified_count
                    planted.add((*of_execution, ("status", "error", "metadata")))
                case 2:
                    done = side.execution_steps.update_one(step, {"$set": {"input.query.texts.0": "planted"}}).modified_count
                    planted.add((*of_step, ("input",)))
                case 3:
                    change = {"$inc": {"retry_count": 1}, "$set": {"completed_at": None}}
                    done = side.execution_steps.update_one(step, change).modified_count
                    planted.add((*of_step, ("completed_at", "retry_count")))
                case 4:
                    done = side.executions.delete_one(execution).deleted_count
                    planted.add((*of_execution, "missing_in_A" if side is a else "missing_in_B"))
                case 5:
                    done = side.execution_steps.delete_one(step).deleted_count
                    planted.add((*of_step, "missing_in_A" if side is a else "missing_in_B"))
                case 6:
                    more = {**side.execution_steps.find_one(step, {"_id": 0}), "step_id": STEPS_EACH + 1}
                    done = side.execution_steps.insert_one(more).acknowledged
                    planted.add(("execution_steps", identity, STEPS_EACH + 1, "missing_in_B" if side is a else "missing_in_A"))
            self.assertTrue(done, numbers)
        return planted


if __name__ == "__main__":
    unittest.main()

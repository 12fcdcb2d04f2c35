"""Imports real run records, on both stores, and compares what is stored with the files, field by field.

$STEPWELL_DATA_SETS is a folder with one folder per set, and a `manifest.json` that counts the documents of each
file; without one every folder with executions is a set. A set has `executions`,
`execution_steps` and `app_configurations` as `.jsonl` or `.jsonl.gz`, in Extended JSON, or some of them.
"""

import calendar
import datetime
import gzip
import json
import os
import pathlib
import re
import time
import unittest

import pymongo
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

import harness

MOMENT = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)"
SETS = os.environ.get("STEPWELL_DATA_SETS")


def documents(path):
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as lines:
        return [json.loads(line) for line in lines if line.strip()]


def of_kind(folder, kind):
    """The documents of the files `kind.jsonl` and `kind.jsonl.gz` of a set."""
    return [
        document
        for name in (f"{kind}.jsonl", f"{kind}.jsonl.gz")
        if (folder / name).exists()
        for document in documents(folder / name)
    ]


def plain(value):
    """A value of Extended JSON as the API shows it."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$date"}:
        date = value["$date"]
        return date if isinstance(date, str) else int(date["$numberLong"])
    if len(value) == 1 and next(iter(value)) in ("$numberInt", "$numberLong"):
        return int(next(iter(value.values())))
    if set(value) == {"$numberDouble"}:
        return float(value["$numberDouble"])
    return {key: plain(item) for key, item in value.items()}


def milliseconds(value):
    """A date of Extended JSON as milliseconds of Unix time; None for none."""
    if value is None:
        return None
    date = plain(value)
    if isinstance(date, int):
        return date
    moment = re.fullmatch(MOMENT, date)
    seconds = time.strptime(moment[1], "%Y-%m-%dT%H:%M:%S")
    fraction = int(((moment[2] or ".0")[1:] + "000")[:3])
    offset = 0
    if moment[3] != "Z":
        sign = -1 if moment[3][0] == "-" else 1
        hours, minutes = moment[3][1:3], moment[3][-2:]
        offset = sign * (int(hours) * 3600 + int(minutes) * 60)


    return (calendar.timegm(seconds) - offset) * 1000 + fraction


def simple(value):
    """Numbers and times of one form, so that 1 and 1.0, or .9Z and .900Z, compare equal inside objects too."""
    if isinstance(value, str) and re.fullmatch(MOMENT, value):
        return ("time", milliseconds({"$date": value}))
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return float(value) if abs(value) <= 2**53 else str(value)
    if isinstance(value, list):
        return [simple(item) for item in value]
    return {key: simple(item) for key, item in value.items()}


def moment(message, field):
    return getattr(message, field).ToMilliseconds() if message.HasField(field) else None


def optional(message, field):
    return getattr(message, field) if message.HasField(field) else None


# The points of the sets are older than what is kept unless told otherwise.
KEEP_POINTS = {"STEPWELL_RETENTION_METRICS": "0"}


class Cases:
    @classmethod
    def setUpClass(cls):
        cls.pb = harness.stubs()
        cls.root = pathlib.Path(SETS)
        manifest = cls.root / "manifest.json"
        cls.manifest = json.loads(manifest.read_text()) if manifest.exists() else None
        sets = cls.manifest or {path.parent.name for path in cls.root.glob("*/executions.jsonl*")}
        cls.sets = sorted(sets)
        assert cls.sets, f"no sets in {SETS}"

    def count(self, name, kind):
        """What the manifest says of one kind of documents in a set; without one, what the files have."""
        if self.manifest is None:
            return len(of_kind(self.root / name, kind))
        return sum(
            facts["documents"]
            for file, facts in self.manifest[name].items()
            if file in (f"{kind}.jsonl", f"{kind}.jsonl.gz")
        )

    def list_executions(self, server):
        stub = self.pb.execution_grpc.ExecutionServiceStub(server.channel)
        request, found = self.pb.execution.ListExecutionsRequest(page_size=100), {}
        while True:
            page = stub.ListExecutions(request)
            for execution in page.executions:
                self.assertNotIn(execution.execution_id, found, "listed twice")
                found[execution.execution_id] = execution
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def list_steps(self, server, execution_id):
        stub = self.pb.step_grpc.StepServiceStub(server.channel)
        request, found = self.pb.step.ListStepsRequest(execution_id=execution_id, page_size=500), []
        while True:
            page = stub.ListSteps(request)
            found += page.steps
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def compare_execution(self, document, stored):
        status = document.get("status") or "completed"
        name = self.pb.common.ExecutionStatus.Name(stored.status)
        self.assertEqual(name, f"EXECUTION_STATUS_{status.upper()}")
        for field in ("app_id", "sub_app_id", "sub_app_name", "user_id", "duration_ms"):
            expected = document.get(field)
            self.assertEqual(optional(stored, field), plain(expected), (stored.execution_id, field))
        self.assertEqual(stored.app_name, document["app_name"])
        for field in ("started_at", "completed_at"):
            self.assertEqual(moment(stored, field), milliseconds(document.get(field)), field)
        self.assertEqual(stored.error.message if stored.HasField("error") else None, document.get("error"))
        metadata = simple(json_format.MessageToDict(stored.metadata))
        self.assertEqual(metadata, simple(plain(document.get("metadata") or {})))

    def compare_step(self, document, stored):
        status = document.get("status") or "completed"
        self.assertEqual(self.pb.common.StepStatus.Name(stored.status), f"STEP_STATUS_{status.upper()}")
        if isinstance(document["step_id"], str):
            self.assertEqual(stored.step_key, document["step_id"])
        else:
            self.assertEqual(stored.step_id, plain(document["step_id"]))
        self.assertEqual(stored.step_name, document["step_name"])
        self.assertEqual(optional(stored, "duration_ms"), plain(document.get("duration_ms")))
        self.assertEqual(stored.retry_count, plain(document.get("retry_count")) or 0)
        for field in ("started_at", "completed_at"):
            self.assertEqual(moment(stored, field), milliseconds(document.get(field)), field)
        for field in ("input", "output"):
            expected = document.get(field)
            if field == "input" and expected is None:
                expected = {}
            shown = None
            if stored.HasField(field):
                shown = json_format.MessageToDict(getattr(stored, field))
            self.assertEqual(simple(shown), simple(plain(expected)), (stored.execution_id, stored.step_id, field))
        metadata = simple(json_format.MessageToDict(stored.metadata))
        self.assertEqual(metadata, simple(plain(document.get("metadata") or {})))

    def watched(self, server, execution_id):
        """Kinds of the events of a watch of an ended execution, which ends by itself."""
        stub = self.pb.execution_grpc.ExecutionServiceStub(server.channel)
        request = self.pb.execution.WatchExecutionRequest(execution_id=execution_id, include_steps=True)
        return [event.WhichOneof("event") for event in stub.WatchExecution(request, timeout=60)]

    def test_every_set(self):
        with self.server() as server:
            seen = {}
            for name in self.sets:
                folder = self.root / name
                for again in (False, True):
                    done = harness.stepwell(
                        "import", str(folder), "--assume-status", "completed", "--server", server.address,
                        "--output", "json",
                    )
                    self.assertEqual(done.returncode, 0, (name, again, done.stdout, done.stderr))
                    files = json.loads(done.stdout)["files"]
                    self.check_configurations(server, name, again, files)
                    for kind in ("execution_artifacts", "execution_metrics"):
                        counts = [file for file in files if file["collection"] == kind]
                        there = sum(file["already_there" if again else "stored"] for file in counts)
                        self.assertEqual(there, self.count(name, kind), (name, kind, again))
                executions, steps = of_kind(folder, "executions"), of_kind(folder, "execution_steps")
                self.assertEqual(len(executions), self.count(name, "executions"))
                self.assertEqual(len(steps), self.count(name, "execution_steps"))
                seen.update({document["execution_id"]: document for document in executions})
                listed = self.list_executions(server)
                self.assertEqual(set(listed), set(seen), f"after {name}")
                by_execution = {}
                for document in steps:
                    by_execution.setdefault(document["execution_id"], []).append(document)
                stored_steps = 0
                for document in executions:
                    id = document["execution_id"]
                    self.compare_execution(document, listed[id])
                    stored = self.list_steps(server, id)
                    stored_steps += len(stored)
                    self.check_steps(server, id, by_execution.get(id, []), stored)
                self.assertEqual(stored_steps, self.count(name, "execution_steps"), name)
                print(f"{server.store}: {name}: {len(executions)} executions, {stored_steps} steps", flush=True)
            self.look_at_them(server, seen)
            self.ask_as_before(server, seen)

    def all_ids(self, server, order="EXECUTION_ORDER_STARTED_AT_DESC", **fields):
        stub = self.pb.execution_grpc.ExecutionServiceStub(server.channel)
        request, ids = self.pb.execution.ListExecutionsRequest(page_size=100, order=order), []
        request.filter.CopyFrom(self.pb.common.ExecutionFilter(**fields))
        while True:
            page = stub.ListExecutions(request)
            ids += [execution.execution_id for execution in page.executions]
            if not page.next_page_token:
                counted = self.pb.execution.CountExecutionsRequest(filter=request.filter)
                answer = stub.CountExecutions(counted)
                self.assertEqual((answer.count, answer.exact), (len(ids), True), fields)
                return ids
            request.page_token = page.next_page_token

    def ask_as_before(self, server, seen):
        """The queries that programs ran on the documents themselves have the same answers through the API."""
        records = [
            (milliseconds(document.get("started_at")), id, document.get("status") or "completed", document)
            for id, document in seen.items()
        ]
        times = sorted(at for at, *_ in records if at is not None)
        since = times[len(times) // 2]
        moment = Timestamp()
        moment.FromMilliseconds(since)
        users = sorted({document.get("user_id") for *_, document in records if document.get("user_id")})
        apps = sorted({document["app_name"] for *_, document in records})
        status = self.pb.common.ExecutionStatus.Value
        failed, running = status("EXECUTION_STATUS_FAILED"), status("EXECUTION_STATUS_RUNNING")
        asked = [({"user_id": user}, {"user_ids": [user]}) for user in users[:20]]
        asked += [({"status": "failed", "since": since}, {"statuses": [failed], "started_at_from": moment})]
        asked += [({"app_name": app, "status": "running"}, {"app_names": [app], "statuses": [running]}) for app in apps[:20]]
        for wanted, fields in asked:
            expected = [
                (at if at is not None else -(2**63), id)
                for at, id, state, document in records
                if ("user_id" not in wanted or document.get("user_id") == wanted["user_id"])
                and ("app_name" not in wanted or document["app_name"] == wanted["app_name"])
                and ("status" not in wanted or state == wanted["status"])
                and ("since" not in wanted or at is not None and at >= wanted["since"])
            ]
            expected = [id for _, id in sorted(expected, reverse=True)]
            self.assertEqual(self.all_ids(server, **fields), expected, wanted)
            self.assertEqual(self.all_ids(server, "EXECUTION_ORDER_STARTED_AT_ASC", **fields), expected[::-1], wanted)
            self.compare_with_driver(server, wanted, expected)
        print(f"{server.store}: {len(asked)} lists as by hand", flush=True)

    def compare_with_driver(self, server, wanted, expected):
        pass

    def check_configurations(self, server, name, again, files):
        """Of the same app, part and version the first is stored; the others have to say the same, and do."""
        documents = of_kind(self.root / name, "app_configurations")
        self.assertEqual(len(documents), self.count(name, "app_configurations"))
        if not documents:
            return
        first = {}
        for document in documents:
            app = (document["app_id"], document["sub_app_id"])
            if app[0] is None:
                app = (document["app_name"], document["sub_app_name"])
            stored = first.setdefault((*app, document["version"]), document)
            for field in ("app_name", "sub_app_name", "configuration", "created_by"):
                self.assertEqual(document[field], stored[field], "they collide for good")
        [counts] = [file for file in files if file["collection"] == "app_configurations"]
        new = 0 if again else len(first)
        expected = {"documents": len(documents), "stored": new, "already_there": len(documents) - new, "refused": 0}
        self.assertEqual({key: counts[key] for key in expected}, expected, (name, again))

        stub = self.pb.configuration_grpc.ConfigurationServiceStub(server.channel)
        for document in first.values():
            named = {key: document[key] for key in ("app_id", "app_name", "sub_app_id", "sub_app_name", "version")}
            request = self.pb.configuration.GetConfigurationRequest(**named)
            stored = stub.GetConfiguration(request).configuration
            for field in ("app_id", "sub_app_id", "sub_app_name", "created_by"):
                self.assertEqual(optional(stored, field), document[field], field)
            self.assertEqual((stored.app_name, stored.version), (document["app_name"], document["version"]))
            self.assertEqual(stored.active, bool(document["active"]))
            self.assertEqual(moment(stored, "created_at"), milliseconds(document["created_at"]))
            shown = json_format.MessageToDict(stored.configuration)
            self.assertEqual(simple(shown), simple(plain(document["configuration"])))
        if not again:
            print(f"{server.store}: {name}: {len(first)} of {len(documents)} configurations stored", flush=True)

    def check_steps(self, server, execution_id, documents, stored):
        self.assertEqual([step.step_id for step in stored], sorted(step.step_id for step in stored))
        stub = self.pb.step_grpc.StepServiceStub(server.channel)
        calls = []
        for document in documents:
            named = {"step_key" if isinstance(document["step_id"], str) else "step_id": plain(document["step_id"])}
            request = self.pb.step.GetStepRequest(execution_id=execution_id, **named)
            calls.append((document, stub.GetStep.future(request)))
            if len(calls) == 200:
                self.compare_steps(calls)
        self.compare_steps(calls)

    def compare_steps(self, calls):
        for document, call in calls:
            self.compare_step(document, call.result().step)
        calls.clear()

    def look_at_them(self, server, seen):
        """The commands on real input: list, show, watch."""
        address = ("--server", server.address)
        listed = harness.stepwell("executions", "list", *address)
        self.assertTrue(listed.stdout.strip())
        some = list(seen)[:: max(1, len(seen) // 10)]
        for id in some:
            shown = harness.stepwell_json("executions", "show", id, *address)
            self.assertIn(id, json.dumps(shown))
            status = seen[id].get("status") or "completed"
            steps = len(self.list_steps(server, id))
            if status != "running":
                kinds = self.watched(server, id)
                self.assertEqual(kinds[0], "execution")
                self.assertEqual(kinds.count("step"), steps)
                self.assertIn("snapshot_complete", kinds)
                watched = harness.stepwell("executions", "watch", id, *address, check=False)
                self.assertEqual(watched.returncode, 0 if status == "completed" else 1, watched.stderr)


@unittest.skipUnless(SETS, "no real data: set STEPWELL_DATA_SETS")
class OnSqlite(Cases, unittest.TestCase):
    def server(self):
        server = harness.Server(env=KEEP_POINTS)
        server.store = "sqlite"
        return server


@unittest.skipUnless(SETS, "no real data: set STEPWELL_DATA_SETS")
class OnMongoDB(Cases, unittest.TestCase):
    def server(self):
        name = f"data_{time.time_ns()}"
        server = harness.Server(harness.shared_mongodb().uri, database=name, env=KEEP_POINTS)
        server.store = "mongodb"
        server.documents = pymongo.MongoClient(harness.shared_mongodb().uri)[name]
        return server

    def compare_with_driver(self, server, wanted, expected):
        """The same through the driver, on the documents that the server reads."""
        query = {key: value for key, value in wanted.items() if key != "since"}
        if "since" in wanted:
            moment = datetime.datetime.fromtimestamp(wanted["since"] / 1000, datetime.timezone.utc)
            query["started_at"] = {"$gte": moment}
        found = server.documents.executions.find(query).sort([("started_at", -1), ("execution_id", -1)])
        self.assertEqual([document["execution_id"] for document in found], expected, query)


if __name__ == "__main__":
    unittest.main(verbosity=2)

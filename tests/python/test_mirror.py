"""A program that writes documents straight into MongoDB is mirrored into a Stepwell server while it writes, over kills of the
mirror; then both sides are compared, and the mirror is finished. And one server is mirrored into another.

Needs grpcio, grpcio-tools and pymongo. `STEPWELL_MIRROR_SECONDS` says how long the program writes (10), and
`STEPWELL_MIRROR_RATE` how many changes a second (300).
"""

import datetime
import json
import os
import pathlib
import random
import shutil
import signal
import tempfile
import threading
import time
import unittest
import uuid

import harness

SECONDS = float(os.environ.get("STEPWELL_MIRROR_SECONDS", "10"))
RATE = float(os.environ.get("STEPWELL_MIRROR_RATE", "300"))


def now():
    return datetime.datetime.now(datetime.timezone.utc)


class App:
    """Keeps its own ids, and knows nothing of Stepwell."""

    def __init__(self, database, seed):
        self.db = database
        self.random = random.Random(seed)
        self.running = []
        self.changes = 0

    def execution(self):
        identity = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        self.db.executions.insert_one({
            "execution_id": identity, "app_id": 7, "app_name": "billing", "sub_app_id": None, "sub_app_name": None,
            "user_id": f"user-{self.random.randrange(9)}", "status": "running", "started_at": now(),
            "completed_at": None, "duration_ms": None, "error": None,
            "metadata": {"n": self.random.randrange(1000), "nested": {"a.b": [1, 2.5, None]}},
            "created_at": now(), "updated_at": now(),
        })
        self.running.append([identity, 0])
        return identity

    def step(self, run):
        run[1] += 1
        self.db.execution_steps.insert_one({
            "execution_id": run[0], "step_id": run[1], "step_name": self.random.choice(["load", "ask", "store"]),
            "step_version": "1", "status": "completed", "started_at": now(), "completed_at": now(), "duration_ms": 3,
            "input": {"text": "x" * self.random.randrange(300)}, "output": self.random.choice([None, "text", [1], {"a": 1}]),
            "error": None, "retry_count": 0, "metadata": {},
        })

    def end(self, run):
        self.db.executions.update_one({"execution_id": run[0]}, {"$set": {
            "status": self.random.choice(["completed", "failed"]), "completed_at": now(), "duration_ms": 12,
            "error": None, "updated_at": now(),
        }})
        self.running.remove(run)

    def change(self):
        """One change."""
        self.changes += 1
        what = self.random.random()
        if not self.running or what < 0.1:
            return self.execution()
        run = self.random.choice(self.running)
        if what < 0.6:
            return self.step(run)
        if what < 0.7:
            # No time and no revision: only the log says that something changed.
            return self.db.execution_steps.update_one(
                {"execution_id": run[0], "step_id": 1}, {"$set": {"output": {"again": self.changes}}})
        if what < 0.8:
            return self.db.executions.update_one(
                {"execution_id": run[0]}, {"$set": {"metadata.progress": self.changes}})
        if what < 0.86:
            return self.db.execution_artifacts.insert_one({
                "execution_id": run[0], "step_id": 1, "artifact_type": "log", "artifact_name": f"{self.changes}.txt",
                "mime_type": "text/plain", "size_bytes": 3, "storage_type": "local", "storage_path": "file:/x",
                "metadata": {}, "created_at": now(),
            })
        if what < 0.92:
            return self.db.execution_metrics.insert_one({
                "timestamp": now().replace(microsecond=0), "execution_id": run[0], "metrics": {"tokens": self.changes},
            })
        if what < 0.94:
            # Nobody tells the log which record that was.
            self.running.remove(run)
            for name in ["execution_steps", "execution_artifacts", "execution_metrics", "executions"]:
                self.db[name].delete_many({"execution_id": run[0]})
            return None
        if what < 0.96:
            self.db.app_configurations.update_many({"app_id": 7}, {"$set": {"active": False}})
            return self.db.app_configurations.insert_one({
                "app_id": 7, "app_name": "billing", "sub_app_id": None, "sub_app_name": None, "version": str(self.changes),
                "configuration": {"steps": [], "n": self.changes}, "active": True, "created_at": now(), "created_by": "me",
            })
        return self.end(run)

    def write_for(self, seconds, rate):
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            self.change()
            ahead = self.changes / rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)


class Mirror(harness.Process):
    """`stepwell mirror`, as it runs."""

    def __init__(self, source, target, name, *more):
        to = ["--to", f"grpc://{target.address}", "--name", name]
        super().__init__("mirror", [harness.binary(), "mirror", source, *to, *more])

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


class Mirrors(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stepwell-mirror-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.mongodb = harness.shared_mongodb()
        self.name = "moving"

    def database(self, name):
        self.mongodb.client.drop_database(name)
        self.addCleanup(self.mongodb.client.drop_database, name)
        return self.mongodb.client[name]

    def serve(self, **options):
        server = harness.Server(**options)
        self.addCleanup(server.stop)
        return server

    def status(self):
        """Nothing before it has begun."""
        to = ["--to", f"grpc://{self.target.address}", "--output", "json"]
        found = harness.stepwell("mirror", "status", self.name, *to, check=False)
        return json.loads(found.stdout) if found.returncode == 0 else {}

    def finish(self):
        to = ["--to", f"grpc://{self.target.address}", "--output", "json"]
        return harness.stepwell("mirror", "finish", self.name, *to, check=False)

    def caught_up(self):
        harness.wait_until("the mirror has caught up", lambda: self.status().get("lag_ms") == 0, 120)

    def caught_up_with_what_is_written(self):
        """What was written before this has been read, too: the mirror has read something later."""
        position = self.status()["position"]
        harness.wait_until("the mirror reads on", lambda: self.status()["position"] > position, 60)
        self.caught_up()

    def verify(self, expected):
        target = f"grpc://{self.target.address}"
        done = harness.stepwell("verify", self.source, target, "--mirror", self.name, check=False)
        self.assertEqual(done.returncode, expected, done.stdout + done.stderr)

    def mirror_a_program(self):
        database = self.database("app_of_others")
        database.create_collection(
            "execution_metrics", timeseries={"timeField": "timestamp", "metaField": "execution_id"})
        self.source = self.mongodb.uri.replace("/?", f"/{database.name}?")
        before = {name for name in database.list_collection_names() if not name.startswith("system.")}
        app = App(database, 11)
        app.write_for(2, RATE)
        # What is no record, and a step without an execution.
        database.executions.insert_one({"execution_id": "bad id", "app_name": "", "status": "unheard of"})
        database.execution_steps.insert_one({
            "execution_id": "nobody", "step_id": 1, "step_name": "lonely", "status": "completed", "metadata": {},
            "input": {}, "output": None, "retry_count": 0,
        })
        refused, lags, stop = self.folder / "refused.jsonl", [], threading.Event()
        more = ["--refused", str(refused)]

        def watch():
            while not stop.wait(0.2):
                found = self.status()
                if found.get("phase") == "following":
                    lags.append(found["lag_ms"])

        writer = threading.Thread(target=app.write_for, args=(SECONDS, RATE))
        watcher = threading.Thread(target=watch)
        writer.start()
        watcher.start()
        kills = 0
        while writer.is_alive():
            with Mirror(self.source, self.target, self.name, *more) as mirror:
                writer.join(app.random.uniform(1, 4))
                mirror.check_alive()
                if writer.is_alive():
                    mirror.kill()
                    kills += 1
        self.assertGreater(kills, 0)
        mirror = Mirror(self.source, self.target, self.name, *more)
        self.addCleanup(mirror.stop)
        self.caught_up()
        stop.set()
        watcher.join()
        # What is no record here is told, and nothing else differs.
        self.verify(1)
        self.assertEqual(self.finish().returncode, 1)
        found = self.status()
        self.assertEqual((found["phase"], found["conflicts"]), ("following", 0), found)
        lines = [json.loads(line) for line in refused.read_text().splitlines()]
        told = {(line["collection"], line["document"]["execution_id"]) for line in lines}
        self.assertLessEqual({("executions", "bad id"), ("execution_steps", "nobody")}, told)
        for collection, identity in told - {("executions", "bad id"), ("execution_steps", "nobody")}:
            # Its execution went while its step was on the way.
            self.assertIsNone(database.executions.find_one({"execution_id": identity}), (collection, identity))
        database.executions.delete_one({"execution_id": "bad id"})
        database.execution_steps.delete_one({"execution_id": "nobody"})
        self.caught_up_with_what_is_written()
        self.verify(0)
        # A change after the comparison.
        app.execution()
        self.caught_up_with_what_is_written()
        self.assertIn("changed", self.finish().stderr)
        self.verify(0)
        self.assertEqual(self.finish().returncode, 0)
        self.assertEqual(self.status()["phase"], "finished")
        harness.wait_until("the mirror ends by itself", lambda: mirror.child.poll() is not None)
        self.assertEqual(mirror.child.returncode, 0, mirror.log())
        # Nothing but the program wrote to its database.
        ours = {name for name in database.list_collection_names() if not name.startswith("system.")}
        self.assertEqual({name for name in ours - before if name.startswith("stepwell")}, set())
        known = sorted(lag for lag in lags if lag is not None)
        p50, p99 = (known[len(known) // 2], known[len(known) * 99 // 100]) if known else (None, None)
        print(f"{app.changes} changes, {kills} kills, lag p50 {p50} ms, p99 {p99} ms of {len(known)} looks")
        return app, database

    def test_a_program_that_writes_to_mongodb_moves_to_sqlite(self):
        self.target = self.serve()
        self.mirror_a_program()

    def test_a_program_that_writes_to_mongodb_moves_to_mongodb(self):
        self.database("moved_here")
        self.target = self.serve(mongodb_uri=self.mongodb.uri, database="moved_here")
        app, database = self.mirror_a_program()
        # The program's own ids, and the documents as it wrote them.
        for document in database.executions.find().limit(50):
            moved = self.mongodb.client["moved_here"].executions.find_one({"execution_id": document["execution_id"]})
            self.assertEqual({name: moved[name] for name in document if name != "_id"},
                             {name: value for name, value in document.items() if name != "_id"})
            self.assertEqual(moved["mirrored_revision"], moved["revision"])
            self.assertGreater(moved["mirrored_position"], 0)

    def test_steps_without_an_execution_are_given_one(self):
        self.target = self.serve()
        database = self.database("of_steps_alone")
        self.source = self.mongodb.uri.replace("/?", f"/{database.name}?")
        for number in range(5):
            database.execution_steps.insert_one({
                "execution_id": "alone", "step_id": number, "step_name": "s", "status": "completed", "input": {},
                "output": number, "retry_count": 0, "metadata": {},
            })
        with Mirror(self.source, self.target, self.name, "--adopt-steps", "adopted"):
            self.caught_up()
            found = self.status()
            self.assertEqual((found["copied"]["steps"], found["refused"]), (5, {}), found)
        from stepwell.v1 import execution_service_pb2 as messages
        from stepwell.v1 import execution_service_pb2_grpc as services

        here = services.ExecutionServiceStub(self.target.channel)
        made = here.GetExecution(messages.GetExecutionRequest(execution_id="alone", view=2))
        self.assertEqual((made.execution.app_name, len(made.steps)), ("adopted", 5))

    def test_a_server_moves_to_another(self):
        from stepwell.v1 import execution_service_pb2 as messages
        from stepwell.v1 import execution_service_pb2_grpc as services

        a, self.target = self.serve(), self.serve()
        self.source = f"grpc://{a.address}"
        executions = services.ExecutionServiceStub(a.channel)
        for number in range(30):
            executions.CreateExecution(messages.CreateExecutionRequest(execution_id=f"e-{number}", app_name="app"))
        with Mirror(self.source, self.target, self.name):
            self.caught_up()
            for number in range(30):
                executions.FinishExecution(messages.FinishExecutionRequest(execution_id=f"e-{number}", status=2))
            executions.DeleteExecution(messages.DeleteExecutionRequest(execution_id="e-0"))
            harness.wait_until("the last change", lambda: self.status()["copied"]["deletions"] >= 1)
            self.caught_up()
            # What another database is equal to says nothing of this mirror.
            target = f"grpc://{self.target.address}"
            other = harness.stepwell("verify", target, target, "--mirror", self.name, check=False)
            self.assertEqual(other.returncode, 2, other.stderr)
            self.assertIn(f"a mirror of http://{a.address}", other.stderr)
            self.verify(0)
            done = self.finish()
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_what_somebody_else_changed_is_a_conflict(self):
        from stepwell.v1 import execution_service_pb2 as messages
        from stepwell.v1 import execution_service_pb2_grpc as services

        a, self.target = self.serve(), self.serve()
        self.source = f"grpc://{a.address}"
        there = services.ExecutionServiceStub(a.channel)
        here = services.ExecutionServiceStub(self.target.channel)
        there.CreateExecution(messages.CreateExecutionRequest(execution_id="e", app_name="app"))
        with Mirror(self.source, self.target, self.name):
            self.caught_up()
            here.UpdateExecution(messages.UpdateExecutionRequest(execution_id="e", pinned=True))
            there.FinishExecution(messages.FinishExecutionRequest(execution_id="e", status=2))
            harness.wait_until("the conflict is told", lambda: self.status()["conflicts"] == 1)
            kept = here.GetExecution(messages.GetExecutionRequest(execution_id="e")).execution
            self.assertTrue(kept.pinned)
            self.verify(1)


def setUpModule():
    harness.stubs()


if __name__ == "__main__":
    unittest.main()

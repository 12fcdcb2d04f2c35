"""A program that writes documents straight into MongoDB is mirrored into a Stepwell server while it writes, over kills of the
mirror and of the server; then both sides are compared, the mirror is finished, and what the program knows of what it wrote is
held against what the server has. And one server is mirrored into another.

Needs grpcio, grpcio-tools and pymongo. The same run with more of everything:

    STEPWELL_MIRROR_SECONDS=300 STEPWELL_MIRROR_RATE=1000 STEPWELL_MIRROR_KILLS=20 STEPWELL_MIRROR_TARGET_KILLS=5 \\
        python -m unittest test_mirror.Mirrors.test_a_program_that_writes_to_mongodb_moves_to_mongodb

says how long the program writes (10), how many changes a second (300), and how often the mirror (4) and the server that it
writes to (1) are killed meanwhile. It prints how late executions were seen by somebody who watches the server.
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

import grpc
import harness

SECONDS = float(os.environ.get("STEPWELL_MIRROR_SECONDS", "10"))
RATE = float(os.environ.get("STEPWELL_MIRROR_RATE", "300"))
KILLS = int(os.environ.get("STEPWELL_MIRROR_KILLS", "4"))
TARGET_KILLS = int(os.environ.get("STEPWELL_MIRROR_TARGET_KILLS", "1"))
# Of one writer, which waits for each of its writes.
WRITER_RATE = 40


def now():
    return datetime.datetime.now(datetime.timezone.utc)


class App:
    """One of the writers of a program. Keeps its own ids, knows what it has written, and knows nothing of Stepwell."""

    def __init__(self, database, seed):
        self.db = database
        self.app_id = seed
        self.random = random.Random(seed)
        # Executions that go on, each with the number of its steps.
        self.running = []
        self.changes = 0
        # By execution: when it was acknowledged, steps, artifacts and points.
        self.written = {}
        self.versions = set()

    def execution(self):
        identity = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        self.db.executions.insert_one({
            "execution_id": identity, "app_id": self.app_id, "app_name": "billing", "sub_app_id": None, "sub_app_name": None,
            "user_id": f"user-{self.random.randrange(9)}", "status": "running", "started_at": now(),
            "completed_at": None, "duration_ms": None, "error": None,
            "metadata": {"n": self.random.randrange(1000), "nested": {"a.b": [1, 2.5, None]}},
            "created_at": now(), "updated_at": now(),
        })
        self.written[identity] = (time.monotonic(), set(), set(), set())
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
        self.written[run[0]][1].add(run[1])

    def artifact(self, run):
        self.db.execution_artifacts.insert_one({
            "execution_id": run[0], "step_id": 1, "artifact_type": "log", "artifact_name": f"{self.changes}.txt",
            "mime_type": "text/plain", "size_bytes": 3, "storage_type": "local", "storage_path": "file:/x",
            "metadata": {}, "created_at": now(),
        })
        self.written[run[0]][2].add(f"{self.changes}.txt")

    def point(self, run):
        self.db.execution_metrics.insert_one({
            "timestamp": now().replace(microsecond=0), "execution_id": run[0], "metrics": {"tokens": self.changes},
        })
        self.written[run[0]][3].add(float(self.changes))

    def configuration(self):
        self.db.app_configurations.update_many({"app_id": self.app_id}, {"$set": {"active": False}})
        self.db.app_configurations.insert_one({
            "app_id": self.app_id, "app_name": "billing", "sub_app_id": None, "sub_app_name": None,
            "version": str(self.changes), "configuration": {"steps": [], "n": self.changes}, "active": True,
            "created_at": now(), "created_by": "me",
        })
        self.versions.add((self.app_id, str(self.changes)))

    def no_more(self, run):
        index = self.running.index(run)
        self.running[index] = self.running[-1]
        self.running.pop()

    def delete(self, run):
        # Nobody tells the log which record that was.
        self.no_more(run)
        for name in ["execution_steps", "execution_artifacts", "execution_metrics", "executions"]:
            self.db[name].delete_many({"execution_id": run[0]})
        del self.written[run[0]]

    def end(self, run):
        self.db.executions.update_one({"execution_id": run[0]}, {"$set": {
            "status": self.random.choice(["completed", "failed"]), "completed_at": now(), "duration_ms": 12,
            "error": None, "updated_at": now(),
        }})
        self.no_more(run)

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
            return self.artifact(run)
        if what < 0.92:
            return self.point(run)
        if what < 0.94:
            return self.delete(run)
        if what < 0.96:
            return self.configuration()
        return self.end(run)

    def write_for(self, seconds, rate):
        began, before = time.monotonic(), self.changes
        while time.monotonic() < began + seconds:
            self.change()
            ahead = (self.changes - before) / rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)


class Program:
    """Several writers at once, so many that they keep to a rate together."""

    def __init__(self, database):
        # As the program that this stands for has them; a mirror only reads.
        database.executions.create_index("execution_id", unique=True)
        database.execution_steps.create_index([("execution_id", 1), ("step_id", 1)], unique=True)
        database.execution_artifacts.create_index("execution_id")
        database.execution_metrics.create_index("execution_id")
        database.app_configurations.create_index("app_id")
        self.writers = [App(database, seed) for seed in range(1, 1 + max(1, round(RATE / WRITER_RATE)))]
        self.broken = []

    def start(self, seconds):
        def write(writer):
            try:
                writer.write_for(seconds, RATE / len(self.writers))
            except Exception as error:
                self.broken.append(error)
                raise

        self.began, self.before = time.monotonic(), self.changes
        self.threads = [threading.Thread(target=write, args=(writer,)) for writer in self.writers]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()
        self.rate = (self.changes - self.before) / (time.monotonic() - self.began)
        if self.broken:
            raise self.broken[0]

    @property
    def changes(self):
        return sum(writer.changes for writer in self.writers)

    def facts(self):
        """What there has to be, by collection."""
        facts = {"executions": set(), "execution_steps": set(), "execution_artifacts": set(), "execution_metrics": set()}
        for writer in self.writers:
            for identity, (_, steps, artifacts, points) in writer.written.items():
                facts["executions"].add(identity)
                facts["execution_steps"] |= {(identity, step) for step in steps}
                facts["execution_artifacts"] |= {(identity, artifact) for artifact in artifacts}
                facts["execution_metrics"] |= {(identity, point) for point in points}
        facts["app_configurations"] = set.union(*(writer.versions for writer in self.writers))
        return facts


def exported(folder):
    """The same of what a server exported, and how many documents there are of each."""
    def plain(number):
        return float(next(iter(number.values()))) if isinstance(number, dict) else number

    which = {
        "executions": lambda document: document["execution_id"],
        "execution_steps": lambda document: (document["execution_id"], int(plain(document["step_id"]))),
        "execution_artifacts": lambda document: (document["execution_id"], document["artifact_name"]),
        "execution_metrics": lambda document: (document["execution_id"], plain(document["metrics"]["tokens"])),
        "app_configurations": lambda document: (int(plain(document["app_id"])), document["version"]),
    }
    found = {}
    for name, of in which.items():
        with open(folder / f"{name}.jsonl") as lines:
            documents = [of(json.loads(line)) for line in lines]
        found[name] = set(documents)
        # Exported twice where it changed meanwhile, which nothing does here.
        assert len(documents) == len(found[name]), name
    return found


class Watcher:
    """Watches a server, over its kills, and keeps when it saw each execution first."""

    def __init__(self, address):
        self.address = address
        self.seen = {}
        self.done = threading.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        from stepwell.v1 import execution_service_pb2 as messages
        from stepwell.v1 import execution_service_pb2_grpc as services

        token = None
        while not self.done.is_set():
            with grpc.insecure_channel(self.address) as channel:
                stub = services.ExecutionServiceStub(channel)
                try:
                    self.call = stub.WatchExecutions(messages.WatchExecutionsRequest(resume_token=token))
                    for event in self.call:
                        at = time.monotonic()
                        token = event.resume_token or token
                        kind = event.WhichOneof("event")
                        if kind == "execution":
                            self.seen.setdefault(event.execution.execution.execution_id, at)
                        elif kind == "snapshot_complete":
                            self.ready.set()
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
            self.done.wait(0.1)

    def stop(self):
        self.done.set()
        self.call.cancel()
        self.thread.join()


def percentiles(values):
    values = sorted(values)
    if not values:
        return "none"
    at = lambda part: values[min(len(values) - 1, int(len(values) * part))]
    return f"p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, max {values[-1]:.0f} ms of {len(values)}"


def peak_mib(pid):
    words = pathlib.Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()
    return int(words[0]) // 1024


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        harness.wait_until("the mirror has caught up", lambda: self.status().get("lag_ms") == 0, 300)

    def caught_up_with_what_is_written(self):
        """What was written before this has been read, too: the mirror has read something later."""
        position = self.status()["position"]
        harness.wait_until("the mirror reads on", lambda: self.status()["position"] > position, 60)
        self.caught_up()

    def verify(self, expected):
        target = f"grpc://{self.target.address}"
        done = harness.stepwell("verify", self.source, target, "--mirror", self.name, check=False)
        self.assertEqual(done.returncode, expected, done.stdout + done.stderr)

    def restart_target(self):
        """Without a warning."""
        self.target.child.send_signal(signal.SIGKILL)
        self.target.child.wait()
        self.target = self.serve(**self.where, address=self.target.address)

    def mirror_a_program(self, **where):
        self.where = {"data": str(self.folder / "data"), **where}
        self.target = self.serve(**self.where)
        database = self.database("app_of_others")
        database.create_collection(
            "execution_metrics", timeseries={"timeField": "timestamp", "metaField": "execution_id"})
        self.source = self.mongodb.uri.replace("/?", f"/{database.name}?")
        before = {name for name in database.list_collection_names() if not name.startswith("system.")}
        program = Program(database)
        app = program.writers[0]
        program.start(2)
        program.join()
        # What is no record, and a step without an execution.
        database.executions.insert_one({"execution_id": "bad id", "app_name": "", "status": "unheard of"})
        database.execution_steps.insert_one({
            "execution_id": "nobody", "step_id": 1, "step_name": "lonely", "status": "completed", "metadata": {},
            "input": {}, "output": None, "retry_count": 0,
        })
        refused, lags, stop = self.folder / "refused.jsonl", [], threading.Event()
        more = ["--refused", str(refused)]
        watcher = Watcher(self.target.address)
        self.addCleanup(watcher.stop)
        self.assertTrue(watcher.ready.wait(60))

        def look():
            from stepwell.v1 import mirror_service_pb2 as messages
            from stepwell.v1 import mirror_service_pb2_grpc as services

            with grpc.insecure_channel(self.target.address) as channel:
                stub = services.MirrorServiceStub(channel)
                while not stop.wait(0.2):
                    try:
                        progress = stub.Get(messages.MirrorServiceGetRequest(name=self.name)).mirror.progress
                    except grpc.RpcError:
                        continue
                    if progress.phase == messages.MIRROR_PHASE_FOLLOWING and progress.HasField("lag_ms"):
                        lags.append(progress.lag_ms)

        looking = threading.Thread(target=look)
        looking.start()
        self.addCleanup(stop.set)
        # Nothing is killed before there is something to lose.
        kills = [("mirror", n, KILLS) for n in range(KILLS)] + [("target", n, TARGET_KILLS) for n in range(TARGET_KILLS)]
        kills = sorted((SECONDS * (n + app.random.uniform(0.2, 0.8)) / of, what) for what, n, of in kills)
        mirror = Mirror(self.source, self.target, self.name, *more)
        harness.wait_until("something is there", lambda: watcher.seen)
        program.start(SECONDS)
        killed, cpu = [], 0
        for at, what in kills:
            time.sleep(max(0, program.began + at - time.monotonic()))
            # A server that is killed ends no mirror.
            mirror.check_alive()
            killed.append(time.monotonic())
            if what == "target":
                self.restart_target()
                continue
            cpu += cpu_seconds(mirror.child.pid)
            mirror.kill()
            mirror.stop()
            mirror = Mirror(self.source, self.target, self.name, *more)
        program.join()
        ended = time.monotonic()
        self.addCleanup(mirror.stop)
        self.caught_up()
        caught_up = time.monotonic() - ended
        stop.set()
        looking.join()
        cpu += cpu_seconds(mirror.child.pid)
        late = {}
        for writer in program.writers:
            for identity, (acknowledged, *_) in writer.written.items():
                if program.began <= acknowledged < ended:
                    harness.wait_until("it is seen", lambda: identity in watcher.seen)
                    late[acknowledged] = max(0, watcher.seen[identity] - acknowledged) * 1000
        # Not just after a kill: what is there then shows how fast it is.
        calm = [lag for at, lag in late.items() if not any(kill - 1 < at < kill + 5 for kill in killed)]
        print(f"{program.changes} changes, {program.rate:.0f} a second; {KILLS} kills of the mirror, {TARGET_KILLS} of the server")
        print(f"executions seen late: {percentiles(late.values())}; without those near a kill: {percentiles(calm)}")
        print(f"lag as told: {percentiles(lags)}; {caught_up:.1f} s to catch up; mirror: {cpu:.0f} s of CPU")
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
        print(f"the last mirror has used {peak_mib(mirror.child.pid)} MiB at most")
        self.assertEqual(self.finish().returncode, 0)
        self.assertEqual(self.status()["phase"], "finished")
        harness.wait_until("the mirror ends by itself", lambda: mirror.child.poll() is not None)
        self.assertEqual(mirror.child.returncode, 0, mirror.log())
        # Nothing but the program wrote to its database.
        ours = {name for name in database.list_collection_names() if not name.startswith("system.")}
        self.assertEqual({name for name in ours - before if name.startswith("stepwell")}, set())
        # What the program knows that it wrote and did not delete, and nothing else.
        out = self.folder / "exported"
        harness.stepwell("export", "--out", str(out), "--server", self.target.address)
        expected, there = program.facts(), exported(out)
        for name in expected:
            self.assertEqual((len(expected[name] - there[name]), len(there[name] - expected[name])), (0, 0), name)
        return app, database

    def test_a_program_that_writes_to_mongodb_moves_to_sqlite(self):
        self.mirror_a_program()

    def test_a_program_that_writes_to_mongodb_moves_to_mongodb(self):
        self.database("moved_here")
        app, database = self.mirror_a_program(mongodb_uri=self.mongodb.uri, database="moved_here")
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

    def test_a_mirror_ends_when_it_is_told_to_wherever_its_target_is(self):
        from stepwell.v1 import artifact_service_pb2 as artifacts
        from stepwell.v1 import artifact_service_pb2_grpc as artifact_services
        from stepwell.v1 import common_pb2 as common
        from stepwell.v1 import execution_service_pb2 as messages
        from stepwell.v1 import execution_service_pb2_grpc as services

        a, self.target = self.serve(), self.serve(data=str(self.folder / "data"))
        self.source = f"grpc://{a.address}"
        there = services.ExecutionServiceStub(a.channel)
        there.CreateExecution(messages.CreateExecutionRequest(execution_id="e", app_name="app"))
        artifact_stub = artifact_services.ArtifactServiceStub(a.channel)
        about = artifacts.ArtifactDescription(execution_id="e", artifact_type="log", artifact_name="a")
        uploaded = artifact_stub.UploadArtifact(iter([
            artifacts.UploadArtifactRequest(description=about), artifacts.UploadArtifactRequest(chunk=b"text"),
        ]))
        mirror = Mirror(self.source, self.target, self.name)
        self.addCleanup(mirror.stop)
        self.caught_up()
        # It does not answer.
        self.target.child.send_signal(signal.SIGSTOP)
        there.FinishExecution(messages.FinishExecutionRequest(execution_id="e", status=common.EXECUTION_STATUS_COMPLETED))
        self.assertEqual(mirror.stop(), 0)
        self.target.child.send_signal(signal.SIGCONT)
        # It is away, and something can only be done there once everything before is.
        mirror = Mirror(self.source, self.target, self.name)
        self.addCleanup(mirror.stop)
        # The one before may have told that it had caught up.
        harness.wait_until("it has begun", lambda: mirror.check_alive() or "goes on where it was" in mirror.log())
        self.caught_up()
        self.target.child.send_signal(signal.SIGKILL)
        self.target.child.wait()
        there.UpdateExecution(messages.UpdateExecutionRequest(execution_id="e", pinned=True))
        artifact_stub.DeleteArtifact(artifacts.DeleteArtifactRequest(artifact_id=uploaded.artifact.artifact_id))
        mirror.check_alive()
        self.assertEqual(mirror.stop(), 0)


def setUpModule():
    harness.stubs()


if __name__ == "__main__":
    unittest.main()

"""Export: through SQLite, MongoDB and SQLite again the same records, and the same when it is killed again and again.

$STEPWELL_DATA_SETS may name a folder with real run records (see test_real_data); without one records are made up.
"""

import gzip
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness

SETS = os.environ.get("STEPWELL_DATA_SETS")
KILLS = 20
FILES = ["executions", "execution_steps", "execution_artifacts", "execution_metrics", "app_configurations"]
# What a server makes of its own.
OWN = {"_id", "revision"}


def made_up(folder):
    """Enough that an export of it takes a while."""
    executions = open(folder / "executions.jsonl", "w")
    steps = open(folder / "execution_steps.jsonl", "w")
    points = open(folder / "execution_metrics.jsonl", "w")
    with executions, steps, points:
        for n in range(2000):
            start = {"$date": {"$numberLong": str(1_700_000_000_000 + n)}}
            document = {
                "execution_id": f"run-{n}", "app_id": None, "app_name": f"app-{n % 3}", "status": "completed",
                "started_at": start, "metadata": {"n": n, "nested": {"a.b": [1, 2.5, None], "é": "x" * 200}},
            }
            executions.write(json.dumps(document) + "\n")
            for step in range(1, 6):
                document = {
                    "execution_id": f"run-{n}", "step_id": step, "step_name": "work", "status": "completed",
                    "input": {"text": "y" * 500}, "output": [step, "z"], "retry_count": step, "started_at": start,
                }
                steps.write(json.dumps(document) + "\n")
            document = {"execution_id": f"run-{n}", "timestamp": start, "metrics": {"tokens": n, "cost": n / 7}}
            points.write(json.dumps(document) + "\n")


def records(folder):
    """The documents of an export by file, without what is the server's own, each as text; checked against its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {}
    for name in FILES:
        path = next(path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.exists())
        content = path.read_bytes()
        facts = manifest["files"][path.name]
        assert hashlib.sha256(content).hexdigest() == facts["sha256"], path
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
        assert len(lines) == facts["documents"], path
        documents = [json.loads(line) for line in lines]
        documents = [{key: value for key, value in document.items() if key not in OWN} for document in documents]
        found[name] = sorted(json.dumps(document, sort_keys=True) for document in documents)
    return found


class Moving(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stepwell-moving-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.source = pathlib.Path(SETS) if SETS else self.folder / "source"
        if not SETS:
            self.source.mkdir()
            made_up(self.source)

    def server(self, **where):
        server = harness.Server(env={"STEPWELL_RETENTION_METRICS": "0"}, **where)
        self.addCleanup(server.stop)
        return server

    def bring(self, server, folder):
        harness.stepwell("import", str(folder), "--server", server.address, "--assume-status", "completed")

    def export(self, server, name, *flags):
        out = self.folder / name
        harness.stepwell("export", "--out", str(out), "--server", server.address, *flags)
        return out

    def test_records_come_back_through_both_stores(self):
        first = self.server()
        self.bring(first, self.source)
        one = self.export(first, "one")
        database = harness.shared_mongodb()
        second = self.server(mongodb_uri=database.uri, database="moving")
        self.addCleanup(database.client.drop_database, "moving")
        self.bring(second, one)
        two = self.export(second, "two", "--gzip")
        third = self.server()
        self.bring(third, two)
        three = self.export(third, "three")
        expected = records(one)
        for name in FILES:
            self.assertTrue(expected["executions"], "something was exported")
            for folder in (two, three):
                self.assertEqual(records(folder)[name], expected[name], f"{name} of {folder.name}")

    def test_killed_again_and_again_it_is_complete(self):
        server = self.server()
        self.bring(server, self.source)
        expected = records(self.export(server, "whole"))
        out = self.folder / "killed"
        began = time.monotonic()
        harness.stepwell("export", "--out", str(self.folder / "timed"), "--server", server.address)
        whole = time.monotonic() - began
        chance = random.Random(7)
        kills = 0
        flags = ["--out", str(out), "--server", server.address]
        while kills < KILLS:
            under_way = (out / ".export" / "state.json").exists()
            command = [harness.binary(), "export", *flags, *(["--resume"] if under_way else [])]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0, whole))
            child.send_signal(signal.SIGKILL)
            if child.wait() == 0:
                # It was quicker this time.
                self.assertEqual(records(out), expected)
                shutil.rmtree(out)
            elif not (out / ".export" / "state.json").exists():
                shutil.rmtree(out, ignore_errors=True)
            kills += 1
        if not (out / "manifest.json").exists():
            under_way = (out / ".export" / "state.json").exists()
            harness.stepwell("export", *flags, *(["--resume"] if under_way else []))
        self.assertEqual(records(out), expected)

    def test_what_is_in_the_way_is_not_overwritten(self):
        server = self.server()
        out = self.export(server, "once")
        again = harness.stepwell("export", "--out", str(out), "--server", server.address, check=False)
        self.assertEqual(again.returncode, 2, again.stderr)
        self.assertIn("already exists", again.stderr)
        resumed = harness.stepwell("export", "--out", str(out), "--server", server.address, "--resume", check=False)
        self.assertEqual(resumed.returncode, 2, resumed.stderr)
        self.assertIn("no interrupted export", resumed.stderr)


if __name__ == "__main__":
    unittest.main()

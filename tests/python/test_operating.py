"""What docs/ says about running the server, against the running server: metrics, probes, settings."""

import os
import pathlib
import re
import time
import unittest
import urllib.error
import urllib.request

import grpc

import harness

DOCUMENTS = {
    name: (harness.REPO / "docs" / document).read_text()
    for name, document in {"metrics": "operating.md", "settings": "settings.md"}.items()
}


def table(name):
    """The rows of the table between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, as lists of cells."""
    text = DOCUMENTS[name].split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Metrics(unittest.TestCase):
    def exercise(self, server):
        """A write, a refusal, a look-up and a watch, so that everything has something to count."""
        pb = harness.stubs()
        executions = pb.execution_grpc.ExecutionServiceStub(server.channel)
        id = f"metrics-{time.time_ns()}"
        executions.CreateExecution(pb.execution.CreateExecutionRequest(execution_id=id, app_name="m"))
        with self.assertRaises(grpc.RpcError):
            executions.GetExecution(pb.execution.GetExecutionRequest(execution_id="no-such"))
        executions.FinishExecution(
            pb.execution.FinishExecutionRequest(execution_id=id, status=pb.common.EXECUTION_STATUS_COMPLETED)
        )
        events = list(executions.WatchExecution(pb.execution.WatchExecutionRequest(execution_id=id), timeout=30))
        self.assertTrue(events[-1].resume_token)

    def check(self, server):
        self.exercise(server)
        documented = {row[0].strip("`"): row[1] for row in table("metrics")}
        status, text = get(server, "/metrics")
        self.assertEqual(status, 200)
        served = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        self.assertLessEqual(set(served), set(documented), "served, but not documented")
        # A counter of failures is served once there was one.
        missing = {name for name in documented if name not in served and "errors" not in name}
        # There is no certificate.
        missing.discard("stepwell_certificate_expiry_seconds")
        self.assertFalse(missing, f"documented, but not served: {missing}")
        for name, kind in served.items():
            self.assertEqual(kind, documented[name], name)
        self.assertRegex(text, rf'stepwell_build_info{{[^}}]*store="{server.store}"[^}}]*}} 1')
        self.assertIn("stepwell_store_up 1", text)

    def test_names_on_sqlite(self):
        with harness.Server(http=True) as server:
            server.store = "sqlite"
            self.check(server)

    def test_names_on_mongodb(self):
        uri = harness.shared_mongodb().uri
        with harness.Server(uri, database=f"metrics_{time.time_ns()}", http=True) as server:
            server.store = "mongodb"
            self.check(server)


class Probes(unittest.TestCase):
    def test_live_and_ready(self):
        with harness.Server(http=True) as server:
            self.assertEqual(get(server, "/livez")[0], 200)
            self.assertEqual(get(server, "/readyz")[0], 200)
            self.assertEqual(get(server, "/no-such")[0], 404)

    def test_away_database_is_not_ready_but_alive(self):
        with harness.MongoDB() as mongodb:
            with harness.Server(mongodb.uri, http=True) as server:
                mongodb.child.kill()
                mongodb.child.wait()
                harness.wait_until("not ready", lambda: get(server, "/readyz")[0] == 503)
                self.assertEqual(get(server, "/livez")[0], 200)
                self.assertIn("stepwell_store_up 0", get(server, "/metrics")[1])

    def test_sigterm_drains_and_ends_with_0(self):
        server = harness.Server()
        began = time.monotonic()
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - began, 20)


class Footprint(unittest.TestCase):
    def test_starts_fast_and_idles_small(self):
        seconds, resident = [], []
        for _ in range(3):
            began = time.monotonic()
            with harness.Server() as server:
                seconds.append(time.monotonic() - began)
                status = pathlib.Path(f"/proc/{server.child.pid}/status").read_text()
                resident.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024)
        size = os.path.getsize(harness.binary()) / 2**20
        print(f"SERVING after {min(seconds):.2f} s, {min(resident):.0f} MiB idle, {size:.0f} MiB binary", flush=True)
        # The best of three: other work on the machine only makes it slower.
        self.assertLess(min(seconds), 0.5)
        self.assertLess(min(resident), 40)


class Settings(unittest.TestCase):
    def test_printed_defaults_are_the_documented_ones(self):
        printed = harness.stepwell("config").stdout
        section, found = "", {}
        for line in printed.splitlines():
            if match := re.fullmatch(r"\[(.+)\]", line):
                section = match[1] + "."
            elif match := re.fullmatch(r"(\w+) = (.+)", line):
                found[section + match[1]] = match[2]
            elif match := re.fullmatch(r"# (\w+) is not set", line):
                found[section + match[1]] = ""
        documented = {row[0].strip("`"): row[2].strip("`") for row in table("settings")}
        self.assertEqual(documented, found)

    def test_flags_are_in_the_help(self):
        help = harness.stepwell("serve", "--help").stdout
        for row in table("settings"):
            flag = "--" + re.sub("[._]", "-", row[0].strip("`"))
            self.assertIn(flag, help)

    def test_secrets_are_hidden(self):
        done = harness.stepwell("config", "--mongodb-uri", "mongodb://eve:hunter2@127.0.0.1/db")
        self.assertNotIn("hunter2", done.stdout + done.stderr)
        self.assertIn("mongodb://eve:", done.stdout)

    def test_unknown_names(self):
        refused = harness.stepwell("serve", "--lissten", "127.0.0.1:0", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("--lissten", refused.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)

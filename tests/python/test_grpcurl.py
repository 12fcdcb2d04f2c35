"""grpcurl, a client written in Go that lives off reflection: list, describe, call, stream."""

import json
import os
import shutil
import subprocess
import time
import unittest

import harness

GRPCURL = os.environ.get("GRPCURL") or shutil.which("grpcurl")


@unittest.skipUnless(GRPCURL, "no grpcurl on PATH")
class Grpcurl(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server()

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def run_it(self, *args, data=None, code=0):
        command = [GRPCURL, "-plaintext"]
        if data is not None:
            command += ["-d", data if isinstance(data, str) else json.dumps(data)]
        options = [arg for arg in args if arg.startswith("-")]
        rest = [arg for arg in args if not arg.startswith("-")]
        done = subprocess.run(
            [*command, *options, self.server.address, *rest],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def documents(self, text):
        """The JSON documents of a stream, one after the other."""
        decoder, found, at = json.JSONDecoder(), [], 0
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip())
            document, length = decoder.raw_decode(text[at:])
            found.append(document)
            at += length
        return found

    def test_list_and_describe(self):
        services = self.run_it("list").split()
        for service in ("ExecutionService", "StepService", "IngestService", "AdminService"):
            self.assertIn(f"stepwell.v1.{service}", services)
        self.assertIn("grpc.health.v1.Health", services)
        methods = self.run_it("list", "stepwell.v1.StepService").split()
        self.assertIn("stepwell.v1.StepService.StartStep", methods)
        described = self.run_it("describe", "stepwell.v1.StartStepRequest")
        self.assertIn("string execution_id", described)
        self.assertIn("rpc Check", self.run_it("describe", "grpc.health.v1.Health"))

    def test_health(self):
        self.assertIn("SERVING", self.run_it("grpc.health.v1.Health/Check"))

    def test_call_and_stream(self):
        id = f"grpcurl-{time.time_ns()}"
        writes = [
            {"sequence": 1, "create_execution": {"execution_id": id, "app_name": "grpcurl"}},
            {"sequence": 2, "start_step": {"execution_id": id, "step_id": 1, "step_name": "one"}},
            {
                "sequence": 3,
                "finish_step": {"execution_id": id, "step_id": 1, "status": "STEP_STATUS_COMPLETED", "output": {"n": 1}},
            },
            {
                "sequence": 4,
                "finish_execution": {"execution_id": id, "status": "EXECUTION_STATUS_COMPLETED"},
            },
        ]
        answers = self.documents(
            self.run_it("stepwell.v1.IngestService/Ingest", data="\n".join(map(json.dumps, writes)))
        )
        self.assertEqual([answer["sequence"] for answer in answers], ["1", "2", "3", "4"])
        events = self.documents(
            self.run_it(
                "stepwell.v1.ExecutionService/WatchExecution",
                data={"execution_id": id, "include_steps": True, "include_payloads": True},
            )
        )
        self.assertEqual(events[0]["execution"]["execution"]["status"], "EXECUTION_STATUS_COMPLETED")
        self.assertEqual(events[1]["step"]["step"]["output"], {"n": 1})

    def test_errors_are_readable(self):
        said = self.run_it(
            "stepwell.v1.ExecutionService/GetExecution", data={"execution_id": "no-such"}, code=64 + 5
        )
        self.assertIn("NotFound", said)
        self.assertIn("EXECUTION_NOT_FOUND", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)

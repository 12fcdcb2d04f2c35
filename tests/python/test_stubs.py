"""A Python client generated from `proto/`, against a real server on each store."""

import itertools
import threading
import time
import unittest

import grpc
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import harness

ids = (f"py-{time.time_ns()}-{number}" for number in itertools.count())


def value(python):
    return json_format.ParseDict(python, struct_pb2.Value())


def struct(python):
    return json_format.ParseDict(python, struct_pb2.Struct())


class Cases:
    """Every case, run by one class per store below."""

    @classmethod
    def setUpClass(cls):
        cls.pb = harness.stubs()
        cls.server = cls.start()
        cls.executions = cls.pb.execution_grpc.ExecutionServiceStub(cls.server.channel)
        cls.steps = cls.pb.step_grpc.StepServiceStub(cls.server.channel)
        cls.ingest = cls.pb.ingest_grpc.IngestServiceStub(cls.server.channel)
        cls.admin = cls.pb.admin_grpc.AdminServiceStub(cls.server.channel)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"the server ended with {code} on SIGTERM"

    def create(self, **fields):
        request = self.pb.execution.CreateExecutionRequest(
            execution_id=fields.pop("execution_id", next(ids)), app_name=fields.pop("app_name", "py"), **fields
        )
        return self.executions.CreateExecution(request).execution

    def details(self, error):
        """ErrorInfo's reason and the other details by type."""
        status = rpc_status.from_call(error)
        found = {}
        for detail in status.details:
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.ResourceInfo,
                error_details_pb2.RetryInfo,
            ):
                message = kind()
                if detail.Unpack(message):
                    found[kind.DESCRIPTOR.name] = message
        self.assertEqual(found["ErrorInfo"].domain, "stepwell")
        return found

    def test_server_says_what_it_is(self):
        info = self.admin.GetServerInfo(self.pb.admin.GetServerInfoRequest())
        self.assertEqual(info.store, self.store)
        self.assertTrue(info.version)
        self.assertTrue(info.limits)

    def test_life_of_an_execution(self):
        pb = self.pb
        execution = self.create(app_id=7, user_id="ann", metadata=struct({"model": "m", "a.b": {"$set": 1}}))
        id = execution.execution_id
        self.assertEqual(execution.status, pb.common.EXECUTION_STATUS_RUNNING)
        started = self.steps.StartStep(
            pb.step.StartStepRequest(execution_id=id, step_name="fetch", input=value({"url": "x", "n": 2**53}))
        ).step
        self.assertEqual(started.step_id, 1)
        self.assertFalse(started.HasField("input"), "answers of writes leave out what the caller has")
        progressed = self.steps.UpdateStep(
            pb.step.UpdateStepRequest(execution_id=id, step_id=1, progress=0.5, progress_message="half")
        ).step
        self.assertGreater(progressed.revision, started.revision)
        finish = pb.step.FinishStepRequest(
            execution_id=id, step_id=1, status=pb.common.STEP_STATUS_COMPLETED, output=value(["a", None, 1])
        )
        finished = self.steps.FinishStep(finish).step
        self.assertEqual(self.steps.FinishStep(finish).step, finished, "the same request again changes nothing")
        whole = self.steps.GetStep(pb.step.GetStepRequest(execution_id=id, step_id=1)).step
        self.assertEqual(json_format.MessageToDict(whole.input), {"url": "x", "n": 2**53})
        self.assertEqual(json_format.MessageToDict(whole.output), ["a", None, 1])
        done = self.executions.FinishExecution(
            pb.execution.FinishExecutionRequest(execution_id=id, status=pb.common.EXECUTION_STATUS_COMPLETED)
        ).execution
        self.assertEqual(done.duration_ms, done.completed_at.ToMilliseconds() - done.started_at.ToMilliseconds())
        full = self.executions.GetExecution(
            pb.execution.GetExecutionRequest(execution_id=id, view=pb.execution.EXECUTION_VIEW_FULL)
        )
        self.assertEqual([step.step_name for step in full.steps], ["fetch"])
        self.assertEqual(json_format.MessageToDict(full.execution.metadata)["a.b"], {"$set": 1})

    def test_lists_go_by_pages(self):
        pb = self.pb
        app = next(ids)
        wanted = {self.create(app_name=app).execution_id for _ in range(7)}
        request = pb.execution.ListExecutionsRequest(
            filter=pb.common.ExecutionFilter(app_names=[app]), page_size=3
        )
        seen = []
        while True:
            page = self.executions.ListExecutions(request)
            self.assertLessEqual(len(page.executions), 3)
            seen += [execution.execution_id for execution in page.executions]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        self.assertEqual(sorted(seen), sorted(wanted))
        request.filter.app_names.append("another")
        with self.assertRaises(grpc.RpcError) as refused:
            self.executions.ListExecutions(request)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(self.details(refused.exception)["ErrorInfo"].reason, "INVALID_TOKEN")

    def test_errors_carry_details(self):
        pb = self.pb
        with self.assertRaises(grpc.RpcError) as missing:
            self.executions.GetExecution(pb.execution.GetExecutionRequest(execution_id="no-such"))
        self.assertEqual(missing.exception.code(), grpc.StatusCode.NOT_FOUND)
        details = self.details(missing.exception)
        self.assertEqual(details["ErrorInfo"].reason, "EXECUTION_NOT_FOUND")
        self.assertEqual(details["ResourceInfo"].resource_name, "no-such")
        with self.assertRaises(grpc.RpcError) as bad:
            self.executions.CreateExecution(
                pb.execution.CreateExecutionRequest(execution_id="with space", user_id="u" * 300)
            )
        self.assertEqual(bad.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        fields = {item.field for item in self.details(bad.exception)["BadRequest"].field_violations}
        self.assertEqual(fields, {"execution_id", "app_name", "user_id"}, "every bad field at once")

    def test_watch_is_live_and_resumes(self):
        pb = self.pb
        id = self.create().execution_id
        events = []
        live = threading.Event()

        def watch(token=None, first=None):
            request = pb.execution.WatchExecutionRequest(execution_id=id, include_steps=True, resume_token=token)
            for event in self.executions.WatchExecution(request, timeout=30):
                events.append(event)
                if event.WhichOneof("event") == "snapshot_complete":
                    live.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.assertTrue(live.wait(30))
        self.steps.StartStep(pb.step.StartStepRequest(execution_id=id, step_id=1, step_name="a"))
        self.steps.FinishStep(
            pb.step.FinishStepRequest(execution_id=id, step_id=1, status=pb.common.STEP_STATUS_COMPLETED)
        )
        self.executions.FinishExecution(
            pb.execution.FinishExecutionRequest(execution_id=id, status=pb.common.EXECUTION_STATUS_FAILED)
        )
        watcher.join(30)
        self.assertFalse(watcher.is_alive(), "the watch ends by itself once the execution has ended")
        complete = [event.WhichOneof("event") for event in events].index("snapshot_complete")
        self.assertTrue(all(not event.resume_token for event in events[:complete]))
        self.assertTrue(all(event.resume_token for event in events[complete:]))
        last_step = [event.step.step for event in events if event.HasField("step")][-1]
        self.assertEqual(last_step.status, pb.common.STEP_STATUS_COMPLETED)
        last = [event.execution.execution for event in events if event.HasField("execution")][-1]
        self.assertEqual(last.status, pb.common.EXECUTION_STATUS_FAILED)
        token = events[complete].resume_token
        events.clear()
        watch(token)
        self.assertNotIn("snapshot_complete", [event.WhichOneof("event") for event in events])
        self.assertEqual(
            [event.execution.execution.status for event in events if event.HasField("execution")][-1],
            pb.common.EXECUTION_STATUS_FAILED,
        )

    def test_ingest_answers_each_write(self):
        pb = self.pb
        id = next(ids)
        requests = [
            pb.ingest.IngestRequest(
                sequence=1,
                create_execution=pb.execution.CreateExecutionRequest(execution_id=id, app_name="py"),
            ),
            pb.ingest.IngestRequest(
                sequence=2, start_step=pb.step.StartStepRequest(execution_id=id, step_key="k", step_name="s")
            ),
            pb.ingest.IngestRequest(
                sequence=3, update_step=pb.step.UpdateStepRequest(execution_id=id, step_key="none", progress=0.1)
            ),
            pb.ingest.IngestRequest(
                sequence=4,
                finish_step=pb.step.FinishStepRequest(
                    execution_id=id, step_key="k", status=pb.common.STEP_STATUS_SKIPPED
                ),
            ),
            pb.ingest.IngestRequest(
                sequence=5,
                put_step=pb.common.Step(
                    execution_id=id, step_id=9, step_name="old", status=pb.common.STEP_STATUS_COMPLETED
                ),
            ),
        ]
        answers = {answer.sequence: answer for answer in self.ingest.Ingest(iter(requests), timeout=30)}
        self.assertEqual(sorted(answers), [1, 2, 3, 4, 5])
        self.assertEqual(answers[1].execution.execution_id, id)
        self.assertEqual(answers[2].step.step_id, 1)
        self.assertEqual(answers[3].error.code, grpc.StatusCode.NOT_FOUND.value[0])
        self.assertEqual(answers[4].step.status, pb.common.STEP_STATUS_SKIPPED)
        self.assertEqual(answers[5].step.step_id, 9)

    def test_cancel_reaches_the_app_and_delete_removes(self):
        pb = self.pb
        id = self.create().execution_id
        heartbeat = pb.execution.HeartbeatRequest(execution_id=id)
        self.assertFalse(self.executions.Heartbeat(heartbeat).cancel_requested)
        self.executions.RequestCancel(pb.execution.RequestCancelRequest(execution_id=id, reason="enough"))
        self.assertTrue(self.executions.Heartbeat(heartbeat).cancel_requested)
        with self.assertRaises(grpc.RpcError) as running:
            self.executions.DeleteExecution(pb.execution.DeleteExecutionRequest(execution_id=id))
        self.assertEqual(running.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.executions.DeleteExecution(pb.execution.DeleteExecutionRequest(execution_id=id, force=True))
        with self.assertRaises(grpc.RpcError) as gone:
            self.executions.GetExecution(pb.execution.GetExecutionRequest(execution_id=id))
        self.assertEqual(gone.exception.code(), grpc.StatusCode.NOT_FOUND)


class OnSqlite(Cases, unittest.TestCase):
    store = "sqlite"

    @classmethod
    def start(cls):
        return harness.Server()


class OnMongoDB(Cases, unittest.TestCase):
    store = "mongodb"

    @classmethod
    def start(cls):
        return harness.Server(harness.shared_mongodb().uri, database=f"py_{time.time_ns()}")


if __name__ == "__main__":
    unittest.main(verbosity=2)

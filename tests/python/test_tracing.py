"""A receiver of OTLP traces, and what the server sends to it."""

import concurrent.futures
import threading
import unittest

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import harness

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it is sent, with the resource it came from."""

    def __init__(self):
        self.spans = []
        self.changed = threading.Condition()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request, context):
        with self.changed:
            for resource in request.resource_spans:
                attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [(attributes, span) for span in scope.spans]
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, name, seconds=30):
        def found():
            return [pair for pair in self.spans if pair[1].name == name]

        with self.changed:
            self.changed.wait_for(found, seconds)
            assert found(), f"no span {name} among {sorted({span.name for _, span in self.spans})}"
            return found()


class Tracing(unittest.TestCase):
    def test_calls_become_spans(self):
        pb = harness.stubs()
        receiver = Receiver()
        environment = {
            "STEPWELL_TELEMETRY_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
            "STEPWELL_TELEMETRY_SERVICE_NAME": "stepwell-under-test",
        }
        with harness.Server(env=environment) as server:
            executions = pb.execution_grpc.ExecutionServiceStub(server.channel)
            executions.CreateExecution(
                pb.execution.CreateExecutionRequest(app_name="traced"),
                metadata=[("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01")],
            )
            with self.assertRaises(grpc.RpcError):
                executions.GetExecution(pb.execution.GetExecutionRequest(execution_id="no-such"))
            for call in ("CreateExecution", "GetExecution"):
                resource, span = receiver.wait_for(f"stepwell.v1.ExecutionService/{call}")[0]
                self.assertEqual(resource["service.name"], "stepwell-under-test")
                self.assertGreater(span.end_time_unix_nano, span.start_time_unix_nano)
                self.assertEqual(span.kind, span.SPAN_KIND_SERVER)
            created = receiver.wait_for("stepwell.v1.ExecutionService/CreateExecution")[0][1]
            self.assertEqual(created.trace_id.hex(), TRACE_ID, "the caller's trace goes on")
        # The pipe is flushed on the way out: nothing more may come later, and nothing was lost.
        names = {span.name for _, span in receiver.spans}
        print("spans received:", ", ".join(sorted(names)))
        receiver.server.stop(None)


if __name__ == "__main__":
    unittest.main(verbosity=2)

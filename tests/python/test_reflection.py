"""A Python client that knows no generated code: everything it needs comes by server reflection."""

import time
import unittest

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import proto_reflection_descriptor_database as database
from grpc_reflection.v1alpha import reflection_pb2

import harness

SERVICES = {
    "grpc.health.v1.Health",
    "stepwell.v1.AdminService",
    "stepwell.v1.AnalyticsService",
    "stepwell.v1.ArtifactService",
    "stepwell.v1.ConfigurationService",
    "stepwell.v1.ExecutionService",
    "stepwell.v1.IngestService",
    "stepwell.v1.MetricService",
    "stepwell.v1.SearchService",
    "stepwell.v1.StepService",
}


class Reflection(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server()
        cls.database = database.ProtoReflectionDescriptorDatabase(cls.server.channel)
        cls.pool = descriptor_pool.DescriptorPool(cls.database)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def method(self, service, name):
        return self.pool.FindServiceByName(f"stepwell.v1.{service}").FindMethodByName(name)

    def call(self, service, name, request):
        method = self.method(service, name)
        message = json_format.ParseDict(request, message_factory.GetMessageClass(method.input_type)())
        path = f"/{method.containing_service.full_name}/{name}"
        kind = self.server.channel.unary_stream if method.server_streaming else self.server.channel.unary_unary
        answer = kind(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )(message, timeout=30)
        if method.server_streaming:
            return [json_format.MessageToDict(item, preserving_proto_field_name=True) for item in answer]
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    def test_every_service_is_listed(self):
        self.assertLessEqual(SERVICES, set(self.database.get_services()))

    def test_both_versions_answer_the_same(self):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = []
        for version in ("v1", "v1alpha"):
            stream = self.server.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            answer = next(iter(stream(iter([request]), timeout=10)))
            listed.append(sorted(service.name for service in answer.list_services_response.service))
        self.assertEqual(listed[0], listed[1])

    def test_every_service_comes_with_all_its_imports(self):
        for service in self.database.get_services():
            descriptor = self.pool.FindServiceByName(service)
            for method in descriptor.methods:
                self.assertTrue(method.input_type.full_name and method.output_type.full_name)

    def test_a_run_and_its_watch(self):
        id = f"reflected-{time.time_ns()}"
        created = self.call(
            "ExecutionService",
            "CreateExecution",
            {"execution_id": id, "app_name": "reflected", "metadata": {"k": [1, {"x": None}]}},
        )["execution"]
        self.assertEqual(created["status"], "EXECUTION_STATUS_RUNNING")
        self.call(
            "StepService",
            "FinishStep",
            {"execution_id": id, "step_id": 0, "step_name": "s", "status": "STEP_STATUS_COMPLETED", "output": "text"},
        )
        self.call("ExecutionService", "FinishExecution", {"execution_id": id, "status": "EXECUTION_STATUS_COMPLETED"})
        events = self.call("ExecutionService", "WatchExecution", {"execution_id": id, "include_steps": True})
        self.assertEqual(events[0]["execution"]["execution"]["metadata"], {"k": [1.0, {"x": None}]})
        self.assertEqual(events[1]["step"]["step"]["step_id"], 0)
        self.assertIn("snapshot_complete", events[2])


if __name__ == "__main__":
    unittest.main(verbosity=2)

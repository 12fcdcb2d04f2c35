"""The generated stubs, all on one channel."""

from __future__ import annotations

from typing import Any

from .._pb.admin_service_pb2_grpc import AdminServiceStub
from .._pb.analytics_service_pb2_grpc import AnalyticsServiceStub
from .._pb.artifact_service_pb2_grpc import ArtifactServiceStub
from .._pb.configuration_service_pb2_grpc import ConfigurationServiceStub
from .._pb.execution_service_pb2_grpc import ExecutionServiceStub
from .._pb.ingest_service_pb2_grpc import IngestServiceStub
from .._pb.metric_service_pb2_grpc import MetricServiceStub
from .._pb.search_service_pb2_grpc import SearchServiceStub
from .._pb.step_service_pb2_grpc import StepServiceStub


class Stubs:
    """For what has no function of its own: `api.raw.executions.DeleteExecution(...)`. The messages are in
    `stepwell._pb`."""

    def __init__(self, channel: Any) -> None:
        self.executions = ExecutionServiceStub(channel)
        self.steps = StepServiceStub(channel)
        self.ingest = IngestServiceStub(channel)
        self.artifacts = ArtifactServiceStub(channel)
        self.metrics = MetricServiceStub(channel)
        self.configurations = ConfigurationServiceStub(channel)
        self.analytics = AnalyticsServiceStub(channel)
        self.search = SearchServiceStub(channel)
        self.admin = AdminServiceStub(channel)

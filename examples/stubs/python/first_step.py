"""A run with one step, with stubs alone: docs/clients.md has the commands."""

import os

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from stepwell.v1 import common_pb2 as common
from stepwell.v1 import execution_service_pb2 as execution
from stepwell.v1 import execution_service_pb2_grpc as execution_grpc
from stepwell.v1 import step_service_pb2 as step
from stepwell.v1 import step_service_pb2_grpc as step_grpc

channel = grpc.insecure_channel(os.environ.get("STEPWELL_SERVER", "127.0.0.1:50051"))
executions, steps = execution_grpc.ExecutionServiceStub(channel), step_grpc.StepServiceStub(channel)

run = executions.CreateExecution(execution.CreateExecutionRequest(app_name="hello")).execution.execution_id
started = steps.StartStep(
    step.StartStepRequest(execution_id=run, step_name="fetch", input=ParseDict({"url": "https://example.org"}, Value()))
).step
ended = steps.FinishStep(
    step.FinishStepRequest(
        execution_id=run,
        step_id=started.step_id,
        status=common.STEP_STATUS_COMPLETED,
        output=ParseDict({"bytes": 1256}, Value()),
    )
).step
executions.FinishExecution(
    execution.FinishExecutionRequest(execution_id=run, status=common.EXECUTION_STATUS_COMPLETED)
)
print(f"step {ended.step_id} {ended.step_name}: {common.StepStatus.Name(ended.status)}")

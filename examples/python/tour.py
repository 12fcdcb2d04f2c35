"""One run, reported and watched. Needs grpcio and the stubs generated next to this file (see the README)."""

import threading

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from stepwell.v1 import common_pb2 as common
from stepwell.v1 import execution_service_pb2 as execution
from stepwell.v1 import execution_service_pb2_grpc as execution_grpc
from stepwell.v1 import step_service_pb2 as step
from stepwell.v1 import step_service_pb2_grpc as step_grpc

channel = grpc.insecure_channel("127.0.0.1:50051")
executions = execution_grpc.ExecutionServiceStub(channel)
steps = step_grpc.StepServiceStub(channel)

run = executions.CreateExecution(execution.CreateExecutionRequest(app_name="hello")).execution
live = threading.Event()


def watch():
    request = execution.WatchExecutionRequest(execution_id=run.execution_id, include_steps=True)
    for event in executions.WatchExecution(request):
        kind = event.WhichOneof("event")
        if kind == "step":
            changed = event.step.step
            status = common.StepStatus.Name(changed.status)
            print(f"step {changed.step_id} {changed.step_name}: {status} {changed.progress:.0%}")
        elif kind == "execution":
            print(f"execution: {common.ExecutionStatus.Name(event.execution.execution.status)}")
        elif kind == "snapshot_complete":
            live.set()


watcher = threading.Thread(target=watch)
watcher.start()
live.wait()

started = steps.StartStep(
    step.StartStepRequest(
        execution_id=run.execution_id, step_name="fetch", input=ParseDict({"url": "https://example.org"}, Value())
    )
).step
steps.UpdateStep(
    step.UpdateStepRequest(execution_id=run.execution_id, step_id=started.step_id, progress=0.5)
)
steps.FinishStep(
    step.FinishStepRequest(
        execution_id=run.execution_id,
        step_id=started.step_id,
        status=common.STEP_STATUS_COMPLETED,
        output=ParseDict({"bytes": 1256}, Value()),
    )
)
executions.FinishExecution(
    execution.FinishExecutionRequest(
        execution_id=run.execution_id, status=common.EXECUTION_STATUS_COMPLETED
    )
)
watcher.join()

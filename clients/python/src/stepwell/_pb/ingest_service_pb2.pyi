from google.rpc import status_pb2 as _status_pb2
from stepwell._pb import common_pb2 as _common_pb2
from stepwell._pb import configuration_service_pb2 as _configuration_service_pb2
from stepwell._pb import execution_service_pb2 as _execution_service_pb2
from stepwell._pb import metric_service_pb2 as _metric_service_pb2
from stepwell._pb import step_service_pb2 as _step_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IngestRequest(_message.Message):
    __slots__ = ("sequence", "create_execution", "update_execution", "finish_execution", "heartbeat", "request_cancel", "delete_execution", "plan_steps", "start_step", "update_step", "finish_step", "put_execution", "put_step", "record_metrics", "put_artifact", "put_configuration", "put_metrics", "mirrored")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    FINISH_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CANCEL_FIELD_NUMBER: _ClassVar[int]
    DELETE_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    PLAN_STEPS_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    UPDATE_STEP_FIELD_NUMBER: _ClassVar[int]
    FINISH_STEP_FIELD_NUMBER: _ClassVar[int]
    PUT_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    PUT_STEP_FIELD_NUMBER: _ClassVar[int]
    RECORD_METRICS_FIELD_NUMBER: _ClassVar[int]
    PUT_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    PUT_CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    PUT_METRICS_FIELD_NUMBER: _ClassVar[int]
    MIRRORED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    create_execution: _execution_service_pb2.CreateExecutionRequest
    update_execution: _execution_service_pb2.UpdateExecutionRequest
    finish_execution: _execution_service_pb2.FinishExecutionRequest
    heartbeat: _execution_service_pb2.HeartbeatRequest
    request_cancel: _execution_service_pb2.RequestCancelRequest
    delete_execution: _execution_service_pb2.DeleteExecutionRequest
    plan_steps: _step_service_pb2.PlanStepsRequest
    start_step: _step_service_pb2.StartStepRequest
    update_step: _step_service_pb2.UpdateStepRequest
    finish_step: _step_service_pb2.FinishStepRequest
    put_execution: _execution_service_pb2.Execution
    put_step: _common_pb2.Step
    record_metrics: _metric_service_pb2.RecordMetricsRequest
    put_artifact: _common_pb2.Artifact
    put_configuration: _configuration_service_pb2.Configuration
    put_metrics: _metric_service_pb2.RecordMetricsRequest
    mirrored: Mirrored
    def __init__(self, sequence: _Optional[int] = ..., create_execution: _Optional[_Union[_execution_service_pb2.CreateExecutionRequest, _Mapping]] = ..., update_execution: _Optional[_Union[_execution_service_pb2.UpdateExecutionRequest, _Mapping]] = ..., finish_execution: _Optional[_Union[_execution_service_pb2.FinishExecutionRequest, _Mapping]] = ..., heartbeat: _Optional[_Union[_execution_service_pb2.HeartbeatRequest, _Mapping]] = ..., request_cancel: _Optional[_Union[_execution_service_pb2.RequestCancelRequest, _Mapping]] = ..., delete_execution: _Optional[_Union[_execution_service_pb2.DeleteExecutionRequest, _Mapping]] = ..., plan_steps: _Optional[_Union[_step_service_pb2.PlanStepsRequest, _Mapping]] = ..., start_step: _Optional[_Union[_step_service_pb2.StartStepRequest, _Mapping]] = ..., update_step: _Optional[_Union[_step_service_pb2.UpdateStepRequest, _Mapping]] = ..., finish_step: _Optional[_Union[_step_service_pb2.FinishStepRequest, _Mapping]] = ..., put_execution: _Optional[_Union[_execution_service_pb2.Execution, _Mapping]] = ..., put_step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ..., record_metrics: _Optional[_Union[_metric_service_pb2.RecordMetricsRequest, _Mapping]] = ..., put_artifact: _Optional[_Union[_common_pb2.Artifact, _Mapping]] = ..., put_configuration: _Optional[_Union[_configuration_service_pb2.Configuration, _Mapping]] = ..., put_metrics: _Optional[_Union[_metric_service_pb2.RecordMetricsRequest, _Mapping]] = ..., mirrored: _Optional[_Union[Mirrored, _Mapping]] = ...) -> None: ...

class Mirrored(_message.Message):
    __slots__ = ("source_position",)
    SOURCE_POSITION_FIELD_NUMBER: _ClassVar[int]
    source_position: int
    def __init__(self, source_position: _Optional[int] = ...) -> None: ...

class IngestedExecution(_message.Message):
    __slots__ = ("execution_id", "revision", "status", "superseded")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    revision: int
    status: _common_pb2.ExecutionStatus
    superseded: bool
    def __init__(self, execution_id: _Optional[str] = ..., revision: _Optional[int] = ..., status: _Optional[_Union[_common_pb2.ExecutionStatus, str]] = ..., superseded: bool = ...) -> None: ...

class IngestedStep(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_key", "revision", "status", "superseded")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_key: str
    revision: int
    status: _common_pb2.StepStatus
    superseded: bool
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., revision: _Optional[int] = ..., status: _Optional[_Union[_common_pb2.StepStatus, str]] = ..., superseded: bool = ...) -> None: ...

class IngestedSteps(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[IngestedStep]
    def __init__(self, steps: _Optional[_Iterable[_Union[IngestedStep, _Mapping]]] = ...) -> None: ...

class IngestedDeletion(_message.Message):
    __slots__ = ("execution_id",)
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    def __init__(self, execution_id: _Optional[str] = ...) -> None: ...

class IngestedArtifact(_message.Message):
    __slots__ = ("artifact_id", "created")
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    created: bool
    def __init__(self, artifact_id: _Optional[str] = ..., created: bool = ...) -> None: ...

class IngestedConfiguration(_message.Message):
    __slots__ = ("version", "active", "created")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    version: str
    active: bool
    created: bool
    def __init__(self, version: _Optional[str] = ..., active: bool = ..., created: bool = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("sequence", "execution", "step", "steps", "heartbeat", "deleted", "error", "metrics", "artifact", "configuration")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    execution: IngestedExecution
    step: IngestedStep
    steps: IngestedSteps
    heartbeat: _execution_service_pb2.HeartbeatResponse
    deleted: IngestedDeletion
    error: _status_pb2.Status
    metrics: _metric_service_pb2.RecordMetricsResponse
    artifact: IngestedArtifact
    configuration: IngestedConfiguration
    def __init__(self, sequence: _Optional[int] = ..., execution: _Optional[_Union[IngestedExecution, _Mapping]] = ..., step: _Optional[_Union[IngestedStep, _Mapping]] = ..., steps: _Optional[_Union[IngestedSteps, _Mapping]] = ..., heartbeat: _Optional[_Union[_execution_service_pb2.HeartbeatResponse, _Mapping]] = ..., deleted: _Optional[_Union[IngestedDeletion, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., metrics: _Optional[_Union[_metric_service_pb2.RecordMetricsResponse, _Mapping]] = ..., artifact: _Optional[_Union[IngestedArtifact, _Mapping]] = ..., configuration: _Optional[_Union[IngestedConfiguration, _Mapping]] = ...) -> None: ...

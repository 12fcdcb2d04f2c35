from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlannedStep(_message.Message):
    __slots__ = ("step_id", "step_key", "step_name", "step_version", "depends_on", "input", "metadata", "depends_on_keys", "parent_step_id", "parent_step_key")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_KEYS_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    step_key: str
    step_name: str
    step_version: str
    depends_on: _containers.RepeatedScalarFieldContainer[int]
    input: _struct_pb2.Value
    metadata: _struct_pb2.Struct
    depends_on_keys: _containers.RepeatedScalarFieldContainer[str]
    parent_step_id: int
    parent_step_key: str
    def __init__(self, step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., step_name: _Optional[str] = ..., step_version: _Optional[str] = ..., depends_on: _Optional[_Iterable[int]] = ..., input: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., depends_on_keys: _Optional[_Iterable[str]] = ..., parent_step_id: _Optional[int] = ..., parent_step_key: _Optional[str] = ...) -> None: ...

class PlanStepsRequest(_message.Message):
    __slots__ = ("execution_id", "steps", "configuration_version")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    steps: _containers.RepeatedCompositeFieldContainer[PlannedStep]
    configuration_version: str
    def __init__(self, execution_id: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[PlannedStep, _Mapping]]] = ..., configuration_version: _Optional[str] = ...) -> None: ...

class PlanStepsResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[_common_pb2.Step]
    def __init__(self, steps: _Optional[_Iterable[_Union[_common_pb2.Step, _Mapping]]] = ...) -> None: ...

class StartStepRequest(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_key", "step_name", "step_version", "input", "metadata", "depends_on", "parent_step_id", "started_at", "attempt", "parent_step_key", "depends_on_keys")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_KEYS_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_key: str
    step_name: str
    step_version: str
    input: _struct_pb2.Value
    metadata: _struct_pb2.Struct
    depends_on: _containers.RepeatedScalarFieldContainer[int]
    parent_step_id: int
    started_at: _timestamp_pb2.Timestamp
    attempt: int
    parent_step_key: str
    depends_on_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., step_name: _Optional[str] = ..., step_version: _Optional[str] = ..., input: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., depends_on: _Optional[_Iterable[int]] = ..., parent_step_id: _Optional[int] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., attempt: _Optional[int] = ..., parent_step_key: _Optional[str] = ..., depends_on_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class StartStepResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _common_pb2.Step
    def __init__(self, step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ...) -> None: ...

class UpdateStepRequest(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_key", "progress", "progress_message", "metadata", "output", "update_sequence")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_key: str
    progress: float
    progress_message: str
    metadata: _struct_pb2.Struct
    output: _struct_pb2.Value
    update_sequence: int
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., progress: _Optional[float] = ..., progress_message: _Optional[str] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., output: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., update_sequence: _Optional[int] = ...) -> None: ...

class UpdateStepResponse(_message.Message):
    __slots__ = ("step", "superseded")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    step: _common_pb2.Step
    superseded: bool
    def __init__(self, step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ..., superseded: bool = ...) -> None: ...

class FinishStepRequest(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_key", "status", "output", "error", "completed_at", "metadata", "step_name", "step_version", "input", "started_at", "depends_on", "parent_step_id", "parent_step_key", "depends_on_keys")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_KEYS_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_key: str
    status: _common_pb2.StepStatus
    output: _struct_pb2.Value
    error: _common_pb2.Error
    completed_at: _timestamp_pb2.Timestamp
    metadata: _struct_pb2.Struct
    step_name: str
    step_version: str
    input: _struct_pb2.Value
    started_at: _timestamp_pb2.Timestamp
    depends_on: _containers.RepeatedScalarFieldContainer[int]
    parent_step_id: int
    parent_step_key: str
    depends_on_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.StepStatus, str]] = ..., output: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., completed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., step_name: _Optional[str] = ..., step_version: _Optional[str] = ..., input: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., depends_on: _Optional[_Iterable[int]] = ..., parent_step_id: _Optional[int] = ..., parent_step_key: _Optional[str] = ..., depends_on_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class FinishStepResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _common_pb2.Step
    def __init__(self, step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ...) -> None: ...

class GetStepRequest(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_key", "max_payload_bytes")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_key: str
    max_payload_bytes: int
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., max_payload_bytes: _Optional[int] = ...) -> None: ...

class GetStepResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _common_pb2.Step
    def __init__(self, step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ...) -> None: ...

class ListStepsRequest(_message.Message):
    __slots__ = ("execution_id", "statuses", "page_size", "page_token", "include_payloads")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    statuses: _containers.RepeatedScalarFieldContainer[_common_pb2.StepStatus]
    page_size: int
    page_token: str
    include_payloads: bool
    def __init__(self, execution_id: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[_common_pb2.StepStatus, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_payloads: bool = ...) -> None: ...

class ListStepsResponse(_message.Message):
    __slots__ = ("steps", "next_page_token")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[_common_pb2.Step]
    next_page_token: str
    def __init__(self, steps: _Optional[_Iterable[_Union[_common_pb2.Step, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

from stepwell._pb import common_pb2 as _common_pb2
from stepwell._pb import configuration_service_pb2 as _configuration_service_pb2
from stepwell._pb import execution_service_pb2 as _execution_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExportKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPORT_KIND_UNSPECIFIED: _ClassVar[ExportKind]
    EXPORT_KIND_EXECUTIONS: _ClassVar[ExportKind]
    EXPORT_KIND_STEPS: _ClassVar[ExportKind]
    EXPORT_KIND_ARTIFACTS: _ClassVar[ExportKind]
    EXPORT_KIND_METRICS: _ClassVar[ExportKind]
    EXPORT_KIND_CONFIGURATIONS: _ClassVar[ExportKind]
EXPORT_KIND_UNSPECIFIED: ExportKind
EXPORT_KIND_EXECUTIONS: ExportKind
EXPORT_KIND_STEPS: ExportKind
EXPORT_KIND_ARTIFACTS: ExportKind
EXPORT_KIND_METRICS: ExportKind
EXPORT_KIND_CONFIGURATIONS: ExportKind

class ExportRequest(_message.Message):
    __slots__ = ("filter", "kinds", "resume_token", "follow")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    kinds: _containers.RepeatedScalarFieldContainer[ExportKind]
    resume_token: str
    follow: bool
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., kinds: _Optional[_Iterable[_Union[ExportKind, str]]] = ..., resume_token: _Optional[str] = ..., follow: bool = ...) -> None: ...

class ExportedPoints(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[_common_pb2.MetricPoint]
    def __init__(self, points: _Optional[_Iterable[_Union[_common_pb2.MetricPoint, _Mapping]]] = ...) -> None: ...

class ExportedRemoval(_message.Message):
    __slots__ = ("execution_id", "step_id", "artifact_id")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    artifact_id: str
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., artifact_id: _Optional[str] = ...) -> None: ...

class ExportWalked(_message.Message):
    __slots__ = ("unreadable",)
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    unreadable: int
    def __init__(self, unreadable: _Optional[int] = ...) -> None: ...

class ExportCaughtUp(_message.Message):
    __slots__ = ("position", "age_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    age_ms: int
    def __init__(self, position: _Optional[int] = ..., age_ms: _Optional[int] = ...) -> None: ...

class ExportComplete(_message.Message):
    __slots__ = ("since_position", "until_position")
    SINCE_POSITION_FIELD_NUMBER: _ClassVar[int]
    UNTIL_POSITION_FIELD_NUMBER: _ClassVar[int]
    since_position: int
    until_position: int
    def __init__(self, since_position: _Optional[int] = ..., until_position: _Optional[int] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("resume_token", "execution", "step", "artifact", "points", "configuration", "removed", "walked", "complete", "caught_up", "position")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    WALKED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    execution: _execution_service_pb2.Execution
    step: _common_pb2.Step
    artifact: _common_pb2.Artifact
    points: ExportedPoints
    configuration: _configuration_service_pb2.Configuration
    removed: ExportedRemoval
    walked: ExportWalked
    complete: ExportComplete
    caught_up: ExportCaughtUp
    position: int
    def __init__(self, resume_token: _Optional[str] = ..., execution: _Optional[_Union[_execution_service_pb2.Execution, _Mapping]] = ..., step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ..., artifact: _Optional[_Union[_common_pb2.Artifact, _Mapping]] = ..., points: _Optional[_Union[ExportedPoints, _Mapping]] = ..., configuration: _Optional[_Union[_configuration_service_pb2.Configuration, _Mapping]] = ..., removed: _Optional[_Union[ExportedRemoval, _Mapping]] = ..., walked: _Optional[_Union[ExportWalked, _Mapping]] = ..., complete: _Optional[_Union[ExportComplete, _Mapping]] = ..., caught_up: _Optional[_Union[ExportCaughtUp, _Mapping]] = ..., position: _Optional[int] = ...) -> None: ...

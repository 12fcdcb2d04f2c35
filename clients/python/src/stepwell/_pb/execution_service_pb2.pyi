from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutionView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_VIEW_UNSPECIFIED: _ClassVar[ExecutionView]
    EXECUTION_VIEW_BASIC: _ClassVar[ExecutionView]
    EXECUTION_VIEW_FULL: _ClassVar[ExecutionView]

class ExecutionOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_ORDER_UNSPECIFIED: _ClassVar[ExecutionOrder]
    EXECUTION_ORDER_STARTED_AT_DESC: _ClassVar[ExecutionOrder]
    EXECUTION_ORDER_STARTED_AT_ASC: _ClassVar[ExecutionOrder]

class WatchSnapshot(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WATCH_SNAPSHOT_UNSPECIFIED: _ClassVar[WatchSnapshot]
    WATCH_SNAPSHOT_ALL: _ClassVar[WatchSnapshot]
    WATCH_SNAPSHOT_ACTIVE: _ClassVar[WatchSnapshot]
    WATCH_SNAPSHOT_NONE: _ClassVar[WatchSnapshot]
EXECUTION_VIEW_UNSPECIFIED: ExecutionView
EXECUTION_VIEW_BASIC: ExecutionView
EXECUTION_VIEW_FULL: ExecutionView
EXECUTION_ORDER_UNSPECIFIED: ExecutionOrder
EXECUTION_ORDER_STARTED_AT_DESC: ExecutionOrder
EXECUTION_ORDER_STARTED_AT_ASC: ExecutionOrder
WATCH_SNAPSHOT_UNSPECIFIED: WatchSnapshot
WATCH_SNAPSHOT_ALL: WatchSnapshot
WATCH_SNAPSHOT_ACTIVE: WatchSnapshot
WATCH_SNAPSHOT_NONE: WatchSnapshot

class Execution(_message.Message):
    __slots__ = ("execution_id", "app_id", "app_name", "sub_app_id", "sub_app_name", "user_id", "status", "started_at", "completed_at", "duration_ms", "error", "metadata", "created_at", "updated_at", "revision", "heartbeat_timeout_ms", "last_heartbeat_at", "cancel_requested_at", "cancel_reason", "parent_execution_id", "pinned", "configuration_version", "update_sequence", "omitted_fields")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_AT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REASON_FIELD_NUMBER: _ClassVar[int]
    PARENT_EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    user_id: str
    status: _common_pb2.ExecutionStatus
    started_at: _timestamp_pb2.Timestamp
    completed_at: _timestamp_pb2.Timestamp
    duration_ms: int
    error: _common_pb2.Error
    metadata: _struct_pb2.Struct
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    revision: int
    heartbeat_timeout_ms: int
    last_heartbeat_at: _timestamp_pb2.Timestamp
    cancel_requested_at: _timestamp_pb2.Timestamp
    cancel_reason: str
    parent_execution_id: str
    pinned: bool
    configuration_version: str
    update_sequence: int
    omitted_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, execution_id: _Optional[str] = ..., app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., user_id: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.ExecutionStatus, str]] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., completed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., duration_ms: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., heartbeat_timeout_ms: _Optional[int] = ..., last_heartbeat_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., cancel_requested_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., cancel_reason: _Optional[str] = ..., parent_execution_id: _Optional[str] = ..., pinned: bool = ..., configuration_version: _Optional[str] = ..., update_sequence: _Optional[int] = ..., omitted_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "app_id", "app_name", "sub_app_id", "sub_app_name", "user_id", "metadata", "started_at", "heartbeat_timeout", "parent_execution_id", "configuration_version")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PARENT_EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    user_id: str
    metadata: _struct_pb2.Struct
    started_at: _timestamp_pb2.Timestamp
    heartbeat_timeout: _duration_pb2.Duration
    parent_execution_id: str
    configuration_version: str
    def __init__(self, execution_id: _Optional[str] = ..., app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., user_id: _Optional[str] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., heartbeat_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., parent_execution_id: _Optional[str] = ..., configuration_version: _Optional[str] = ...) -> None: ...

class CreateExecutionResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: Execution
    def __init__(self, execution: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class GetExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "view")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    view: ExecutionView
    def __init__(self, execution_id: _Optional[str] = ..., view: _Optional[_Union[ExecutionView, str]] = ...) -> None: ...

class GetExecutionResponse(_message.Message):
    __slots__ = ("execution", "steps", "artifacts", "steps_truncated")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    execution: Execution
    steps: _containers.RepeatedCompositeFieldContainer[_common_pb2.Step]
    artifacts: _containers.RepeatedCompositeFieldContainer[_common_pb2.Artifact]
    steps_truncated: bool
    def __init__(self, execution: _Optional[_Union[Execution, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[_common_pb2.Step, _Mapping]]] = ..., artifacts: _Optional[_Iterable[_Union[_common_pb2.Artifact, _Mapping]]] = ..., steps_truncated: bool = ...) -> None: ...

class ListExecutionsRequest(_message.Message):
    __slots__ = ("filter", "order", "page_size", "page_token", "include_step_counts")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STEP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    order: ExecutionOrder
    page_size: int
    page_token: str
    include_step_counts: bool
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., order: _Optional[_Union[ExecutionOrder, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_step_counts: bool = ...) -> None: ...

class StepCounts(_message.Message):
    __slots__ = ("pending", "running", "completed", "failed", "skipped", "exact")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    pending: int
    running: int
    completed: int
    failed: int
    skipped: int
    exact: bool
    def __init__(self, pending: _Optional[int] = ..., running: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., skipped: _Optional[int] = ..., exact: bool = ...) -> None: ...

class CountExecutionsRequest(_message.Message):
    __slots__ = ("filter", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    limit: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class CountExecutionsResponse(_message.Message):
    __slots__ = ("count", "exact", "unreadable")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    count: int
    exact: bool
    unreadable: int
    def __init__(self, count: _Optional[int] = ..., exact: bool = ..., unreadable: _Optional[int] = ...) -> None: ...

class ListExecutionsResponse(_message.Message):
    __slots__ = ("executions", "next_page_token", "step_counts")
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    executions: _containers.RepeatedCompositeFieldContainer[Execution]
    next_page_token: str
    step_counts: _containers.RepeatedCompositeFieldContainer[StepCounts]
    def __init__(self, executions: _Optional[_Iterable[_Union[Execution, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., step_counts: _Optional[_Iterable[_Union[StepCounts, _Mapping]]] = ...) -> None: ...

class UpdateExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "metadata", "pinned", "expected_revision", "update_sequence")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    metadata: _struct_pb2.Struct
    pinned: bool
    expected_revision: int
    update_sequence: int
    def __init__(self, execution_id: _Optional[str] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., pinned: bool = ..., expected_revision: _Optional[int] = ..., update_sequence: _Optional[int] = ...) -> None: ...

class UpdateExecutionResponse(_message.Message):
    __slots__ = ("execution", "superseded")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    execution: Execution
    superseded: bool
    def __init__(self, execution: _Optional[_Union[Execution, _Mapping]] = ..., superseded: bool = ...) -> None: ...

class FinishExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "status", "error", "completed_at", "metadata")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    status: _common_pb2.ExecutionStatus
    error: _common_pb2.Error
    completed_at: _timestamp_pb2.Timestamp
    metadata: _struct_pb2.Struct
    def __init__(self, execution_id: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.ExecutionStatus, str]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., completed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class FinishExecutionResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: Execution
    def __init__(self, execution: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("execution_id",)
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    def __init__(self, execution_id: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("cancel_requested",)
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    cancel_requested: bool
    def __init__(self, cancel_requested: bool = ...) -> None: ...

class RequestCancelRequest(_message.Message):
    __slots__ = ("execution_id", "reason")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    reason: str
    def __init__(self, execution_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RequestCancelResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: Execution
    def __init__(self, execution: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class DeleteExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "force")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    force: bool
    def __init__(self, execution_id: _Optional[str] = ..., force: bool = ...) -> None: ...

class DeleteExecutionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchExecutionRequest(_message.Message):
    __slots__ = ("execution_id", "resume_token", "include_steps", "include_artifacts", "include_metrics", "include_payloads", "follow")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STEPS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_METRICS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    resume_token: str
    include_steps: bool
    include_artifacts: bool
    include_metrics: bool
    include_payloads: bool
    follow: bool
    def __init__(self, execution_id: _Optional[str] = ..., resume_token: _Optional[str] = ..., include_steps: bool = ..., include_artifacts: bool = ..., include_metrics: bool = ..., include_payloads: bool = ..., follow: bool = ...) -> None: ...

class ExecutionChange(_message.Message):
    __slots__ = ("change_type", "execution")
    CHANGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    change_type: _common_pb2.ChangeType
    execution: Execution
    def __init__(self, change_type: _Optional[_Union[_common_pb2.ChangeType, str]] = ..., execution: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class StepChange(_message.Message):
    __slots__ = ("change_type", "step")
    CHANGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    change_type: _common_pb2.ChangeType
    step: _common_pb2.Step
    def __init__(self, change_type: _Optional[_Union[_common_pb2.ChangeType, str]] = ..., step: _Optional[_Union[_common_pb2.Step, _Mapping]] = ...) -> None: ...

class ArtifactChange(_message.Message):
    __slots__ = ("change_type", "artifact")
    CHANGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    change_type: _common_pb2.ChangeType
    artifact: _common_pb2.Artifact
    def __init__(self, change_type: _Optional[_Union[_common_pb2.ChangeType, str]] = ..., artifact: _Optional[_Union[_common_pb2.Artifact, _Mapping]] = ...) -> None: ...

class MetricsRecorded(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[_common_pb2.MetricPoint]
    def __init__(self, points: _Optional[_Iterable[_Union[_common_pb2.MetricPoint, _Mapping]]] = ...) -> None: ...

class SnapshotComplete(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Keepalive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchExecutionResponse(_message.Message):
    __slots__ = ("resume_token", "execution", "step", "artifact", "metrics", "snapshot_complete", "keepalive")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    execution: ExecutionChange
    step: StepChange
    artifact: ArtifactChange
    metrics: MetricsRecorded
    snapshot_complete: SnapshotComplete
    keepalive: Keepalive
    def __init__(self, resume_token: _Optional[str] = ..., execution: _Optional[_Union[ExecutionChange, _Mapping]] = ..., step: _Optional[_Union[StepChange, _Mapping]] = ..., artifact: _Optional[_Union[ArtifactChange, _Mapping]] = ..., metrics: _Optional[_Union[MetricsRecorded, _Mapping]] = ..., snapshot_complete: _Optional[_Union[SnapshotComplete, _Mapping]] = ..., keepalive: _Optional[_Union[Keepalive, _Mapping]] = ...) -> None: ...

class WatchExecutionsRequest(_message.Message):
    __slots__ = ("filter", "resume_token", "include_steps", "include_payloads", "snapshot")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STEPS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    resume_token: str
    include_steps: bool
    include_payloads: bool
    snapshot: WatchSnapshot
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., resume_token: _Optional[str] = ..., include_steps: bool = ..., include_payloads: bool = ..., snapshot: _Optional[_Union[WatchSnapshot, str]] = ...) -> None: ...

class WatchExecutionsResponse(_message.Message):
    __slots__ = ("resume_token", "execution", "step", "artifact", "metrics", "snapshot_complete", "keepalive")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    execution: ExecutionChange
    step: StepChange
    artifact: ArtifactChange
    metrics: MetricsRecorded
    snapshot_complete: SnapshotComplete
    keepalive: Keepalive
    def __init__(self, resume_token: _Optional[str] = ..., execution: _Optional[_Union[ExecutionChange, _Mapping]] = ..., step: _Optional[_Union[StepChange, _Mapping]] = ..., artifact: _Optional[_Union[ArtifactChange, _Mapping]] = ..., metrics: _Optional[_Union[MetricsRecorded, _Mapping]] = ..., snapshot_complete: _Optional[_Union[SnapshotComplete, _Mapping]] = ..., keepalive: _Optional[_Union[Keepalive, _Mapping]] = ...) -> None: ...

"""Records as frozen dataclasses: fields are named as in the API, times are `datetime` (UTC), durations `timedelta`,
statuses are strings such as "failed"."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Mapping
from typing import Any, Literal, Union

from google.protobuf.timestamp_pb2 import Timestamp

from .._pb import common_pb2, execution_service_pb2
from .._values import from_struct, from_value


class _Text(str, enum.Enum):
    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)


class ExecutionStatus(_Text):
    """Of a run."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: Another program stored something else.
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED)


class StepStatus(_Text):
    """Of a step."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


class Change(_Text):
    """What happened to the record of an event."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


EXECUTION_STATUS = {
    number: ExecutionStatus(name.removeprefix("EXECUTION_STATUS_").lower()) if number else ExecutionStatus.UNKNOWN
    for name, number in common_pb2.ExecutionStatus.items()
}
STEP_STATUS = {
    number: StepStatus(name.removeprefix("STEP_STATUS_").lower()) if number else StepStatus.UNKNOWN
    for name, number in common_pb2.StepStatus.items()
}
CHANGE = {
    number: Change(name.removeprefix("CHANGE_TYPE_").lower()) for name, number in common_pb2.ChangeType.items() if number
}


class _Record:
    """Shown without what is not there: most fields of most records are empty."""

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None or value == "" or value == () or value == {}:
                continue
            if isinstance(value, dt.datetime):
                shown.append(f"{field.name}={value.isoformat(timespec='milliseconds')}")
            elif isinstance(value, dt.timedelta):
                shown.append(f"{field.name}={value.total_seconds():g}s")
            else:
                shown.append(f"{field.name}={(str(value) if isinstance(value, _Text) else value)!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, repr=False)
class ErrorInfo(_Record):
    """Why a run or step failed."""

    message: str
    code: str = ""
    stack_trace: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else self.message


@dataclasses.dataclass(frozen=True, repr=False)
class Attempt(_Record):
    """An earlier attempt of a step."""

    started_at: dt.datetime | None
    completed_at: dt.datetime | None
    duration: dt.timedelta | None
    error: ErrorInfo | None


@dataclasses.dataclass(frozen=True, repr=False)
class StepRecord(_Record):
    """One step, as stored. `input` and `output` are only there where they were asked for."""

    execution_id: str
    step_id: int | None
    step_key: str | None
    step_name: str
    status: StepStatus
    step_version: str | None = None
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    duration: dt.timedelta | None = None
    input: Any = None
    output: Any = None
    error: ErrorInfo | None = None
    retry_count: int = 0
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    depends_on: tuple[int, ...] = ()
    depends_on_keys: tuple[str, ...] = ()
    parent_step_id: int | None = None
    parent_step_key: str | None = None
    progress: float | None = None
    progress_message: str | None = None
    attempts: tuple[Attempt, ...] = ()
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None
    update_sequence: int | None = None
    revision: int = 0
    omitted_fields: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it does."""
        return self.step_name

    @property
    def key(self) -> str | None:
        """The client's own id of it."""
        return self.step_key

    @property
    def duration_ms(self) -> int | None:
        """The duration as the API has it."""
        return _ms(self.duration)


@dataclasses.dataclass(frozen=True, repr=False)
class Artifact(_Record):
    """The record of one file."""

    artifact_id: str
    execution_id: str
    artifact_name: str
    artifact_type: str
    step_id: int | None = None
    step_key: str | None = None
    mime_type: str | None = None
    size_bytes: int | None = None
    storage_type: str | None = None
    storage_path: str | None = None
    sha256: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created_at: dt.datetime | None = None
    omitted_fields: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Of the artifact."""
        return self.artifact_id

    @property
    def name(self) -> str:
        """Of the file."""
        return self.artifact_name

    @property
    def status(self) -> str:
        """ "stored": an artifact is only visible once it is whole."""
        return "stored"


@dataclasses.dataclass(frozen=True, repr=False)
class Points(_Record):
    """Numbers that were recorded."""

    execution_id: str
    points: tuple[tuple[dt.datetime | None, Mapping[str, float]], ...]

    @property
    def status(self) -> str:
        """ "recorded"."""
        return "recorded"


@dataclasses.dataclass(frozen=True, repr=False)
class Execution(_Record):
    """One run, as stored. `steps` and `artifacts` are only there where they were asked for."""

    execution_id: str
    app_name: str
    status: ExecutionStatus
    app_id: int | None = None
    sub_app_id: int | None = None
    sub_app_name: str | None = None
    user_id: str | None = None
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    duration: dt.timedelta | None = None
    error: ErrorInfo | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None
    revision: int = 0
    heartbeat_timeout: dt.timedelta | None = None
    last_heartbeat_at: dt.datetime | None = None
    cancel_requested_at: dt.datetime | None = None
    cancel_reason: str | None = None
    parent_execution_id: str | None = None
    pinned: bool | None = None
    configuration_version: str | None = None
    update_sequence: int | None = None
    omitted_fields: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    artifacts: tuple[Artifact, ...] = ()

    @property
    def id(self) -> str:
        """Of the run."""
        return self.execution_id

    @property
    def app(self) -> str:
        """Name of the app."""
        return self.app_name

    @property
    def user(self) -> str | None:
        """Who ran it."""
        return self.user_id

    @property
    def duration_ms(self) -> int | None:
        """The duration as the API has it."""
        return _ms(self.duration)

    def step(self, name: str) -> StepRecord:
        """The first step with this name or key; KeyError if there is none, or steps were not asked for."""
        for one in self.steps:
            if name in (one.step_key, one.step_name):
                return one
        raise KeyError(name)


@dataclasses.dataclass(frozen=True)
class Count:
    """How many; at least so many unless `exact`."""

    count: int
    exact: bool

    def __int__(self) -> int:
        return self.count


Record = Union[Execution, StepRecord, Artifact, Points]


@dataclasses.dataclass(frozen=True, repr=False)
class Event(_Record):
    """One event of a watch.

    `live` says that the current state is complete and changes follow, `reset` that the stream begins again with the
    current state, as history no longer covers the token. `record` is what changed, whole; of `live` and `reset` the
    run as last known. `token` resumes after this event.
    """

    kind: Literal["execution", "step", "artifact", "metrics", "live", "reset"]
    change: Change | None
    record: Any
    token: str | None


def _ms(duration: dt.timedelta | None) -> int | None:
    return None if duration is None else int(duration / dt.timedelta(milliseconds=1))


def _time(message: Any, field: str) -> dt.datetime | None:
    return at(getattr(message, field)) if message.HasField(field) else None


def at(timestamp: Timestamp) -> dt.datetime | None:
    """In UTC; None for a time that Python cannot hold."""
    try:
        return dt.datetime.fromtimestamp(0, dt.timezone.utc) + dt.timedelta(
            seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000
        )
    except OverflowError:
        return None


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _duration(message: Any) -> dt.timedelta | None:
    return dt.timedelta(milliseconds=message.duration_ms) if message.HasField("duration_ms") else None


def error_info(message: Any) -> ErrorInfo | None:
    """The error of a record that has one."""
    if not message.HasField("error"):
        return None
    error = message.error
    return ErrorInfo(error.message, error.code, error.stack_trace, from_struct(error.details))


def execution(message: execution_service_pb2.Execution) -> Execution:
    """From its message."""
    optional: dict[str, Any] = {
        field: _optional(message, field)
        for field in (
            "app_id",
            "sub_app_id",
            "sub_app_name",
            "user_id",
            "cancel_reason",
            "parent_execution_id",
            "pinned",
            "configuration_version",
            "update_sequence",
        )
    }
    times: dict[str, Any] = {
        field: _time(message, field)
        for field in (
            "started_at",
            "completed_at",
            "created_at",
            "updated_at",
            "last_heartbeat_at",
            "cancel_requested_at",
        )
    }
    timeout = _optional(message, "heartbeat_timeout_ms")
    return Execution(
        execution_id=message.execution_id,
        app_name=message.app_name,
        status=EXECUTION_STATUS.get(message.status, ExecutionStatus.UNKNOWN),
        duration=_duration(message),
        error=error_info(message),
        metadata=from_struct(message.metadata),
        revision=message.revision,
        heartbeat_timeout=None if timeout is None else dt.timedelta(milliseconds=timeout),
        omitted_fields=tuple(message.omitted_fields),
        **optional,
        **times,
    )


def step(message: common_pb2.Step) -> StepRecord:
    """From its message."""
    optional: dict[str, Any] = {
        field: _optional(message, field)
        for field in (
            "step_id",
            "step_key",
            "step_version",
            "parent_step_id",
            "parent_step_key",
            "progress",
            "progress_message",
            "update_sequence",
        )
    }
    times: dict[str, Any] = {
        field: _time(message, field) for field in ("started_at", "completed_at", "created_at", "updated_at")
    }
    return StepRecord(
        execution_id=message.execution_id,
        step_name=message.step_name,
        status=STEP_STATUS.get(message.status, StepStatus.UNKNOWN),
        duration=_duration(message),
        input=from_value(message.input) if message.HasField("input") else None,
        output=from_value(message.output) if message.HasField("output") else None,
        error=error_info(message),
        retry_count=message.retry_count,
        metadata=from_struct(message.metadata),
        depends_on=tuple(message.depends_on),
        depends_on_keys=tuple(message.depends_on_keys),
        attempts=tuple(
            Attempt(_time(one, "started_at"), _time(one, "completed_at"), _duration(one), error_info(one))
            for one in message.attempts
        ),
        revision=message.revision,
        omitted_fields=tuple(message.omitted_fields),
        **optional,
        **times,
    )


def artifact(message: common_pb2.Artifact) -> Artifact:
    """From its message."""
    optional: dict[str, Any] = {
        field: _optional(message, field)
        for field in ("step_id", "step_key", "mime_type", "size_bytes", "storage_type", "storage_path", "sha256")
    }
    return Artifact(
        artifact_id=message.artifact_id,
        execution_id=message.execution_id,
        artifact_name=message.artifact_name,
        artifact_type=message.artifact_type,
        metadata=from_struct(message.metadata),
        created_at=_time(message, "created_at"),
        omitted_fields=tuple(message.omitted_fields),
        **optional,
    )


def points(message: Any, execution_id: str) -> Points:
    """From their message."""
    return Points(execution_id, tuple((at(point.timestamp), dict(point.metrics)) for point in message.points))

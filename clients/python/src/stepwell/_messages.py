"""Requests, made so that the server takes them: what is too long is cut, and says so."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
import traceback
from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ._pb import common_pb2
from ._pb.ingest_service_pb2 import IngestRequest
from ._values import clean, fill_struct

PROCESS_DIED = "PROCESS_DIED"
CANCELLED = "CANCELLED"


@dataclasses.dataclass
class Limits:
    """Of the server: its defaults until it has told us."""

    name_characters: int = 256
    message_characters: int = 4096
    metadata_bytes: int = 256 << 10
    error_message_bytes: int = 64 << 10
    stack_trace_bytes: int = 256 << 10
    payload_bytes: int = 6 << 20

    def learn(self, limits: Mapping[str, int]) -> None:
        """What the server says."""
        for field in dataclasses.fields(self):
            if limits.get(field.name, 0) > 0:
                setattr(self, field.name, int(limits[field.name]))


def set_now(into: Timestamp) -> None:
    """The time of day."""
    into.seconds, into.nanos = divmod(time.time_ns(), 1_000_000_000)


def set_time(into: Timestamp, at: dt.datetime) -> None:
    """A time without zone is local, as everywhere in Python."""
    into.FromDatetime(at.astimezone(dt.timezone.utc))


def short(value: object, characters: int) -> str:
    """A name, cut."""
    name = clean(value if isinstance(value, str) else str(value))
    return name if len(name) <= characters else name[: characters - 1] + "…"


def cut_bytes(value: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` bytes of UTF-8."""
    value = clean(value)
    data = value.encode()
    if len(data) <= limit:
        return value
    if keep_end:
        half = limit // 2 - 10
        return data[:half].decode(errors="ignore") + "\n…\n" + data[-half:].decode(errors="ignore")
    return data[: limit - 3].decode(errors="ignore") + "…"


def set_error(
    into: common_pb2.Error,
    error: BaseException | str,
    limits: Limits,
    *,
    code: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Type, message and trace of an exception, or a text."""
    if isinstance(error, BaseException):
        try:
            message = str(error)
        except Exception:
            message = ""
        name = type(error).__name__
        into.message = cut_bytes(message or name, limits.error_message_bytes)
        into.code = short(code or name, limits.name_characters)
        try:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            into.stack_trace = cut_bytes("".join(lines), limits.stack_trace_bytes, keep_end=True)
        except Exception:
            into.stack_trace = ""
    else:
        into.message = cut_bytes(str(error), limits.error_message_bytes)
        if code:
            into.code = short(code, limits.name_characters)
    if details:
        fill_struct(into.details, details)
        if into.details.ByteSize() > limits.metadata_bytes:
            into.ClearField("details")


def about(request: IngestRequest) -> tuple[str, str, str | None]:
    """Kind of a write, its execution, and for an update that may be merged with others of the same record: which one."""
    kind = request.WhichOneof("write") or ""
    if not kind:
        return "", "", None
    body = getattr(request, kind)
    execution = str(getattr(body, "execution_id", ""))
    if kind == "update_step":
        return kind, execution, f"{execution}/{body.step_key}"
    if kind == "update_execution":
        return kind, execution, execution
    return kind, execution, None


def process_died(run: str, steps: list[str], when: dt.datetime) -> list[tuple[IngestRequest, str]]:
    """The end of a run whose process is gone: of the steps that were running, then its own."""
    writes: list[tuple[IngestRequest, str]] = []
    for key in steps:
        request = IngestRequest()
        step = request.finish_step
        step.execution_id, step.step_key = run, key
        step.status = common_pb2.STEP_STATUS_FAILED
        step.error.message, step.error.code = "the process ended while the step was running", PROCESS_DIED
        set_time(step.completed_at, when)
        writes.append((request, "finish_step"))
    request = IngestRequest()
    execution = request.finish_execution
    execution.execution_id = run
    execution.status = common_pb2.EXECUTION_STATUS_FAILED
    execution.error.message, execution.error.code = "the process ended while the run was open", PROCESS_DIED
    set_time(execution.completed_at, when)
    writes.append((request, "finish_execution"))
    return writes

"""Reads a failure of the API: its code, its reason, when to try again, which fields were wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

#: The header in which gRPC sends the details.
DETAILS = "grpc-status-details-bin"


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failed write or call."""

    code: str
    message: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()


def of_status(status: status_pb2.Status) -> Failure:
    """Of an answer on an Ingest stream, or of the details of a failed call."""
    reason = ""
    metadata: dict[str, str] = {}
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            fields = tuple((one.field, one.description) for one in bad.field_violations)
    try:
        code = code_pb2.Code.Name(status.code)
    except ValueError:
        code = "UNKNOWN"
    return Failure(code, status.message, reason, metadata, retry_after, fields)


def of_error(error: Any) -> Failure:
    """Of an exception of gRPC, or of a call that has ended."""
    try:
        code = error.code() or grpc.StatusCode.UNKNOWN
        message = error.details() or ""
        trailers = error.trailing_metadata() or ()
    except Exception:
        return Failure("UNKNOWN", str(error))
    for key, value in trailers:
        if key == DETAILS:
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except Exception:
                break
            return of_status(status)
    return Failure(code.name, message)

"""Reading, watching and cancelling runs: calls that wait for the server and raise `stepwell.Error`."""

from __future__ import annotations

from ._aio import AsyncApi
from ._filters import Filter
from ._records import (
    Artifact,
    Attempt,
    Change,
    Count,
    ErrorInfo,
    Event,
    Execution,
    ExecutionStatus,
    Points,
    StepRecord,
    StepStatus,
)
from ._stubs import Stubs
from ._sync import Api

__all__ = [
    "Api",
    "Artifact",
    "AsyncApi",
    "Attempt",
    "Change",
    "Count",
    "ErrorInfo",
    "Event",
    "Execution",
    "ExecutionStatus",
    "Filter",
    "Points",
    "StepRecord",
    "StepStatus",
    "Stubs",
]

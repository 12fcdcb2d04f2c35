"""Stepwell: report the runs of an app, and watch them.

>>> import stepwell as sw
>>> with sw.run("my-app") as r:
...     with r.step("fetch", input={"url": "https://example.org"}) as s:
...         s.output({"rows": 3})

What is in here never raises into the app and never waits for the network. `Api` and `AsyncApi` are for tools: they do.
"""

from __future__ import annotations

from ._client import Client
from ._context import bind
from ._reporting import attach, configure, current_run, current_step, flush, run, shutdown, stats, step
from ._run import ArtifactRef, PlannedStep, Run
from ._settings import TLS
from ._stats import Stats
from ._step import Step
from .api import (
    Api,
    Artifact,
    AsyncApi,
    Count,
    ErrorInfo,
    Event,
    Execution,
    ExecutionStatus,
    StepRecord,
    StepStatus,
)
from .errors import Cancelled, Error, NotFound, WaitTimeout

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "Api",
    "Artifact",
    "ArtifactRef",
    "AsyncApi",
    "Cancelled",
    "Client",
    "Count",
    "Error",
    "ErrorInfo",
    "Event",
    "Execution",
    "ExecutionStatus",
    "NotFound",
    "PlannedStep",
    "Run",
    "Stats",
    "Step",
    "StepRecord",
    "StepStatus",
    "WaitTimeout",
    "attach",
    "bind",
    "configure",
    "current_run",
    "current_step",
    "flush",
    "run",
    "shutdown",
    "stats",
    "step",
]

"""For tests of apps: what they report is kept in memory, and can be asserted.

@pytest.fixture
def recorded():
    with stepwell.testing.recorder() as recorder:
        yield recorder

def test_my_agent(recorded):
    my_agent("question")
    recorded.assert_step("fetch", status="completed", output={"rows": 3})
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from . import _reporting
from ._client import Client
from ._pb import common_pb2
from ._pb.artifact_service_pb2 import ArtifactDescription
from ._pb.ingest_service_pb2 import IngestRequest
from ._settings import Settings
from ._step import UNSET
from ._values import from_struct, from_value


def merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    """As the server merges."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


@dataclasses.dataclass
class RecordedStep:
    """A step as it would be stored."""

    key: str
    name: str
    status: str = "running"
    input: Any = None
    output: Any = None
    error: str | None = None
    error_code: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    progress: float | None = None
    progress_message: str | None = None
    version: str | None = None
    attempt: int = 1
    parent_key: str | None = None
    depends_on: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class RecordedArtifact:
    """An artifact as it would be stored."""

    name: str
    type: str
    mime_type: str
    data: bytes
    step_key: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RecordedRun:
    """A run as it would be stored."""

    id: str
    app: str = ""
    user: str | None = None
    status: str = "running"
    error: str | None = None
    error_code: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    parent: str | None = None
    steps: list[RecordedStep] = dataclasses.field(default_factory=list)
    artifacts: list[RecordedArtifact] = dataclasses.field(default_factory=list)
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def step(self, name: str) -> RecordedStep:
        """The first with this name or key; AssertionError if there is none."""
        for step in self.steps:
            if name in (step.name, step.key):
                return step
        raise AssertionError(f"no step {name!r}; there are {[step.name for step in self.steps]}")


class Recorder:
    """What was reported."""

    def __init__(self) -> None:
        self._runs: dict[str, RecordedRun] = {}
        self._lock = threading.RLock()

    @property
    def runs(self) -> list[RecordedRun]:
        """In the order in which they began."""
        return list(self._runs.values())

    @property
    def run(self) -> RecordedRun:
        """The latest; AssertionError if there is none."""
        assert self._runs, "nothing was reported"
        return self.runs[-1]

    def clear(self) -> None:
        """Forgets everything."""
        self._runs.clear()

    def assert_step(
        self,
        name: str,
        *,
        status: str | None = None,
        input: Any = UNSET,
        output: Any = UNSET,
        error: str | None = None,
        **metadata: Any,
    ) -> RecordedStep:
        """Some step with this name has all that; returns it."""
        steps = [step for run in self.runs for step in run.steps if name in (step.name, step.key)]
        assert steps, f"no step {name!r}; there are {[step.name for run in self.runs for step in run.steps]}"
        for step in steps:
            if (
                status in (None, step.status)
                and (input is UNSET or step.input == input)
                and (output is UNSET or step.output == output)
                and (error is None or error in (step.error or ""))
                and all(step.metadata.get(key) == value for key, value in metadata.items())
            ):
                return step
        raise AssertionError(f"no step {name!r} is like that: {steps}")

    # --- from the client --------------------------------------------------------------------------------------

    def apply(self, request: IngestRequest) -> None:
        """A write."""
        kind = request.WhichOneof("write")
        if kind is not None:
            with self._lock:
                getattr(self, f"_{kind}")(getattr(request, kind))

    def add_artifact(self, description: ArtifactDescription, source: bytes | pathlib.Path | BinaryIO) -> None:
        """An artifact."""
        if isinstance(source, bytes):
            data = source
        else:
            data = source.read_bytes() if isinstance(source, os.PathLike) else source.read()
        with self._lock:
            self._of(description.execution_id).artifacts.append(
                RecordedArtifact(
                    description.artifact_name,
                    description.artifact_type,
                    description.mime_type,
                    data,
                    description.step_key or None,
                    from_struct(description.metadata),
                )
            )

    def _of(self, execution_id: str) -> RecordedRun:
        return self._runs.setdefault(execution_id, RecordedRun(execution_id))

    def _step(self, body: Any) -> RecordedStep:
        run = self._of(body.execution_id)
        for step in run.steps:
            if step.key == body.step_key:
                return step
        run.steps.append(RecordedStep(body.step_key, getattr(body, "step_name", "")))
        return run.steps[-1]

    def _create_execution(self, body: Any) -> None:
        run = self._of(body.execution_id)
        run.app, run.user = body.app_name, body.user_id or None
        run.parent = body.parent_execution_id or None
        merge(run.metadata, from_struct(body.metadata))

    def _update_execution(self, body: Any) -> None:
        merge(self._of(body.execution_id).metadata, from_struct(body.metadata))

    def _finish_execution(self, body: Any) -> None:
        run = self._of(body.execution_id)
        run.status = common_pb2.ExecutionStatus.Name(body.status).removeprefix("EXECUTION_STATUS_").lower()
        merge(run.metadata, from_struct(body.metadata))
        if body.HasField("error"):
            run.error, run.error_code = body.error.message, body.error.code

    def _plan_steps(self, body: Any) -> None:
        run = self._of(body.execution_id)
        for planned in body.steps:
            run.steps.append(RecordedStep(planned.step_key, planned.step_name, "pending"))

    def _start_step(self, body: Any) -> None:
        step = self._step(body)
        step.name, step.status, step.attempt = body.step_name, "running", body.attempt
        step.version, step.parent_key = body.step_version or None, body.parent_step_key or None
        step.depends_on = list(body.depends_on_keys)
        if body.HasField("input"):
            step.input = from_value(body.input)
        merge(step.metadata, from_struct(body.metadata))

    def _update_step(self, body: Any) -> None:
        step = self._step(body)
        if body.HasField("progress"):
            step.progress = body.progress
        if body.HasField("progress_message"):
            step.progress_message = body.progress_message
        if body.HasField("output"):
            output = from_value(body.output)
            if isinstance(output, dict) and isinstance(step.output, dict):
                merge(step.output, output)
            else:
                step.output = output
        merge(step.metadata, from_struct(body.metadata))

    def _finish_step(self, body: Any) -> None:
        step = self._step(body)
        step.status = common_pb2.StepStatus.Name(body.status).removeprefix("STEP_STATUS_").lower()
        if body.HasField("output"):
            step.output = from_value(body.output)
        if body.HasField("error"):
            step.error, step.error_code = body.error.message, body.error.code
        merge(step.metadata, from_struct(body.metadata))

    def _record_metrics(self, body: Any) -> None:
        self._of(body.execution_id).metrics.extend(dict(point.metrics) for point in body.points)


@contextlib.contextmanager
def recorder(**settings: Any) -> Iterator[Recorder]:
    """Within the block nothing is sent; the client that was there before is there again afterwards. Takes what
    `stepwell.configure` takes."""
    made = Client(Settings(**{**settings, "mode": "memory"}))
    assert made.recorder is not None
    before = _reporting.swap(made)
    try:
        yield made.recorder
    finally:
        _reporting.swap(before)

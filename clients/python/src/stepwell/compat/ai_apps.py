"""The tracker of `jkilelo/ai_apps`, on Stepwell: change the import, leave the program as it is.

    from stepwell.compat.ai_apps import ExecutionStatus, StepStatus, get_execution_tracker

What a program imports from `apps.common.services.execution_tracker` and from `apps.common.database` is all in here; to leave
both lines as they are too see `stepwell.compat.ai_apps_in_place`.

Reporting never raises into the app nor waits for the server. Reading does wait, and raises `ValueError` for an execution
that does not exist. What is better than in the original: `log_artifact` stores the bytes, an execution that is left by
`CancelledError` ends as cancelled, outputs may be anything.
"""

from __future__ import annotations

import dataclasses
import enum
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .. import _context, _reporting
from .._messages import set_error, set_now, short
from .._payload import set_metadata, set_payload
from .._pb import common_pb2
from .._pb.artifact_service_pb2 import ArtifactDescription
from .._pb.ingest_service_pb2 import IngestRequest
from .._run import Run
from ..api import AsyncApi
from ..errors import NotFound

__all__ = ["ExecutionStatus", "ExecutionTracker", "StepStatus", "execution_tracker", "get_execution_tracker"]


class ExecutionStatus(str, enum.Enum):
    """Of an execution."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(str, enum.Enum):
    """Of a step."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


def _execution(record: Any) -> dict[str, Any]:
    return {
        "execution_id": record.execution_id,
        "app_id": record.app_id,
        "app_name": record.app_name,
        "sub_app_id": record.sub_app_id,
        "sub_app_name": record.sub_app_name,
        "user_id": record.user_id,
        "status": _status(ExecutionStatus, record.status),
        "started_at": record.started_at,
        "completed_at": record.completed_at,
        "duration_ms": record.duration_ms,
        "error": record.error.message if record.error else None,
        "metadata": dict(record.metadata),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }


def _step(record: Any) -> dict[str, Any]:
    return {
        "execution_id": record.execution_id,
        "step_id": record.step_id,
        "step_name": record.step_name,
        "step_version": record.step_version,
        "status": _status(StepStatus, record.status),
        "started_at": record.started_at,
        "completed_at": record.completed_at,
        "duration_ms": record.duration_ms,
        "input": {} if record.input is None else record.input,
        "output": record.output,
        "error": record.error.message if record.error else None,
        "retry_count": record.retry_count,
        "metadata": dict(record.metadata),
    }


def _artifact(record: Any) -> dict[str, Any]:
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {key: value for key, value in fields.items() if key not in ("step_key", "omitted_fields")}


def _status(kind: Any, status: Any) -> Any:
    try:
        return kind(str(status))
    except ValueError:
        return str(status)


class ExecutionTracker:
    """Tracks executions, their steps and artifacts."""

    def __init__(self, mongodb_client: Any = None) -> None:
        #: Only there because the original takes it.
        self.db = mongodb_client

    async def ensure_connected(self) -> None:
        """Nothing to do: it connects by itself."""

    @asynccontextmanager
    async def track_execution(
        self,
        app_id: int,
        app_name: str,
        sub_app_id: int | None = None,
        sub_app_name: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        execution_id: str | None = None,
    ) -> AsyncIterator[str]:
        """An execution: `async with tracker.track_execution(2, "my_app") as execution_id`."""
        run = _TrackedRun(app_id, app_name, sub_app_id, sub_app_name, user=user_id, metadata=metadata, id=execution_id)
        async with run:
            yield run.id

    @asynccontextmanager
    async def track_step(
        self,
        execution_id: str,
        step_id: int,
        step_name: str,
        step_version: str = "1.0.0",
        input_data: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Callable[[Any], None]]:
        """A step of it; what it yields takes the output."""
        step = _TrackedStep(execution_id, step_id, step_name)
        step.start(step_version, input_data, metadata)
        try:
            yield step.set_output
        except BaseException as error:
            step.finish(error)
            raise
        step.finish(None)

    async def log_artifact(
        self,
        execution_id: str,
        artifact_type: str,
        artifact_name: str,
        content: bytes,
        step_id: int | None = None,
        mime_type: str = "application/octet-stream",
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Stores a file; returns the id of its upload."""
        client = _reporting.client()
        description = ArtifactDescription(
            execution_id=execution_id,
            artifact_type=short(artifact_type, 256),
            artifact_name=short(artifact_name, 256),
            mime_type=short(mime_type, 256),
            upload_id=str(uuid.uuid4()),
        )
        if step_id is not None:
            description.step_id = step_id
        try:
            set_metadata(client, execution_id, None, description.metadata, metadata)
            client.upload(description, content if isinstance(content, bytes) else str(content).encode())
        except Exception as error:
            client.noticed(error)
        return description.upload_id

    async def get_execution_history(
        self, user_id: str | None = None, app_id: int | None = None, limit: int = 10
    ) -> list[dict[str, Any]]:
        """The newest executions with their steps."""
        async with AsyncApi() as api:
            found = [one async for one in api.list(user=user_id or None, app=app_id or None, limit=limit)]
            history = []
            for one in found:
                steps = [_step(step) async for step in api.steps(one.execution_id, payloads=True)]
                history.append({"execution": _execution(one), "steps": steps})
            return history

    async def get_execution_details(self, execution_id: str) -> dict[str, Any]:
        """An execution with its steps and artifacts; ValueError if there is none."""
        async with AsyncApi() as api:
            try:
                found = await api.get(execution_id, steps=True, payloads=True)
            except NotFound:
                raise ValueError(f"Execution {execution_id} not found") from None
        artifacts = sorted(found.artifacts, key=lambda one: str(one.created_at), reverse=True)
        return {
            "execution": _execution(found),
            "steps": [_step(step) for step in found.steps],
            "artifacts": [_artifact(one) for one in artifacts],
        }


class _TrackedRun(Run):
    """A run with the numbers of its app and its part."""

    def __init__(self, app_id: int, app_name: str, sub_app_id: int | None, sub_app_name: str | None, **options: Any) -> None:
        super().__init__(_reporting.client(), app_name, sub_app=sub_app_name, **options)
        self._numbers = app_id, sub_app_id

    def _amend(self, create: Any) -> None:
        app_id, sub_app_id = self._numbers
        create.app_id = app_id
        if sub_app_id is not None:
            create.sub_app_id = sub_app_id


class _TrackedStep:
    """A step that is named by its number."""

    def __init__(self, execution_id: str, step_id: int, name: str) -> None:
        self.client = _reporting.client()
        self.execution_id, self.step_id, self.name = execution_id, step_id, name
        self.output: Any = None

    def set_output(self, data: Any) -> None:
        """Objects are put together, as in the original; anything else replaces."""
        if isinstance(data, Mapping) and isinstance(self.output, dict):
            self.output.update(data)
        else:
            self.output = dict(data) if isinstance(data, Mapping) else data

    def start(self, version: str, given: Any, metadata: Mapping[str, Any] | None) -> None:
        """RUNNING."""
        request = IngestRequest()
        start = request.start_step

        def fill() -> None:
            start.execution_id, start.step_id, start.attempt = self.execution_id, self.step_id, 1
            start.step_name, start.step_version = short(self.name, 256), short(version, 256)
            set_now(start.started_at)
            if given:
                set_payload(self.client, self.execution_id, str(self.step_id), start.input, given, "input")
            set_metadata(self.client, self.execution_id, None, start.metadata, metadata)

        self._report(fill, request, "start_step")

    def finish(self, error: BaseException | None) -> None:
        """COMPLETED or FAILED."""
        request = IngestRequest()
        finish = request.finish_step

        def fill() -> None:
            finish.execution_id, finish.step_id = self.execution_id, self.step_id
            finish.step_name = short(self.name, 256)
            finish.status = common_pb2.STEP_STATUS_FAILED if error else common_pb2.STEP_STATUS_COMPLETED
            set_now(finish.completed_at)
            if error is not None:
                set_error(finish.error, error, self.client.limits)
            if self.output is not None or error is None:
                output = {} if self.output is None else self.output
                set_payload(self.client, self.execution_id, str(self.step_id), finish.output, output, "output")

        self._report(fill, request, "finish_step")

    def _report(self, fill: Callable[[], None], request: IngestRequest, kind: str) -> None:
        try:
            fill()
            current = _context.run_var.get()
            if current is None or current.id != self.execution_id:
                self.client.add_attached(self.execution_id)
            self.client.add(request, kind, self.execution_id)
        except Exception as caught:
            self.client.noticed(caught)


execution_tracker = ExecutionTracker()


async def get_execution_tracker() -> ExecutionTracker:
    """The one of this process."""
    return execution_tracker

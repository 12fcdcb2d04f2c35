"""A step of a run, as the app sees it."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from . import _context
from ._client import PROGRESS_SECONDS
from ._guard import guarded
from ._messages import CANCELLED, set_error, set_now, short
from ._payload import set_metadata, set_payload
from ._pb import common_pb2
from ._pb.ingest_service_pb2 import IngestRequest
from .errors import Cancelled

if TYPE_CHECKING:
    from ._client import Client
    from ._run import ArtifactRef, Run

#: Not given, where None is a value.
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "...", "__bool__": lambda self: False})()


class Step:
    """One step. Made by `stepwell.step` or `Run.step`; begins when its block is entered, or with `start`.

    It is COMPLETED when its block ends and FAILED, with type, message and trace, when that raises.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        key: str | None = None,
        version: str | None = None,
        input: Any = UNSET,
        metadata: Mapping[str, Any] | None = None,
        depends_on: Sequence[Step] = (),
        attempt: int = 1,
        parent: Step | None = None,
    ) -> None:
        self.run = run
        self.name = name or "step"
        self.key = short(key, 256) if key else str(uuid.uuid4())
        self.attempt = attempt
        self._version = version
        self._input = input
        self._metadata = metadata
        self._depends_on = tuple(depends_on)
        self._parent = parent
        self._started = self._ended = False
        self._said_output = False
        self._final_output: Any = UNSET
        self._progress: tuple[float, str | None] | None = None
        self._next_progress = 0.0
        self._tokens: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self.run)

    def __repr__(self) -> str:
        return f"<stepwell.Step {self.name!r} {self.key}>"

    # --- its life ---------------------------------------------------------------------------------------------

    def start(self) -> Step:
        """Begins it, for steps that are no block. Ended by `complete`, `fail` or `skip`."""
        self._start()
        return self

    @guarded
    def _start(self) -> None:
        if self._started or not self.run:
            return
        self._started = True
        self.run._start()
        client = self._client
        request = IngestRequest()
        start = request.start_step
        start.execution_id = self.run.id
        start.step_key = self.key
        start.step_name = short(self.name, client.limits.name_characters)
        start.attempt = self.attempt
        set_now(start.started_at)
        if self._version is not None:
            start.step_version = short(self._version, client.limits.name_characters)
        if self._input is not UNSET and client.settings.capture_input:
            set_payload(client, self.run.id, self.key, start.input, self._input, "input")
        set_metadata(client, self.run.id, self.key, start.metadata, self._metadata)
        parent = self._parent or _context.step_var.get()
        if parent is not None and parent is not self and parent.run.id == self.run.id and parent.key != self.key:
            start.parent_step_key = parent.key
        elif self.run._parent_step_key:
            start.parent_step_key = self.run._parent_step_key
        keys = dict.fromkeys(step.key for step in self._depends_on if step.key and step.key != self.key)
        if keys:
            start.depends_on_keys.extend(keys)
        # What was given is not held any longer than needed.
        self._input = self._metadata = None
        self.run._add_start(request, self.key)

    def complete(self, output: Any = UNSET) -> None:
        """Ends it well."""
        self._finish(common_pb2.STEP_STATUS_COMPLETED, output=output)

    def fail(self, error: BaseException | str, *, code: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        """Ends it badly."""
        self._finish(common_pb2.STEP_STATUS_FAILED, error=error, code=code, details=details)

    def skip(self, reason: str | None = None) -> None:
        """Ends it as SKIPPED: it never ran, on purpose."""
        if reason:
            self._finish(common_pb2.STEP_STATUS_SKIPPED, metadata={"skip_reason": reason})
        else:
            self._finish(common_pb2.STEP_STATUS_SKIPPED)

    def retry(self) -> Step:
        """The next attempt of a step that has failed: the same step, to be entered or started again."""
        return Step(self.run, self.name, key=self.key, version=self._version, attempt=self.attempt + 1)

    @guarded
    def _finish(
        self,
        status: common_pb2.StepStatus,
        *,
        output: Any = UNSET,
        error: BaseException | str | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if self._ended or not self.run:
            return
        if not self._started and status != common_pb2.STEP_STATUS_SKIPPED:
            self._start()
        self._emit_progress()
        self._ended = True
        self._client.no_progress(self)
        client = self._client
        request = IngestRequest()
        finish = request.finish_step
        finish.execution_id = self.run.id
        finish.step_key = self.key
        finish.status = status
        # With the name it can be stored even where its start was lost.
        finish.step_name = short(self.name, client.limits.name_characters)
        set_now(finish.completed_at)
        output = self._final_output if output is UNSET else output
        if output is not UNSET and client.settings.capture_output:
            set_payload(client, self.run.id, self.key, finish.output, output, "output")
        if error is not None:
            set_error(finish.error, error, client.limits, code=code, details=details)
        set_metadata(client, self.run.id, self.key, finish.metadata, metadata)
        self._final_output = UNSET
        client.add(request, "finish_step", self.run.id)

    # --- what it says in between ------------------------------------------------------------------------------

    @guarded
    def progress(self, fraction: float, message: str | None = None) -> None:
        """How far it is, from 0 to 1. Call it as often as you like: the latest wins, at most ten a second are sent."""
        if not self.run or self._ended:
            return
        fraction = float(fraction)
        if math.isnan(fraction):
            return
        if fraction > 1.01:
            self._client.say_once("progress", "progress is a fraction from 0 to 1: %s counts as 1", fraction)
        earlier = self._progress
        if message is None and earlier is not None:
            message = earlier[1]
        self._progress = (min(1.0, max(0.0, fraction)), message)
        now = time.monotonic()
        if now >= self._next_progress:
            self._emit_progress()
        elif earlier is None:
            self._client.later(self, self._next_progress)

    @guarded
    def _emit_progress(self) -> None:
        latest, self._progress = self._progress, None
        if latest is None or self._ended:
            return
        self._next_progress = time.monotonic() + PROGRESS_SECONDS
        request, update = self._update()
        update.progress = latest[0]
        if latest[1] is not None:
            update.progress_message = short(latest[1], self._client.limits.message_characters)
        self._send(request)

    @guarded
    def output(self, value: Any, *, merge: bool = False) -> None:
        """What came out. It is stored at once; the last one wins, or with `merge` objects are merged."""
        if not self.run or self._ended or not self._client.settings.capture_output:
            return
        request, update = self._update()
        set_payload(self._client, self.run.id, self.key, update.output, value, "output")
        if merge:
            self._final_output = UNSET
        elif self._said_output:
            # An update merges objects; only the end replaces what is stored.
            self._final_output = value
        self._said_output = True
        self._send(request)

    @guarded
    def metadata(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Merged into what is stored: `s.metadata(model="m-1")`, or `s.metadata({"model.name": "m-1"})`."""
        merged = {**(values or {}), **more}
        if self.run and merged:
            request, update = self._update()
            set_metadata(self._client, self.run.id, self.key, update.metadata, merged)
            self._send(request)

    def metrics(self, values: Mapping[str, float] | None = None, /, *, at: dt.datetime | None = None, **more: float) -> None:
        """Numbers at one moment, now unless `at` says another."""
        self.run._record_metrics(values, at, more, self.key)

    def artifact(
        self,
        name: str,
        data: bytes | str | os.PathLike[str] | BinaryIO | Any,
        *,
        type: str = "report",
        mime_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ArtifactRef:
        """As `Run.artifact`, of this step."""
        return self.run.artifact(name, data, type=type, mime_type=mime_type, metadata=metadata, step=self)

    def _update(self) -> tuple[IngestRequest, Any]:
        if not self._started:
            self._start()
        request = IngestRequest()
        update = request.update_step
        update.execution_id = self.run.id
        update.step_key = self.key
        return request, update

    def _send(self, request: IngestRequest) -> None:
        self._client.add(request, "update_step", self.run.id, f"{self.run.id}/{self.key}")

    @property
    def _client(self) -> Client:
        return self.run._client

    def _noticed(self, error: BaseException, where: str = "") -> None:
        self.run._noticed(error, where)

    # --- as a block -------------------------------------------------------------------------------------------

    def __enter__(self) -> Step:
        self._start()
        self._tokens.append((_context.run_var.set(self.run), _context.step_var.set(self)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()
        self._end(error)

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _leave(self) -> None:
        if self._tokens:
            run_token, step_token = self._tokens.pop()
            _context.restore(_context.step_var, step_token)
            _context.restore(_context.run_var, run_token)

    def _end(self, error: BaseException | None, output: Any = UNSET) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.complete(output)
        elif isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, Cancelled)):
            self._finish(common_pb2.STEP_STATUS_FAILED, output=output, error=error, code=CANCELLED)
        else:
            self._finish(common_pb2.STEP_STATUS_FAILED, output=output, error=error)

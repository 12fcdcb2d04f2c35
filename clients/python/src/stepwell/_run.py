"""A run, as the app sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import io
import json
import math
import mimetypes
import os
import pathlib
import random
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from . import _context
from ._guard import guarded, quietly
from ._messages import set_error, set_now, set_time, short
from ._payload import set_metadata, set_payload, set_step
from ._pb import common_pb2
from ._pb.artifact_service_pb2 import ArtifactDescription
from ._pb.ingest_service_pb2 import IngestRequest
from ._step import UNSET, Step
from ._values import fill_value, from_value, text
from .errors import Cancelled

if TYPE_CHECKING:
    from ._client import Client

#: The headers, or keys of a message, that carry a run to another process.
CARRIED_RUN = "stepwell-run"
CARRIED_STEP = "stepwell-step"
#: What a header takes as it is of the key of a step, which may be any text: what ASCII can print. A % begins an encoding.
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
#: Numbers of steps that are left to who else reports into a run, before a plan takes the next.
NUMBERS_OF_OTHERS = 1000


@dataclasses.dataclass(frozen=True)
class ArtifactRef:
    """An artifact on its way. `upload_id` is what GetUpload knows it by."""

    name: str
    upload_id: str


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A step that is announced before it runs. `depends_on` has keys of others."""

    name: str
    key: str | None = None
    version: str | None = None
    depends_on: Sequence[str] = ()
    input: Any = UNSET
    metadata: Mapping[str, Any] | None = None


class Run:
    """One run of an app. Made by `stepwell.run`; begins when its block is entered, or with `start`.

    COMPLETED when its block ends, FAILED with type, message and trace when that raises, CANCELLED on
    `asyncio.CancelledError`, `KeyboardInterrupt` and `Cancelled`. The exception always goes on.
    """

    def __init__(
        self,
        client: Client,
        app: str | None = None,
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        parent: Run | str | None = None,
        user: str | None = None,
        configuration_version: str | None = None,
        pinned: bool = False,
        sub_app: str | None = None,
        attached: bool = False,
        flush: bool = False,
    ) -> None:
        self.id = id or str(uuid.uuid4())
        self._client = client
        self._app = app
        self._sub_app = sub_app
        self._metadata = metadata
        self._user = user
        self._configuration_version = configuration_version
        self._pinned = pinned
        self._attached = attached
        self._flush = flush
        self._flush_later = False
        self._started = attached
        self._ended = False
        self._cancel_requested = False
        self._parent_step_key: str | None = None
        self._process = os.getpid()
        #: Keys of planned steps that are not begun, by name.
        self._planned: dict[str, list[str]] = {}
        self._planned_keys: set[str] = set()
        #: No step of this run has a greater number, as far as this process knows: the server gives each the next one.
        self._highest = NUMBERS_OF_OTHERS * random.randrange(1000) if attached else 0
        self._shared = attached
        #: Called before it ends, or is left by a process that was attached to it.
        self._before_end: list[Callable[[], None]] = []
        self._tokens: list[Any] = []
        current = _context.run_var.get()
        self._parent = parent if isinstance(parent, str) else (parent or current or self).id if not attached else ""
        if self._parent == self.id:
            self._parent = ""
        if attached:
            client.add_attached(self.id)
            client.watch_over(self)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<stepwell.Run {self.id}>"

    # --- its life ---------------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Begins it, for runs that are no block. Ended by `complete`, `fail` or `cancel`."""
        self._start()
        return self

    @guarded
    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        client = self._client
        settings = client.settings
        limit = client.limits.name_characters
        request = IngestRequest()
        create = request.create_execution
        create.execution_id = self.id
        create.app_name = short(self._app or settings.app_name, limit)
        if settings.app_id is not None:
            create.app_id = settings.app_id
        sub_app = self._sub_app or settings.sub_app
        if sub_app:
            create.sub_app_name = short(sub_app, limit)
        user: Any = self._user if self._user is not None else settings.user
        user = quietly(user) if callable(user) else user
        if user is not None:
            create.user_id = short(user, limit)
        set_metadata(client, self.id, None, create.metadata, {**settings.metadata, **(self._metadata or {})})
        set_now(create.started_at)
        if settings.heartbeat_timeout:
            create.heartbeat_timeout.FromMilliseconds(int(settings.heartbeat_timeout * 1000))
        if self._parent:
            create.parent_execution_id = self._parent
        if self._configuration_version:
            create.configuration_version = short(self._configuration_version, limit)
        self._metadata = None
        self._amend(create)
        client.created_by(self.id, client.add(request, "create_execution", self.id))
        client.watch_over(self)
        if self._pinned:
            self._update(pinned=True)

    def _amend(self, create: Any) -> None:
        """For who knows more about it."""

    def complete(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Ends it well."""
        self._finish(common_pb2.EXECUTION_STATUS_COMPLETED, metadata=metadata)

    def fail(self, error: BaseException | str, *, code: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        """Ends it badly."""
        self._finish(common_pb2.EXECUTION_STATUS_FAILED, error=error, code=code, details=details)

    def cancel(self) -> None:
        """Ends it as CANCELLED."""
        self._finish(common_pb2.EXECUTION_STATUS_CANCELLED)

    @guarded
    def _finish(
        self,
        status: common_pb2.ExecutionStatus,
        *,
        metadata: Mapping[str, Any] | None = None,
        error: BaseException | str | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        if self._ended or (self._process != os.getpid() and not self._attached):
            # A child that was forked in the middle of a run does not end it.
            return
        if not self._started:
            self._start()
        client = self._client
        client.emit_progress(None)
        self._call_before_end()
        self._ended = True
        client.stop_watching(self.id)
        request = IngestRequest()
        finish = request.finish_execution
        finish.execution_id = self.id
        finish.status = status
        set_now(finish.completed_at)
        set_metadata(client, self.id, None, finish.metadata, metadata)
        if error is not None:
            set_error(finish.error, error, client.limits, code=code, details=details)
        client.add(request, "finish_execution", self.id)
        if self._flush and not self._flush_later:
            client.flush()

    def _call_before_end(self) -> None:
        hooks, self._before_end = self._before_end, []
        for hook in hooks:
            quietly(hook)

    # --- what it says in between ------------------------------------------------------------------------------

    def step(
        self,
        name: str,
        *,
        key: str | None = None,
        version: str | None = None,
        input: Any = UNSET,
        metadata: Mapping[str, Any] | None = None,
        depends_on: Sequence[Step] = (),
    ) -> Step:
        """A step of this run: `with r.step("fetch") as s`. One that was planned is found by its name."""
        if key is None and self._planned.get(name):
            key = self._planned[name].pop(0)
        return Step(self, name, key=key, version=version, input=input, metadata=metadata, depends_on=depends_on)

    @guarded
    def metadata(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Merged into what is stored: `r.metadata(model="m-1")`, or `r.metadata({"model.name": "m-1"})`."""
        merged = {**(values or {}), **more}
        if merged:
            self._update(merged)

    def _update(self, values: Mapping[str, Any] | None = None, pinned: bool | None = None) -> None:
        self._start()
        request = IngestRequest()
        update = request.update_execution
        update.execution_id = self.id
        set_metadata(self._client, self.id, None, update.metadata, values)
        if pinned is not None:
            update.pinned = pinned
        self._client.add(request, "update_execution", self.id, self.id)

    def metrics(self, values: Mapping[str, float] | None = None, /, *, at: dt.datetime | None = None, **more: float) -> None:
        """Numbers at one moment, now unless `at` says another: `r.metrics(tokens=1234, cost=0.5)`."""
        self._record_metrics(values, at, more, None)

    @guarded
    def _record_metrics(
        self,
        values: Mapping[str, float] | None,
        at: dt.datetime | None,
        more: Mapping[str, float],
        step_key: str | None,
    ) -> None:
        self._start()
        request = IngestRequest()
        record = request.record_metrics
        record.execution_id = self.id
        record.request_id = str(uuid.uuid4())
        point = record.points.add()
        for name, value in {**(values or {}), **more}.items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            if math.isfinite(number):
                point.metrics[short(name, self._client.limits.name_characters)] = number
        if not point.metrics:
            return
        if at is not None:
            set_time(point.timestamp, at)
        else:
            set_now(point.timestamp)
        if step_key:
            point.step_key = step_key
        self._client.add(request, "record_metrics", self.id)

    def artifact(
        self,
        name: str,
        data: bytes | str | os.PathLike[str] | BinaryIO | Any,
        *,
        type: str = "report",
        mime_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        step: Step | None = None,
    ) -> ArtifactRef:
        """A file of this run. Uploaded in the background, resumable, checked by SHA-256.

        Bytes and text are copied first; a path is uploaded from where it is, so leave the file as it is; what is none
        of these is written as JSON. A step may be named; else it is the current one of this run.
        """
        ref = ArtifactRef(short(name, self._client.limits.name_characters), str(uuid.uuid4()))
        self._upload(ref, data, type, mime_type, metadata, step)
        return ref

    @guarded
    def _upload(
        self,
        ref: ArtifactRef,
        data: Any,
        type: str,
        mime_type: str | None,
        metadata: Mapping[str, Any] | None,
        step: Step | None,
    ) -> None:
        self._start()
        limit = self._client.limits.name_characters
        guessed = mimetypes.guess_type(ref.name)[0]
        source: bytes | pathlib.Path | BinaryIO
        if isinstance(data, (bytes, bytearray, memoryview)):
            source = bytes(data)
        elif isinstance(data, str):
            source, guessed = data.encode("utf-8", "backslashreplace"), guessed or "text/plain"
        elif isinstance(data, os.PathLike):
            source = pathlib.Path(data)
            guessed = guessed or mimetypes.guess_type(source.name)[0]
        elif callable(getattr(data, "read", None)):
            source = data
            if isinstance(data, io.TextIOBase):
                source = data.read().encode("utf-8", "backslashreplace")
        else:
            source, guessed = _as_json(data), "application/json"
        description = ArtifactDescription(
            execution_id=self.id,
            artifact_type=short(type, limit),
            artifact_name=ref.name,
            mime_type=short(mime_type or guessed or "application/octet-stream", limit),
            upload_id=ref.upload_id,
        )
        current = _context.step_var.get()
        if step is None and current is not None and current.run.id == self.id:
            step = current
        if step is not None:
            step._start()
            set_step(description, step.key)
        set_metadata(self._client, self.id, None, description.metadata, metadata)
        self._client.upload(description, source)

    @guarded
    def plan(self, *steps: PlannedStep | str, configuration_version: str | None = None) -> None:
        """Announces steps, PENDING: those given, in this order, or those of a version of the app's configuration."""
        self._start()
        client = self._client
        request = IngestRequest()
        plan = request.plan_steps
        plan.execution_id = self.id
        if configuration_version:
            plan.configuration_version = configuration_version
        for number, one in enumerate(steps, 1):
            step = one if isinstance(one, PlannedStep) else PlannedStep(str(one))
            key = step.key or self._free_key(step.name, number)
            self._planned_keys.add(key)
            self._planned.setdefault(step.name, []).append(key)
            planned = plan.steps.add()
            planned.step_key = short(key, 256)
            planned.step_name = short(step.name, client.limits.name_characters)
            if step.version:
                planned.step_version = short(step.version, client.limits.name_characters)
            planned.depends_on_keys.extend(step.depends_on)
            if step.input is not UNSET:
                set_payload(client, self.id, key, planned.input, step.input, "input")
            set_metadata(client, self.id, key, planned.metadata, step.metadata)
        if plan.steps or configuration_version:
            self._add_plan(request)

    def _free_key(self, name: str, number: int) -> str:
        key = name
        while key in self._planned_keys:
            key, number = f"{name}-{number}", number + 1
        return key

    def _add_plan(self, request: IngestRequest) -> None:
        """With numbers that no step has. What other processes report meanwhile is not known here: it gets some room, and so
        do the steps of a configuration, of which only the server knows how many there are."""
        plan = request.plan_steps
        with self._client.ordered:
            if self._shared:
                self._highest += NUMBERS_OF_OTHERS
            for planned in plan.steps:
                self._highest += 1
                planned.step_id = self._highest
            if plan.configuration_version:
                self._highest += NUMBERS_OF_OTHERS
            self._client.add(request, "plan_steps", self.id)

    def _add_start(self, request: IngestRequest, key: str) -> None:
        """The start of a step: the server numbers it in the order in which it is added here."""
        with self._client.ordered:
            if key not in self._planned_keys:
                self._highest += 1
            self._client.add(request, "start_step", self.id)

    # --- other processes --------------------------------------------------------------------------------------

    def carrier(self) -> dict[str, str]:
        """What a message of a queue or the headers of a call have to carry, to be given to `attach` over there."""
        carried = {CARRIED_RUN: self.id}
        try:
            self._start()
            self._shared = True
            self._client.share(self.id)
            current = _context.step_var.get()
            inside = current is not None and current.run.id == self.id
            # Whoever is attached carries on what it was given.
            key = current.key if current is not None and inside else self._parent_step_key
            if key:
                carried[CARRIED_STEP] = urllib.parse.quote(key, safe=_SAFE, errors="replace")
        except Exception as error:
            self._noticed(error)
        return carried

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has asked this run to stop; known some seconds after they did, at the latest."""
        return self._cancel_requested

    def raise_if_cancelled(self) -> None:
        """Raises `stepwell.Cancelled` if somebody has asked this run to stop; leaving its block, it ends as CANCELLED."""
        if self.cancel_requested:
            raise Cancelled("the run was asked to stop")

    def _noticed(self, error: BaseException, where: str = "") -> None:
        self._client.noticed(error, where)

    # --- as a block -------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        self._start()
        if self._attached:
            self._client.watch_over(self)
        self._tokens.append((_context.run_var.set(self), _context.step_var.set(None)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._tokens:
            run_token, step_token = self._tokens.pop()
            _context.restore(_context.step_var, step_token)
            _context.restore(_context.run_var, run_token)
        self._end(error)

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush_later = True
        self.__exit__(kind, error, trace)
        await self._flush_in_thread()

    async def _aend(self, error: BaseException | None) -> None:
        self._flush_later = True
        self._end(error)
        await self._flush_in_thread()

    async def _flush_in_thread(self) -> None:
        # Waiting must not hold up the event loop.
        if self._flush:
            await asyncio.to_thread(self._client.flush)

    def _end(self, error: BaseException | None) -> None:
        if self._attached:
            self._call_before_end()
            # Its end is for the process that has made it to say.
            self._client.stop_watching(self.id)
            if self._flush and not self._flush_later:
                self._client.flush()
        elif error is None or (isinstance(error, SystemExit) and not error.code):
            self.complete()
        elif isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, Cancelled)):
            self.cancel()
        else:
            self.fail(error)


class NullRun(Run):
    """Where there is no run, or nothing is recorded: takes everything and does nothing."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, id="none")
        self.id = ""
        self._started = self._ended = True

    def __bool__(self) -> bool:
        return False

    def _start(self) -> None:
        pass

    def _update(self, values: Mapping[str, Any] | None = None, pinned: bool | None = None) -> None:
        pass

    def _record_metrics(self, *values: Any) -> None:
        pass

    def _upload(self, *values: Any) -> None:
        pass

    def plan(self, *steps: PlannedStep | str, configuration_version: str | None = None) -> None:
        """Does nothing."""

    def carrier(self) -> dict[str, str]:
        """Nothing to carry."""
        return {}

    def step(self, name: str, **more: Any) -> Step:
        """A step that does nothing."""
        return Step(self, name, key="none")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


def _as_json(value: Any) -> bytes:
    from google.protobuf.struct_pb2 import Value

    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        into = Value()
        fill_value(into, value)
        try:
            return json.dumps(from_value(into), ensure_ascii=False).encode()
        except Exception:
            return text(value).encode()

"""`Api`: calls that block."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import pathlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import grpc

from .. import _reporting
from .._channel import metadata, open_channel
from .._pb import artifact_service_pb2 as artifact_pb
from .._settings import TLS, from_environment
from .._status import Failure, of_error
from ..errors import Error, WaitTimeout, of_failure
from . import _ops
from ._filters import Filter
from ._ops import RunId
from ._records import Artifact, Count, Event, Execution, StepRecord
from ._stubs import Stubs
from ._watching import Watching

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Api:
    """Reads, watches and cancels runs. Raises `stepwell.Error`.

    Without arguments it talks to the server that `stepwell.configure` or the environment names. What this process has
    reported is flushed first, so that it can be read. A call that fails for now is made again until `timeout`.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
    ) -> None:
        reporting = _reporting.existing_client()
        settings = reporting.settings if reporting is not None else from_environment({})
        self.timeout = timeout
        self._channel = open_channel(server or settings.server, tls or settings.tls)
        self._metadata = metadata(settings.sent_headers(server, tls) if headers is None else headers)
        #: The generated stubs, on the same channel.
        self.raw = Stubs(self._channel)

    def close(self) -> None:
        """Ends the connection, and what runs on it."""
        self._channel.close()

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- records ----------------------------------------------------------------------------------------------

    def get(self, id: RunId, *, steps: bool = False, payloads: bool = False) -> Execution:
        """One run; with its steps and artifacts, with their input and output, if asked."""
        return self._run(_ops.get(_ops.id_of(id), steps, payloads))

    def list(
        self, *, order: Literal["newest", "oldest"] = "newest", limit: int | None = None, **filter: Unpack[Filter]
    ) -> Iterator[Execution]:
        """Runs by their start: `api.list(status="failed", since=timedelta(hours=24))`. Follows pages by itself."""
        return self._pages(lambda token: _ops.list_executions(filter, order, limit, token), limit)

    def count(self, **filter: Unpack[Filter]) -> Count:
        """How many runs."""
        return self._run(_ops.count(filter))

    def steps(self, id: RunId, *, payloads: bool = False) -> Iterator[StepRecord]:
        """The steps of a run by number. Large payloads are left out and named in `omitted_fields`; `step` has them."""
        return self._pages(lambda token: _ops.list_steps(_ops.id_of(id), token, payloads))

    def step(self, id: RunId, step: str | int) -> StepRecord:
        """One step by key or number, with input and output."""
        return self._run(_ops.get_step(_ops.id_of(id), step))

    def artifacts(self, id: RunId, *, type: str | None = None) -> Iterator[Artifact]:
        """The artifacts of a run, newest first."""
        return self._pages(lambda token: _ops.list_artifacts(_ops.id_of(id), type, token))

    def metrics(self, id: RunId, names: Sequence[str] = ()) -> Iterator[tuple[dt.datetime | None, dict[str, float]]]:
        """The points of a run by time."""
        return self._pages(lambda token: _ops.metrics(_ops.id_of(id), [*names], token))

    def cancel(self, id: RunId, reason: str = "") -> Execution:
        """Asks a run to stop."""
        return self._run(_ops.cancel(_ops.id_of(id), reason))

    def delete(self, id: RunId, *, force: bool = False) -> None:
        """Deletes a run with everything it has; one that is running only with `force`."""
        self._run(_ops.delete(_ops.id_of(id), force))

    def download(self, artifact: Artifact | str, to: str | os.PathLike[str] | BinaryIO) -> None:
        """Writes the bytes of an artifact to a file, which appears when it is whole, or to what has `write`."""
        if hasattr(to, "write"):
            self._download(artifact, to)
            return
        path = pathlib.Path(to)
        half = path.with_name(f"{path.name}.part")
        try:
            with half.open("wb") as out:
                self._download(artifact, out)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)

    def _download(self, artifact: Artifact | str, out: Any) -> None:
        self._flush()
        identity = artifact if isinstance(artifact, str) else artifact.artifact_id
        digest, offset, expected = hashlib.sha256(), 0, ""
        deadline = time.monotonic() + self.timeout
        while True:
            request = artifact_pb.DownloadArtifactRequest(artifact_id=identity, offset=offset)
            try:
                for part in self.raw.artifacts.DownloadArtifact(request, metadata=self._metadata):
                    if part.HasField("artifact"):
                        expected = part.artifact.sha256
                        continue
                    out.write(part.chunk)
                    digest.update(part.chunk)
                    offset += len(part.chunk)
                    deadline = time.monotonic() + self.timeout
                break
            except grpc.RpcError as error:
                failure = of_error(error)
                if failure.code != "UNAVAILABLE" or time.monotonic() > deadline:
                    raise of_failure(failure) from error
                time.sleep(0.2)
        if expected and digest.hexdigest() != expected:
            raise Error(Failure("DATA_LOSS", "these are not the bytes that were stored", "ARTIFACT_BYTES_LOST"))

    # --- watching ---------------------------------------------------------------------------------------------

    def watch(
        self,
        id: RunId,
        *,
        steps: bool = True,
        artifacts: bool = False,
        metrics: bool = False,
        payloads: bool = False,
        follow: bool = False,
        token: str | None = None,
    ) -> Iterator[Event]:
        """The state of a run and then every change, until it has ended, or for ever with `follow`.

        Reconnects by itself and goes on where it was; where history does not reach back so far an event `reset` comes
        first, and then the state again.
        """
        watching = Watching(_ops.id_of(id), token)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_request(_ops.id_of(id), steps, artifacts, metrics, payloads, follow, watching.token)
            return self.raw.executions.WatchExecution(request, metadata=self._metadata, timeout=rest)

        return self._watch(watching, open_stream, None)

    def watch_many(
        self,
        *,
        snapshot: Literal["all", "active", "none"] = "all",
        token: str | None = None,
        steps: bool = False,
        payloads: bool = False,
        **filter: Unpack[Filter],
    ) -> Iterator[Event]:
        """The same for all runs that match; never ends by itself."""
        watching = Watching(None, token)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_many_request(filter, snapshot, steps, payloads, watching.token)
            return self.raw.executions.WatchExecutions(request, metadata=self._metadata, timeout=rest)

        while True:
            yield from self._watch(watching, open_stream, None)
            time.sleep(0.1)

    def wait(self, id: RunId, timeout: float | None = None) -> Execution:
        """The run once it has ended; `WaitTimeout` if it has not by then."""
        watching = Watching(_ops.id_of(id), None)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_request(_ops.id_of(id), False, False, False, False, True, watching.token)
            return self.raw.executions.WatchExecution(request, metadata=self._metadata, timeout=rest)

        deadline = None if timeout is None else time.monotonic() + timeout
        for event in self._watch(watching, open_stream, deadline):
            if event.kind == "execution" and event.record.status.ended:
                return self.get(id)
        raise WaitTimeout(
            Failure("DEADLINE_EXCEEDED", f"{watching.execution_id} has not ended within {timeout} s", "WAIT_TIMEOUT")
        )

    def _watch(self, watching: Watching, open_stream: Any, deadline: float | None) -> Iterator[Event]:
        self._flush()
        while True:
            rest = None if deadline is None else deadline - time.monotonic()
            if rest is not None and rest <= 0:
                return
            call = open_stream(rest)
            try:
                for message in call:
                    yield from watching.events(message)
                return
            except grpc.RpcError as error:
                if deadline is not None and time.monotonic() >= deadline:
                    return
                delay, events = watching.again(of_error(error))
                yield from self._known(watching, events)
                time.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.monotonic())))
            finally:
                call.cancel()

    def _known(self, watching: Watching, events: Sequence[Event]) -> Iterator[Event]:
        """An event always has the run as last known, also if none came yet."""
        for event in events:
            if event.record is None and watching.execution_id is not None:
                try:
                    record = self.get(watching.execution_id)
                except Error:
                    record = None
                event = Event(event.kind, event.change, record, event.token)
            yield event

    # --- reports ----------------------------------------------------------------------------------------------

    def report(
        self, *, period: Literal["day", "week", "month"] = "day", time_zone: str = "UTC", **filter: Unpack[Filter]
    ) -> Sequence[dict[str, Any]]:
        """Counts, durations and failing steps per day, week or month."""
        return self._run(_ops.report(filter, period, time_zone))

    def trends(
        self, *, interval: dt.timedelta = dt.timedelta(hours=1), **filter: Unpack[Filter]
    ) -> Sequence[dict[str, Any]]:
        """How durations and counts change, per app."""
        return self._run(_ops.trends(filter, interval))

    def errors(self, **filter: Unpack[Filter]) -> Sequence[dict[str, Any]]:
        """The most frequent errors, similar ones grouped."""
        return self._run(_ops.errors(filter))

    def search(self, query: str, *, limit: int = 50, **filter: Unpack[Filter]) -> Sequence[dict[str, Any]]:
        """Runs, steps and artifacts in which words occur, best first."""
        return self._run(_ops.search(query, filter, limit))

    def configuration(
        self, app: str | int, *, sub_app: str | int | None = None, version: str | None = None
    ) -> dict[str, Any]:
        """A version of an app's configuration, or the active one."""
        return self._run(_ops.configuration(app, sub_app, version))

    def configurations(self, app: str | int, *, sub_app: str | int | None = None) -> Iterator[dict[str, Any]]:
        """All versions, newest first."""
        return self._pages(lambda token: _ops.configurations(app, sub_app, token))

    def publish(
        self,
        app: str,
        version: str,
        configuration: Mapping[str, Any],
        *,
        app_id: int | None = None,
        activate: bool = False,
    ) -> dict[str, Any]:
        """Stores a new version of an app's configuration."""
        return self._run(_ops.publish(app, version, configuration, app_id, activate))

    # --- how calls are made -----------------------------------------------------------------------------------

    def _flush(self) -> None:
        reporting = _reporting.existing_client()
        if reporting is not None and reporting.pending():
            reporting.flush()

    def _pages(self, page: _ops.Pages[T], limit: int | None = None) -> Iterator[T]:
        token, left = "", limit
        while True:
            items, token = self._run(page(token))
            for item in items:
                if left is not None:
                    if left <= 0:
                        return
                    left -= 1
                yield item
            if not token or left == 0:
                return

    def _run(self, op: _ops.Op[T]) -> T:
        self._flush()
        try:
            call = next(op)
            while True:
                call = op.send(self._call(call))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _call(self, call: _ops.Call) -> Any:
        method = getattr(getattr(self.raw, call.service), call.method)
        deadline = time.monotonic() + self.timeout
        backoff = 0.1
        while True:
            try:
                rest = max(0.001, deadline - time.monotonic())
                return method(call.request, timeout=rest, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = of_error(error)
                delay = pause(failure, backoff)
                if delay is None or time.monotonic() + delay >= deadline:
                    raise of_failure(failure) from error
                time.sleep(delay)
                backoff = min(backoff * 2, 2.0)


def pause(failure: Failure, backoff: float) -> float | None:
    """How long to wait before a call is made again; None: not at all."""
    if failure.code == "UNAVAILABLE" or failure.retry_after is not None:
        return max(failure.retry_after or 0.0, backoff * (0.5 + random.random() / 2))
    return None

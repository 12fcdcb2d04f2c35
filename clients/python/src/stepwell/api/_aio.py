"""`AsyncApi`: the same as `Api` for asyncio. It belongs to the event loop in which it is used first."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import pathlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import grpc

from .. import _reporting
from .._channel import metadata, open_async_channel
from .._pb import artifact_service_pb2 as artifact_pb
from .._settings import TLS, from_environment
from .._status import Failure, of_error
from ..errors import Error, WaitTimeout, of_failure
from . import _ops
from ._filters import Filter
from ._ops import RunId
from ._records import Artifact, Count, Event, Execution, StepRecord
from ._stubs import Stubs
from ._sync import pause
from ._watching import Watching

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class AsyncApi:
    """`Api` with async and await: `async with AsyncApi() as api: run = await api.get(id)`."""

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
        self._server, self._tls = server or settings.server, tls or settings.tls
        self._metadata = metadata(settings.sent_headers(server, tls) if headers is None else headers)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None

    @property
    def raw(self) -> Stubs:
        """The generated stubs, on the same channel. Used in an event loop for the first time."""
        if self._stubs is None:
            self._channel = open_async_channel(self._server, self._tls)
            self._stubs = Stubs(self._channel)
        return self._stubs

    async def close(self) -> None:
        """Ends the connection, and what runs on it."""
        channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            await channel.close(None)

    async def __aenter__(self) -> AsyncApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- records ----------------------------------------------------------------------------------------------

    async def get(self, id: RunId, *, steps: bool = False, payloads: bool = False) -> Execution:
        """See `Api.get`."""
        return await self._run(_ops.get(_ops.id_of(id), steps, payloads))

    def list(
        self, *, order: Literal["newest", "oldest"] = "newest", limit: int | None = None, **filter: Unpack[Filter]
    ) -> AsyncIterator[Execution]:
        """See `Api.list`."""
        return self._pages(lambda token: _ops.list_executions(filter, order, limit, token), limit)

    async def count(self, **filter: Unpack[Filter]) -> Count:
        """See `Api.count`."""
        return await self._run(_ops.count(filter))

    def steps(self, id: RunId, *, payloads: bool = False) -> AsyncIterator[StepRecord]:
        """See `Api.steps`."""
        return self._pages(lambda token: _ops.list_steps(_ops.id_of(id), token, payloads))

    async def step(self, id: RunId, step: str | int) -> StepRecord:
        """See `Api.step`."""
        return await self._run(_ops.get_step(_ops.id_of(id), step))

    def artifacts(self, id: RunId, *, type: str | None = None) -> AsyncIterator[Artifact]:
        """See `Api.artifacts`."""
        return self._pages(lambda token: _ops.list_artifacts(_ops.id_of(id), type, token))

    def metrics(self, id: RunId, names: Sequence[str] = ()) -> AsyncIterator[tuple[dt.datetime | None, dict[str, float]]]:
        """See `Api.metrics`."""
        return self._pages(lambda token: _ops.metrics(_ops.id_of(id), [*names], token))

    async def cancel(self, id: RunId, reason: str = "") -> Execution:
        """See `Api.cancel`."""
        return await self._run(_ops.cancel(_ops.id_of(id), reason))

    async def delete(self, id: RunId, *, force: bool = False) -> None:
        """See `Api.delete`."""
        await self._run(_ops.delete(_ops.id_of(id), force))

    async def download(self, artifact: Artifact | str, to: str | os.PathLike[str] | BinaryIO) -> None:
        """See `Api.download`."""
        if hasattr(to, "write"):
            await self._download(artifact, to)
            return
        path = pathlib.Path(to)
        half = path.with_name(f"{path.name}.part")
        try:
            with half.open("wb") as out:
                await self._download(artifact, out)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)

    async def _download(self, artifact: Artifact | str, out: Any) -> None:
        await self._flush()
        identity = artifact if isinstance(artifact, str) else artifact.artifact_id
        digest, offset, expected = hashlib.sha256(), 0, ""
        deadline = time.monotonic() + self.timeout
        while True:
            request = artifact_pb.DownloadArtifactRequest(artifact_id=identity, offset=offset)
            call: Any = self.raw.artifacts.DownloadArtifact(request, metadata=self._metadata)
            try:
                async for part in call:
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
                await asyncio.sleep(0.2)
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
    ) -> AsyncIterator[Event]:
        """See `Api.watch`."""
        watching = Watching(_ops.id_of(id), token)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_request(_ops.id_of(id), steps, artifacts, metrics, payloads, follow, watching.token)
            return self.raw.executions.WatchExecution(request, metadata=self._metadata, timeout=rest)

        return self._watch(watching, open_stream, None)

    async def watch_many(
        self,
        *,
        snapshot: Literal["all", "active", "none"] = "all",
        token: str | None = None,
        steps: bool = False,
        payloads: bool = False,
        **filter: Unpack[Filter],
    ) -> AsyncIterator[Event]:
        """See `Api.watch_many`."""
        watching = Watching(None, token)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_many_request(filter, snapshot, steps, payloads, watching.token)
            return self.raw.executions.WatchExecutions(request, metadata=self._metadata, timeout=rest)

        while True:
            async for event in self._watch(watching, open_stream, None):
                yield event
            await asyncio.sleep(0.1)

    async def wait(self, id: RunId, timeout: float | None = None) -> Execution:
        """See `Api.wait`."""
        watching = Watching(_ops.id_of(id), None)

        def open_stream(rest: float | None) -> Any:
            request = _ops.watch_request(_ops.id_of(id), False, False, False, False, True, watching.token)
            return self.raw.executions.WatchExecution(request, metadata=self._metadata, timeout=rest)

        deadline = None if timeout is None else time.monotonic() + timeout
        async for event in self._watch(watching, open_stream, deadline):
            if event.kind == "execution" and event.record.status.ended:
                return await self.get(id)
        raise WaitTimeout(
            Failure("DEADLINE_EXCEEDED", f"{watching.execution_id} has not ended within {timeout} s", "WAIT_TIMEOUT")
        )

    async def _watch(self, watching: Watching, open_stream: Any, deadline: float | None) -> AsyncIterator[Event]:
        await self._flush()
        while True:
            rest = None if deadline is None else deadline - time.monotonic()
            if rest is not None and rest <= 0:
                return
            call = open_stream(rest)
            try:
                async for message in call:
                    for event in watching.events(message):
                        yield event
                return
            except grpc.RpcError as error:
                if deadline is not None and time.monotonic() >= deadline:
                    return
                delay, events = watching.again(of_error(error))
                for event in events:
                    if event.record is None and watching.execution_id is not None:
                        event = await self._known(watching.execution_id, event)
                    yield event
                await asyncio.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.monotonic())))
            finally:
                call.cancel()

    async def _known(self, execution_id: str, event: Event) -> Event:
        try:
            return Event(event.kind, event.change, await self.get(execution_id), event.token)
        except Error:
            return event

    # --- reports ----------------------------------------------------------------------------------------------

    async def report(
        self, *, period: Literal["day", "week", "month"] = "day", time_zone: str = "UTC", **filter: Unpack[Filter]
    ) -> Sequence[dict[str, Any]]:
        """See `Api.report`."""
        return await self._run(_ops.report(filter, period, time_zone))

    async def trends(
        self, *, interval: dt.timedelta = dt.timedelta(hours=1), **filter: Unpack[Filter]
    ) -> Sequence[dict[str, Any]]:
        """See `Api.trends`."""
        return await self._run(_ops.trends(filter, interval))

    async def errors(self, **filter: Unpack[Filter]) -> Sequence[dict[str, Any]]:
        """See `Api.errors`."""
        return await self._run(_ops.errors(filter))

    async def search(self, query: str, *, limit: int = 50, **filter: Unpack[Filter]) -> Sequence[dict[str, Any]]:
        """See `Api.search`."""
        return await self._run(_ops.search(query, filter, limit))

    async def configuration(
        self, app: str | int, *, sub_app: str | int | None = None, version: str | None = None
    ) -> dict[str, Any]:
        """See `Api.configuration`."""
        return await self._run(_ops.configuration(app, sub_app, version))

    def configurations(self, app: str | int, *, sub_app: str | int | None = None) -> AsyncIterator[dict[str, Any]]:
        """See `Api.configurations`."""
        return self._pages(lambda token: _ops.configurations(app, sub_app, token))

    async def publish(
        self,
        app: str,
        version: str,
        configuration: Mapping[str, Any],
        *,
        app_id: int | None = None,
        activate: bool = False,
    ) -> dict[str, Any]:
        """See `Api.publish`."""
        return await self._run(_ops.publish(app, version, configuration, app_id, activate))

    # --- how calls are made -----------------------------------------------------------------------------------

    async def _flush(self) -> None:
        reporting = _reporting.existing_client()
        if reporting is not None and reporting.pending():
            await asyncio.to_thread(reporting.flush)

    async def _pages(self, page: _ops.Pages[T], limit: int | None = None) -> AsyncIterator[T]:
        token, left = "", limit
        while True:
            items, token = await self._run(page(token))
            for item in items:
                if left is not None:
                    if left <= 0:
                        return
                    left -= 1
                yield item
            if not token or left == 0:
                return

    async def _run(self, op: _ops.Op[T]) -> T:
        await self._flush()
        try:
            call = next(op)
            while True:
                call = op.send(await self._call(call))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _call(self, call: _ops.Call) -> Any:
        method = getattr(getattr(self.raw, call.service), call.method)
        deadline = time.monotonic() + self.timeout
        backoff = 0.1
        while True:
            try:
                rest = max(0.001, deadline - time.monotonic())
                return await method(call.request, timeout=rest, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = of_error(error)
                delay = pause(failure, backoff)
                if delay is None or time.monotonic() + delay >= deadline:
                    raise of_failure(failure) from error
                await asyncio.sleep(delay)
                backoff = min(backoff * 2, 2.0)

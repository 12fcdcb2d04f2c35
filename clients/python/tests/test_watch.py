"""Watching: over restarts, expired tokens, foreign writes, and records that are larger than gRPC's limit."""

from __future__ import annotations

import asyncio
import pathlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import Server, mongodb

import stepwell as sw
from stepwell._pb import execution_service_pb2 as pb
from stepwell._status import Failure
from stepwell.api._watching import Watching


class Watcher:
    """A watch on a thread, so that a test can look at what has come so far."""

    def __init__(self, events: Iterator[sw.Event]) -> None:
        self.seen: list[sw.Event] = []
        self.queue: queue.Queue[sw.Event | BaseException | None] = queue.Queue()
        self.thread = threading.Thread(target=self._run, args=(events,), daemon=True)
        self.thread.start()

    def _run(self, events: Iterator[sw.Event]) -> None:
        try:
            for event in events:
                self.queue.put(event)
            self.queue.put(None)
        except BaseException as error:
            self.queue.put(error)

    def until(self, check: Callable[[sw.Event], Any], seconds: float = 30) -> sw.Event:
        end = time.monotonic() + seconds
        while True:
            event = self.queue.get(timeout=max(0.01, end - time.monotonic()))
            if isinstance(event, BaseException):
                raise event
            assert event is not None, "the watch has ended"
            self.seen.append(event)
            if check(event):
                return event

    def rest(self, seconds: float = 30) -> list[sw.Event]:
        events = []
        while (event := self.queue.get(timeout=seconds)) is not None:
            if isinstance(event, BaseException):
                raise event
            events.append(event)
        self.seen += events
        return events


def is_step(name: str, status: str) -> Callable[[sw.Event], bool]:
    return lambda event: event.kind == "step" and event.record.name == name and event.record.status == status


def test_a_watch_has_every_change_over_restarts_of_the_server(server: Server, spool: pathlib.Path) -> None:
    sw.configure(server.address, spool_dir=spool)
    r = sw.run("watched").start()
    assert sw.flush(10)
    api = sw.Api(server.address)
    watcher = Watcher(api.watch(r.id, artifacts=True))
    watcher.until(lambda e: e.kind == "live")
    for n in range(3):
        with r.step(f"s{n}"):
            pass
        watcher.until(is_step(f"s{n}", "completed"))
        server.kill() if n % 2 else server.terminate()
        server.start()
    r.artifact("a.txt", "text")
    watcher.until(lambda e: e.kind == "artifact")
    r.complete()
    last = watcher.rest()[-1]
    assert last.record.status == "completed"
    revisions: dict[Any, int] = {}
    for event in watcher.seen:
        if event.kind in ("step", "execution"):
            key = (event.kind, getattr(event.record, "step_id", None))
            assert event.record.revision >= revisions.get(key, 0), "never backwards"
            revisions[key] = event.record.revision
    assert not [e for e in watcher.seen if e.kind == "reset"]


def test_a_watch_begins_again_where_its_token_has_expired(spool: pathlib.Path) -> None:
    """While the server is down its log is cut, as it is after seven days."""
    server = Server("sqlite").start()
    try:
        sw.configure(server.address, spool_dir=spool)
        r = sw.run("expired").start()
        assert sw.flush(10)
        watcher = Watcher(sw.Api(server.address).watch(r.id))
        live = watcher.until(lambda e: e.kind == "live")
        assert live.token
        assert live.record.id == r.id
        server.terminate()
        with sqlite3.connect(server.folder / "data" / "stepwell.db") as database:
            (last,) = database.execute("SELECT max(seq) FROM changes").fetchone()
            database.execute("DELETE FROM changes")
            database.execute("UPDATE meta SET value = ? WHERE name = 'pruned_through'", (last + 10,))
            database.execute(
                "INSERT INTO changes (seq, at, execution_id, kind, flags, revision) VALUES (?, ?, 'other', 0, 0, 1)",
                (last + 11, time.time_ns() // 1_000_000),
            )
        database.close()
        server.start()
        reset = watcher.until(lambda e: e.kind == "reset")
        assert reset.record.id == r.id
        assert watcher.until(lambda e: e.kind == "execution").change == "created"
        watcher.until(lambda e: e.kind == "live")
        r.complete()
        assert watcher.rest()[-1].record.status == "completed"
    finally:
        server.stop()


def test_a_foreign_write_with_the_same_revision_is_passed_on(spool: pathlib.Path) -> None:
    server = Server("mongodb").start()
    try:
        sw.configure(server.address, spool_dir=spool)
        r = sw.run("foreign").start()
        assert sw.flush(10)
        api = sw.Api(server.address)
        watcher = Watcher(api.watch(r.id))
        watcher.until(lambda e: e.kind == "live")
        before = api.get(r.id)
        executions = mongodb().client[server.database].executions
        executions.update_one({"execution_id": r.id}, {"$set": {"metadata": {"by": "another program"}}})
        event = watcher.until(lambda e: e.kind == "execution" and e.record.metadata)
        assert event.record.metadata == {"by": "another program"}
        assert event.record.revision == before.revision
        r.complete()
        watcher.until(lambda e: e.kind == "execution" and e.record.status == "completed")
    finally:
        server.stop()


def test_a_record_of_more_than_4_mib_does_not_end_a_watch(shared: Server, spool: pathlib.Path) -> None:
    sw.configure(shared.address, spool_dir=spool, max_payload_bytes=5 << 20)
    r = sw.run("large").start()
    assert sw.flush(10)
    api = sw.Api(shared.address)
    watcher = Watcher(api.watch(r.id, payloads=True))
    watcher.until(lambda e: e.kind == "live")
    with r.step("big", input="i" * (4 << 20)) as s:
        s.output("o" * (4 << 20))
    with r.step("small") as s:
        s.output("after")
    event = watcher.until(is_step("small", "completed"))
    assert event.record.output == "after"
    assert api.step(r.id, watcher_key(watcher)).output == "o" * (4 << 20)
    r.complete()
    assert watcher.rest()[-1].record.status == "completed"


def watcher_key(watcher: Watcher) -> str:
    return next(str(e.record.key) for e in watcher.seen if e.kind == "step" and e.record.name == "big")


def test_a_watch_of_an_unknown_run_raises(shared: Server) -> None:
    with sw.Api(shared.address) as api, pytest.raises(sw.NotFound) as caught:
        next(iter(api.watch("nobody")))
    assert caught.value.reason == "EXECUTION_NOT_FOUND"


def test_wait(shared: Server, spool: pathlib.Path) -> None:
    sw.configure(shared.address, spool_dir=spool)
    api = sw.Api(shared.address)
    r = sw.run("waited").start()
    with pytest.raises(sw.WaitTimeout):
        api.wait(r.id, 0.3)
    threading.Timer(0.3, r.complete).start()
    assert api.wait(r.id, 20).status == "completed"


def test_watching_many(shared: Server, spool: pathlib.Path) -> None:
    sw.configure(shared.address, spool_dir=spool)
    app = f"many-{time.time_ns()}"
    api = sw.Api(shared.address)
    watcher = Watcher(api.watch_many(app=app, steps=True))
    watcher.until(lambda e: e.kind == "live")
    with sw.run(app) as r, r.step("s"):
        pass
    watcher.until(lambda e: e.kind == "execution" and e.record.status == "completed")
    # The first that is told of a run may be how it is by now, and what it had comes after it.
    if not any(is_step("s", "completed")(e) for e in watcher.seen):
        watcher.until(is_step("s", "completed"))


async def test_the_asynchronous_one(server: Server, spool: pathlib.Path) -> None:
    sw.configure(server.address, spool_dir=spool)
    async with sw.AsyncApi(server.address) as api:
        async with sw.run("asynchronous") as r, sw.step("outer") as outer, sw.step("inner"):
            pass
        kinds = [event.kind async for event in api.watch(r.id)]
        assert kinds[0] == "execution"
        assert "live" in kinds
        run = await api.get(r.id, steps=True)
        assert run.step("inner").parent_step_key == outer.key
        assert (await api.wait(r.id, 10)).status == "completed"
        assert [one.id async for one in api.list(app="asynchronous")] == [r.id]
        assert int(await api.count(app="asynchronous")) == 1
        with pytest.raises(sw.NotFound):
            await api.get("nobody")

        # Over a restart.
        r = sw.run("asynchronous").start()
        events = api.watch(r.id).__aiter__()
        while (await asyncio.wait_for(events.__anext__(), 20)).kind != "live":
            pass
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        r.complete()
        while True:
            event = await asyncio.wait_for(events.__anext__(), 30)
            if event.kind == "execution" and event.record.status == "completed":
                break


# --- what is remembered between streams ---------------------------------------------------------------------------


def change(revision: int, token: str = "t", **fields: Any) -> pb.WatchExecutionResponse:
    made = pb.WatchExecutionResponse(resume_token=token)
    made.execution.change_type = 2
    made.execution.execution.execution_id = "x"
    made.execution.execution.revision = revision
    for key, value in fields.items():
        setattr(made.execution.execution, key, value)
    return made


def test_only_a_lower_revision_is_dropped() -> None:
    watching = Watching("x", None)
    assert len(watching.events(change(5))) == 1
    assert watching.events(change(4)) == []
    assert len(watching.events(change(5, app_name="another program's"))) == 1
    assert len(watching.events(change(6))) == 1


def test_a_stream_that_breaks_goes_on_with_the_last_token() -> None:
    watching = Watching("x", None, jitter=lambda: 1.0)
    watching.events(change(1, token="a"))
    watching.events(pb.WatchExecutionResponse(resume_token="b", keepalive=pb.Keepalive()))
    assert watching.again(Failure("UNAVAILABLE")) == (0.1, [])
    assert watching.again(Failure("UNAVAILABLE")) == (0.2, [])
    assert watching.again(Failure("RESOURCE_EXHAUSTED", retry_after=7.0))[0] == 7.0
    assert watching.token == "b"
    for _ in range(10):
        delay, _ = watching.again(Failure("UNAVAILABLE"))
    assert delay == 5.0
    watching.events(change(2))
    assert watching.again(Failure("UNAVAILABLE"))[0] == 0.1, "what came has ended the back-off"


def test_a_stream_that_breaks_before_it_had_a_token_begins_again() -> None:
    watching = Watching("x", None)
    watching.events(change(1, token=""))
    _, events = watching.again(Failure("UNAVAILABLE"))
    assert [(event.kind, event.record.id) for event in events] == [("reset", "x")]
    assert len(watching.events(change(1, token=""))) == 1


def test_what_will_never_work_is_raised() -> None:
    watching = Watching("x", None)
    for code in ("NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "FAILED_PRECONDITION"):
        with pytest.raises(sw.Error):
            watching.again(Failure(code))
    with pytest.raises(sw.Error):
        watching.again(Failure("RESOURCE_EXHAUSTED"))

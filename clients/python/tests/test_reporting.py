"""What apps do, and what the server then has."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from servers import Server

import stepwell as sw
from stepwell import _reporting


class ModelError(Exception):
    pass


def stored(api: sw.Api, run: sw.Run) -> sw.Execution:
    assert sw.flush(20)
    assert (sw.stats().refused, sw.stats().dropped, sw.stats().defects) == (0, 0, 0), sw.stats()
    return api.get(run.id, steps=True, payloads=True)


def test_the_whole_of_a_run(client: sw.Client, api: sw.Api, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("a,b\n")
    with (
        pytest.raises(ModelError),
        sw.run("whole", user="me", metadata={"lang": "py"}, pinned=True, sub_app="part") as r,
    ):
        with r.step("fetch", input={"n": [1, {"deep": None}]}, version="2") as s:
            s.progress(0.5, "half")
            s.output({"rows": 3})
            s.output({"more": 4}, merge=True)
            s.metadata(source="web")
        with r.step("llm", input=[1, "two"], depends_on=[s]) as t:
            r.artifact("report.bin", b"\x00\x01", type="code", metadata={"k": "v"})
            r.artifact("data.csv", file)
            r.artifact("stream.txt", io.BytesIO(b"stream"))
            r.artifact("value.json", {"a": [1, None]})
            r.metrics(tokens=1234, cost=0.5)
            t.metrics({"with space": 2})
            raise ModelError("boom")
    run = stored(api, r)
    assert (run.status, run.user, run.app, run.sub_app_name, run.pinned) == ("failed", "me", "whole", "part", True)
    assert run.metadata == {"lang": "py"}
    assert run.error is not None
    assert (run.error.code, run.error.message) == ("ModelError", "boom")
    assert 'raise ModelError("boom")' in run.error.stack_trace
    fetch, llm = run.steps
    assert (fetch.status, fetch.output, fetch.input) == (
        "completed",
        {"rows": 3, "more": 4},
        {"n": [1, {"deep": None}]},
    )
    assert (fetch.metadata, fetch.step_version, fetch.progress_message) == ({"source": "web"}, "2", "half")
    assert (llm.status, llm.input) == ("failed", [1, "two"])
    assert llm.depends_on_keys == (fetch.key,)
    artifacts = {artifact.name: artifact for artifact in run.artifacts}
    assert artifacts["report.bin"].metadata == {"k": "v"}
    assert artifacts["report.bin"].artifact_type == "code"
    assert artifacts["report.bin"].step_key == llm.key
    contents = {}
    for name, artifact in artifacts.items():
        out = io.BytesIO()
        api.download(artifact, out)
        contents[name] = out.getvalue()
    assert contents == {
        "report.bin": b"\x00\x01",
        "data.csv": b"a,b\n",
        "stream.txt": b"stream",
        "value.json": b'{"a": [1, null]}',
    }
    assert artifacts["data.csv"].mime_type == "text/csv"
    assert [values for _, values in api.metrics(r.id)] == [{"tokens": 1234.0, "cost": 0.5}, {"with space": 2.0}]


def test_the_last_output_wins(client: sw.Client, api: sw.Api) -> None:
    with sw.run("outputs") as r:
        with r.step("replaced", key="a") as s:
            s.output({"first": 1})
            s.output({"second": 2})
        with r.step("text", key="b") as s:
            s.output({"first": 1})
            s.output("text")
        with r.step("none", key="c") as s:
            s.output(None)
    run = stored(api, r)
    assert [step.output for step in run.steps] == [{"second": 2}, "text", None]


def test_how_a_run_ends(client: sw.Client, api: sw.Api) -> None:
    ends: list[tuple[BaseException | None, str]] = [
        (None, "completed"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (sw.Cancelled(), "cancelled"),
        (SystemExit(0), "completed"),
        (SystemExit(1), "failed"),
    ]
    for error, status in ends:
        r = sw.run("ends")
        try:
            with r:
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error, "the exception goes on"
        assert stored(api, r).status == status
    r = sw.run("by hand").start()
    r.fail("no good", code="MINE", details={"a": 1})
    r.complete()
    run = stored(api, r)
    assert run.status == "failed", "the first end counts"
    assert run.error == sw.ErrorInfo("no good", "MINE", "", {"a": 1})


def test_decorators(client: sw.Client, api: sw.Api) -> None:
    runs: list[sw.Run] = []

    @sw.step
    def add(a: int, b: int = 2) -> int:
        assert sw.current_step().name in ("add", "none")
        return a + b

    @sw.step("named", version="3")
    def named() -> str:
        return "n"

    class Agent:
        @sw.step
        def act(self, what: str) -> str:
            return what

    @sw.run
    def job(n: int) -> int:
        runs.append(sw.current_run())
        named()
        Agent().act("look")
        return add(n)

    assert job(1) == 3
    assert job(2) == 4
    assert runs[0].id != runs[1].id
    run = stored(api, runs[0])
    assert run.app == "tests"
    assert run.step("add").input == {"a": 1}
    assert run.step("add").output == 3
    assert run.step("named").step_version == "3"
    assert run.step("act").input == {"what": "look"}
    assert add.__name__ == "add"
    assert add(5) == 7, "outside a run it just works"


def test_decorated_generators(client: sw.Client, api: sw.Api) -> None:
    @sw.step
    def words(n: int) -> Iterator[str]:
        for i in range(n):
            assert sw.current_step().name == "words"
            yield f"w{i} "

    @sw.step
    def echo() -> Iterator[Any]:
        got = yield "ready"
        try:
            yield got
        except ValueError:
            yield "caught"

    @sw.step
    def broken() -> Iterator[int]:
        yield 1
        raise ModelError("half way")

    @sw.step
    def endless() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    with sw.run("generators") as r:
        assert "".join(words(3)) == "w0 w1 w2 "
        assert not sw.current_step(), "the step is not current for who uses the generator"
        it = echo()
        assert next(it) == "ready"
        assert it.send("sent") == "sent"  # type: ignore[attr-defined]
        assert it.throw(ValueError()) == "caught"  # type: ignore[attr-defined]
        assert list(it) == []
        with pytest.raises(ModelError):
            list(broken())
        for n in endless():
            if n == 2:
                break
        del n
    import gc

    gc.collect()
    run = stored(api, r)
    assert run.step("words").output == "w0 w1 w2 "
    assert run.step("echo").output == "readysentcaught"
    assert (run.step("broken").status, run.step("broken").output) == ("failed", [1])
    assert (run.step("endless").status, run.step("endless").output) == ("completed", [0, 1, 2])


async def test_asynchronous_code(client: sw.Client, api: sw.Api) -> None:
    @sw.step
    async def child(n: int) -> int:
        await asyncio.sleep(0)
        async with sw.step(f"inner-{n}"):
            await asyncio.sleep(0)
        return n

    @sw.step
    async def stream() -> AsyncIterator[str]:
        for i in range(2):
            assert sw.current_step().name == "stream"
            yield str(i)

    @sw.run("async-job")
    async def job() -> sw.Run:
        assert await asyncio.gather(*(child(n) for n in range(5))) == list(range(5))
        assert [x async for x in stream()] == ["0", "1"]
        return sw.current_run()

    r = await job()
    run = await asyncio.to_thread(stored, api, r)
    parents = {step.name: step.parent_step_key for step in run.steps}
    children = {step.key: step.input["n"] for step in run.steps if step.name == "child"}
    for n in range(5):
        assert children[parents[f"inner-{n}"]] == n, "each inner step is below its own task's"
    assert run.step("stream").output == "01"

    async def cancelled() -> None:
        async with sw.run("cancelled-job", id="cancelled-" + r.id), sw.step("long"):
            await asyncio.sleep(30)

    task = asyncio.create_task(cancelled())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(sw.flush, 20)
    run = api.get("cancelled-" + r.id, steps=True)
    assert run.status == "cancelled"
    assert run.steps[0].error is not None
    assert run.steps[0].error.code == "CANCELLED"


def test_retries(client: sw.Client, api: sw.Api) -> None:
    calls = []

    @sw.step(retries=3, backoff=0.001)
    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ModelError(f"try {len(calls)}")
        return "there"

    @sw.step(retries=1, backoff=lambda attempt: 0.0, retry_on=KeyError)
    def hopeless() -> None:
        raise ModelError("always")

    with sw.run("retries") as r:
        assert flaky() == "there"
        with pytest.raises(ModelError):
            hopeless()
        s = r.step("by hand").start()
        s.fail("once")
        with s.retry() as again:
            assert again.key == s.key
    run = stored(api, r)
    flaky_step = run.step("flaky")
    assert (flaky_step.status, flaky_step.retry_count, flaky_step.output) == ("completed", 2, "there")
    assert [a.error.message for a in flaky_step.attempts if a.error] == ["try 1", "try 2"]
    assert run.step("hopeless").retry_count == 0
    assert (run.step("by hand").status, run.step("by hand").retry_count) == ("completed", 1)


def test_nesting_threads_and_parents(client: sw.Client, api: sw.Api) -> None:
    with sw.run("outer") as outer, sw.step("a") as a, sw.step("b"):
        with sw.run("inner") as inner, sw.step("in the inner run"):
            pass
        with concurrent.futures.ThreadPoolExecutor(2) as pool:

            def work(n: int) -> None:
                with sw.step(f"thread-{n}"):
                    assert sw.current_run().id == outer.id

            list(pool.map(sw.bind(work), range(4)))
    run = stored(api, outer)
    assert run.step("b").parent_step_key == a.key
    assert {run.step(f"thread-{n}").parent_step_key for n in range(4)} == {run.step("b").key}
    inside = stored(api, inner)
    assert inside.parent_execution_id == outer.id
    assert inside.steps[0].parent_step_key is None


def test_many_threads(client: sw.Client, api: sw.Api) -> None:
    def work(n: int) -> str:
        with sw.run("threads", id=f"t{n}-{time.time_ns()}") as r:
            for i in range(20):
                with r.step("s", key=str(i)) as s:
                    s.output(i)
        return r.id

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(work, range(24)))
    assert sw.flush(30)
    for id in ids:
        run = api.get(id, steps=True)
        assert (run.status, len(run.steps)) == ("completed", 20)
    assert sw.stats().refused == 0


def test_plans(client: sw.Client, api: sw.Api) -> None:
    with sw.run("planned") as r:
        r.plan("fetch", sw.PlannedStep("think", key="t", depends_on=["fetch"]), "answer", "never")
        with r.step("fetch"):
            pass
        with sw.step("think"):
            pass
        with sw.step("answer") as s:
            s.output("42")
        r.step("never").skip("not needed")
    run = stored(api, r)
    assert [(s.step_id, s.key, str(s.status)) for s in run.steps] == [
        (1, "fetch", "completed"),
        (2, "t", "completed"),
        (3, "answer", "completed"),
        (4, "never", "skipped"),
    ]
    assert run.step("t").depends_on_keys == ("fetch",) or run.step("t").depends_on == (1,)
    assert run.step("never").metadata == {"skip_reason": "not needed"}


def test_a_request_to_cancel_is_seen(shared: Server, spool: pathlib.Path, api: sw.Api) -> None:
    sw.configure(shared.address, spool_dir=spool, heartbeat_timeout=1.0)
    r = sw.run("cancel me")
    with pytest.raises(sw.Cancelled), r:
        assert sw.flush(10)
        assert not r.cancel_requested
        api.cancel(r.id, "enough")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            r.raise_if_cancelled()
            time.sleep(0.02)
    run = stored(api, r)
    assert (run.status, run.cancel_reason) == ("cancelled", "enough")


def test_a_run_that_is_silent_is_kept_alive(shared: Server, spool: pathlib.Path, api: sw.Api) -> None:
    sw.configure(shared.address, spool_dir=spool, heartbeat_timeout=1.0)
    with sw.run("silent") as r:
        time.sleep(3)
        assert api.get(r.id).status == "running"
    run = stored(api, r)
    assert run.status == "completed"


def test_progress_is_sent_ten_times_a_second_at_most_and_the_last_one_always(client: sw.Client, api: sw.Api) -> None:
    with sw.run("progress") as r, r.step("s") as s:
        end = time.monotonic() + 0.5
        n = 0
        while time.monotonic() < end:
            n += 1
            s.progress(n / 1e7, f"at {n}")
            time.sleep(0.001)
        s.progress(0.75, "nearly")
        time.sleep(0.3)
        assert sw.flush(10)
        step = api.get(r.id, steps=True).step("s")
        assert (step.progress, step.progress_message) == (0.75, "nearly"), "without another call"
        s.progress(2.0)
        s.progress(float("nan"))
    assert sw.flush(10)
    assert sw.stats().acked < 20
    assert api.get(r.id, steps=True).step("s").progress == 1.0


def test_going_on_in_another_place(client: sw.Client, api: sw.Api) -> None:
    with sw.run("made here") as r:
        with r.step("outer") as outer:
            carrier = {"Stepwell-Run": r.carrier()["stepwell-run"], **r.carrier()}
        results = []

        def elsewhere() -> None:
            with sw.attach(carrier) as attached:
                assert attached.carrier() == r.carrier() | {"stepwell-step": outer.key}, "is carried on"
                with sw.step("there"):
                    results.append(attached.id)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert results == [r.id]
        assert not r._ended
    run = stored(api, r)
    assert run.status == "completed"
    assert run.step("there").parent_step_key == outer.key
    assert not sw.attach({}), "nothing was carried"


def test_outside_of_a_run_nothing_happens(client: sw.Client) -> None:
    assert not sw.current_run()
    assert not sw.current_step()
    with sw.step("nothing") as s:
        s.progress(0.5)
        s.output(1)
        s.metrics(a=1)
        s.artifact("x", b"")
        sw.current_run().metadata(a=1)
    assert sw.stats().queued == 0
    assert sw.flush(0.0)


def test_disabled(spool: pathlib.Path) -> None:
    sw.configure("127.0.0.1:9", mode="disabled", spool_dir=spool)

    @sw.run
    def job() -> int:
        with sw.step("s") as s:
            s.output(1)
        return 5

    assert job() == 5
    with sw.run("x") as r:
        r.artifact("a", b"1")
        r.metadata(a=1)
    assert not spool.exists()
    assert threading.active_count() == 1 or not any("stepwell" in t.name for t in threading.enumerate())


def test_nothing_raises_into_the_app(client: sw.Client, api: sw.Api) -> None:
    class Bad(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise RuntimeError("no")

    sw.configure(client.settings.server, spool_dir=client.spool_dir, user=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with sw.run("\ud800" * 500, metadata=Bad(a=1)) as r:
        with r.step("", key="k" * 1000, input=Bad()) as s:
            s.progress("much")  # type: ignore[arg-type]
            s.metrics({"x": "y"})  # type: ignore[dict-item]
            s.artifact("gone", pathlib.Path("/nowhere/at/all"))
            s.output(Bad(a=1))
        r.metadata(**{"": 1})
        r.fail(123)  # type: ignore[arg-type]
    assert sw.flush(20)
    assert api.get(r.id).status == "failed"


def test_redaction_and_capture(shared: Server, spool: pathlib.Path, api: sw.Api) -> None:
    sw.configure(
        shared.address,
        spool_dir=spool,
        capture_input=False,
        redact=lambda path, value: "***" if path.endswith(".key") else value,
    )
    with sw.run("secrets", metadata={"key": "k"}) as r, r.step("s", input={"in": 1}) as s:
        s.output({"key": "k", "open": 1})
    run = stored(api, r)
    assert run.metadata == {"key": "***"}
    assert run.steps[0].output == {"key": "***", "open": 1}
    assert run.steps[0].input in (None, {})


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name, value in {
        "SERVER": "host:1",
        "APP": "named",
        "APP_ID": "7",
        "MODE": "memory",
        "SPOOL_DIR": str(tmp_path),
        "FLUSH_TIMEOUT": "2.5",
        "HEARTBEAT_TIMEOUT": "0",
        "SPOOL_MAX_BYTES": "many",
        "CAPTURE_INPUT": "false",
    }.items():
        monkeypatch.setenv(f"STEPWELL_{name}", value)
    with sw.run() as r:
        pass
    settings = _reporting.client().settings
    assert (settings.server, settings.app, settings.app_id, settings.mode) == ("host:1", "named", 7, "memory")
    assert (settings.flush_timeout, settings.heartbeat_timeout, settings.spool_max_bytes) == (2.5, None, 256 << 20)
    assert settings.capture_input is False
    recorder = _reporting.client().recorder
    assert recorder is not None
    assert recorder.run.id == r.id
    assert sw.configure("given:2").settings.server == "given:2"


def test_reading_what_was_just_reported(client: sw.Client, api: sw.Api) -> None:
    for _ in range(5):
        with sw.run("read back") as r:
            pass
        assert api.get(r.id).status == "completed"
    with pytest.raises(sw.NotFound) as caught:
        api.get("nobody")
    assert caught.value.reason == "EXECUTION_NOT_FOUND"
    assert caught.value.code == "NOT_FOUND"


def test_lists_counts_and_errors(client: sw.Client, api: sw.Api) -> None:
    import datetime as dt

    app = f"lists-{time.time_ns()}"
    for n in range(5):
        r = sw.run(app, user=f"u{n % 2}", metadata={"n": n, "deep": {"a.b": n}}).start()
        r.fail("x") if n == 3 else r.complete()
    hour = dt.timedelta(hours=1)
    newest = list(api.list(app=app))
    assert {run.metadata["n"] for run in newest} == {0, 1, 2, 3, 4}
    assert newest == sorted(newest, key=lambda run: str(run.started_at), reverse=True)
    oldest = list(api.list(app=app, order="oldest", limit=2))
    assert [run.started_at for run in oldest] == sorted(str(run.started_at) and run.started_at for run in newest)[:2]
    assert [run.metadata["n"] for run in api.list(app=app, status="failed", since=hour)] == [3]
    assert [run.metadata["n"] for run in api.list(app=app, status=["failed", "running"], user="u1")] == [3]
    assert [run.metadata["n"] for run in api.list(app=app, metadata={"n": 2})] == [2]
    assert list(api.list(app=app, until=hour)) == []
    assert api.count(app=app) == sw.Count(5, True)
    with pytest.raises(TypeError):
        api.list(apps=app)  # type: ignore[call-arg]
        next(iter(api.list(apps=app)))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="strange"):
        next(iter(api.list(status="strange")))
    with pytest.raises(sw.Error) as caught:
        next(iter(api.list(app="x" * 300)))
    assert caught.value.fields, "the server says which field is wrong"
    assert api.errors(app=app)
    assert api.report(app=app)
    run = next(iter(api.list(app=app, limit=1)))
    api.delete(run.id)
    assert int(api.count(app=app)) == 4


def test_configurations(client: sw.Client, api: sw.Api) -> None:
    app = f"configured-{time.time_ns()}"
    steps = [{"id": 1, "name": "fetch"}, {"id": 2, "name": "answer", "depends_on": [1]}]
    api.publish(app, "1", {"steps": steps}, activate=True)
    assert api.configuration(app)["version"] == "1"
    assert [one["version"] for one in api.configurations(app)] == ["1"]
    with sw.run(app, configuration_version="1") as r:
        r.plan(configuration_version="1")
    run = stored(api, r)
    assert run.configuration_version == "1"
    assert [step.name for step in run.steps] == ["fetch", "answer"]

"""What somebody new to it does: the first mistakes are said, and what one would expect to work does."""

from __future__ import annotations

import collections
import concurrent.futures
import datetime as dt
import hashlib
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from servers import App, Server, environment, free_port, harness

import stepwell as sw
from stepwell import _settings


def stored(api: sw.Api, run: sw.Run) -> sw.Execution:
    assert sw.flush(20)
    assert (sw.stats().refused, sw.stats().dropped, sw.stats().defects) == (0, 0, 0), sw.stats()
    return api.get(run, steps=True, payloads=True)


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("127.0.0.1", "127.0.0.1:50051"),
        ("stepwell.internal", "stepwell.internal:50051"),
        ("stepwell.internal:7000", "stepwell.internal:7000"),
        ("http://stepwell.internal", "http://stepwell.internal:50051"),
        ("http://stepwell.internal:7000/", "http://stepwell.internal:7000"),
        ("https://stepwell.example.org", "https://stepwell.example.org"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:7000", "[::1]:7000"),
        ("unix:/run/stepwell", "unix:/run/stepwell"),
        ("dns:///stepwell.internal:7000", "dns:///stepwell.internal:7000"),
    ],
)
def test_an_address_without_a_port(said: str, target: str) -> None:
    assert _settings.from_environment({"server": said}, {}).server == target
    assert _settings.from_environment({}, {"STEPWELL_SERVER": said}).server == target


@pytest.mark.parametrize(
    ("server", "sent"),
    [
        ("127.0.0.1:7000", True),
        ("[::1]", True),
        ("localhost", True),
        ("https://stepwell.example.org", True),
        ("http://stepwell.example.org", False),
        ("10.1.2.3:7000", False),
    ],
)
def test_the_key_of_the_environment(server: str, sent: bool, caplog: pytest.LogCaptureFixture) -> None:
    settings = _settings.from_environment({"server": server}, {"STEPWELL_KEY": "swk_secret"})
    assert dict(settings.sent_headers()) == ({"authorization": "Bearer swk_secret"} if sent else {})
    assert bool(caplog.records) is not sent, "it is said"
    assert "swk_secret" not in repr(settings) + caplog.text
    # What the app says itself goes first, and to another server it goes by what that one is.
    given = _settings.from_environment({"server": server, "headers": {"Authorization": "mine"}}, {"STEPWELL_KEY": "swk"})
    assert given.sent_headers() == {"Authorization": "mine"}
    assert dict(settings.sent_headers("http://elsewhere.example.org")) == {}
    assert "authorization" in settings.sent_headers("http://elsewhere.example.org", sw.TLS())


def test_a_server_that_asks_for_a_key(spool: pathlib.Path, tmp_path: pathlib.Path) -> None:
    generate = [harness.binary(), "keys", "generate"]
    secret = subprocess.run(generate, check=True, capture_output=True, text=True).stdout.strip()
    admin = tmp_path / "admin.key"
    admin.write_text(f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}\n")
    admin.chmod(0o600)
    server = Server("sqlite", args=("--auth-mode", "required", "--auth-admin-key-file", str(admin))).start()
    try:
        code = """
        import stepwell as sw
        with sw.run("keyed") as r: pass
        print(sw.flush(20), sw.Api().get(r).status, [x.app for x in sw.Api().list()])
        """
        key = {"STEPWELL_KEY": secret}
        assert App(code, server.address, spool, **key).finish() == "True completed ['keyed']\n"
        # What was left by a program without one is sent by who has it.
        left = App("import stepwell as sw\nwith sw.run('left'): pass", server.address, spool, STEPWELL_FLUSH_TIMEOUT="0.5")
        _, said = left.child.communicate(timeout=60)
        assert "UNAUTHENTICATED" in said
        sending = [sys.executable, "-m", "stepwell", "spool", "send", "--spool-dir", str(spool)]
        environ = {**environment("unused", spool), **key}

        def send(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*sending, *more], env=environ, capture_output=True, text=True, timeout=90)

        # A file in a folder does not decide who gets the key.
        kept = send("--timeout", "2")
        assert kept.returncode == 1 and kept.stdout == f"{server.address}: 0 sent, 0 refused, 2 left\n", kept
        done = send("--server", server.address)
        assert done.stdout == f"{server.address}: 2 sent, 0 refused, 0 left\n", done
    finally:
        server.stop()


def test_metadata_of_any_key(client: sw.Client, api: sw.Api) -> None:
    with sw.run("any-key") as r:
        r.metadata({"model.name": "m-1"}, temperature=0)
        with r.step("one") as s:
            s.metadata({"prompt version": 2}, values="a key of that name too")
    run = stored(api, r)
    assert run.metadata == {"model.name": "m-1", "temperature": 0}
    assert run.steps[0].metadata == {"prompt version": 2, "values": "a key of that name too"}


def test_what_is_not_understood_is_said_once(client: sw.Client, api: sw.Api, caplog: pytest.LogCaptureFixture) -> None:
    with sw.run("misuse") as r, r.step("one") as s:
        for _ in range(3):
            s.progress("half")  # type: ignore[arg-type]
            s.progress(50)
            r.metadata("text")  # type: ignore[arg-type]
    assert sw.flush(20)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 3, said
    assert said[0] == "Step.progress: ValueError: could not convert string to float: 'half'; it is not reported"
    assert said[1] == "progress is a fraction from 0 to 1: 50.0 counts as 1"
    assert said[2].startswith("Run.metadata: TypeError: ")
    assert sw.stats().defects == 6
    assert api.get(r).status == "completed"


def test_methods_of_classes(client: sw.Client, api: sw.Api) -> None:
    class Agent:
        @sw.step
        def act(self, thing: str) -> str:
            return thing

        @sw.step
        @classmethod
        def above(cls, thing: str) -> str:
            return f"{cls.__name__} {thing}"

        @classmethod
        @sw.step("named")
        def below(cls, thing: str) -> str:
            return f"{cls.__name__} {thing}"

        @sw.step()
        @staticmethod
        def static(thing: str) -> str:
            return thing

        @sw.run("inside")
        @classmethod
        def all_of_it(cls) -> str:
            return sw.current_run().id

    with sw.run("classes") as r:
        assert Agent().act("a") == "a"
        assert Agent.above("b") == Agent().above("b") == "Agent b"
        assert Agent.below("c") == "Agent c"
        assert Agent.static("d") == Agent().static("d") == "d"
    run = stored(api, r)
    assert [(step.name, step.input, step.output) for step in run.steps] == [
        ("act", {"thing": "a"}, "a"),
        ("above", {"thing": "b"}, "Agent b"),
        ("above", {"thing": "b"}, "Agent b"),
        ("named", {"thing": "c"}, "Agent c"),
        ("static", {"thing": "d"}, "d"),
        ("static", {"thing": "d"}, "d"),
    ]
    assert api.get(Agent.all_of_it()).app == "inside"


def test_a_run_that_streams(client: sw.Client, api: sw.Api) -> None:
    ids: list[str] = []

    @sw.run("chat")
    def chat(fail: bool) -> Iterator[str]:
        ids.append(sw.current_run().id)
        with sw.step("outer"):
            yield "a"
            with sw.step("inner"):
                yield "b"
        if fail:
            raise ValueError("boom")

    with sw.run("around") as r:
        seen = []
        for token in chat(False):
            assert sw.current_run() is r, "whoever reads it is in no run of it"
            seen.append(token)
        assert seen == ["a", "b"]
        with pytest.raises(ValueError, match="boom"):
            list(chat(True))
        half = chat(False)
        next(half)
        half.close()
        assert sw.current_run() is r
    assert sw.flush(20)
    runs = [api.get(one, steps=True) for one in ids]
    assert [run.status for run in runs] == ["completed", "failed", "completed"]
    assert {run.parent_execution_id for run in runs} == {r.id}
    outer, inner = runs[0].steps
    assert (outer.name, inner.name, inner.parent_step_key) == ("outer", "inner", outer.key)
    assert runs[2].step("outer").status == "failed", "it was left in the middle"


async def test_an_async_run_that_streams(client: sw.Client, api: sw.Api) -> None:
    ids: list[str] = []

    @sw.run("chat", flush=True)
    async def chat() -> AsyncIterator[str]:
        ids.append(sw.current_run().id)
        async with sw.step("outer"):
            yield "a"
            with sw.step("inner"):
                yield "b"

    seen = []
    async for token in chat():
        assert not sw.current_run()
        seen.append(token)
    assert seen == ["a", "b"]
    assert not sw.stats().queued, "it was flushed"
    run = api.get(ids[0], steps=True)
    outer, inner = run.steps
    assert (run.status, outer.status, inner.parent_step_key) == ("completed", "completed", outer.key)


def test_a_step_inside_a_stream_is_inside_it_after_a_yield(client: sw.Client, api: sw.Api) -> None:
    @sw.step
    def stream() -> Iterator[int]:
        with sw.step("part"):
            yield 1
            with sw.step("detail"):
                yield 2
        with sw.step("end"):
            pass

    with sw.run("stream") as r:
        assert list(stream()) == [1, 2]
    steps = {step.name: step for step in stored(api, r).steps}
    assert steps["part"].parent_step_key == steps["end"].parent_step_key == steps["stream"].key
    assert steps["detail"].parent_step_key == steps["part"].key


def test_who_plans_again_and_again(client: sw.Client, api: sw.Api) -> None:
    with sw.run("plans") as r:
        with r.step("think"):
            pass
        r.plan("fetch", "answer")
        with r.step("fetch"), r.step("detail"):
            pass
        r.plan("answer", "check", "answer")
        for name in ("answer", "check", "answer", "answer", "think"):
            with r.step(name):
                pass
        r.plan("check")
    steps = stored(api, r).steps
    assert [(step.step_id, step.name, step.status) for step in steps if step.name != "think"] == [
        (2, "fetch", "completed"),
        (3, "answer", "completed"),
        (4, "detail", "completed"),
        (5, "answer", "completed"),
        (6, "check", "completed"),
        (7, "answer", "completed"),
        (9, "check", "pending"),
    ]
    assert {step.key for step in steps} >= {"fetch", "answer", "answer-1", "check", "answer-3", "check-1"}


def test_plans_among_threads_and_processes(client: sw.Client, api: sw.Api, shared: Server, spool: pathlib.Path) -> None:
    with sw.run("plans") as r:
        with r.step("first"):
            pass
        other = f"""
        import stepwell as sw
        with sw.attach({r.carrier()!r}) as r:
            for _ in range(20):
                with r.step("theirs"): pass
        """
        apps = [App(other, shared.address, spool.with_name(f"other-{n}")) for n in range(2)]

        def work(n: int) -> None:
            for m in range(20):
                with r.step("mine"):
                    r.plan(f"planned-{n}-{m}")

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        for app in apps:
            app.finish()
    steps = stored(api, r).steps
    assert collections.Counter(step.name.partition("-")[0] for step in steps) == {
        "first": 1,
        "theirs": 40,
        "mine": 80,
        "planned": 80,
    }


def test_which_runs(client: sw.Client, api: sw.Api) -> None:
    with sw.run("which") as r:
        pass
    assert [run.id for run in api.list(app="which", since="24h")] == [r.id]
    assert [run.id for run in api.list(app="which", since="1.5h", until="0s")] == [r.id]
    assert list(api.list(app="which", until="1d")) == []
    with pytest.raises(
        ValueError, match="since is a datetime, a timedelta, or how long ago such as \"24h\", not 'yesterday'"
    ):
        list(api.list(since="yesterday"))
    with pytest.raises(TypeError, match=r"until is a datetime, .* not date"):
        list(api.list(until=dt.date.today()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="status is one of running, completed, failed, cancelled, not 'broken'"):
        list(api.list(status="broken"))


async def test_a_run_is_named_by_itself(client: sw.Client, api: sw.Api, shared: Server) -> None:
    with sw.run("named") as r, r.step("one") as s:
        s.output(1)
    run = api.get(r, steps=True)
    assert (api.wait(r).id, api.get(run).id, [step.name for step in api.steps(run)]) == (r.id, r.id, ["one"])
    assert api.step(run, s.key).output == 1
    assert [event.kind for event in api.watch(r, steps=False)] == ["execution", "live"]
    async with sw.AsyncApi(shared.address) as other:
        assert (await other.get(r)).id == (await other.wait(run)).id == r.id
    with pytest.raises(TypeError, match="which run\\? An id, or what has one as `id`, not NoneType"):
        api.get(None)  # type: ignore[arg-type]


def test_a_record_is_shown_without_what_is_not_there() -> None:
    started = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    run = sw.Execution("r-1", "app", sw.ExecutionStatus.FAILED, started_at=started, duration=dt.timedelta(seconds=1.5))
    assert repr(run) == (
        "Execution(execution_id='r-1', app_name='app', status='failed', started_at=2026-01-02T03:04:05.000+00:00,"
        " duration=1.5s, revision=0)"
    )
    assert repr(sw.Event("live", None, None, "t")) == "Event(kind='live', token='t')"


def test_what_is_left_is_said_at_the_end(spool: pathlib.Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    app = App("import stepwell as sw\nwith sw.run('a') as r: pass", address, spool, STEPWELL_FLUSH_TIMEOUT="1")
    _, said = app.child.communicate(timeout=60)
    assert app.child.returncode == 0
    (line,) = said.splitlines()
    assert line.startswith(f"{address} has not taken everything (UNAVAILABLE: ")
    assert line.endswith(
        f"2 writes wait in {spool}: the next program that reports there sends them, or `stepwell spool send`"
    )


def test_nothing_is_said_where_nothing_is_left(shared: Server, spool: pathlib.Path) -> None:
    app = App("import stepwell as sw\nwith sw.run('a') as r: pass", shared.address, spool)
    assert app.child.communicate(timeout=60) == ("", "")


def command(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stepwell", *arguments],
        env={**environment("127.0.0.1:1", pathlib.Path("unused")), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_commands_of_the_server_are_handed_on_to_it(tmp_path: pathlib.Path) -> None:
    scripts, programs = tmp_path / "scripts", tmp_path / "programs"
    for folder in (scripts, programs):
        folder.mkdir()
    script = scripts / "stepwell"
    script.write_text("#!/bin/sh\necho the script of another environment\n")
    script.chmod(0o755)
    without = command("executions", "list", path=f"{scripts}")
    assert (without.returncode, without.stdout) == (2, "")
    assert "which knows `spool` alone; `executions` is one of the server's program" in without.stderr
    # Any program will do.
    (programs / "stepwell").symlink_to("/bin/echo")
    handed = command("executions", "list", "--steps", path=f"{scripts}{os.pathsep}{programs}")
    assert (handed.returncode, handed.stdout) == (0, "executions list --steps\n")
    own = command("spool", "list", "--spool-dir", str(tmp_path / "none"), path=str(programs))
    assert (own.returncode, own.stdout) == (0, "the spool is empty\n")

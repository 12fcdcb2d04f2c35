"""Processes that fork, in every way that servers and pools do. gRPC is in use when they do."""

from __future__ import annotations

import pathlib

import pytest
from servers import Server, run_app

import stepwell as sw

#: The parent has reported, and its stream is open.
BUSY = """
import faulthandler, os, sys, multiprocessing, threading, time
import stepwell as sw
with sw.run("parent"): pass
assert sw.flush(20)
"""


def statuses(server: Server, *ids: str) -> list[str]:
    with sw.Api(server.address) as api:
        return [str(api.get(id).status) for id in ids]


def test_os_fork_after_use(shared: Server, spool: pathlib.Path) -> None:
    run_app(
        BUSY
        + """
r = sw.run("parent", id="os-parent").start()
pid = os.fork()
if pid == 0:
    code = 1
    try:
        with sw.run("child", id="os-child"):
            with sw.step("s"): pass
        code = 0 if sw.flush(20) else 2
    finally:
        os._exit(code)
with r.step("in the parent"): pass
assert os.waitpid(pid, 0)[1] == 0
r.complete()
assert sw.flush(20)
""",
        shared.address,
        spool,
    )
    assert statuses(shared, "os-parent", "os-child") == ["completed", "completed"]


def test_a_child_that_just_ends_leaves_its_spool_to_others(shared: Server, spool: pathlib.Path) -> None:
    run_app(
        BUSY
        + """
pid = os.fork()
if pid == 0:
    with sw.run("child", id="left-child"): pass
    os._exit(0)
os.waitpid(pid, 0)
""",
        shared.address,
        spool,
    )
    run_app("import stepwell as sw\nwith sw.run('next'): pass\nassert sw.flush(20)", shared.address, spool)
    assert statuses(shared, "left-child") == ["completed"]
    assert [path.name for path in spool.iterdir()] == []


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(shared: Server, spool: pathlib.Path, tmp_path: pathlib.Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing, stepwell as sw
def work(n):
    with sw.run("worker", id="{method}-%d" % n):
        with sw.step("s") as s: s.output(n)
if __name__ == "__main__":
    with sw.run("parent", id="{method}-parent"):
        context = multiprocessing.get_context("{method}")
        children = [context.Process(target=work, args=(n,)) for n in range(4)]
        for child in children: child.start()
        for child in children: child.join(30)
        assert [child.exitcode for child in children] == [0] * 4
    assert sw.flush(20)
"""
    )
    run_app(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", shared.address, spool)
    ids = [f"{method}-{n}" for n in range(4)]
    assert statuses(shared, *ids, f"{method}-parent") == ["completed"] * 5


def test_a_server_that_forks_workers_again_and_again_while_threads_report(shared: Server, spool: pathlib.Path) -> None:
    """As gunicorn does it: the master reports as well, from several threads, while it forks."""
    run_app(
        BUSY
        + """
done = threading.Event()
def report(n):
    i = 0
    while not done.is_set():
        with sw.run("master", id=f"master-{n}-{i}") as r:
            with r.step("s"): pass
        i += 1
        time.sleep(0.002)
    counts.append(i)
counts = []
threads = [threading.Thread(target=report, args=(n,)) for n in range(2)]
for t in threads: t.start()
pids = []
for n in range(8):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faulthandler.dump_traceback_later(30, exit=True)
            for i in range(20):
                with sw.run("worker", id=f"worker-{n}-{i}"):
                    with sw.step("s"): pass
            code = 0 if sw.flush(20) else 2
        finally:
            os._exit(code)
    pids.append(pid)
    time.sleep(0.05)
for pid in pids:
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
done.set()
for t in threads: t.join()
assert sw.flush(20)
assert sw.stats().refused == 0
print(sum(counts))
""",
        shared.address,
        spool,
    )
    with sw.Api(shared.address) as api:
        for n in range(8):
            for i in range(20):
                assert api.get(f"worker-{n}-{i}").status == "completed"
        assert all(run.status == "completed" for run in api.list(app="master"))


def test_a_run_that_is_open_when_the_process_forks_is_ended_by_the_parent_alone(shared: Server, spool: pathlib.Path) -> None:
    run_app(
        BUSY
        + """
with sw.run("parent", id="open-run") as r:
    pid = os.fork()
    if pid == 0:
        with r.step("in the child", key="child"): pass
        r.fail("the child must not end it")
        assert sw.flush(20)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert sw.flush(20)
""",
        shared.address,
        spool,
    )
    with sw.Api(shared.address) as api:
        run = api.get("open-run", steps=True)
        assert run.status == "completed"
        assert [(s.name, str(s.status)) for s in run.steps] == [("in the child", "completed")]


def test_fork_with_the_server_away(spool: pathlib.Path) -> None:
    server = Server("sqlite")
    try:
        run_app(
            """
            import os, stepwell as sw
            with sw.run("parent", id="away-parent"): pass
            pid = os.fork()
            if pid == 0:
                with sw.run("child", id="away-child"): pass
                os._exit(0 if not sw.flush(0.2) else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert not sw.flush(0.2)
            """,
            server.address,
            spool,
            STEPWELL_FLUSH_TIMEOUT="0.2",
        )
        server.start()
        run_app("import stepwell as sw\nwith sw.run('next'): pass\nassert sw.flush(20)", server.address, spool)
        assert statuses(server, "away-parent", "away-child") == ["completed"] * 2
    finally:
        server.stop()

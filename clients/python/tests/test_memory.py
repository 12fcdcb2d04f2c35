"""However long the server is away and whatever becomes of the disk: memory has an end, and what is left out is counted.

Each test writes far more than may be kept, in a process of its own, and looks at what that process takes of the machine.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import NOT_HELD_UP, App, Server, environment, free_port, wait_until
from test_faults import in_namespace, needs_mount
from test_spool import leave

import stepwell as sw

#: What a process may hold of what it reports, and what it may grow by in all: threads, gRPC, and what the allocator keeps
#: come on top. What is written is many times as much.
MEMORY_MAX_BYTES = 4 << 20
GROWTH_BYTES = 24 << 20

#: What the programs have in common. `made` is what they have reported, counted as `stats` counts.
PRELUDE = f"""
import json, os, pathlib, shutil, time
import stepwell as sw

SPOOL = pathlib.Path(os.environ["STEPWELL_SPOOL_DIR"])
MEMORY_MAX_BYTES = {MEMORY_MAX_BYTES}
client = sw.configure(memory_max_bytes=MEMORY_MAX_BYTES, spool_max_bytes=8 << 20, flush_timeout=1.0)
made = peak = 0

def rss():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def look(_=0):
    global peak
    peak = max(peak, rss())

def work(runs, then=look, make=lambda: sw.run("work", metadata={{"text": "y" * 100}}).start()):
    "Runs of 50 steps with payloads, updates and points."
    global made
    for n in range(runs):
        r = make()
        for i in range(50):
            s = r.step("step", input={{"n": n, "i": i, "text": "i" * 300}}).start()
            s.metadata(i=i, note="m" * 50)
            r.metrics(i=i)
            s.complete({{"n": n, "i": i, "text": "o" * 300}})
        r.complete()
        made += 202 - r._attached
        look()
        then(n)

def begin():
    "Everything that is there once is there."
    global before
    work(4)
    time.sleep(0.3)
    before = rss()

def report():
    time.sleep(0.3)
    look()
    s = sw.stats()
    print(json.dumps({{
        "growth": peak - before, "made": made, "queued": s.queued, "acked": s.acked, "refused": s.refused,
        "dropped": s.dropped, "shortened": s.shortened, "defects": s.defects, "held": client.memory_bytes,
        "threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")), "error": s.last_error,
    }}), flush=True)
"""

WORK = (
    PRELUDE
    + """
begin()
work(300)
report()
"""
)


def told(app: App) -> dict[str, Any]:
    """What a program reports at its end, which comes in time though much is not sent."""
    found: dict[str, Any] = json.loads(app.line())
    began = time.monotonic()
    app.finish(30)
    assert time.monotonic() - began < NOT_HELD_UP
    check(found)
    return found


def check(found: dict[str, Any]) -> None:
    assert found["growth"] < GROWTH_BYTES, found
    assert found["held"] <= 1.3 * MEMORY_MAX_BYTES, found
    assert found["defects"] == 0, found
    assert found["made"] == found["queued"] + found["acked"] + found["refused"] + found["dropped"], found
    assert found["threads"] < 60, found
    assert found["files"] < 100, found


def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def sqlite() -> Iterator[Server]:
    """The store plays no part in what is tested here."""
    server = Server("sqlite").start()
    yield server
    server.stop()


# --- nobody listens -----------------------------------------------------------------------------------------------


def test_nobody_listens_and_the_spool_takes_what_it_may(spool: pathlib.Path) -> None:
    found = told(App(WORK, nobody(), spool))
    assert found["queued"] > 0
    assert found["dropped"] > 0
    assert found["shortened"] > 0


def test_nobody_listens_and_there_is_no_spool(spool: pathlib.Path) -> None:
    spool.write_text("a file is where the folder should be")
    found = told(App(WORK, nobody(), spool))
    assert found["dropped"] > 0.8 * found["made"]
    assert found["queued"] > 0


#: Another process, which deletes the folder again and again; once it is a file, the folder cannot be made anew.
REMOVED = """
def gone(n):
    if n >= 20:
        shutil.rmtree(SPOOL, ignore_errors=True)
        {after}

begin()
work(300, gone)
report()
"""


@pytest.mark.parametrize("again", [True, False], ids=["made anew", "for good"])
def test_nobody_listens_and_the_spool_is_removed_while_it_is_written(spool: pathlib.Path, again: bool) -> None:
    """As when a program outlives the test that has started it."""
    after = "pass" if again else "SPOOL.exists() or SPOOL.write_text('')"
    found = told(App(PRELUDE + REMOVED.format(after=after), nobody(), spool))
    assert found["dropped"] > 0


@needs_mount
@pytest.mark.parametrize("mount", ["size=1m", "size=1m,ro"], ids=["full", "read-only"])
def test_nobody_listens_and_the_disk_takes_no_more(spool: pathlib.Path, mount: str) -> None:
    spool.mkdir()
    done = in_namespace(f"mount -t tmpfs -o {mount} tmpfs {spool}", WORK, nobody(), spool)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check(found)
    assert found["dropped"] > 0


def test_a_disk_that_was_full_for_a_moment_is_used_again(spool: pathlib.Path) -> None:
    """What came while it was full is in memory, and what comes after it is not."""
    code = (
        PRELUDE
        + """
import resource
begin()
work(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
work(3)
held = client.memory_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
time.sleep(2.1)
work(3)
grown = client.memory_bytes - held
assert grown < 100_000, (held, grown)
work(400)
report()
"""
    )
    told(App(code, nobody(), spool))


# --- somebody listens, and it is of no use ------------------------------------------------------------------------


def test_a_server_that_is_frozen(sqlite: Server, spool: pathlib.Path) -> None:
    code = (
        PRELUDE
        + """
begin()
print("ready", flush=True); input()
def gone(n):
    if n == 100:
        shutil.rmtree(SPOOL)
        SPOOL.write_text("")
work(200, gone)
report()
"""
    )
    app = App(code, sqlite.address, spool)
    assert app.line() == "ready"
    sqlite.signal(signal.SIGSTOP)
    app.say("")
    found = told(app)
    assert found["queued"] > 0
    assert found["dropped"] > 0


def test_a_port_that_takes_connections_and_says_nothing(spool: pathlib.Path) -> None:
    spool.write_text("no folder")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        told(App(WORK, f"127.0.0.1:{listener.getsockname()[1]}", spool))
    assert taken


#: Each stream in turn: every write refused for good, every write failed for now, the stream ended with an error.
STRANGE = """
import sys, time
import grpc
from concurrent import futures
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2
from stepwell._pb.ingest_service_pb2 import IngestRequest, IngestResponse

kinds = sys.argv[1].split(",")
streams = 0

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method.endswith("/Ingest"):
            return grpc.stream_stream_rpc_method_handler(
                self.ingest, IngestRequest.FromString, IngestResponse.SerializeToString
            )

    def ingest(self, requests, context):
        global streams
        streams += 1
        kind = kinds[streams % len(kinds)]
        for request in requests:
            if kind == "silent":
                continue
            if kind == "broken":
                context.abort(grpc.StatusCode.INTERNAL, "no")
            answer = IngestResponse(sequence=request.sequence)
            if kind == "refused":
                answer.error.code = code_pb2.INVALID_ARGUMENT
                answer.error.details.add().Pack(error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain="stepwell"))
            else:
                answer.error.code = code_pb2.UNAVAILABLE
                answer.error.details.add().Pack(
                    error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
                )
            yield answer

server = grpc.server(futures.ThreadPoolExecutor(20), handlers=[Handler()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def strange() -> Any:
    """Starts a server that answers as it is told."""
    started: list[subprocess.Popen[str]] = []

    def start(kinds: str) -> str:
        child = subprocess.Popen(
            [sys.executable, "-c", STRANGE, kinds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        return f"127.0.0.1:{child.stdout.readline().strip()}"

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("kinds", ["silent", "refused", "for now", "broken", "for now,refused,broken"])
@pytest.mark.parametrize("has_spool", [True, False], ids=["spool", "no spool"])
def test_a_server_that_is_no_help(spool: pathlib.Path, strange: Callable[[str], str], kinds: str, has_spool: bool) -> None:
    if not has_spool:
        spool.write_text("no folder")
    found = told(App(WORK, strange(kinds), spool))
    assert found["acked"] == 0
    assert found["refused"] > 0 or "refused" not in kinds
    assert found["dropped"] > 0 or "refused" in kinds


def test_a_server_that_lets_nobody_in(spool: pathlib.Path, tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{'0a' * 32}\n")
    keys.chmod(0o600)
    server = Server("sqlite", args=("--auth-mode", "required", "--auth-admin-key-file", str(keys))).start()
    try:
        found = told(App(WORK, server.address, spool))
        assert found["acked"] == found["refused"] == 0
        assert "UNAUTHENTICATED" in found["error"]
    finally:
        server.stop()


def test_runs_that_never_come(sqlite: Server, spool: pathlib.Path) -> None:
    """What is reported into runs of others waits for them, as long as there is room; and holds up nobody."""
    code = (
        PRELUDE
        + """
import itertools
numbers = itertools.count()
begin()
work(120, make=lambda: sw.attach(f"never-{next(numbers)}"))
with sw.run("good", id="good") as r:
    for n in range(10):
        r.step("s", key=f"k{n}").start().complete()
made += 22
until = time.monotonic() + 30
with sw.Api() as api:
    while time.monotonic() < until and int(api.count(app="good", status="completed")) == 0:
        time.sleep(0.1)
    assert len(api.get("good", steps=True).steps) == 10
report()
"""
    )
    found = told(App(code, sqlite.address, spool))
    assert found["queued"] > 0


# --- other things that pile up ------------------------------------------------------------------------------------


def test_runs_and_steps_that_nobody_ends(sqlite: Server, spool: pathlib.Path) -> None:
    code = (
        PRELUDE
        + """
begin()
for n in range(30_000):
    r = sw.run("never ended").start()
    made += 1
    if n % 10 == 0:
        r.step("never ended").start()
        made += 1
    look()
long = sw.run("one with many").start()
for n in range(30_000):
    s = long.step("never ended").start()
    s.progress(0.1); s.progress(0.2)
    look()
report()
"""
    )
    app = App(code, sqlite.address, spool)
    found = json.loads(app.line())
    app.finish(60)
    # The steps and runs of which it remembers that they are open.
    assert found["growth"] < GROWTH_BYTES + (12 << 20), found
    assert found["defects"] == 0, found


def test_artifacts_of_which_there_are_too_many(spool: pathlib.Path) -> None:
    code = (
        PRELUDE
        + """
begin()
r = sw.run("artifacts").start()
made += 1
path = SPOOL.parent / "file"
path.write_bytes(b"z" * 100)
for n in range(20_000):
    r.artifact(f"a{n}", path if n % 2 else b"b" * 50, metadata={"text": "m" * 100})
    made += 1
    n % 100 or look()
report()
"""
    )
    found = told(App(code, nobody(), spool))
    assert found["dropped"] > 0


def test_artifacts_where_there_is_no_spool(spool: pathlib.Path) -> None:
    spool.write_text("no folder")
    code = (
        PRELUDE
        + """
begin()

class Endless:
    def read(self, size=-1):
        assert size > 0
        look()
        return b"x" * size

r = sw.run("artifacts").start()
made += 1
large = SPOOL.parent / "large"
with open(large, "wb") as out:
    out.truncate(64 << 20)
for n in range(30):
    r.artifact("endless", Endless())
    r.artifact("large", large)
    r.artifact("bytes", b"b" * 300_000)
    made += 3
    look()
report()
"""
    )
    found = told(App(code, nobody(), spool))
    assert 30 < found["dropped"] < 90


def test_an_endless_artifact_ends_with_the_room(spool: pathlib.Path) -> None:
    """And nobody waits for it who reports meanwhile."""
    code = (
        PRELUDE
        + """
import threading
begin()

class Endless:
    count = 0
    def read(self, size=-1):
        self.count += 1
        if self.count == 3:
            slow.set()
            go.wait(10)
        return b"x" * size

slow, go = threading.Event(), threading.Event()
r = sw.run("endless").start()
reader = threading.Thread(target=lambda: r.artifact("endless", Endless()))
reader.start()
assert slow.wait(10)
began = time.monotonic()
r.step("meanwhile").start().complete()
sw.stats()
took = time.monotonic() - began
go.set()
reader.join()
made += 4
assert took < 5, took
assert sw.stats().spooled_bytes < 9 << 20
assert sorted(path.suffix for path in SPOOL.iterdir()) == [".spool"], list(SPOOL.iterdir())
report()
"""
    )
    found = told(App(code, nobody(), spool))
    assert found["dropped"] == 1
    assert "defects" in found


def test_progress_while_the_server_is_frozen(sqlite: Server, spool: pathlib.Path) -> None:
    code = (
        PRELUDE
        + """
begin()
print("ready", flush=True); input()
r = sw.run("progress", metadata={"text": "y" * 200_000}).start()
for n in range(30_000):
    s = r.step("s").start()
    s.progress(0.1); s.progress(0.2)
    n % 100 or look()
    if n % 2:
        s.complete()
report()
"""
    )
    app = App(code, sqlite.address, spool)
    assert app.line() == "ready"
    sqlite.signal(signal.SIGSTOP)
    app.say("")
    found = json.loads(app.line())
    app.finish(30)
    assert found["growth"] < GROWTH_BYTES, found
    assert found["defects"] == 0, found


def test_a_generator_that_yields_very_much(spool: pathlib.Path) -> None:
    code = (
        PRELUDE
        + """
begin()
@sw.step
def stream():
    for n in range(3000):
        yield bytes(200_000)
with sw.run("generators"):
    for piece in stream():
        look()
assert peak - before < 90 << 20, peak - before
"""
    )
    App(code, nobody(), spool).finish()


def test_a_folder_in_which_many_have_died(sqlite: Server, spool: pathlib.Path) -> None:
    """Each file of a process that is gone is held open while it is sent: not all of them at once."""
    sqlite.kill()
    spool.mkdir()
    for n in range(300):
        leave(spool, sqlite.address, f"left-{n}")
    code = (
        PRELUDE
        + """
with sw.run("finder"):
    pass
assert not sw.flush(1.0)
most = len(os.listdir("/proc/self/fd"))
print(most, flush=True); input()
until = time.monotonic() + 40
while time.monotonic() < until and any(path.suffix == ".spool" and path.stat().st_size for path in SPOOL.iterdir()):
    sw.flush(1.0)
    most = max(most, len(os.listdir("/proc/self/fd")))
    time.sleep(0.05)
print(most, flush=True)
"""
    )
    app = App(code, sqlite.address, spool)
    assert int(app.line()) < 150
    sqlite.start()
    app.say("")
    assert int(app.line()) < 150
    app.finish()
    with sw.Api(sqlite.address) as api:
        assert int(api.count(app="left")) == 300


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["returns", "raises", "SIGTERM"])
def test_an_orphan_ends(sqlite: Server, spool: pathlib.Path, tmp_path: pathlib.Path, end: str) -> None:
    """Whoever has started it is gone, the server is frozen in the middle of a stream and of an upload, the spool is
    deleted: a process lives no longer than its program, and the flush_timeout."""
    code = (
        PRELUDE
        + """
import threading
begin()
r = sw.run("orphan").start()
r.artifact("large", bytes(4 << 20))
print(os.getpid(), flush=True)
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.01)
r.artifact("large", bytes(3 << 20))
work(5)
shutil.rmtree(SPOOL)
time.sleep(0.5)
assert all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()), threading.enumerate()
"""
        + {"returns": "", "raises": "raise SystemExit(3)", "SIGTERM": "time.sleep(60)"}[end]
    )
    go = tmp_path / "go"
    parent = subprocess.Popen(
        ["sh", "-c", f'{sys.executable} -c "$CODE" & wait'],
        env={**environment(sqlite.address, spool), "CODE": code, "GO": str(go)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    sqlite.signal(signal.SIGSTOP)
    go.touch()
    wait_until("its folder is gone", lambda: not spool.exists(), 30)
    if end == "SIGTERM":
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)
    wait_until("it has ended", lambda: not pathlib.Path(f"/proc/{pid}/stat").exists() or zombie(pid), NOT_HELD_UP)
    parent.stdout.close()


def zombie(pid: int) -> bool:
    """Ended, and nobody has asked what became of it."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True

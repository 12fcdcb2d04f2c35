"""Files of the spool by themselves, and the command that shows them."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from servers import App, Server, harness, run_app

import stepwell as sw
from stepwell import _cli
from stepwell._open_runs import OpenRuns, note, read_note
from stepwell._pb import common_pb2
from stepwell._pb.ingest_service_pb2 import IngestRequest
from stepwell._spool import LENGTH, Spool, abandoned, groups


def spool_in(folder: pathlib.Path, max_bytes: int = 1 << 20, server: str = "here:1") -> Spool:
    return Spool(folder, server, max_bytes, lambda: None)


def writes(folder: pathlib.Path) -> list[bytes]:
    found = []
    for taken in abandoned(folder, "here:1"):
        for segment in taken.segments:
            offset = 0
            while offset < segment.size:
                records, offset = segment.read(offset, 1 << 20)
                found += [record for record in records if read_note(record) is None]
            segment.close()
    return found


def leave(folder: pathlib.Path, server: str, id: str) -> None:
    """As a process does that dies after it has reported a run."""
    spool = spool_in(folder, server=server)
    spool.name = f"{id.rsplit('-')[-1]}-1"
    for number in (1, 2):
        request = IngestRequest(sequence=number)
        if number == 1:
            request.create_execution.execution_id, request.create_execution.app_name = id, "left"
        else:
            request.finish_execution.execution_id = id
            request.finish_execution.status = common_pb2.EXECUTION_STATUS_COMPLETED
        assert spool.append(request.SerializeToString()) is not None
    spool.close(keep=True)


def test_a_file_is_length_and_request(tmp_path: pathlib.Path) -> None:
    spool = spool_in(tmp_path)
    request = IngestRequest(sequence=7)
    request.heartbeat.execution_id = "x"
    spool.append(request.SerializeToString())
    (path,) = tmp_path.iterdir()
    assert path.name.split("-")[1] == f"{os.getpid()}.spool"
    data = path.read_bytes()
    found = []
    while data:
        (size,) = LENGTH.unpack(data[:4])
        found.append(IngestRequest.FromString(data[4 : 4 + size]))
        data = data[4 + size :]
    assert [one.WhichOneof("write") for one in found] == [None, "heartbeat"], "the note reads as a request without a write"
    assert found[1].sequence == 7
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_living_process_has_is_left_alone(tmp_path: pathlib.Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(b"one")
    assert list(abandoned(tmp_path, "here:1")) == []
    spool.close(keep=True)
    assert writes(tmp_path) == [b"one"]
    assert list(abandoned(tmp_path, "elsewhere:1")) == [], "never sent to another server"


def test_files_go_as_they_are_settled(tmp_path: pathlib.Path) -> None:
    spool = spool_in(tmp_path, max_bytes=40_000)
    segments = [spool.append(b"x" * 1000) for _ in range(20)]
    assert len(groups(tmp_path)) == 1
    (paths,) = groups(tmp_path).values()
    assert len(paths) > 2
    for segment in segments:
        assert segment is not None
        spool.settled(segment)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 0
    assert spool.bytes == 0
    spool.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_is_deleted_is_made_again(tmp_path: pathlib.Path) -> None:
    """By a cleaner of temporary files, say. What is in it is not sent yet."""
    folder = tmp_path / "spool"
    spool = spool_in(folder, max_bytes=40_000)
    for number in range(10):
        spool.append(b"%d" % number * 1000)
    assert len(list(folder.iterdir())) > 1
    shutil.rmtree(folder)
    for number in range(10):
        # Time goes by.
        spool.look_at = 0.0
        spool.append(b"later %d" % number)
    assert spool.last_error is None
    assert list(abandoned(folder, "here:1")) == [], "they are locked"
    spool.close(keep=True)
    assert writes(folder) == [*(b"%d" % n * 1000 for n in range(10)), *(b"later %d" % n for n in range(10))]


@pytest.mark.parametrize("cut", [1, 3, 5, 500])
def test_a_record_that_was_cut_off_is_left_out(tmp_path: pathlib.Path, cut: int) -> None:
    spool = spool_in(tmp_path)
    spool.append(b"whole")
    spool.append(b"y" * 1000)
    spool.close(keep=True)
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - cut)
    assert writes(tmp_path) == [b"whole"]


def test_garbage_does_no_harm(tmp_path: pathlib.Path) -> None:
    (tmp_path / "1-1.spool").write_bytes(os.urandom(1000))
    (tmp_path / "2-2.spool").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "3-3.spool").write_bytes(LENGTH.pack(3) + b"\xff\xff\xff")
    client = sw.configure("127.0.0.1:9", spool_dir=tmp_path, flush_timeout=0.1)
    client.take_over()
    for _ in range(10):
        client.unread([])
    assert client.stats().queued == 0
    assert client.stats().defects == 0


def test_what_is_open_is_remembered() -> None:
    runs = OpenRuns()
    for run in ("a", "b", "c"):
        request = IngestRequest()
        request.create_execution.execution_id = run
        runs.observe(request)
    request = IngestRequest()
    request.start_step.execution_id, request.start_step.step_key = "a", "k"
    runs.observe(request)
    request = IngestRequest()
    request.finish_execution.execution_id = "b"
    runs.observe(request)
    runs.share("c")
    again = OpenRuns()
    content = read_note(note(runs.as_note()))
    assert content is not None
    again.restore(content)
    assert again.orphans() == [("a", ["k"])]


def test_the_command(spool: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server("sqlite")
    job = "import stepwell as sw\nr = sw.run('cli', id='cli').start(); r.artifact('a', b'12'); r.complete()\n"
    app = App(job + "print('ready'); input()", server.address, spool)
    assert app.line() == "ready"
    where = ["--spool-dir", str(spool)]

    def listed() -> list[dict[str, object]]:
        capsys.readouterr()
        assert _cli.main(["spool", "list", "--output", "json", *where]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found

    (row,) = listed()
    assert (row["in_use"], row["writes"], row["artifacts"]) == (True, 2, 1)
    assert row["server"] == server.address
    assert _cli.main(["spool", "drop", "--yes", *where]) == 0
    assert len(listed()) == 1, "what is in use is not dropped"
    app.kill()
    assert listed()[0]["in_use"] is False
    assert _cli.main(["spool", "send", "--timeout", "0.3", *where]) == 1
    left = listed()
    assert (sum(row["writes"] for row in left), sum(row["artifacts"] for row in left)) == (2, 1)  # type: ignore[misc]
    assert _cli.main(["spool", "drop", *where]) == 2
    try:
        server.start()
        assert _cli.main(["spool", "send", *where]) == 0
        assert "sent, 0 refused, 0 left" in capsys.readouterr().out
        assert listed() == []
        with sw.Api(server.address) as api:
            assert api.get("cli").status == "completed"
            assert [artifact.size_bytes for artifact in api.artifacts("cli")] == [2]
    finally:
        server.stop()


def test_drop(spool: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_app(
        "import stepwell as sw\nwith sw.run('x') as r: r.artifact('a', b'1')",
        "127.0.0.1:9",
        spool,
        STEPWELL_FLUSH_TIMEOUT="0",
    )
    assert len(list(spool.iterdir())) == 3
    out = subprocess.run(
        [sys.executable, "-m", "stepwell._cli", "spool", "drop", "--yes", "--spool-dir", str(spool)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "1 files dropped\n"
    assert list(spool.iterdir()) == []
    assert _cli.main(["spool", "list", "--spool-dir", str(spool)]) == 0
    assert capsys.readouterr().out == "the spool is empty\n"


def servers_command(spool: pathlib.Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """`stepwell spool` of the server's program; what it prints as JSON."""
    ran = subprocess.run(
        [harness.binary(), "spool", *arguments, "--output", "json", "--spool-dir", str(spool)],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")},
    )
    assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("store", ["sqlite", "mongodb"])
def test_the_servers_command_sends_what_a_killed_app_has_left(store: str, spool: pathlib.Path) -> None:
    server = Server(store)
    job = """
        import stepwell as sw
        with sw.run("job", id="done", metadata={"n": 1}) as r:
            with r.step("fetch", key="k", input=[1, "two"]) as s:
                s.progress(0.5); s.output({"rows": 3})
            r.metrics(tokens=7)
            r.artifact("report", b"x" * 300_000)
        open = sw.run("job", id="open").start()
        open.step("long", key="l").start()
        shared = sw.run("job", id="shared").start()
        shared.carrier()
        print("ready"); input()
    """
    app = App(job, server.address, spool)
    assert app.line() == "ready"
    (row,) = servers_command(spool, "list")
    assert (row["state"], row["server"], row["artifacts"]) == ("in use", server.address, 1)
    assert servers_command(spool, "send") == [], "what is in use is left alone"
    app.kill()
    # Half a record, as a crash in the middle of a write leaves it.
    last = max(spool.glob("*.spool"), key=lambda path: path.stat().st_mtime_ns)
    with last.open("ab") as file:
        file.write(LENGTH.pack(100) + b"half")
    (row,) = servers_command(spool, "list")
    assert (row["state"], row["written_by"], row["cut_bytes"]) == ("left behind", "python", 8)
    assert row["writes"] == _cli.describe(spool, *next(iter(groups(spool).items())))["writes"]
    kept = shutil.copytree(spool, spool.with_name("kept"))
    try:
        server.start()
        (sent,) = servers_command(spool, "send")
        assert sent == {
            "server": f"http://{server.address}",
            "writes": row["writes"],
            "artifacts": 1,
            "refused": 0,
            "left": 0,
        }
        assert list(spool.iterdir()) == []

        with sw.Api(server.address) as api:

            def revisions() -> list[object]:
                runs = [api.get(id, steps=True, payloads=True) for id in ("done", "open", "shared")]
                assert [str(run.status) for run in runs] == ["completed", "failed", "running"]
                assert runs[1].error is not None
                assert runs[1].error.code == "PROCESS_DIED"
                assert [(step.name, str(step.status)) for step in runs[1].steps] == [("long", "failed")]
                assert [(step.input, step.output) for step in runs[0].steps] == [([1, "two"], {"rows": 3})]
                assert [artifact.size_bytes for artifact in api.artifacts("done")] == [300_000]
                assert len(list(api.metrics("done"))) == 1
                assert int(api.count()) == 3
                return [run.revision for run in runs]

            before = revisions()
            assert servers_command(spool, "send") == []
            # As if no answer had arrived.
            shutil.copytree(kept, spool, dirs_exist_ok=True)
            servers_command(spool, "send")
            assert list(spool.iterdir()) == []
            assert revisions() == before
    finally:
        server.stop()


def test_the_servers_command_keeps_what_is_refused(spool: pathlib.Path) -> None:
    """The next process of the app does not give it up."""
    server = Server("sqlite")
    app = App(
        """
        import stepwell as sw
        from stepwell import _reporting
        r = sw.run("job", id="r").start()
        client = _reporting.client()
        from stepwell._pb.ingest_service_pb2 import IngestRequest
        bad = IngestRequest()
        bad.start_step.execution_id = "r"; bad.start_step.step_key = "bad"
        client.add(bad, "start_step", "r")
        r.complete()
        print("ready"); input()
        """,
        server.address,
        spool,
    )
    assert app.line() == "ready"
    app.kill()
    try:
        server.start()
        (sent,) = servers_command(spool, "send", code=1)
        assert (sent["writes"], sent["refused"], sent["left"]) == (2, 1, 0)
        (row,) = servers_command(spool, "list")
        assert (row["state"], row["server"]) == ("refused", server.address)
        (refusal,) = row["refusals"]
        assert refusal["write"] == "start_step r step bad"
        assert "step_name" in refusal["reason"]
        run_app("import stepwell as sw\nwith sw.run('next'): pass\nassert sw.flush(30)", server.address, spool)
        assert servers_command(spool, "list") == [row]
        with sw.Api(server.address) as api:
            assert api.get("r").status == "completed"
        assert servers_command(spool, "drop", "--refused", "--yes") == [{"files": 1}]
        assert list(spool.iterdir()) == []
    finally:
        server.stop()

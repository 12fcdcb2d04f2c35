"""`stepwell spool`: what is on disk and not yet in the server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from ._client import Client
from ._open_runs import read_note
from ._settings import DEFAULT_SERVER, default_spool_dir, from_environment, with_port
from ._spool import Segment, groups, server_of, take


def folders(given: str | None) -> list[pathlib.Path]:
    """Where spools may be."""
    if given:
        return [pathlib.Path(given)]
    base = default_spool_dir(DEFAULT_SERVER).parent
    return sorted(path for path in base.glob("*") if path.is_dir()) if base.is_dir() else []


def describe(folder: pathlib.Path, owner: tuple[int, int], paths: list[pathlib.Path]) -> dict[str, Any]:
    """What one process has in its spool."""
    start, pid = owner
    records, size, server = 0, 0, None
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        segment = Segment(path, fd, os.fstat(fd).st_size)
        server = server or server_of(segment)
        offset = 0
        while offset < segment.size:
            found, offset = segment.read(offset, 1 << 20)
            records += sum(read_note(record) is None for record in found)
        size += segment.size
        segment.close()
    found_lock = take(paths, None)
    if found_lock is not None:
        for segment in found_lock.segments:
            segment.close()
    artifacts = list(folder.glob(f"{start}-{pid}.*.artifact"))
    return {
        "folder": str(folder),
        "pid": pid,
        "started_at_us": start,
        "in_use": found_lock is None,
        "server": server,
        "writes": records,
        "bytes": size,
        "artifacts": len(artifacts),
    }


def spool_list(arguments: argparse.Namespace) -> int:
    """Prints what there is."""
    rows = [
        describe(folder, owner, paths) for folder in folders(arguments.spool_dir) for owner, paths in groups(folder).items()
    ]
    if arguments.output == "json":
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("the spool is empty")
    for row in rows:
        state = "in use" if row["in_use"] else "left behind"
        print(
            f"pid {row['pid']:<8} {state:<12} {row['writes']:>8} writes {row['bytes']:>12} bytes "
            f"{row['artifacts']:>4} artifacts  for {row['server'] or '?'}  in {row['folder']}"
        )
    return 0


def spool_send(arguments: argparse.Namespace) -> int:
    """Sends what processes that are gone have left."""
    left = 0
    for folder in folders(arguments.spool_dir):
        for server in sorted({row["server"] for row in _rows(folder) if not row["in_use"] and row["server"]}):
            if arguments.server and with_port(server) != with_port(arguments.server):
                continue
            settings = from_environment({"spool_dir": folder, "mode": "on"})
            # Who gets the key is said by who calls, not by a file in a folder.
            key = settings.key if arguments.server or server == settings.server else None
            client = Client(dataclasses.replace(settings, server=server, key=key))
            until = time.monotonic() + arguments.timeout
            while client.take_over() and client.flush(until - time.monotonic(), taken_too=True):
                pass
            done = client.shutdown(max(0.0, until - time.monotonic()), exiting=True)
            numbers = client.stats()
            print(f"{server}: {numbers.acked} sent, {numbers.refused} refused, {numbers.queued} left")
            if not done and numbers.last_error:
                print(f"  {numbers.last_error}", file=sys.stderr)
            left += numbers.queued
    return 1 if left else 0


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [describe(folder, owner, paths) for owner, paths in groups(folder).items()]


def spool_drop(arguments: argparse.Namespace) -> int:
    """Deletes what processes that are gone have left."""
    if not arguments.yes:
        print("this deletes what was never sent; say --yes", file=sys.stderr)
        return 2
    dropped = 0
    for folder in folders(arguments.spool_dir):
        for (start, pid), paths in groups(folder).items():
            found = take(paths, arguments.server)
            if found is None:
                continue
            for path in folder.glob(f"{start}-{pid}.*"):
                if path.suffix in (".blob", ".artifact", ".half"):
                    path.unlink(missing_ok=True)
            for segment in found.segments:
                segment.remove()
                dropped += 1
    print(f"{dropped} files dropped")
    return 0


def server_binary() -> str | None:
    """The server's program of the same name, where it is on the PATH. A script of that name is one of these, of this or of
    another environment: two of them would hand on to each other for ever."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = shutil.which("stepwell", path=folder) if folder else None
        if found is not None:
            with open(found, "rb") as program:
                if program.read(2) != b"#!":
                    return found
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. A virtual environment puts it before the server's, which is called the same: what is for that one is
    handed on to it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] != "spool":
        binary = server_binary()
        if binary is not None:
            os.execv(binary, [binary, *given])
        print(
            f"stepwell: this is the command of the library for Python, which knows `spool` alone; `{given[0]}` is one of the"
            " server's program, and there is none on the PATH",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(
        prog="stepwell",
        description="Stepwell's client for Python. Other commands go to the server's `stepwell`, where it is on the PATH.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    spool = commands.add_parser("spool", help="writes on disk that the server does not have yet")
    actions = spool.add_subparsers(dest="action", required=True)
    for name, function, text in (
        ("list", spool_list, "what there is"),
        ("send", spool_send, "send what processes that are gone have left"),
        ("drop", spool_drop, "delete what processes that are gone have left"),
    ):
        action = actions.add_parser(name, help=text, description=(function.__doc__ or "").strip())
        action.add_argument("--spool-dir", help="the folder (default: those of all servers)")
        action.set_defaults(function=function)
        if name == "list":
            action.add_argument("--output", choices=("table", "json"), default="table")
        else:
            action.add_argument("--server", help="only what is for this server")
        if name == "send":
            action.add_argument("--timeout", type=float, default=60.0, help="seconds (default: 60)")
        if name == "drop":
            action.add_argument("--yes", action="store_true", help="really")
    parsed = parser.parse_args(given)
    return int(parsed.function(parsed))


if __name__ == "__main__":
    sys.exit(main())

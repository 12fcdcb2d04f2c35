#!/usr/bin/env python3
"""Runs the tour in the README word for word, and compares what it prints in what matters.

A block of the tour is a fenced block under a comment that says what to do with it:

    <!-- tour: server -->                     started in the background; goes on until the tour ends
    <!-- tour: run -->                        run, one shell for all of them; has to succeed
    <!-- tour: run in the background until X -->  as in another terminal: the tour goes on when it printed X
    <!-- tour: file PATH -->                  has to be the text of that file
    <!-- tour: output -->                     what the `run` above printed
    <!-- tour: output of the background -->   what the background printed, after it ended by itself

Each line of an output block has to come in the output, in this order. What differs from run to run is masked
on both sides: times, UUIDs, tokens, revisions and durations. `...` stands for any number of lines. JSON is
compared line by line with indentation ignored.

The port of the tour is used if it is free, else another one, in every block alike. Runs in a copy of the
tracked files, only the server in the repository itself, so that it finds what is built.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parent.parent
MARK = re.compile(r"^<!-- tour: (.+?) -->\n+```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = 50051
SERVER_SECONDS = 1800
BLOCK_SECONDS = 300
VARYING = [
    (re.compile(r'"\d{4}-\d\d-\d\dT[^"]*"'), '"<time>"'),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\dZ]*"), "<time>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r'"(resumeToken|resume_token|nextPageToken)": "[^"]+"'), r'"\1": "<token>"'),
    (re.compile(r'"(revision|durationMs|duration_ms)": "\d+"'), r'"\1": "<number>"'),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s)\b"), "<duration>"),
]


def fail(message):
    sys.exit(f"tour: {message}")


def masked(line):
    for pattern, stand_in in VARYING:
        line = pattern.sub(stand_in, line)
    # Whether a comma follows depends on what comes after, which may be left out.
    return line.strip().rstrip(",")


def compare(block, expected, printed):
    lines = [masked(line) for line in printed.splitlines()]
    at = 0
    for wanted in expected.splitlines():
        if wanted.strip() in ("", "..."):
            continue
        try:
            at = lines.index(masked(wanted), at) + 1
        except ValueError:
            fail(f"block {block}: the output has no line\n    {wanted}\n(after line {at}) in\n{printed}")


def port_is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def choose_port():
    if port_is_free(PORT):
        return PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Tour:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.copy = self.folder / "copy"
        self.port = choose_port()
        self.children = []
        self.background = None
        self.printed = ""
        self.shell = None

    def prepare(self):
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPO, check=True, capture_output=True,
        ).stdout.split(b"\0")
        for name in filter(None, (name.decode() for name in files)):
            source, target = REPO / name, self.copy / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        (self.copy / "target").symlink_to(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))

    def start(self, command, name, cwd):
        log = self.folder / f"{name}.log"
        environment = {
            **os.environ,
            # The tour leaves no data behind in the repository.
            "STEPWELL_DATA_DIR": str(self.folder / "data"),
            "STEPWELL_LISTEN": f"127.0.0.1:{self.port}",
        }
        child = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
            stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
        )
        self.children.append(child)
        return child, log

    def wait(self, what, child, log, ready, seconds):
        end = time.monotonic() + seconds
        while not ready():
            if child.poll() not in (None, 0):
                fail(f"{what} ended with {child.returncode}:\n{log.read_text()}")
            if time.monotonic() > end:
                fail(f"{what}: not ready after {seconds} s:\n{log.read_text()}")
            time.sleep(0.05)

    def server(self, text):
        child, log = self.start(text, "server", REPO)

        def listens():
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        self.wait("the server", child, log, listens, SERVER_SECONDS)

    def run(self, text):
        state = self.folder / "state"
        # One shell for the reader: the functions and variables of one block are there in the next.
        restore = f". {state}" if state.exists() else ""
        script = f"{restore}\n{text}\ndeclare -f > {state}; declare -px | grep -v ' BASHOPTS\\| SHELLOPTS' >> {state}\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=BLOCK_SECONDS, cwd=self.copy,
            # Clients find the port where it is not the usual one, and leave nothing behind at home.
            env={
                **os.environ,
                "STEPWELL_SERVER": f"127.0.0.1:{self.port}",
                "XDG_STATE_HOME": str(self.folder / "state-of-clients"),
            },
        )
        self.printed = done.stdout
        if done.returncode != 0:
            fail(f"exit {done.returncode}\n{text}\n{done.stdout}")

    def stop(self):
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                try:
                    child.wait(25)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)

    def block(self, number, what, text):
        text = text.replace(f":{PORT}", f":{self.port}")
        print(f"--- block {number}: {what}", flush=True)
        if what == "server":
            self.server(text)
        elif what == "run":
            self.run(text)
        elif match := re.fullmatch("run in the background until (.+)", what):
            child, log = self.start(text, "background", self.copy)
            self.background = (child, log)
            self.wait("the background", child, log, lambda: match[1] in log.read_text(), BLOCK_SECONDS)
        elif match := re.fullmatch("file (.+)", what):
            if (REPO / match[1]).read_text() != text.replace(f":{self.port}", f":{PORT}"):
                fail(f"block {number} is not the text of {match[1]}")
        elif what == "output":
            compare(number, text, self.printed)
        elif what == "output of the background":
            child, log = self.background
            if child.wait(30) != 0:
                fail(f"the background ended with {child.returncode}:\n{log.read_text()}")
            compare(number, text, log.read_text())
        else:
            fail(f"block {number}: what is {what!r}?")


def main():
    text = (REPO / "README.md").read_text()
    blocks = MARK.findall(text)
    if len(blocks) != text.count("<!-- tour: "):
        fail("a mark in the README has no fenced block under it")
    if not blocks:
        fail("the README has no tour")
    with tempfile.TemporaryDirectory(prefix="stepwell-tour-") as folder:
        tour = Tour(folder)
        tour.prepare()
        try:
            for number, (what, block) in enumerate(blocks, 1):
                tour.block(number, what, block)
        finally:
            tour.stop()
        print(f"tour: {len(blocks)} blocks of the README passed on port {tour.port}")


if __name__ == "__main__":
    main()

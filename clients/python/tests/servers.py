"""Real servers for the tests: started, frozen, killed and started again at the same address."""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid

import grpc

REPO = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "tests" / "python"))

import harness  # noqa: E402  (the one that the clients without a library use too)

wait_until = harness.wait_until
free_port = harness.free_port

# What nothing holds up ends within these seconds, also on a machine that has much else to do; what holds it up in these
# tests would do so for good.
NOT_HELD_UP = 15


@functools.cache
def mongodb() -> harness.MongoDB:
    return harness.MongoDB()


class Server:
    """`stepwell serve` at an address that stays; `store` is sqlite or mongodb."""

    def __init__(self, store: str, port: int | None = None, args: tuple[str, ...] = ()) -> None:
        self.store = store
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stepwell-py-"))
        self.database = f"py_{uuid.uuid4().hex[:12]}"
        self.args = args
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        command = [harness.binary(), "serve", "--listen", self.address, "--data-dir", str(self.folder / "data")]
        if self.store == "mongodb":
            command += ["--mongodb-uri", mongodb().uri, "--mongodb-database", self.database]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")}
        with (self.folder / "log").open("ab") as log:
            self.child = subprocess.Popen(
                [*command, *self.args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        wait_until("serving", self.serving)
        return self

    def serving(self) -> bool:
        assert self.child is not None
        if self.child.poll() is not None:
            raise RuntimeError(f"the server ended with {self.child.returncode}:\n{self.log()}")
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                return check(b"", timeout=1) == b"\x08\x01"
            except grpc.RpcError:
                time.sleep(0.05)
                return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-5000:]

    def signal(self, number: int) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def kill(self) -> None:
        """As a crash does."""
        self.end(signal.SIGKILL)

    def terminate(self) -> None:
        """As an operator does."""
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
            self.child.wait(30)
        self.child = None

    def stop(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.kill()
        # Its database goes with the mongod: to drop it would wait for transactions of a server that was killed.
        shutil.rmtree(self.folder, ignore_errors=True)


def environment(address: str, spool: pathlib.Path) -> dict[str, str]:
    """Of a program that uses the library."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")},
        "STEPWELL_SERVER": address,
        "STEPWELL_SPOOL_DIR": str(spool),
        "STEPWELL_APP": "app",
        "PYTHONUNBUFFERED": "1",
    }


class App:
    """A program of its own that uses the library. What it prints comes back line by line."""

    def __init__(self, code: str, address: str, spool: pathlib.Path, **more: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(address, spool), **more},
            text=True,
        )

    def line(self) -> str:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the app ended: {self.child.communicate()}")
        return line.strip()

    def say(self, text: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(text + "\n")
        self.child.stdin.flush()

    def kill(self) -> None:
        self.child.kill()
        self.child.communicate()

    def finish(self, timeout: float = 60) -> str:
        out, err = self.child.communicate(timeout=timeout)
        assert self.child.returncode == 0, (self.child.returncode, out, err)
        return out


def run_app(code: str, address: str, spool: pathlib.Path, **more: str) -> str:
    return App(code, address, spool, **more).finish()

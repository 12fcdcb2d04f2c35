"""Starts what the tests of other languages need: servers, a MongoDB, stubs generated from `proto/`.

Everything listens on a free port of 127.0.0.1, keeps its files in a folder of its own, and is gone when the
`with` block ends. Needs grpcio and grpcio-tools.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc

REPO = pathlib.Path(__file__).resolve().parents[2]
STARTUP_SECONDS = 60


def binary():
    """The server to test: $STEPWELL_BIN, else the newest of the release and the debug build."""
    named = os.environ.get("STEPWELL_BIN")
    if named:
        return named
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    built = [path for path in (target / "release/stepwell", target / "debug/stepwell") if path.exists()]
    if not built:
        sys.exit("no stepwell binary: run `cargo build --release` first, or set STEPWELL_BIN")
    return str(max(built, key=lambda path: path.stat().st_mtime))


def mongod():
    """A mongod: on PATH, or the one that `cargo test` fetched."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    fetched = target / "mongod/mongod"
    found = shutil.which("mongod") or (str(fetched) if fetched.exists() else None)
    if not found:
        raise FileNotFoundError("no mongod: put one on PATH, or run `cargo test` once, which fetches one")
    return found


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until(what, check, seconds=STARTUP_SECONDS):
    """Polls `check` until it returns something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Process:
    """A child process with its log in a file, ended by SIGTERM and at last by SIGKILL."""

    def __init__(self, name, command, env=None):
        self.name = name
        self.folder = tempfile.mkdtemp(prefix=f"stepwell-{name}-")
        self.log_path = os.path.join(self.folder, "log")
        with open(self.log_path, "wb") as log:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self.folder,
            )
        atexit.register(self.stop)

    def log(self):
        return pathlib.Path(self.log_path).read_text(errors="replace")

    def check_alive(self):
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.child.returncode}:\n{self.log()}")

    def stop(self):
        """Ends the process and returns its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.child.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Server(Process):
    """`stepwell serve`, SERVING when the constructor returns. `data` is a folder that stays when the server goes;
    `credentials` are those of the channel, where the server speaks TLS. `address` is that of one that is gone."""

    def __init__(
        self, mongodb_uri=None, database=None, http=False, env=None, args=(), data=None, credentials=None, address=None
    ):
        self.address = address or f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}" if http else None
        self.kept = data is not None
        self.data = data or tempfile.mkdtemp(prefix="stepwell-data-")
        command = [binary(), "serve", "--listen", self.address, "--data-dir", self.data]
        if mongodb_uri:
            command += ["--mongodb-uri", mongodb_uri]
        if database:
            command += ["--mongodb-database", database]
        if http:
            command += ["--http-listen", self.http]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")}
        super().__init__("serve", command + list(args), {**inherited, **(env or {})})
        # A gRPC channel that finds nobody at first waits a second before it tries again.
        wait_until("listening", self.is_listening)
        options = [("grpc.max_receive_message_length", 16 << 20)]
        if credentials:
            self.channel = grpc.secure_channel(self.address, credentials, options=options)
        else:
            self.channel = grpc.insecure_channel(self.address, options=options)
        wait_until("serving", self.is_serving)

    def is_listening(self):
        self.check_alive()
        host, port = self.address.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def is_serving(self):
        self.check_alive()
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            # The empty request, and the answer {status: SERVING}, as they are on the wire.
            return check(b"", timeout=1) == b"\x08\x01"
        except grpc.RpcError:
            return False

    def stop(self):
        if hasattr(self, "channel"):
            self.channel.close()
        code = super().stop()
        if not self.kept:
            shutil.rmtree(self.data, ignore_errors=True)
        return code


class MongoDB(Process):
    """A replica set of one node, primary when the constructor returns. Needs pymongo."""

    def __init__(self):
        import pymongo

        port = free_port()
        self.data = tempfile.mkdtemp(prefix="stepwell-mongod-")
        command = [mongod(), "--port", str(port), "--bind_ip", "127.0.0.1", "--dbpath", self.data]
        command += ["--replSet", "rs0", "--wiredTigerCacheSizeGB", "0.5", "--nounixsocket"]
        super().__init__("mongod", command)
        self.uri = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0"
        direct = pymongo.MongoClient(f"mongodb://127.0.0.1:{port}/?directConnection=true")
        member = {"_id": 0, "host": f"127.0.0.1:{port}"}
        direct.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
        wait_until("primary", lambda: self.check_alive() or direct.admin.command("hello")["isWritablePrimary"])
        direct.close()
        self.client = pymongo.MongoClient(self.uri)

    def stop(self):
        if hasattr(self, "client"):
            self.client.close()
        code = super().stop()
        shutil.rmtree(self.data, ignore_errors=True)
        return code


@functools.cache
def shared_mongodb():
    """One MongoDB for all tests of a process; ended with it."""
    return MongoDB()


@functools.cache
def stubs():
    """The modules generated from `proto/`, by the names `execution`, `step`, `artifact`, `metric`,
    `configuration`, `ingest`, `analytics`, `search`, `admin`, `export`, `notification`, `auth`,
    `audit`, `verify`, `common`."""
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="stepwell-stubs-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    files = sorted(str(path) for path in (REPO / "proto").rglob("*.proto"))
    include = str(pathlib.Path(protoc.__file__).parent / "_proto")
    paths = [f"-I{REPO / 'proto'}", f"-I{REPO / 'third_party'}", f"-I{include}"]
    vendored = sorted(str(path) for path in (REPO / "third_party").rglob("*.proto"))
    code = protoc.main(["protoc", *paths, f"--python_out={out}", f"--grpc_python_out={out}", *files, *vendored])
    if code != 0:
        raise RuntimeError(f"protoc ended with {code}")
    sys.path.insert(0, out)

    class Stubs:
        common = importlib.import_module("stepwell.v1.common_pb2")

    for name in (
        "execution", "step", "artifact", "metric", "configuration", "ingest", "analytics", "search", "admin", "export",
        "notification", "auth", "audit", "verify",
    ):
        setattr(Stubs, name, importlib.import_module(f"stepwell.v1.{name}_service_pb2"))
        setattr(Stubs, f"{name}_grpc", importlib.import_module(f"stepwell.v1.{name}_service_pb2_grpc"))
    return Stubs


def stepwell(*args, check=True):
    """Runs a command of the binary and returns the finished process, output as text."""
    done = subprocess.run(
        [binary(), *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"stepwell {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def stepwell_json(*args):
    """What a command prints with `--output json`."""
    return json.loads(stepwell(*args, "--output", "json").stdout)

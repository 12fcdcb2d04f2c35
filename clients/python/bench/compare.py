#!/usr/bin/env python3
"""What reporting costs the app's thread, and what is lost, beside other libraries doing the same job.

    python bench/compare.py --server PATH_OF_THE_STEPWELL_BINARY [--records 2000] [--only stepwell,opentelemetry]

The job: one run (trace) with so many steps (spans), one after the other, each with an input and an output of some
hundred bytes. Each library is as it comes, in a process of its own, measured three times:

- there: its server answers. Microseconds per step on the app's thread; the end of the process is not counted.
- away: nobody listens at the address. The same.
- lost: after "away" the app is killed (SIGKILL) right behind its last step; then the server comes, and a second process
  of the same library reports one run of its own and ends in good order. How many of the first one's steps are missing,
  and how many bytes of inputs and outputs that is.

OpenTelemetry's and Langfuse's server is a sink that takes everything; MLflow's is the real one, `mlflow server`. Libraries
that are not installed are left out: `pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http langfuse mlflow`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.metadata
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

PAYLOAD = {"question": "what is the answer to life, the universe and everything? " * 4, "n": [1, 2, 3], "k": {"a": True}}
PATIENCE_SECONDS = 90
PACKAGES = {
    "stepwell": "stepwell",
    "opentelemetry": "opentelemetry-sdk",
    "langfuse": "langfuse",
    "mlflow": "mlflow",
}


# --- the job in each library; runs in a process of its own --------------------------------------------------------


def job_stepwell(address: str, mark: str, records: int) -> None:
    import stepwell as sw

    sw.configure(address, app="bench")
    with sw.run(id=f"{mark}-run") as r:
        yield_time()
        for n in range(records):
            with r.step(f"{mark}-{n:05}", input=PAYLOAD) as s:
                s.output(PAYLOAD)


def job_opentelemetry(address: str, mark: str, records: int) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://{address}/v1/traces")))
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("bench")
    with tracer.start_as_current_span("run"):
        yield_time()
        for n in range(records):
            with tracer.start_as_current_span(f"{mark}-{n:05}") as span:
                span.set_attribute("input", json.dumps(PAYLOAD))
                span.set_attribute("output", json.dumps(PAYLOAD))


def job_langfuse(address: str, mark: str, records: int) -> None:
    from langfuse import Langfuse

    client = Langfuse(public_key="pk-lf-1", secret_key="sk-lf-1", host=f"http://{address}")
    start = getattr(client, "start_as_current_span", None) or client.start_as_current_observation
    with start(name="run"):
        yield_time()
        for n in range(records):
            with start(name=f"{mark}-{n:05}", input=PAYLOAD) as span:
                span.update(output=PAYLOAD)


def job_mlflow(address: str, mark: str, records: int) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"http://{address}")
    mlflow.set_experiment("bench")
    with mlflow.start_span(name="run"):
        yield_time()
        for n in range(records):
            with mlflow.start_span(name=f"{mark}-{n:05}") as span:
                span.set_inputs(PAYLOAD)
                span.set_outputs(PAYLOAD)


_began = [0.0]


def yield_time() -> None:
    """What is set up once is not counted."""
    _began[0] = time.perf_counter()


def child(library: str, address: str, mark: str, records: int, end: str) -> None:
    globals()[f"job_{library}"](address, mark, records)
    took = time.perf_counter() - _began[0]
    print(json.dumps({"us": took / records * 1e6}), flush=True)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


# --- servers ------------------------------------------------------------------------------------------------------


class Sink(BaseHTTPRequestHandler):
    """Takes everything, and remembers it."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[bytes]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        encoding = self.headers.get("content-encoding", "")
        body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body) if encoding == "deflate" else body
        self.seen.append(body)
        self.send_response(200)
        self.send_header("content-type", self.headers.get("content-type", "application/json"))
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_PATCH = do_POST  # noqa: N815


@contextlib.contextmanager
def sink(port: int, _: argparse.Namespace, __: pathlib.Path) -> Iterator[None]:
    Sink.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", port), Sink)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def process(command: list[str], port: int, folder: pathlib.Path) -> Iterator[None]:
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > end or server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.05)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def stepwell_server(
    port: int, arguments: argparse.Namespace, folder: pathlib.Path
) -> contextlib.AbstractContextManager[None]:
    return process(
        [arguments.server, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder / "data")], port, folder
    )


def mlflow_server(port: int, _: argparse.Namespace, folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return process([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], port, folder)


SERVERS = {"stepwell": stepwell_server, "mlflow": mlflow_server, "opentelemetry": sink, "langfuse": sink}


def arrived(library: str, address: str, mark: str) -> int:
    """How many of the steps with `mark` its server has."""
    if library == "stepwell":
        import stepwell as sw

        with sw.Api(address) as api:
            try:
                return sum(
                    step.status == "completed" and step.output is not None
                    for step in api.get(f"{mark}-run", payloads=True).steps
                )
            except sw.NotFound:
                return 0
    if library == "mlflow":
        code = (
            "import mlflow, json, sys; mlflow.set_tracking_uri(sys.argv[1]); e = mlflow.set_experiment('bench');"
            "t = mlflow.search_traces(locations=[e.experiment_id], return_type='list');"
            "print(json.dumps([s.name for one in t for s in one.data.spans]))"
        )
        out = subprocess.run([sys.executable, "-c", code, f"http://{address}"], capture_output=True, text=True, timeout=600)
        names = json.loads(out.stdout.strip().splitlines()[-1]) if out.returncode == 0 else []
        return sum(name.startswith(mark) for name in set(names))
    return len({found for body in Sink.seen for found in re.findall(rb"%s-\d{5}" % mark.encode(), body)})


# --- the measurement ----------------------------------------------------------------------------------------------


def run_child(library: str, address: str, mark: str, records: int, end: str, folder: pathlib.Path) -> float | None:
    """Microseconds per step; None if it took longer than anybody waits."""
    environment = {
        **os.environ,
        "STEPWELL_SPOOL_DIR": str(folder / "spool"),
        "HOME": str(folder),
        "OTEL_SDK_DISABLED": "false",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, __file__, "--child", library, address, mark, str(records), end]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    try:
        out, err = child.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None
    lines = [line for line in out.splitlines() if line.startswith('{"us"')]
    if not lines:
        print(f"  {library}: {err.strip().splitlines()[-1:] or out!r}", file=sys.stderr)
        return None
    return float(json.loads(lines[-1])["us"])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def measure(library: str, arguments: argparse.Namespace) -> dict[str, object]:
    records = arguments.records
    with tempfile.TemporaryDirectory(prefix="stepwell-bench-") as name:
        folder = pathlib.Path(name)
        port = free_port()
        address = f"127.0.0.1:{port}"
        server = SERVERS[library]
        with server(port, arguments, folder):
            there = run_child(library, address, "there", records, "exit", folder)
            kept = arrived(library, address, "there")
        away = run_child(library, address, "away", records, "kill", folder)
        with server(port, arguments, folder):
            run_child(library, address, "next", 1, "exit", folder)
            delivered = arrived(library, address, "away")
        version = importlib.metadata.version(PACKAGES[library])
        lost = records - delivered
        return {
            "library": f"{library} {version}",
            "there": there,
            "kept": kept,
            "away": away,
            "lost": lost,
            "bytes": lost * 2 * len(json.dumps(PAYLOAD)),
        }


def shown(value: object) -> str:
    return f"> {PATIENCE_SECONDS} s" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="the stepwell binary")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--only", default="stepwell,opentelemetry,langfuse,mlflow")
    arguments = parser.parse_args()
    print(f"{arguments.records} steps each, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    print("| | µs a step, server there | of those stored | µs a step, server away | lost when killed | bytes lost |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for library in arguments.only.split(","):
        try:
            importlib.metadata.version(PACKAGES[library])
        except importlib.metadata.PackageNotFoundError:
            print(f"| {library} | not installed | | | | |")
            continue
        row = measure(library, arguments)
        cells = [row["library"], shown(row["there"]), row["kept"], shown(row["away"]), row["lost"], row["bytes"]]
        print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6])
    else:
        main()

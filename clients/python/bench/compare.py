#!/usr/bin/env python3
"""What reporting costs the app's thread, and what is lost, beside other libraries doing the same job.

    python bench/compare.py --server PATH_OF_THE_STEPWELL_BINARY [--records 2000] [--rounds 3] [--only stepwell,mlflow]

The job: one run (trace) with so many steps (spans), one after the other, each with an input and an output of some
hundred bytes. Each library is as it comes, in a process of its own, measured three times:

- there: its server answers. Microseconds per step on the app's thread, and how many of the steps its server has, with their
  inputs and outputs, once the process has ended in good order. Setting up and ending are not counted.
- away: its server has gone behind the beginning of the run, before the first step. The same.
- lost: after "away" the app is killed (SIGKILL) right behind its last step; then the server comes back, and a second process
  of the same library reports one run of its own and ends in good order. How many of the first one's steps are missing,
  and how many bytes of inputs and outputs that is.

Who takes longer than anybody waits is killed there, and what is lost is of the steps it has made by then. Of several
rounds, in each of which every library has its turn, it is the fastest, as other work on the machine only makes them
slower; and the worst of what is stored and lost.

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
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

PAYLOAD = {"question": "what is the answer to life, the universe and everything? " * 4, "n": [1, 2, 3], "k": {"a": True}}
#: For the steps; for what comes before and after them.
PATIENCE_SECONDS = 90
PATIENCE_AROUND_SECONDS = 300
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
        for n in steps(records):
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
        for n in steps(records):
            with tracer.start_as_current_span(f"{mark}-{n:05}") as span:
                span.set_attribute("input", json.dumps(PAYLOAD))
                span.set_attribute("output", json.dumps(PAYLOAD))


def job_langfuse(address: str, mark: str, records: int) -> None:
    from langfuse import Langfuse

    client = Langfuse(public_key="pk-lf-1", secret_key="sk-lf-1", host=f"http://{address}")
    start = getattr(client, "start_as_current_span", None) or client.start_as_current_observation
    with start(name="run"):
        for n in steps(records):
            with start(name=f"{mark}-{n:05}", input=PAYLOAD) as span:
                span.update(output=PAYLOAD)


def job_mlflow(address: str, mark: str, records: int) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"http://{address}")
    mlflow.set_experiment("bench")
    with mlflow.start_span(name="run"):
        for n in steps(records):
            with mlflow.start_span(name=f"{mark}-{n:05}") as span:
                span.set_inputs(PAYLOAD)
                span.set_outputs(PAYLOAD)


_began, _done, _over = 0.0, 0, False


def steps(records: int) -> Iterator[int]:
    """The numbers of the steps, from when whoever measures says so. What is set up once is not counted."""
    global _began, _done
    tell({"ready": True})
    sys.stdin.readline()
    threading.Thread(target=lose_patience, daemon=True).start()
    _began = time.perf_counter()
    for n in range(records):
        yield n
        _done = n + 1


def lose_patience() -> None:
    time.sleep(PATIENCE_SECONDS)
    if not _over:
        tell({"us": None, "made": _done})
        os.kill(os.getpid(), signal.SIGKILL)


def tell(what: dict[str, object]) -> None:
    print(f"\n{SAID}{json.dumps(what)}", flush=True)


SAID = "compare: "


def child(library: str, address: str, mark: str, records: int, end: str) -> None:
    global _over
    globals()[f"job_{library}"](address, mark, records)
    took, _over = time.perf_counter() - _began, True
    tell({"us": took / records * 1e6, "made": _done})
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


# --- servers ------------------------------------------------------------------------------------------------------


class Sink(BaseHTTPRequestHandler):
    """Takes everything, and remembers the spans."""

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
        if self.path.endswith("/v1/traces"):
            self.seen.append(body)
        self.send_response(200)
        self.send_header("content-type", self.headers.get("content-type", "application/json"))
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_PATCH = do_POST  # noqa: N815


@contextlib.contextmanager
def sink(port: int, _: argparse.Namespace, __: pathlib.Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), Sink)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def process(command: list[str], folder: pathlib.Path, answers: Callable[[], bool]) -> Iterator[None]:
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not answers():
            if time.monotonic() > end or server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.05)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def stepwell_server(
    port: int, arguments: argparse.Namespace, folder: pathlib.Path
) -> contextlib.AbstractContextManager[None]:
    command = [arguments.server, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder / "data")]
    return process(command, folder, lambda: listens(port))


def mlflow_server(port: int, _: argparse.Namespace, folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return process([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], folder, lambda: is_healthy(port))


SERVERS = {"stepwell": stepwell_server, "mlflow": mlflow_server, "opentelemetry": sink, "langfuse": sink}


def arrived(library: str, address: str, mark: str) -> int:
    """How many of the steps with `mark` its server has, with their inputs and outputs."""
    if library == "stepwell":
        import stepwell as sw

        with sw.Api(address) as api:
            try:
                steps = api.get(f"{mark}-run", payloads=True).steps
            except sw.NotFound:
                return 0
        whole = [step.name for step in steps if (step.input, step.output, step.status) == (PAYLOAD, PAYLOAD, "completed")]
    elif library == "mlflow":
        code = (
            "import mlflow, json, sys; mlflow.set_tracking_uri(sys.argv[1]);"
            "e = mlflow.get_experiment_by_name('bench');"
            "t = mlflow.search_traces(locations=[e.experiment_id], return_type='list');"
            "p = json.loads(sys.argv[2]);"
            "print(json.dumps([s.name for one in t for s in one.data.spans if s.inputs == p and s.outputs == p]))"
        )
        command = [sys.executable, "-c", code, f"http://{address}", json.dumps(PAYLOAD)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
        whole = json.loads(out.stdout.strip().splitlines()[-1])
    else:
        whole = list(spans_in_sink())
    return len({name for name in whole if name.startswith(f"{mark}-")})


def spans_in_sink() -> Iterator[str]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    text = str(PAYLOAD["question"])
    for body in Sink.seen:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                if sum(text in attribute.value.string_value for attribute in span.attributes) == 2:
                    yield span.name


# --- the measurement ----------------------------------------------------------------------------------------------


class App:
    """A process that does the job in a library."""

    def __init__(self, library: str, address: str, mark: str, records: int, end: str, folder: pathlib.Path) -> None:
        environment = {
            **os.environ,
            "STEPWELL_SPOOL_DIR": str(folder / "spool"),
            "HOME": str(folder),
            "OTEL_SDK_DISABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        }
        self.log = folder / "app.log"
        command = [sys.executable, __file__, "--child", library, address, mark, str(records), end]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        self.hurry = threading.Timer(2 * PATIENCE_AROUND_SECONDS + PATIENCE_SECONDS, self.process.kill)
        self.hurry.start()
        # It is set up.
        self.said()

    def said(self) -> dict[str, object]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(SAID):
                found: dict[str, object] = json.loads(line.removeprefix(SAID))
                return found
        raise RuntimeError(f"the app ended: {self.log.read_text()[-2000:]}")

    def run(self) -> tuple[float | None, int]:
        """Microseconds per step, None if it took longer than anybody waits; and how many it has made. Then it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        said = self.said()
        self.process.communicate()
        self.hurry.cancel()
        return said["us"], said["made"]  # type: ignore[return-value]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def measure(library: str, arguments: argparse.Namespace) -> dict[str, Any]:
    records = arguments.records
    with tempfile.TemporaryDirectory(prefix="stepwell-bench-") as name:
        folder = pathlib.Path(name)
        port = free_port()
        address = f"127.0.0.1:{port}"
        server = SERVERS[library]
        Sink.seen = []
        with server(port, arguments, folder):
            there, _ = App(library, address, "there", records, "exit", folder).run()
            kept = arrived(library, address, "there")
            leaving = App(library, address, "away", records, "kill", folder)
        away, made = leaving.run()
        with server(port, arguments, folder):
            App(library, address, "next", 1, "exit", folder).run()
            if arrived(library, address, "next") != 1:
                raise RuntimeError(f"{library}: what the second process reports does not arrive")
            lost = made - arrived(library, address, "away")
        return {
            "library": f"{library} {importlib.metadata.version(PACKAGES[library])}",
            "there": there,
            "kept": kept,
            "away": away,
            "lost": lost,
            "made": made,
        }


def of_rounds(rows: list[dict[str, Any]]) -> list[str]:
    """The cells of a library."""

    def fastest(name: str) -> str:
        known = [row[name] for row in rows if row[name] is not None]
        return f"{min(known):.0f}" if known else f"not within {PATIENCE_SECONDS} s"

    worst = max(rows, key=lambda row: (row["lost"] / max(1, row["made"]), row["lost"]))
    return [
        rows[0]["library"],
        fastest("there"),
        str(min(row["kept"] for row in rows)),
        fastest("away"),
        f"{worst['lost']} of {worst['made']}",
        f"{worst['lost'] * 2 * len(json.dumps(PAYLOAD)):,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="the stepwell binary")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="stepwell,opentelemetry,langfuse,mlflow")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {library: [] for library in arguments.only.split(",")}
    for number in range(arguments.rounds):
        for library, measured in rows.items():
            try:
                importlib.metadata.version(PACKAGES[library])
            except importlib.metadata.PackageNotFoundError:
                continue
            measured.append(measure(library, arguments))
            print(f"round {number + 1}: {measured[-1]}", file=sys.stderr, flush=True)
    print(f"{arguments.records} steps each, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    print("| | µs a step, server there | stored | µs a step, server gone | lost when killed | bytes lost |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for library, measured in rows.items():
        cells = of_rounds(measured) if measured else [library, "not installed", "", "", "", ""]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6])
    else:
        main()

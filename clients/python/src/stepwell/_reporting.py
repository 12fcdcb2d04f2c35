"""The functions that apps use."""

from __future__ import annotations

import functools
import os
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from . import _context, _decorate
from ._client import Client
from ._run import CARRIED_RUN, CARRIED_STEP, NullRun, Run
from ._settings import TLS, from_environment
from ._stats import Stats
from ._step import UNSET, Step

F = TypeVar("F", bound=Callable[..., Any])

_lock = threading.Lock()
_client: Client | None = None


def configure(
    server: str | None = None,
    *,
    app: str | None = None,
    app_id: int | None = None,
    sub_app: str | None = None,
    user: str | Callable[[], str | None] | None = None,
    mode: Literal["on", "disabled", "memory"] | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_max_bytes: int | None = None,
    memory_max_bytes: int | None = None,
    flush_timeout: float | None = None,
    heartbeat_timeout: float | None = UNSET,
    capture_input: bool | None = None,
    capture_output: bool | None = None,
    redact: Callable[[str, Any], Any] | None = None,
    max_payload_bytes: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    tls: TLS | None = None,
    headers: Mapping[str, str] | None = None,
) -> Client:
    """Sets the client of this process. Optional: without it the first use does so, from the environment.

    What is not given is taken from `STEPWELL_SERVER`, `STEPWELL_APP`, `STEPWELL_APP_ID`, `STEPWELL_SUB_APP`,
    `STEPWELL_USER`, `STEPWELL_MODE`, `STEPWELL_SPOOL_DIR`, `STEPWELL_SPOOL_MAX_BYTES`, `STEPWELL_MEMORY_MAX_BYTES`,
    `STEPWELL_FLUSH_TIMEOUT`, `STEPWELL_HEARTBEAT_TIMEOUT`, `STEPWELL_CAPTURE_INPUT`, `STEPWELL_CAPTURE_OUTPUT` and
    `STEPWELL_MAX_PAYLOAD_BYTES`, else it is the default. A key in `STEPWELL_KEY` is sent with every call, over TLS or
    to this machine.

    Nothing is connected here: an address where nobody listens is no error, neither now nor later.

    Args:
        server: `host:port`, or a URL with `http://` or `https://` (TLS). Default `127.0.0.1:50051`; the port is 50051
            unless given, and 443 with `https://`.
        app: Name of the app, for runs that do not say. Default: the name of the program.
        app_id: Number of the app, where it has one.
        sub_app: Name of the part of the app.
        user: Who runs it, or a function that says so at the start of each run.
        mode: `on`; `disabled`: nothing is recorded; `memory`: it is kept in this process, for tests.
        spool_dir: Where writes are kept until the server has them. Default: below `$XDG_STATE_HOME` or
            `~/.local/state`, a folder for each server.
        spool_max_bytes: How much of it (256 MiB). When it is nearly full updates are dropped first, then metrics,
            then payloads, never a start or an end.
        memory_max_bytes: How much is held in memory (32 MiB); what is more waits in the spool alone.
        flush_timeout: How long the end of the process may wait for the server (5 s). The rest is left to the spool.
        heartbeat_timeout: After so many seconds of silence the server takes a run for dead (60); None: never.
        capture_input: Whether inputs are recorded.
        capture_output: Whether outputs are recorded.
        redact: `redact(path, value)` is asked about every input, output and metadata value, and every value inside,
            before it leaves the thread; what it returns is recorded. `path` is for instance `input.user.password`.
        max_payload_bytes: An input or output that is larger (1 MiB) becomes the artifact
            `step-<key>-output.json`, with a preview in its place.
        metadata: For every run.
        tls: How to speak TLS.
        headers: Sent with every call, for instance a key: `{"authorization": "Bearer swk_..."}`.
    """
    given: dict[str, Any] = {
        "server": server,
        "app": app,
        "app_id": app_id,
        "sub_app": sub_app,
        "user": user,
        "mode": mode,
        "spool_dir": spool_dir,
        "spool_max_bytes": spool_max_bytes,
        "memory_max_bytes": memory_max_bytes,
        "flush_timeout": flush_timeout,
        "capture_input": capture_input,
        "capture_output": capture_output,
        "redact": redact,
        "max_payload_bytes": max_payload_bytes,
        "metadata": metadata,
        "tls": tls,
        "headers": headers,
    }
    if heartbeat_timeout is not UNSET:
        given["heartbeat_timeout"] = heartbeat_timeout
    client = Client(from_environment(given))
    earlier = swap(client)
    if earlier is not None:
        earlier.shutdown(0.0)
    return client


def swap(new: Client | None) -> Client | None:
    """Makes `new` the client of this process; returns what was."""
    global _client
    with _lock:
        earlier, _client = _client, new
    _null.cache_clear()
    return earlier


def client() -> Client:
    """The client of this process."""
    global _client
    if _client is None:
        with _lock:
            if _client is None:
                _client = Client(from_environment({}))
    return _client


def existing_client() -> Client | None:
    """The client, if something was reported already."""
    return _client


@functools.lru_cache(maxsize=1)
def _null() -> NullRun:
    return NullRun(client())


class RunMaker(Run):
    """What `run()` returns: a run, or a decorator that makes one of each call."""

    def __init__(self, owner: Client, app: str | None, options: Mapping[str, Any]) -> None:
        super().__init__(owner, app, **options)
        self._options = options

    def __call__(self, function: F) -> F:
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(self(function.__func__))
        app, options = self._app, self._options

        def make() -> Run:
            return _new_run(app or client().settings.app or function.__name__, options)

        return _decorate.decorate_run(function, make)  # type: ignore[return-value]


def _new_run(app: str | None, options: Mapping[str, Any]) -> Run:
    owner = client()
    if not owner.enabled:
        return NullRun(owner)
    return Run(owner, app, **options)


class _NullMaker(NullRun):
    def __init__(self, owner: Client, app: str | None, options: Mapping[str, Any]) -> None:
        super().__init__(owner)
        self._options, self._made_app = options, app

    __call__ = RunMaker.__call__


@overload
def run(app: F) -> F: ...
@overload
def run(
    app: str | None = None,
    *,
    id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    parent: Run | str | None = None,
    user: str | None = None,
    configuration_version: str | None = None,
    pinned: bool = False,
    sub_app: str | None = None,
    flush: bool = False,
) -> RunMaker: ...
def run(app: Any = None, **options: Any) -> Any:
    """A run: `with run() as r`, `async with run() as r`, `@run` on a function, coroutine, generator or async generator,
    or `r = run().start()` and later `r.complete()`.

    It is COMPLETED when its block ends, FAILED with type, message and trace when that raises, CANCELLED on
    `asyncio.CancelledError`, `KeyboardInterrupt` and `Cancelled`. The exception always goes on. A run inside another
    one has that as its parent.

    Args:
        app: Name of the app. Default: that of `configure`, or of the program, or of the function.
        id: Of the run; makes it possible to go on with it in another process (`attach`). Default: a new UUID.
        metadata: Anything to find it by.
        parent: The run that has started this one. Default: the current one.
        user: Who runs it.
        configuration_version: Version of the app's configuration that it runs with.
        pinned: Never deleted because of its age.
        sub_app: Name of the part of the app.
        flush: Waits at the end until everything is durable, at most `flush_timeout`: for functions whose process is
            frozen between calls.
    """
    if callable(app) or isinstance(app, (classmethod, staticmethod)):
        return RunMaker(client(), None, options)(app)
    owner = client()
    return (RunMaker if owner.enabled else _NullMaker)(owner, app, options)


def attach(id: str | Mapping[str, str]) -> Run:
    """A run that another process has made: reports into it, and does not end it.

    Takes its id, or what `Run.carrier` gave there, also from among other headers. As a block it is the current run.
    """
    owner = client()
    carried = None
    if not isinstance(id, str):
        lower = {str(key).lower(): value for key, value in dict(id).items()}
        carried = lower.get(CARRIED_STEP)
        id = str(lower.get(CARRIED_RUN) or "")
    if not id or not owner.enabled:
        return NullRun(owner)
    attached = Run(owner, id=id, attached=True)
    attached._parent_step_key = urllib.parse.unquote(str(carried)) if carried else None
    return attached


class StepMaker(Step):
    """What `step()` returns: a step, or a decorator that makes one of each call."""

    def __init__(self, name: str | None, options: dict[str, Any], retries: int, backoff: Any, retry_on: Any) -> None:
        self._options = options
        self._retries, self._backoff, self._retry_on = retries, backoff, retry_on
        self._name = name
        inside = options.get("run") or current_run()
        others = {key: value for key, value in options.items() if key != "run"}
        key = others.pop("key", None)
        if key is None and name and inside._planned.get(name):
            key = inside._planned[name].pop(0)
        super().__init__(inside, name or "step", key=key, **others)

    def __call__(self, function: F) -> F:
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(self(function.__func__))
        options = {key: value for key, value in self._options.items() if value is not UNSET}
        name = self._name or function.__name__

        def make(arguments: Any) -> Step:
            inside = options.get("run") or current_run()
            given = {"input": arguments, **{key: value for key, value in options.items() if key != "run"}}
            return inside.step(name, **given)

        return _decorate.decorate_step(  # type: ignore[return-value]
            function, make, self._retries, self._backoff, self._retry_on
        )


@overload
def step(name: F) -> F: ...
@overload
def step(
    name: str | None = None,
    *,
    key: str | None = None,
    version: str | None = None,
    input: Any = UNSET,
    metadata: Mapping[str, Any] | None = None,
    depends_on: Sequence[Step] = (),
    run: Run | None = None,
    retries: int = 0,
    backoff: float | Callable[[int], float] = 0.1,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
) -> StepMaker: ...
def step(
    name: Any = None,
    *,
    retries: int = 0,
    backoff: float | Callable[[int], float] = 0.1,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    **options: Any,
) -> Any:
    """A step of the current run: `with step("fetch") as s`, `async with`, or `@step` on functions, coroutines,
    generators and async generators.

    As a decorator it takes the arguments as input and the result as output. A step inside another one has that as its
    parent; for threads see `stepwell.bind`. Outside a run it does nothing.

    Args:
        name: What it does. Default: the name of the function.
        key: Its id, unique in the run. Default: a new UUID, or that of the planned step with this name.
        version: Of the code or prompt.
        input: What goes in.
        metadata: Anything else.
        depends_on: Steps that had to end first.
        run: The run, if it is not the current one.
        retries: As a decorator: how often to try again when it raises.
        backoff: Seconds before the first retry, doubling; or a function of the number of the attempt.
        retry_on: What to try again after.
    """
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if callable(name) or isinstance(name, (classmethod, staticmethod)):
        return StepMaker(None, options, retries, backoff, kinds)(name)
    return StepMaker(name, options, retries, backoff, kinds)


def current_run() -> Run:
    """The run of this context; outside of one, one that does nothing. Never None."""
    return _context.run_var.get() or _null()


def current_step() -> Step:
    """The step of this context; outside of one, one that does nothing."""
    return _context.step_var.get() or _null().step("none")


def flush(timeout: float | None = None) -> bool:
    """Waits until everything so far is durable, at most `timeout` (`flush_timeout`). False: some of it is still in
    the spool, and will be sent later, by this process or the next."""
    held = _client
    return held.flush(timeout) if held is not None else True


def shutdown(timeout: float | None = None) -> bool:
    """Flushes and ends the background threads. Happens by itself when the process ends, and on SIGTERM unless the
    app handles that. Reporting goes on afterwards if there is anything to report."""
    held = _client
    return held.shutdown(timeout) if held is not None else True


def stats() -> Stats:
    """What has become of everything that was reported."""
    held = _client
    return held.stats() if held is not None else Stats()

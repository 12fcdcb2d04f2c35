"""What has to happen around a fork. Nothing is set up before the first client is made."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._client import Client

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_held: list[Client] = []
_registered = False

#: How the threads of gRPC's core are called.
GRPC_THREADS = (b"grpc_", b"event_engine", b"lifeguard", b"resolver-exec", b"default-exec")
#: How long a fork waits for them to end.
_patience = 1.0


def register(client: Client) -> None:
    """`client` is told about forks."""
    global _registered
    _clients.add(client)
    if not _registered and hasattr(os, "register_at_fork"):
        _registered = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    _held[:] = list(_clients)
    for client in _held:
        client.before_fork()
    if any(client.used_grpc for client in _held):
        _wait_for_grpc()


def _wait_for_grpc() -> None:
    """gRPC ends its threads some milliseconds after its last channel was closed. A fork in between would leave a lock
    held for ever in the child, which then hangs when it opens a channel."""
    global _patience
    deadline = time.monotonic() + _patience
    while _grpc_is_running():
        if time.monotonic() > deadline:
            # The app has channels of its own: they stay, and so do the threads.
            _patience = 0.02
            return
        time.sleep(0.001)


def _grpc_is_running() -> bool:
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:  # no Linux
        return False
    for task in tasks:
        try:
            with open(f"/proc/self/task/{task}/comm", "rb") as name:
                if name.read().startswith(GRPC_THREADS):
                    return True
        except OSError:
            continue
    return False


def _in_parent() -> None:
    for client in _held:
        client.after_fork_in_parent()
    _held.clear()


def _in_child() -> None:
    for client in _held:
        client.after_fork_in_child()
    _held.clear()


def exit_with_process(end: Callable[[], None]) -> None:
    """Calls `end` when a child of multiprocessing ends, which does not run the functions of `atexit`."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, end, exitpriority=-100)

"""What happens when the process ends: at exit, and on SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._client import Client


def at_exit(reference: weakref.ref[Client]) -> None:
    """Delivers what it can in `flush_timeout`."""
    client = reference()
    if client is not None:
        client.shutdown(exiting=True)


def on_sigterm(client: Client) -> None:
    """Flushes before the process dies of SIGTERM, if it would just die of it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    reference = weakref.ref(client)

    def handler(number: int, frame: object) -> None:
        at_exit(reference)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        signal.signal(signal.SIGTERM, handler)
    except (ValueError, OSError):
        pass

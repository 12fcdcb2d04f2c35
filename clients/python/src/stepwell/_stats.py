"""Numbers about what was reported."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stats:
    """What has become of everything that was reported."""

    #: Writes and artifacts that wait for the server.
    queued: int = 0
    #: Their bytes on disk.
    spooled_bytes: int = 0
    #: Durable in the server.
    acked: int = 0
    #: Refused by the server for good; the log says why, once per reason.
    refused: int = 0
    #: Writes and artifacts that are never sent, as there was no room for them or what they say was deleted from the disk.
    dropped: int = 0
    #: Writes whose input or output was left out, as there was no room for it.
    shortened: int = 0
    #: Whether the server answers just now.
    connected: bool = False
    #: The latest reason why something was not stored; None once something is again.
    last_error: str | None = None
    #: Calls that this library does not understand, and defects in it, that the app was spared. The log says which, once.
    defects: int = 0

"""The files on disk in which every write waits until the server has it.

`<start>-<pid>.spool`, then `<start>-<pid>.1.spool` and so on: records of four bytes of length, little-endian, and an
`IngestRequest`. The process that writes a file holds a `flock` on it; a file whose lock is free belongs to a process
that is gone, and whoever locks it next sends it. One file is a few megabytes; it is removed, or truncated if it is the
last, once everything in it is settled. No fsync: what is here survives the death of the process, not that of the machine.

The first record of a file is a note (see `_open_runs`) with the server it is for.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from ._open_runs import note, read_note

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("stepwell")

LENGTH = struct.Struct("<I")
NAME = re.compile(r"^(\d+)-(\d+)(?:\.(\d+))?\.spool$")
#: A file is not written further once it is this long.
SEGMENT_BYTES = 4 << 20
#: How long to leave a folder alone in which no file could be opened.
RETRY_SECONDS = 2.0
#: How often to look whether the files are still there.
LOOK_SECONDS = 1.0
#: How many files there are before they get longer.
SEGMENTS = 32
#: A note that is longer is not written each time that there is nothing else in a file.
LONG_NOTE = 64 << 10
#: No record is longer: a server takes 16 MiB.
MAX_RECORD_BYTES = 64 << 20
#: How a file is made.
CREATE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def lock(fd: int) -> bool:
    """Tries to get the lock, which goes with the process."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Segment:
    """One file that is locked by this process."""

    __slots__ = ("fd", "full", "head", "path", "pending", "size")

    def __init__(self, path: pathlib.Path, fd: int, size: int = 0) -> None:
        self.path = path
        self.fd = fd
        self.size = size
        #: How much of that is the note it begins with.
        self.head = 0
        #: Nothing more is written to it.
        self.full = False
        #: Records in it that are not settled.
        self.pending = 0

    def read(self, offset: int, limit: int) -> tuple[list[bytes], int]:
        """Whole records from `offset` on, about `limit` bytes, and where the next one begins."""
        try:
            return self._read(offset, limit)
        except OSError as error:
            log.debug("a file of the spool cannot be read: %s", error)
            return [], self.size

    def _read(self, offset: int, limit: int) -> tuple[list[bytes], int]:
        records: list[bytes] = []
        begin = offset
        while offset + LENGTH.size <= self.size and offset - begin < limit:
            head = os.pread(self.fd, LENGTH.size, offset)
            if len(head) < LENGTH.size:
                break
            (length,) = LENGTH.unpack(head)
            if length > MAX_RECORD_BYTES or offset + LENGTH.size + length > self.size:
                # Cut off in the middle of a write. There is nothing behind it.
                offset = self.size
                break
            record = os.pread(self.fd, length, offset + LENGTH.size)
            if len(record) < length:
                offset = self.size
                break
            records.append(record)
            offset += LENGTH.size + length
        return records, offset if records or offset >= self.size else self.size

    def record(self, offset: int) -> bytes:
        """The one that begins there; raises OSError if it is not to be had."""
        head = os.pread(self.fd, LENGTH.size, offset)
        (length,) = LENGTH.unpack(head) if len(head) == LENGTH.size else (0,)
        record = os.pread(self.fd, length, offset + LENGTH.size)
        if not record or len(record) < length:
            raise OSError("the record is not there any more")
        return record

    @property
    def gone(self) -> bool:
        """Whether somebody has deleted the file."""
        try:
            return os.fstat(self.fd).st_nlink == 0
        except OSError:
            return True

    def restore(self) -> None:
        """Makes the file anew with what is in it, after somebody has deleted it; raises OSError."""
        fd = os.open(self.path, CREATE, 0o600)
        try:
            lock(fd)
            offset = 0
            while offset < self.size:
                piece = os.pread(self.fd, min(1 << 20, self.size - offset), offset)
                if not piece or os.write(fd, piece) != len(piece):
                    raise OSError("the disk is full")
                offset += len(piece)
        except BaseException:
            os.unlink(self.path)
            os.close(fd)
            raise
        # The number stays, as others may read from it just now.
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)

    def remove(self) -> None:
        """Deletes the file. Before it is unlocked, so that nobody else takes it."""
        try:
            os.unlink(self.path)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                os.close(fd)
            except OSError:
                pass


class Spool:
    """The files of one process. Not safe for threads: its owner has a lock."""

    def __init__(
        self,
        folder: pathlib.Path,
        server: str,
        max_bytes: int,
        open_runs: Callable[[], dict[str, Any] | None],
    ) -> None:
        self.folder = folder
        self.server = server
        self.segment_bytes = max(min(SEGMENT_BYTES, max_bytes // 8), 4096)
        self.open_runs = open_runs
        self.segments: list[Segment] = []
        self.name = f"{time.time_ns() // 1000}-{os.getpid()}"
        self.opened = 0
        self.retry_at = 0.0
        self.look_at = 0.0
        #: Of all files together.
        self.bytes = 0
        #: Why the disk does not take anything just now.
        self.last_error: str | None = None
        self.said: set[str] = set()

    def append_nothing(self) -> Segment | None:
        """Makes sure that there is a file, whose lock stands for this process."""
        return self.segments[-1] if self.segments else self._open()

    def append(self, record: bytes) -> Segment | None:
        """Writes a record; None if the disk does not take it."""
        now = time.monotonic()
        if self.segments and now >= self.look_at:
            self.look_at = now + LOOK_SECONDS
            self._look()
        segment = self.segments[-1] if self.segments else None
        # Each file is held open, so what is very much is in long ones.
        if segment is None or segment.full or segment.size - segment.head >= max(self.segment_bytes, self.bytes // SEGMENTS):
            segment = self._open()
            if segment is None:
                return None
        head = self._header() if segment.size == 0 else b""
        data = b"".join((head, LENGTH.pack(len(record)), record))
        if not self._write(segment, data):
            return None
        segment.head = segment.head or len(head)
        segment.pending += 1
        return segment

    def add_note(self, content: dict[str, Any]) -> None:
        """Writes a note behind what is there, if anything is: an empty file needs none."""
        if self.segments and self.segments[-1].size:
            record = note(content)
            self._write(self.segments[-1], LENGTH.pack(len(record)) + record)

    def settled(self, segment: Segment, count: int = 1) -> None:
        """So many records of `segment` need to be kept no longer."""
        segment.pending -= count
        if segment.pending > 0:
            return
        if self.segments and segment is self.segments[-1]:
            self.truncate()
        elif segment in self.segments:
            self.segments.remove(segment)
            self.bytes -= segment.size
            segment.remove()

    def truncate(self) -> None:
        """Empties the last file. What is open is noted there, so that the next process can end it if this one dies."""
        segment = self.segments[-1]
        if segment.head > LONG_NOTE and segment.size < 4 * segment.head:
            # Very much is open, and to write that down takes longer than what there is to be gained.
            return
        head = self._header()
        try:
            os.ftruncate(segment.fd, 0)
            self.bytes -= segment.size
            segment.size = segment.head = 0
        except OSError as error:
            self._failed(error)
            return
        if self.open_runs() and self._write(segment, head):
            segment.head = len(head)

    def close(self, *, keep: bool) -> None:
        """Lets go of all files; removes those in which nothing is left unless `keep`."""
        for segment in self.segments:
            if segment.pending <= 0 and not keep:
                segment.remove()
            else:
                segment.close()
        self.segments.clear()
        self.bytes = 0

    def _header(self) -> bytes:
        content: dict[str, Any] = {"stepwell": 1, "server": self.server}
        content.update(self.open_runs() or {})
        record = note(content)
        return LENGTH.pack(len(record)) + record

    def _look(self) -> None:
        """Somebody may have deleted the folder, as a cleaner of temporary files does. What is written to a deleted file
        would not survive this process. One file at a time, so that nobody waits long."""
        segment = next((one for one in reversed(self.segments) if one.gone), None)
        if segment is None:
            return
        try:
            self._make_folder()
            segment.restore()
        except OSError as error:
            text = f"{type(error).__name__}: {error.strerror or error}"
            if text not in self.said:
                self.said.add(text)
                log.warning("the files of the spool were deleted and cannot be made again (%s)", text)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _open(self) -> Segment | None:
        if time.monotonic() < self.retry_at:
            return None
        try:
            segment = self._create()
        except OSError as error:
            self._failed(error)
            return None
        old = self.segments[-1] if self.segments else None
        self.segments.append(segment)
        if old is not None and old.pending <= 0:
            self.segments.remove(old)
            self.bytes -= old.size
            old.remove()
        return segment

    def _create(self) -> Segment:
        while True:
            suffix = f".{self.opened}" if self.opened else ""
            path = self.folder / f"{self.name}{suffix}.spool"
            try:
                fd = os.open(path, CREATE, 0o600)
            except FileNotFoundError:
                self._make_folder()
                fd = os.open(path, CREATE, 0o600)
            self.opened += 1
            if lock(fd):
                return Segment(path, fd)
            # Another process took it for one that was left behind, in the moment before it was locked.
            os.close(fd)

    def _write(self, segment: Segment, data: bytes) -> bool:
        try:
            written = os.write(segment.fd, data)
            if written == len(data):
                segment.size += written
                self.bytes += written
                self.last_error = None
                return True
            error = OSError("the disk is full")
        except OSError as caught:
            error = caught
        self._failed(error)
        try:
            os.ftruncate(segment.fd, segment.size)
        except OSError:
            # Half a record is in the file now. What comes behind it would not be found.
            segment.full = True
        return False

    def _failed(self, error: OSError) -> None:
        self.retry_at = time.monotonic() + RETRY_SECONDS
        text = f"{type(error).__name__}: {error.strerror or error}"
        self.last_error = text
        if text not in self.said:
            self.said.add(text)
            log.warning("the spool cannot be written (%s); what is reported is kept in memory", text)


class Abandoned:
    """The files of one process that is gone, locked by this one."""

    def __init__(self, segments: list[Segment], died_at: float) -> None:
        self.segments = segments
        self.died_at = died_at

    @property
    def prefix(self) -> str:
        """`<start>-<pid>`, with which the names of all its files begin."""
        match = NAME.match(self.segments[0].path.name)
        return f"{match[1]}-{match[2]}" if match else ""


def server_of(segment: Segment) -> str | None:
    """For which server the file is; None where it does not say."""
    records, _ = segment.read(0, 1)
    content = read_note(records[0]) if records else None
    return str(content["server"]) if content and "server" in content else None


def groups(folder: pathlib.Path) -> dict[tuple[int, int], list[pathlib.Path]]:
    """The files of a folder by process, oldest process first, each one's in order."""
    found: dict[tuple[int, int], list[tuple[int, pathlib.Path]]] = {}
    try:
        entries = list(folder.iterdir())
    except OSError:
        return {}
    for path in entries:
        match = NAME.match(path.name)
        if match:
            found.setdefault((int(match[1]), int(match[2])), []).append((int(match[3] or 0), path))
    return {owner: [path for _, path in sorted(paths)] for owner, paths in sorted(found.items())}


def take(paths: list[pathlib.Path], server: str | None) -> Abandoned | None:
    """The files of one process, if it is gone and they are for `server` (None: for any)."""
    segments: list[Segment] = []
    newest = 0.0
    for path in paths:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        segment = Segment(path, fd)
        try:
            about = os.fstat(fd)
            if not lock(fd) or os.stat(path).st_ino != about.st_ino:
                raise BlockingIOError
        except OSError:
            for one in (*segments, segment):
                one.close()
            return None
        segment.size = about.st_size
        newest = max(newest, about.st_mtime)
        segments.append(segment)
    wanted = [server_of(segment) for segment in segments]
    if not segments or (server is not None and any(one not in (None, server) for one in wanted)):
        for segment in segments:
            segment.close()
        return None
    return Abandoned(segments, newest)


def abandoned(folder: pathlib.Path, server: str | None) -> Iterator[Abandoned]:
    """What processes that are gone have left in `folder` for `server`."""
    for paths in groups(folder).values():
        taken = take(paths, server)
        if taken is not None:
            yield taken

"""Sends the bytes of artifacts, on a thread of its own, and goes on where it was when something broke.

What is to be sent lies in the spool as two files, named after the spool file of the process that owns them:
`<start>-<pid>.<upload>.blob`, the bytes (a copy, a hard link or a symbolic link), and `<start>-<pid>.<upload>.artifact`,
the serialized `ArtifactDescription`, which is written last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import grpc
from google.protobuf.message import DecodeError

from ._channel import open_channel
from ._outbox import ATTACHED_SECONDS, FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS, PAUSE_SECONDS, PAUSING, Entry
from ._pb import artifact_service_pb2 as pb
from ._pb.artifact_service_pb2_grpc import ArtifactServiceStub
from ._room import MESSAGE_FACTOR, UPLOAD_BYTES
from ._status import Failure, of_error

if TYPE_CHECKING:
    from ._client import Client

log = logging.getLogger("stepwell")

CHUNK_BYTES = 1 << 20
#: Codes after which it is tried again.
AGAIN = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN", "INTERNAL"}) | PAUSING
#: A call of an upload that takes longer is broken off and gone on with.
CALL_SECONDS = 600.0
#: The thread ends when it has had nothing to do for this long.
IDLE_SECONDS = 5.0


class NoRoom(Exception):
    """The spool is full."""


class Upload:
    """One artifact on its way."""

    def __init__(
        self,
        description: pb.ArtifactDescription | None,
        blob: pathlib.Path | bytes,
        size: int,
        *,
        after: Entry | None = None,
        attached: bool = False,
        owned: bool = True,
    ) -> None:
        #: None where it is read from the spool.
        self._description = description
        #: A file of the spool, or where there is no spool that of the app (not `owned`) or the bytes themselves.
        self.blob = blob
        self.size = size
        #: The write that creates the run.
        self.after = after
        self.attached = attached
        self.owned = owned
        self.number = 0
        #: In memory.
        self.cost = UPLOAD_BYTES + (len(blob) if isinstance(blob, bytes) else 0)
        if description is not None:
            self.cost += MESSAGE_FACTOR * description.ByteSize()
        self.born = time.monotonic()
        self.retry_at = 0.0
        self.backoff = FIRST_BACKOFF_SECONDS

    def description(self) -> pb.ArtifactDescription:
        """What it is; raises OSError."""
        made = pb.ArtifactDescription()
        if self._description is not None:
            made.CopyFrom(self._description)
        elif isinstance(self.blob, pathlib.Path):
            try:
                made.ParseFromString(self.blob.with_suffix(".artifact").read_bytes())
            except DecodeError:
                raise OSError(errno.EIO, "the description is damaged") from None
        return made

    def open(self) -> BinaryIO:
        """The bytes."""
        if isinstance(self.blob, bytes):
            return io.BytesIO(self.blob)
        return self.blob.open("rb")

    def remove(self) -> None:
        """From the spool."""
        if isinstance(self.blob, pathlib.Path) and self.owned:
            for path in (self.blob.with_suffix(".artifact"), self.blob):
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    pass


def store(
    folder: pathlib.Path,
    prefix: str,
    description: pb.ArtifactDescription,
    source: bytes | pathlib.Path | BinaryIO,
    reserve: Callable[[int], bool],
) -> tuple[pathlib.Path, int]:
    """Puts an artifact into the spool; raises OSError, and NoRoom where `reserve` says no. Returns what it takes there."""
    blob = folder / f"{prefix}.{description.upload_id}.blob"
    if isinstance(source, pathlib.Path):
        source = source.resolve(strict=True)
        try:
            os.link(source, blob)
        except OSError:
            os.symlink(source, blob)
        size = 0
    else:
        size = _copy(source, blob, reserve)
    try:
        write_description(blob, description)
    except BaseException:
        blob.unlink(missing_ok=True)
        reserve(-size)
        raise
    return blob, size


def _copy(source: bytes | BinaryIO, blob: pathlib.Path, reserve: Callable[[int], bool]) -> int:
    """Copies to a file; its size."""
    read = io.BytesIO(source).read if isinstance(source, bytes) else source.read
    taken = 0
    try:
        with open(os.open(blob, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
            while piece := read(CHUNK_BYTES):
                if not reserve(len(piece)):
                    raise NoRoom
                taken += len(piece)
                out.write(piece)
    except BaseException:
        blob.unlink(missing_ok=True)
        reserve(-taken)
        raise
    return taken


def read(source: bytes | BinaryIO, most: int) -> bytes | None:
    """The bytes, where they have to be kept in memory; None if there are more."""
    if isinstance(source, bytes):
        return source if len(source) <= most else None
    # Some of a stream may have been read in vain before.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        source.seek(0)
    pieces: list[bytes] = []
    while piece := source.read(CHUNK_BYTES):
        pieces.append(piece)
        most -= len(piece)
        if most < 0:
            return None
    return b"".join(pieces)


def write_description(blob: pathlib.Path, description: pb.ArtifactDescription) -> None:
    """After the bytes, and all at once."""
    half = blob.with_suffix(".half")
    half.write_bytes(description.SerializeToString())
    half.rename(blob.with_suffix(".artifact"))


def left_by(folder: pathlib.Path, prefix: str, own: str) -> list[Upload]:
    """The uploads of a process that is gone, taken over: renamed to `own`, so that they go with its spool file."""
    found = []
    for path in sorted(folder.glob(f"{prefix}.*.artifact")):
        try:
            description = pb.ArtifactDescription.FromString(path.read_bytes())
            blob = folder / f"{own}.{description.upload_id}.blob"
            os.rename(path.with_suffix(".blob"), blob)
            os.rename(path, blob.with_suffix(".artifact"))
            found.append(Upload(None, blob, blob.stat().st_size, attached=True))
        except Exception as error:
            log.debug("an artifact of the spool cannot be read: %s", error)
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{prefix}.*"):
        if path.suffix in (".blob", ".half"):
            path.unlink(missing_ok=True)
    return found


class Uploader:
    """One per client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        #: By their numbers, in order.
        self.jobs: dict[int, Upload] = {}
        self.number = 0
        #: The server is away: none is tried before.
        self.retry_at = 0.0
        self.condition = threading.Condition()
        self.thread: threading.Thread | None = None
        self.stopping = False
        self.call: Any = None
        self.hurried = False
        self.backoff = FIRST_BACKOFF_SECONDS / 2

    def add(self, job: Upload) -> None:
        """To be sent."""
        with self.condition:
            self.number += 1
            job.number = self.number
            self.jobs[job.number] = job
            self.condition.notify()
        self.start()

    def waits(self, upto: int) -> bool:
        """Whether any with this number or a lower one is not sent."""
        with self.condition:
            return next(iter(self.jobs), upto + 1) <= upto

    def start(self) -> None:
        """If there is anything to do."""
        with self.client.starting() as allowed, self.condition:
            if not allowed or not self.jobs or (self.thread is not None and self.thread.is_alive()):
                return
            self.stopping = False
            self.thread = threading.Thread(target=self._run, name="stepwell-uploads", daemon=True)
            self.thread.start()

    def hurry(self) -> None:
        """Somebody waits."""
        with self.condition:
            self.hurried = True
            self.condition.notify()

    def park(self, timeout: float) -> bool:
        """Ends the thread and everything of gRPC."""
        self.stopping = True
        deadline = time.monotonic() + timeout
        thread = self.thread
        while thread is not None and thread.is_alive() and thread is not threading.current_thread():
            call = self.call
            if call is not None:
                call.cancel()
            with self.condition:
                self.condition.notify()
            thread.join(0.01)
            if time.monotonic() > deadline:
                return False
        self.thread = None
        return True

    def _run(self) -> None:
        channel = None
        idle_since = time.monotonic()
        try:
            while not self.stopping:
                job = self._next()
                if job is None:
                    with self.condition:
                        if not self.jobs and time.monotonic() - idle_since > IDLE_SECONDS:
                            self.thread = None
                            return
                        self.condition.wait(self._pause() if self.jobs else 1.0)
                    continue
                if channel is None:
                    channel = open_channel(self.client.settings.server, self.client.settings.tls)
                self._attempt(ArtifactServiceStub(channel), job)
                idle_since = time.monotonic()
        finally:
            if channel is not None:
                channel.close()

    def _next(self) -> Upload | None:
        now = time.monotonic()
        with self.condition:
            if self.hurried:
                self.hurried = False
                self.retry_at = min(self.retry_at, now)
                for job in self.jobs.values():
                    job.retry_at = min(job.retry_at, now)
            if self.retry_at > now:
                return None
            for job in self.jobs.values():
                if job.retry_at <= now and (job.after is None or job.after.done):
                    return job
        return None

    def _pause(self) -> float:
        """Until one may be tried. Looking through very many takes its time, so it is not done all the time."""
        return min(1.0, max(0.05, len(self.jobs) / 10_000, self.retry_at - time.monotonic()))

    def _attempt(self, stub: ArtifactServiceStub, job: Upload) -> None:
        try:
            self._send(stub, job)
        except grpc.RpcError as error:
            failure = of_error(error)
        except OSError as error:
            self._finished(job)
            self.client.upload_lost(job, error.strerror or type(error).__name__)
            return
        except Exception as error:
            # A defect of this library must not hold up the others for ever.
            self.client.noticed(error)
            failure = Failure("FAILED_PRECONDITION", type(error).__name__, "DEFECT")
        else:
            self.backoff = FIRST_BACKOFF_SECONDS / 2
            self._finished(job)
            self.client.uploaded(job)
            return
        finally:
            self.call = None
        if self.stopping:
            return
        now = time.monotonic()
        # The run may still be made: by another process, or by a write that is on its way.
        may_come = self.client.writes_wait() or (job.attached and now - job.born < ATTACHED_SECONDS)
        if (
            failure.retry_after is not None
            or failure.code in AGAIN
            or failure.reason in ("UPLOAD_OFFSET", "UPLOAD_NOT_FOUND")
            or (failure.reason == "EXECUTION_NOT_FOUND" and may_come)
        ):
            self.client.upload_failed(failure)
            if failure.code == "UNAVAILABLE" or failure.code in PAUSING:
                self.backoff = min(self.backoff * 2, LAST_BACKOFF_SECONDS)
                self.retry_at = now + self.backoff
            job.retry_at = now + max(failure.retry_after or 0.0, PAUSE_SECONDS if failure.code in PAUSING else job.backoff)
            job.backoff = min(job.backoff * 2, LAST_BACKOFF_SECONDS)
            return
        self._finished(job)
        self.client.upload_refused(job, failure)

    def _finished(self, job: Upload) -> None:
        job.remove()
        with self.condition:
            self.jobs.pop(job.number, None)

    def _send(self, stub: ArtifactServiceStub, job: Upload) -> None:
        headers = self.client.headers
        description = job.description()
        offset = 0
        if job.backoff > FIRST_BACKOFF_SECONDS or job.attached:
            try:
                reply = stub.GetUpload(pb.GetUploadRequest(upload_id=description.upload_id), metadata=headers, timeout=20)
                offset = reply.received_bytes
            except grpc.RpcError as error:
                if of_error(error).reason != "UPLOAD_NOT_FOUND":
                    raise
        with job.open() as source:
            digest = hashlib.sha256()
            size = 0
            while piece := source.read(CHUNK_BYTES):
                digest.update(piece)
                size += len(piece)
            description.sha256 = digest.hexdigest()
            description.size_bytes = size
            description.offset = offset if offset < size else 0
            source.seek(description.offset)
            call = stub.UploadArtifact.future(self._parts(description, source), metadata=headers, timeout=CALL_SECONDS)
            self.call = call
            call.result()

    def _parts(self, description: pb.ArtifactDescription, source: BinaryIO) -> Iterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(description=description)
        while not self.stopping and (piece := source.read(CHUNK_BYTES)):
            yield pb.UploadArtifactRequest(chunk=piece)

"""One client: takes writes from the app's threads, keeps them on disk, and has them sent.

Nothing in here raises into the app, and nothing that the app's thread does waits for the network.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import logging
import pathlib
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from . import _fork, _room, _uploads
from ._backlog import Backlog
from ._beats import Beats
from ._channel import metadata
from ._exit import at_exit, on_sigterm
from ._messages import Limits, process_died
from ._open_runs import OpenRuns
from ._outbox import Entry, Outbox
from ._pb import artifact_service_pb2 as artifact_pb
from ._pb.ingest_service_pb2 import IngestRequest
from ._settings import Settings, default_spool_dir
from ._spool import LENGTH, Spool, abandoned
from ._stats import Stats
from ._status import Failure
from ._uploads import Upload, Uploader
from ._writer import Writer, text_of

if TYPE_CHECKING:
    from ._run import Run
    from ._step import Step
    from .testing import Recorder

log = logging.getLogger("stepwell")

#: Progress of a step is reported this often at most.
PROGRESS_SECONDS = 0.1
#: Steps whose progress waits for that, at most.
PROGRESS_STEPS = 1000
#: How long a fork may be held up.
FORK_SECONDS = 2.0
#: Runs of which a process remembers that it is attached to them, or that their beginning was dropped.
REMEMBERED = 10_000
#: Files of processes that are gone which are open at a time.
TAKEN_FILES = 64


class Client:
    """See `stepwell.configure`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Of every call.
        self.headers = metadata(settings.sent_headers()) if settings.mode == "on" else ()
        self.recorder: Recorder | None = None
        self.limits = Limits()
        # A lock that a thread may take twice: a signal handler of the app may report while its thread is in here.
        self._lock = threading.RLock()
        self._forking = False
        self.used_grpc = False
        self._installed = self._at_exit = False
        self.sequence = 0
        self.update_sequence = 0
        self.acked = self.refused = self.dropped = self.shortened = self.defects = 0
        self.last_error: str | None = None
        self._reasons: set[str] = set()
        self._fresh()
        if settings.mode == "on":
            _fork.register(self)
        elif settings.mode == "memory":
            from .testing import Recorder as MemoryRecorder

            self.recorder = MemoryRecorder()

    def _fresh(self) -> None:
        """What belongs to one process."""
        settings = self.settings
        self.open_runs = OpenRuns()
        #: The writes that create runs, as long as they are in memory and not settled.
        self.creations: dict[str, Entry] = {}
        self.attached: dict[str, None] = {}
        #: Runs whose beginning there was no room for: the server would refuse whatever comes after it.
        self.beheaded: dict[str, None] = {}
        #: What is in memory and not settled. What was merged into another write is not in here any more.
        self.entries: dict[int, Entry] = {}
        #: How many writes that is, with those that were merged into others.
        self.writes = 0
        #: What all of it takes, with artifacts.
        self.memory_bytes = 0
        self.upload_bytes = 0
        #: What artifacts take on the disk.
        self.blob_bytes = 0
        self.more_is_left = False
        self.backlog = Backlog()
        self.progress: dict[Step, float] = {}
        self.beats = Beats(settings.heartbeat_timeout)
        self.spool = Spool(self.spool_dir, settings.server, settings.spool_max_bytes, self._open_note)
        self.writer = Writer(self, Outbox(self, parked_max_bytes=int(settings.memory_max_bytes * _room.PARKED_SHARE)))
        self.uploader = Uploader(self)

    @property
    def ordered(self) -> threading.RLock:
        """Around writes whose order matters; held for as long as it takes to add them."""
        return self._lock

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self.settings.mode != "disabled"

    @property
    def spool_dir(self) -> pathlib.Path:
        """Where the spool is."""
        return self.settings.spool_dir or default_spool_dir(self.settings.server)

    def _open_note(self) -> dict[str, Any] | None:
        return self.open_runs.as_note() if self.open_runs else None

    # --- from the app's threads -------------------------------------------------------------------------------

    def add(self, request: IngestRequest, kind: str, execution_id: str, update_key: str | None = None) -> Entry | None:
        """Takes a write: on disk when this returns, or in memory if the disk does not take it."""
        if self.settings.mode != "on":
            if self.recorder is not None:
                self.recorder.apply(request)
            return None
        with self._lock:
            self._install()
            if not self._has_room(request, kind, execution_id):
                return None
            self.sequence += 1
            request.sequence = self.sequence
            if kind == "update_step":
                request.update_step.update_sequence = self._next_update()
            elif kind == "update_execution" and execution_id not in self.attached:
                # Only by the process that has made it: of two with different clocks, one's updates would be dropped.
                request.update_execution.update_sequence = self._next_update()
            data = request.SerializeToString()
            segment = self.spool.append(data)
            size = len(data) + _room.ENTRY_BYTES
            if segment is None and not _room.fits_in_memory(kind, self.memory_bytes, size, self.settings.memory_max_bytes):
                self._behead(kind, execution_id)
                return None
            if kind not in ("update_step", "update_execution", "record_metrics"):
                self.open_runs.observe(request)
            self.writes += 1
            entry = Entry(
                self.sequence,
                data,
                execution_id,
                kind=kind,
                update_key=update_key,
                attached=execution_id in self.attached,
                born=time.monotonic(),
                segment=segment,
                offset=segment.size - len(data) - LENGTH.size if segment is not None else -1,
            )
            full = self.memory_bytes > self.settings.memory_max_bytes
            if not self.backlog.holds_back(entry, len(data), full):
                self.entries[entry.sequence] = entry
                self._count(entry)
                self.writer.put(entry)
            elif segment is None:
                self._count(entry)
            if not self._forking:
                self.writer.start()
            return entry if entry.cost else None

    def _next_update(self) -> int:
        self.update_sequence = max(self.update_sequence + 1, time.time_ns() // 1000)
        return self.update_sequence

    def _count(self, entry: Entry) -> None:
        """It is in memory, or takes more or less of it than before."""
        earlier = entry.cost
        if entry.done:
            entry.cost = 0
        elif entry.data is not None:
            entry.cost = _room.ENTRY_BYTES + len(entry.data)
        elif entry._message is not None:
            entry.cost = _room.ENTRY_BYTES + _room.MESSAGE_FACTOR * entry._message.ByteSize()
        else:
            entry.cost = _room.ENTRY_BYTES
        self.memory_bytes += entry.cost - earlier

    def _has_room(self, request: IngestRequest, kind: str, execution_id: str) -> bool:
        """Whether there is room for it; leaves payloads out of what has to be kept."""
        if execution_id in self.beheaded:
            if kind == "finish_execution":
                del self.beheaded[execution_id]
            self._dropped("there is no room for its run")
            return False
        if self.spool.last_error is None:
            full = (self.spool.bytes + self.blob_bytes) / self.settings.spool_max_bytes
        else:
            full = self.memory_bytes / self.settings.memory_max_bytes
        verdict = _room.judge(request, kind, full)
        if verdict is _room.Verdict.DROP:
            self._dropped("the spool is full")
        elif verdict is _room.Verdict.WITHOUT_PAYLOAD:
            self.shortened += 1
            self._say_dropped("the spool is full")
        return verdict is not _room.Verdict.DROP

    def _behead(self, kind: str, execution_id: str) -> None:
        """Neither the disk nor memory takes it."""
        self._dropped("the spool cannot be written and memory is full")
        if kind == "create_execution":
            _remember(self.beheaded, execution_id)

    def _dropped(self, why: str) -> None:
        self.dropped += 1
        self._say_dropped(why)

    def _say_dropped(self, why: str) -> None:
        self.say_once(f"dropped: {why}", "%s: some of what is reported is dropped (see stepwell.stats())", why)

    def lost(self, count: int, why: str) -> None:
        """So many writes are not to be had any more."""
        self.writes -= count
        self.dropped += count
        self._say_dropped(why)

    def add_attached(self, execution_id: str) -> None:
        """A run of another process is reported into."""
        with self._lock:
            if execution_id not in self.open_runs.steps:
                _remember(self.attached, execution_id)

    def share(self, execution_id: str) -> None:
        """Another process may go on with a run of this one."""
        with self._lock:
            self.open_runs.share(execution_id)
            if execution_id in self.open_runs.shared:
                self.spool.add_note({"shared": [execution_id]})

    def created_by(self, execution_id: str, entry: Entry | None) -> None:
        """Which write creates a run: its artifacts wait for that."""
        if entry is not None:
            with self._lock:
                if not entry.done:
                    self.creations[execution_id] = entry

    def upload(self, description: artifact_pb.ArtifactDescription, source: bytes | pathlib.Path | BinaryIO) -> None:
        """Takes an artifact."""
        if self.settings.mode != "on":
            if self.recorder is not None:
                self.recorder.add_artifact(description, source)
            return
        with self._lock:
            self._install()
            if description.execution_id in self.beheaded:
                self._dropped("there is no room for its run")
                return
            most = self.settings.memory_max_bytes * _room.ARTIFACTS_SHARE
            if self.upload_bytes + _room.UPLOAD_BYTES > most:
                self._dropped("too many artifacts wait")
                return
            name = self.spool.name if self.spool.append_nothing() is not None else None
        # Not under the lock: it may take long to read what is given, and whoever reports would wait for that.
        blob: pathlib.Path | bytes
        try:
            if name is None:
                raise OSError("no spool")
            blob, size = _uploads.store(self.spool.folder, name, description, source, self._reserve)
            owned = True
        except _uploads.NoRoom:
            self._drop_artifact("the spool has no room for an artifact")
            return
        except OSError as error:
            if isinstance(source, pathlib.Path):
                if not source.is_file():
                    self._drop_artifact(f"the artifact's file cannot be read ({error.strerror})")
                    return
                # From where it is.
                blob, size, owned = source.resolve(), 0, False
            else:
                found = _uploads.read(source, int(most) - self.upload_bytes)
                if found is None:
                    self._drop_artifact("there is no room for an artifact")
                    return
                blob, size, owned = found, len(found), True
        with self._lock:
            job = Upload(
                None if owned and isinstance(blob, pathlib.Path) else description,
                blob,
                size,
                after=self.creations.get(description.execution_id),
                attached=description.execution_id in self.attached,
                owned=owned,
            )
            if self.upload_bytes + job.cost > most:
                job.remove()
                if isinstance(blob, pathlib.Path):
                    self.blob_bytes -= size
                self._dropped("there is no room for an artifact")
                return
            self._count_upload(job, 1)
        self.uploader.add(job)

    def _reserve(self, size: int) -> bool:
        """Whether the spool has room for so much more of an artifact; negative: it is given back."""
        with self._lock:
            if size > 0 and self.spool.bytes + self.blob_bytes + size > self.settings.spool_max_bytes:
                return False
            self.blob_bytes += size
            return True

    def _drop_artifact(self, why: str) -> None:
        with self._lock:
            self._dropped(why)

    def _count_upload(self, job: Upload, sign: int) -> None:
        self.upload_bytes += sign * job.cost
        self.memory_bytes += sign * job.cost

    def flush(self, timeout: float | None = None, *, taken_too: bool = False) -> bool:
        """Waits until everything so far is durable; with `taken_too` also what other processes have left."""
        if self.settings.mode != "on":
            return True
        deadline = time.monotonic() + (self.settings.flush_timeout if timeout is None else timeout)
        self.emit_progress(None)
        with self._lock:
            upto, upto_upload = self.sequence, self.uploader.number
        hurried = 0.0
        while True:
            with self._lock:
                first = next(iter(self.entries), None)
                waiting = (first is not None and (taken_too or first <= upto)) or self.backlog.waits(taken_too)
                waiting = waiting or self.uploader.waits(upto_upload)
            if not waiting:
                return True
            now = time.monotonic()
            if now >= deadline or self._forking:
                return False
            if now >= hurried:
                hurried = now + 0.5
                try:
                    self.writer.start()
                    self.writer.hurry()
                    self.uploader.start()
                    self.uploader.hurry()
                except RuntimeError:  # no thread can be started any more
                    return False
            time.sleep(0.002)

    def shutdown(self, timeout: float | None = None, *, exiting: bool = False) -> bool:
        """Flushes and ends the threads; what is not durable by then is left to the spool."""
        if self.settings.mode != "on":
            return True
        try:
            if exiting:
                self._end_open_runs()
            done = self.flush(timeout, taken_too=exiting)
            if exiting and not done:
                self._say_left()
            self.writer.park(0.5)
            self.uploader.park(0.5)
            with self._lock:
                pending = bool(self.entries or self.backlog or self.uploader.jobs)
                if exiting:
                    self._release()
                elif not pending and not self.open_runs:
                    self.spool.close(keep=False)
                # Else the files stay locked: this process lives, and what is in them is its own to send.
            return done and not pending
        except Exception as error:
            self.noticed(error)
            return False

    def _say_left(self) -> None:
        """Whoever waits for the program, and then looks in vain for what it has reported, learns why."""
        left = self.stats()
        why = f" ({left.last_error})" if left.last_error else ""
        if self.spool.last_error is None:
            then = f"wait in {self.spool_dir}: the next program that reports there sends them, or `stepwell spool send`"
        else:
            then = "are lost, as there is no spool"
        self.say_once("left", "%s has not taken everything%s: %d writes %s", self.settings.server, why, left.queued, then)

    def _release(self) -> None:
        """Leaves everything that is not durable to the next process."""
        self._close_taken()
        self.spool.close(keep=bool(self.uploader.jobs))
        self.backlog.close()

    def _close_taken(self) -> None:
        for entry in self.entries.values():
            for segment, _ in entry.files():
                if segment not in self.spool.segments:
                    segment.close()

    def _end_open_runs(self) -> None:
        """Nobody else can: the process is ending."""
        with self._lock:
            orphans = self.open_runs.orphans()
            for run, steps in orphans:
                for request, kind in process_died(run, steps, dt.datetime.now(dt.timezone.utc)):
                    self.add(request, kind, run)

    def stats(self) -> Stats:
        """Numbers."""
        with self._lock:
            return Stats(
                queued=self.writes + len(self.uploader.jobs),
                spooled_bytes=sum(len(e.data or b"") for e in self.entries.values() if e.segment is not None)
                + self.backlog.bytes
                + self.blob_bytes,
                acked=self.acked,
                refused=self.refused,
                dropped=self.dropped,
                shortened=self.shortened,
                connected=self.writer.connected,
                last_error=self.last_error or self.writer.outbox.last_error or self.spool.last_error,
                defects=self.defects,
            )

    def pending(self) -> bool:
        """Whether anything waits."""
        with self._lock:
            return bool(self.entries or self.backlog or self.uploader.jobs or self.progress)

    def writes_wait(self) -> bool:
        """Whether any write is not settled."""
        with self._lock:
            return bool(self.entries or self.backlog)

    def noticed(self, error: BaseException, where: str = "") -> None:
        """A defect of this library, or a call that it does not understand: counted, said once, never raised."""
        self.defects += 1
        self.last_error = text_of(error)
        if where:
            self.say_once(f"{where}/{self.last_error}", "%s: %s; it is not reported", where, self.last_error)
        log.debug("a defect in stepwell", exc_info=error)

    def _install(self) -> None:
        """What the first use sets up."""
        if self._installed:
            return
        self._installed = True
        reference = weakref.ref(self)
        if not self._at_exit:
            self._at_exit = True
            atexit.register(at_exit, reference)
        _fork.exit_with_process(lambda: at_exit(reference))
        on_sigterm(self)

    # --- progress and signs of life ---------------------------------------------------------------------------

    def later(self, step: Step, due: float) -> None:
        """Have the progress of a step reported soon."""
        with self._lock:
            new = step not in self.progress
            full = new and len(self.progress) >= PROGRESS_STEPS
            if not full:
                self.progress[step] = due
        if full:
            # The writer is behind.
            step._emit_progress()
        elif new and not self._forking:
            self.writer.start()
            self.writer.wake()

    def no_progress(self, step: Step) -> None:
        """It has ended."""
        with self._lock:
            self.progress.pop(step, None)

    def emit_progress(self, now: float | None) -> None:
        """Of the steps whose time it is; None: of all."""
        with self._lock:
            if not self.progress:
                return
            due = [step for step, at in self.progress.items() if now is None or at <= now]
            for step in due:
                del self.progress[step]
        for step in due:
            step._emit_progress()

    def tick(self, now: float) -> None:
        """From the writer, now and then."""
        self.emit_progress(now)

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        with self._lock:
            times = list(self.progress.values())
            beat = self.beats.next_at()
        return min([*times, *([beat] if beat is not None else [])], default=None)

    def watch_over(self, run: Run) -> None:
        """A run is open here."""
        if self.settings.mode == "on":
            with self._lock:
                self.beats.add(run)

    def stop_watching(self, execution_id: str) -> None:
        """It is not any more."""
        with self._lock:
            self.beats.drop(execution_id)

    def heartbeat_due(self, now: float) -> bool:
        """Whether a run has to give a sign."""
        with self._lock:
            at = self.beats.next_at()
        return at is not None and at <= now

    def next_heartbeat(self, now: float) -> str | None:
        """Which one."""
        with self._lock:
            return self.beats.take(now)

    def beaten(self, sequence: int, execution_id: str) -> None:
        """A sign is on its way."""
        with self._lock:
            self.beats.sent(sequence, execution_id)

    def heard(self, sequence: int, cancel_requested: bool) -> None:
        """It was answered."""
        with self._lock:
            self.beats.heard(sequence, cancel_requested)

    # --- from the writer --------------------------------------------------------------------------------------

    def unread(self, inbox: Any) -> list[Entry]:
        """Writes that are only in files, when there is room for them in memory."""
        if not self.backlog or inbox:
            return []
        outbox = self.writer.outbox
        with self._lock:
            # Those that wait for their runs are not what there is to send.
            waiting = len(self.entries) > outbox.parked_writes
            if waiting and self.memory_bytes - outbox.parked_bytes > self.settings.memory_max_bytes // 2:
                return []
            entries = self.backlog.read(self)
            for entry in entries:
                self.entries[entry.sequence] = entry
                self._count(entry)
            if self.more_is_left and not self.backlog.taken:
                self.writer.rescue_at = 0.0
            return entries

    def take_over(self) -> bool:
        """Takes what processes that are gone have left here, or some of it. Whether there was any."""
        before = self.backlog.files
        self.more_is_left = False
        for found in abandoned(self.spool_dir, self.settings.server):
            with self._lock:
                self.backlog.take_over(found)
                jobs = []
                if self.spool.append_nothing() is not None:
                    jobs = _uploads.left_by(self.spool_dir, found.prefix, self.spool.name)
                for job in jobs:
                    self.blob_bytes += job.size
                    self._count_upload(job, 1)
                files = self.backlog.files
            for job in jobs:
                self.uploader.add(job)
            if files > TAKEN_FILES:
                self.more_is_left = True
                break
        return self.backlog.files > before

    def settled(self, entry: Entry) -> None:
        """A write is durable."""
        with self._lock:
            self.acked += 1 + entry.merged
            self.last_error = None
            self._forget(entry)

    def refused_entry(self, entry: Entry, failure: Failure) -> None:
        """A write will never be."""
        with self._lock:
            self.refused += 1 + entry.merged
            self._forget(entry)
        self._refusal(entry.kind, failure)

    def given_up(self, entry: Entry) -> None:
        """A write will never be, as there is no room for it, or what it says was in a file that is gone."""
        with self._lock:
            self.dropped += 1 + entry.merged
            self._forget(entry)
            self._say_dropped("too much waits for runs that the server does not know, or the spool was damaged")

    def merged(self, earlier: Entry, later: Entry) -> None:
        """A write goes with an earlier one from now on."""
        with self._lock:
            self.entries.pop(later.sequence, None)
            later.done = True
            self._count(later)
            self._count(earlier)

    def changed(self, entry: Entry) -> None:
        """A write takes more memory than before, or less."""
        with self._lock:
            self._count(entry)

    def _forget(self, entry: Entry) -> None:
        self.entries.pop(entry.sequence, None)
        self._count(entry)
        self.writes -= 1 + entry.merged
        if entry.kind == "create_execution" and self.creations.get(entry.execution_id) is entry:
            del self.creations[entry.execution_id]
        for segment, count in entry.files():
            self.backlog.settled(segment, self.spool, count)
        # An artifact may still wait for it.
        entry.data = entry._message = entry.segment = entry.others = None

    def _refusal(self, what: str, failure: Failure) -> None:
        reason = failure.reason or failure.code
        fields = "; ".join(f"{field}: {wrong}" for field, wrong in failure.fields)
        self.last_error = f"{reason}: {failure.message}"
        self.say_once(f"{what}/{reason}", "the server refused a %s: %s: %s %s", what, reason, failure.message, fields)

    def say_once(self, key: str, message: str, *values: object) -> None:
        """Once for each reason."""
        if key not in self._reasons and len(self._reasons) < 1000:
            self._reasons.add(key)
            log.warning(message, *values)

    # --- from the uploader ------------------------------------------------------------------------------------

    def uploaded(self, job: Upload) -> None:
        """An artifact is durable."""
        with self._lock:
            self.acked += 1
            self._free(job)

    def upload_refused(self, job: Upload, failure: Failure) -> None:
        """An artifact will never be."""
        with self._lock:
            self.refused += 1
            self._free(job)
        self._refusal("artifact", failure)

    def upload_lost(self, job: Upload, why: str) -> None:
        """What an artifact consists of is not there any more."""
        with self._lock:
            self._free(job)
            self._dropped(f"an artifact's file cannot be read ({why})")

    def upload_failed(self, failure: Failure) -> None:
        """For now."""
        self.last_error = f"{failure.reason or failure.code}: {failure.message}"

    def _free(self, job: Upload) -> None:
        self._count_upload(job, -1)
        if not isinstance(job.blob, bytes):
            self.blob_bytes -= job.size

    # --- forks ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def starting(self) -> Iterator[bool]:
        """Around the start of a thread: whether it may be started."""
        with self._lock:
            self.used_grpc = True
            yield not self._forking

    def before_fork(self) -> None:
        """gRPC must be quiet while a process forks, and no lock may be held by a thread that the child has not."""
        with self._lock:
            self._forking = True
        self.writer.park(FORK_SECONDS)
        self.uploader.park(FORK_SECONDS)
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._forking = False
        self._lock.release()
        if self.entries or self.backlog or self.beats.runs:
            self.writer.start()
        self.uploader.start()

    def after_fork_in_child(self) -> None:
        """Begin anew: what is queued is the parent's, and so is its spool."""
        self._lock = threading.RLock()
        for segment in self.spool.segments:
            segment.close()
        self._close_taken()
        self.backlog.close()
        self.acked = self.refused = self.dropped = self.shortened = self.defects = 0
        self.last_error = None
        attached = {**self.attached, **dict.fromkeys(self.open_runs.steps)}
        self._fresh()
        self.attached = attached
        self._forking = False
        self.used_grpc = False
        self._installed = False


def _remember(runs: dict[str, None], execution_id: str) -> None:
    """Those that were not heard of for the longest time are forgotten."""
    runs.pop(execution_id, None)
    runs[execution_id] = None
    if len(runs) > REMEMBERED:
        del runs[next(iter(runs))]

"""What waits to be sent, what was sent, and what an answer means: a state machine that knows no thread, no clock and no
network. `_writer` drives it.

Everything is sent in order. What is durable is forgotten. What failed for now stays, and once something has failed
for now nothing more is sent on the stream: it is ended, and a new one begins with the first write that was not
answered. What is refused for good is dropped and counted.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ._pb.ingest_service_pb2 import IngestRequest, IngestResponse
from ._status import Failure, of_status
from ._values import merge_struct

if TYPE_CHECKING:
    from ._spool import Segment

#: Between two attempts, doubling from the first to the last, with jitter.
FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 5.0
#: After the server said who we are is not enough, or that it has no such service.
PAUSE_SECONDS = 30.0
#: How long a write is kept that is about a run which the server does not know, as it was attached to here.
ATTACHED_SECONDS = 24 * 3600.0
FIRST_PARKED_SECONDS = 0.5
LAST_PARKED_SECONDS = 60.0
#: What the writes of such runs may take in memory, if nobody says otherwise.
PARKED_MAX_BYTES = 8 << 20
#: Writes that may be without an answer at a time.
IN_FLIGHT = 2000
#: Updates are merged up to this size.
MERGED_BYTES = 200_000
#: After so many streams in a row that ended strangely and without one answer, writes are sent one at a time, and
#: after so many more the one that is alone is taken to be the reason.
STRANGE_ENDS = 3

PAUSING = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})
#: The ordinary ways in which a stream ends early. Anything else may be because of what was sent.
ORDINARY = frozenset({"OK", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED"})


class Entry:
    """One write. What it says is kept as bytes alone: as a message it takes many times as much."""

    __slots__ = (
        "_message",
        "attached",
        "born",
        "cost",
        "data",
        "done",
        "execution_id",
        "kind",
        "merged",
        "offset",
        "others",
        "segment",
        "sequence",
        "update_key",
    )

    def __init__(
        self,
        sequence: int,
        data: bytes,
        execution_id: str,
        *,
        kind: str = "",
        update_key: str | None = None,
        attached: bool = False,
        born: float = 0.0,
        segment: Segment | None = None,
        offset: int = -1,
    ) -> None:
        self.sequence = sequence
        #: None after something was merged into it, and while it is in the spool alone.
        self.data: bytes | None = data
        self.execution_id = execution_id
        self.kind = kind
        #: Of which record this is an update, for updates that may be merged.
        self.update_key = update_key
        #: About a run that another process has created.
        self.attached = attached
        self.born = born
        #: Where it is in the spool.
        self.segment = segment
        self.offset = offset
        #: The files of those that were merged into it, and how many of them are in each.
        self.others: dict[Segment, int] | None = None
        #: How many those are.
        self.merged = 0
        self.done = False
        #: What it is counted with in memory; its owner's.
        self.cost = 0
        self._message: IngestRequest | None = None

    def message(self) -> IngestRequest:
        """What it says."""
        if self._message is not None:
            return self._message
        return IngestRequest.FromString(self.serialized() or b"")

    def merge(self, later: Entry) -> bool:
        """Takes a later update of the same record in, as the server would have merged one after the other."""
        message = self.message()
        if not merge_update(message, later.message()):
            return False
        self._message, self.data = message, None
        self.merged += 1 + later.merged
        self.offset = -1
        for segment, count in later.files():
            self.others = self.others or {}
            self.others[segment] = self.others.get(segment, 0) + count
        return True

    def files(self) -> list[tuple[Segment, int]]:
        """Where it is in the spool, and how often."""
        own = [(self.segment, 1)] if self.segment is not None else []
        return [*own, *self.others.items()] if self.others else own

    def unload(self) -> bool:
        """Leaves what it says in the spool alone, if it is there as it is."""
        if self.segment is None or self.offset < 0 or self._message is not None:
            return False
        self.data = None
        return True

    def serialized(self) -> bytes | None:
        """What goes over the wire; None: it was in the spool alone, and is not to be had from there any more."""
        if self.data is not None:
            return self.data
        if self._message is not None:
            self.data, self._message = self._message.SerializeToString(), None
            return self.data
        try:
            record = self.segment.record(self.offset) if self.segment is not None else b""
            message = IngestRequest.FromString(record)
        except Exception:
            return None
        # In a file of a process that is gone it has the number that it had there. It is not kept: many may be under way.
        message.sequence = self.sequence
        return message.SerializeToString()


class Owner(Protocol):
    """Who wants to know what became of a write."""

    def settled(self, entry: Entry) -> None:
        """It is durable."""

    def refused_entry(self, entry: Entry, failure: Failure) -> None:
        """It will never be."""

    def given_up(self, entry: Entry) -> None:
        """It will never be, as there is no room to wait any longer."""

    def merged(self, earlier: Entry, later: Entry) -> None:
        """The later one goes with the earlier one from now on."""

    def changed(self, entry: Entry) -> None:
        """It takes more memory than before, or less."""


@dataclasses.dataclass
class Parked:
    """Writes of a run that the server does not know yet."""

    entries: list[Entry]
    retry_at: float
    delay: float
    #: One of them is on its way, to find out whether the run is there now.
    probing: bool = False


class Outbox:
    """Not safe for threads: its owner has a lock."""

    def __init__(
        self, owner: Owner, jitter: Callable[[], float] = random.random, parked_max_bytes: int = PARKED_MAX_BYTES
    ) -> None:
        self.owner = owner
        self.jitter = jitter
        self.parked_max_bytes = parked_max_bytes
        self.unsent: deque[Entry] = deque()
        self.sent: dict[int, Entry] = {}
        self.parked: dict[str, Parked] = {}
        #: How many those are, and what they cost in memory.
        self.parked_writes = 0
        self.parked_bytes = 0
        self.updates: dict[str, Entry] = {}
        #: No stream before this.
        self.retry_at = 0.0
        self.backoff = FIRST_BACKOFF_SECONDS
        self.open = False
        #: Something failed for now: nothing more goes on this stream.
        self.draining = False
        self.answers = 0
        self.strange_ends = 0
        self.window = IN_FLIGHT
        self.last_error: str | None = None

    # --- what comes in ----------------------------------------------------------------------------------------

    def offer(self, entry: Entry) -> None:
        """A new write."""
        parked = self.parked.get(entry.execution_id)
        if parked is not None:
            self._put_with(parked, entry)
            self._bound_parked()
            return
        key = entry.update_key
        if key is not None:
            earlier = self.updates.get(key)
            if earlier is not None and earlier.merge(entry):
                self.owner.merged(earlier, entry)
                return
            self.updates[key] = entry
        elif self.updates:
            self._close_updates(entry)
        self.unsent.append(entry)

    def _close_updates(self, entry: Entry) -> None:
        """No update that comes later may be merged into one that comes before this write of the same record."""
        write = entry.kind
        if write == "start_step" or write == "finish_step":
            self.updates.pop(f"{entry.execution_id}/{getattr(entry.message(), write).step_key}", None)
        elif write == "finish_execution":
            self.updates.pop(entry.execution_id, None)

    def wants_stream(self, now: float) -> bool:
        """Whether there is something to send, and it is time."""
        self._unpark(now)
        return not self.open and bool(self.unsent) and now >= self.retry_at

    def deadline(self) -> float | None:
        """When to look again if nothing happens before."""
        times = [parked.retry_at for parked in self.parked.values() if not parked.probing]
        if self.unsent and not self.open:
            times.append(self.retry_at)
        return min(times) if times else None

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self.unsent and not self.sent

    # --- the stream -------------------------------------------------------------------------------------------

    def stream_opened(self) -> None:
        """A stream begins."""
        self.open = True
        self.draining = False
        self.answers = 0

    def take(self, now: float) -> Entry | None:
        """The next one to send; None: nothing for now."""
        self._unpark(now)
        if self.draining or not self.unsent or len(self.sent) >= self.window:
            return None
        entry = self.unsent.popleft()
        if entry.update_key is not None and self.updates.get(entry.update_key) is entry:
            del self.updates[entry.update_key]
        self.sent[entry.sequence] = entry
        return entry

    def answered(self, response: IngestResponse, now: float) -> None:
        """The server has answered one."""
        entry = self.sent.get(response.sequence)
        if entry is None:
            return
        self.answers += 1
        self.strange_ends = 0
        if response.WhichOneof("result") != "error":
            self.backoff = FIRST_BACKOFF_SECONDS
            self.window = IN_FLIGHT
            self.last_error = None
            del self.sent[entry.sequence]
            self._done(entry)
            return
        self._failed(entry, of_status(response.error), now)

    def stream_ended(self, failure: Failure, now: float) -> None:
        """The stream is over; `failure` has the code OK if the client had ended it."""
        self.open = False
        if failure.code not in ("OK", "CANCELLED"):
            self.last_error = f"{failure.code}: {failure.message}"
        if failure.reason == "BAD_MESSAGE":
            self._bad_message(failure)
        elif failure.code in PAUSING:
            self._wait(PAUSE_SECONDS, now)
        elif failure.code not in ORDINARY and not self.answers:
            self._ended_strangely(failure)
        if failure.code != "OK" and failure.code not in PAUSING:
            self._back_off(failure.retry_after, now)
        self._send_again()
        self.draining = False

    # --- what an answer means ---------------------------------------------------------------------------------

    def _failed(self, entry: Entry, failure: Failure, now: float) -> None:
        for_now = failure.retry_after is not None or failure.reason in ("EARLIER_WRITE_FAILED", "CONTENTION")
        if failure.code in PAUSING:
            self.last_error = f"{failure.code}: {failure.message}"
            self.draining = True
            self._wait(PAUSE_SECONDS, now)
        elif for_now or failure.code == "UNAVAILABLE":
            if failure.reason != "EARLIER_WRITE_FAILED":
                self.last_error = f"{failure.reason or failure.code}: {failure.message}"
            if not self.draining:
                self.draining = True
                self._back_off(failure.retry_after, now)
        elif failure.reason == "EXECUTION_NOT_FOUND" and self._may_come(entry, now):
            del self.sent[entry.sequence]
            self._park(entry, now)
        elif failure.reason == "STEP_NOT_FOUND" and self._start_waits(entry):
            # The run was made between its start and this: both go once more.
            del self.sent[entry.sequence]
            self._put_with(self.parked[entry.execution_id], entry)
            self._known(entry)
        else:
            del self.sent[entry.sequence]
            self._refuse(entry, failure)

    def unreadable(self, entry: Entry) -> None:
        """What it says was in the spool alone, and is not there any more."""
        self.sent.pop(entry.sequence, None)
        entry.done = True
        self.owner.given_up(entry)

    def _may_come(self, entry: Entry, now: float) -> bool:
        """Whether the run that the server does not know may still be made: by another process, or by a write that is on
        its way. Points of metrics are not held up by one that has failed for now, so they may get ahead of it."""
        if entry.attached:
            return now - entry.born < ATTACHED_SECONDS
        return any(
            one.kind == "create_execution" and one.execution_id == entry.execution_id
            for one in (*self.sent.values(), *self.unsent)
        )

    def _start_waits(self, entry: Entry) -> bool:
        """Whether a step was begun before this one and waits for its run."""
        parked = self.parked.get(entry.execution_id)
        return parked is not None and any(
            one.kind == "start_step" and one.sequence < entry.sequence for one in parked.entries
        )

    def _bad_message(self, failure: Failure) -> None:
        try:
            last = int(failure.metadata.get("last_sequence", "-1"))
        except ValueError:
            last = -1
        order = list(self.sent)
        at = order.index(last) + 1 if last in self.sent else 0
        if at < len(order):
            self._refuse(self.sent.pop(order[at]), failure)

    def _ended_strangely(self, failure: Failure) -> None:
        self.strange_ends += 1
        if self.strange_ends < STRANGE_ENDS:
            return
        if self.window == 1 and len(self.sent) == 1:
            self._refuse(self.sent.popitem()[1], failure)
            self.window = IN_FLIGHT
        else:
            self.window = 1
        self.strange_ends = 0

    def _wait(self, seconds: float, now: float) -> None:
        self.retry_at = max(self.retry_at, now + seconds)

    def _back_off(self, asked: float | None, now: float) -> None:
        """As long as the server says, at least; with jitter, so that not all clients come back at once."""
        delay = self.backoff * (0.5 + self.jitter() / 2)
        self.backoff = min(self.backoff * 2, LAST_BACKOFF_SECONDS)
        self._wait(max(asked or 0.0, delay), now)

    def _send_again(self) -> None:
        """What was sent and not settled is the first to be sent next, in the order in which it was made."""
        if self.sent:
            self.unsent.extendleft(reversed(self.sent.values()))
            self.sent.clear()

    def _park(self, entry: Entry, now: float) -> None:
        execution = entry.execution_id
        parked = self.parked.get(execution)
        if parked is None:
            parked = self.parked[execution] = Parked([], now + FIRST_PARKED_SECONDS, FIRST_PARKED_SECONDS)
            waiting = [one for one in self.unsent if one.execution_id == execution]
            if waiting:
                self.unsent = deque(one for one in self.unsent if one.execution_id != execution)
                for one in waiting:
                    self._put_with(parked, one)
                self.updates = {key: one for key, one in self.updates.items() if one.execution_id != execution}
        parked.probing = False
        self._put_with(parked, entry)
        parked.entries.sort(key=lambda one: one.sequence)
        self._bound_parked()

    def _put_with(self, parked: Parked, entry: Entry) -> None:
        """It may be long until it is sent: what it says can wait in the spool."""
        if entry.unload():
            self.owner.changed(entry)
        parked.entries.append(entry)
        self.parked_writes += 1
        self.parked_bytes += entry.cost

    def _taken_from(self, entries: list[Entry]) -> None:
        self.parked_writes -= len(entries)
        self.parked_bytes -= sum(entry.cost for entry in entries)

    def _bound_parked(self) -> None:
        """Those that wait longest go when there is no room for more."""
        for execution, parked in list(self.parked.items()):
            if self.parked_bytes <= self.parked_max_bytes:
                break
            gone, parked.entries = parked.entries, []
            self._taken_from(gone)
            if not parked.probing:
                del self.parked[execution]
            for entry in gone:
                entry.done = True
                self.owner.given_up(entry)

    def _unpark(self, now: float) -> None:
        """One write of each run is tried again when it is time; the others wait for what becomes of it."""
        for parked in self.parked.values():
            if now >= parked.retry_at and not parked.probing and parked.entries:
                parked.probing = True
                parked.delay = min(parked.delay * 2, LAST_PARKED_SECONDS)
                parked.retry_at = now + parked.delay
                first = parked.entries.pop(0)
                self._taken_from([first])
                self.unsent.append(first)

    def _known(self, entry: Entry) -> None:
        """The server knows the run: what waits for it can go."""
        parked = self.parked.pop(entry.execution_id, None)
        if parked is not None:
            self._taken_from(parked.entries)
            parked.entries.sort(key=lambda one: one.sequence)
            self.unsent.extend(parked.entries)

    def _done(self, entry: Entry) -> None:
        entry.done = True
        if self.parked:
            self._known(entry)
        self.owner.settled(entry)

    def _refuse(self, entry: Entry, failure: Failure) -> None:
        entry.done = True
        if self.parked:
            self._known(entry)
        self.owner.refused_entry(entry, failure)


def merge_update(into: IngestRequest, later: IngestRequest) -> bool:
    """Merges two updates of one record, as the server would have merged one after the other."""
    kind = later.WhichOneof("write")
    if kind != into.WhichOneof("write") or into.ByteSize() + later.ByteSize() > MERGED_BYTES:
        return False
    if kind == "update_step":
        a, b = into.update_step, later.update_step
        if b.HasField("progress"):
            a.progress = b.progress
        if b.HasField("progress_message"):
            a.progress_message = b.progress_message
        if b.HasField("output"):
            if a.output.HasField("struct_value") and b.output.HasField("struct_value"):
                merge_struct(a.output.struct_value, b.output.struct_value)
            else:
                a.output.CopyFrom(b.output)
        if b.HasField("metadata"):
            merge_struct(a.metadata, b.metadata)
        a.update_sequence = max(a.update_sequence, b.update_sequence)
        return True
    if kind == "update_execution":
        c, d = into.update_execution, later.update_execution
        if d.HasField("metadata"):
            merge_struct(c.metadata, d.metadata)
        if d.HasField("pinned"):
            c.pinned = d.pinned
        c.update_sequence = max(c.update_sequence, d.update_sequence)
        return True
    return False

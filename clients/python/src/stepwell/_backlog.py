"""What is to be sent and is only in files: what did not fit into memory, and what processes that are gone have left."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from ._messages import about, process_died
from ._open_runs import OpenRuns, read_note
from ._outbox import Entry
from ._pb.ingest_service_pb2 import IngestRequest
from ._spool import LENGTH, Abandoned, Segment, Spool

if TYPE_CHECKING:
    from ._client import Client

log = logging.getLogger("stepwell")

#: How much is read at a time.
READ_BYTES = 1 << 20


class Taken:
    """The files of a process that is gone, and how far they are read."""

    def __init__(self, found: Abandoned) -> None:
        self.found = found
        self.open_runs = OpenRuns()
        self.at = 0
        self.offset = 0
        for segment in found.segments:
            # One for the reading, so that it is not removed before it was read.
            segment.pending = 1


class Stretch:
    """Records of one file of this process that follow each other, from the first unread one on."""

    def __init__(self, segment: Segment, begin: int) -> None:
        self.segment, self.at, self.end = segment, begin, begin
        self.records = 0


class Backlog:
    """Not safe for threads: its owner has a lock."""

    def __init__(self) -> None:
        #: Of this process, in order: what is in files, and in between what the disk did not take.
        self.own: deque[Stretch | Entry] = deque()
        self.taken: deque[Taken] = deque()
        self.records = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self.own or self.taken)

    def waits(self, taken_too: bool) -> bool:
        """Whether something of this process, or with `taken_too` of any, is still in here."""
        return bool(self.own or (taken_too and self.taken))

    @property
    def files(self) -> int:
        """How many files of processes that are gone are open."""
        return sum(len(taken.found.segments) for taken in self.taken)

    def holds_back(self, entry: Entry, size: int, memory_full: bool) -> bool:
        """Whether a write that was just made has to wait for others in files. If it is in a file itself it is read from
        there when its turn comes, and not held in memory."""
        segment = entry.segment
        if not self.own and (segment is None or not memory_full):
            return False
        if segment is None:
            self.own.append(entry)
        else:
            last = self.own[-1] if self.own else None
            if not isinstance(last, Stretch) or last.segment is not segment:
                last = Stretch(segment, entry.offset)
                self.own.append(last)
            last.end = segment.size
            last.records += 1
        self.records += 1
        self.bytes += size
        return True

    def take_over(self, found: Abandoned) -> None:
        """To be sent as well."""
        self.taken.append(Taken(found))
        self.bytes += sum(segment.size for segment in found.segments)

    def settled(self, segment: Segment, spool: Spool, count: int = 1) -> None:
        """So many records of a file need to be kept no longer."""
        if segment in spool.segments:
            spool.settled(segment, count)
            return
        segment.pending -= count
        if segment.pending <= 0:
            segment.remove()

    def close(self) -> None:
        """Lets go of the files; what is in them is for the next process."""
        for taken in self.taken:
            for segment in taken.found.segments:
                segment.close()
        self.__init__()  # type: ignore[misc]

    def read(self, client: Client) -> list[Entry]:
        """The next ones."""
        if not self.own:
            return self._read_taken(client)
        first = self.own[0]
        entries = self._read_stretch(client, first) if isinstance(first, Stretch) else self._read_memory()
        self.records -= len(entries)
        self.bytes = max(0, self.bytes - sum(len(entry.data or b"") for entry in entries))
        return entries

    def _read_memory(self) -> list[Entry]:
        entries: list[Entry] = []
        while self.own and isinstance(self.own[0], Entry):
            entries.append(self.own[0])
            self.own.popleft()
        return entries

    def _read_stretch(self, client: Client, stretch: Stretch) -> list[Entry]:
        segment, begin = stretch.segment, stretch.at
        records, stretch.at = segment.read(begin, min(READ_BYTES, stretch.end - begin))
        entries = []
        for record in records:
            entry = _entry(record, segment, begin)
            begin += LENGTH.size + len(record)
            if entry is not None:
                entry.attached = entry.execution_id in client.attached
                entries.append(entry)
        stretch.records -= len(entries)
        if stretch.at >= stretch.end or not records:
            self.own.popleft()
            if stretch.records > 0:
                # Somebody has cut the file.
                self.records -= stretch.records
                client.lost(stretch.records, "the spool was damaged")
                self.settled(segment, client.spool, stretch.records)
        return entries

    def _read_taken(self, client: Client) -> list[Entry]:
        if not self.taken:
            return []
        taken = self.taken[0]
        segments = taken.found.segments
        segment = segments[taken.at]
        at = taken.offset
        records, offset = segment.read(at, READ_BYTES)
        self.bytes = max(0, self.bytes - (offset - taken.offset))
        taken.offset = offset
        entries = []
        for record in records:
            begin, at = at, at + LENGTH.size + len(record)
            content = read_note(record)
            if content is not None:
                taken.open_runs.restore(content)
                continue
            entry = _entry(record, segment, begin)
            if entry is None:
                continue
            message = entry.message()
            # Only for a run that it has made itself is it sure that the server has to know it.
            made = entry.execution_id in taken.open_runs.steps
            taken.open_runs.observe(message)
            entry.attached = not made and entry.kind != "create_execution"
            client.sequence += 1
            entry.sequence = message.sequence = client.sequence
            entry.data = message.SerializeToString()
            segment.pending += 1
            client.writes += 1
            entries.append(entry)
        if offset >= segment.size:
            taken.at += 1
            taken.offset = 0
            if taken.at == len(segments):
                self.taken.popleft()
                self._end_what_it_left(client, taken)
                for one in segments:
                    self.settled(one, client.spool)
        return entries

    def _end_what_it_left(self, client: Client, taken: Taken) -> None:
        """The process is gone: what it had begun and nobody else goes on with has failed when it last wrote."""
        when = dt.datetime.fromtimestamp(taken.found.died_at, dt.timezone.utc)
        for run, steps in taken.open_runs.orphans():
            for request, kind in process_died(run, steps, when):
                client.add(request, kind, run)


def _entry(record: bytes, segment: Segment, offset: int) -> Entry | None:
    if read_note(record) is not None:
        return None
    try:
        request = IngestRequest.FromString(record)
    except Exception:
        log.warning("a record of the spool cannot be read and is left out")
        return None
    kind, execution_id, update_key = about(request)
    if not kind:
        return None
    return Entry(
        request.sequence,
        record,
        execution_id,
        kind=kind,
        update_key=update_key,
        born=time.monotonic(),
        segment=segment,
        offset=offset,
    )

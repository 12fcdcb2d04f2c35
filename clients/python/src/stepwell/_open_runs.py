"""Which runs and steps this process has begun and not ended: what the next process has to end if this one dies."""

from __future__ import annotations

import json
from typing import Any

from ._pb.ingest_service_pb2 import IngestRequest

#: A record of a spool that is not a write but a note of this library's own: an `IngestRequest` in which field 1000 has a
#: JSON text, and nothing else. Who does not know the field reads a request without a write, and skips it.
NOTE_TAG = b"\xc2\x3e"


def note(content: dict[str, Any]) -> bytes:
    """The record for `content`."""
    text = json.dumps(content, separators=(",", ":")).encode()
    size, length = len(text), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return NOTE_TAG + bytes(length) + text


def read_note(record: bytes) -> dict[str, Any] | None:
    """The content, if the record is a note."""
    if not record.startswith(NOTE_TAG):
        return None
    start = len(NOTE_TAG)
    while start < len(record) and record[start] & 0x80:
        start += 1
    try:
        content = json.loads(record[start + 1 :])
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


#: Runs and steps that are remembered, at most. What a process has begun before that and never ended is left to the
#: heartbeat.
MOST = 20_000


class OpenRuns:
    """Not safe for threads: its owner has a lock."""

    def __init__(self, most: int = MOST) -> None:
        #: The open steps of each open run, the oldest first.
        self.steps: dict[str, dict[str, None]] = {}
        self.shared: set[str] = set()
        self.most = most
        self.count = 0

    def _add_run(self, run: str) -> dict[str, None]:
        steps = self.steps.get(run)
        if steps is None:
            steps = self.steps[run] = {}
            self.count += 1
            self._bound()
        return steps

    def _add_step(self, steps: dict[str, None], step: str) -> None:
        if step not in steps:
            steps[step] = None
            self.count += 1
            self._bound()

    def _bound(self) -> None:
        while self.count > self.most:
            run, steps = next(iter(self.steps.items()))
            if steps:
                del steps[next(iter(steps))]
                self.count -= 1
            else:
                self.ended(run)

    def observe(self, request: IngestRequest) -> None:
        """A write was made."""
        kind = request.WhichOneof("write")
        if kind == "start_step":
            steps = self.steps.get(request.start_step.execution_id)
            if steps is not None and request.start_step.step_key:
                self._add_step(steps, request.start_step.step_key)
        elif kind == "finish_step":
            steps = self.steps.get(request.finish_step.execution_id)
            if steps is not None and request.finish_step.step_key in steps:
                del steps[request.finish_step.step_key]
                self.count -= 1
        elif kind == "create_execution":
            self._add_run(request.create_execution.execution_id)
        elif kind == "finish_execution":
            self.ended(request.finish_execution.execution_id)

    def ended(self, execution_id: str) -> None:
        """The run is over, or someone else's to end."""
        steps = self.steps.pop(execution_id, None)
        if steps is not None:
            self.count -= 1 + len(steps)
        self.shared.discard(execution_id)

    def share(self, execution_id: str) -> None:
        """Another process goes on with this run, so this one's death is not its end."""
        if execution_id in self.steps:
            self.shared.add(execution_id)

    def as_note(self) -> dict[str, Any]:
        """To be read by `restore`."""
        return {
            "open": {run: sorted(steps) for run, steps in self.steps.items()},
            "shared": sorted(self.shared),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """From what `as_note` gave, or a part of it."""
        runs = content.get("open")
        if isinstance(runs, dict):
            for run, steps in runs.items():
                open_steps = self._add_run(str(run))
                for step in steps:
                    self._add_step(open_steps, str(step))
        for run in content.get("shared") or ():
            self.share(str(run))

    def orphans(self) -> list[tuple[str, list[str]]]:
        """What nobody else can end: runs with their running steps."""
        return [(run, sorted(steps)) for run, steps in self.steps.items() if run not in self.shared]

    def __bool__(self) -> bool:
        return bool(self.steps)

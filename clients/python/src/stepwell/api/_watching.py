"""What a watch remembers between two streams; the same for threads and for asyncio."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from .._status import Failure
from ..errors import of_failure
from . import _records
from ._records import Change, Event, Execution

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 5.0
#: Codes after which the same stream is opened again.
AGAIN = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN", "INTERNAL"})
#: Records whose latest revision is remembered, at most.
REMEMBERED = 200_000


class Watching:
    """One watch, over as many streams as it takes."""

    def __init__(self, execution_id: str | None, token: str | None, jitter: Callable[[], float] = random.random) -> None:
        self.execution_id = execution_id
        self.token = token or None
        self.jitter = jitter
        self.backoff = FIRST_BACKOFF_SECONDS
        self.revisions: dict[tuple[str, ...], int] = {}
        self.last: Execution | None = None
        self.delivered = False

    def events(self, message: Any) -> list[Event]:
        """What a message of the stream means for who watches."""
        self.backoff = FIRST_BACKOFF_SECONDS
        if message.resume_token:
            self.token = message.resume_token
        kind = message.WhichOneof("event")
        made: Event | None = None
        if kind == "execution":
            record = _records.execution(message.execution.execution)
            change = _records.CHANGE.get(message.execution.change_type)
            if self._is_new(("execution", record.execution_id), record.revision, change):
                self.last = record
                made = Event("execution", change, record, self.token)
        elif kind == "step":
            step = _records.step(message.step.step)
            change = _records.CHANGE.get(message.step.change_type)
            if self._is_new(("step", step.execution_id, str(step.step_id)), step.revision, change):
                made = Event("step", change, step, self.token)
        elif kind == "artifact":
            change = _records.CHANGE.get(message.artifact.change_type)
            made = Event("artifact", change, _records.artifact(message.artifact.artifact), self.token)
        elif kind == "metrics":
            made = Event("metrics", None, _records.points(message.metrics, self.execution_id or ""), self.token)
        elif kind == "snapshot_complete":
            made = Event("live", None, self.last, self.token)
        if made is None:
            return []
        self.delivered = True
        return [made]

    def _is_new(self, key: tuple[str, ...], revision: int, change: Change | None) -> bool:
        """Only what is older than seen is dropped. The same revision again is what another program wrote."""
        if change is Change.DELETED:
            self.revisions.pop(key, None)
            return True
        if revision < self.revisions.get(key, 0):
            return False
        if len(self.revisions) >= REMEMBERED and key not in self.revisions:
            self.revisions.pop(next(iter(self.revisions)))
        self.revisions[key] = revision
        return True

    def again(self, failure: Failure) -> tuple[float, list[Event]]:
        """The stream broke: how long to wait before the next, and what to say. Raises if there is no use in it."""
        if failure.reason == "RESUME_TOKEN_EXPIRED":
            return 0.0, self._reset()
        if failure.code not in AGAIN and failure.retry_after is None:
            raise of_failure(failure)
        delay = max(failure.retry_after or 0.0, self.backoff * (0.5 + self.jitter() / 2))
        self.backoff = min(self.backoff * 2, LAST_BACKOFF_SECONDS)
        # Without a token the next stream begins with the current state again.
        return delay, self._reset() if self.token is None and self.delivered else []

    def _reset(self) -> list[Event]:
        self.token = None
        self.revisions.clear()
        return [Event("reset", None, self.last, None)]

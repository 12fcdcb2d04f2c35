"""Signs of life of the runs that are open in this process, and what the server answers: whether to stop."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._run import Run

#: How soon a request to cancel is noticed, at the latest.
LONGEST_SECONDS = 5.0


class Beats:
    """Not safe for threads: its owner has a lock. A run that nobody holds any more is forgotten."""

    def __init__(self, timeout: float | None) -> None:
        self.interval = min(LONGEST_SECONDS, timeout / 4) if timeout else LONGEST_SECONDS
        #: In the order in which they are due, as all have the same interval.
        self.runs: OrderedDict[str, tuple[weakref.ref[Run], float]] = OrderedDict()
        self.under_way: dict[int, str] = {}
        #: Runs that nobody holds any more. The collector of garbage appends to it, whatever this thread is in.
        self.gone: deque[str] = deque()

    def add(self, run: Run) -> None:
        """A run is open."""
        self._forget_gone()
        self.runs.pop(run.id, None)
        execution, gone = run.id, self.gone
        self.runs[execution] = (weakref.ref(run, lambda _: gone.append(execution)), time.monotonic() + self.interval)

    def _forget_gone(self) -> None:
        while self.gone:
            execution = self.gone.popleft()
            entry = self.runs.get(execution)
            if entry is not None and entry[0]() is None:
                del self.runs[execution]

    def drop(self, execution_id: str) -> None:
        """A run has ended."""
        self.runs.pop(execution_id, None)

    def next_at(self) -> float | None:
        """When the next one is due."""
        self._forget_gone()
        first = next(iter(self.runs.values()), None)
        return first[1] if first is not None else None

    def take(self, now: float) -> str | None:
        """A run that has to give a sign now."""
        self._forget_gone()
        first = next(iter(self.runs.items()), None)
        if first is None or first[1][1] > now:
            return None
        execution, (reference, _) = first
        self.runs[execution] = (reference, now + self.interval)
        self.runs.move_to_end(execution)
        return execution

    def sent(self, sequence: int, execution_id: str) -> None:
        """A sign is on its way."""
        if len(self.under_way) > 1000:
            self.under_way.clear()
        self.under_way[sequence] = execution_id

    def heard(self, sequence: int, cancel_requested: bool) -> None:
        """It was answered."""
        execution = self.under_way.pop(sequence, None)
        entry = self.runs.get(execution) if execution else None
        run = entry[0]() if entry else None
        if run is not None and cancel_requested:
            run._cancel_requested = True

"""The log of a run as artifacts: `logging.getLogger().addHandler(RunLogHandler())`.

What is logged inside a run is collected and becomes an artifact named "log" of type "log", in pieces: one is uploaded
when it is large or old enough, the last one when the run ends. `metadata.part` numbers them.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref

from .. import _context
from .._run import Run


class _Piece:
    """What a run has logged since its last piece."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.size = 0
        self.since = time.monotonic()
        self.part = 0


class RunLogHandler(logging.Handler):
    """Collects what is logged inside a run. Outside of one it does nothing.

    Args:
        level: The least that is collected.
        piece_bytes: A piece is uploaded when it is this large,
        piece_seconds: or when something is logged and it is this old.
    """

    def __init__(self, level: int = logging.NOTSET, *, piece_bytes: int = 256 << 10, piece_seconds: float = 10.0) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.piece_bytes, self.piece_seconds = piece_bytes, piece_seconds
        self._pieces: weakref.WeakKeyDictionary[Run, _Piece] = weakref.WeakKeyDictionary()
        self._busy = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        run = _context.run_var.get()
        if not run or getattr(self._busy, "now", False) or record.name == "stepwell":
            return
        self._busy.now = True
        try:
            piece = self._pieces.get(run)
            if piece is None:
                piece = self._pieces[run] = _Piece()
                reference = weakref.ref(run)
                run._before_end.append(lambda: self._upload(reference()))
            line = self.format(record) + "\n"
            if not piece.lines:
                piece.since = time.monotonic()
            piece.lines.append(line)
            piece.size += len(line)
            if piece.size >= self.piece_bytes or time.monotonic() - piece.since >= self.piece_seconds:
                self._upload(run)
        except Exception:
            self.handleError(record)
        finally:
            self._busy.now = False

    def _upload(self, run: Run | None) -> None:
        if run is None:
            return
        with self.lock if self.lock is not None else threading.Lock():
            piece = self._pieces.get(run)
            if piece is None or not piece.lines:
                return
            text, piece.lines, piece.size = "".join(piece.lines), [], 0
            piece.part += 1
            part = piece.part
        run.artifact("log", text, type="log", mime_type="text/plain", metadata={"part": part})

    def flush(self) -> None:
        """Uploads what has been collected of all runs."""
        for run in list(self._pieces):
            self._upload(run)

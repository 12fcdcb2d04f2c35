"""What `stepwell.Api` raises, and what ends a run as cancelled."""

from __future__ import annotations

from ._status import Failure


class Error(Exception):
    """A call failed.

    `code` is the canonical name, such as "NOT_FOUND"; `reason` is stable and made for comparing, such as
    "EXECUTION_NOT_FOUND"; `retry_after` is in seconds, where the server says when to try again; `fields` are pairs of a
    field and what is wrong with it.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message or failure.code)
        self.code = failure.code
        self.reason = failure.reason
        self.message = failure.message
        self.retry_after = failure.retry_after
        self.fields = failure.fields
        self.metadata = dict(failure.metadata)

    def __str__(self) -> str:
        name = self.reason or self.code
        return f"{name}: {self.message}" if self.message else name


class NotFound(Error):
    """There is no such record."""


class WaitTimeout(Error, TimeoutError):
    """`wait` gave up before the run had ended."""


class Cancelled(Exception):
    """Raised by `Run.raise_if_cancelled`; a run that it leaves ends as CANCELLED."""


def of_failure(failure: Failure) -> Error:
    """The exception for a failure."""
    return NotFound(failure) if failure.code == "NOT_FOUND" else Error(failure)

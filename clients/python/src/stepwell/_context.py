"""Which run and step the code is in: context variables, so that tasks and threads each have their own."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from ._run import Run
    from ._step import Step

P = ParamSpec("P")
R = TypeVar("R")

run_var: contextvars.ContextVar[Run | None] = contextvars.ContextVar("stepwell_run", default=None)
step_var: contextvars.ContextVar[Step | None] = contextvars.ContextVar("stepwell_step", default=None)


def restore(var: contextvars.ContextVar[R | None], token: contextvars.Token[R | None]) -> None:
    """Also where the block is left in another context than it was entered in, as a generator may be."""
    try:
        var.reset(token)
    except ValueError:
        old = token.old_value
        var.set(None if old is contextvars.Token.MISSING else old)


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called in a thread: it is in the run and step in which `bind` was called.

    >>> pool.submit(stepwell.bind(work), item)
    """
    context = contextvars.copy_context()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        # A context can be entered once at a time, and the function may run in several threads at once.
        return context.copy().run(function, *args, **kwargs)

    return bound

"""For callbacks that other libraries call: nothing raises into them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., None])


def safely(callback: F) -> F:
    """Whatever goes wrong in it is counted and swallowed."""

    @functools.wraps(callback)
    def safe(*args: object, **kwargs: object) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:
            from .._reporting import client

            client().noticed(error)

    return cast(F, safe)

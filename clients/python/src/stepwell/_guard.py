"""Nothing raises into the app."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., None])


def guarded(method: F) -> F:
    """A method that reports something: whatever goes wrong in it is counted and swallowed."""

    @functools.wraps(method)
    def safe(self: Any, /, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._noticed(error, f"{type(self).__name__.removesuffix('Maker')}.{method.__name__.removeprefix('_')}")

    return cast(F, safe)


def quietly(function: Callable[[], Any], default: Any = None) -> Any:
    """The result, or `default`: for functions that the app has given us."""
    try:
        return function()
    except Exception:
        return default

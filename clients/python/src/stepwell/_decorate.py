"""`@run` and `@step` on functions, coroutines, generators and async generators."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any

from . import _context
from ._run import Run
from ._step import UNSET, Step

#: Items of a generator that are kept as its output, and what they may take.
KEPT_ITEMS = 10_000
KEPT_BYTES = 32 << 20

Backoff = float | Callable[[int], float]


def decorate_run(function: Callable[..., Any], make: Callable[[], Run]) -> Callable[..., Any]:
    """Each call is a run of its own."""
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, lambda args, kwargs: _RunInPieces(make()))
    if inspect.isgeneratorfunction(function):
        return _generator(function, lambda args, kwargs: _RunInPieces(make()))
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def in_async_run(*args: Any, **kwargs: Any) -> Any:
            async with make():
                return await function(*args, **kwargs)

        return in_async_run

    @functools.wraps(function)
    def in_run(*args: Any, **kwargs: Any) -> Any:
        with make():
            return function(*args, **kwargs)

    return in_run


def decorate_step(
    function: Callable[..., Any],
    make: Callable[[Any], Step],
    retries: int,
    backoff: Backoff,
    retry_on: tuple[type[BaseException], ...],
) -> Callable[..., Any]:
    """Each call is a step of its own: its arguments are the input, its result is the output."""
    begin = _beginner(function, make)
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, lambda args, kwargs: _StepInPieces(begin(args, kwargs)))
    if inspect.isgeneratorfunction(function):
        return _generator(function, lambda args, kwargs: _StepInPieces(begin(args, kwargs)))
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def in_async_step(*args: Any, **kwargs: Any) -> Any:
            step = begin(args, kwargs)
            while True:
                error, result = None, None
                step.__enter__()
                try:
                    result = await function(*args, **kwargs)
                    return result
                except BaseException as caught:
                    error = caught
                    if not (step.attempt <= retries and isinstance(caught, retry_on)):
                        raise
                finally:
                    step._leave()
                    step._end(error, UNSET if error is not None else result)
                await asyncio.sleep(_pause(backoff, step.attempt))
                step = step.retry()

        return in_async_step

    @functools.wraps(function)
    def in_step(*args: Any, **kwargs: Any) -> Any:
        step = begin(args, kwargs)
        while True:
            error, result = None, None
            step.__enter__()
            try:
                result = function(*args, **kwargs)
                return result
            except BaseException as caught:
                error = caught
                if not (step.attempt <= retries and isinstance(caught, retry_on)):
                    raise
            finally:
                step._leave()
                step._end(error, UNSET if error is not None else result)
            time.sleep(_pause(backoff, step.attempt))
            step = step.retry()

    return in_step


def _pause(backoff: Backoff, attempt: int) -> float:
    seconds = backoff(attempt) if callable(backoff) else backoff * 2 ** (attempt - 1)
    return max(0.0, float(seconds))


def _beginner(
    function: Callable[..., Any], make: Callable[[Any], Step]
) -> Callable[[tuple[Any, ...], dict[str, Any]], Step]:
    """Makes the step of a call, with the arguments by their names."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    parameters = list(signature.parameters) if signature else []
    bound_to = parameters[0] if parameters and parameters[0] in ("self", "cls") else None

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        given: Any = {"args": list(args), **kwargs}
        if signature is not None:
            try:
                given = dict(signature.bind(*args, **kwargs).arguments)
            except TypeError:
                pass  # the call itself will say so
        if bound_to is not None and isinstance(given, dict):
            given.pop(bound_to, None)
        return make(given)

    return begin


class _Pieces:
    """A run or step that a generator is: current while the generator runs, and not while its user does.

    What is current inside is kept from one piece to the next, so that a block of a step may yield.
    """

    def __init__(self, run: Run, step: Step | None) -> None:
        self._inside: tuple[Run | None, Step | None] = (run, step)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Around each piece."""
        outside = _context.run_var.get(), _context.step_var.get()
        _context.run_var.set(self._inside[0])
        _context.step_var.set(self._inside[1])
        try:
            yield
        finally:
            self._inside = _context.run_var.get(), _context.step_var.get()
            _context.run_var.set(outside[0])
            _context.step_var.set(outside[1])

    def add(self, item: Any) -> None:
        """It has yielded this."""

    def end(self, error: BaseException | None) -> None:
        """It is over."""
        raise NotImplementedError

    async def aend(self, error: BaseException | None) -> None:
        """The same where nothing may wait."""
        self.end(error)


class _StepInPieces(_Pieces):
    """Its output is what was yielded."""

    def __init__(self, step: Step) -> None:
        self._step, self._items = step.start(), _Items()
        super().__init__(step.run, step)

    def add(self, item: Any) -> None:
        self._items.add(item)

    def end(self, error: BaseException | None) -> None:
        self._step._end(error, self._items.output())


class _RunInPieces(_Pieces):
    """A run has no output."""

    def __init__(self, run: Run) -> None:
        self._run = run.start()
        super().__init__(run, None)

    def end(self, error: BaseException | None) -> None:
        self._run._end(error)

    async def aend(self, error: BaseException | None) -> None:
        await self._run._aend(error)


def _generator(
    function: Callable[..., Any], begin: Callable[[tuple[Any, ...], dict[str, Any]], _Pieces]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def in_pieces(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        pieces = begin(args, kwargs)
        inner = function(*args, **kwargs)
        error: BaseException | None = None
        try:
            with pieces.active():
                item = next(inner)
            while True:
                pieces.add(item)
                try:
                    sent = yield item
                except GeneratorExit:
                    with pieces.active():
                        inner.close()
                    raise
                except BaseException as thrown:
                    with pieces.active():
                        item = inner.throw(thrown)
                else:
                    with pieces.active():
                        item = inner.send(sent)
        except StopIteration as stop:
            return stop.value
        except GeneratorExit:
            raise
        except BaseException as caught:
            error = caught
            raise
        finally:
            pieces.end(error)

    return in_pieces


def _async_generator(
    function: Callable[..., Any], begin: Callable[[tuple[Any, ...], dict[str, Any]], _Pieces]
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def in_pieces(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        pieces = begin(args, kwargs)
        inner = function(*args, **kwargs)
        error: BaseException | None = None
        try:
            with pieces.active():
                item = await inner.__anext__()
            while True:
                pieces.add(item)
                try:
                    sent = yield item
                except GeneratorExit:
                    with pieces.active():
                        await inner.aclose()
                    raise
                except BaseException as thrown:
                    with pieces.active():
                        item = await inner.athrow(thrown)
                else:
                    with pieces.active():
                        item = await inner.asend(sent)
        except (StopAsyncIteration, GeneratorExit) as stop:
            if isinstance(stop, GeneratorExit):
                raise
        except BaseException as caught:
            error = caught
            raise
        finally:
            await pieces.aend(error)

    return in_pieces


class _Items:
    """What a generator has yielded: text is joined."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.count = self.size = 0

    def add(self, item: Any) -> None:
        self.count += 1
        # The item itself is measured, not what it refers to: this keeps text and bytes from piling up.
        self.size += sys.getsizeof(item, 0)
        if len(self.kept) < KEPT_ITEMS and self.size <= KEPT_BYTES:
            self.kept.append(item)

    def output(self) -> Any:
        if self.kept and all(isinstance(item, str) for item in self.kept):
            return "".join(self.kept)
        if self.count > len(self.kept):
            return {"items": self.kept, "count": self.count}
        return self.kept

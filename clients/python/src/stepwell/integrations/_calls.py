"""What the integrations of model clients share: a call becomes a step, also when its answer comes in pieces."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from .._guard import quietly
from .._reporting import current_run
from .._step import Step

#: What was patched: owner, name, original.
Patched = list[tuple[Any, str, Any]]

#: Arguments of a call that are no part of the question.
OUTSIDE = frozenset({"extra_headers", "extra_query", "extra_body", "timeout", "http_client", "api_key"})


class Collector:
    """Puts the pieces of an answer together. Made anew for each call."""

    def add(self, piece: Any) -> None:
        """One more piece."""
        raise NotImplementedError

    def result(self) -> tuple[Any, dict[str, Any]]:
        """The output and the metadata."""
        raise NotImplementedError


def plain(value: Any) -> Any:
    """A model of pydantic as plain values."""
    dump = getattr(value, "model_dump", None)
    return quietly(lambda: dump(mode="json", exclude_none=True), value) if callable(dump) else value


def begin(provider: str, what: str, arguments: Mapping[str, Any]) -> Step:
    """The step of a call that is being made."""
    given = {key: plain(value) for key, value in arguments.items() if key not in OUTSIDE and not _is_not_given(value)}
    model = str(given.get("model", ""))
    step = current_run().step(f"{what} {model}".strip(), input=given, metadata={"provider": provider, "model": model})
    return step.start()


def _is_not_given(value: Any) -> bool:
    return type(value).__name__ in ("NotGiven", "Omit")


def finish(step: Step, output: Any, metadata: dict[str, Any]) -> None:
    """The answer is there."""
    usage = metadata.get("usage")
    if metadata:
        step.metadata(**{key: value for key, value in metadata.items() if value is not None})
    if isinstance(usage, dict):
        step.metrics({key: value for key, value in usage.items() if isinstance(value, (int, float))})
    step.complete(output)


def wrap(
    owner: Any,
    name: str,
    provider: str,
    what: str,
    read: Callable[[Any], tuple[Any, dict[str, Any]]],
    collector: Callable[[], Collector],
    patched: Patched,
) -> None:
    """Makes each call of `owner.name` a step, whether it is plain or asynchronous, in one piece or streamed."""
    original = getattr(owner, name, None)
    if original is None or getattr(original, "_stepwell", False):
        return
    is_class = inspect.isclass(owner)

    def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        rest = args[1:] if is_class else args
        return {**{f"argument_{number}": value for number, value in enumerate(rest)}, **kwargs}

    def answered(step: Step, answer: Any) -> Any:
        if hasattr(answer, "__aiter__") or hasattr(answer, "__next__"):
            return Streamed(answer, step, collector())
        output, metadata = quietly(lambda: read(answer), (plain(answer), {}))
        finish(step, output, metadata)
        return answer

    function = inspect.unwrap(original)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def called_async(*args: Any, **kwargs: Any) -> Any:
            step = begin(provider, what, arguments(args, kwargs))
            try:
                answer = await original(*args, **kwargs)
            except BaseException as error:
                step._end(error)
                raise
            return answered(step, answer)

        replacement: Any = called_async
    else:

        @functools.wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            step = begin(provider, what, arguments(args, kwargs))
            try:
                answer = original(*args, **kwargs)
            except BaseException as error:
                step._end(error)
                raise
            return answered(step, answer)

        replacement = called
    replacement._stepwell = True
    patched.append((owner, name, original if is_class else None))
    setattr(owner, name, replacement)


def unwrap(patched: Patched) -> None:
    """As it was before."""
    for owner, name, original in patched:
        if original is None:
            owner.__dict__.pop(name, None)
        else:
            setattr(owner, name, original)
    patched.clear()


class Streamed:
    """A stream of the library, which passes everything on and listens."""

    def __init__(self, stream: Any, step: Step, collector: Collector) -> None:
        self._stream, self._step, self._collector = stream, step, collector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _finish(self, error: BaseException | None = None) -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self._step._end(error)
            return
        output, metadata = quietly(self._collector.result, (None, {}))
        finish(self._step, output, metadata)

    def _add(self, piece: Any) -> None:
        quietly(lambda: self._collector.add(piece))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            piece = next(self._stream)
        except StopIteration:
            self._finish()
            raise
        except BaseException as error:
            self._finish(error)
            raise
        self._add(piece)
        return piece

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            piece = await self._stream.__anext__()
        except StopAsyncIteration:
            self._finish()
            raise
        except BaseException as error:
            self._finish(error)
            raise
        self._add(piece)
        return piece

    def close(self) -> Any:
        """Ends it early: what came is the output."""
        self._finish()
        return self._stream.close()

    def __enter__(self) -> Streamed:
        quietly(lambda: self._stream.__enter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish(error)
        self._stream.__exit__(kind, error, trace)

    async def __aenter__(self) -> Streamed:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(error)
        await self._stream.__aexit__(kind, error, trace)

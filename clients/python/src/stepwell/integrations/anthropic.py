"""Each call of the Anthropic client becomes a step, with model, tokens, prompt and answer; also streamed, also tool use.

    stepwell.integrations.anthropic.instrument()          # all clients
    stepwell.integrations.anthropic.instrument(client)    # this one

`messages.create`, with and without `stream=True`, and `messages.stream`; `Anthropic` and `AsyncAnthropic`.
"""

from __future__ import annotations

import functools
import inspect
import json
from types import TracebackType
from typing import Any

from .._guard import quietly
from . import _calls
from ._calls import Collector, Patched, plain

_patched: Patched = []


def _usage(usage: Any) -> dict[str, int]:
    found = {
        name: getattr(usage, name, None)
        for name in ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    }
    return {key: value for key, value in found.items() if isinstance(value, int)}


def _read(message: Any) -> tuple[Any, dict[str, Any]]:
    output = {"role": message.role, "content": [plain(block) for block in message.content]}
    return {**output, "stop_reason": message.stop_reason}, {
        "response_id": message.id,
        "model": message.model,
        "usage": _usage(message.usage),
    }


class _Message(Collector):
    def __init__(self) -> None:
        self.blocks: dict[int, dict[str, Any]] = {}
        self.inputs: dict[int, str] = {}
        self.about: dict[str, Any] = {}
        self.usage: dict[str, int] = {}
        self.stop_reason: str | None = None

    def add(self, piece: Any) -> None:
        if piece.type == "message_start":
            self.about.update(response_id=piece.message.id, model=piece.message.model)
            self.usage.update(_usage(piece.message.usage))
        elif piece.type == "content_block_start":
            self.blocks[piece.index] = dict(plain(piece.content_block))
        elif piece.type == "content_block_delta":
            block, delta = self.blocks.setdefault(piece.index, {}), piece.delta
            if delta.type == "text_delta":
                block["text"] = block.get("text", "") + delta.text
            elif delta.type == "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta.thinking
            elif delta.type == "input_json_delta":
                self.inputs[piece.index] = self.inputs.get(piece.index, "") + delta.partial_json
        elif piece.type == "message_delta":
            self.stop_reason = piece.delta.stop_reason
            self.usage.update(_usage(piece.usage))

    def result(self) -> tuple[Any, dict[str, Any]]:
        for index, text in self.inputs.items():
            try:
                self.blocks[index]["input"] = json.loads(text)
            except ValueError:
                self.blocks[index]["input"] = text
        content = [self.blocks[index] for index in sorted(self.blocks)]
        output = {"role": "assistant", "content": content, "stop_reason": self.stop_reason}
        return output, {**self.about, "usage": self.usage}


class _Manager:
    """What `messages.stream` returns, listened to."""

    def __init__(self, manager: Any, arguments: dict[str, Any]) -> None:
        self._manager, self._arguments = manager, arguments
        self._stream: Any = None
        self._step: Any = None

    def __enter__(self) -> Any:
        self._step = _calls.begin("anthropic", "messages", self._arguments)
        try:
            self._stream = self._manager.__enter__()
        except BaseException as error:
            self._step._end(error)
            raise
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        self._end(error)
        return self._manager.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        self._step = _calls.begin("anthropic", "messages", self._arguments)
        try:
            self._stream = await self._manager.__aenter__()
        except BaseException as error:
            self._step._end(error)
            raise
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._end(error)
        return await self._manager.__aexit__(kind, error, trace)

    def _end(self, error: BaseException | None) -> None:
        if error is not None:
            self._step._end(error)
            return
        output, metadata = quietly(lambda: _read(self._stream.current_message_snapshot), (None, {}))
        _calls.finish(self._step, output, metadata)


def _wrap_stream(owner: Any) -> None:
    original = getattr(owner, "stream", None)
    if original is None or getattr(original, "_stepwell", False):
        return
    is_class = inspect.isclass(owner)

    @functools.wraps(original)
    def streamed(*args: Any, **kwargs: Any) -> Any:
        return _Manager(original(*args, **kwargs), kwargs)

    streamed._stepwell = True  # type: ignore[attr-defined]
    _patched.append((owner, "stream", original if is_class else None))
    owner.stream = streamed


def instrument(client: Any = None) -> None:
    """Reports the calls of one client, or of all."""
    if client is not None:
        owners = [client.messages]
    else:
        from anthropic.resources.messages import AsyncMessages, Messages

        owners = [Messages, AsyncMessages]
    for owner in owners:
        _calls.wrap(owner, "create", "anthropic", "messages", _read, _Message, _patched)
        _wrap_stream(owner)


def uninstrument() -> None:
    """Stops it."""
    _calls.unwrap(_patched)

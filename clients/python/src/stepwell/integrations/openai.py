"""Each call of the OpenAI client becomes a step, with model, tokens, prompt and answer; also streamed, also tool calls.

    stepwell.integrations.openai.instrument()          # all clients
    stepwell.integrations.openai.instrument(client)    # this one

Chat completions, responses and embeddings; `OpenAI`, `AsyncOpenAI` and those of Azure.
"""

from __future__ import annotations

from typing import Any

from . import _calls
from ._calls import Collector, Patched, plain

_patched: Patched = []


def usage_of(usage: Any) -> dict[str, int] | None:
    """The tokens, under the same names whatever the call."""
    if usage is None:
        return None

    def count(*names: str) -> int | None:
        return next((getattr(usage, name) for name in names if getattr(usage, name, None) is not None), None)

    found = {
        "input_tokens": count("prompt_tokens", "input_tokens"),
        "output_tokens": count("completion_tokens", "output_tokens"),
        "total_tokens": count("total_tokens"),
    }
    return {key: value for key, value in found.items() if isinstance(value, int)}


def _read_chat(answer: Any) -> tuple[Any, dict[str, Any]]:
    choices = [{"message": plain(choice.message), "finish_reason": choice.finish_reason} for choice in answer.choices]
    output = choices[0] if len(choices) == 1 else {"choices": choices}
    return output, {"response_id": answer.id, "model": answer.model, "usage": usage_of(answer.usage)}


class _Chat(Collector):
    def __init__(self) -> None:
        self.choices: dict[int, dict[str, Any]] = {}
        self.about: dict[str, Any] = {}

    def add(self, piece: Any) -> None:
        self.about.update(response_id=piece.id, model=piece.model)
        if getattr(piece, "usage", None) is not None:
            self.about["usage"] = usage_of(piece.usage)
        for choice in piece.choices:
            held = self.choices.setdefault(choice.index, {"message": {"role": "assistant"}, "finish_reason": None})
            message, delta = held["message"], choice.delta
            if choice.finish_reason:
                held["finish_reason"] = choice.finish_reason
            for field in ("content", "refusal"):
                text = getattr(delta, field, None)
                if text:
                    message[field] = message.get(field, "") + text
            for call in getattr(delta, "tool_calls", None) or ():
                calls = message.setdefault("tool_calls", [])
                while len(calls) <= call.index:
                    calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
                one = calls[call.index]
                one["id"] = call.id or one["id"]
                if call.function is not None:
                    one["function"]["name"] += call.function.name or ""
                    one["function"]["arguments"] += call.function.arguments or ""

    def result(self) -> tuple[Any, dict[str, Any]]:
        choices = [self.choices[index] for index in sorted(self.choices)]
        return choices[0] if len(choices) == 1 else {"choices": choices}, self.about


def _read_response(answer: Any) -> tuple[Any, dict[str, Any]]:
    output = {"text": getattr(answer, "output_text", None), "output": plain(answer).get("output")}
    return output, {"response_id": answer.id, "model": answer.model, "usage": usage_of(answer.usage)}


class _Response(Collector):
    def __init__(self) -> None:
        self.text = ""
        self.final: Any = None

    def add(self, piece: Any) -> None:
        if piece.type == "response.output_text.delta":
            self.text += piece.delta
        elif piece.type in ("response.completed", "response.incomplete", "response.failed"):
            self.final = piece.response

    def result(self) -> tuple[Any, dict[str, Any]]:
        return _read_response(self.final) if self.final is not None else ({"text": self.text}, {})


def _read_embeddings(answer: Any) -> tuple[Any, dict[str, Any]]:
    # The vectors themselves say nothing to anybody.
    sizes = {len(one.embedding) for one in answer.data}
    output = {"vectors": len(answer.data), "dimensions": max(sizes, default=0)}
    return output, {"model": answer.model, "usage": usage_of(answer.usage)}


def instrument(client: Any = None) -> None:
    """Reports the calls of one client, or of all."""
    if client is not None:
        targets = [
            (client.chat.completions, "chat", _read_chat, _Chat),
            (client.responses, "responses", _read_response, _Response),
            (client.embeddings, "embeddings", _read_embeddings, _Chat),
        ]
    else:
        from openai.resources.chat.completions import AsyncCompletions, Completions
        from openai.resources.embeddings import AsyncEmbeddings, Embeddings
        from openai.resources.responses import AsyncResponses, Responses

        targets = [
            (Completions, "chat", _read_chat, _Chat),
            (AsyncCompletions, "chat", _read_chat, _Chat),
            (Responses, "responses", _read_response, _Response),
            (AsyncResponses, "responses", _read_response, _Response),
            (Embeddings, "embeddings", _read_embeddings, _Chat),
            (AsyncEmbeddings, "embeddings", _read_embeddings, _Chat),
        ]
    for owner, what, read, collector in targets:
        for name in ("create", "parse"):
            _calls.wrap(owner, name, "openai", what, read, collector, _patched)


def uninstrument() -> None:
    """Stops it."""
    _calls.unwrap(_patched)

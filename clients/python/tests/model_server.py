"""A model server on loopback that speaks enough of the OpenAI and Anthropic APIs: plain, streamed, tool calls, errors."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["The", " answer", " is", " 42."]
ANSWER = "".join(WORDS)
TOOL = {"name": "look_up", "arguments": {"what": "weather", "deep": {"a": [1]}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("model") == "broken":
            self.reply(400, {"error": {"message": "no such model", "type": "invalid_request_error"}, "type": "error"})
            return
        streamed = bool(body.get("stream"))
        if self.path.endswith("/chat/completions"):
            made = self.chat(body)
        elif self.path.endswith("/responses"):
            made = self.response(body)
        elif self.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2, 0.3]}]
            usage = {"prompt_tokens": 5, "total_tokens": 5}
            made = {"object": "list", "data": data, "model": body["model"], "usage": usage}, []
        elif self.path.endswith("/messages"):
            made = self.message(body)
        else:
            self.reply(404, {})
            return
        if streamed:
            self.stream(made[1])
        else:
            self.reply(200, made[0])

    def chat(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        about = {"id": "chat-1", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
        chunks = []
        if body.get("tools"):
            call = {
                "id": "call-1",
                "type": "function",
                "function": {"name": TOOL["name"], "arguments": json.dumps(TOOL["arguments"])},
            }
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
            reason = "tool_calls"
            text = call["function"]["arguments"]
            head = {"index": 0, "id": "call-1", "type": "function", "function": {"name": TOOL["name"], "arguments": ""}}
            deltas = [{"role": "assistant", "tool_calls": [head]}]
            for at in range(0, len(text), 10):
                deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": text[at : at + 10]}}]})
        else:
            message = {"role": "assistant", "content": ANSWER}
            reason = "stop"
            deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS)]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            chunks.append({**about, "object": "chat.completion.chunk", "choices": [choice]})
        end = {"index": 0, "delta": {}, "finish_reason": reason}
        chunks.append({**about, "object": "chat.completion.chunk", "choices": [end]})
        chunks.append({**about, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        whole = {**about, "object": "chat.completion", "choices": choices, "usage": usage}
        return whole, [*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]

    def response(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        content = [{"type": "output_text", "text": ANSWER, "annotations": []}]
        output = [{"id": "m-1", "type": "message", "role": "assistant", "status": "completed", "content": content}]
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        whole = {
            "id": "resp-1",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "completed",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11, **details},
        }
        events: list[dict[str, Any]] = [{"type": "response.created", "response": {**whole, "output": []}}]
        for word in WORDS:
            place = {"item_id": "m-1", "output_index": 0, "content_index": 0, "logprobs": []}
            events.append({"type": "response.output_text.delta", "delta": word, **place})
        events.append({"type": "response.completed", "response": whole})
        lines = []
        for number, event in enumerate(events):
            lines.append(f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n")
        return whole, lines

    def message(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        tool = bool(body.get("tools"))
        block = (
            {"type": "tool_use", "id": "tool-1", "name": TOOL["name"], "input": TOOL["arguments"]}
            if tool
            else {"type": "text", "text": ANSWER}
        )
        reason = "tool_use" if tool else "end_turn"
        about = {"id": "msg-1", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        usage = {"input_tokens": 7, "output_tokens": 4}
        whole = {**about, "content": [block], "stop_reason": reason, "usage": usage}
        first = {**about, "content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": first}]
        empty = {**block, "input": {}} if tool else {"type": "text", "text": ""}
        events.append({"type": "content_block_start", "index": 0, "content_block": empty})
        text = json.dumps(TOOL["arguments"])
        pieces = [text[at : at + 10] for at in range(0, len(text), 10)] if tool else WORDS
        for piece in pieces:
            delta = {"type": "input_json_delta", "partial_json": piece} if tool else {"type": "text_delta", "text": piece}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        events.append({"type": "content_block_stop", "index": 0})
        end = {"stop_reason": reason, "stop_sequence": None}
        events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 4}})
        events.append({"type": "message_stop"})
        return whole, [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, lines: list[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = line.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def model_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

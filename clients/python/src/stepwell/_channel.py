"""A channel as Stepwell wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from ._settings import TLS, address

#: A reply is at most 4 MiB, except that GetStep sends input and output whole.
MAX_REPLY_BYTES = 64 << 20

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # What is sent again, and when, is decided here and not in gRPC.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def options(tls: TLS | None) -> list[tuple[str, Any]]:
    """Of a channel."""
    if tls is not None and tls.server_name:
        return [*OPTIONS, ("grpc.ssl_target_name_override", tls.server_name)]
    return OPTIONS


def open_channel(server: str, tls: TLS | None) -> grpc.Channel:
    """Connects when it is used."""
    target, secure = address(server)
    if secure or tls is not None:
        return grpc.secure_channel(target, (tls or TLS()).credentials(), options(tls))
    return grpc.insecure_channel(target, options(tls))


def open_async_channel(server: str, tls: TLS | None) -> grpc.aio.Channel:
    """The same for asyncio."""
    target, secure = address(server)
    if secure or tls is not None:
        return grpc.aio.secure_channel(target, (tls or TLS()).credentials(), options(tls))
    return grpc.aio.insecure_channel(target, options(tls))


def metadata(headers: Mapping[str, str] | None) -> tuple[tuple[str, str | bytes], ...]:
    """Headers of each call."""
    return tuple((str(key).lower(), str(value)) for key, value in dict(headers or {}).items())

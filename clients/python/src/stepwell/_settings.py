"""What a client is told: arguments of `configure`, then STEPWELL_* of the environment, then defaults."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Literal

import grpc

log = logging.getLogger("stepwell")

Mode = Literal["on", "disabled", "memory"]
MODES: tuple[Mode, ...] = ("on", "disabled", "memory")
DEFAULT_PORT = 50051
DEFAULT_SERVER = f"127.0.0.1:{DEFAULT_PORT}"


@dataclasses.dataclass(frozen=True)
class TLS:
    """How to speak TLS. `ca` is the file of the certificates to trust (else those of the system); `certificate` and
    `key` are the files of the client's own, where the server wants one; `server_name` is the name to expect in the
    server's certificate, where it is not the one in the address."""

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel of gRPC."""
        files = [pathlib.Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*files)


@dataclasses.dataclass(frozen=True)
class Settings:
    """See `stepwell.configure`."""

    server: str = DEFAULT_SERVER
    app: str | None = None
    app_id: int | None = None
    sub_app: str | None = None
    user: str | Callable[[], str | None] | None = None
    mode: Mode = "on"
    spool_dir: pathlib.Path | None = None
    spool_max_bytes: int = 256 << 20
    memory_max_bytes: int = 32 << 20
    flush_timeout: float = 5.0
    heartbeat_timeout: float | None = 60.0
    capture_input: bool = True
    capture_output: bool = True
    redact: Callable[[str, Any], Any] | None = None
    max_payload_bytes: int = 1 << 20
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tls: TLS | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Of the environment.
    key: str | None = dataclasses.field(default=None, repr=False)

    @property
    def app_name(self) -> str:
        """Of a run that does not say."""
        return self.app or pathlib.Path(sys.argv[0] if sys.argv else "").stem or "python"

    def sent_headers(self, server: str | None = None, tls: TLS | None = None) -> Mapping[str, str]:
        """With the key of the environment, where no header has one and nobody on the way can read it."""
        if not self.key or any(name.lower() == "authorization" for name in self.headers):
            return self.headers
        target, secure = address(server or self.server)
        if not (secure or tls or self.tls or _is_this_machine(target)):
            log.warning("STEPWELL_KEY is not sent to %s, as the connection is not encrypted: begin it with https://", target)
            return self.headers
        return {**self.headers, "authorization": f"Bearer {self.key}"}


#: Beginnings of an address, and whether they ask for TLS.
SCHEMES = (("https://", True), ("grpcs://", True), ("http://", False), ("grpc://", False), ("", False))


def _parts(server: str) -> tuple[str, str, bool]:
    scheme, secure = next(one for one in SCHEMES if server.startswith(one[0]))
    target = server[len(scheme) :].rstrip("/") if scheme else server
    # What has a colon outside of brackets has a port, or is one of gRPC's own names such as `unix:/run/stepwell`.
    if not secure and target and ":" not in target.rpartition("]")[2]:
        target = f"{target}:{DEFAULT_PORT}"
    return scheme, target, secure


def address(server: str) -> tuple[str, bool]:
    """The target for gRPC, and whether the address asks for TLS."""
    return _parts(server)[1:]


def _is_this_machine(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    if target.startswith("unix:") or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_port(server: str) -> str:
    """The address with its port: gRPC would take 443, which is right with TLS alone, and whoever says `127.0.0.1` would
    never be answered. One spelling for one server, too: the spool has a folder and a note for each."""
    scheme, target, _ = _parts(server)
    return scheme + target


def default_spool_dir(server: str) -> pathlib.Path:
    """A folder for each server, so that nothing is ever sent to another one."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in address(server)[0])[:100]
    home = os.environ.get("XDG_STATE_HOME")
    try:
        base = pathlib.Path(home) if home else pathlib.Path.home() / ".local" / "state"
    except RuntimeError:
        uid = os.getuid() if hasattr(os, "getuid") else 0
        base = pathlib.Path(tempfile.gettempdir()) / f"stepwell-{uid}"
    return base / "stepwell" / "spool" / name


_TRUE = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _number(name: str, value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        log.warning("%s=%r is not a number; the default is used", name, value)
        return None


def from_environment(given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """`given` has what `configure` was called with; None there means: not said."""
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    # None is a meaning of its own only for this one.
    if "heartbeat_timeout" in given:
        values["heartbeat_timeout"] = given["heartbeat_timeout"]

    values["key"] = environment.get("STEPWELL_KEY")
    for name in ("server", "app", "sub_app", "user", "mode", "spool_dir"):
        value = environment.get(f"STEPWELL_{name.upper()}")
        if value and name not in values:
            values[name] = value
    for name, kind in (
        ("app_id", int),
        ("spool_max_bytes", int),
        ("memory_max_bytes", int),
        ("max_payload_bytes", int),
        ("flush_timeout", float),
        ("heartbeat_timeout", float),
    ):
        value = environment.get(f"STEPWELL_{name.upper()}")
        if value and name not in values:
            number = _number(f"STEPWELL_{name.upper()}", value)
            if number is not None:
                values[name] = kind(number)
    for name in ("capture_input", "capture_output"):
        value = environment.get(f"STEPWELL_{name.upper()}", "").lower()
        if value in _TRUE and name not in values:
            values[name] = _TRUE[value]

    if "server" in values:
        values["server"] = with_port(str(values["server"]))
    if values.get("mode", "on") not in MODES:
        log.warning("mode %r is not one of %s; it is on", values["mode"], ", ".join(MODES))
        values["mode"] = "on"
    if values.get("heartbeat_timeout") is not None and values["heartbeat_timeout"] <= 0:
        values["heartbeat_timeout"] = None
    if "spool_dir" in values:
        values["spool_dir"] = pathlib.Path(values["spool_dir"])
    return Settings(**values)

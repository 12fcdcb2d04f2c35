"""From any Python value to what the API can carry, and back. Never raises, whatever it is given.

A value of the API is JSON: at most 30 levels deep, whole numbers up to 2^53, no NaN. Everything else becomes the text
that says most about it, and nothing is left out silently.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

#: `redact(path, value)`: what is to be reported instead of `value`.
Redact = Callable[[str, Any], Any]

#: Levels of lists and objects below the root. The server takes 30 in all.
DEPTH = 27
#: The greatest whole number that a double keeps exactly.
EXACT = 1 << 53
#: Characters of a text that stands for something that is no JSON.
TEXT_CHARACTERS = 10_000
#: What `redact` returned an error for is not reported.
REDACTION_FAILED = "<redaction failed>"


def text(value: object, characters: int = TEXT_CHARACTERS) -> str:
    """`repr`, cut, of anything, also of what has a broken one."""
    try:
        shown = repr(value)
    except Exception:
        shown = f"<{type(value).__name__}>"
    return clean(shown if len(shown) <= characters else shown[: characters - 1] + "…")


def clean(value: str) -> str:
    """Without lone surrogates, which UTF-8 cannot carry."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def fill_value(into: Value, value: Any, path: str = "", redact: Redact | None = None) -> None:
    """Sets `into` to `value`."""
    _Filler(redact).fill(into, value, 0, path)


def fill_struct(into: Struct, value: Mapping[Any, Any], path: str = "", redact: Redact | None = None) -> None:
    """Sets `into` to the object `value`."""
    filler = _Filler(redact)
    value = filler.redacted(path, value) if redact else value
    if not isinstance(value, Mapping):
        value = {"value": value}
    filler.fill_fields(into, value, 1, path)


class _Filler:
    """One conversion: it knows which containers it is inside of, so that it notices a circle."""

    __slots__ = ("inside", "redact")

    def __init__(self, redact: Redact | None) -> None:
        self.redact = redact
        self.inside: set[int] = set()

    def redacted(self, path: str, value: Any) -> Any:
        try:
            return self.redact(path, value) if self.redact else value
        except Exception:
            return REDACTION_FAILED

    def fill(self, into: Value, value: Any, depth: int, path: str) -> None:
        if self.redact is not None:
            value = self.redacted(path, value)
        kind = type(value)
        if kind is str:
            try:
                into.string_value = value
            except ValueError:  # UnicodeEncodeError, or what the runtime makes of it
                into.string_value = clean(value)
        elif value is None:
            into.null_value = 0  # type: ignore[assignment]
        elif kind is bool:
            into.bool_value = value
        elif kind is int:
            self.fill_int(into, value)
        elif kind is float:
            if math.isfinite(value):
                into.number_value = value
            else:
                into.string_value = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        elif kind is dict or kind is list or kind is tuple:
            self.fill_container(into, value, depth, path)
        else:
            self.fill_other(into, value, depth, path)

    @staticmethod
    def fill_int(into: Value, value: int) -> None:
        if -EXACT <= value <= EXACT:
            into.number_value = value
        else:
            try:
                into.string_value = str(value)
            except ValueError:  # more digits than Python prints
                into.string_value = hex(value)

    def fill_container(self, into: Value, value: Any, depth: int, path: str) -> None:
        if id(value) in self.inside:
            into.string_value = "<cycle>"
            return
        if depth >= DEPTH:
            into.string_value = _as_json_text(value)
            return
        self.inside.add(id(value))
        try:
            if isinstance(value, Mapping):
                into.struct_value.SetInParent()
                self.fill_fields(into.struct_value, value, depth + 1, path)
            else:
                into.list_value.SetInParent()
                self.fill_items(into.list_value, value, depth + 1, path)
        finally:
            self.inside.discard(id(value))

    def fill_fields(self, into: Struct, value: Mapping[Any, Any], depth: int, path: str) -> None:
        fields = into.fields
        for key, item in _settled(value):
            name = key if type(key) is str else key.value if _is_text_enum(key) else _key(key)
            where = f"{path}.{name}" if self.redact is not None else ""
            try:
                slot = fields[name]
            except ValueError:
                slot = fields[clean(name)]
            if "\0" in name:
                del fields[name]
                slot = fields[name.replace("\0", "\ufffd")]
            self.fill(slot, item, depth, where)

    def fill_items(self, into: ListValue, value: Iterable[Any], depth: int, path: str) -> None:
        add = into.values.add
        for number, item in enumerate(list(value)):
            self.fill(add(), item, depth, f"{path}.{number}" if self.redact is not None else "")

    def fill_other(self, into: Value, value: Any, depth: int, path: str) -> None:
        try:
            plain = _plain(value)
        except Exception:
            plain = text(value)
        if type(plain) is type(value) and not isinstance(plain, (str, int, float)):
            plain = text(value)
        if isinstance(plain, (Mapping, list, tuple)):
            # A view of the object is new each time, so the circle has to be noticed by the object itself.
            if id(value) in self.inside:
                into.string_value = "<cycle>"
                return
            self.inside.add(id(value))
            try:
                self.fill_container(into, plain, depth, path)
            except Exception:
                into.string_value = text(value)
            finally:
                self.inside.discard(id(value))
        else:
            redact, self.redact = self.redact, None
            try:
                self.fill(into, plain, depth, path)
            finally:
                self.redact = redact


def _is_text_enum(key: object) -> bool:
    return isinstance(key, enum.Enum) and isinstance(key.value, str)


def _key(key: Any) -> str:
    try:
        return str(key)
    except Exception:
        return text(key, 200)


def _settled(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """The items, also while another thread changes the mapping."""
    for _ in range(3):
        try:
            return list(value.items())
        except RuntimeError:
            continue
    return [("error", "changed while it was reported")]


def _plain(value: Any) -> Any:
    """One step towards JSON: the same thing made of plainer things."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, (str, int, float)) else value.name
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (uuid.UUID, decimal.Decimal, os.PathLike)):
        return str(value)
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=lambda item: (type(item).__name__, text(item, 100)))
    if isinstance(value, (list, tuple)):
        named = getattr(value, "_asdict", None)
        return named() if callable(named) else list(value)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)  # pydantic
    if callable(dump):
        dumped = dump()
        if isinstance(dumped, (Mapping, list)):
            return dumped
    item = getattr(value, "item", None)  # a number of numpy or torch
    if callable(item) and getattr(value, "shape", None) == ():
        return item()
    as_list = getattr(value, "tolist", None)  # an array
    if callable(as_list) and getattr(value, "size", 1 << 30) <= 100_000:
        return as_list()
    if isinstance(value, (range, type({}.keys()), type({}.values()), type({}.items()))):
        return list(value)
    return text(value)


def _as_json_text(value: Any) -> str:
    """What is nested too deep, as text."""
    try:
        shown = json.dumps(value, default=lambda other: text(other, 200), ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return text(value)
    return clean(shown if len(shown) <= TEXT_CHARACTERS else shown[: TEXT_CHARACTERS - 1] + "…")


def from_value(value: Value) -> Any:
    """The Python value: whole numbers are `int`."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= EXACT else number
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    return None


def from_struct(struct: Struct) -> dict[str, Any]:
    """The Python dict."""
    return {key: from_value(value) for key, value in struct.fields.items()}


def merge_struct(into: Struct, patch: Struct) -> None:
    """As the server merges: objects deeply, anything else replaces."""
    fields = into.fields
    for key, value in patch.fields.items():
        if key in fields and fields[key].HasField("struct_value") and value.HasField("struct_value"):
            merge_struct(fields[key].struct_value, value.struct_value)
        else:
            fields[key].CopyFrom(value)


def preview(value: Value, size: int, name: str) -> dict[str, Any]:
    """What stands in the place of a payload that has become an artifact."""
    shown = json.dumps(from_value(value), ensure_ascii=False)
    return {"artifact": name, "size_bytes": size, "preview": shown[:2000]}

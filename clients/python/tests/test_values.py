"""Whatever an app passes can be reported, and comes back as what it is as far as JSON goes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value

import stepwell as sw
from stepwell._values import fill_struct, fill_value, from_struct, from_value


def there_and_back(value: Any, redact: Any = None) -> Any:
    into = Value()
    fill_value(into, value, "input", redact)
    return from_value(Value.FromString(into.SerializeToString()))


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: Any


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (7, 7),
    (2**53, 2**53),
    (2**70, str(2**70)),
    (-(2**70), str(-(2**70))),
    (10**5000, hex(10**5000)),
    (1.5, 1.5),
    (math.nan, "NaN"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
    ("é\u0000", "é\u0000"),
    ("\ud800", "\\ud800"),
    (b"\x00\xff", "AP8="),
    (bytearray(b"a"), "YQ=="),
    ((1, 2), [1, 2]),
    ({1, 2}, [1, 2]),
    ({"a": {}, "b": []}, {"a": {}, "b": []}),
    ({1: "int", None: "none", ("t",): "tuple"}, {"1": "int", "None": "none", "('t',)": "tuple"}),
    ({"a\0b": 1}, {"a\ufffdb": 1}),
    ({Color.RED: 1}, {"red": 1}),
    (Color.RED, "red"),
    (Point(1, [2]), {"x": 1, "y": [2]}),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), "2026-01-02T03:04:05Z"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.timedelta(seconds=1.5), 1.5),
    (decimal.Decimal("1.10"), "1.10"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (ValueError("bad"), {"type": "ValueError", "message": "bad"}),
    (range(3), [0, 1, 2]),
    (Unprintable(), "<Unprintable>"),
    ({Odd(): 1}, {"<Odd>": 1}),
    (object, "builtins.object"),
]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=[str(number) for number in range(len(VALUES))])
def test_a_value_becomes(value: Any, expected: Any) -> None:
    assert there_and_back(value) == expected


def test_an_object_is_described() -> None:
    class Thing:
        def __repr__(self) -> str:
            return "<Thing 1>"

    assert there_and_back([Thing()]) == ["<Thing 1>"]
    assert "function" in there_and_back(test_an_object_is_described)


def test_a_cycle_ends() -> None:
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    value["list"] = [value]
    assert there_and_back(value) == {"a": 1, "self": "<cycle>", "list": ["<cycle>"]}
    point = Point(1, None)
    point.y = point
    assert there_and_back(point) == {"x": 1, "y": "<cycle>"}
    shared = [1]
    assert there_and_back([shared, shared]) == [[1], [1]], "twice is no cycle"


def test_depth_100_is_cut_without_loss() -> None:
    value: Any = "bottom"
    for _ in range(100):
        value = {"a": value}
    into = Value()
    fill_value(into, value)
    # As deep as every protobuf reads.
    found = from_value(Value.FromString(into.SerializeToString()))
    depth = 0
    while isinstance(found, dict):
        found = found["a"]
        depth += 1
    assert depth < 30
    rest = json.loads(found)
    for _ in range(100 - depth):
        rest = rest["a"]
    assert rest == "bottom"


def test_depth_100_000_does_no_harm() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert there_and_back(value) is not None


def test_metadata_is_always_an_object() -> None:
    into = Struct()
    fill_struct(into, {"a": [1], 2: None})
    assert from_struct(into) == {"a": [1], "2": None}


def test_redaction_sees_every_value_with_its_path() -> None:
    seen = []

    def redact(path: str, value: Any) -> Any:
        seen.append(path)
        return "***" if path.endswith("password") else value

    value = {"user": {"name": "n", "password": "p"}, "list": [{"password": "q"}]}
    assert there_and_back(value, redact) == {"user": {"name": "n", "password": "***"}, "list": [{"password": "***"}]}
    assert "input.list.0.password" in seen


def test_a_redaction_that_fails_leaks_nothing() -> None:
    def redact(path: str, value: Any) -> Any:
        raise RuntimeError("no")

    assert there_and_back({"secret": 1}, redact) == "<redaction failed>"


def test_no_value_is_refused_by_a_server(client: sw.Client, api: sw.Api) -> None:
    with sw.run("values") as r:
        for number, (value, _) in enumerate(VALUES):
            with r.step("v", key=str(number), input=value, metadata={"value": value}) as s:
                s.output(value)
        deep: Any = 1
        for _ in range(100):
            deep = [deep]
        with r.step("deep", key="deep", input=deep, metadata={"deep": deep}) as s:
            s.output({"deep": deep})
        r.metadata(deep=deep, nan=math.nan)
        r.metrics(nan=math.nan, fine=1, none=None, text="x")  # type: ignore[arg-type]
    assert sw.flush(30)
    assert (sw.stats().refused, sw.stats().defects) == (0, 0), sw.stats()
    run = api.get(r.id, steps=True, payloads=True)
    by_key = {step.key: step for step in run.steps}
    for number, (_, expected) in enumerate(VALUES):
        step = by_key[str(number)]
        assert step.output == expected
        assert step.input == ({} if expected is None else expected)
    assert [values for _, values in api.metrics(r.id)] == [{"fine": 1.0}]

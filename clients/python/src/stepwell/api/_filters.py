"""Which executions: the arguments of `list`, `count`, `watch_many` and the reports."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Union

from .._pb import common_pb2
from .._values import fill_value
from ._records import ExecutionStatus

Status = Union[str, ExecutionStatus]
When = Union[dt.datetime, dt.timedelta, str]


class Filter(TypedDict, total=False):
    """Every one that is given must hold; of several values in one, any.

    `app` is a name, or a number. `since` and `until` are times, or how long ago, also as text: "24h", "90s", "7d".
    `min_duration` may be seconds.
    `metadata` has paths such as "user.plan" and the value that has to be there.
    """

    app: str | int | Iterable[str | int] | None
    sub_app: int | Iterable[int] | None
    user: str | Iterable[str] | None
    status: Status | Iterable[Status] | None
    since: When | None
    until: When | None
    min_duration: dt.timedelta | float | None
    metadata: Mapping[str, Any] | None


KNOWN = frozenset(Filter.__annotations__)


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, int)) else list(value)


_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _when(name: str, value: When) -> dt.datetime:
    if isinstance(value, str):
        ago = _AGO.fullmatch(value)
        if ago is None:
            raise ValueError(f'{name} is a datetime, a timedelta, or how long ago such as "24h", not {value!r}')
        value = dt.timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
    if isinstance(value, dt.timedelta):
        return dt.datetime.now(dt.timezone.utc) - value
    if not isinstance(value, dt.datetime):
        raise TypeError(f'{name} is a datetime, a timedelta, or how long ago such as "24h", not {type(value).__name__}')
    return value.astimezone(dt.timezone.utc)


def _status(value: Status) -> str:
    known = [one.value for one in ExecutionStatus if one is not ExecutionStatus.UNKNOWN]
    if value not in known:
        raise ValueError(f"status is one of {', '.join(known)}, not {str(value)!r}")
    return str(value)


def message(given: Mapping[str, Any]) -> common_pb2.ExecutionFilter:
    """The filter as the API has it; TypeError or ValueError for what is none."""
    unknown = sorted(given.keys() - KNOWN)
    if unknown:
        raise TypeError(f"unknown filter {', '.join(unknown)}; there are {', '.join(sorted(KNOWN))}")
    made = common_pb2.ExecutionFilter()
    for app in _several(given.get("app")):
        if isinstance(app, int):
            made.app_ids.append(app)
        else:
            made.app_names.append(app)
    made.sub_app_ids.extend(_several(given.get("sub_app")))
    made.user_ids.extend(_several(given.get("user")))
    for status in _several(given.get("status")):
        name = f"EXECUTION_STATUS_{_status(status).upper()}"
        made.statuses.extend([getattr(common_pb2, name)])
    since, until, shortest = given.get("since"), given.get("until"), given.get("min_duration")
    if since is not None:
        made.started_at_from.FromDatetime(_when("since", since))
    if until is not None:
        made.started_at_until.FromDatetime(_when("until", until))
    if shortest is not None:
        seconds = shortest.total_seconds() if isinstance(shortest, dt.timedelta) else float(shortest)
        made.min_duration_ms = int(seconds * 1000)
    for path, value in (given.get("metadata") or {}).items():
        fill_value(made.metadata[path], value)
    return made

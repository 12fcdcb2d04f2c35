"""The calls, without saying how they are made: generators that yield a call and are sent its reply, so that `Api` and
`AsyncApi` share them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeVar, Union

from google.protobuf.json_format import MessageToDict

from .._pb import analytics_service_pb2 as analytics_pb
from .._pb import artifact_service_pb2 as artifact_pb
from .._pb import configuration_service_pb2 as configuration_pb
from .._pb import execution_service_pb2 as execution_pb
from .._pb import metric_service_pb2 as metric_pb
from .._pb import search_service_pb2 as search_pb
from .._pb import step_service_pb2 as step_pb
from .._values import fill_struct, from_struct
from . import _filters, _records
from ._records import Artifact, Count, Execution, StepRecord

T = TypeVar("T")

PAGE = 200
#: Statuses of the order.
ORDERS = {
    "newest": execution_pb.EXECUTION_ORDER_STARTED_AT_DESC,
    "oldest": execution_pb.EXECUTION_ORDER_STARTED_AT_ASC,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a method of `Stubs`."""

    service: str
    method: str
    request: Any


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


#: Which run: its id, or what has one, such as a `Run` or an `Execution`.
RunId = Union[str, _HasId]

Op = Generator[Call, Any, T]
#: One page: what is on it, and the token of the next one, empty at the end.
Page = tuple[list[T], str]


def id_of(run: RunId) -> str:
    """Of a run; TypeError for what is none."""
    found: object = run if isinstance(run, str) else getattr(run, "id", None)
    if not isinstance(found, str):
        raise TypeError(f"which run? An id, or what has one as `id`, not {type(run).__name__}")
    return found


def get(execution_id: str, steps: bool, payloads: bool) -> Op[Execution]:
    """One execution."""
    view = execution_pb.EXECUTION_VIEW_FULL if steps or payloads else execution_pb.EXECUTION_VIEW_BASIC
    request = execution_pb.GetExecutionRequest(execution_id=execution_id, view=view)
    reply = yield Call("executions", "GetExecution", request)
    record = _records.execution(reply.execution)
    if not (steps or payloads):
        return record
    if reply.steps_truncated or payloads:
        found: list[StepRecord] = []
        token = ""
        while True:
            page, token = yield from list_steps(execution_id, token, payloads)
            found += page
            if not token:
                break
        if payloads:
            for number, one in enumerate(found):
                # Too large for a list, or of a server that leaves payloads out of lists.
                if {"input", "output"} & {*one.omitted_fields} or (one.input is None and one.output is None):
                    found[number] = yield from get_step(execution_id, one.step_id)
    else:
        found = [_records.step(one) for one in reply.steps]
    artifacts = tuple(_records.artifact(one) for one in reply.artifacts)
    return dataclasses.replace(record, steps=tuple(found), artifacts=artifacts)


def get_step(execution_id: str, step: str | int | None) -> Op[StepRecord]:
    """One step, with input and output."""
    request = step_pb.GetStepRequest(execution_id=execution_id)
    if isinstance(step, int):
        request.step_id = step
    else:
        request.step_key = str(step)
    reply = yield Call("steps", "GetStep", request)
    return _records.step(reply.step)


def list_steps(execution_id: str, token: str, payloads: bool) -> Op[Page[StepRecord]]:
    """A page of steps."""
    request = step_pb.ListStepsRequest(
        execution_id=execution_id, page_size=PAGE, page_token=token, include_payloads=payloads
    )
    reply = yield Call("steps", "ListSteps", request)
    return [_records.step(one) for one in reply.steps], reply.next_page_token


def list_executions(given: Mapping[str, Any], order: str, limit: int | None, token: str) -> Op[Page[Execution]]:
    """A page of executions."""
    if order not in ORDERS:
        raise ValueError(f"order is {' or '.join(ORDERS)}, not {order!r}")
    request = execution_pb.ListExecutionsRequest(
        filter=_filters.message(given),
        order=ORDERS[order],
        page_size=min(PAGE, limit) if limit else PAGE,
        page_token=token,
    )
    reply = yield Call("executions", "ListExecutions", request)
    return [_records.execution(one) for one in reply.executions], reply.next_page_token


def list_artifacts(execution_id: str, kind: str | None, token: str) -> Op[Page[Artifact]]:
    """A page of artifacts."""
    request = artifact_pb.ListArtifactsRequest(execution_id=execution_id, page_size=PAGE, page_token=token)
    if kind is not None:
        request.artifact_type = kind
    reply = yield Call("artifacts", "ListArtifacts", request)
    return [_records.artifact(one) for one in reply.artifacts], reply.next_page_token


def metrics(execution_id: str, names: list[str], token: str) -> Op[Page[tuple[dt.datetime | None, dict[str, float]]]]:
    """A page of points."""
    request = metric_pb.QueryMetricsRequest(execution_id=execution_id, names=names, page_token=token)
    reply = yield Call("metrics", "QueryMetrics", request)
    return [(_records.at(one.timestamp), dict(one.metrics)) for one in reply.points], reply.next_page_token


def count(given: Mapping[str, Any]) -> Op[Count]:
    """How many executions."""
    reply = yield Call(
        "executions",
        "CountExecutions",
        execution_pb.CountExecutionsRequest(filter=_filters.message(given), limit=100_000),
    )
    return Count(reply.count, reply.exact)


def cancel(execution_id: str, reason: str) -> Op[Execution]:
    """Asks a run to stop."""
    request = execution_pb.RequestCancelRequest(execution_id=execution_id, reason=reason)
    reply = yield Call("executions", "RequestCancel", request)
    return _records.execution(reply.execution)


def delete(execution_id: str, force: bool) -> Op[None]:
    """Deletes a run."""
    yield Call("executions", "DeleteExecution", execution_pb.DeleteExecutionRequest(execution_id=execution_id, force=force))


def watch_request(
    execution_id: str, steps: bool, artifacts: bool, points: bool, payloads: bool, follow: bool, token: str | None
) -> execution_pb.WatchExecutionRequest:
    """Of one run."""
    request = execution_pb.WatchExecutionRequest(
        execution_id=execution_id,
        include_steps=steps,
        include_artifacts=artifacts,
        include_metrics=points,
        include_payloads=payloads,
        follow=follow,
    )
    if token:
        request.resume_token = token
    return request


def watch_many_request(
    given: Mapping[str, Any], snapshot: str, steps: bool, payloads: bool, token: str | None
) -> execution_pb.WatchExecutionsRequest:
    """Of many."""
    request = execution_pb.WatchExecutionsRequest(
        filter=_filters.message(given),
        include_steps=steps,
        include_payloads=payloads,
        snapshot=f"WATCH_SNAPSHOT_{snapshot.upper()}",
    )
    if token:
        request.resume_token = token
    return request


# --- reports: rows as plain dicts, with the names of the API -------------------------------------------------------


def plain(message: Any) -> dict[str, Any]:
    """A message as a dict: times as `datetime`, whole numbers as `int`, statuses as words."""
    made: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            made[field.name] = {key: _plain_one(field, value[key]) for key in value}
        elif not _is_repeated(field):
            absent = field.has_presence and not message.HasField(field.name)
            made[field.name] = None if absent else _plain_one(field, value)
        else:
            made[field.name] = [_plain_one(field, one) for one in value]
    return made


def _is_repeated(field: Any) -> bool:
    # Which of the two there is depends on the release of protobuf.
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _plain_one(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        name = field.enum_type.values_by_number[value].name if value in field.enum_type.values_by_number else str(value)
        return name.rsplit("_", 1)[-1].lower()
    if field.message_type is None:
        return value
    kind = field.message_type.full_name
    if kind == "google.protobuf.Timestamp":
        return _records.at(value)
    if kind == "google.protobuf.Duration":
        return dt.timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    if kind == "google.protobuf.Struct":
        return from_struct(value)
    if kind == "google.protobuf.Value":
        return MessageToDict(value)
    return plain(value)


def report(given: Mapping[str, Any], period: str, time_zone: str) -> Op[list[dict[str, Any]]]:
    """Per day, week or month."""
    request = analytics_pb.GetReportRequest(
        filter=_filters.message(given),
        period=f"REPORT_PERIOD_{period.upper()}",
        time_zone=time_zone,
    )
    reply = yield Call("analytics", "GetReport", request)
    return [plain(one) for one in reply.periods]


def trends(given: Mapping[str, Any], interval: dt.timedelta) -> Op[list[dict[str, Any]]]:
    """How durations change, per app."""
    request = analytics_pb.GetTrendsRequest(filter=_filters.message(given))
    request.interval.FromTimedelta(interval)
    reply = yield Call("analytics", "GetTrends", request)
    return [plain(one) for one in reply.apps]


def errors(given: Mapping[str, Any]) -> Op[list[dict[str, Any]]]:
    """The most frequent errors."""
    reply = yield Call("analytics", "ListTopErrors", analytics_pb.ListTopErrorsRequest(filter=_filters.message(given)))
    return [plain(one) for one in reply.errors]


def search(query: str, given: Mapping[str, Any], limit: int) -> Op[list[dict[str, Any]]]:
    """The best hits."""
    request = search_pb.SearchRequest(query=query, filter=_filters.message(given), page_size=limit)
    reply = yield Call("search", "Search", request)
    return [plain(one) for one in reply.hits]


def _key(app: str | int, sub_app: str | int | None) -> dict[str, Any]:
    named: dict[str, Any] = {"app_id": app} if isinstance(app, int) else {"app_name": app}
    if sub_app is not None:
        named["sub_app_id" if isinstance(sub_app, int) else "sub_app_name"] = sub_app
    return named


def configuration(app: str | int, sub_app: str | int | None, version: str | None) -> Op[dict[str, Any]]:
    """One version, or the active one."""
    request = configuration_pb.GetConfigurationRequest(**_key(app, sub_app))
    if version is not None:
        request.version = version
    reply = yield Call("configurations", "GetConfiguration", request)
    return plain(reply.configuration)


def configurations(app: str | int, sub_app: str | int | None, token: str) -> Op[Page[dict[str, Any]]]:
    """A page of versions, newest first."""
    request = configuration_pb.ListConfigurationsRequest(**_key(app, sub_app), page_token=token)
    reply = yield Call("configurations", "ListConfigurations", request)
    return [plain(one) for one in reply.configurations], reply.next_page_token


def publish(app: str, version: str, content: Mapping[str, Any], app_id: int | None, activate: bool) -> Op[dict[str, Any]]:
    """A new version."""
    request = configuration_pb.PublishConfigurationRequest(activate=activate)
    made = request.configuration
    made.app_name, made.version = app, version
    if app_id is not None:
        made.app_id = app_id
    fill_struct(made.configuration, content)
    reply = yield Call("configurations", "PublishConfiguration", request)
    return plain(reply.configuration)


#: For type annotations of callers.
Pages = Callable[[str], Op[Page[T]]]

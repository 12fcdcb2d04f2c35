from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SuccessRateGroupBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUCCESS_RATE_GROUP_BY_UNSPECIFIED: _ClassVar[SuccessRateGroupBy]
    SUCCESS_RATE_GROUP_BY_APP: _ClassVar[SuccessRateGroupBy]
    SUCCESS_RATE_GROUP_BY_SUB_APP: _ClassVar[SuccessRateGroupBy]
    SUCCESS_RATE_GROUP_BY_USER: _ClassVar[SuccessRateGroupBy]

class ReportPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_PERIOD_UNSPECIFIED: _ClassVar[ReportPeriod]
    REPORT_PERIOD_DAY: _ClassVar[ReportPeriod]
    REPORT_PERIOD_WEEK: _ClassVar[ReportPeriod]
    REPORT_PERIOD_MONTH: _ClassVar[ReportPeriod]

class TrendDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TREND_DIRECTION_UNSPECIFIED: _ClassVar[TrendDirection]
    TREND_DIRECTION_UNKNOWN: _ClassVar[TrendDirection]
    TREND_DIRECTION_STEADY: _ClassVar[TrendDirection]
    TREND_DIRECTION_SLOWER: _ClassVar[TrendDirection]
    TREND_DIRECTION_FASTER: _ClassVar[TrendDirection]
SUCCESS_RATE_GROUP_BY_UNSPECIFIED: SuccessRateGroupBy
SUCCESS_RATE_GROUP_BY_APP: SuccessRateGroupBy
SUCCESS_RATE_GROUP_BY_SUB_APP: SuccessRateGroupBy
SUCCESS_RATE_GROUP_BY_USER: SuccessRateGroupBy
REPORT_PERIOD_UNSPECIFIED: ReportPeriod
REPORT_PERIOD_DAY: ReportPeriod
REPORT_PERIOD_WEEK: ReportPeriod
REPORT_PERIOD_MONTH: ReportPeriod
TREND_DIRECTION_UNSPECIFIED: TrendDirection
TREND_DIRECTION_UNKNOWN: TrendDirection
TREND_DIRECTION_STEADY: TrendDirection
TREND_DIRECTION_SLOWER: TrendDirection
TREND_DIRECTION_FASTER: TrendDirection

class Freshness(_message.Message):
    __slots__ = ("complete", "exact_since", "counted_until", "executions_read", "read_from", "unreadable", "not_counted_since")
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    EXACT_SINCE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_READ_FIELD_NUMBER: _ClassVar[int]
    READ_FROM_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    NOT_COUNTED_SINCE_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    exact_since: _timestamp_pb2.Timestamp
    counted_until: _timestamp_pb2.Timestamp
    executions_read: int
    read_from: _timestamp_pb2.Timestamp
    unreadable: int
    not_counted_since: _timestamp_pb2.Timestamp
    def __init__(self, complete: bool = ..., exact_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., counted_until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., executions_read: _Optional[int] = ..., read_from: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., unreadable: _Optional[int] = ..., not_counted_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetSuccessRatesRequest(_message.Message):
    __slots__ = ("filter", "group_by", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    group_by: SuccessRateGroupBy
    limit: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., group_by: _Optional[_Union[SuccessRateGroupBy, str]] = ..., limit: _Optional[int] = ...) -> None: ...

class SuccessRate(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "user_id", "total", "completed", "failed", "cancelled", "running", "success_rate", "mean_duration_ms")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    user_id: str
    total: int
    completed: int
    failed: int
    cancelled: int
    running: int
    success_rate: float
    mean_duration_ms: float
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., user_id: _Optional[str] = ..., total: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., running: _Optional[int] = ..., success_rate: _Optional[float] = ..., mean_duration_ms: _Optional[float] = ...) -> None: ...

class GetSuccessRatesResponse(_message.Message):
    __slots__ = ("groups", "total_groups", "freshness")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[SuccessRate]
    total_groups: int
    freshness: Freshness
    def __init__(self, groups: _Optional[_Iterable[_Union[SuccessRate, _Mapping]]] = ..., total_groups: _Optional[int] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("filter", "period", "time_zone", "periods", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    PERIODS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    period: ReportPeriod
    time_zone: str
    periods: int
    limit: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., period: _Optional[_Union[ReportPeriod, str]] = ..., time_zone: _Optional[str] = ..., periods: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ReportApp(_message.Message):
    __slots__ = ("app_id", "app_name", "executions", "completed", "failed", "cancelled", "running", "success_rate", "p50_duration_ms", "p90_duration_ms", "p99_duration_ms", "mean_duration_ms", "change")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    P50_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P99_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    executions: int
    completed: int
    failed: int
    cancelled: int
    running: int
    success_rate: float
    p50_duration_ms: int
    p90_duration_ms: int
    p99_duration_ms: int
    mean_duration_ms: float
    change: ReportChange
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., executions: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., running: _Optional[int] = ..., success_rate: _Optional[float] = ..., p50_duration_ms: _Optional[int] = ..., p90_duration_ms: _Optional[int] = ..., p99_duration_ms: _Optional[int] = ..., mean_duration_ms: _Optional[float] = ..., change: _Optional[_Union[ReportChange, _Mapping]] = ...) -> None: ...

class FailingStep(_message.Message):
    __slots__ = ("app_id", "app_name", "step_name", "failed", "errors", "top_fingerprint")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TOP_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    step_name: str
    failed: int
    errors: int
    top_fingerprint: str
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., step_name: _Optional[str] = ..., failed: _Optional[int] = ..., errors: _Optional[int] = ..., top_fingerprint: _Optional[str] = ...) -> None: ...

class ReportChange(_message.Message):
    __slots__ = ("previous_executions", "executions_change", "success_rate_change", "p50_duration_change", "p90_duration_change", "p99_duration_change", "mean_duration_change")
    PREVIOUS_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_CHANGE_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    P50_DURATION_CHANGE_FIELD_NUMBER: _ClassVar[int]
    P90_DURATION_CHANGE_FIELD_NUMBER: _ClassVar[int]
    P99_DURATION_CHANGE_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_CHANGE_FIELD_NUMBER: _ClassVar[int]
    previous_executions: int
    executions_change: float
    success_rate_change: float
    p50_duration_change: float
    p90_duration_change: float
    p99_duration_change: float
    mean_duration_change: float
    def __init__(self, previous_executions: _Optional[int] = ..., executions_change: _Optional[float] = ..., success_rate_change: _Optional[float] = ..., p50_duration_change: _Optional[float] = ..., p90_duration_change: _Optional[float] = ..., p99_duration_change: _Optional[float] = ..., mean_duration_change: _Optional[float] = ...) -> None: ...

class ReportRow(_message.Message):
    __slots__ = ("label", "start", "end", "partial", "executions", "completed", "failed", "cancelled", "running", "success_rate", "p50_duration_ms", "p90_duration_ms", "p99_duration_ms", "mean_duration_ms", "change", "apps", "total_apps", "top_failing_steps")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    P50_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P99_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    APPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_APPS_FIELD_NUMBER: _ClassVar[int]
    TOP_FAILING_STEPS_FIELD_NUMBER: _ClassVar[int]
    label: str
    start: _timestamp_pb2.Timestamp
    end: _timestamp_pb2.Timestamp
    partial: bool
    executions: int
    completed: int
    failed: int
    cancelled: int
    running: int
    success_rate: float
    p50_duration_ms: int
    p90_duration_ms: int
    p99_duration_ms: int
    mean_duration_ms: float
    change: ReportChange
    apps: _containers.RepeatedCompositeFieldContainer[ReportApp]
    total_apps: int
    top_failing_steps: _containers.RepeatedCompositeFieldContainer[FailingStep]
    def __init__(self, label: _Optional[str] = ..., start: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., partial: bool = ..., executions: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., running: _Optional[int] = ..., success_rate: _Optional[float] = ..., p50_duration_ms: _Optional[int] = ..., p90_duration_ms: _Optional[int] = ..., p99_duration_ms: _Optional[int] = ..., mean_duration_ms: _Optional[float] = ..., change: _Optional[_Union[ReportChange, _Mapping]] = ..., apps: _Optional[_Iterable[_Union[ReportApp, _Mapping]]] = ..., total_apps: _Optional[int] = ..., top_failing_steps: _Optional[_Iterable[_Union[FailingStep, _Mapping]]] = ...) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("periods", "time_zone", "truncated", "freshness")
    PERIODS_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    periods: _containers.RepeatedCompositeFieldContainer[ReportRow]
    time_zone: str
    truncated: bool
    freshness: Freshness
    def __init__(self, periods: _Optional[_Iterable[_Union[ReportRow, _Mapping]]] = ..., time_zone: _Optional[str] = ..., truncated: bool = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class GetTrendsRequest(_message.Message):
    __slots__ = ("filter", "interval", "time_zone", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    interval: _duration_pb2.Duration
    time_zone: str
    limit: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., time_zone: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class TrendInterval(_message.Message):
    __slots__ = ("start", "end", "app_id", "app_name", "executions", "completed", "failed", "cancelled", "running", "success_rate", "p50_duration_ms", "p90_duration_ms", "p99_duration_ms", "mean_duration_ms")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    P50_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P99_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    start: _timestamp_pb2.Timestamp
    end: _timestamp_pb2.Timestamp
    app_id: int
    app_name: str
    executions: int
    completed: int
    failed: int
    cancelled: int
    running: int
    success_rate: float
    p50_duration_ms: int
    p90_duration_ms: int
    p99_duration_ms: int
    mean_duration_ms: float
    def __init__(self, start: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., executions: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., running: _Optional[int] = ..., success_rate: _Optional[float] = ..., p50_duration_ms: _Optional[int] = ..., p90_duration_ms: _Optional[int] = ..., p99_duration_ms: _Optional[int] = ..., mean_duration_ms: _Optional[float] = ...) -> None: ...

class AppTrend(_message.Message):
    __slots__ = ("app_id", "app_name", "executions", "direction", "text", "significant", "recent_since", "earlier_p90_duration_ms", "recent_p90_duration_ms", "earlier_durations", "recent_durations")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNIFICANT_FIELD_NUMBER: _ClassVar[int]
    RECENT_SINCE_FIELD_NUMBER: _ClassVar[int]
    EARLIER_P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    RECENT_P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    EARLIER_DURATIONS_FIELD_NUMBER: _ClassVar[int]
    RECENT_DURATIONS_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    executions: int
    direction: TrendDirection
    text: str
    significant: bool
    recent_since: _timestamp_pb2.Timestamp
    earlier_p90_duration_ms: int
    recent_p90_duration_ms: int
    earlier_durations: int
    recent_durations: int
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., executions: _Optional[int] = ..., direction: _Optional[_Union[TrendDirection, str]] = ..., text: _Optional[str] = ..., significant: bool = ..., recent_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., earlier_p90_duration_ms: _Optional[int] = ..., recent_p90_duration_ms: _Optional[int] = ..., earlier_durations: _Optional[int] = ..., recent_durations: _Optional[int] = ...) -> None: ...

class GetTrendsResponse(_message.Message):
    __slots__ = ("intervals", "apps", "total_apps", "time_zone", "freshness")
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    APPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_APPS_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    intervals: _containers.RepeatedCompositeFieldContainer[TrendInterval]
    apps: _containers.RepeatedCompositeFieldContainer[AppTrend]
    total_apps: int
    time_zone: str
    freshness: Freshness
    def __init__(self, intervals: _Optional[_Iterable[_Union[TrendInterval, _Mapping]]] = ..., apps: _Optional[_Iterable[_Union[AppTrend, _Mapping]]] = ..., total_apps: _Optional[int] = ..., time_zone: _Optional[str] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class GetUserActivityRequest(_message.Message):
    __slots__ = ("filter", "time_zone", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    time_zone: str
    limit: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., time_zone: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class UserActivity(_message.Message):
    __slots__ = ("user_id", "executions", "hours")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    executions: int
    hours: _containers.RepeatedCompositeFieldContainer[HourActivity]
    def __init__(self, user_id: _Optional[str] = ..., executions: _Optional[int] = ..., hours: _Optional[_Iterable[_Union[HourActivity, _Mapping]]] = ...) -> None: ...

class HourActivity(_message.Message):
    __slots__ = ("hour_of_week", "executions")
    HOUR_OF_WEEK_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    hour_of_week: int
    executions: int
    def __init__(self, hour_of_week: _Optional[int] = ..., executions: _Optional[int] = ...) -> None: ...

class GetUserActivityResponse(_message.Message):
    __slots__ = ("users", "total_users", "hours", "executions", "since", "until", "time_zone", "freshness")
    USERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_USERS_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[UserActivity]
    total_users: int
    hours: _containers.RepeatedCompositeFieldContainer[HourActivity]
    executions: int
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    time_zone: str
    freshness: Freshness
    def __init__(self, users: _Optional[_Iterable[_Union[UserActivity, _Mapping]]] = ..., total_users: _Optional[int] = ..., hours: _Optional[_Iterable[_Union[HourActivity, _Mapping]]] = ..., executions: _Optional[int] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., time_zone: _Optional[str] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class ListSlowestStepsRequest(_message.Message):
    __slots__ = ("filter", "limit", "max_executions")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    limit: int
    max_executions: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., limit: _Optional[int] = ..., max_executions: _Optional[int] = ...) -> None: ...

class SlowStep(_message.Message):
    __slots__ = ("app_id", "app_name", "step_name", "count", "failed", "timed", "mean_duration_ms", "p50_duration_ms", "p90_duration_ms", "p99_duration_ms", "max_duration_ms", "execution_id", "step_id")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TIMED_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P50_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P90_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    P99_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    step_name: str
    count: int
    failed: int
    timed: int
    mean_duration_ms: float
    p50_duration_ms: int
    p90_duration_ms: int
    p99_duration_ms: int
    max_duration_ms: int
    execution_id: str
    step_id: int
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., step_name: _Optional[str] = ..., count: _Optional[int] = ..., failed: _Optional[int] = ..., timed: _Optional[int] = ..., mean_duration_ms: _Optional[float] = ..., p50_duration_ms: _Optional[int] = ..., p90_duration_ms: _Optional[int] = ..., p99_duration_ms: _Optional[int] = ..., max_duration_ms: _Optional[int] = ..., execution_id: _Optional[str] = ..., step_id: _Optional[int] = ...) -> None: ...

class ListSlowestStepsResponse(_message.Message):
    __slots__ = ("steps", "total_steps", "max_executions", "steps_read", "freshness")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_READ_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[SlowStep]
    total_steps: int
    max_executions: int
    steps_read: int
    freshness: Freshness
    def __init__(self, steps: _Optional[_Iterable[_Union[SlowStep, _Mapping]]] = ..., total_steps: _Optional[int] = ..., max_executions: _Optional[int] = ..., steps_read: _Optional[int] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class ListTopErrorsRequest(_message.Message):
    __slots__ = ("filter", "limit", "samples")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    limit: int
    samples: int
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., limit: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

class ErrorSample(_message.Message):
    __slots__ = ("execution_id", "step_id", "step_name", "failed_at", "message")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    FAILED_AT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    step_name: str
    failed_at: _timestamp_pb2.Timestamp
    message: str
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_name: _Optional[str] = ..., failed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class TopError(_message.Message):
    __slots__ = ("fingerprint", "pattern", "count", "executions", "steps", "first_seen", "last_seen", "samples", "trend", "app_names", "step_names")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TREND_FIELD_NUMBER: _ClassVar[int]
    APP_NAMES_FIELD_NUMBER: _ClassVar[int]
    STEP_NAMES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    pattern: str
    count: int
    executions: int
    steps: int
    first_seen: _timestamp_pb2.Timestamp
    last_seen: _timestamp_pb2.Timestamp
    samples: _containers.RepeatedCompositeFieldContainer[ErrorSample]
    trend: _containers.RepeatedScalarFieldContainer[int]
    app_names: _containers.RepeatedScalarFieldContainer[str]
    step_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fingerprint: _Optional[str] = ..., pattern: _Optional[str] = ..., count: _Optional[int] = ..., executions: _Optional[int] = ..., steps: _Optional[int] = ..., first_seen: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_seen: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[ErrorSample, _Mapping]]] = ..., trend: _Optional[_Iterable[int]] = ..., app_names: _Optional[_Iterable[str]] = ..., step_names: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTopErrorsResponse(_message.Message):
    __slots__ = ("errors", "total_errors", "interval_starts", "since", "until", "freshness")
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ERRORS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_STARTS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedCompositeFieldContainer[TopError]
    total_errors: int
    interval_starts: _containers.RepeatedCompositeFieldContainer[_timestamp_pb2.Timestamp]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    freshness: Freshness
    def __init__(self, errors: _Optional[_Iterable[_Union[TopError, _Mapping]]] = ..., total_errors: _Optional[int] = ..., interval_starts: _Optional[_Iterable[_Union[_timestamp_pb2.Timestamp, _Mapping]]] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

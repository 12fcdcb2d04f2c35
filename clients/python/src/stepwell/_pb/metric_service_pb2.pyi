from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordMetricsRequest(_message.Message):
    __slots__ = ("execution_id", "points", "request_id")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    points: _containers.RepeatedCompositeFieldContainer[_common_pb2.MetricPoint]
    request_id: str
    def __init__(self, execution_id: _Optional[str] = ..., points: _Optional[_Iterable[_Union[_common_pb2.MetricPoint, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecordMetricsResponse(_message.Message):
    __slots__ = ("accepted", "too_old", "in_future", "already_there")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOO_OLD_FIELD_NUMBER: _ClassVar[int]
    IN_FUTURE_FIELD_NUMBER: _ClassVar[int]
    ALREADY_THERE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    too_old: int
    in_future: int
    already_there: int
    def __init__(self, accepted: _Optional[int] = ..., too_old: _Optional[int] = ..., in_future: _Optional[int] = ..., already_there: _Optional[int] = ...) -> None: ...

class StreamMetricsRequest(_message.Message):
    __slots__ = ("execution_id", "points", "request_id")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    points: _containers.RepeatedCompositeFieldContainer[_common_pb2.MetricPoint]
    request_id: str
    def __init__(self, execution_id: _Optional[str] = ..., points: _Optional[_Iterable[_Union[_common_pb2.MetricPoint, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class StreamMetricsResponse(_message.Message):
    __slots__ = ("accepted", "too_old", "in_future")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOO_OLD_FIELD_NUMBER: _ClassVar[int]
    IN_FUTURE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    too_old: int
    in_future: int
    def __init__(self, accepted: _Optional[int] = ..., too_old: _Optional[int] = ..., in_future: _Optional[int] = ...) -> None: ...

class QueryMetricsRequest(_message.Message):
    __slots__ = ("execution_id", "names", "since", "until", "interval", "page_size", "page_token", "step_id", "step_key")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    interval: _duration_pb2.Duration
    page_size: int
    page_token: str
    step_id: int
    step_key: str
    def __init__(self, execution_id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ...) -> None: ...

class MetricInterval(_message.Message):
    __slots__ = ("name", "start", "min", "max", "mean", "last", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    start: _timestamp_pb2.Timestamp
    min: float
    max: float
    mean: float
    last: float
    count: int
    def __init__(self, name: _Optional[str] = ..., start: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., last: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class QueryMetricsResponse(_message.Message):
    __slots__ = ("points", "intervals", "next_page_token")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[_common_pb2.MetricPoint]
    intervals: _containers.RepeatedCompositeFieldContainer[MetricInterval]
    next_page_token: str
    def __init__(self, points: _Optional[_Iterable[_Union[_common_pb2.MetricPoint, _Mapping]]] = ..., intervals: _Optional[_Iterable[_Union[MetricInterval, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

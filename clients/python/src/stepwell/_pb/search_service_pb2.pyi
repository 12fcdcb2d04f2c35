from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEARCH_KIND_UNSPECIFIED: _ClassVar[SearchKind]
    SEARCH_KIND_EXECUTION_ERROR: _ClassVar[SearchKind]
    SEARCH_KIND_STEP_ERROR: _ClassVar[SearchKind]
    SEARCH_KIND_STEP_OUTPUT: _ClassVar[SearchKind]
    SEARCH_KIND_ARTIFACT_TEXT: _ClassVar[SearchKind]
SEARCH_KIND_UNSPECIFIED: SearchKind
SEARCH_KIND_EXECUTION_ERROR: SearchKind
SEARCH_KIND_STEP_ERROR: SearchKind
SEARCH_KIND_STEP_OUTPUT: SearchKind
SEARCH_KIND_ARTIFACT_TEXT: SearchKind

class SearchRequest(_message.Message):
    __slots__ = ("query", "filter", "kinds", "page_size", "page_token")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    query: str
    filter: _common_pb2.ExecutionFilter
    kinds: _containers.RepeatedScalarFieldContainer[SearchKind]
    page_size: int
    page_token: str
    def __init__(self, query: _Optional[str] = ..., filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., kinds: _Optional[_Iterable[_Union[SearchKind, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SearchHighlight(_message.Message):
    __slots__ = ("offset", "length")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SearchHit(_message.Message):
    __slots__ = ("kind", "execution_id", "step_id", "artifact_id", "step_name", "artifact_name", "snippet", "highlights", "score", "truncated")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_NAME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_NAME_FIELD_NUMBER: _ClassVar[int]
    SNIPPET_FIELD_NUMBER: _ClassVar[int]
    HIGHLIGHTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    kind: SearchKind
    execution_id: str
    step_id: int
    artifact_id: str
    step_name: str
    artifact_name: str
    snippet: str
    highlights: _containers.RepeatedCompositeFieldContainer[SearchHighlight]
    score: float
    truncated: bool
    def __init__(self, kind: _Optional[_Union[SearchKind, str]] = ..., execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., artifact_id: _Optional[str] = ..., step_name: _Optional[str] = ..., artifact_name: _Optional[str] = ..., snippet: _Optional[str] = ..., highlights: _Optional[_Iterable[_Union[SearchHighlight, _Mapping]]] = ..., score: _Optional[float] = ..., truncated: bool = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "next_page_token", "up_to_date", "not_indexed_since")
    HITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    UP_TO_DATE_FIELD_NUMBER: _ClassVar[int]
    NOT_INDEXED_SINCE_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHit]
    next_page_token: str
    up_to_date: bool
    not_indexed_since: _timestamp_pb2.Timestamp
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHit, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., up_to_date: bool = ..., not_indexed_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from stepwell._pb import configuration_service_pb2 as _configuration_service_pb2
from stepwell._pb import export_service_pb2 as _export_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DigestLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIGEST_LEVEL_UNSPECIFIED: _ClassVar[DigestLevel]
    DIGEST_LEVEL_RANGES: _ClassVar[DigestLevel]
    DIGEST_LEVEL_RECORDS: _ClassVar[DigestLevel]
    DIGEST_LEVEL_FIELDS: _ClassVar[DigestLevel]
DIGEST_LEVEL_UNSPECIFIED: DigestLevel
DIGEST_LEVEL_RANGES: DigestLevel
DIGEST_LEVEL_RECORDS: DigestLevel
DIGEST_LEVEL_FIELDS: DigestLevel

class DigestSelection(_message.Message):
    __slots__ = ("kind", "ranges")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    kind: _export_service_pb2.ExportKind
    ranges: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[_export_service_pb2.ExportKind, str]] = ..., ranges: _Optional[_Iterable[int]] = ...) -> None: ...

class DigestKey(_message.Message):
    __slots__ = ("kind", "execution_id", "step_id", "app_name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    kind: _export_service_pb2.ExportKind
    execution_id: str
    step_id: int
    app_name: str
    def __init__(self, kind: _Optional[_Union[_export_service_pb2.ExportKind, str]] = ..., execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., app_name: _Optional[str] = ...) -> None: ...

class GetDigestsRequest(_message.Message):
    __slots__ = ("filter", "selections", "level", "keys", "include_values")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SELECTIONS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_VALUES_FIELD_NUMBER: _ClassVar[int]
    filter: _common_pb2.ExecutionFilter
    selections: _containers.RepeatedCompositeFieldContainer[DigestSelection]
    level: DigestLevel
    keys: _containers.RepeatedCompositeFieldContainer[DigestKey]
    include_values: bool
    def __init__(self, filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., selections: _Optional[_Iterable[_Union[DigestSelection, _Mapping]]] = ..., level: _Optional[_Union[DigestLevel, str]] = ..., keys: _Optional[_Iterable[_Union[DigestKey, _Mapping]]] = ..., include_values: bool = ...) -> None: ...

class DigestsBegun(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class RangeDigest(_message.Message):
    __slots__ = ("kind", "range", "count", "digest")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    kind: _export_service_pb2.ExportKind
    range: int
    count: int
    digest: bytes
    def __init__(self, kind: _Optional[_Union[_export_service_pb2.ExportKind, str]] = ..., range: _Optional[int] = ..., count: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class FieldDigest(_message.Message):
    __slots__ = ("name", "digest", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    value: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., value: _Optional[str] = ...) -> None: ...

class RecordDigest(_message.Message):
    __slots__ = ("kind", "execution_id", "step_id", "step_key", "artifact_id", "timestamp", "configuration", "digest", "fields", "bytes_sha256")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SHA256_FIELD_NUMBER: _ClassVar[int]
    kind: _export_service_pb2.ExportKind
    execution_id: str
    step_id: int
    step_key: str
    artifact_id: str
    timestamp: _timestamp_pb2.Timestamp
    configuration: _configuration_service_pb2.ConfigurationKey
    digest: bytes
    fields: _containers.RepeatedCompositeFieldContainer[FieldDigest]
    bytes_sha256: str
    def __init__(self, kind: _Optional[_Union[_export_service_pb2.ExportKind, str]] = ..., execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., step_key: _Optional[str] = ..., artifact_id: _Optional[str] = ..., timestamp: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., configuration: _Optional[_Union[_configuration_service_pb2.ConfigurationKey, _Mapping]] = ..., digest: _Optional[bytes] = ..., fields: _Optional[_Iterable[_Union[FieldDigest, _Mapping]]] = ..., bytes_sha256: _Optional[str] = ...) -> None: ...

class DigestsProgress(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: int
    def __init__(self, records: _Optional[int] = ...) -> None: ...

class DigestsComplete(_message.Message):
    __slots__ = ("unreadable",)
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    unreadable: int
    def __init__(self, unreadable: _Optional[int] = ...) -> None: ...

class RangeDigests(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[RangeDigest]
    def __init__(self, ranges: _Optional[_Iterable[_Union[RangeDigest, _Mapping]]] = ...) -> None: ...

class RecordDigests(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[RecordDigest]
    def __init__(self, records: _Optional[_Iterable[_Union[RecordDigest, _Mapping]]] = ...) -> None: ...

class GetDigestsResponse(_message.Message):
    __slots__ = ("begun", "ranges", "records", "progress", "complete")
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    begun: DigestsBegun
    ranges: RangeDigests
    records: RecordDigests
    progress: DigestsProgress
    complete: DigestsComplete
    def __init__(self, begun: _Optional[_Union[DigestsBegun, _Mapping]] = ..., ranges: _Optional[_Union[RangeDigests, _Mapping]] = ..., records: _Optional[_Union[RecordDigests, _Mapping]] = ..., progress: _Optional[_Union[DigestsProgress, _Mapping]] = ..., complete: _Optional[_Union[DigestsComplete, _Mapping]] = ...) -> None: ...

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RebuildAnalyticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RebuildAnalyticsResponse(_message.Message):
    __slots__ = ("executions", "wrong", "gone", "rollups_wrong", "done")
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    ROLLUPS_WRONG_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    executions: int
    wrong: int
    gone: int
    rollups_wrong: int
    done: bool
    def __init__(self, executions: _Optional[int] = ..., wrong: _Optional[int] = ..., gone: _Optional[int] = ..., rollups_wrong: _Optional[int] = ..., done: bool = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "store", "store_version", "features", "limits", "database_id")
    class LimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    STORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DATABASE_ID_FIELD_NUMBER: _ClassVar[int]
    version: str
    store: str
    store_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    limits: _containers.ScalarMap[str, int]
    database_id: str
    def __init__(self, version: _Optional[str] = ..., store: _Optional[str] = ..., store_version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., limits: _Optional[_Mapping[str, int]] = ..., database_id: _Optional[str] = ...) -> None: ...

class CheckIndexesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IndexCheck(_message.Message):
    __slots__ = ("collection", "keys", "unique", "served_by", "advice")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    keys: str
    unique: bool
    served_by: str
    advice: str
    def __init__(self, collection: _Optional[str] = ..., keys: _Optional[str] = ..., unique: bool = ..., served_by: _Optional[str] = ..., advice: _Optional[str] = ...) -> None: ...

class CheckIndexesResponse(_message.Message):
    __slots__ = ("indexes",)
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedCompositeFieldContainer[IndexCheck]
    def __init__(self, indexes: _Optional[_Iterable[_Union[IndexCheck, _Mapping]]] = ...) -> None: ...

class RunRetentionRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: bool = ...) -> None: ...

class RetentionCount(_message.Message):
    __slots__ = ("collection", "records", "bytes", "oldest_kept")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_KEPT_FIELD_NUMBER: _ClassVar[int]
    collection: str
    records: int
    bytes: int
    oldest_kept: _timestamp_pb2.Timestamp
    def __init__(self, collection: _Optional[str] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., oldest_kept: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RetentionProgress(_message.Message):
    __slots__ = ("collections",)
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[RetentionCount]
    def __init__(self, collections: _Optional[_Iterable[_Union[RetentionCount, _Mapping]]] = ...) -> None: ...

class RetentionReceipt(_message.Message):
    __slots__ = ("collections", "dry_run")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[RetentionCount]
    dry_run: bool
    def __init__(self, collections: _Optional[_Iterable[_Union[RetentionCount, _Mapping]]] = ..., dry_run: bool = ...) -> None: ...

class RunRetentionResponse(_message.Message):
    __slots__ = ("progress", "receipt")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    progress: RetentionProgress
    receipt: RetentionReceipt
    def __init__(self, progress: _Optional[_Union[RetentionProgress, _Mapping]] = ..., receipt: _Optional[_Union[RetentionReceipt, _Mapping]] = ...) -> None: ...

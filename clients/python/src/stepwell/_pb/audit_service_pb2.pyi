from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditFlaw(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_FLAW_UNSPECIFIED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_BREAK: _ClassVar[AuditFlaw]
    AUDIT_FLAW_GAP: _ClassVar[AuditFlaw]
    AUDIT_FLAW_LOST_TAIL: _ClassVar[AuditFlaw]
    AUDIT_FLAW_MISSING_CHAIN: _ClassVar[AuditFlaw]
AUDIT_FLAW_UNSPECIFIED: AuditFlaw
AUDIT_FLAW_BREAK: AuditFlaw
AUDIT_FLAW_GAP: AuditFlaw
AUDIT_FLAW_LOST_TAIL: AuditFlaw
AUDIT_FLAW_MISSING_CHAIN: AuditFlaw

class AuditActor(_message.Message):
    __slots__ = ("kind", "id", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class AuditTarget(_message.Message):
    __slots__ = ("execution_id", "step_id", "artifact_id", "key_id", "app_name", "version")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    step_id: int
    artifact_id: str
    key_id: str
    app_name: str
    version: str
    def __init__(self, execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., artifact_id: _Optional[str] = ..., key_id: _Optional[str] = ..., app_name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("id", "server", "seq", "at", "event", "phase", "outcome", "code", "reason", "actor", "peer", "rpc", "target", "count", "details", "request_id", "prev", "hash", "document")
    ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    RPC_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREV_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    server: str
    seq: int
    at: _timestamp_pb2.Timestamp
    event: str
    phase: str
    outcome: str
    code: str
    reason: str
    actor: AuditActor
    peer: str
    rpc: str
    target: AuditTarget
    count: int
    details: _struct_pb2.Struct
    request_id: str
    prev: bytes
    hash: bytes
    document: bytes
    def __init__(self, id: _Optional[str] = ..., server: _Optional[str] = ..., seq: _Optional[int] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., event: _Optional[str] = ..., phase: _Optional[str] = ..., outcome: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., actor: _Optional[_Union[AuditActor, _Mapping]] = ..., peer: _Optional[str] = ..., rpc: _Optional[str] = ..., target: _Optional[_Union[AuditTarget, _Mapping]] = ..., count: _Optional[int] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., request_id: _Optional[str] = ..., prev: _Optional[bytes] = ..., hash: _Optional[bytes] = ..., document: _Optional[bytes] = ...) -> None: ...

class AuditHead(_message.Message):
    __slots__ = ("server", "seq", "hash", "at", "stopped")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    server: str
    seq: int
    hash: bytes
    at: _timestamp_pb2.Timestamp
    stopped: bool
    def __init__(self, server: _Optional[str] = ..., seq: _Optional[int] = ..., hash: _Optional[bytes] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., stopped: bool = ...) -> None: ...

class ListAuditEventsRequest(_message.Message):
    __slots__ = ("since", "until", "actors", "events", "outcomes", "execution_id", "page_size", "page_token", "oldest_first", "include_documents")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    actors: _containers.RepeatedScalarFieldContainer[str]
    events: _containers.RepeatedScalarFieldContainer[str]
    outcomes: _containers.RepeatedScalarFieldContainer[str]
    execution_id: str
    page_size: int
    page_token: str
    oldest_first: bool
    include_documents: bool
    def __init__(self, since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., actors: _Optional[_Iterable[str]] = ..., events: _Optional[_Iterable[str]] = ..., outcomes: _Optional[_Iterable[str]] = ..., execution_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., oldest_first: bool = ..., include_documents: bool = ...) -> None: ...

class ListAuditEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AuditEvent]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[AuditEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetAuditHeadsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetAuditHeadsResponse(_message.Message):
    __slots__ = ("heads", "next_page_token")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[AuditHead]
    next_page_token: str
    def __init__(self, heads: _Optional[_Iterable[_Union[AuditHead, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class VerifyAuditRequest(_message.Message):
    __slots__ = ("heads",)
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[AuditHead]
    def __init__(self, heads: _Optional[_Iterable[_Union[AuditHead, _Mapping]]] = ...) -> None: ...

class AuditProgress(_message.Message):
    __slots__ = ("chains", "records")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    chains: int
    records: int
    def __init__(self, chains: _Optional[int] = ..., records: _Optional[int] = ...) -> None: ...

class AuditFinding(_message.Message):
    __slots__ = ("flaw", "server", "seq", "description")
    FLAW_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    flaw: AuditFlaw
    server: str
    seq: int
    description: str
    def __init__(self, flaw: _Optional[_Union[AuditFlaw, str]] = ..., server: _Optional[str] = ..., seq: _Optional[int] = ..., description: _Optional[str] = ...) -> None: ...

class AuditVerdict(_message.Message):
    __slots__ = ("chains", "records", "findings")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    chains: int
    records: int
    findings: int
    def __init__(self, chains: _Optional[int] = ..., records: _Optional[int] = ..., findings: _Optional[int] = ...) -> None: ...

class VerifyAuditResponse(_message.Message):
    __slots__ = ("progress", "finding", "verdict")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    progress: AuditProgress
    finding: AuditFinding
    verdict: AuditVerdict
    def __init__(self, progress: _Optional[_Union[AuditProgress, _Mapping]] = ..., finding: _Optional[_Union[AuditFinding, _Mapping]] = ..., verdict: _Optional[_Union[AuditVerdict, _Mapping]] = ...) -> None: ...

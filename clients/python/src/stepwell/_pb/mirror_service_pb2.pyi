from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MirrorPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MIRROR_PHASE_UNSPECIFIED: _ClassVar[MirrorPhase]
    MIRROR_PHASE_COPYING: _ClassVar[MirrorPhase]
    MIRROR_PHASE_FOLLOWING: _ClassVar[MirrorPhase]
    MIRROR_PHASE_FINISHED: _ClassVar[MirrorPhase]
MIRROR_PHASE_UNSPECIFIED: MirrorPhase
MIRROR_PHASE_COPYING: MirrorPhase
MIRROR_PHASE_FOLLOWING: MirrorPhase
MIRROR_PHASE_FINISHED: MirrorPhase

class MirrorCounts(_message.Message):
    __slots__ = ("executions", "steps", "artifacts", "points", "configurations", "deletions")
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATIONS_FIELD_NUMBER: _ClassVar[int]
    DELETIONS_FIELD_NUMBER: _ClassVar[int]
    executions: int
    steps: int
    artifacts: int
    points: int
    configurations: int
    deletions: int
    def __init__(self, executions: _Optional[int] = ..., steps: _Optional[int] = ..., artifacts: _Optional[int] = ..., points: _Optional[int] = ..., configurations: _Optional[int] = ..., deletions: _Optional[int] = ...) -> None: ...

class MirrorVerification(_message.Message):
    __slots__ = ("clean", "position", "differences", "at")
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    clean: bool
    position: int
    differences: int
    at: _timestamp_pb2.Timestamp
    def __init__(self, clean: bool = ..., position: _Optional[int] = ..., differences: _Optional[int] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class MirrorProgress(_message.Message):
    __slots__ = ("phase", "resume_token", "position", "changed_position", "lag_ms", "copied", "refused", "conflicts")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_POSITION_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    phase: MirrorPhase
    resume_token: str
    position: int
    changed_position: int
    lag_ms: int
    copied: MirrorCounts
    refused: _containers.ScalarMap[str, int]
    conflicts: int
    def __init__(self, phase: _Optional[_Union[MirrorPhase, str]] = ..., resume_token: _Optional[str] = ..., position: _Optional[int] = ..., changed_position: _Optional[int] = ..., lag_ms: _Optional[int] = ..., copied: _Optional[_Union[MirrorCounts, _Mapping]] = ..., refused: _Optional[_Mapping[str, int]] = ..., conflicts: _Optional[int] = ...) -> None: ...

class Mirror(_message.Message):
    __slots__ = ("name", "source", "progress", "verification", "session", "begun_at", "advanced_at", "finished_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BEGUN_AT_FIELD_NUMBER: _ClassVar[int]
    ADVANCED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    progress: MirrorProgress
    verification: MirrorVerification
    session: int
    begun_at: _timestamp_pb2.Timestamp
    advanced_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., progress: _Optional[_Union[MirrorProgress, _Mapping]] = ..., verification: _Optional[_Union[MirrorVerification, _Mapping]] = ..., session: _Optional[int] = ..., begun_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., advanced_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class MirrorServiceBeginRequest(_message.Message):
    __slots__ = ("name", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class MirrorServiceBeginResponse(_message.Message):
    __slots__ = ("mirror",)
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    mirror: Mirror
    def __init__(self, mirror: _Optional[_Union[Mirror, _Mapping]] = ...) -> None: ...

class MirrorServiceAdvanceRequest(_message.Message):
    __slots__ = ("name", "session", "progress", "verification")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    session: int
    progress: MirrorProgress
    verification: MirrorVerification
    def __init__(self, name: _Optional[str] = ..., session: _Optional[int] = ..., progress: _Optional[_Union[MirrorProgress, _Mapping]] = ..., verification: _Optional[_Union[MirrorVerification, _Mapping]] = ...) -> None: ...

class MirrorServiceAdvanceResponse(_message.Message):
    __slots__ = ("mirror",)
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    mirror: Mirror
    def __init__(self, mirror: _Optional[_Union[Mirror, _Mapping]] = ...) -> None: ...

class MirrorServiceGetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class MirrorServiceGetResponse(_message.Message):
    __slots__ = ("mirror",)
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    mirror: Mirror
    def __init__(self, mirror: _Optional[_Union[Mirror, _Mapping]] = ...) -> None: ...

class MirrorServiceFinishRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: bool = ...) -> None: ...

class MirrorServiceFinishResponse(_message.Message):
    __slots__ = ("mirror",)
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    mirror: Mirror
    def __init__(self, mirror: _Optional[_Union[Mirror, _Mapping]] = ...) -> None: ...

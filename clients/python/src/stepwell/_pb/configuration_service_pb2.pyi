from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Configuration(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "version", "configuration", "active", "created_at", "created_by", "omitted_fields")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    version: str
    configuration: _struct_pb2.Struct
    active: bool
    created_at: _timestamp_pb2.Timestamp
    created_by: str
    omitted_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., version: _Optional[str] = ..., configuration: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., active: bool = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_by: _Optional[str] = ..., omitted_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class ConfigurationKey(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "version")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    version: str
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class PublishConfigurationRequest(_message.Message):
    __slots__ = ("configuration", "activate")
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    activate: bool
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ..., activate: bool = ...) -> None: ...

class PublishConfigurationResponse(_message.Message):
    __slots__ = ("configuration",)
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ...) -> None: ...

class GetConfigurationRequest(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "version")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    version: str
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetConfigurationResponse(_message.Message):
    __slots__ = ("configuration",)
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ...) -> None: ...

class ListConfigurationsRequest(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "page_size", "page_token")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    page_size: int
    page_token: str
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListConfigurationsResponse(_message.Message):
    __slots__ = ("configurations", "next_page_token")
    CONFIGURATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    configurations: _containers.RepeatedCompositeFieldContainer[Configuration]
    next_page_token: str
    def __init__(self, configurations: _Optional[_Iterable[_Union[Configuration, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ActivateConfigurationRequest(_message.Message):
    __slots__ = ("app_id", "app_name", "sub_app_id", "sub_app_name", "version")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_APP_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    app_id: int
    app_name: str
    sub_app_id: int
    sub_app_name: str
    version: str
    def __init__(self, app_id: _Optional[int] = ..., app_name: _Optional[str] = ..., sub_app_id: _Optional[int] = ..., sub_app_name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ActivateConfigurationResponse(_message.Message):
    __slots__ = ("configuration",)
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ...) -> None: ...

class DiffConfigurationsRequest(_message.Message):
    __slots__ = ("from_version", "to_version")
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    from_version: ConfigurationKey
    to_version: ConfigurationKey
    def __init__(self, from_version: _Optional[_Union[ConfigurationKey, _Mapping]] = ..., to_version: _Optional[_Union[ConfigurationKey, _Mapping]] = ...) -> None: ...

class ConfigurationChange(_message.Message):
    __slots__ = ("op", "path", "value")
    OP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    op: str
    path: str
    value: _struct_pb2.Value
    def __init__(self, op: _Optional[str] = ..., path: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class DiffConfigurationsResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ConfigurationChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ConfigurationChange, _Mapping]]] = ...) -> None: ...

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepwell._pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NotificationEvent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTIFICATION_EVENT_UNSPECIFIED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_STARTED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_COMPLETED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_FAILED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_CANCELLED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_HEARTBEAT_TIMEOUT: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_REVIVED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_EXECUTION_CANCEL_REQUESTED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_STEP_FAILED: _ClassVar[NotificationEvent]
    NOTIFICATION_EVENT_STEP_RETRIED: _ClassVar[NotificationEvent]

class NotificationFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTIFICATION_FORMAT_UNSPECIFIED: _ClassVar[NotificationFormat]
    NOTIFICATION_FORMAT_CLOUDEVENTS: _ClassVar[NotificationFormat]
    NOTIFICATION_FORMAT_SLACK: _ClassVar[NotificationFormat]

class DeliveryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_STATE_UNSPECIFIED: _ClassVar[DeliveryState]
    DELIVERY_STATE_PENDING: _ClassVar[DeliveryState]
    DELIVERY_STATE_DELIVERED: _ClassVar[DeliveryState]
    DELIVERY_STATE_DEAD: _ClassVar[DeliveryState]
NOTIFICATION_EVENT_UNSPECIFIED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_STARTED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_COMPLETED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_FAILED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_CANCELLED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_HEARTBEAT_TIMEOUT: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_REVIVED: NotificationEvent
NOTIFICATION_EVENT_EXECUTION_CANCEL_REQUESTED: NotificationEvent
NOTIFICATION_EVENT_STEP_FAILED: NotificationEvent
NOTIFICATION_EVENT_STEP_RETRIED: NotificationEvent
NOTIFICATION_FORMAT_UNSPECIFIED: NotificationFormat
NOTIFICATION_FORMAT_CLOUDEVENTS: NotificationFormat
NOTIFICATION_FORMAT_SLACK: NotificationFormat
DELIVERY_STATE_UNSPECIFIED: DeliveryState
DELIVERY_STATE_PENDING: DeliveryState
DELIVERY_STATE_DELIVERED: DeliveryState
DELIVERY_STATE_DEAD: DeliveryState

class NotificationGap(_message.Message):
    __slots__ = ("since", "until")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    def __init__(self, since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SubscriptionState(_message.Message):
    __slots__ = ("pending", "dead", "gaps", "lag_seconds", "last_status", "disabled_reason")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    LAG_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_STATUS_FIELD_NUMBER: _ClassVar[int]
    DISABLED_REASON_FIELD_NUMBER: _ClassVar[int]
    pending: int
    dead: int
    gaps: _containers.RepeatedCompositeFieldContainer[NotificationGap]
    lag_seconds: float
    last_status: int
    disabled_reason: str
    def __init__(self, pending: _Optional[int] = ..., dead: _Optional[int] = ..., gaps: _Optional[_Iterable[_Union[NotificationGap, _Mapping]]] = ..., lag_seconds: _Optional[float] = ..., last_status: _Optional[int] = ..., disabled_reason: _Optional[str] = ...) -> None: ...

class Subscription(_message.Message):
    __slots__ = ("subscription_id", "name", "enabled", "filter", "events", "url", "headers", "format", "include_metadata", "revision", "created_at", "state", "created_by", "updated_at")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_METADATA_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    name: str
    enabled: bool
    filter: _common_pb2.ExecutionFilter
    events: _containers.RepeatedScalarFieldContainer[NotificationEvent]
    url: str
    headers: _containers.ScalarMap[str, str]
    format: NotificationFormat
    include_metadata: bool
    revision: int
    created_at: _timestamp_pb2.Timestamp
    state: SubscriptionState
    created_by: str
    updated_at: _timestamp_pb2.Timestamp
    def __init__(self, subscription_id: _Optional[str] = ..., name: _Optional[str] = ..., enabled: bool = ..., filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., events: _Optional[_Iterable[_Union[NotificationEvent, str]]] = ..., url: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., format: _Optional[_Union[NotificationFormat, str]] = ..., include_metadata: bool = ..., revision: _Optional[int] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[SubscriptionState, _Mapping]] = ..., created_by: _Optional[str] = ..., updated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("delivery_id", "subscription_id", "execution_id", "step_id", "event", "occurred_at", "state", "attempts", "created_at", "last_attempt_at", "next_attempt_at", "delivered_at", "last_status", "last_failure")
    DELIVERY_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_ATTEMPT_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_ATTEMPT_AT_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_STATUS_FIELD_NUMBER: _ClassVar[int]
    LAST_FAILURE_FIELD_NUMBER: _ClassVar[int]
    delivery_id: str
    subscription_id: str
    execution_id: str
    step_id: int
    event: NotificationEvent
    occurred_at: _timestamp_pb2.Timestamp
    state: DeliveryState
    attempts: int
    created_at: _timestamp_pb2.Timestamp
    last_attempt_at: _timestamp_pb2.Timestamp
    next_attempt_at: _timestamp_pb2.Timestamp
    delivered_at: _timestamp_pb2.Timestamp
    last_status: int
    last_failure: str
    def __init__(self, delivery_id: _Optional[str] = ..., subscription_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., step_id: _Optional[int] = ..., event: _Optional[_Union[NotificationEvent, str]] = ..., occurred_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[DeliveryState, str]] = ..., attempts: _Optional[int] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_attempt_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., next_attempt_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., delivered_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_status: _Optional[int] = ..., last_failure: _Optional[str] = ...) -> None: ...

class CreateSubscriptionRequest(_message.Message):
    __slots__ = ("name", "filter", "events", "url", "headers", "format", "include_metadata", "enabled")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_METADATA_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    filter: _common_pb2.ExecutionFilter
    events: _containers.RepeatedScalarFieldContainer[NotificationEvent]
    url: str
    headers: _containers.ScalarMap[str, str]
    format: NotificationFormat
    include_metadata: bool
    enabled: bool
    def __init__(self, name: _Optional[str] = ..., filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., events: _Optional[_Iterable[_Union[NotificationEvent, str]]] = ..., url: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., format: _Optional[_Union[NotificationFormat, str]] = ..., include_metadata: bool = ..., enabled: bool = ...) -> None: ...

class CreateSubscriptionResponse(_message.Message):
    __slots__ = ("subscription", "secret")
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    subscription: Subscription
    secret: str
    def __init__(self, subscription: _Optional[_Union[Subscription, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class GetSubscriptionRequest(_message.Message):
    __slots__ = ("subscription_id",)
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    def __init__(self, subscription_id: _Optional[str] = ...) -> None: ...

class GetSubscriptionResponse(_message.Message):
    __slots__ = ("subscription",)
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    subscription: Subscription
    def __init__(self, subscription: _Optional[_Union[Subscription, _Mapping]] = ...) -> None: ...

class ListSubscriptionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSubscriptionsResponse(_message.Message):
    __slots__ = ("subscriptions", "next_page_token")
    SUBSCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    subscriptions: _containers.RepeatedCompositeFieldContainer[Subscription]
    next_page_token: str
    def __init__(self, subscriptions: _Optional[_Iterable[_Union[Subscription, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateSubscriptionRequest(_message.Message):
    __slots__ = ("subscription_id", "name", "enabled", "filter", "events", "url", "headers", "format", "include_metadata", "expected_revision")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_METADATA_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    name: str
    enabled: bool
    filter: _common_pb2.ExecutionFilter
    events: _containers.RepeatedScalarFieldContainer[NotificationEvent]
    url: str
    headers: _containers.ScalarMap[str, str]
    format: NotificationFormat
    include_metadata: bool
    expected_revision: int
    def __init__(self, subscription_id: _Optional[str] = ..., name: _Optional[str] = ..., enabled: bool = ..., filter: _Optional[_Union[_common_pb2.ExecutionFilter, _Mapping]] = ..., events: _Optional[_Iterable[_Union[NotificationEvent, str]]] = ..., url: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., format: _Optional[_Union[NotificationFormat, str]] = ..., include_metadata: bool = ..., expected_revision: _Optional[int] = ...) -> None: ...

class UpdateSubscriptionResponse(_message.Message):
    __slots__ = ("subscription",)
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    subscription: Subscription
    def __init__(self, subscription: _Optional[_Union[Subscription, _Mapping]] = ...) -> None: ...

class DeleteSubscriptionRequest(_message.Message):
    __slots__ = ("subscription_id",)
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    def __init__(self, subscription_id: _Optional[str] = ...) -> None: ...

class DeleteSubscriptionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateSecretRequest(_message.Message):
    __slots__ = ("subscription_id",)
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    def __init__(self, subscription_id: _Optional[str] = ...) -> None: ...

class RotateSecretResponse(_message.Message):
    __slots__ = ("subscription", "secret")
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    subscription: Subscription
    secret: str
    def __init__(self, subscription: _Optional[_Union[Subscription, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class TestSubscriptionRequest(_message.Message):
    __slots__ = ("subscription_id",)
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    def __init__(self, subscription_id: _Optional[str] = ...) -> None: ...

class TestSubscriptionResponse(_message.Message):
    __slots__ = ("delivered", "status", "failure")
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    delivered: bool
    status: int
    failure: str
    def __init__(self, delivered: bool = ..., status: _Optional[int] = ..., failure: _Optional[str] = ...) -> None: ...

class ListDeliveriesRequest(_message.Message):
    __slots__ = ("subscription_id", "states", "page_size", "page_token")
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    subscription_id: str
    states: _containers.RepeatedScalarFieldContainer[DeliveryState]
    page_size: int
    page_token: str
    def __init__(self, subscription_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[DeliveryState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeliveriesResponse(_message.Message):
    __slots__ = ("deliveries", "next_page_token")
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deliveries: _containers.RepeatedCompositeFieldContainer[Delivery]
    next_page_token: str
    def __init__(self, deliveries: _Optional[_Iterable[_Union[Delivery, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RedeliverRequest(_message.Message):
    __slots__ = ("delivery_id", "subscription_id")
    DELIVERY_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    delivery_id: str
    subscription_id: str
    def __init__(self, delivery_id: _Optional[str] = ..., subscription_id: _Optional[str] = ...) -> None: ...

class RedeliverResponse(_message.Message):
    __slots__ = ("redelivered",)
    REDELIVERED_FIELD_NUMBER: _ClassVar[int]
    redelivered: int
    def __init__(self, redelivered: _Optional[int] = ...) -> None: ...

//! NotificationService.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use prost::Message as _;
use prost_types::Value;
use tonic::{Request, Response, Status};

use super::requests::Check;
use super::{authenticate, convert, status};
use crate::app::notifications::{
    HEADERS_MOST, NewSubscription, Notifications, Redelivered, Shown, SubscriptionChange, check_url,
};
use crate::app::{App, Error, Result, token};
use crate::auth::Permit;
use crate::auth::makers::maker;
use crate::domain::access::AppScope;
use crate::domain::limits::FILTER_VALUES;
use crate::domain::notification::{DeliveryState, Event, Format};
use crate::domain::query::ExecutionFilter;
use crate::outbound::Rules;
use crate::proto;
use crate::store::notifications::documents::secret_text;
use crate::store::notifications::{Delivery, DeliveryQuery, Hidden};

const URL_CHARACTERS: usize = 2_048;
const HEADER_BYTES: usize = 4 * 1024;
const ID_CHARACTERS: usize = 128;
/// Of the filter of a subscription, as it is sent.
const FILTER_BYTES: usize = 256 * 1024;
/// Headers that say how a request is to be read, who it is for, or who signed it.
const OWN_HEADERS: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
];

/// Serves NotificationService.
pub struct NotificationRpc {
    pub app: Arc<App>,
    pub notifications: Arc<Notifications>,
}

fn event(event: Event) -> proto::NotificationEvent {
    match event {
        Event::ExecutionStarted => proto::NotificationEvent::ExecutionStarted,
        Event::ExecutionCompleted => proto::NotificationEvent::ExecutionCompleted,
        Event::ExecutionFailed => proto::NotificationEvent::ExecutionFailed,
        Event::ExecutionCancelled => proto::NotificationEvent::ExecutionCancelled,
        Event::ExecutionHeartbeatTimeout => proto::NotificationEvent::ExecutionHeartbeatTimeout,
        Event::ExecutionRevived => proto::NotificationEvent::ExecutionRevived,
        Event::ExecutionCancelRequested => proto::NotificationEvent::ExecutionCancelRequested,
        Event::StepFailed => proto::NotificationEvent::StepFailed,
        Event::StepRetried => proto::NotificationEvent::StepRetried,
    }
}

fn state(state: DeliveryState) -> proto::DeliveryState {
    match state {
        DeliveryState::Pending => proto::DeliveryState::Pending,
        DeliveryState::Delivered => proto::DeliveryState::Delivered,
        DeliveryState::Dead => proto::DeliveryState::Dead,
    }
}

fn format(format: Format) -> proto::NotificationFormat {
    match format {
        Format::CloudEvents => proto::NotificationFormat::Cloudevents,
        Format::Slack => proto::NotificationFormat::Slack,
    }
}

/// A path of keys as a client writes it.
fn path(keys: &[String]) -> String {
    let escaped = keys.iter().map(|key| key.replace('\\', "\\\\").replace('.', "\\."));
    escaped.collect::<Vec<_>>().join(".")
}

fn filter(filter: &ExecutionFilter) -> proto::ExecutionFilter {
    let metadata = filter.metadata.iter();
    let metadata: std::collections::BTreeMap<String, Value> =
        metadata.map(|(keys, value)| (path(keys), convert::value(value))).collect();
    proto::ExecutionFilter {
        app_ids: filter.app_ids.clone(),
        app_names: filter.app_names.clone(),
        sub_app_ids: filter.sub_app_ids.clone(),
        user_ids: filter.user_ids.clone(),
        statuses: filter
            .statuses
            .iter()
            .map(|status| convert::execution_status(Some(*status)).into())
            .collect(),
        started_at_from: filter.started_at_from.map(convert::timestamp),
        started_at_until: filter.started_at_until.map(convert::timestamp),
        min_duration_ms: filter.min_duration_ms,
        metadata: metadata.into_iter().collect(),
    }
}

fn long(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn subscription(shown: &Shown) -> proto::Subscription {
    let (one, progress) = (&shown.subscribed.subscription, &shown.subscribed.progress);
    let gap = |gap: &crate::store::notifications::Gap| proto::NotificationGap {
        since: Some(convert::timestamp(gap.since)),
        until: Some(convert::timestamp(gap.until)),
    };
    proto::Subscription {
        subscription_id: one.id.clone(),
        name: one.name.clone(),
        enabled: one.enabled,
        filter: Some(filter(&one.filter)),
        events: one.events.iter().map(|one| event(*one).into()).collect(),
        url: one.url.0.clone(),
        headers: one.headers.iter().map(|(name, _)| (name.clone(), String::new())).collect(),
        format: format(one.format).into(),
        include_metadata: one.include_metadata,
        revision: one.revision,
        created_at: Some(convert::timestamp(one.created_at)),
        state: Some(proto::SubscriptionState {
            pending: long(shown.undelivered.pending),
            dead: long(shown.undelivered.dead),
            gaps: progress.gaps.iter().map(gap).collect(),
            lag_seconds: shown.lag.as_secs_f64(),
            last_status: progress.last_status.map(i32::from),
            disabled_reason: one.disabled_reason.clone(),
        }),
        created_by: one.maker.name.clone(),
        updated_at: Some(convert::timestamp(one.updated_at)),
    }
}

fn delivery(one: &Delivery) -> proto::Delivery {
    let is_pending = one.state == DeliveryState::Pending;
    proto::Delivery {
        delivery_id: one.id.clone(),
        subscription_id: one.subscription.clone(),
        execution_id: one.execution_id.clone(),
        step_id: one.step_id,
        event: event(one.event).into(),
        occurred_at: convert::shown_time(one.at),
        state: state(one.state).into(),
        attempts: one.tries,
        created_at: Some(convert::timestamp(one.created_at)),
        last_attempt_at: one.last_try_at.map(convert::timestamp),
        next_attempt_at: is_pending.then(|| convert::timestamp(one.next_at)),
        delivered_at: one.delivered_at.map(convert::timestamp),
        last_status: one.last_status.map(i32::from),
        last_failure: one.last_failure.clone(),
    }
}

fn events(check: &mut Check<'_>, sent: &[i32]) -> Vec<Event> {
    let mut found = BTreeSet::new();
    for number in check.few("events", sent) {
        let known = Event::ALL.into_iter().find(|one| i32::from(event(*one)) == *number);
        match known {
            Some(known) => drop(found.insert(known)),
            None => check.bad("events", format!("has {number}, which is not a known event")),
        }
    }
    found.into_iter().collect()
}

fn asked_format(check: &mut Check<'_>, sent: i32) -> Option<Format> {
    match proto::NotificationFormat::try_from(sent) {
        Ok(proto::NotificationFormat::Unspecified) => None,
        Ok(proto::NotificationFormat::Cloudevents) => Some(Format::CloudEvents),
        Ok(proto::NotificationFormat::Slack) => Some(Format::Slack),
        Err(_) => {
            check.bad("format", "is not a known format");
            None
        }
    }
}

fn url(check: &mut Check<'_>, rules: &Rules, url: &str) {
    if url.is_empty() {
        return check.bad("url", "is required");
    }
    check.characters("url", url, URL_CHARACTERS);
    if url.len() <= URL_CHARACTERS
        && let Err(why) = check_url(url, rules)
    {
        check.bad("url", why);
    }
}

fn asked_filter(check: &mut Check<'_>, sent: Option<&proto::ExecutionFilter>) -> ExecutionFilter {
    let size = sent.map_or(0, proto::ExecutionFilter::encoded_len);
    if size > FILTER_BYTES {
        check.too_large("filter", size, "bytes", FILTER_BYTES);
        return ExecutionFilter::default();
    }
    check.filter(sent)
}

/// Headers by their names in lower case; an empty value stands for none where that is allowed.
fn headers(
    check: &mut Check<'_>,
    sent: &HashMap<String, String>,
    may_remove: bool,
) -> Vec<(String, Option<Hidden<String>>)> {
    if !check.fits("headers", sent.len(), "headers", HEADERS_MOST) {
        return Vec::new();
    }
    let mut found: Vec<(String, Option<Hidden<String>>)> = Vec::new();
    for (name, value) in sent {
        let lower = name.to_ascii_lowercase();
        let shown: String = lower.chars().take(64).collect();
        let is_own = OWN_HEADERS.contains(&lower.as_str())
            || lower.starts_with("webhook-")
            || lower.starts_with("ce-");
        if HeaderName::from_bytes(lower.as_bytes()).is_err() || lower.len() > 256 {
            check.bad("headers", format!("has {shown:?}, which is not a name of a header"));
        } else if is_own {
            check.bad("headers", format!("has {shown:?}, which is the server's own"));
        } else if found.iter().any(|(other, _)| *other == lower) {
            check.bad("headers", format!("has {shown:?} more than once"));
        }
        // What is wrong with a value is said without it.
        if value.is_empty() && !may_remove {
            check.bad("headers", format!("has no value for {shown:?}"));
        }
        if value.len() > HEADER_BYTES {
            check.too_large(&format!("headers.{shown}"), value.len(), "bytes", HEADER_BYTES);
        } else if HeaderValue::from_str(value).is_err() || !value.is_ascii() {
            check.bad(&format!("headers.{shown}"), "may contain only printable ASCII characters");
        }
        found.push((lower, (!value.is_empty()).then(|| Hidden(value.clone()))));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn id_of(check: &mut Check<'_>, field: &str, id: &str) {
    if id.is_empty() {
        check.bad(field, "is required");
    }
    check.characters(field, id, ID_CHARACTERS);
}

impl NotificationRpc {
    fn new_subscription(
        &self,
        request: &proto::CreateSubscriptionRequest,
    ) -> Result<NewSubscription> {
        let mut check = Check::new(self.app.limits());
        check.required_name("name", &request.name);
        url(&mut check, self.notifications.rules(), &request.url);
        if request.events.is_empty() {
            check.bad("events", "is required");
        }
        let events = events(&mut check, &request.events);
        let format = asked_format(&mut check, request.format);
        let headers = headers(&mut check, &request.headers, false);
        let filter = asked_filter(&mut check, request.filter.as_ref());
        let headers =
            headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        check.done(NewSubscription {
            name: request.name.clone(),
            enabled: request.enabled.unwrap_or(true),
            filter,
            events,
            url: request.url.clone(),
            headers,
            format: format.unwrap_or(Format::CloudEvents),
            include_metadata: request.include_metadata,
        })
    }

    fn change(&self, request: &proto::UpdateSubscriptionRequest) -> Result<SubscriptionChange> {
        let mut check = Check::new(self.app.limits());
        id_of(&mut check, "subscription_id", &request.subscription_id);
        if let Some(name) = &request.name {
            check.required_name("name", name);
        }
        if let Some(sent) = &request.url {
            url(&mut check, self.notifications.rules(), sent);
        }
        let events = events(&mut check, &request.events);
        let format = asked_format(&mut check, request.format);
        let headers = headers(&mut check, &request.headers, true);
        let filter = request.filter.as_ref();
        let filter = filter.map(|filter| asked_filter(&mut check, Some(filter)));
        check.done(SubscriptionChange {
            name: request.name.clone(),
            enabled: request.enabled,
            filter,
            events: (!events.is_empty()).then_some(events),
            url: request.url.clone(),
            headers,
            format,
            include_metadata: request.include_metadata,
            expected_revision: request.expected_revision,
        })
    }

    fn one(&self, field: &str, id: &str) -> Result<()> {
        let mut check = Check::new(self.app.limits());
        id_of(&mut check, field, id);
        check.done(())
    }

    async fn list(
        &self,
        scope: AppScope,
        request: proto::ListSubscriptionsRequest,
    ) -> Result<proto::ListSubscriptionsResponse> {
        let mut check = Check::new(self.app.limits());
        let size = check.page_size(request.page_size);
        check.done(())?;
        let tokens = self.app.tokens().await?;
        let identity = scope.identity();
        let kind = token::Kind::SubscriptionPage;
        let after = match request.page_token.as_str() {
            "" => None,
            text => {
                let opened = tokens.open(kind, identity.as_bytes(), text);
                let after = opened.and_then(|bytes| String::from_utf8(bytes).ok());
                Some(after.ok_or(Error::BadToken("page_token"))?)
            }
        };
        let all = self.notifications.list(&scope).await?;
        let mut rest = all
            .into_iter()
            .filter(|one| after.as_ref().is_none_or(|after| one.subscription.id > *after))
            .peekable();
        let mut subscriptions: Vec<proto::Subscription> = Vec::new();
        let mut room = self.app.limits().page_bytes;
        while subscriptions.len() < size
            && let Some(next) = rest.next_if(|_| room > 0)
        {
            let shown = subscription(&self.notifications.show(next).await?);
            // The last one may be a little more than there is room for: a filter is bounded.
            room = room.saturating_sub(shown.encoded_len() + FILTER_VALUES);
            subscriptions.push(shown);
        }
        let last = subscriptions.last().filter(|_| rest.peek().is_some());
        let next_page_token = last
            .map(|last| tokens.seal(kind, identity.as_bytes(), last.subscription_id.as_bytes()))
            .unwrap_or_default();
        Ok(proto::ListSubscriptionsResponse { subscriptions, next_page_token })
    }

    async fn list_deliveries(
        &self,
        scope: AppScope,
        request: proto::ListDeliveriesRequest,
    ) -> Result<proto::ListDeliveriesResponse> {
        let mut check = Check::new(self.app.limits());
        id_of(&mut check, "subscription_id", &request.subscription_id);
        let size = check.page_size(request.page_size);
        let mut states = Vec::new();
        for number in check.few("states", &request.states) {
            let known =
                DeliveryState::ALL.into_iter().find(|one| i32::from(state(*one)) == *number);
            match known {
                Some(known) => states.push(known),
                None => check.bad("states", format!("has {number}, which is not a known state")),
            }
        }
        check.done(())?;
        let tokens = self.app.tokens().await?;
        let identity = format!("{}{}/{states:?}", scope.identity(), request.subscription_id);
        let kind = token::Kind::DeliveryPage;
        let before = match request.page_token.as_str() {
            "" => None,
            text => Some(
                tokens
                    .open(kind, identity.as_bytes(), text)
                    .and_then(|bytes| Some(i64::from_be_bytes(bytes.try_into().ok()?)))
                    .ok_or(Error::BadToken("page_token"))?,
            ),
        };
        let subscription = request.subscription_id;
        let query = DeliveryQuery { subscription, states, before, limit: size };
        let page = self.notifications.deliveries(query, &scope).await?;
        let mut deliveries: Vec<proto::Delivery> = Vec::new();
        let (mut next, mut room) = (page.next, self.app.limits().page_bytes);
        for one in &page.records {
            let shown = delivery(one);
            let bytes = shown.encoded_len() + 8;
            if bytes > room && !deliveries.is_empty() {
                next = page.records.get(deliveries.len() - 1).map(|last| last.number);
                break;
            }
            room = room.saturating_sub(bytes);
            deliveries.push(shown);
        }
        let next_page_token = next
            .map(|number| tokens.seal(kind, identity.as_bytes(), &number.to_be_bytes()))
            .unwrap_or_default();
        Ok(proto::ListDeliveriesResponse { deliveries, next_page_token })
    }

    async fn redelivered(
        &self,
        scope: AppScope,
        request: proto::RedeliverRequest,
    ) -> Result<proto::RedeliverResponse> {
        use proto::redeliver_request::Target;
        let what = match &request.target {
            Some(Target::DeliveryId(id)) => {
                self.one("delivery_id", id)?;
                Redelivered::One(id)
            }
            Some(Target::SubscriptionId(id)) => {
                self.one("subscription_id", id)?;
                Redelivered::DeadOf(id)
            }
            None => {
                return Err(Error::invalid("delivery_id", "or subscription_id is required"));
            }
        };
        let redelivered = long(self.notifications.redeliver(what, &scope).await?);
        Ok(proto::RedeliverResponse { redelivered })
    }
}

/// What a call answers, or the status of its failure.
async fn answer<T>(work: impl Future<Output = Result<T>>) -> Result<Response<T>, Status> {
    work.await.map(Response::new).map_err(|error| status::of(&error))
}

fn taken<T>(request: Request<T>) -> Result<(Permit, T), Status> {
    let permit = authenticate::permit(&request)?;
    Ok((permit, request.into_inner()))
}

#[tonic::async_trait]
impl proto::notification_service_server::NotificationService for NotificationRpc {
    async fn create_subscription(
        &self,
        request: Request<proto::CreateSubscriptionRequest>,
    ) -> Result<Response<proto::CreateSubscriptionResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            let new = self.new_subscription(&request)?;
            let (shown, secret) = self.notifications.create(maker(&permit), new).await?;
            let subscription = Some(subscription(&shown));
            Ok(proto::CreateSubscriptionResponse { subscription, secret: secret_text(&secret) })
        })
        .await
    }

    async fn get_subscription(
        &self,
        request: Request<proto::GetSubscriptionRequest>,
    ) -> Result<Response<proto::GetSubscriptionResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            self.one("subscription_id", &request.subscription_id)?;
            let found = self.notifications.get(&request.subscription_id, &permit.scope()).await?;
            let shown = self.notifications.show(found).await?;
            Ok(proto::GetSubscriptionResponse { subscription: Some(subscription(&shown)) })
        })
        .await
    }

    async fn list_subscriptions(
        &self,
        request: Request<proto::ListSubscriptionsRequest>,
    ) -> Result<Response<proto::ListSubscriptionsResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(self.list(permit.scope(), request)).await
    }

    async fn update_subscription(
        &self,
        request: Request<proto::UpdateSubscriptionRequest>,
    ) -> Result<Response<proto::UpdateSubscriptionResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            let change = self.change(&request)?;
            let id = &request.subscription_id;
            let shown =
                self.notifications.update(id, &permit.scope(), maker(&permit), change).await?;
            Ok(proto::UpdateSubscriptionResponse { subscription: Some(subscription(&shown)) })
        })
        .await
    }

    async fn delete_subscription(
        &self,
        request: Request<proto::DeleteSubscriptionRequest>,
    ) -> Result<Response<proto::DeleteSubscriptionResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            self.one("subscription_id", &request.subscription_id)?;
            self.notifications.delete(&request.subscription_id, &permit.scope()).await?;
            Ok(proto::DeleteSubscriptionResponse {})
        })
        .await
    }

    async fn rotate_secret(
        &self,
        request: Request<proto::RotateSecretRequest>,
    ) -> Result<Response<proto::RotateSecretResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            self.one("subscription_id", &request.subscription_id)?;
            let id = &request.subscription_id;
            let (shown, secret) = self.notifications.rotate(id, &permit.scope()).await?;
            let subscription = Some(subscription(&shown));
            Ok(proto::RotateSecretResponse { subscription, secret: secret_text(&secret) })
        })
        .await
    }

    async fn test_subscription(
        &self,
        request: Request<proto::TestSubscriptionRequest>,
    ) -> Result<Response<proto::TestSubscriptionResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(async {
            self.one("subscription_id", &request.subscription_id)?;
            let id = &request.subscription_id;
            let sent = self.notifications.test(id, &permit.scope()).await?;
            Ok(proto::TestSubscriptionResponse {
                delivered: sent.is_delivered(),
                status: sent.status.map(i32::from),
                failure: sent.failure.map(str::to_owned),
            })
        })
        .await
    }

    async fn list_deliveries(
        &self,
        request: Request<proto::ListDeliveriesRequest>,
    ) -> Result<Response<proto::ListDeliveriesResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(self.list_deliveries(permit.scope(), request)).await
    }

    async fn redeliver(
        &self,
        request: Request<proto::RedeliverRequest>,
    ) -> Result<Response<proto::RedeliverResponse>, Status> {
        let (permit, request) = taken(request)?;
        answer(self.redelivered(permit.scope(), request)).await
    }
}

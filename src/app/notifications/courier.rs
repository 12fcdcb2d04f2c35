//! Sends one notification, and says what came of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::body::{self, Envelope};
use super::sign::signature;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::outbound::{Failure, Outbound};
use crate::store::Store;
use crate::store::notifications::{Delivery, Subscription};

/// The `type` of a notification that somebody asks for.
const TEST: &str = "stepwell.subscription.test";
/// How late a receiver may ask to be tried again.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3600);
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub status: Option<u16>,
    /// Why it is not delivered, as a word.
    pub failure: Option<&'static str>,
    /// When the receiver wants to be tried again.
    pub retry_after: Option<Duration>,
}

impl Sent {
    pub fn is_delivered(&self) -> bool {
        self.failure.is_none()
    }

    /// The receiver wants nothing more.
    pub fn is_gone(&self) -> bool {
        self.status == Some(410)
    }
}

/// Sends notifications.
pub struct Courier {
    pub outbound: Outbound,
    pub records: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
}

/// What an answer asks for: seconds, or a moment.
fn retry_after(text: &str, now: Millis) -> Option<Duration> {
    let wanted = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(text.trim()).ok()?;
            let since_epoch = at.duration_since(std::time::UNIX_EPOCH).ok()?;
            let now = Duration::from_millis(u64::try_from(now).ok()?);
            since_epoch.saturating_sub(now)
        }
    };
    Some(wanted.clamp(RETRY_AFTER_LEAST, RETRY_AFTER_MOST))
}

impl Courier {
    pub async fn send(&self, subscription: &Subscription, delivery: &Delivery) -> Sent {
        let kind = delivery.event.cloud_type();
        let subject = Some(delivery.execution_id.as_str());
        self.post(subscription, &delivery.id, kind, subject, delivery.at, &delivery.data).await
    }

    /// Sends a notification that is about nothing.
    pub async fn test(&self, subscription: &Subscription, id: &str) -> Sent {
        let data = serde_json::json!({
            "subscription": { "subscription_id": subscription.id, "name": subscription.name },
        });
        let now = self.clock.now().millis();
        self.post(subscription, id, TEST, None, now, &data.to_string()).await
    }

    async fn post(
        &self,
        subscription: &Subscription,
        id: &str,
        kind: &str,
        subject: Option<&str>,
        at: Millis,
        data: &str,
    ) -> Sent {
        let database_id = self.records.info().database_id;
        let envelope = Envelope { id, kind, database_id: &database_id, subject, at };
        let body = body::body(subscription.format, &envelope, data);
        let now = self.clock.now().millis();
        let failed = |failure: Failure| Sent {
            status: None,
            failure: Some(failure.as_str()),
            retry_after: None,
        };
        let Some(headers) = headers(subscription, id, now, &body) else {
            return failed(Failure::Url);
        };
        match self.outbound.post(&subscription.url.0, headers, Bytes::from(body)).await {
            Err(failure) => failed(failure),
            Ok(answer) => {
                let delivered = (200..300).contains(&answer.status);
                let failure = match answer.status {
                    _ if delivered => None,
                    300..400 => Some("redirect"),
                    _ => Some("status"),
                };
                let asked = answer.retry_after.as_deref().filter(|_| !delivered);
                let retry_after = asked.and_then(|text| retry_after(text, now));
                Sent { status: Some(answer.status), failure, retry_after }
            }
        }
    }
}

/// Ours last: nobody's own say who signed.
fn headers(subscription: &Subscription, id: &str, now: Millis, body: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &subscription.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(&value.0).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let content_type = body::content_type(subscription.format);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let signed = signature(subscription, id, now, body.as_bytes());
    let seconds = now.div_euclid(1000).to_string();
    for (name, value) in
        [("webhook-id", id), ("webhook-timestamp", &seconds), ("webhook-signature", &signed)]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).ok()?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_tried_again_when_it_says_so() {
        let seconds = |text, now| retry_after(text, now).map(|after| after.as_secs());
        assert_eq!(seconds("120", 0), Some(120));
        assert_eq!(seconds(" 0 ", 0), Some(1), "not at once");
        assert_eq!(seconds("86400", 0), Some(3600), "an hour at most");
        assert_eq!(seconds("Thu, 01 Jan 1970 00:02:00 GMT", 60_000), Some(60));
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT", 60_000), Some(1), "it is over");
        for wrong in ["", "-5", "soon", "1.5", "Thu, 99 Jan 1970 00:02:00 GMT"] {
            assert_eq!(seconds(wrong, 0), None, "{wrong}");
        }
    }
}

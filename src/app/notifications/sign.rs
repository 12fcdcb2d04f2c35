//! Signatures as Standard Webhooks 1.0.0 has them, by which a receiver knows that a notification is ours.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::domain::Millis;
use crate::domain::notification::Event;
use crate::store::Cursor;
use crate::store::notifications::{Secret, Subscription};

/// Bytes of the hash in an id.
const ID_BYTES: usize = 20;

fn one(secret: &Secret, id: &str, seconds: i64, payload: &[u8]) -> String {
    let mut mac: Hmac<Sha256> =
        Hmac::new_from_slice(&secret.0).expect("HMAC takes keys of every length");
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(payload);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The value of `webhook-signature`: by the secret, and for a while by the one before.
pub fn signature(subscription: &Subscription, id: &str, now: Millis, payload: &[u8]) -> String {
    let seconds = now.div_euclid(1000);
    let mut signature = one(&subscription.secret, id, seconds, payload);
    if let Some((secret, until)) = &subscription.previous_secret
        && now < *until
    {
        signature.push(' ');
        signature.push_str(&one(secret, id, seconds, payload));
    }
    signature
}

/// What a notification is about.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub subscription: &'a str,
    pub execution_id: &'a str,
    pub step_id: Option<i32>,
    pub event: Event,
    /// The place of the change in the log.
    pub place: &'a Cursor,
    /// Of several within one change.
    pub attempt: Option<i32>,
}

impl About<'_> {
    /// The id of the notification: the same whoever makes it, and whenever.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        let number = |number: Option<i32>| number.map_or(i64::MIN, i64::from).to_be_bytes();
        for part in [
            self.subscription.as_bytes(),
            self.execution_id.as_bytes(),
            &number(self.step_id),
            self.event.as_str().as_bytes(),
            &self.place.0,
            &number(self.attempt),
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("msg_{}", hex::encode(&hash.finalize()[..ID_BYTES]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::notifications::Hidden;

    #[test]
    fn a_signature_is_that_of_the_standard() {
        // As the public library for Python makes it.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=").unwrap();
        let secret = Hidden(secret.try_into().unwrap());
        let payload = br#"{"test": 2432232314}"#;
        let made = one(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, payload);
        assert_eq!(made, "v1,455+aOk04wwxufzYeT7AdJGy67Jm9L1UV9h0WvJANVo=");
    }

    #[test]
    fn an_id_tells_apart_what_differs_and_nothing_else() {
        let about = About {
            subscription: "s",
            execution_id: "e",
            step_id: None,
            event: Event::ExecutionFailed,
            place: &Cursor(vec![1]),
            attempt: None,
        };
        let id = about.id();
        assert_eq!(id, About { ..about }.id());
        assert!(id.len() == 44 && !id.contains('.'), "{id}");
        let others = [
            About { subscription: "t", ..about },
            About { execution_id: "f", ..about },
            About { step_id: Some(0), ..about },
            About { event: Event::ExecutionCompleted, ..about },
            About { place: &Cursor(vec![2]), ..about },
            About { attempt: Some(1), ..about },
        ];
        for other in others {
            assert_ne!(other.id(), id);
        }
    }
}

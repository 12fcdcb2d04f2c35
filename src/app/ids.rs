//! Ids that the server makes: the only place with randomness.

/// Tells one run of retention from others.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
pub fn retention_run() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Tells a running server from others.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
pub fn server() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A new execution id: a UUID v4, random on purpose, since it is the shard key.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
pub fn execution_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A new artifact id. As on MongoDB, it begins with the time: artifacts sort as they were stored.
pub fn artifact_id() -> String {
    bson::oid::ObjectId::new().to_hex()
}

/// A name for new bytes, or for an upload that its client gave none.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
pub fn blob_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A new id of a subscription.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes ids")]
pub fn subscription_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A new secret that signs; `None`: the system has no randomness.
pub fn secret() -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).ok()?;
    Some(secret)
}

/// A number from 0 to 1, so that not everybody does the same at the same moment.
#[expect(clippy::disallowed_methods, reason = "this is the one place with randomness")]
pub fn chance() -> f64 {
    let (number, _) = uuid::Uuid::new_v4().as_u64_pair();
    (number >> 32) as f64 / f64::from(u32::MAX)
}

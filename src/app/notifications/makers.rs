//! What the makers of subscriptions may do now, and subscriptions that the server itself disables.

use super::directory::Directory;
use crate::domain::access::Grant;
use crate::store::Result;
use crate::store::notifications::{Maker, NotificationStore, Subscription};

/// Its receiver wants nothing more.
pub const GONE: &str = "GONE";
/// The key of its maker is good no more.
pub const KEY_REVOKED: &str = "KEY_REVOKED";

/// How often a change is tried anew, where somebody else was faster.
pub const ROUNDS: usize = 5;

/// What somebody may do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    Has(Vec<Grant>),
    /// Nothing any more.
    Revoked,
    /// Nobody can say just now.
    Unknown,
}

/// Who knows what makers may do.
pub trait Makers: Send + Sync + 'static {
    fn rights(&self, maker: &Maker) -> Rights;
}

/// Disables a subscription for a reason of the server's.
pub async fn disable(
    store: &dyn NotificationStore,
    directory: &Directory,
    id: &str,
    reason: &'static str,
) -> Result<()> {
    for _ in 0..ROUNDS {
        directory.refresh().await?;
        let Some(known) = directory.find(id) else { return Ok(()) };
        let now = &known.subscription;
        if !now.enabled {
            return Ok(());
        }
        let disabled = Subscription {
            enabled: false,
            disabled_reason: Some(reason.to_owned()),
            revision: now.revision.saturating_add(1),
            ..now.clone()
        };
        if store.change_subscription(&disabled, now.revision, None).await? {
            tracing::warn!(subscription = id, reason, "a subscription is disabled");
            directory.refresh().await?;
            return Ok(());
        }
    }
    Ok(())
}

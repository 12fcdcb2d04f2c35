//! All subscriptions, in memory: read again every two seconds, and at once after a change of this server.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::access::{AppScope, Grant};
use crate::domain::notification::Event;
use crate::domain::query::ExecutionFilter;
use crate::store::Result;
use crate::store::notifications::{NotificationStore, Progress, Subscribed, Subscription};

/// How often they are read.
const READ_EVERY: Duration = Duration::from_secs(2);

/// A subscription, how far it was when it was read, and what it lets through.
#[derive(Debug)]
pub struct Known {
    pub subscription: Subscription,
    pub progress: Progress,
    filter: ExecutionFilter,
}

impl Known {
    fn of(read: Subscribed) -> Known {
        let Subscribed { subscription, progress } = read;
        let filter = subscription.filter.clone().within(scope_of(&subscription.maker.grants));
        Known { subscription, progress, filter }
    }

    pub fn id(&self) -> &str {
        &self.subscription.id
    }

    /// What it asks for, as far as its maker may see that.
    pub fn filter(&self) -> &ExecutionFilter {
        &self.filter
    }

    pub fn wants(&self, event: Event) -> bool {
        self.subscription.events.contains(&event)
    }
}

/// The apps of these grants.
pub fn scope_of(grants: &[Grant]) -> AppScope {
    AppScope::of(grants.iter().flat_map(|grant| grant.apps.iter().cloned()))
}

pub type All = Arc<Vec<Arc<Known>>>;

/// The subscriptions.
pub struct Directory {
    store: Arc<dyn NotificationStore>,
    /// One read at a time, so that an older one never comes last.
    reading: Mutex<()>,
    all: watch::Sender<All>,
}

impl Directory {
    pub fn new(store: Arc<dyn NotificationStore>) -> Directory {
        Directory { store, reading: Mutex::default(), all: watch::Sender::default() }
    }

    pub fn all(&self) -> All {
        Arc::clone(&self.all.borrow())
    }

    pub fn find(&self, id: &str) -> Option<Arc<Known>> {
        self.all.borrow().iter().find(|known| known.id() == id).cloned()
    }

    /// For who waits for changes.
    pub fn changes(&self) -> watch::Receiver<All> {
        self.all.subscribe()
    }

    pub async fn refresh(&self) -> Result<()> {
        let _one = self.reading.lock().await;
        let read = self.store.subscriptions().await?;
        let all: Vec<Arc<Known>> = read.into_iter().map(|one| Arc::new(Known::of(one))).collect();
        self.all.send_replace(Arc::new(all));
        Ok(())
    }

    /// Keeps the copy fresh until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "subscriptions cannot be read");
            }
            if stop.run_until_cancelled(tokio::time::sleep(READ_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Whether anybody is told anything.
    pub fn is_wanted(&self) -> bool {
        self.all.borrow().iter().any(|known| known.subscription.enabled)
    }

    /// Waits until somebody is.
    pub async fn wanted(&self) {
        let mut all = self.all.subscribe();
        let is_wanted = |all: &All| all.iter().any(|known| known.subscription.enabled);
        let is_over = all.wait_for(is_wanted).await.is_err();
        if is_over {
            std::future::pending::<()>().await;
        }
    }
}

//! Notifications, put together: who reads the log for them, who sends them, and what people do with them.

use std::sync::Arc;
use std::time::Duration;

use crate::app::ids;
use crate::app::notifications::{
    Bounds, Courier, Directory, Makers, Notifications, Notifier, Outbox,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::notification::address::Network;
use crate::outbound::{Outbound, Rules, SystemResolver};
use crate::store::Store;
use crate::store::notifications::NotificationStore;

/// What has to be run, and what is called.
pub(super) struct Made {
    pub directory: Arc<Directory>,
    pub notifier: Arc<Notifier>,
    /// As the lease of who follows the log names this server.
    pub holder: String,
    pub operations: Arc<Notifications>,
}

pub(super) fn make(
    config: &Config,
    records: Arc<dyn Store>,
    store: Arc<dyn NotificationStore>,
    makers: Arc<dyn Makers>,
    clock: Arc<dyn Clock>,
) -> Made {
    let settings = &config.notifications;
    let networks = settings.allow_networks.iter().filter_map(|text| Network::parse(text));
    let rules = Rules { allow_http: settings.allow_http, networks: networks.collect() };
    let resolver = Arc::new(SystemResolver);
    let outbound = Outbound::new(rules, resolver, settings.timeout, Arc::clone(&clock));
    let courier =
        Arc::new(Courier { outbound, records: Arc::clone(&records), clock: Arc::clone(&clock) });
    let directory = Arc::new(Directory::new(Arc::clone(&store)));
    let retries = settings.retry_seconds.iter();
    let bounds = Bounds {
        retries: retries.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))).collect(),
        requests: settings.requests,
        requests_each: settings.requests_per_subscription,
        undelivered: settings.undelivered,
        kept: settings.keep,
    };
    let outbox = Arc::new(Outbox::new(
        Arc::clone(&store),
        Arc::clone(&directory),
        Arc::clone(&courier),
        makers,
        Arc::clone(&clock),
        bounds,
    ));
    let holder = ids::server();
    let notifier = Arc::new(Notifier::new(
        Arc::clone(&records),
        Arc::clone(&store),
        Arc::clone(&directory),
        outbox,
        Arc::clone(&clock),
        holder.clone(),
        config.http.public_url.as_ref().map(|url| url.expose().to_owned()),
    ));
    let operations = Arc::new(Notifications::new(
        records,
        store,
        Arc::clone(&directory),
        courier,
        clock,
        settings.subscriptions,
        settings.undelivered,
    ));
    Made { directory, notifier, holder, operations }
}

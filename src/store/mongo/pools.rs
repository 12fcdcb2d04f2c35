//! The connections to the database, as the URI and the settings say: one pool for reads and whatever else there is, and
//! one for writes and the probe, which go on however many reads are slow.

use std::time::Duration;

use mongodb::Client;
use mongodb::options::{Acknowledgment, ClientOptions};

use super::{MongoOptions, failure};
use crate::store::Result;

/// Most connections of writes and the probe: more than the lanes and what goes beside them use at a time.
const WRITE_CONNECTIONS: u32 = 16;
/// What servers call themselves to the database, unless the URI says another name.
pub(super) const APP_NAME: &str = "stepwell";

/// Connections for reads and whatever else there is, and connections for writes.
#[derive(Clone)]
pub(super) struct Clients {
    pub reads: Client,
    pub writes: Client,
}

pub(super) async fn connect(options: &MongoOptions, patience: Duration) -> Result<Client> {
    let options = client_options(options, patience).await?;
    Client::with_options(options).map_err(failure::error)
}

/// Two pools, which together have the size that is set.
pub(super) async fn connect_both(options: &MongoOptions, patience: Duration) -> Result<Clients> {
    let mut reads = client_options(options, patience).await?;
    let mut writes = reads.clone();
    let pool = |options: &ClientOptions| {
        let least = options.min_pool_size.unwrap_or_default();
        (least, options.max_pool_size.unwrap_or_default())
    };
    let (of_reads, of_writes) = shares(pool(&reads));
    (reads.min_pool_size, reads.max_pool_size) = (Some(of_reads.0), Some(of_reads.1));
    (writes.min_pool_size, writes.max_pool_size) = (Some(of_writes.0), Some(of_writes.1));
    let client = |options| Client::with_options(options).map_err(failure::error);
    Ok(Clients { reads: client(reads)?, writes: client(writes)? })
}

/// The least and most connections of reads and of writes, out of those of both. A most of 0 is no limit.
fn shares((least, most): (u32, u32)) -> ((u32, u32), (u32, u32)) {
    let writes_most = match most {
        0 => WRITE_CONNECTIONS,
        most => (most / 4).clamp(1, WRITE_CONNECTIONS),
    };
    let reads_most = match most {
        0 => 0,
        most => most.saturating_sub(writes_most).max(1),
    };
    let writes_least = (least / 4).min(writes_most);
    let reads_least = match reads_most {
        0 => least - writes_least,
        most => (least - writes_least).min(most),
    };
    ((reads_least, reads_most), (writes_least, writes_most))
}

async fn client_options(options: &MongoOptions, patience: Duration) -> Result<ClientOptions> {
    let parsed = ClientOptions::parse(&options.uri).await;
    let mut parsed = parsed.map_err(failure::error)?;
    parsed.max_pool_size.get_or_insert(options.max_pool_size);
    let most = parsed.max_pool_size.filter(|most| *most > 0).unwrap_or(u32::MAX);
    parsed.min_pool_size.get_or_insert(options.min_pool_size.min(most));
    parsed.max_idle_time.get_or_insert(Duration::from_millis(options.max_idle_ms));
    parsed.server_selection_timeout.get_or_insert(patience);
    parsed.connect_timeout.get_or_insert(patience);
    parsed.app_name.get_or_insert_with(|| APP_NAME.to_owned());
    let concern = parsed.write_concern.get_or_insert_default();
    if concern.w.is_none() {
        concern.w = Some(match options.write_concern.as_deref() {
            None | Some("majority") => Acknowledgment::Majority,
            Some(other) => match other.parse() {
                Ok(members) => Acknowledgment::Nodes(members),
                Err(_) => Acknowledgment::Custom(other.to_owned()),
            },
        });
    }
    if parsed.retry_writes.is_none() {
        parsed.retry_writes = options.retry_writes;
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_share_the_connections_that_are_set() {
        for (pool, expected) in [
            ((10, 100), ((8, 84), (2, 16))),
            ((3, 20), ((3, 15), (0, 5))),
            ((100, 100), ((84, 84), (16, 16))),
            ((2, 2), ((1, 1), (0, 1))),
            // One each is the least that works.
            ((1, 1), ((1, 1), (0, 1))),
            ((10, 0), ((8, 0), (2, 16))),
        ] {
            assert_eq!(shares(pool), expected, "{pool:?}");
        }
    }
}

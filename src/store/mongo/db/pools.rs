//! Connections to the database: one pool for reads and whatever else there is, and one for writes and the probe, which go
//! on however many reads are slow.

use std::sync::Arc;

use mongodb::Client;
use mongodb::options::ClientOptions;

use super::failure;
use super::view::View;
use crate::store::Result;

/// Most connections of writes and the probe: more than the lanes and what goes beside them use at a time.
const WRITE_CONNECTIONS: u32 = 16;

/// Both pools.
#[derive(Clone)]
pub struct Clients {
    pub reads: Client,
    pub writes: Client,
    pub view: Arc<View>,
}

impl Clients {
    /// Two pools, which together have the size that is set.
    pub fn open(mut reads: ClientOptions) -> Result<Clients> {
        let mut writes = reads.clone();
        let least = reads.min_pool_size.unwrap_or_default();
        let (of_reads, of_writes) = shares((least, reads.max_pool_size.unwrap_or_default()));
        (reads.min_pool_size, reads.max_pool_size) = (Some(of_reads.0), Some(of_reads.1));
        (writes.min_pool_size, writes.max_pool_size) = (Some(of_writes.0), Some(of_writes.1));
        let view = View::of(&[of_reads.1, of_writes.1]);
        for (pool, options) in [&mut reads, &mut writes].into_iter().enumerate() {
            options.sdam_event_handler = Some(view.monitors(pool));
            options.cmap_event_handler = Some(view.connections(pool));
        }
        let client = |options| Client::with_options(options).map_err(failure::error);
        Ok(Clients { reads: client(reads)?, writes: client(writes)?, view })
    }

    /// One pool for everything.
    pub fn one(client: Client) -> Clients {
        Clients { reads: client.clone(), writes: client, view: View::of(&[]) }
    }

    pub async fn shutdown(&self) {
        tokio::join!(self.reads.clone().shutdown(), self.writes.clone().shutdown());
    }

    /// Closes all connections, and waits for none.
    pub async fn leave(&self) {
        let (reads, writes) = (self.reads.clone(), self.writes.clone());
        tokio::join!(reads.shutdown().immediate(true), writes.shutdown().immediate(true));
    }
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

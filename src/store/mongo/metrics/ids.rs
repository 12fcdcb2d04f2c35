//! Identities of points: ObjectIds that sort in the order in which one server gave them, and between servers as
//! well as their clocks agree.

use bson::oid::ObjectId;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::domain::Millis;
use crate::store::metrics::PointId;

const COUNTER_BITS: u32 = 24;
const SERVER_BITS: u32 = 30;

/// Gives ids. An id is the second (32 bits, where every ObjectId has it), the millisecond in it (10), the server
/// (30, at random), and a number (24).
pub struct Ids {
    server: u64,
    /// The millisecond of the last id, and the next number in it.
    last: Mutex<(Millis, u64)>,
}

impl Ids {
    #[expect(clippy::disallowed_methods, reason = "a server is told from others here, once")]
    pub fn new() -> Self {
        let server = Uuid::new_v4().as_u64_pair().0 >> (64 - SERVER_BITS);
        Ids { server, last: Mutex::new((0, 0)) }
    }

    /// The first of so many ids in a row, all greater than any given before.
    pub fn take(&self, now: Millis, count: usize) -> ObjectId {
        let count = count as u64;
        let mut last = self.last.lock();
        if now > last.0 {
            *last = (now, 0);
        } else if last.1 + count > 1 << COUNTER_BITS {
            *last = (last.0 + 1, 0);
        }
        let first = last.1;
        last.1 += count;
        id(last.0, (self.server << COUNTER_BITS) | first)
    }
}

fn id(at: Millis, rest: u64) -> ObjectId {
    let seconds = u32::try_from(at.div_euclid(1000)).unwrap_or(0);
    let millis = at.rem_euclid(1000) as u64;
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    bytes[4..].copy_from_slice(&((millis << (SERVER_BITS + COUNTER_BITS)) | rest).to_be_bytes());
    ObjectId::from_bytes(bytes)
}

/// The id that is so many after the first of a row.
pub fn nth(first: ObjectId, n: usize) -> ObjectId {
    let mut bytes = first.bytes();
    let mut rest = [0; 8];
    rest.copy_from_slice(&bytes[4..]);
    let rest = u64::from_be_bytes(rest).wrapping_add(n as u64);
    bytes[4..].copy_from_slice(&rest.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

/// The least id that anybody, also another program, gives from this moment on.
pub fn least(since: Millis) -> ObjectId {
    let mut bytes = [0; 12];
    let seconds = u32::try_from(since.div_euclid(1000)).unwrap_or(0);
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

pub fn point_id(id: ObjectId) -> PointId {
    PointId(id.bytes())
}

pub fn object_id(id: PointId) -> ObjectId {
    ObjectId::from_bytes(id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_also_when_the_clock_goes_back_or_the_numbers_run_out() {
        let ids = Ids::new();
        let most = 1 << COUNTER_BITS;
        let mut before = ids.take(1_700_000_000_999, 1);
        for (now, count) in [
            (1_700_000_000_999, 10),
            (1_600_000_000_000, most),
            (1_700_000_000_999, most),
            (1_700_000_001_000, 5),
            (1_700_000_005_000, 1),
        ] {
            let first = ids.take(now, count);
            assert!(first > before, "{first} after {before}");
            before = nth(first, count - 1);
            assert!(before >= first);
        }
        assert!(least(1_700_000_005_000) <= before);
    }
}

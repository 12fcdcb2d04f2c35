//! The rules as tables.

mod execution;
mod step;
mod stored;
mod values;

use super::Now;

/// A moment, in milliseconds.
fn at(ms: i64) -> Now {
    Now { micros: ms * 1000 }
}

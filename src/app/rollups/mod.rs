//! Rollups: kept up to date from the log of changes, read by reports.

mod read;

pub use read::{Apart, FailureTally, FailuresQuery, Reader, TallyQuery, TallyRow};

//! The states of mirrors, durable.

use async_trait::async_trait;

use super::Result;
use crate::domain::mirror::Mirror;

/// Mirrors of one database at most.
pub const MIRRORS_MOST: usize = 100;

/// A state, and the number of its version.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub version: i64,
    pub mirror: Mirror,
}

/// Keeps states of mirrors, by name.
#[async_trait]
pub trait MirrorStore: Send + Sync + 'static {
    /// All of them, by name; at most `MIRRORS_MOST`.
    async fn mirrors(&self) -> Result<Vec<Kept>>;

    async fn mirror(&self, name: &str) -> Result<Option<Kept>>;

    /// Stores the state in the place of this version; `None`: there is none yet. False: there is another version by now.
    async fn store_mirror(&self, before: Option<i64>, mirror: &Mirror) -> Result<bool>;
}

//! What is left in a spool.

use std::path::PathBuf;

use super::format::Maker;

/// What one process has in a spool.
#[derive(Debug)]
pub struct Left {
    pub folder: PathBuf,
    pub maker: Maker,
    /// What the names of its files begin with.
    pub owner: String,
    /// Its files with records, in order.
    pub records: Vec<PathBuf>,
    /// The descriptions of its artifacts.
    pub artifacts: Vec<PathBuf>,
}

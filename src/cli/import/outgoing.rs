//! What is on its way to the server.

use crate::proto::ingest_request::Write;

/// What a message has around its record: a few tags, lengths and the sequence.
pub const ENVELOPE_BYTES: usize = 64;

/// One record on its way, or several points of metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Index of the file.
    pub file: usize,
    /// The first, where there are several.
    pub line: u64,
    /// How many documents it holds.
    pub documents: u64,
    pub write: Write,
    /// Encoded size.
    pub bytes: usize,
    pub assumed: bool,
    pub left_out: Vec<String>,
}

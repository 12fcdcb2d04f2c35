//! What the server tells about itself: logs, traces, and every metric in one list.
//!
//! Field names are dotted and a field with a unit ends with it (`duration_ms`, `size_bytes`). Never logged,
//! at any level and by nobody: input, output, metadata and errors of runs; connection strings and their parts;
//! tokens; whole requests or documents. Ids of executions and steps may be logged.

pub mod logs;

pub use logs::filter;

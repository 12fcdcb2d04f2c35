//! The rules: what an execution and a step are, and which change of them is allowed.
//!
//! Everything here is arithmetic on values: no clock, no randomness, no store, no logging. If a rule needs a
//! fact, the fact is a parameter. Values of input, output and metadata are BSON values, because the documents
//! of MongoDB are the data model; the `bson` crate does no I/O.

pub mod access;
pub mod artifact;
pub mod audit;
pub mod calendar;
pub mod configuration;
pub mod digest;
pub mod execution;
pub mod fingerprint;
pub mod graph;
pub mod hosts;
pub mod limits;
pub mod metric;
pub mod mirror;
pub mod mirrored;
pub mod notification;
pub mod patch;
pub mod plain;
pub mod query;
pub mod refusal;
pub mod retention;
pub mod rollup;
pub mod san;
pub mod search;
pub mod step;
pub mod stored;
pub mod terms;
pub mod trend;
pub mod value;

#[cfg(test)]
mod tests;

pub use artifact::{Artifact, ArtifactQuery, Description, Origin};
pub use configuration::Configuration;
pub use execution::{Execution, ExecutionOp, ExecutionStatus};
pub use metric::{MetricCounts, MetricInterval, MetricPoint};
pub use refusal::Refusal;
pub use step::{Attempt, Payload, Step, StepNames, StepOp, StepRef, StepStatus};
pub(crate) use terms::duration_ms;
pub use terms::{Decision, Digests, Millis, Now, RunError};

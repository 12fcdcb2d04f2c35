//! The collections of the data model, which other programs share.

pub const EXECUTIONS: &str = "executions";
pub const STEPS: &str = "execution_steps";
pub const CONFIGURATIONS: &str = "app_configurations";
pub const ARTIFACTS: &str = "execution_artifacts";

/// The field of an execution that a run of retention has marked as deleted.
pub const OF_RETENTION: &str = "retention";

//! The right to be the one server of a cluster that does something in the background.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;

/// A store that knows who leads in what.
#[async_trait]
pub trait Leads: Send + Sync + 'static {
    /// Makes `holder` the one who leads in `name` for `length` from now on, or lets it go on: `false`, somebody else
    /// does. With `by_force` it is taken from whoever has it. By the clock of the database.
    async fn lead(
        &self,
        name: &str,
        holder: &str,
        length: Duration,
        by_force: bool,
    ) -> Result<bool>;

    /// Lets somebody else lead.
    async fn cede(&self, name: &str, holder: &str) -> Result<()>;
}

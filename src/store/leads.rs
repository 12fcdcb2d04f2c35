//! The right to be the one server of a cluster that does something in the background: the only kind of lease that
//! servers take on each other.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;

/// How long it takes at most to get or keep a lead that nobody else has, in ordinary times: a server that died in the
/// middle of its work on the same may have to be waited for.
pub const TAKEN_WITHIN: Duration = Duration::from_millis(4_500);

/// When the lead may be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// If nobody has it, or the same holder.
    IfFree,
    /// If the same holder still has it: a sign of life.
    IfHeld,
    /// If nobody has it, unless it was given back as done within this time.
    UnlessDoneWithin(Duration),
    /// From whoever has it.
    ByForce,
}

/// A store that knows who leads in what.
#[async_trait]
pub trait Leads: Send + Sync + 'static {
    /// Makes `holder` the one who leads in `name` for `length` from now on, or lets it go on, as far as `claim` allows:
    /// `false`, it has not. By the clock of the database.
    async fn lead(&self, name: &str, holder: &str, length: Duration, claim: Claim) -> Result<bool>;

    /// Lets somebody else lead. `done`: what the lead was for is done for now, as `UnlessDoneWithin` asks.
    async fn cede(&self, name: &str, holder: &str, done: bool) -> Result<()>;
}

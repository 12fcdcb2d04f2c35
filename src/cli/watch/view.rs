//! What shows the events of a watch.

use crate::cli::exit::Result;
use crate::proto;

/// What shows the events.
pub trait View {
    fn event(&mut self, event: &proto::WatchExecutionResponse) -> Result<()>;
    /// The connection was lost, or is there again.
    fn notice(&mut self, text: &str);
    /// The state is sent again from its beginning.
    fn restart(&mut self) {}
    /// Time passed.
    fn tick(&mut self) {}
    fn finish(&mut self) {}
}

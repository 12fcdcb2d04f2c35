//! `stepwell report`, `trends`, `errors` and `activity`: reports as charts in the terminal, or as JSON.

pub mod activity;
mod chart;
pub mod errors;
mod json;
pub mod report;
pub mod trends;

use super::output::message;
use super::text;
use crate::proto;

/// In whose days.
#[derive(Debug, Clone, clap::Args)]
pub struct ZoneArgs {
    /// Time zone of days and hours: an IANA name such as Europe/Berlin.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub time_zone: String,
}

/// Says on stderr what a reader could not know from the numbers.
fn say_freshness(freshness: Option<&proto::Freshness>) {
    let Some(freshness) = freshness.filter(|freshness| !freshness.complete) else { return };
    if let Some(read_from) = &freshness.read_from {
        message(&format!(
            "incomplete: executions had to be read one by one, and reading stopped at those of {} UTC; use a \
             shorter window",
            text::time(Some(read_from))
        ));
    } else if let Some(since) = &freshness.not_counted_since {
        message(&format!(
            "incomplete: what was written since {} UTC is not all counted yet; try again in a moment",
            text::time(Some(since))
        ));
    } else {
        message("incomplete: the latest changes are not counted yet; try again in a moment");
    }
}

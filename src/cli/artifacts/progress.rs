//! How far a transfer has come, and how patient it is.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::Status;

use crate::cli::connection;
use crate::cli::output::message;
use crate::cli::text;

/// Tries without a byte of progress before it is given up, and the pauses between them.
const TRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A bar for a person; nothing where stderr is no terminal.
pub fn bar(name: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    if std::io::stderr().is_terminal()
        && let Ok(style) = ProgressStyle::with_template(
            "{msg:24!} {bar:24} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta}",
        )
    {
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar.set_message(text::one_line(name));
    }
    bar
}

/// Decides how often a broken transfer is begun again.
#[derive(Default)]
pub struct Patience {
    tries: u32,
    furthest: u64,
}

impl Patience {
    /// Waits before the next try of a transfer that came to `reached` bytes, or gives up.
    pub async fn wait(
        &mut self,
        status: Status,
        reached: u64,
        bar: &ProgressBar,
    ) -> Result<(), Status> {
        if reached > self.furthest {
            self.furthest = reached;
            self.tries = 0;
        }
        self.tries += 1;
        if !connection::is_passing(&status) || self.tries > TRIES {
            return Err(status);
        }
        let why = connection::describe(&status);
        bar.suspend(|| message(&text::one_line(&format!("note: retrying: {why}"))));
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.tries - 1)).min(LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

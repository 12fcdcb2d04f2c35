//! How a server ends: a signal -> the soft token -> the hard token -> the deadline.
//!
//! Soft: nothing new is accepted, streams say goodbye, calls in flight go on. Hard: whoever still works stops
//! now. Every task is tracked, so the end waits for all of them, but never longer than the deadline, which is
//! the process's as a whole: whatever hangs, it ends then. A second signal ends the process at once.

use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;

/// The two tokens and the tasks that listen to them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// Cancelled when the server should end: take nothing new, finish what you have.
    pub soft: CancellationToken,
    /// Cancelled when the time for that is over: stop now.
    pub hard: CancellationToken,
    /// Every task of the server is spawned here.
    pub tasks: TaskTracker,
    streams: Duration,
    deadline: Duration,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every task ended by itself.
    Drained,
    /// So many tasks did not end in time. No write they carried was acknowledged.
    Overdue { tasks: usize },
}

impl Ending {
    /// The exit code of a process that was asked to end and did. What the deadline cut off was never
    /// acknowledged to anybody, so it is a success as well; the log tells the difference.
    pub fn exit_code(self) -> u8 {
        match self {
            Ending::Drained | Ending::Overdue { .. } => 0,
        }
    }
}

/// What part of the time until the deadline tasks may take; the rest is for the store and the last traces.
const TASKS_SHARE: f64 = 0.6;
/// What part of it the lanes may take after the tasks, to apply what is queued.
pub const LANES_SHARE: f64 = 0.25;
/// How long it may take after that to record the end.
pub const RECORDED_WITHIN: Duration = Duration::from_secs(1);
/// How long the store may take after that to close.
pub const CLOSED_WITHIN: Duration = Duration::from_secs(1);
const _: () = assert!(
    config::Shutdown::DEFAULT_DEADLINE.as_millis() as f64 * (1.0 - TASKS_SHARE - LANES_SHARE)
        > (RECORDED_WITHIN.as_millis() + CLOSED_WITHIN.as_millis()) as f64,
    "tasks, lanes and the store that take all their time are down before the deadline"
);
const _: () = assert!(
    (config::Shutdown::DEFAULT_STREAMS.as_millis() as f64)
        < config::Shutdown::DEFAULT_DEADLINE.as_millis() as f64 * TASKS_SHARE,
    "tasks that are stopped have time to end before they are left behind"
);

/// Exit code after a second signal: the process was made to end, not asked (128 + SIGINT).
pub const FORCED_EXIT_CODE: i32 = 130;

impl Shutdown {
    pub fn new(settings: &config::Shutdown) -> Self {
        Shutdown {
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            tasks: TaskTracker::new(),
            streams: settings.streams,
            deadline: settings.deadline,
        }
    }

    /// Waits until the server should end and its tasks have: they drain first, and are left behind in time for
    /// the rest to be taken down before the deadline.
    pub async fn finish(&self) -> Ending {
        self.soft.cancelled().await;
        let began = Instant::now();
        self.tasks.close();
        if tokio::time::timeout_at(began + self.streams, self.tasks.wait()).await.is_ok() {
            return self.ended(began, Ending::Drained);
        }
        tracing::info!(
            tasks = self.tasks.len(),
            streams_ms = self.streams.as_millis() as u64,
            "time to finish is over; stopping what is still running"
        );
        self.hard.cancel();
        let latest = began + self.deadline.mul_f64(TASKS_SHARE).max(self.streams);
        let ending = match tokio::time::timeout_at(latest, self.tasks.wait()).await {
            Ok(()) => Ending::Drained,
            Err(_) => Ending::Overdue { tasks: self.tasks.len() },
        };
        self.ended(began, ending)
    }

    fn ended(&self, began: Instant, ending: Ending) -> Ending {
        self.hard.cancel();
        let duration_ms = began.elapsed().as_millis() as u64;
        match ending {
            Ending::Drained => tracing::info!(duration_ms, "drained"),
            Ending::Overdue { tasks } => {
                tracing::error!(
                    duration_ms,
                    tasks,
                    "some tasks did not end in time and were abandoned"
                );
            }
        }
        ending
    }

    /// Listens to SIGTERM and SIGINT from now on: the first begins the end, the second is the end, and so is
    /// the deadline. Fails where the process cannot listen for signals.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new()?;
        let (soft, deadline) = (self.soft.clone(), self.deadline);
        // Not tracked: it listens for the second signal as long as there is a process.
        tokio::spawn(async move {
            let name = signals.next().await;
            tracing::info!(signal = name, "shutting down");
            soft.cancel();
            // A thread of its own: it ends the process even when every thread of the runtime hangs.
            std::thread::spawn(move || {
                std::thread::sleep(deadline);
                tracing::error!("deadline reached; exiting with unfinished work");
                std::process::exit(i32::from(Ending::Overdue { tasks: 0 }.exit_code()));
            });
            let name = signals.next().await;
            tracing::warn!(signal = name, "second signal; exiting at once");
            std::process::exit(FORCED_EXIT_CODE);
        });
        Ok(())
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals)
    }

    async fn next(&mut self) -> &'static str {
        // An error means that there will never be a signal.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shutdown() -> Shutdown {
        Shutdown::new(&config::Shutdown {
            streams: Duration::from_millis(40),
            deadline: Duration::from_millis(120),
        })
    }

    #[tokio::test]
    async fn tasks_that_listen_drain_before_the_hard_token() {
        let shutdown = shutdown();
        let (soft, hard) = (shutdown.soft.clone(), shutdown.hard.clone());
        let task = shutdown.tasks.spawn(async move {
            soft.cancelled().await;
            hard.is_cancelled()
        });
        shutdown.soft.cancel();
        assert_eq!(shutdown.finish().await, Ending::Drained);
        assert!(!task.await.expect("the task"));
        assert!(shutdown.hard.is_cancelled());
    }

    #[tokio::test]
    async fn the_hard_token_comes_after_the_grace_of_streams() {
        let shutdown = shutdown();
        let hard = shutdown.hard.clone();
        shutdown.tasks.spawn(async move { hard.cancelled().await });
        let began = Instant::now();
        shutdown.soft.cancel();
        assert_eq!(shutdown.finish().await, Ending::Drained);
        assert!(began.elapsed() >= Duration::from_millis(40));
    }

    #[tokio::test]
    async fn the_deadline_waits_for_nobody() {
        let shutdown = shutdown();
        shutdown.tasks.spawn(std::future::pending::<()>());
        let began = Instant::now();
        shutdown.soft.cancel();
        let ending = shutdown.finish().await;
        assert_eq!(ending, Ending::Overdue { tasks: 1 });
        assert_eq!(ending.exit_code(), 0);
        assert!(began.elapsed() >= Duration::from_millis(72));
    }

    #[tokio::test]
    async fn nothing_ends_before_it_is_asked_to() {
        let shutdown = shutdown();
        let waited = tokio::time::timeout(Duration::from_millis(20), shutdown.finish()).await;
        assert!(waited.is_err() && !shutdown.hard.is_cancelled());
    }
}

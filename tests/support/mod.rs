//! The harness of every test binary: databases, servers, clients and watches.
//!
//! A test asks a [`Backend`] for a database of its own, starts servers on it, and talks to them over real gRPC
//! with the generated client. Nothing here knows a rule of the contract; those are in the cases.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

pub mod access;
pub mod artifacts;
pub mod authority;
pub mod backend;
pub mod client;
pub mod clock;
pub mod deaf;
pub mod found;
pub mod issuer;
pub mod mongod;
pub mod process;
pub mod receiver;
pub mod router;
pub mod server;
pub mod values;
pub mod watch;

use std::time::{Duration, Instant};

pub use client::Client;
pub use watch::Watch;

/// How long a test waits for something that is sure to come. Only a failing test ever waits that long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer, and fails with `what` when none came in time.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        pace.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
    }
}

/// The answer, or a failure that says what did not come.
pub async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Runs one test to its end on a runtime of its own, and takes everything it left behind down with it.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let outcome = runtime.block_on(test);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

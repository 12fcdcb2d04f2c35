//! Work in a task of its own.
//!
//! The body of a reply is polled only while its client reads. A call of the database or of a storage in the middle
//! of one would keep its connection for as long as the client likes, so no reply makes such a call itself: it waits
//! for a task that runs to its end whatever the client does. Debug builds check that.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// The outcome of work in a task of its own, which is aborted when this is dropped.
#[derive(Debug)]
pub struct Detached<T>(JoinHandle<T>);

/// Begins the work.
pub fn detached<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl Future<Output = T> + Send + 'static,
) -> Detached<T> {
    Detached(tasks.spawn(work.in_current_span()))
}

impl<T> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(done) => Poll::Ready(done),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and whoever waits with it.
                Err(_) => Poll::Pending,
            },
        }
    }
}

impl<T> Drop for Detached<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

thread_local! {
    static IN_REPLY: Cell<bool> = const { Cell::new(false) };
}

/// Polls the body of a reply.
pub fn in_reply<T>(poll: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            IN_REPLY.set(self.0);
        }
    }
    let _back = Back(IN_REPLY.replace(true));
    poll()
}

/// The same work, which must not be polled by the body of a reply.
pub async fn outside_replies<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        debug_assert!(!IN_REPLY.get(), "the body of a reply makes a call itself");
        work.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn detached_work_ends_though_nobody_polls_it_and_goes_with_whoever_waits() {
        let (tasks, ended) = (TaskTracker::new(), Arc::new(Notify::new()));
        let work = {
            let ended = Arc::clone(&ended);
            async move {
                tokio::task::yield_now().await;
                ended.notify_one();
                7
            }
        };
        let unread = detached(&tasks, work);
        ended.notified().await;
        assert_eq!(unread.await, 7);
        let endless = detached(&tasks, std::future::pending::<()>());
        drop(endless);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    #[should_panic(expected = "the body of a reply makes a call itself")]
    async fn a_reply_that_makes_a_call_itself_is_found_out() {
        let mut call = pin!(outside_replies(std::future::ready(())));
        poll_fn(|context| in_reply(|| call.as_mut().poll(context))).await;
    }

    #[tokio::test]
    async fn a_reply_may_wait_for_a_task_that_makes_a_call() {
        let tasks = TaskTracker::new();
        let mut waiting =
            pin!(async { detached(&tasks, outside_replies(std::future::ready(7))).await });
        assert_eq!(poll_fn(|context| in_reply(|| waiting.as_mut().poll(context))).await, 7);
    }
}

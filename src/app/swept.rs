//! Asking for the bytes of marked artifacts to be swept away, and hearing when they are.

use std::time::Duration;

use tokio::sync::watch;

/// Between those who mark artifacts as deleted and the task that removes their bytes.
#[derive(Debug)]
pub struct Sweeps {
    /// The number of the last sweep that was asked for.
    asked: watch::Sender<u64>,
    /// The number up to which they are over.
    ended: watch::Sender<u64>,
}

impl Default for Sweeps {
    fn default() -> Self {
        Sweeps { asked: watch::Sender::new(0), ended: watch::Sender::new(0) }
    }
}

impl Sweeps {
    /// Asks for a sweep.
    pub fn ask(&self) -> u64 {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        number
    }

    /// Asks for a sweep and waits until one that began afterwards has ended, but not longer than `most`.
    pub async fn ask_and_wait(&self, most: Duration) {
        let number = self.ask();
        let mut ended = self.ended.subscribe();
        let _ = tokio::time::timeout(most, ended.wait_for(|ended| *ended >= number)).await;
    }

    /// For the task that sweeps: what the sweep it begins now is an answer to.
    pub fn begin(&self) -> u64 {
        *self.asked.borrow()
    }

    /// That sweep is over.
    pub fn end(&self, number: u64) {
        self.ended.send_replace(number);
    }

    /// There will be none any more: nobody waits.
    pub fn close(&self) {
        self.ended.send_replace(u64::MAX);
    }

    /// Waits until somebody asks for a sweep after `number`.
    pub async fn asked_after(&self, number: u64) {
        let _ = self.asked.subscribe().wait_for(|asked| *asked > number).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn only_a_sweep_that_began_after_the_question_is_an_answer() {
        let sweeps = Arc::new(Sweeps::default());
        let before = sweeps.begin();
        let waiting = tokio::spawn({
            let sweeps = Arc::clone(&sweeps);
            async move { sweeps.ask_and_wait(LONG).await }
        });
        sweeps.asked_after(before).await;
        sweeps.end(before);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let after = sweeps.begin();
        sweeps.end(after);
        waiting.await.unwrap();
        sweeps.close();
        sweeps.ask_and_wait(LONG).await;
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        Sweeps::default().ask_and_wait(Duration::from_millis(1)).await;
    }
}

//! What a writer has given to its storage and not yet heard of.

use std::future::Future;

use tokio::task::JoinSet;

use super::{Error, Result};

/// Units under way. One that failed is a hole: from then on everything fails, so that no checkpoint covers it.
pub struct UnderWay<T> {
    tasks: JoinSet<Result<T>>,
    broken: bool,
}

impl<T: 'static> Default for UnderWay<T> {
    fn default() -> Self {
        UnderWay { tasks: JoinSet::new(), broken: false }
    }
}

impl<T: Send + 'static> UnderWay<T> {
    pub fn add(&mut self, unit: impl Future<Output = Result<T>> + Send + 'static) {
        self.tasks.spawn(unit);
    }

    /// Waits until at most so many are under way, and says what has come of the others. After a failure it waits
    /// for all of these too.
    pub async fn settle(&mut self, left: usize) -> Result<Vec<T>> {
        let mut settled = Vec::new();
        let mut failed = self.broken.then(|| Error::Unavailable("an earlier part failed".into()));
        while self.tasks.len() > left
            && let Some(done) = self.tasks.join_next().await
        {
            match done {
                Ok(Ok(part)) => settled.push(part),
                // The first one says most.
                Ok(Err(error)) if !self.broken => failed = Some(error),
                Err(error) if !self.broken => failed = Some(Error::Failed(error.into())),
                _ => {}
            }
            self.broken |= failed.is_some();
        }
        failed.map_or(Ok(settled), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_a_failure_nothing_is_safe_any_more() {
        let mut under_way = UnderWay::default();
        under_way.add(async { Ok(1) });
        assert_eq!(under_way.settle(0).await.unwrap(), [1]);
        under_way.add(async { Err(Error::Missing) });
        under_way.add(async { Ok(2) });
        assert!(matches!(under_way.settle(0).await, Err(Error::Missing)));
        under_way.add(async { Ok(3) });
        assert!(matches!(under_way.settle(0).await, Err(Error::Unavailable(_))));
    }
}

//! What a watch asks the database, and what it waits for that others have: whatever could stand still in the middle.
//! None of it is ever polled by the reply itself.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::ending::Ending;
use super::super::event::Event;
use super::super::queue::{End, Next};
use super::super::snapshot::{Plan, Reading, Steps, running_steps};
use super::{Delivery, Failure, Phase, Scope, Watching, Work};
use crate::store::{ChangeKind, Cursor, Error, Record};

/// Pause before history that could not be read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// How long a stream that resumes waits for its first event, to tell a token that is too old as the answer.
const FIRST_EVENT: Duration = Duration::from_secs(1);
/// What may have happened unseen before the last event a stream has seen.
const SLACK_MS: i64 = 60_000;

impl Watching {
    pub(super) async fn work(&mut self, work: Work) -> Result<(), Failure> {
        match work {
            Work::Snapshot => self.advance_snapshot().await,
            Work::Next(next) if matches!(self.phase, Phase::Live) => self.live(next).await,
            Work::Next(next) => self.history(next).await,
            Work::Metrics => {
                self.read_metrics().await;
                Ok(())
            }
            Work::Steps => self.ask_steps().await,
            Work::LastMetrics => {
                self.last_metrics().await;
                Ok(())
            }
        }
    }

    pub(super) async fn resume(
        &mut self,
        cursor: Cursor,
        attached_at: Cursor,
    ) -> Result<(), Failure> {
        if cursor > attached_at {
            // Ahead of this server, which another one may well be; but never ahead of the database.
            let position = self.log.position().await?;
            if self.log.position_of(&cursor).is_some_and(|of_token| of_token > position) {
                return Err(Error::CursorExpired.into());
            }
        }
        if let Scope::Execution(id) = &self.options.scope {
            match self.hub.store.execution(id).await? {
                Some(execution) => self.ending.terminal = execution.is_terminal(),
                None => {
                    self.ending.missing = true;
                    self.ending.barrier = Some(self.log.position().await?);
                }
            }
        }
        self.cursor = cursor;
        self.read_history(attached_at);
        let Phase::History { queue, .. } = &self.phase else { return Ok(()) };
        // History that is gone is told before the stream begins. A long way to the first event is no failure.
        let queue = Arc::clone(queue);
        let first = tokio::select! {
            () = self.hub.stop.cancelled() => return Err(Failure::ShuttingDown),
            first = tokio::time::timeout(FIRST_EVENT, poll_fn(|context| queue.poll_next(context))) => first,
        };
        match first {
            Ok(next) => self.history(next).await,
            Err(_) => Ok(()),
        }
    }

    pub(super) async fn begin_snapshot(
        &mut self,
        attached_at: Cursor,
        again: bool,
    ) -> Result<(), Failure> {
        let mut first = None;
        if let Scope::Execution(id) = &self.options.scope {
            first = self.hub.store.execution(id).await?;
            if first.is_none() && !again {
                return Err(Failure::ExecutionNotFound);
            }
        }
        self.ahead.clear();
        self.ending = Ending::default();
        self.cursor = attached_at.clone();
        if let (Scope::Execution(id), None) = (&self.options.scope, &first) {
            let gone = Arc::new(Event::gone(attached_at, id));
            self.ending.deleted = true;
            self.phase = Phase::Live;
            self.ready.push_back(Delivery::Event(gone));
            return Ok(());
        }
        self.ending.terminal = first.as_ref().is_some_and(|execution| execution.is_terminal());
        let of_one = matches!(self.options.scope, Scope::Execution(_));
        let plan = Plan {
            scope: self.options.scope.clone(),
            snapshot: self.options.snapshot,
            steps: match self.options.steps {
                true => Steps::All,
                false if of_one && !self.options.follow => Steps::Running,
                false => Steps::None,
            },
            artifacts: self.options.artifacts,
            payloads: self.options.payloads,
            since: again.then_some(self.seen_at - SLACK_MS),
        };
        self.seen_at = self.hub.clock.now().millis();
        let clock = Arc::clone(&self.hub.clock);
        let reading = Reading::new(clock, plan, attached_at, again, first);
        self.phase = Phase::Snapshot(Box::new(reading));
        Ok(())
    }

    async fn live(&mut self, next: Next) -> Result<(), Failure> {
        match next {
            Next::Event(event) => self.load_and_take(event).await,
            // What was in the queue is taken: from here on from the log, and then live again.
            Next::Ended(_) => {
                let subscriber = Arc::clone(&self.subscriber);
                loop {
                    match self.hub.attach(&subscriber).await {
                        Ok(until) => {
                            self.read_history(until);
                            return Ok(());
                        }
                        Err(error) => {
                            self.pause(&error).await;
                            if self.hub.stop.is_cancelled() {
                                return Err(Failure::ShuttingDown);
                            }
                            if !self.ready.is_empty() {
                                // Not registered yet: the next look finds that out again.
                                subscriber.queue.end(End::Full);
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }

    async fn history(&mut self, next: Next) -> Result<(), Failure> {
        let Phase::History { until, .. } = &self.phase else { return Ok(()) };
        let until = until.clone();
        match next {
            Next::Event(event) => self.load_and_take(event).await,
            Next::Ended(End::Done) => {
                self.cursor = until.max(self.cursor.clone());
                self.resumed = false;
                self.phase = Phase::Live;
                Ok(())
            }
            // Too slow for the reader: again from where we are.
            Next::Ended(End::Full) => {
                self.read_history(until);
                Ok(())
            }
            Next::Ended(End::Failed(error)) => match error {
                Error::CursorExpired | Error::BadCursor if self.resumed => {
                    Err(Error::CursorExpired.into())
                }
                Error::CursorExpired | Error::BadCursor => {
                    // Only slow: the latest of everything is all it is promised, and that is the state as of now.
                    match self.begin_snapshot(until.clone(), true).await {
                        Err(Failure::Store(error)) if error.is_retryable() => {
                            self.pause(&error).await;
                            self.read_history(until);
                            Ok(())
                        }
                        begun => begun,
                    }
                }
                Error::NoLog => Err(error.into()),
                error => {
                    self.pause(&error).await;
                    self.read_history(until);
                    Ok(())
                }
            },
        }
    }

    /// The database is away: watchers stay connected and go on when it is back.
    async fn pause(&mut self, error: &Error) {
        tracing::debug!(%error, "a watcher is waiting for the database");
        let retry = Instant::now() + RETRY_PAUSE;
        tokio::select! {
            () = self.hub.stop.cancelled() => {}
            () = tokio::time::sleep_until(retry) => {}
            () = tokio::time::sleep_until(self.next_keepalive) => self.keepalive(),
        }
    }

    /// Delivers points that arrived, wherever they are.
    async fn read_metrics(&mut self) {
        let Some(feed) = &mut self.metrics else { return };
        match feed.take().await {
            Ok(events) => self.deliver_metrics(events),
            Err(error) => self.pause(&error).await,
        }
    }

    async fn last_metrics(&mut self) {
        if let Some(feed) = &mut self.metrics {
            if let Err(error) = feed.refresh().await {
                tracing::debug!(%error, "cannot read the latest points of other servers");
            }
            if feed.has_more() {
                return self.read_metrics().await;
            }
        }
        self.phase = Phase::Ended;
    }

    async fn load_and_take(&mut self, event: Arc<Event>) -> Result<(), Failure> {
        let news = match self.needs_payloads(&event) {
            true => self.with_payloads(&event).await?,
            false => Some(Arc::clone(&event)),
        };
        self.take(&event, news);
        Ok(())
    }

    /// `None`: the step is gone, and its deletion or that of its execution comes later.
    async fn with_payloads(&mut self, event: &Event) -> Result<Option<Arc<Event>>, Failure> {
        loop {
            let loaded = self.hub.resolver.with_payloads(self.log.as_ref(), event).await;
            match loaded {
                Ok(loaded) => return Ok(loaded),
                // It is not passed over, so the stream waits here.
                Err(error) if error.is_retryable() => self.pause(&error).await,
                Err(error) => return Err(error.into()),
            }
            if self.hub.stop.is_cancelled() {
                return Err(Failure::ShuttingDown);
            }
        }
    }

    /// After a resume: reads the steps as of now, and the position by which all that led to them was seen.
    async fn ask_steps(&mut self) -> Result<(), Failure> {
        let Scope::Execution(id) = &self.options.scope else { return Ok(()) };
        let running = running_steps(self.hub.store.as_ref(), id).await;
        let looked = match running {
            Ok(running) => self.log.position().await.map(|position| (running, position)),
            Err(error) => Err(error),
        };
        match looked {
            Ok((running, position)) => {
                self.ending.running = running.into_iter().collect();
                self.ending.barrier = Some(position);
                self.ending.steps_known = true;
            }
            // The stream asks again.
            Err(error) if error.is_retryable() => self.pause(&error).await,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn advance_snapshot(&mut self) -> Result<(), Failure> {
        let Phase::Snapshot(reading) = &mut self.phase else { return Ok(()) };
        let again = reading.again;
        let piece = match reading.next(self.hub.store.as_ref(), self.log.as_ref()).await {
            Ok(piece) => piece,
            // A new watcher hears of it; one that is only slow waits.
            Err(error) if again && error.is_retryable() => {
                self.pause(&error).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let Some((records, read_at)) = piece else {
            let attached_at = reading.attached_at.clone();
            self.ending.steps_known = true;
            self.resumed = false;
            self.phase = Phase::Live;
            self.ready.push_back(Delivery::SnapshotComplete(attached_at));
            return Ok(());
        };
        let kind = if again { ChangeKind::Updated } else { ChangeKind::Created };
        let now = self.hub.clock.now().millis();
        for record in records {
            // Its change may still be on its way through the log.
            self.ahead.read(&record, now, read_at);
            if let Record::Step(step) = &record {
                if matches!(self.options.scope, Scope::Execution(_)) {
                    self.ending.note_step(step);
                }
                if !self.options.steps {
                    continue;
                }
            }
            self.ready.push_back(Delivery::Current(record, kind));
        }
        Ok(())
    }
}

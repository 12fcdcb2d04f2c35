//! Ends executions that have gone silent. Every server of a cluster looks; the guard inside the write lets
//! exactly one of them mark an execution, and lets a genuine end that raced win.
//!
//! How long an execution is silent is measured by the monotonic clock of this server, from the last change of what
//! the store shows of it. The times that are stored are evidence only, for what this server has not seen itself:
//! a clock that somebody sets neither ends an execution nor keeps it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::execution::SignOfLife;
use crate::domain::limits::HEARTBEAT_TIMEOUT_MS;
use crate::domain::{ExecutionOp, Millis};
use crate::store::mirrors::MirrorStore;
use crate::store::{Answer, Lease, Op, Result, Store};

/// How often to look when nothing needs more.
const IDLE: Duration = Duration::from_secs(1);
/// How often to look at most.
const BUSIEST: Duration = Duration::from_millis(25);

const _: () = assert!(
    BUSIEST.as_millis() * 4 <= *HEARTBEAT_TIMEOUT_MS.start() as u128
        && BUSIEST.as_millis() < IDLE.as_millis(),
    "even at the shortest timeout a look comes within a quarter of it, which leaves another quarter until the mark is \
     due to look again and to write"
);
/// Looks for silent executions.
pub struct Keeper {
    pub store: Arc<dyn Store>,
    /// What they hold is alive or not at their sources, until they are finished.
    pub mirrors: Arc<dyn MirrorStore>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
    /// Woken when a lease was made here, which may be shorter than all others.
    pub lease_made: Arc<Notify>,
    /// Told how many executions were marked.
    pub on_expired: Box<dyn Fn(usize) + Send + Sync>,
}

impl Keeper {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut silence = Silence::from(Moment::of(&*self.clock));
        let mut pause = IDLE;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.lease_made.notified() => {}
            }
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(&mut silence) => looked,
            };
            pause = looked.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot look for silent executions");
                IDLE
            });
        }
    }

    /// Whether there were mirrors, and none is any more.
    async fn mirrors_are_finished(&self) -> Result<bool> {
        let kept = self.mirrors.mirrors().await?;
        Ok(!kept.is_empty() && kept.iter().all(|kept| kept.mirror.finished_at.is_some()))
    }

    /// One look; how long to wait for the next. An eighth of the shortest timeout keeps the mark well within
    /// one and a half of it.
    async fn look(&self, silence: &mut Silence) -> Result<Duration> {
        let now = Moment::of(&*self.clock);
        let mut leases = self.store.leases().await?;
        if leases.iter().any(|lease| lease.held_elsewhere) && self.mirrors_are_finished().await? {
            leases.iter_mut().for_each(|lease| lease.held_elsewhere = false);
        }
        let smallest = leases.iter().map(|lease| lease.heartbeat_timeout_ms).min();
        let suspects = silence.suspects(leases, Reading::since(now.instant, &*self.clock));
        let asked = self.clock.instant();
        let in_steps = match suspects.as_slice() {
            [] => HashMap::new(),
            suspects => self.store.signs_in_steps(suspects, now.wall).await?,
        };
        let steps = Reading::since(asked, &*self.clock);
        let mut expired = 0;
        for execution_id in suspects {
            let Some((seen, timeout)) = silence.judge(&execution_id, &in_steps, steps, now.instant)
            else {
                continue;
            };
            // What was read is stale if this process stood still meanwhile; look again.
            if self.clock.elapsed(now.instant) > timeout / 4 {
                return Ok(BUSIEST);
            }
            let op = Op::Execution(ExecutionOp::Expire { seen });
            match self.engine.write(execution_id.clone(), op, AppScope::all()).await {
                Ok(Answer::Execution(execution)) if execution.ended_for_silence() => {
                    // Another server may have been first; then its mark is the older one.
                    if execution.updated_at >= Some(now.wall) {
                        expired += 1;
                        tracing::info!(
                            execution.id = execution_id,
                            heartbeat.timeout_ms = timeout.as_millis() as u64,
                            "execution marked failed: no sign of life for too long"
                        );
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, execution.id = execution_id, "cannot mark a silent execution as failed");
                }
            }
        }
        if expired > 0 {
            (self.on_expired)(expired);
        }
        Ok(smallest.map_or(IDLE, |ms| (millis(ms) / 8).clamp(BUSIEST, IDLE)))
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wall: Millis,
    instant: Instant,
}

impl Moment {
    fn of(clock: &dyn Clock) -> Moment {
        Moment { wall: clock.now().millis(), instant: clock.instant() }
    }

    fn before(self, age: Duration) -> Instant {
        self.instant.checked_sub(age).unwrap_or(self.instant)
    }
}

/// One reading of the store. What it shows was so at some moment in between, and may be younger than its beginning.
#[derive(Debug, Clone, Copy)]
struct Reading {
    asked: Instant,
    read: Moment,
}

impl Reading {
    fn since(asked: Instant, clock: &dyn Clock) -> Reading {
        Reading { asked, read: Moment::of(clock) }
    }
}

/// Since when the executions with a lease have shown no sign of life, as far as this server knows.
struct Silence {
    began: Moment,
    /// When the reading before began.
    looked: Instant,
    executions: HashMap<String, Known>,
}

/// What was last seen of an execution.
struct Known {
    timeout: Duration,
    own: SignOfLife,
    /// What its steps showed, and when they were asked; they are asked only when it seems silent.
    steps: Option<(SignOfLife, Instant)>,
    alive: Instant,
}

impl Silence {
    fn from(began: Moment) -> Silence {
        Silence { began, looked: began.instant, executions: HashMap::new() }
    }

    /// How old a sign is by its stored time: by the time of day, or by what that would be if nobody had set the clock
    /// since this server began, whichever is nearer to it.
    fn age(&self, sign: SignOfLife, now: Moment) -> Duration {
        let passed = now.instant.saturating_duration_since(self.began.instant).as_millis();
        let steady = self.began.wall.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX));
        let ages = [now.wall, steady].map(|clock| clock.saturating_sub(sign.at.unwrap_or(clock)));
        ages.into_iter().min_by_key(|age| age.unsigned_abs()).map_or(Duration::ZERO, millis)
    }

    /// Takes in what their own records show, and names those that had shown no sign of life within their timeout when
    /// the reading began.
    fn suspects(&mut self, leases: Vec<Lease>, reading: Reading) -> Vec<String> {
        let Reading { asked, read } = reading;
        let since_last = read.instant.saturating_duration_since(self.looked);
        let mut before = std::mem::take(&mut self.executions);
        let mut suspects = Vec::new();
        for lease in leases {
            let timeout = millis(lease.heartbeat_timeout_ms);
            if lease.held_elsewhere {
                // Its client shows its life to the source of the mirror. Should that end, it has its whole timeout.
                let known = Known { timeout, own: lease.sign, steps: None, alive: read.instant };
                self.executions.insert(lease.execution_id, known);
                continue;
            }
            let age = self.age(lease.sign, read);
            let known = match before.remove(&lease.execution_id) {
                None => Known {
                    timeout,
                    own: lease.sign,
                    steps: None,
                    alive: read.before(age.min(timeout)),
                },
                // Whatever its time says, it came after the last look.
                Some(known) if known.own != lease.sign => Known {
                    timeout,
                    own: lease.sign,
                    alive: known.alive.max(read.before(age.min(since_last))),
                    ..known
                },
                Some(known) => Known { timeout, ..known },
            };
            if known.alive + timeout <= asked {
                suspects.push(lease.execution_id.clone());
            }
            self.executions.insert(lease.execution_id, known);
        }
        self.looked = asked;
        suspects
    }

    /// Whether one that seems silent was so at `now`, as its steps were read since: what was seen of it, and its timeout.
    fn judge(
        &mut self,
        execution_id: &str,
        in_steps: &HashMap<String, SignOfLife>,
        reading: Reading,
        now: Instant,
    ) -> Option<(SignOfLife, Duration)> {
        let Reading { asked, read } = reading;
        let shown = in_steps.get(execution_id).map(|sign| (*sign, self.age(*sign, read)));
        let known = self.executions.get_mut(execution_id)?;
        if let Some((sign, age)) = shown {
            let since_last = match known.steps {
                None => Some(known.timeout),
                Some((before, asked)) if before != sign => {
                    Some(read.instant.saturating_duration_since(asked))
                }
                Some(_) => None,
            };
            known.steps = Some((sign, asked));
            if let Some(most) = since_last {
                known.alive = known.alive.max(read.before(age.min(most)));
            }
        }
        (known.alive + known.timeout <= now).then_some((known.own, known.timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const START_MS: Millis = 1_700_000_000_000;
    const TIMEOUT_MS: i64 = 5000;
    const TWO_HOURS_MS: i64 = 2 * 3_600_000;

    /// A server that looks every half second, and one execution as the store shows it.
    struct Rig {
        clock: ManualClock,
        silence: Silence,
        own: SignOfLife,
        steps: Option<SignOfLife>,
        held_elsewhere: bool,
    }

    impl Rig {
        fn new() -> Rig {
            let clock = ManualClock::at(START_MS * 1000);
            let silence = Silence::from(Moment::of(&clock));
            let own = SignOfLife { at: Some(START_MS), writes: 1 };
            Rig { clock, silence, own, steps: None, held_elsewhere: false }
        }

        fn set_clock(&self, by_ms: i64) {
            self.clock.set(self.clock.now().micros + by_ms * 1000);
        }

        /// The client writes something now.
        fn write(sign: &mut SignOfLife, clock: &ManualClock) {
            *sign = SignOfLife { at: Some(clock.now().millis()), writes: sign.writes + 1 };
        }

        /// Whether it is ended, and what was seen of it.
        fn look(&mut self) -> Option<SignOfLife> {
            let now = Moment::of(&self.clock);
            let lease = Lease {
                execution_id: "e".to_owned(),
                heartbeat_timeout_ms: TIMEOUT_MS,
                sign: self.own,
                held_elsewhere: self.held_elsewhere,
            };
            let at_once = Reading { asked: now.instant, read: now };
            let suspects = self.silence.suspects(vec![lease], at_once);
            let in_steps = self.steps.map(|sign| ("e".to_owned(), sign)).into_iter().collect();
            let judged = self.silence.judge(suspects.first()?, &in_steps, at_once, now.instant);
            judged.map(|(seen, _)| seen)
        }

        /// After how many milliseconds it is ended; looks for so long at most.
        fn ended_after(&mut self, most_ms: u64) -> Option<u64> {
            (0..=most_ms / 500).map(|looks| looks * 500).find(|_| {
                let ended = self.look().is_some();
                self.clock.advance_ms(500);
                ended
            })
        }
    }

    #[test]
    fn silence_ends_it_after_its_timeout() {
        assert_eq!(Rig::new().ended_after(20_000), Some(5000));
    }

    #[test]
    fn what_came_while_a_slow_store_was_read_has_its_whole_timeout() {
        let mut rig = Rig::new();
        for id in ["made", "changed"] {
            let sign =
                |rig: &Rig, writes| SignOfLife { at: Some(rig.clock.now().millis()), writes };
            let lease = |sign| Lease {
                execution_id: id.to_owned(),
                heartbeat_timeout_ms: TIMEOUT_MS,
                sign,
                held_elsewhere: false,
            };
            if id == "changed" {
                let (now, first) = (Moment::of(&rig.clock), sign(&rig, 1));
                let reading = Reading { asked: now.instant, read: now };
                assert_eq!(rig.silence.suspects(vec![lease(first)], reading), [""; 0]);
            }
            // The reading takes three seconds, and the sign is given after two of them.
            let asked = rig.clock.instant();
            rig.clock.advance_ms(2000);
            let given = sign(&rig, 2);
            rig.clock.advance_ms(1000);
            let reading = Reading { asked, read: Moment::of(&rig.clock) };
            assert_eq!(rig.silence.suspects(vec![lease(given)], reading), [""; 0]);
            let mut silent_ms = 1000;
            loop {
                rig.clock.advance_ms(500);
                silent_ms += 500;
                let now = Moment::of(&rig.clock);
                let reading = Reading { asked: now.instant, read: now };
                if !rig.silence.suspects(vec![lease(given)], reading).is_empty() {
                    break;
                }
            }
            assert_eq!(silent_ms, TIMEOUT_MS, "{id}");
        }
    }

    #[test]
    fn what_a_mirror_holds_is_not_ended_and_then_has_its_whole_timeout() {
        let mut rig = Rig { held_elsewhere: true, ..Rig::new() };
        rig.own.at = Some(START_MS - 3_600_000);
        assert_eq!(rig.ended_after(60_000), None);
        rig.held_elsewhere = false;
        assert!(rig.ended_after(20_000).is_some_and(|after| after >= 4500));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_it() {
        let mut rig = Rig::new();
        assert_eq!(rig.ended_after(1500), None);
        rig.set_clock(-TWO_HOURS_MS);
        assert_eq!(rig.ended_after(20_000), Some(3000));
    }

    #[test]
    fn a_clock_that_is_set_before_the_first_look_does_not_keep_it_either() {
        for by_ms in [-TWO_HOURS_MS, TWO_HOURS_MS] {
            let mut rig = Rig::new();
            rig.clock.advance_ms(2000);
            rig.set_clock(by_ms);
            assert_eq!(rig.ended_after(20_000), Some(3000), "{by_ms}");
        }
    }

    #[test]
    fn a_clock_that_is_set_forward_does_not_end_it() {
        let mut rig = Rig::new();
        assert_eq!(rig.ended_after(1500), None);
        rig.set_clock(TWO_HOURS_MS);
        assert_eq!(rig.ended_after(20_000), Some(3000));
    }

    #[test]
    fn whoever_writes_is_alive_wherever_the_clock_was_set_to() {
        for by_ms in [0, -TWO_HOURS_MS, TWO_HOURS_MS] {
            let mut rig = Rig::new();
            assert_eq!(rig.look(), None);
            rig.set_clock(by_ms);
            for _ in 0..10 {
                Rig::write(&mut rig.own, &rig.clock);
                assert_eq!(rig.ended_after(3500), None, "{by_ms}");
            }
            assert_eq!(rig.ended_after(20_000), Some(1000), "{by_ms}");
        }
    }

    #[test]
    fn steps_show_it_alive_wherever_the_clock_was_set_to() {
        for by_ms in [0, -TWO_HOURS_MS, TWO_HOURS_MS] {
            let mut rig = Rig::new();
            let mut steps = rig.own;
            assert_eq!(rig.look(), None);
            rig.set_clock(by_ms);
            for _ in 0..10 {
                Rig::write(&mut steps, &rig.clock);
                rig.steps = Some(steps);
                assert_eq!(rig.ended_after(3500), None, "{by_ms}");
            }
            // Steps are asked only when the execution itself seems silent.
            let after = rig.ended_after(20_000);
            assert!(after.is_some_and(|after| after <= 5000), "{by_ms} {after:?}");
        }
    }

    #[test]
    fn long_silence_before_this_server_began_is_taken_from_the_stored_time() {
        let mut rig = Rig::new();
        rig.own.at = Some(START_MS - 3000);
        assert_eq!(rig.ended_after(20_000), Some(2000));
        let mut rig = Rig::new();
        rig.own.at = Some(START_MS - 3_600_000);
        assert_eq!(rig.ended_after(20_000), Some(0));
        // Another program's record may have no time at all.
        let mut rig = Rig::new();
        rig.own.at = None;
        assert_eq!(rig.ended_after(20_000), Some(5000));
    }

    #[test]
    fn a_sign_from_a_moment_after_the_look_began_is_new() {
        let mut rig = Rig::new();
        assert_eq!(rig.look(), None);
        rig.set_clock(-TWO_HOURS_MS);
        rig.clock.advance_ms(5000);
        rig.steps = Some(SignOfLife { at: Some(rig.clock.now().millis() + 20), writes: 1 });
        assert_eq!(rig.look(), None);
    }

    #[test]
    fn only_what_was_seen_is_ended() {
        let mut rig = Rig::new();
        rig.clock.advance_ms(6000);
        assert_eq!(rig.look(), Some(rig.own));
        Rig::write(&mut rig.own, &rig.clock);
        assert_eq!(rig.look(), None);
    }
}

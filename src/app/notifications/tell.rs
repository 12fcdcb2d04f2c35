//! From changes of the log to what subscriptions are told: one after the other, each against what was told before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::changes::{
    Look, Of, Records, as_of, execution_news, in_attempt, step_news, with_status,
};
use super::directory::Known;
use super::sign::About;
use crate::domain::notification::{Basis, Event, ExecutionTold, Identity};
use crate::domain::{Execution, Millis, Step};
use crate::store::notifications::{Told, ToldKey, ToldOf};
use crate::store::{Change, Cursor, Record};

/// One subscription that is told of a batch.
pub struct Listener {
    pub known: Arc<Known>,
    /// What it was told already.
    pub skip: Option<Cursor>,
    /// How many deliveries there is room for. Where there are none at all, one change may make more.
    pub room: usize,
    pub empty: bool,
    /// The number of the change before which it stopped, as there was no room.
    pub stopped: Option<usize>,
}

/// A delivery as it is made, without its body.
pub struct Draft {
    pub known: Arc<Known>,
    pub id: String,
    pub event: Event,
    pub at: Millis,
    pub whose: Identity,
    pub execution: Arc<Execution>,
    pub step: Option<Arc<Step>>,
}

/// What a batch makes.
#[derive(Default)]
pub struct Made {
    pub drafts: Vec<Draft>,
    pub told: HashMap<ToldKey, Told>,
    /// Subscription and execution.
    pub gone: Vec<(String, String)>,
}

/// What was told before, and what is told with this batch.
pub struct Telling<'a> {
    pub records: &'a Records,
    pub told: HashMap<ToldKey, Told>,
    pub made: Made,
}

/// What may have been told of a batch.
pub fn keys(listeners: &[Listener], looks: &[Look<'_>]) -> Vec<ToldKey> {
    let mut keys = HashSet::new();
    for look in looks {
        for listener in listeners {
            let key = |step_id| ToldKey {
                subscription: listener.known.id().to_owned(),
                execution_id: look.execution_id.clone(),
                step_id,
            };
            keys.insert(key(None));
            if let Of::Step(step_id) = look.what {
                keys.insert(key(Some(step_id)));
            }
        }
    }
    keys.into_iter().collect()
}

/// What was told of an execution.
#[derive(Clone, Default)]
struct Before {
    told: Option<ExecutionTold>,
    seen: bool,
    whose: Option<Identity>,
}

impl Telling<'_> {
    /// Tells one listener of one change.
    pub fn tell(&mut self, listener: &mut Listener, look: &Look<'_>) {
        let is_over = listener.skip.as_ref().is_some_and(|skip| look.change.cursor <= *skip);
        if is_over || listener.stopped.is_some() {
            return;
        }
        match look.what {
            Of::Gone => self.gone(&listener.known, look),
            Of::Execution => self.execution(listener, look),
            Of::Step(step_id) => self.step(listener, look, step_id),
        }
    }

    fn key(listener: &Known, look: &Look<'_>, step_id: Option<i32>) -> ToldKey {
        ToldKey {
            subscription: listener.id().to_owned(),
            execution_id: look.execution_id.clone(),
            step_id,
        }
    }

    fn gone(&mut self, known: &Known, look: &Look<'_>) {
        let key = Self::key(known, look, None);
        let is_later = self.told.get(&key).is_some_and(|told| told.through < look.change.cursor);
        if !is_later {
            return;
        }
        let other = |one: &ToldKey| {
            one.subscription != key.subscription || one.execution_id != key.execution_id
        };
        self.told.retain(|one, _| other(one));
        self.made.told.retain(|one, _| other(one));
        self.made.gone.push((key.subscription.clone(), key.execution_id.clone()));
    }

    fn before(&self, key: &ToldKey) -> Before {
        match self.told.get(key).map(|told| &told.what) {
            Some(ToldOf::Execution { told, seen, whose }) => {
                Before { told: Some(*told), seen: *seen, whose: Some(whose.clone()) }
            }
            _ => Before::default(),
        }
    }

    fn is_known(&self, key: &ToldKey, change: &Change) -> bool {
        self.told.get(key).is_some_and(|told| told.through >= change.cursor)
    }

    fn note(&mut self, key: ToldKey, change: &Change, what: ToldOf) {
        let told = Told { through: change.cursor.clone(), at: change.at, what };
        self.told.insert(key.clone(), told.clone());
        self.made.told.insert(key, told);
    }

    /// Takes drafts in, if there is room for all of them.
    fn take(&mut self, listener: &mut Listener, look: &Look<'_>, drafts: Vec<Draft>) -> bool {
        // What alone is more than there is room for goes to who has nothing else.
        if drafts.len() > listener.room && !listener.empty {
            listener.stopped = Some(look.index);
            return false;
        }
        listener.room = listener.room.saturating_sub(drafts.len());
        listener.empty &= drafts.is_empty();
        self.made.drafts.extend(drafts);
        true
    }

    fn execution(&mut self, listener: &mut Listener, look: &Look<'_>) {
        let (known, change) = (Arc::clone(&listener.known), look.change);
        let key = Self::key(&known, look, None);
        if self.is_known(&key, change) {
            return;
        }
        let Before { told, seen, whose } = self.before(&key);
        let records = self.records;
        let Some(now) = records.execution(&look.execution_id, whose.as_ref()) else { return };
        let (news, basis) = execution_news(change, &now, known.subscription.created_at);
        let (events, after) = news.events(told, basis);
        let record = Arc::new(as_of(change, &now, after.status, after.cancel_requested));
        if !known.filter().matches_fixed(&record) {
            return;
        }
        let whose = Identity::of(&record);
        let matches = known.filter().matches(&record);
        let drafts =
            events.into_iter().filter(|event| matches && known.wants(*event)).map(|event| {
                let about = About {
                    subscription: known.id(),
                    execution_id: &look.execution_id,
                    step_id: None,
                    event,
                    place: &change.cursor,
                    attempt: None,
                };
                Draft {
                    known: Arc::clone(&known),
                    id: about.id(),
                    event,
                    at: change.at,
                    whose: whose.clone(),
                    execution: Arc::clone(&record),
                    step: None,
                }
            });
        let drafts = drafts.collect();
        if !self.take(listener, look, drafts) {
            return;
        }
        let is_new = basis == Basis::New;
        if told != Some(after) || is_new {
            let seen = seen || is_new;
            self.note(key, change, ToldOf::Execution { told: after, seen, whose });
        }
    }

    fn step(&mut self, listener: &mut Listener, look: &Look<'_>, step_id: i32) {
        let (known, change) = (Arc::clone(&listener.known), look.change);
        let key = Self::key(&known, look, Some(step_id));
        if self.is_known(&key, change) {
            return;
        }
        let Before { told: of_execution, seen, whose } =
            self.before(&Self::key(&known, look, None));
        let records = self.records;
        let Some(now) = records.execution(&look.execution_id, whose.as_ref()) else { return };
        let step = records.step(&look.execution_id, step_id).map(Arc::as_ref);
        let Some((news, basis)) = step_news(change, step, known.subscription.created_at) else {
            return;
        };
        let told = match self.told.get(&key).map(|told| &told.what) {
            Some(ToldOf::Step(told)) => Some(*told),
            _ => None,
        };
        let (events, after) = news.events(told, basis, seen);
        // How the execution was by then, as far as that is known.
        let now = match of_execution.and_then(|told| told.status) {
            Some(status) => Arc::new(with_status(&now, status)),
            None => now,
        };
        if !known.filter().matches(&now) {
            return;
        }
        let whose = Identity::of(&now);
        let many = events.len() > 1;
        let drafts =
            events.into_iter().filter(|(event, _)| known.wants(*event)).map(|(event, attempt)| {
                let about = About {
                    subscription: known.id(),
                    execution_id: &look.execution_id,
                    step_id: Some(step_id),
                    event,
                    place: &change.cursor,
                    attempt: many.then_some(attempt),
                };
                let step = self.in_attempt(look, step_id, event, attempt);
                Draft {
                    known: Arc::clone(&known),
                    id: about.id(),
                    event,
                    at: change.at,
                    whose: whose.clone(),
                    execution: Arc::clone(&now),
                    step: Some(Arc::new(step)),
                }
            });
        let drafts = drafts.collect();
        if !self.take(listener, look, drafts) {
            return;
        }
        if told.unwrap_or_default() != after {
            self.note(key, change, ToldOf::Step(after));
        }
    }

    fn in_attempt(&self, look: &Look<'_>, step_id: i32, event: Event, attempt: i32) -> Step {
        let now = match &look.change.body {
            Some(Record::Step(step)) => Some(step.as_ref()),
            _ => self.records.step(&look.execution_id, step_id).map(Arc::as_ref),
        };
        let said = look.change.standing.as_ref();
        let failed = event == Event::StepFailed;
        in_attempt(&look.execution_id, step_id, now, said, attempt, failed)
    }
}

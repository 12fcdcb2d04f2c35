//! From writes to record changes, the same for every backend: which facts have to be loaded, and what the
//! rules make of them. A backend loads the `Needs` into `Facts`, calls `plan`, and persists what is dirty,
//! each record under the guard that it still is what `before` says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::write::{Answer, Op, Record, RecordKey, Write};
use crate::domain::access::{App, AppScope};
use crate::domain::limits::Limits;
use crate::domain::step::{self, Target};
use crate::domain::{
    Decision, Execution, ExecutionOp, Refusal, Step, StepOp, StepRef, execution, value,
};

/// What has to be known before the rules can run.
#[derive(Debug, Default, PartialEq)]
pub struct Needs {
    pub executions: HashSet<String>,
    /// Execution -> numbers of its steps.
    pub steps: HashMap<String, HashSet<i32>>,
    /// Execution -> keys of its steps.
    pub keys: HashMap<String, HashSet<String>>,
    /// Executions whose greatest step number is needed: to assign the next, and to tell whether there may be as many
    /// steps as there can be.
    pub greatest_step_ids: HashSet<String>,
}

impl Needs {
    /// The needs of `writes`. `optimistic` leaves out records that a write expects to create: the unique
    /// index tells when it was wrong, and then the caller comes again without optimism.
    pub fn of(writes: &[Write], optimistic: bool) -> Needs {
        let mut needs = Needs::default();
        let mut created_here = HashSet::new();
        for write in writes {
            let id = write.execution_id.as_str();
            match &write.op {
                Op::Execution(op) => {
                    if op.may_create() {
                        created_here.insert(id);
                    }
                    if !optimistic || !(op.may_create() || created_here.contains(id)) {
                        needs.executions.insert(id.to_owned());
                    }
                }
                Op::Step { named, op } => {
                    // Of a step that is there for its sign of life, of another to be there.
                    if !(optimistic && created_here.contains(id)) {
                        needs.executions.insert(id.to_owned());
                    }
                    needs.step(id, named, op, optimistic);
                }
                Op::Plan(steps) => {
                    if !(optimistic && created_here.contains(id)) {
                        needs.executions.insert(id.to_owned());
                    }
                    let planned: HashSet<i32> =
                        steps.iter().filter_map(|(named, _)| named.step_id).collect();
                    let keys: HashSet<&String> =
                        steps.iter().filter_map(|(named, _)| named.step_key.as_ref()).collect();
                    for (named, op) in steps {
                        needs.step(id, named, op, optimistic);
                        if let StepOp::Plan { fields, .. } = op {
                            let others = fields.depends_on.iter().chain(&fields.parent_step_id);
                            for other in others.filter(|id| !planned.contains(id)) {
                                needs.steps.entry(id.to_owned()).or_default().insert(*other);
                            }
                            let others = fields.depends_on_keys.iter();
                            for other in others.filter(|key| !keys.contains(key)) {
                                needs.keys.entry(id.to_owned()).or_default().insert(other.clone());
                            }
                        }
                    }
                }
            }
        }
        needs
    }

    fn step(&mut self, id: &str, named: &StepRef, op: &StepOp, optimistic: bool) {
        if let Some(parent) = op.parent_step_key() {
            self.keys.entry(id.to_owned()).or_default().insert(parent.clone());
        }
        if !(optimistic && op.expects_to_create()) {
            if let Some(step_id) = named.step_id {
                self.steps.entry(id.to_owned()).or_default().insert(step_id);
            }
            if let Some(key) = &named.step_key
                && (named.step_id.is_none() || op.may_create())
            {
                self.keys.entry(id.to_owned()).or_default().insert(key.clone());
            }
        }
        if op.may_create() {
            self.greatest_step_ids.insert(id.to_owned());
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Needs::default()
    }
}

/// What is known. A record that is in no map is unknown and taken for missing; `None` is known to be missing.
#[derive(Debug, Default)]
pub struct Facts {
    pub executions: HashMap<String, Option<Arc<Execution>>>,
    pub steps: HashMap<RecordKey, Option<Arc<Step>>>,
    /// (execution, key) -> number.
    pub keys: HashMap<(String, String), Option<i32>>,
    pub greatest_step_ids: HashMap<String, i32>,
    /// Loaded only for those that rules ask for.
    pub step_counts: HashMap<String, usize>,
    /// A change makes a revision above this one.
    pub revisions_above: i64,
}

impl Facts {
    /// The revision that a change makes.
    fn revision(&self, revision: i64) -> i64 {
        match self.revisions_above {
            0 => revision,
            above => revision.max(above.saturating_add(1)),
        }
    }

    /// Takes in a loaded step, under its number and its key.
    pub fn add_step(&mut self, step: Arc<Step>) {
        if let Some(key) = &step.step_key {
            self.keys.insert((step.execution_id.clone(), key.clone()), Some(step.step_id));
        }
        self.steps.insert(RecordKey::step(&step.execution_id, step.step_id), Some(step));
    }
}

/// A record that writes touched.
#[derive(Debug)]
pub struct Dirty<T> {
    pub before: Option<Arc<T>>,
    /// `None`: it goes away (executions only).
    pub after: Option<Arc<T>>,
    /// The record changes, with a new revision.
    pub changed: bool,
    /// The record is stored differently, with or without being a change. False: it was only looked at and its
    /// state answered a write, so it must still be what `before` says when that answer goes out.
    pub stored: bool,
}

/// What the rules made of the writes.
#[derive(Debug, Default)]
pub struct Plan {
    pub executions: HashMap<String, Dirty<Execution>>,
    pub steps: HashMap<RecordKey, Dirty<Step>>,
    /// One per write, in order.
    pub outcomes: Vec<Result<Planned, Refusal>>,
}

/// The answer to one write, good once every record it touched is durable.
#[derive(Debug)]
pub struct Planned {
    pub answer: Answer,
    pub touched: Vec<RecordKey>,
}

/// Runs the rules over the writes in order. A refused write leaves no trace in the plan.
pub fn plan(writes: &[Write], facts: &Facts, limits: &Limits) -> Plan {
    let mut work = Work {
        facts,
        limits,
        plan: Plan::default(),
        greatest: HashMap::new(),
        keys: HashMap::new(),
        added: HashMap::new(),
    };
    for write in writes {
        let outcome = work.write(write);
        work.plan.outcomes.push(outcome);
    }
    work.plan
}

/// Merging may make a value of many small ones; only another program may have made it larger than its bound.
fn grown_in_bounds(
    field: &'static str,
    before: usize,
    after: usize,
    limit: usize,
) -> Result<(), Refusal> {
    if after > limit && after > before {
        return Err(Refusal::TooLarge { field, size: after, limit });
    }
    Ok(())
}

/// Whether a write of an execution stays within what its writer may reach, before and after.
fn within(
    scope: &AppScope,
    id: &str,
    stored: Option<&Execution>,
    op: &ExecutionOp,
) -> Result<(), Refusal> {
    if scope.is_all() {
        return Ok(());
    }
    let after = match op {
        ExecutionOp::Create(new) => Some(App {
            name: &new.app_name,
            number: new.app_id,
            part: new.sub_app_id,
            part_name: new.sub_app_name.as_deref(),
        }),
        ExecutionOp::Put(record) => Some(App::of(record)),
        _ => None,
    };
    if after.is_some_and(|app| !scope.holds(app)) {
        return Err(Refusal::ScopeForbids);
    }
    match stored {
        Some(stored) if !scope.holds_execution(stored) => {
            let execution_id = id.to_owned();
            // That an id is taken cannot be hidden from who wants to take it.
            Err(match after {
                Some(_) => Refusal::ExecutionExists { execution_id },
                None => Refusal::ExecutionNotFound { execution_id },
            })
        }
        _ => Ok(()),
    }
}

struct Work<'a> {
    facts: &'a Facts,
    limits: &'a Limits,
    plan: Plan,
    greatest: HashMap<String, i32>,
    keys: HashMap<(String, String), i32>,
    added: HashMap<String, usize>,
}

type StepDecision = (RecordKey, Option<Arc<Step>>, Decision<Step>);

/// The steps that a plan adds before the one that is decided.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    added: usize,
    greatest: i32,
}

impl Work<'_> {
    fn execution(&self, id: &str) -> Option<Arc<Execution>> {
        match self.plan.executions.get(id) {
            Some(dirty) => dirty.after.clone(),
            None => self.facts.executions.get(id).cloned().flatten(),
        }
    }

    fn step(&self, key: &RecordKey) -> Option<Arc<Step>> {
        match self.plan.steps.get(key) {
            Some(dirty) => dirty.after.clone(),
            None => self.facts.steps.get(key).cloned().flatten(),
        }
    }

    fn write(&mut self, write: &Write) -> Result<Planned, Refusal> {
        match &write.op {
            Op::Execution(op) => self.write_execution(write, op),
            Op::Step { named, op } => {
                let decided = self.decide_step(write, named, op, Ahead::default())?;
                let superseded = matches!(decided.2, Decision::Superseded);
                let changes_nothing = superseded || matches!(decided.2, Decision::Keep);
                if changes_nothing && !op.is_mirrored() {
                    self.sign_of_life(write);
                }
                let (key, step) = self.take_step(decided);
                let answer = match superseded {
                    true => Answer::Superseded(Record::Step(step)),
                    false => Answer::Step(step),
                };
                Ok(Planned { answer, touched: vec![key] })
            }
            Op::Plan(steps) => self.write_plan(write, steps),
        }
    }

    /// Notes that a write which changes nothing came in. It is answered whether or not that gets stored.
    fn sign_of_life(&mut self, write: &Write) {
        let id = &write.execution_id;
        let Some(stored) = self.execution(id) else { return };
        let Some(alive) = execution::alive(&stored, write.now) else { return };
        let dirty = self.plan.executions.entry(id.clone()).or_insert_with(|| Dirty {
            before: Some(Arc::clone(&stored)),
            after: None,
            changed: false,
            stored: false,
        });
        dirty.after = Some(Arc::new(alive));
        dirty.stored = true;
    }

    fn write_execution(&mut self, write: &Write, op: &ExecutionOp) -> Result<Planned, Refusal> {
        let id = &write.execution_id;
        let stored = self.execution(id);
        within(&write.scope, id, stored.as_deref(), op)?;
        let mut decision = execution::decide(id, stored.as_deref(), op, write.now)?;
        let superseded = matches!(decision, Decision::Superseded);
        if let (Some(stored), Decision::Keep | Decision::Superseded) = (&stored, &decision)
            && op.is_by_client()
            && let Some(alive) = execution::alive(stored, write.now)
        {
            decision = Decision::Touch(alive);
        }
        if let (Some(stored), Decision::Put(record)) = (&stored, &decision) {
            grown_in_bounds(
                "metadata",
                value::size_of_document(&stored.metadata),
                value::size_of_document(&record.metadata),
                self.limits.metadata_bytes,
            )?;
        }
        let dirty = self.plan.executions.entry(id.clone()).or_insert_with(|| Dirty {
            before: stored.clone(),
            after: stored.clone(),
            changed: false,
            stored: false,
        });
        match decision {
            Decision::Keep | Decision::Superseded => {}
            Decision::Put(mut record) => {
                let revision = self.facts.revision(record.revision);
                if record.is_held_elsewhere() {
                    record.mirrored_revision = Some(revision);
                }
                record.revision = revision;
                dirty.after = Some(Arc::new(record));
                dirty.changed = true;
                dirty.stored = true;
            }
            Decision::Touch(record) => {
                dirty.after = Some(Arc::new(record));
                dirty.stored = true;
            }
            Decision::Remove => {
                dirty.after = None;
                dirty.changed = true;
                dirty.stored = true;
            }
        }
        let answer = match &dirty.after {
            Some(record) if superseded => Answer::Superseded(Record::Execution(Arc::clone(record))),
            Some(record) => Answer::Execution(Arc::clone(record)),
            None => Answer::Deleted,
        };
        Ok(Planned { answer, touched: vec![RecordKey::execution(id)] })
    }

    fn decide_step(
        &mut self,
        write: &Write,
        named: &StepRef,
        op: &StepOp,
        ahead: Ahead,
    ) -> Result<StepDecision, Refusal> {
        let id = &write.execution_id;
        let by_id = named.step_id.and_then(|step_id| self.step(&RecordKey::step(id, step_id)));
        let by_key = named.step_key.as_ref().and_then(|key| self.step_of_key(id, key));
        if let (Some(by_id), Some(by_key)) = (&by_id, &by_key)
            && by_id.step_id != by_key.step_id
        {
            // The number is of one step and the key of another.
            let (execution_id, step) = (id.clone(), named.to_string());
            return Err(match op.may_create() {
                true => Refusal::StepExists { execution_id, step },
                false => Refusal::StepNotFound { execution_id, step },
            });
        }
        let stored = by_id.or(by_key);
        // Of an execution that is being deleted, no step is there for anybody. Steps without an execution are those
        // of other programs.
        match self.execution(id) {
            Some(execution)
                if execution.deleted_at.is_none() && write.scope.holds_execution(&execution) => {}
            None if stored.is_some() && write.scope.is_all() => {}
            _ => return Err(Refusal::ExecutionNotFound { execution_id: id.clone() }),
        }
        let step_id = match (&stored, named.step_id) {
            (Some(stored), _) => stored.step_id,
            (None, Some(step_id)) => step_id,
            (None, None) => self.next_step_id(id)?,
        };
        let parent = op.parent_step_key().and_then(|key| self.step_of_key(id, key));
        let parent_step_id = parent.map(|parent| parent.step_id);
        let target = Target { execution_id: id, named, step_id, parent_step_id };
        let decision = step::decide(&target, stored.as_deref(), op, write.now)?;
        if let (Some(stored), Decision::Put(record)) = (&stored, &decision) {
            grown_in_bounds(
                "metadata",
                value::size_of_document(&stored.metadata),
                value::size_of_document(&record.metadata),
                self.limits.metadata_bytes,
            )?;
            let output = |step: &Step| step.output.value().map_or(0, value::size);
            grown_in_bounds("output", output(stored), output(record), self.limits.payload_bytes)?;
        }
        if stored.is_none() {
            self.one_step_more(id, step_id, ahead)?;
        }
        Ok((RecordKey::step(id, step_id), stored, decision))
    }

    fn step_of_key(&self, id: &str, key: &str) -> Option<Arc<Step>> {
        let key = (id.to_owned(), key.to_owned());
        let step_id = match self.keys.get(&key) {
            Some(step_id) => Some(*step_id),
            None => self.facts.keys.get(&key).copied().flatten(),
        }?;
        self.step(&RecordKey::step(id, step_id))
    }

    /// The number for a step that brings none.
    fn next_step_id(&self, id: &str) -> Result<i32, Refusal> {
        let next = self.greatest(id).max(0).checked_add(1);
        next.ok_or_else(|| Refusal::StepIdsExhausted { execution_id: id.to_owned() })
    }

    /// Refuses a step beyond the limit, which counts steps and not numbers. As long as no number reaches it there
    /// cannot be too many, and nothing has to be counted.
    fn one_step_more(&self, id: &str, step_id: i32, ahead: Ahead) -> Result<(), Refusal> {
        let limit = self.limits.steps_per_execution;
        let greatest = self.greatest(id).max(ahead.greatest).max(step_id);
        if usize::try_from(greatest).is_ok_and(|greatest| greatest < limit) {
            return Ok(());
        }
        let counted = self.facts.step_counts.get(id).ok_or(Refusal::NeedsStepCount)?;
        let size = counted + self.added.get(id).copied().unwrap_or(0) + ahead.added + 1;
        match size > limit {
            true => Err(Refusal::TooLarge { field: "steps of the execution", size, limit }),
            false => Ok(()),
        }
    }

    fn greatest(&self, id: &str) -> i32 {
        let stored = self.facts.greatest_step_ids.get(id).copied().unwrap_or(0);
        self.greatest.get(id).copied().unwrap_or(0).max(stored)
    }

    fn take_step(&mut self, (key, stored, decision): StepDecision) -> (RecordKey, Arc<Step>) {
        if stored.is_none() {
            *self.added.entry(key.execution_id.clone()).or_default() += 1;
        }
        let greatest = self.greatest.entry(key.execution_id.clone()).or_default();
        *greatest = (*greatest).max(key.step_id.unwrap_or(0));
        let dirty = self.plan.steps.entry(key.clone()).or_insert_with(|| Dirty {
            before: stored.clone(),
            after: stored.clone(),
            changed: false,
            stored: false,
        });
        if let Decision::Put(mut record) | Decision::Touch(mut record) = decision {
            let revision = self.facts.revision(record.revision);
            if record.mirrored_revision == Some(record.revision) {
                record.mirrored_revision = Some(revision);
            }
            record.revision = revision;
            if let Some(step_key) = &record.step_key {
                self.keys.insert((key.execution_id.clone(), step_key.clone()), record.step_id);
            }
            dirty.after = Some(Arc::new(record));
            dirty.changed = true;
            dirty.stored = true;
        }
        let step =
            dirty.after.clone().expect("a step write keeps or puts a record, it never removes one");
        let answer = if step.input.value().is_some() || step.output.value().is_some() {
            Arc::new(step.without_payloads())
        } else {
            step
        };
        (key, answer)
    }

    fn write_plan(
        &mut self,
        write: &Write,
        steps: &[(StepRef, StepOp)],
    ) -> Result<Planned, Refusal> {
        let id = &write.execution_id;
        // The whole plan is decided before any of it is taken: all or nothing.
        let mut decided = Vec::with_capacity(steps.len());
        let mut ahead = Ahead::default();
        for (named, op) in steps {
            let decision = self.decide_step(write, named, op, ahead)?;
            ahead.added += usize::from(decision.1.is_none());
            ahead.greatest = ahead.greatest.max(decision.0.step_id.unwrap_or(0));
            decided.push(decision);
        }
        self.check_references(id, steps)?;
        let mut touched = Vec::with_capacity(decided.len());
        let mut answers = Vec::with_capacity(decided.len());
        for decision in decided {
            let (key, step) = self.take_step(decision);
            touched.push(key);
            answers.push(step);
        }
        Ok(Planned { answer: Answer::Steps(answers), touched })
    }

    /// That the steps of a plan refer to steps of it or to stored ones, and never wait for each other.
    fn check_references(&self, id: &str, steps: &[(StepRef, StepOp)]) -> Result<(), Refusal> {
        let numbers: HashSet<i32> = steps.iter().filter_map(|(named, _)| named.step_id).collect();
        let keys: HashMap<&String, i32> = steps
            .iter()
            .filter_map(|(named, _)| Some((named.step_key.as_ref()?, named.step_id?)))
            .collect();
        let number_of = |key: &String| match keys.get(key) {
            Some(step_id) => Some(*step_id),
            None => self.step_of_key(id, key).map(|step| step.step_id),
        };
        let mut planned = Vec::with_capacity(steps.len());
        let mut known = HashMap::new();
        for (named, op) in steps {
            let (StepOp::Plan { fields, .. }, Some(step_id)) = (op, named.step_id) else {
                continue;
            };
            let parent = match (fields.parent_step_id, &fields.parent_step_key) {
                (Some(parent), _)
                    if !numbers.contains(&parent)
                        && self.step(&RecordKey::step(id, parent)).is_none() =>
                {
                    Some(parent.to_string())
                }
                (None, Some(parent)) if number_of(parent).is_none() => Some(parent.clone()),
                _ => None,
            };
            if let Some(parent) = parent {
                return Err(Refusal::UnknownParent { step_id, parent });
            }
            let mut depends_on = fields.depends_on.clone();
            for key in &fields.depends_on_keys {
                let number = number_of(key);
                let unknown = || Refusal::UnknownDependency { step_id, depends_on: key.clone() };
                depends_on.push(number.ok_or_else(unknown)?);
            }
            for dependency in depends_on.iter().filter(|id| !numbers.contains(id)) {
                if let Some(stored) = self.step(&RecordKey::step(id, *dependency)) {
                    let by_key = stored.depends_on_keys.iter().filter_map(number_of);
                    known.insert(
                        *dependency,
                        stored.depends_on.iter().copied().chain(by_key).collect(),
                    );
                }
            }
            planned.push((step_id, depends_on));
        }
        step::check_plan(&planned, &known)
    }
}

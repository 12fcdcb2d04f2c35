//! From writes to record changes, the same for every backend: which facts have to be loaded, and what the
//! rules make of them. A backend loads the `Needs` into `Facts`, calls `plan`, and persists what is dirty,
//! each record under the guard that it still is what `before` says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::write::{Answer, Op, Record, RecordKey, Write};
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
    /// Executions whose greatest step number is needed, to assign the next.
    pub greatest_step_ids: HashSet<String>,
    /// Executions whose number of steps is needed: only where numbers pass the limit.
    pub step_counts: HashSet<String>,
}

impl Needs {
    /// The needs of `writes`. `optimistic` leaves out records that a write expects to create: the unique
    /// index tells when it was wrong, and then the caller comes again without optimism.
    pub fn of(writes: &[Write], optimistic: bool, limits: &Limits) -> Needs {
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
                    needs.step(id, named, op, optimistic, limits);
                }
                Op::Plan(steps) => {
                    if !(optimistic && created_here.contains(id)) {
                        needs.executions.insert(id.to_owned());
                    }
                    let planned: HashSet<i32> =
                        steps.iter().filter_map(|(named, _)| named.step_id).collect();
                    for (named, op) in steps {
                        needs.step(id, named, op, optimistic, limits);
                        if let StepOp::Plan { fields, .. } = op {
                            let others =
                                fields.depends_on.iter().filter(|id| !planned.contains(id));
                            for other in others {
                                needs.steps.entry(id.to_owned()).or_default().insert(*other);
                            }
                        }
                    }
                }
            }
        }
        needs
    }

    fn step(&mut self, id: &str, named: &StepRef, op: &StepOp, optimistic: bool, limits: &Limits) {
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
            match named.step_id {
                None => {
                    self.greatest_step_ids.insert(id.to_owned());
                }
                Some(step_id) if step_id as usize >= limits.steps_per_execution => {
                    self.step_counts.insert(id.to_owned());
                }
                Some(_) => {}
            }
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
    pub step_counts: HashMap<String, usize>,
}

impl Facts {
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

struct Work<'a> {
    facts: &'a Facts,
    limits: &'a Limits,
    plan: Plan,
    greatest: HashMap<String, i32>,
    keys: HashMap<(String, String), i32>,
    added: HashMap<String, usize>,
}

type StepDecision = (RecordKey, Option<Arc<Step>>, Decision<Step>);

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
                let decided = self.decide_step(write, named, op)?;
                let superseded = matches!(decided.2, Decision::Superseded);
                if superseded || matches!(decided.2, Decision::Keep) {
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
            Decision::Put(record) => {
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
    ) -> Result<StepDecision, Refusal> {
        let id = &write.execution_id;
        let by_id = named.step_id.and_then(|step_id| self.step(&RecordKey::step(id, step_id)));
        let by_key = named.step_key.as_ref().and_then(|key| {
            let key = (id.clone(), key.clone());
            let step_id = match self.keys.get(&key) {
                Some(step_id) => Some(*step_id),
                None => self.facts.keys.get(&key).copied().flatten(),
            }?;
            self.step(&RecordKey::step(id, step_id))
        });
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
            Some(execution) if execution.deleted_at.is_none() => {}
            None if stored.is_some() => {}
            _ => return Err(Refusal::ExecutionNotFound { execution_id: id.clone() }),
        }
        let step_id = match (&stored, named.step_id) {
            (Some(stored), _) => stored.step_id,
            (None, Some(step_id)) => step_id,
            (None, None) => self.greatest(id).max(0).saturating_add(1),
        };
        let target = Target { execution_id: id, named, step_id };
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
        if stored.is_none() && step_id as usize >= self.limits.steps_per_execution {
            let known = match self.facts.step_counts.get(id) {
                Some(count) => *count,
                // Assigned numbers have hardly any gaps, so the number tells the count well enough.
                None => step_id as usize,
            };
            let size = known + self.added.get(id).copied().unwrap_or(0) + 1;
            if size > self.limits.steps_per_execution {
                return Err(Refusal::TooLarge {
                    field: "steps of the execution",
                    size,
                    limit: self.limits.steps_per_execution,
                });
            }
        }
        Ok((RecordKey::step(id, step_id), stored, decision))
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
        if let Decision::Put(record) | Decision::Touch(record) = decision {
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
        let mut planned = Vec::with_capacity(steps.len());
        let mut known = HashMap::new();
        for (named, op) in steps {
            let StepOp::Plan { fields, .. } = op else { continue };
            let Some(step_id) = named.step_id else { continue };
            planned.push((step_id, fields.depends_on.as_slice()));
            for dependency in &fields.depends_on {
                if let Some(stored) = self.step(&RecordKey::step(id, *dependency)) {
                    known.insert(*dependency, stored.depends_on.clone());
                }
            }
        }
        // The whole plan is decided before any of it is taken: all or nothing.
        let mut decided = Vec::with_capacity(steps.len());
        for (named, op) in steps {
            decided.push(self.decide_step(write, named, op)?);
        }
        step::check_plan(&planned, &known)?;
        let mut touched = Vec::with_capacity(decided.len());
        let mut answers = Vec::with_capacity(decided.len());
        for decision in decided {
            let (key, step) = self.take_step(decision);
            touched.push(key);
            answers.push(step);
        }
        Ok(Planned { answer: Answer::Steps(answers), touched })
    }
}

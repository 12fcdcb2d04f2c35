//! Many writers, and watchers that leave and come back at random: in the end every watcher knows the true state
//! of every record. On MongoDB through two servers, with a third program that writes straight into it.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mongodb::bson::doc;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stepwell::proto::*;
use tonic::Code;

use support::backend::{Backend, Kind};
use support::client::*;
use support::values::*;
use support::watch::What;
use support::*;

const WRITERS: usize = 8;
const WATCHERS: usize = 12;
const WRITES_PER_WRITER: usize = 250;
const EXECUTIONS: usize = 6;
const STEPS: i32 = 5;

#[test]
fn every_watcher_ends_with_the_true_state_on_sqlite() {
    storm(Kind::Sqlite);
}

#[test]
fn every_watcher_ends_with_the_true_state_on_mongodb() {
    storm(Kind::Mongodb);
}

/// What somebody knows of the records: by execution and step, as the whole record.
type State = BTreeMap<(String, Option<i32>), Known>;

#[derive(Debug, Clone, PartialEq)]
enum Known {
    Execution(Box<Execution>),
    Step(Box<Step>),
}

impl Known {
    fn revision(&self) -> i64 {
        match self {
            Known::Execution(execution) => execution.revision,
            Known::Step(step) => step.revision,
        }
    }
}

fn storm(kind: Kind) {
    let seed: u64 = std::env::var("STEPWELL_TEST_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    println!("STEPWELL_TEST_SEED={seed}");
    run(async {
        let b = Backend::fresh(kind);
        let (one, two) = b.pair().await;
        let servers = [(*one).clone(), (*two).clone()];
        for n in 0..EXECUTIONS {
            one.create(&format!("e{n}")).await;
        }
        let done = Arc::new(AtomicBool::new(false));
        let mut watchers = tokio::task::JoinSet::new();
        let (truth, wanted) = tokio::sync::watch::channel(None::<State>);
        for number in 0..WATCHERS {
            let random = StdRng::seed_from_u64(seed.wrapping_add(1000 + number as u64));
            // Every third watches one execution, the others all of them.
            let only = (number % 3 == 0).then(|| format!("e{}", number / 3 % EXECUTIONS));
            let watcher = Watcher {
                number,
                servers: servers.clone(),
                random,
                only,
                kind,
                wanted: wanted.clone(),
            };
            watchers.spawn(watcher.run());
        }
        let foreign = tokio::spawn(foreign_program(b.clone(), Arc::clone(&done)));
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..WRITERS {
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            writers.spawn(writer(number, servers[number % 2].clone(), random));
        }
        writers.join_all().await;
        done.store(true, Ordering::SeqCst);
        foreign.await.expect("the third program ends");
        truth.send(Some(true_state(&one).await)).expect("the watchers listen");
        watchers.join_all().await;
        b.remove().await;
    });
}

async fn true_state(server: &Client) -> State {
    let mut state = State::new();
    let list = ListExecutionsRequest { page_size: 1000, ..Default::default() };
    for execution in server.list_executions(list).await.executions {
        let id = execution.execution_id.clone();
        let list =
            ListStepsRequest { execution_id: id.clone(), page_size: 1000, ..Default::default() };
        for step in server.list_steps(list).await.steps {
            state.insert((id.clone(), step.step_id), Known::Step(Box::new(step)));
        }
        state.insert((id, None), Known::Execution(Box::new(execution)));
    }
    state
}

async fn writer(number: usize, server: Client, mut random: StdRng) {
    for round in 0..WRITES_PER_WRITER {
        let id = format!("e{}", random.random_range(0..EXECUTIONS));
        let step_id = random.random_range(0..STEPS);
        let answer = match random.random_range(0..12) {
            0..4 => {
                let metadata = meta(json!({ format!("w{number}"): round }));
                server
                    .try_update_execution(UpdateExecutionRequest { metadata, ..update(&id) })
                    .await
                    .map(drop)
            }
            4..7 => server.try_start_step(start(&id, step_id)).await.map(drop),
            7..9 => {
                let metadata = meta(json!({ format!("w{number}"): round }));
                server
                    .try_update_step(UpdateStepRequest { metadata, ..update_step(&id, step_id) })
                    .await
                    .map(drop)
            }
            9..11 => {
                let request = FinishStepRequest {
                    step_name: Some("work".into()),
                    ..finish_step(&id, step_id, StepStatus::Failed)
                };
                server.try_finish_step(request).await.map(drop)
            }
            _ => {
                // An execution of this writer alone, that comes and goes.
                let id = format!("fleeting{number}");
                ok(server.try_create_execution(create(&id)).await);
                ok(server.try_start_step(start(&id, 1)).await);
                let delete = DeleteExecutionRequest { execution_id: id, force: true };
                server.try_delete_execution(delete).await.map(drop)
            }
        };
        if let Err(status) = answer {
            let expected = matches!(
                status.code(),
                Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted
            );
            assert!(expected, "{status:?}");
        }
    }
}

/// A program that knows nothing of us: it changes documents and leaves `revision` alone.
async fn foreign_program(b: Backend, done: Arc<AtomicBool>) {
    if b.kind != Kind::Mongodb {
        return;
    }
    let (executions, steps) = (b.executions().await, b.steps().await);
    let mut round = 0;
    while !done.load(Ordering::SeqCst) {
        round += 1;
        let id = format!("e{}", round % EXECUTIONS as i32);
        let change = doc! { "$set": { "metadata.foreign": round } };
        executions.update_one(doc! { "execution_id": &id }, change.clone()).await.expect("updated");
        let step = doc! { "execution_id": &id, "step_id": round % STEPS };
        steps.update_one(step, change).await.expect("updated");
    }
}

struct Watcher {
    number: usize,
    servers: [Client; 2],
    random: StdRng,
    only: Option<String>,
    kind: Kind,
    wanted: tokio::sync::watch::Receiver<Option<State>>,
}

impl Watcher {
    /// Watches, leaves, comes back with its token, until it knows what is true in the end.
    async fn run(mut self) {
        let mut state = State::new();
        let mut token = String::new();
        let mut overdue = Box::pin(self.overdue());
        loop {
            let server = &self.servers[self.random.random_range(0..2)];
            let resume_token = (!token.is_empty()).then(|| token.clone());
            let watch = match &self.only {
                Some(id) => {
                    let request = WatchExecutionRequest { resume_token, follow: true, ..watch(id) };
                    server.watch(request).await
                }
                None => {
                    let snapshot = WatchSnapshot::All.into();
                    let request = WatchExecutionsRequest { resume_token, snapshot, ..watch_all() };
                    server.watch_all(request).await
                }
            };
            let mut watch =
                if self.kind == Kind::Mongodb { watch.with_foreign_changes() } else { watch };
            let mut events = self.random.random_range(1..120);
            while events > 0 {
                if self.knows_the_truth(&state) {
                    return;
                }
                tokio::select! {
                    event = watch.try_next() => {
                        let event = event.expect("the stream does not break").expect("nor end");
                        learn(&mut state, &event.what);
                        // The events of a snapshot have no token: leaving in the middle starts again.
                        events -= 1;
                    }
                    changed = self.wanted.changed() => changed.expect("the test goes on"),
                    () = &mut overdue => self.fail(&state),
                }
            }
            if watch.token.is_empty() {
                state.clear();
            }
            token.clone_from(&watch.token);
        }
    }

    /// The moment at which a watcher should have known the truth for long.
    fn overdue(&self) -> impl Future<Output = ()> + use<> {
        let mut wanted = self.wanted.clone();
        async move {
            let known = wanted.wait_for(Option::is_some).await.is_ok();
            tokio::time::sleep(if known { PATIENCE } else { Duration::ZERO }).await;
        }
    }

    /// Says which records a watcher has wrong.
    fn fail(&self, state: &State) -> ! {
        let truth = self.wanted.borrow().clone().unwrap_or_default();
        let keys: BTreeSet<_> = truth.keys().chain(state.keys()).collect();
        let of_it = |key: &&&(String, Option<i32>)| {
            self.only.as_ref().is_none_or(|only| *only == key.0)
                && truth.get(**key) != state.get(**key)
        };
        for key in keys.iter().filter(of_it) {
            println!("{key:?}:\n  true:  {:?}\n  known: {:?}", truth.get(key), state.get(key));
        }
        panic!("watcher {} of {:?} never learned the truth", self.number, self.only);
    }

    fn knows_the_truth(&self, state: &State) -> bool {
        self.wanted.borrow().as_ref().is_some_and(|truth| match &self.only {
            None => state == truth,
            Some(id) => {
                let of_it = truth.iter().filter(|((execution, _), _)| execution == id);
                state.iter().eq(of_it)
            }
        })
    }
}

/// What a client makes of an event: it keeps the highest revision per record, and of equal ones the later.
fn learn(state: &mut State, what: &What) {
    let (key, known, change) = match what {
        What::Execution(change, e) => {
            ((e.execution_id.clone(), None), Known::Execution(Box::new(e.clone())), *change)
        }
        What::Step(change, s) => {
            ((s.execution_id.clone(), s.step_id), Known::Step(Box::new(s.clone())), *change)
        }
        What::Artifact(..) | What::Metrics(_) | What::SnapshotComplete | What::Keepalive => return,
    };
    if change == ChangeType::Deleted {
        state.retain(|(execution, step), _| {
            *execution != key.0 || key.1.is_some_and(|id| *step != Some(id))
        });
        return;
    }
    if state.get(&key).is_none_or(|before| before.revision() <= known.revision()) {
        state.insert(key, known);
    }
}

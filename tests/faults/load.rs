//! Clients that report runs as fast as they are allowed to, and send again what was not answered.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ingest_request::Write as W;
use ingest_response::Result as R;
use stepwell::proto::*;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::ledger::Ledger;
use super::support::client::*;
use super::support::values::{json, meta};
use super::support::{Client, in_time};

const UNARY_CLIENTS: usize = 24;
const INGEST_CLIENTS: usize = 4;
/// Unanswered writes of one Ingest stream.
const WINDOW: usize = 64;
/// Changes a second of all clients together: enough to hurt, few enough to be checked afterwards.
const CHANGES_PER_SECOND: usize = 2000;
/// After this a client takes its call for lost.
const LOST_AFTER: Duration = Duration::from_secs(2);
const STEPS: i32 = 4;

/// What all clients share.
struct Shared {
    ledger: Arc<Ledger>,
    servers: Vec<Client>,
    stop: AtomicBool,
    allowance: Semaphore,
}

/// The running load.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    pacer: tokio::task::JoinHandle<()>,
}

impl Load {
    pub fn start(ledger: &Arc<Ledger>, addresses: &[String]) -> Load {
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            servers: addresses.iter().map(Client::of).collect(),
            stop: AtomicBool::new(false),
            allowance: Semaphore::new(0),
        });
        let pacer = tokio::spawn(pace(Arc::clone(&shared)));
        let mut clients = JoinSet::new();
        for number in 0..UNARY_CLIENTS {
            clients.spawn(Unary::new(&shared, number).run());
        }
        for number in 0..INGEST_CLIENTS {
            clients.spawn(Ingest::new(&shared, number).run());
        }
        Load { shared, clients, pacer }
    }

    /// Lets every client end what it is at.
    pub async fn end(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(client) = in_time("the clients to end", self.clients.join_next()).await {
            client.expect("a client found a fault");
        }
        self.pacer.abort();
    }
}

async fn pace(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        // No debt: what was not used in an outage is not made good for.
        if shared.allowance.available_permits() < CHANGES_PER_SECOND / 20 {
            shared.allowance.add_permits(CHANGES_PER_SECOND / 100);
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn allowed(&self) {
        self.allowance.acquire().await.expect("it is never closed").forget();
    }
}

/// Whether the same call may be sent again. Anything else that a server says is a fault.
pub fn may_retry(status: &Status) -> bool {
    let details = status.get_error_details();
    match details.error_info() {
        Some(info) => matches!(
            info.reason.as_str(),
            "STORE_AWAY"
                | "STORE_READ_ONLY"
                | "STORE_BUSY"
                | "QUEUE_FULL"
                | "SHUTTING_DOWN"
                | "CONTENTION"
        ),
        // Not from a server: the connection broke.
        None => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::Internal
                | Code::DeadlineExceeded
        ),
    }
}

/// A client that waits for every answer.
struct Unary {
    shared: Arc<Shared>,
    number: usize,
    server: usize,
}

impl Unary {
    fn new(shared: &Arc<Shared>, number: usize) -> Unary {
        Unary { shared: Arc::clone(shared), number, server: number }
    }

    /// Sends until there is an answer.
    async fn send<T, R: Clone, F>(&mut self, request: R, call: impl Fn(Client, R) -> F) -> T
    where
        F: Future<Output = Answer<T>>,
    {
        self.shared.allowed().await;
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            pace.tick().await;
            let server = self.shared.servers[self.server % self.shared.servers.len()].clone();
            match tokio::time::timeout(LOST_AFTER, call(server, request.clone())).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(status)) => {
                    assert!(may_retry(&status), "client {}: {status:?}", self.number)
                }
                Err(_) => {}
            }
            self.server += 1;
        }
    }

    async fn run(mut self) {
        let ledger = Arc::clone(&self.shared.ledger);
        for run in 0.. {
            if self.shared.stopped() {
                return;
            }
            let id = format!("unary{}-{run}", self.number);
            ledger.attempt(&id, None);
            let created =
                self.send(create(&id), |s, r| async move { s.try_create_execution(r).await }).await;
            ledger.acknowledge_execution(&created);
            for step_id in 1..=STEPS {
                ledger.attempt(&id, Some(step_id));
                // The third fails at first, and is retried.
                let tries = if step_id == 3 { 2 } else { 1 };
                for attempt in 1..=tries {
                    let request =
                        StartStepRequest { attempt: Some(attempt), ..start(&id, step_id) };
                    let step =
                        self.send(request, |s, r| async move { s.try_start_step(r).await }).await;
                    ledger.acknowledge_step(&step);
                    let request = UpdateStepRequest {
                        metadata: meta(json!({ format!("try{attempt}"): run })),
                        ..update_step(&id, step_id)
                    };
                    let step =
                        self.send(request, |s, r| async move { s.try_update_step(r).await }).await;
                    ledger.acknowledge_step(&step);
                    let end =
                        if attempt < tries { StepStatus::Failed } else { StepStatus::Completed };
                    let request = finish_step(&id, step_id, end);
                    let step =
                        self.send(request, |s, r| async move { s.try_finish_step(r).await }).await;
                    ledger.acknowledge_step(&step);
                    assert_eq!(step.retry_count, attempt - 1, "a try was counted twice");
                }
            }
            for key in ["a", "b"] {
                let request =
                    UpdateExecutionRequest { metadata: meta(json!({ key: run })), ..update(&id) };
                let updated =
                    self.send(request, |s, r| async move { s.try_update_execution(r).await }).await;
                ledger.acknowledge_execution(&updated);
            }
            let request = finish(&id, ExecutionStatus::Completed);
            let ended =
                self.send(request, |s, r| async move { s.try_finish_execution(r).await }).await;
            ledger.acknowledge_execution(&ended);
        }
    }
}

/// A client with one stream and many unanswered writes.
struct Ingest {
    shared: Arc<Shared>,
    number: usize,
    server: usize,
    run: usize,
    sequence: i64,
    /// Not answered yet, in order.
    waiting: VecDeque<(i64, W)>,
    /// Executions whose creation is not answered yet.
    uncreated: HashSet<String>,
}

impl Ingest {
    fn new(shared: &Arc<Shared>, number: usize) -> Ingest {
        Ingest {
            shared: Arc::clone(shared),
            number,
            server: number,
            run: 0,
            sequence: 0,
            waiting: VecDeque::new(),
            uncreated: HashSet::new(),
        }
    }

    /// The writes of one more run.
    fn generate(&mut self) -> Vec<IngestRequest> {
        let id = format!("ingest{}-{}", self.number, self.run);
        self.run += 1;
        self.shared.ledger.attempt(&id, None);
        self.uncreated.insert(id.clone());
        let mut writes = vec![W::CreateExecution(create(&id))];
        for step_id in 1..=STEPS {
            self.shared.ledger.attempt(&id, Some(step_id));
            writes.push(W::StartStep(start(&id, step_id)));
            writes.push(W::FinishStep(finish_step(&id, step_id, StepStatus::Completed)));
        }
        writes.push(W::FinishExecution(finish(&id, ExecutionStatus::Completed)));
        writes
            .into_iter()
            .map(|write| {
                self.sequence += 1;
                self.waiting.push_back((self.sequence, write.clone()));
                IngestRequest { sequence: self.sequence, write: Some(write), mirrored: None }
            })
            .collect()
    }

    async fn run(mut self) {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        while !(self.shared.stopped() && self.waiting.is_empty()) {
            pace.tick().await;
            self.stream().await;
            self.server += 1;
        }
    }

    /// One stream, until it breaks or all is said.
    async fn stream(&mut self) {
        let server = &self.shared.servers[self.server % self.shared.servers.len()];
        let (send, requests) = tokio::sync::mpsc::channel(WINDOW * 4);
        let mut ingest = server.ingest();
        let opening = ingest.ingest(ReceiverStream::new(requests));
        let Ok(Ok(answers)) = tokio::time::timeout(LOST_AFTER, opening).await else { return };
        let mut answers = answers.into_inner();
        for (sequence, write) in &self.waiting {
            let request =
                IngestRequest { sequence: *sequence, write: Some(write.clone()), mirrored: None };
            if send.send(request).await.is_err() {
                return;
            }
        }
        loop {
            while self.waiting.len() < WINDOW && !self.shared.stopped() {
                for request in self.generate() {
                    self.shared.allowed().await;
                    if send.send(request).await.is_err() {
                        return;
                    }
                }
            }
            if self.waiting.is_empty() {
                return;
            }
            let Ok(Ok(Some(answer))) = tokio::time::timeout(LOST_AFTER, answers.message()).await
            else {
                return;
            };
            if !self.take(answer) {
                return;
            }
        }
    }

    /// Notes an answer. False: the write has to be sent again, and with it what came after it.
    fn take(&mut self, answer: IngestResponse) -> bool {
        let position = self.waiting.iter().position(|(sequence, _)| *sequence == answer.sequence);
        let position = position.expect("an answer to a write that waits for one");
        let ledger = &self.shared.ledger;
        match answer.result.expect("an answer says what became of the write") {
            R::Execution(told) => {
                self.uncreated.remove(&told.execution_id);
                ledger.acknowledge_short(&told.execution_id, None, told.revision, told.status);
            }
            R::Step(told) => {
                ledger.acknowledge_short(
                    &told.execution_id,
                    told.step_id,
                    told.revision,
                    told.status,
                );
            }
            R::Error(error) => {
                let of_uncreated = match &self.waiting[position].1 {
                    W::StartStep(request) => self.uncreated.contains(&request.execution_id),
                    W::FinishStep(request) => self.uncreated.contains(&request.execution_id),
                    W::FinishExecution(request) => self.uncreated.contains(&request.execution_id),
                    _ => false,
                };
                let code = Code::from(error.code);
                // A step whose start was not taken cannot be finished: both are sent again.
                let follows = code == Code::NotFound
                    && (of_uncreated || matches!(self.waiting[position].1, W::FinishStep(_)));
                let again =
                    matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::Aborted);
                assert!(again || follows, "ingest client {}: {error:?}", self.number);
                return false;
            }
            other => panic!("no answer to any of our writes: {other:?}"),
        }
        self.waiting.remove(position);
        true
    }
}

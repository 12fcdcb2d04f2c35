//! A store whose log can be held up, taken away, cut off and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::{Bson, doc};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, ManualClock, SystemClock};
use crate::domain::execution::{CreateExecution, SignOfLife};
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::step::StepFields;
use crate::domain::{
    Artifact, Execution, ExecutionOp, ExecutionStatus, Millis, Now, Step, StepOp, StepRef,
    StepStatus,
};
use crate::store::artifacts::ArtifactStore as _;
use crate::store::sqlite::{SqliteOptions, SqliteStore, Synchronous};
use crate::store::{
    Applied, Change, ChangeLog, ChangeReader, Changed, Cursor, Error, Lease, Op, Record, RecordKey,
    Result, Store, StoreInfo, Write,
};
use crate::watch::{Bounds, Delivery, Failure, Hub, Options, Scope, Settings, Snapshot, Watch};

/// What the test decides about the log, and what it counts.
#[derive(Default)]
pub struct Control {
    pub away: AtomicBool,
    /// Changes up to this number are gone.
    pub gone_through: AtomicU64,
    pub opens: AtomicUsize,
    pub open_now: AtomicUsize,
    pub most_open: AtomicUsize,
    pub loads: AtomicUsize,
    /// Another program's changes, which the log tells after the change of that number.
    pub foreign: Mutex<VecDeque<(u64, Change)>>,
}

pub struct TestStore {
    inner: Arc<SqliteStore>,
    pub control: Arc<Control>,
    reading: watch::Sender<bool>,
    loading: watch::Sender<bool>,
}

struct TestLog {
    inner: Arc<dyn ChangeLog>,
    control: Arc<Control>,
    reading: watch::Receiver<bool>,
    loading: watch::Receiver<bool>,
}

struct TestReader {
    inner: Box<dyn ChangeReader>,
    control: Arc<Control>,
    reading: watch::Receiver<bool>,
    cursor: Cursor,
}

impl Drop for TestReader {
    fn drop(&mut self) {
        self.control.open_now.fetch_sub(1, Ordering::SeqCst);
    }
}

fn number(cursor: &Cursor) -> u64 {
    u64::from_be_bytes(cursor.0[..8].try_into().unwrap())
}

#[async_trait]
impl ChangeReader for TestReader {
    async fn next(&mut self) -> Result<Vec<Change>> {
        self.reading.wait_for(|open| *open).await.map_err(|_| Error::away())?;
        if self.control.away.load(Ordering::SeqCst) {
            return Err(Error::away());
        }
        let waited = tokio::time::timeout(Duration::from_millis(20), self.inner.next()).await;
        let read = waited.unwrap_or_else(|_| Ok(Vec::new()))?;
        let mut changes = Vec::new();
        for change in read {
            let number = number(&change.cursor);
            self.cursor = change.cursor.clone();
            changes.push(change);
            for (after, foreign) in self.control.foreign.lock().iter() {
                if *after == number {
                    let mut foreign = foreign.clone();
                    foreign.cursor.0 = [&number.to_be_bytes()[..], &[1]].concat();
                    self.cursor = foreign.cursor.clone();
                    changes.push(foreign);
                }
            }
        }
        Ok(changes)
    }

    fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }
}

#[async_trait]
impl ChangeLog for TestLog {
    async fn open(&self, after: Option<&Cursor>) -> Result<Box<dyn ChangeReader>> {
        if self.control.away.load(Ordering::SeqCst) {
            return Err(Error::away());
        }
        let plain = after.map(|cursor| Cursor(cursor.0[..8].to_vec()));
        if plain
            .as_ref()
            .is_some_and(|cursor| number(cursor) < self.control.gone_through.load(Ordering::SeqCst))
        {
            return Err(Error::CursorExpired);
        }
        let inner = self.inner.open(plain.as_ref()).await?;
        self.control.opens.fetch_add(1, Ordering::SeqCst);
        let now = self.control.open_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.control.most_open.fetch_max(now, Ordering::SeqCst);
        let cursor = after.cloned().unwrap_or_else(|| inner.cursor());
        Ok(Box::new(TestReader {
            inner,
            control: Arc::clone(&self.control),
            reading: self.reading.clone(),
            cursor,
        }))
    }

    async fn position(&self) -> Result<u64> {
        self.inner.position().await
    }

    async fn nudge(&self) -> Result<()> {
        self.inner.nudge().await
    }

    fn position_of(&self, cursor: &Cursor) -> Option<u64> {
        (cursor.0.len() >= 8).then(|| number(cursor))
    }

    async fn load(&self, what: &[Changed], payloads: bool) -> Result<Vec<(Changed, Record)>> {
        if self.control.away.load(Ordering::SeqCst) {
            return Err(Error::away());
        }
        self.control.loads.fetch_add(1, Ordering::SeqCst);
        let loaded = self.inner.load(what, payloads).await;
        let mut loading = self.loading.clone();
        loading.wait_for(|open| *open).await.map_err(|_| Error::away())?;
        loaded
    }
}

#[async_trait]
impl Store for TestStore {
    async fn apply(&self, writes: Vec<Write>) -> Applied {
        self.inner.apply(writes).await
    }

    fn lanes(&self) -> usize {
        1
    }

    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>> {
        self.inner.execution(execution_id).await
    }

    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool> {
        self.inner.is_being_deleted(execution_id).await
    }

    async fn step(
        &self,
        execution_id: &str,
        step: &StepRef,
        payloads: bool,
    ) -> Result<Option<Step>> {
        self.inner.step(execution_id, step, payloads).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        self.inner.executions(query).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        self.inner.count_executions(query).await
    }

    async fn unreadable_executions(&self) -> Result<u64> {
        Ok(0)
    }

    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>> {
        self.inner.step_counts(execution_ids, examine).await
    }

    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>> {
        self.inner.steps(query).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
        Store::artifacts(&*self.inner, query).await
    }

    async fn remove(&self, execution_id: &str) -> Result<u64> {
        self.inner.remove(execution_id).await
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        self.inner.leases().await
    }

    async fn signs_in_steps(
        &self,
        execution_ids: &[String],
        now: Millis,
    ) -> Result<HashMap<String, SignOfLife>> {
        self.inner.signs_in_steps(execution_ids, now).await
    }

    async fn secret(&self) -> Result<[u8; 32]> {
        self.inner.secret().await
    }

    async fn probe_write(&self) -> Result<()> {
        self.inner.probe_write().await
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        Ok(Arc::new(TestLog {
            inner: self.inner.log()?,
            control: Arc::clone(&self.control),
            reading: self.reading.subscribe(),
            loading: self.loading.subscribe(),
        }))
    }

    async fn sweep(&self) -> Result<()> {
        self.inner.sweep().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// The time of day is moved by hand; how long a slow watcher is waited for is real.
#[derive(Debug)]
struct HubClock(Arc<ManualClock>);

impl Clock for HubClock {
    fn now(&self) -> Now {
        self.0.now()
    }

    fn instant(&self) -> Instant {
        SystemClock.instant()
    }
}

/// A hub over such a store.
pub struct Rig {
    pub hub: Arc<Hub>,
    pub control: Arc<Control>,
    pub stop: CancellationToken,
    store: Arc<TestStore>,
    clock: Arc<ManualClock>,
    /// Whether the hub is told of writes, as the server that wrote would.
    pub own: bool,
    moment: AtomicI64,
    _dir: tempfile::TempDir,
}

const START_MICROS: i64 = 1_700_000_000_000_000;

pub fn settings() -> Settings {
    Settings {
        keepalive: Duration::from_secs(3600),
        linger: Duration::ZERO,
        queue: Bounds { events: 64, bytes: 1024 * 1024 },
        readers: 2,
    }
}

impl Rig {
    pub fn new(settings: Settings) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(START_MICROS));
        let options = SqliteOptions { synchronous: Synchronous::Normal, ..Default::default() };
        let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let inner = SqliteStore::open(dir.path(), options, Limits::default(), as_clock).unwrap();
        let control = Arc::new(Control::default());
        let store = Arc::new(TestStore {
            inner,
            control: Arc::clone(&control),
            reading: watch::Sender::new(true),
            loading: watch::Sender::new(true),
        });
        let stop = CancellationToken::new();
        let as_store: Arc<dyn Store> = Arc::<TestStore>::clone(&store);
        let as_clock = Arc::new(HubClock(Arc::clone(&clock)));
        let hub = Hub::new(as_store, as_clock, settings, stop.clone(), TaskTracker::new());
        Rig { hub, control, stop, store, clock, own: false, moment: AtomicI64::new(0), _dir: dir }
    }

    /// Holds the reading of the log up, or lets it go on.
    pub fn let_read(&self, open: bool) {
        self.store.reading.send_replace(open);
    }

    /// Holds look-ups up after they have read.
    pub fn let_load(&self, open: bool) {
        self.store.loading.send_replace(open);
    }

    /// Time goes on by so much.
    pub fn later(&self, ms: i64) {
        self.clock.advance_ms(ms);
    }

    pub async fn write(&self, execution_id: &str, op: Op) -> Record {
        let mut now = self.clock.now();
        now.micros += self.moment.fetch_add(1, Ordering::SeqCst);
        let write = Write {
            execution_id: execution_id.to_owned(),
            op,
            now,
            scope: Default::default(),
            asked: None,
        };
        let applied = self.store.apply(vec![write]).await;
        for outcome in applied.outcomes {
            outcome.unwrap();
        }
        let record = applied.written.first().cloned();
        if self.own {
            self.hub.wrote(applied.written);
        }
        record.unwrap_or_else(|| {
            Record::Execution(Arc::new(Execution {
                execution_id: execution_id.to_owned(),
                ..blank_execution()
            }))
        })
    }

    pub async fn create(&self, id: &str) -> Record {
        self.create_of(id, "app").await
    }

    pub async fn create_of(&self, id: &str, app_name: &str) -> Record {
        let create =
            CreateExecution { app_name: app_name.to_owned(), ..CreateExecution::default() };
        self.write(id, Op::Execution(ExecutionOp::Create(Box::new(create)))).await
    }

    pub async fn start(&self, id: &str, step_id: i32) -> Record {
        let input = Some(Bson::Document(doc! { "question": step_id }));
        let fields = StepFields { input, ..StepFields::default() };
        let op = StepOp::Start { step_name: "work".to_owned(), fields, attempt: None };
        self.write(id, step(step_id, op)).await
    }

    pub async fn progress(&self, id: &str, step_id: i32, progress: f64) -> Record {
        let op = StepOp::Update {
            progress: Some(progress),
            progress_message: None,
            metadata: bson::Document::new(),
            output: None,
            update_sequence: None,
        };
        self.write(id, step(step_id, op)).await
    }

    pub async fn finish_step(&self, id: &str, step_id: i32) -> Record {
        let op = StepOp::Finish {
            status: StepStatus::Completed,
            output: Some(Bson::Document(doc! { "answer": step_id })),
            error: None,
            completed_at: None,
            step_name: None,
            fields: StepFields::default(),
        };
        self.write(id, step(step_id, op)).await
    }

    pub async fn finish(&self, id: &str) -> Record {
        let op = ExecutionOp::Finish {
            status: ExecutionStatus::Completed,
            error: None,
            completed_at: None,
            metadata: bson::Document::new(),
        };
        self.write(id, Op::Execution(op)).await
    }

    pub async fn set(&self, id: &str, metadata: bson::Document) -> Record {
        let op = ExecutionOp::Update {
            metadata,
            pinned: None,
            expected_revision: None,
            update_sequence: None,
        };
        self.write(id, Op::Execution(op)).await
    }

    pub async fn delete(&self, id: &str) {
        self.write(id, Op::Execution(ExecutionOp::Delete { force: true })).await;
        self.store.remove(id).await.unwrap();
    }

    /// Stores an artifact; its key.
    pub async fn artifact(&self, id: &str) -> RecordKey {
        let number = self.moment.fetch_add(1, Ordering::SeqCst);
        let artifact_id = format!("{number:024x}");
        let artifact = Artifact {
            artifact_id: artifact_id.clone(),
            execution_id: id.to_owned(),
            step_id: None,
            step_key: None,
            artifact_type: "log".to_owned(),
            artifact_name: "out.txt".to_owned(),
            mime_type: None,
            size_bytes: Some(1),
            storage_type: None,
            storage_path: None,
            origin: crate::domain::Origin::Foreign,
            metadata: bson::Document::new(),
            created_at: None,
            sha256: None,
        };
        self.store.inner.create_artifact(&artifact, &artifact_id).await.unwrap();
        RecordKey::artifact(id, artifact_id)
    }

    pub async fn delete_artifact(&self, key: RecordKey) {
        assert!(
            self.store.inner.mark_artifact(key.artifact_id.as_deref().unwrap(), 1).await.unwrap()
        );
    }

    pub async fn newest(&self) -> u64 {
        self.store.log().unwrap().position().await.unwrap()
    }

    pub async fn watch(&self, options: Options) -> Result<Watch, Failure> {
        within(Watch::start(Arc::clone(&self.hub), options)).await
    }
}

fn step(step_id: i32, op: StepOp) -> Op {
    Op::Step { named: StepRef { step_id: Some(step_id), step_key: None }, op: Box::new(op) }
}

fn blank_execution() -> Execution {
    Execution {
        execution_id: String::new(),
        app_id: None,
        app_name: String::new(),
        sub_app_id: None,
        sub_app_name: None,
        user_id: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: bson::Document::new(),
        created_at: None,
        updated_at: None,
        revision: 0,
        heartbeat_timeout_ms: None,
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: None,
        pinned: None,
        odd_start: None,
        configuration_version: None,
        update_sequence: None,
        mirrored_position: None,
        mirrored_revision: None,
        digests: Default::default(),
        deleted_at: None,
    }
}

pub fn one(id: &str) -> Options {
    Options {
        scope: Scope::Execution(id.to_owned()),
        steps: true,
        artifacts: false,
        payloads: false,
        metrics: None,
        follow: false,
        snapshot: Snapshot::All,
        resume: None,
    }
}

pub fn many(filter: crate::domain::query::ExecutionFilter) -> Options {
    Options { scope: Scope::Filter(filter), follow: true, ..one("") }
}

/// Fails instead of hanging.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}

/// The next message of a stream that goes on.
pub async fn next(watch: &mut Watch) -> Delivery {
    within(watch.next()).await.expect("the stream goes on").expect("no failure")
}

/// What a message says, in short: `+e@1` for a record of the snapshot, `e/1@2 Updated` for a change.
pub fn told(delivery: &Delivery) -> String {
    let name = |key: &RecordKey| match (key.step_id, &key.artifact_id) {
        (Some(step_id), _) => format!("{}/{step_id}", key.execution_id),
        (None, Some(id)) => format!("{}#{}", key.execution_id, id.trim_start_matches('0')),
        (None, None) => key.execution_id.clone(),
    };
    match delivery {
        Delivery::Current(record, _) => format!("+{}", name(&record.key())),
        Delivery::Event(event) => format!("{} {:?}", name(&event.key), event.kind),
        Delivery::SnapshotComplete(_) => "complete".to_owned(),
        Delivery::Keepalive(_) => "keepalive".to_owned(),
        Delivery::Metrics(points, _) => format!("{} points", points.len()),
    }
}

pub async fn next_told(watch: &mut Watch) -> String {
    told(&next(watch).await)
}

/// Reads the snapshot to its end.
pub async fn complete(watch: &mut Watch) -> Cursor {
    loop {
        if let Delivery::SnapshotComplete(cursor) = next(watch).await {
            return cursor;
        }
    }
}

/// The end of the stream: nothing, or a failure.
pub async fn end(watch: &mut Watch) -> Result<(), Failure> {
    match within(watch.next()).await {
        None => Ok(()),
        Some(Err(failure)) => Err(failure),
        Some(Ok(delivery)) => panic!("not the end: {}", told(&delivery)),
    }
}

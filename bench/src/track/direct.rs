//! The same documents straight through the MongoDB driver: what an app does that tracks its runs by itself, one
//! operation per change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bson::raw::RawDocumentBuf;
use bson::{Bson, DateTime, Document, doc};
use mongodb::options::{Acknowledgment, ClientOptions, WriteConcern};
use mongodb::{Client, Collection, Database};
use tokio::task::JoinSet;

use super::Round;
use super::script::{self, Change, Script};
use stepwell::app::ids;
use stepwell::clock::{Clock as _, SystemClock};
use stepwell::domain::{
    Digests, Execution, ExecutionStatus, MetricPoint, Now, Payload, Step, StepStatus,
};
use stepwell::store::mongo;

/// Connections, as in the comparison that the server is held to.
const POOL: u32 = 64;
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// Stands for the digests. That the server lists its updates there too is its own affair.
const DIGEST: &str = "0123456789abcdef0123456789abcdef";

/// A database of our own.
#[derive(Debug)]
pub struct Direct {
    database: Database,
}

/// A name that nothing else has.
pub fn name_of_its_own() -> String {
    format!("stepwell_bench_{}", &ids::execution_id()[..8])
}

/// A database that nothing else uses, with the writes of the comparison. The URI, given as `option`, is never shown:
/// it may hold a password.
pub async fn database_of_its_own(uri: &str, option: &str) -> anyhow::Result<Database> {
    let options = ClientOptions::parse(uri).await;
    let mut options = options.with_context(|| format!("{option} is not a MongoDB URI"))?;
    options.max_pool_size = Some(POOL);
    options.min_pool_size = Some(POOL);
    options.write_concern =
        Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    options.app_name = Some("stepwell-bench".to_owned());
    options.server_selection_timeout = Some(Duration::from_secs(10));
    Ok(Client::with_options(options)?.database(&name_of_its_own()))
}

impl Direct {
    /// Makes the database with the indexes that the server makes.
    pub async fn open(uri: &str) -> anyhow::Result<Self> {
        let database = database_of_its_own(uri, "--direct").await?;
        mongo::make_indexes(&database).await.context("no indexes on the database of --direct")?;
        Ok(Direct { database })
    }

    pub async fn drop_database(&self) -> anyhow::Result<()> {
        self.database
            .drop()
            .await
            .with_context(|| format!("the database {} could not be dropped", self.database.name()))
    }

    pub fn point_writer(&self) -> PointWriter {
        PointWriter(self.database.collection(&mongo::METRICS))
    }

    pub(super) fn spawn(&self, tasks: &mut JoinSet<()>, clients: usize, round: &Arc<Round>) {
        for client in 0..clients {
            let runner = Runner {
                executions: self.database.collection(&mongo::EXECUTIONS),
                steps: self.database.collection(&mongo::STEPS),
            };
            tasks.spawn(runner.run(client, Arc::clone(round)));
        }
    }
}

/// Points of metrics, many in one insert.
pub struct PointWriter(Collection<RawDocumentBuf>);

impl PointWriter {
    pub async fn insert(&self, execution_id: &str, points: &[MetricPoint]) -> Result<(), String> {
        let documents: Result<Vec<_>, _> =
            points.iter().map(|point| mongo::new_point(execution_id, point)).collect();
        let documents = documents.map_err(|error| error.to_string())?;
        let inserted = self.0.insert_many(documents).ordered(false).await;
        inserted.map(drop).map_err(|error| error.to_string())
    }
}

struct Runner {
    executions: Collection<RawDocumentBuf>,
    steps: Collection<RawDocumentBuf>,
}

impl Runner {
    async fn run(self, client: usize, round: Arc<Round>) {
        let mut script = Script::new();
        // When the running step began, and the execution.
        let (mut step_began, mut began) = (Now { micros: 0 }, Now { micros: 0 });
        while !round.is_over() {
            let sent = Instant::now();
            let now = SystemClock.now();
            match script.change() {
                Change::Create => began = now,
                Change::Start(_) => step_began = now,
                Change::Finish(_) | Change::End => {}
            }
            match self.change(&script, now, step_began, began).await {
                Ok(()) => {
                    round.recorder.done(client, sent.elapsed(), 0);
                    script.advance();
                }
                Err(message) => {
                    round.recorder.failed(client, message);
                    script.abandon();
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    async fn change(
        &self,
        script: &Script,
        now: Now,
        step_began: Now,
        began: Now,
    ) -> Result<(), String> {
        let id = script.execution_id.as_str();
        let matched = match script.change() {
            Change::Create => {
                let document = mongo::new_execution(&new_execution(id, now));
                let document = document.map_err(|error| error.to_string())?;
                self.executions.insert_one(document).await.map(|_| 1)
            }
            Change::Start(step) => {
                let document = mongo::new_step(&new_step(id, step, now));
                let document = document.map_err(|error| error.to_string())?;
                self.steps.insert_one(document).await.map(|_| 1)
            }
            Change::Finish(step) => {
                let query = doc! {
                    "execution_id": id,
                    "step_id": step,
                    "status": { "$in": ["running", "pending"] },
                };
                let set = doc! { "$set": {
                    "status": "completed",
                    "completed_at": date(now),
                    "duration_ms": now.millis() - step_began.millis(),
                    "output": script::output_document(id, step),
                    "updated_at": date(now),
                    "revision": now.micros,
                    "digests": { "start": DIGEST, "finish": DIGEST },
                    "last_change": format!("{id}/{step}/{}", now.micros),
                } };
                self.steps.update_one(query, set).await.map(|result| result.matched_count)
            }
            Change::End => {
                let query = doc! { "execution_id": id, "status": "running" };
                let set = doc! { "$set": {
                    "status": "completed",
                    "completed_at": date(now),
                    "duration_ms": now.millis() - began.millis(),
                    "updated_at": date(now),
                    "revision": now.micros,
                    "digests": { "create": DIGEST, "finish": DIGEST },
                    "last_change": format!("{id}//{}", now.micros),
                } };
                self.executions.update_one(query, set).await.map(|result| result.matched_count)
            }
        };
        match matched {
            Ok(1) => Ok(()),
            Ok(_) => Err("an update found nothing to update".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn date(now: Now) -> DateTime {
    DateTime::from_millis(now.millis())
}

/// As it is right after CreateExecution.
fn new_execution(id: &str, now: Now) -> Execution {
    let at = Some(now.millis());
    Execution {
        execution_id: id.to_owned(),
        app_id: Some(1),
        app_name: script::APP_NAME.to_owned(),
        sub_app_id: None,
        sub_app_name: None,
        user_id: Some(script::USER_ID.to_owned()),
        status: Some(ExecutionStatus::Running),
        started_at: at,
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: doc! { "model": "bench" },
        created_at: at,
        updated_at: at,
        revision: now.micros,
        heartbeat_timeout_ms: None,
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: None,
        pinned: None,
        configuration_version: None,
        update_sequence: None,
        mirrored_position: None,
        mirrored_revision: None,
        digests: Digests { create: Some(DIGEST.to_owned()), ..Digests::default() },
        deleted_at: None,
        odd_start: None,
    }
}

/// As it is right after StartStep.
fn new_step(id: &str, step: i32, now: Now) -> Step {
    let at = Some(now.millis());
    Step {
        execution_id: id.to_owned(),
        step_id: step,
        step_key: None,
        step_name: script::STEP_NAME.to_owned(),
        step_version: None,
        status: Some(StepStatus::Running),
        started_at: at,
        completed_at: None,
        duration_ms: None,
        input: Payload::Value(script::input_document(id, step).into()),
        output: Payload::Value(Bson::Null),
        error: None,
        retry_count: 0,
        metadata: Document::new(),
        revision: now.micros,
        created_at: at,
        updated_at: at,
        depends_on: Vec::new(),
        depends_on_keys: Vec::new(),
        parent_step_id: None,
        parent_step_key: None,
        progress: None,
        progress_message: None,
        update_sequence: None,
        mirrored_position: None,
        mirrored_revision: None,
        attempts: Vec::new(),
        digests: Digests { start: Some(DIGEST.to_owned()), ..Digests::default() },
    }
}

//! The same lists straight through the MongoDB driver, as a dashboard does that reads the database by itself. It
//! reads the server's own database, and fills it, since the driver is the fastest way in.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, doc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, WriteConcern};
use mongodb::{Client, Collection};

use super::Asked;
use super::data::{self, Run, Runs};
use super::questions::{PAGE, Question};
use stepwell::clock::{Clock as _, SystemClock};
use stepwell::domain::{Digests, Execution, Now, RunError};
use stepwell::store::mongo;

/// Connections at most, enough for every client.
const POOL: u32 = 64;
/// Documents of an insert, and inserts side by side.
const AT_ONCE: u64 = 1000;
const SIDE_BY_SIDE: usize = 3;
const DUPLICATE_KEY: i32 = 11000;

/// The server's database.
#[derive(Debug, Clone)]
pub struct Direct {
    raw: Collection<RawDocumentBuf>,
    executions: Collection<Document>,
}

impl Direct {
    /// The URI is never shown: it may hold a password.
    pub async fn open(uri: &str, database: &str) -> anyhow::Result<Self> {
        let options = ClientOptions::parse(uri).await;
        let mut options = options.context("--direct is not a MongoDB URI")?;
        options.max_pool_size = Some(POOL);
        options.app_name = Some("stepwell-bench".to_owned());
        options.server_selection_timeout = Some(std::time::Duration::from_secs(10));
        let database = Client::with_options(options)?.database(database);
        Ok(Direct {
            raw: database.collection(&mongo::EXECUTIONS),
            executions: database.collection(&mongo::EXECUTIONS),
        })
    }

    /// Stores the executions of these numbers; those that are there already stay as they are.
    pub async fn fill(
        &self,
        runs: &Arc<Runs>,
        numbers: Range<u64>,
        said: impl Fn(u64),
    ) -> anyhow::Result<()> {
        let (begin, end) = (numbers.start, numbers.end);
        let inserts = stream::iter((begin..end).step_by(AT_ONCE as usize)).map(|first| {
            let (direct, runs) = (self.clone(), Arc::clone(runs));
            // Documents are made on all cores.
            let insert = tokio::spawn(async move {
                let last = (first + AT_ONCE).min(end);
                direct.insert(&runs, first..last).await.map(|()| last)
            });
            async move { insert.await? }
        });
        let mut inserts = inserts.buffered(SIDE_BY_SIDE);
        while let Some(stored) = inserts.try_next().await? {
            said(stored);
        }
        Ok(())
    }

    async fn insert(&self, runs: &Runs, numbers: Range<u64>) -> anyhow::Result<()> {
        let documents: Result<Vec<_>, _> =
            numbers.map(|number| mongo::new_execution(&stored(&runs.get(number)))).collect();
        let inserted = self
            .raw
            .insert_many(documents?)
            .ordered(false)
            // What the server reads, it reads from a majority.
            .write_concern(WriteConcern::majority())
            .await;
        let Err(error) = inserted else { return Ok(()) };
        if let ErrorKind::InsertMany(refused) = &*error.kind
            && refused.write_concern_error.is_none()
            && let Some(refused) = &refused.write_errors
            && refused.iter().all(|error| error.code == DUPLICATE_KEY)
        {
            return Ok(());
        }
        Err(error).context("executions could not be inserted")
    }

    /// Deletes every execution of a set.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let ours = doc! { "execution_id": { "$gte": data::PREFIX, "$lt": data::AFTER_PREFIX } };
        let deleted = self.executions.delete_many(ours).await;
        deleted.map(drop).context("the executions could not be deleted")
    }
}

#[async_trait]
impl Asked for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    async fn ask(&self, _client: usize, question: &Question) -> Result<usize, String> {
        let found =
            self.executions.find(question.query()).sort(Question::order()).limit(PAGE.into()).await;
        let found: Result<Vec<Document>, _> = match found {
            Ok(found) => found.try_collect().await,
            Err(error) => Err(error),
        };
        found.map(|found| found.len()).map_err(|error| error.to_string())
    }
}

/// As it is after FinishExecution.
fn stored(run: &Run) -> Execution {
    let Now { micros } = SystemClock.now();
    Execution {
        execution_id: run.execution_id.clone(),
        app_id: data::app_id(run.app),
        app_name: data::app_name(run.app),
        sub_app_id: run.sub_app,
        sub_app_name: run.sub_app.map(|number| format!("part-{number}")),
        user_id: Some(data::user_id(run.user)),
        status: Some(run.status),
        started_at: Some(run.started_at),
        completed_at: run.completed_at(),
        duration_ms: run.duration_ms,
        error: run
            .error
            .map(|message| RunError { message: message.to_owned(), ..RunError::default() }),
        metadata: run.metadata(),
        created_at: Some(run.started_at),
        updated_at: Some(run.completed_at().unwrap_or(run.started_at)),
        revision: micros,
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
        digests: Digests::default(),
        deleted_at: None,
        odd_start: None,
    }
}

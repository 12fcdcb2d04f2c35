//! The same questions straight through the MongoDB driver: what an app does that looks at its runs by itself.

use std::time::Duration;

use anyhow::Context as _;
use bson::{Bson, DateTime, Document, doc};
use futures::TryStreamExt as _;
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection};

use super::sample::PAGE;
use crate::proto;

/// Connections, as many as the server has.
const POOL: u32 = 64;

/// The collection of the data model.
const EXECUTIONS: &str = "executions";

#[derive(Clone)]
pub struct Direct(Collection<Document>);

impl Direct {
    /// The URI is never shown: it may hold a password.
    pub async fn open(uri: &str, database: &str) -> anyhow::Result<Self> {
        let options = ClientOptions::parse(uri).await;
        let mut options = options.context("--direct is no MongoDB URI")?;
        options.max_pool_size = Some(POOL);
        options.app_name = Some("stepwell bench".to_owned());
        options.server_selection_timeout = Some(Duration::from_secs(10));
        let database = Client::with_options(options)?.database(database);
        Ok(Direct(database.collection(EXECUTIONS)))
    }

    /// How many documents came.
    pub async fn ask(&self, filter: &proto::ExecutionFilter) -> Result<usize, String> {
        let find = self
            .0
            .find(query(filter))
            .sort(doc! { "started_at": -1, "execution_id": -1 })
            .limit(PAGE as i64);
        let cursor = find.await.map_err(|error| error.to_string())?;
        let found: Vec<Document> = cursor.try_collect().await.map_err(|error| error.to_string())?;
        Ok(found.len())
    }
}

fn date(at: &prost_types::Timestamp) -> DateTime {
    DateTime::from_millis(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
}

/// The filters of the comparison have one value a field.
fn query(filter: &proto::ExecutionFilter) -> Document {
    let mut query = Document::new();
    if let [user] = filter.user_ids.as_slice() {
        query.insert("user_id", user);
    }
    if let [name] = filter.app_names.as_slice() {
        query.insert("app_name", name);
    }
    if !filter.statuses.is_empty() {
        let failed = filter.statuses().any(|status| status == proto::ExecutionStatus::Failed);
        query.insert("status", if failed { "failed" } else { "completed" });
    }
    let mut window = Document::new();
    if let Some(from) = &filter.started_at_from {
        window.insert("$gte", date(from));
    }
    if let Some(until) = &filter.started_at_until {
        window.insert("$lt", date(until));
    }
    if !window.is_empty() {
        query.insert("started_at", Bson::Document(window));
    }
    query
}

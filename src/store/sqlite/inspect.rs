//! A look at the database file. SQLite itself says which index it would take for a lookup, so nothing here has
//! to know what the tables look like.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use super::{DATABASE_FILE, OpenError, SqliteStore, keys, schema};
use crate::clock::Clock;
use crate::domain::Millis;
use crate::store::inspect::{
    Deployment, Disk, Durability, Facts, History, IndexCheck, Inspect, LOOKUPS, Lookup,
};
use crate::store::keys::idle;
use crate::store::{Error, Result};

/// How long to wait for a server that just now changes the schema.
const BUSY: Duration = Duration::from_secs(5);

/// The lookups that the server makes here, as SQL. The others are those of programs that read the documents of
/// MongoDB; nobody but the server reads this file, and an index costs every write.
const QUERIES: &[(&str, &[&str], &str)] = &[
    ("executions", &["execution_id"], "executions WHERE execution_id = ?"),
    ("executions", &["app_id", "sub_app_id"], "executions WHERE app_id = ? AND sub_app_id = ?"),
    ("executions", &["user_id"], "executions WHERE user_id = ?"),
    ("executions", &["status"], "executions WHERE status = ?"),
    ("executions", &["started_at"], "executions ORDER BY started_at DESC"),
    ("executions", &["user_id", "status"], "executions WHERE user_id = ? AND status = ?"),
    ("executions", &["app_id", "status"], "executions WHERE app_id = ? AND status = ?"),
    ("executions", &["app_name", "status"], "executions WHERE app_name = ? AND status = ?"),
    ("execution_steps", &["execution_id", "status"], "steps WHERE execution = ? AND status = ?"),
    ("execution_steps", &["execution_id", "step_id"], "steps WHERE execution = ? AND step_id = ?"),
    (
        "execution_steps",
        &["execution_id", "step_key"],
        "steps WHERE execution = ? AND step_key = ?",
    ),
    ("execution_steps", &["execution_id"], "steps WHERE execution = ?"),
    (
        "app_configurations",
        &["app_id", "sub_app_id", "version"],
        "configurations WHERE app_id = ? AND sub_app_id = ? AND version = ?",
    ),
    (
        "app_configurations",
        &["app_name", "sub_app_name", "version"],
        "configurations WHERE app_id IS NULL AND app_name = ? AND sub_app_name = ? AND version = ?",
    ),
    ("app_configurations", &["active"], "configurations WHERE active = 1"),
    (
        "execution_artifacts",
        &["execution_id", "step_id"],
        "artifacts WHERE execution_id = ? AND step_id = ?",
    ),
    (
        "execution_metrics",
        &["execution_id", "timestamp"],
        "metrics WHERE execution_id = ? AND at = ?",
    ),
    ("execution_metrics", &["timestamp"], "metrics WHERE at < ?"),
];

fn query_of(lookup: &Lookup) -> Option<&'static str> {
    QUERIES.iter().find_map(|(collection, keys, sql)| {
        let same = *collection == lookup.collection
            && keys.iter().eq(lookup.keys.iter().map(|(key, _)| key));
        same.then_some(*sql)
    })
}

pub(super) fn indexes(connection: &Connection) -> Result<Vec<IndexCheck>> {
    // A plan is made from what the connection remembers of the schema; a read makes it look again.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let asked = LOOKUPS.iter().filter_map(|lookup| Some((lookup, query_of(lookup)?)));
    asked
        .map(|(lookup, sql)| {
            let served_by = serving(connection, sql);
            let advice = match served_by {
                Some(_) => String::new(),
                None => "stop the server and start one of this version on it: it makes what the \
                         schema lacks"
                    .to_owned(),
            };
            Ok(IndexCheck { lookup: *lookup, served_by, advice })
        })
        .collect()
}

/// The index that SQLite takes, if it takes one. A table that is not there has none.
fn serving(connection: &Connection, sql: &str) -> Option<String> {
    let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN SELECT 1 FROM {sql}")).ok()?;
    // Its parameters say nothing about the plan, and stay unset.
    let mut rows = plan.raw_query();
    while let Some(row) = rows.next().ok()? {
        let detail: String = row.get(3).ok()?;
        if let Some((_, index)) = detail.split_once("INDEX ") {
            return index.split(' ').next().map(str::to_owned);
        }
    }
    None
}

fn facts(connection: &Connection, dir: &Path, now: Millis) -> Result<Facts> {
    let (oldest, pruned): (Option<Millis>, i64) = connection.query_row(
        "SELECT (SELECT at FROM changes ORDER BY seq LIMIT 1), \
                 (SELECT value FROM meta WHERE name = 'pruned_through')",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(Facts {
        version: rusqlite::version().to_owned(),
        deployment: Deployment::Embedded {
            exists: true,
            schema: (schema::version(connection)?, schema::newest()),
        },
        durability: durability(),
        clock_ahead_ms: None,
        disk: disk(dir),
        history: oldest.map(|oldest| History {
            covers_ms: now.saturating_sub(oldest).max(0),
            full: pruned > 0,
        }),
        documents: None,
        access: None,
        shards: None,
        // A file of an older version has none.
        idle_keys: idle(&keys::all(connection).unwrap_or_default(), now),
    })
}

fn durability() -> Durability {
    Durability::Safe("a write is answered when the disk has it".to_owned())
}

fn disk(dir: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(Disk {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

#[async_trait]
impl Inspect for SqliteStore {
    async fn indexes(&self) -> Result<Vec<IndexCheck>> {
        self.readers.run(indexes).await
    }

    async fn facts(&self) -> Result<Facts> {
        let (clock, path) = (Arc::clone(&self.clock), self.readers.path.clone());
        self.readers
            .run(move |connection| {
                let dir = path.parent().unwrap_or(Path::new("."));
                facts(connection, dir, clock.now().millis())
            })
            .await
    }
}

/// A look at a data directory, beside the server that may have it open.
pub struct Look {
    dir: PathBuf,
    exists: bool,
    clock: Arc<dyn Clock>,
}

impl Look {
    /// Fails where a server would refuse to start.
    pub fn at(dir: &Path, clock: Arc<dyn Clock>) -> Result<Look, OpenError> {
        let path = dir.join(DATABASE_FILE);
        let exists =
            path.try_exists().map_err(|source| OpenError::Io { path: path.clone(), source })?;
        if exists {
            schema::check(&schema::open_reader(&path, BUSY)?, &path)?;
        }
        Ok(Look { dir: dir.to_owned(), exists, clock })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.dir.join(DATABASE_FILE);
        let done = tokio::task::spawn_blocking(move || {
            let connection = schema::open_reader(&path, BUSY).map_err(Error::unavailable)?;
            work(&connection)
        });
        done.await.map_err(Error::failed)?
    }
}

#[async_trait]
impl Inspect for Look {
    async fn indexes(&self) -> Result<Vec<IndexCheck>> {
        match self.exists {
            true => self.run(indexes).await,
            false => Ok(Vec::new()),
        }
    }

    async fn facts(&self) -> Result<Facts> {
        if self.exists {
            let (dir, now) = (self.dir.clone(), self.clock.now().millis());
            return self.run(move |connection| facts(connection, &dir, now)).await;
        }
        // The directory that is there, for a server to make its own in.
        let existing = self.dir.ancestors().find(|dir| dir.is_dir());
        Ok(Facts {
            version: rusqlite::version().to_owned(),
            deployment: Deployment::Embedded { exists: false, schema: (0, schema::newest()) },
            durability: durability(),
            clock_ahead_ms: None,
            disk: disk(existing.unwrap_or(Path::new("."))),
            history: None,
            documents: None,
            access: None,
            shards: None,
            idle_keys: Vec::new(),
        })
    }
}

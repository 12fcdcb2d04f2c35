//! Artifacts that are gone at the source: each is deleted by a call of its own, several at once, until the target has done it.

use std::collections::HashMap;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tonic::Code;

use super::target::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::cli::connection::{self, Connection, call};
use crate::cli::exit::{Failure, Result};
use crate::proto;

/// Deletions under way at most.
const AT_ONCE: usize = 64;

/// The end of a deletion.
pub struct Deleted {
    /// The number of the entry of the target that waits for it.
    pub sequence: i64,
    artifact_id: String,
    /// Whether there was something to delete.
    pub found: Result<bool>,
}

/// Deletions of artifacts that are under way.
#[derive(Default)]
pub struct Deletions {
    under_way: FuturesUnordered<BoxFuture<'static, Deleted>>,
    /// How many of each artifact.
    artifacts: HashMap<String, usize>,
}

impl Deletions {
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.under_way.len() >= AT_ONCE
    }

    /// Whether this artifact is being deleted.
    pub fn has(&self, artifact_id: &str) -> bool {
        self.artifacts.contains_key(artifact_id)
    }

    pub fn begin(&mut self, target: Connection, sequence: i64, artifact_id: String) {
        *self.artifacts.entry(artifact_id.clone()).or_default() += 1;
        // It goes on whatever the mirror waits for.
        let id = artifact_id.clone();
        let deletion = tokio::spawn(async move { delete(&target, &id).await });
        self.under_way.push(Box::pin(async move {
            let found =
                deletion.await.unwrap_or_else(|error| Err(Failure::Refused(error.to_string())));
            Deleted { sequence, artifact_id, found }
        }));
    }

    /// The next one that has ended; never, if none is under way.
    pub async fn next(&mut self) -> Deleted {
        let Some(deleted) = self.under_way.next().await else {
            return std::future::pending().await;
        };
        if let Some(count) = self.artifacts.get_mut(&deleted.artifact_id) {
            *count -= 1;
            if *count == 0 {
                self.artifacts.remove(&deleted.artifact_id);
            }
        }
        deleted
    }
}

/// Whether there was such an artifact.
async fn delete(target: &Connection, artifact_id: &str) -> Result<bool> {
    let mut pause = FIRST_PAUSE;
    loop {
        let request = proto::DeleteArtifactRequest { artifact_id: artifact_id.to_owned() };
        match target.artifacts().delete_artifact(call(request)).await {
            Ok(_) => return Ok(true),
            Err(status) if status.code() == Code::NotFound => return Ok(false),
            Err(status)
                if connection::is_passing(&status) || status.code() == Code::DeadlineExceeded =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(status) => return Err(Failure::Refused(connection::describe(&status))),
        }
    }
}

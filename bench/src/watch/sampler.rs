//! Looks at the server's memory and the database's open cursors while a run goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bson::{Bson, Document, doc};
use mongodb::Client;
use mongodb::options::ClientOptions;
use parking_lot::Mutex;

use crate::machine::Process;

const EVERY: Duration = Duration::from_millis(200);

/// The highest of what was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peaks {
    pub memory_bytes: Option<u64>,
    pub cursors: Option<i64>,
}

/// Samples until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    process: Option<Process>,
    mongodb: Option<Client>,
    peaks: Arc<Mutex<Peaks>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Sampler {
    pub async fn start(server_pid: Option<u32>, mongodb_uri: Option<&str>) -> anyhow::Result<Self> {
        let mongodb = match mongodb_uri {
            None => None,
            Some(uri) => {
                let mut options = ClientOptions::parse(uri)
                    .await
                    .context("--mongodb-uri is not a MongoDB URI")?;
                options.server_selection_timeout = Some(Duration::from_secs(5));
                options.app_name = Some("stepwell-bench".to_owned());
                Some(Client::with_options(options)?)
            }
        };
        let mut sampler = Sampler {
            process: server_pid.map(Process::new),
            mongodb,
            peaks: Arc::default(),
            task: None,
        };
        if let Some(client) = &sampler.mongodb {
            open_cursors(client).await.context("serverStatus of --mongodb-uri")?;
        }
        let (process, mongodb, peaks) =
            (sampler.process, sampler.mongodb.clone(), Arc::clone(&sampler.peaks));
        sampler.task = Some(tokio::spawn(async move {
            loop {
                let memory = process.and_then(Process::resident_bytes);
                let cursors = match &mongodb {
                    Some(client) => open_cursors(client).await.ok(),
                    None => None,
                };
                {
                    let mut peaks = peaks.lock();
                    peaks.memory_bytes = peaks.memory_bytes.max(memory);
                    peaks.cursors = peaks.cursors.max(cursors);
                }
                tokio::time::sleep(EVERY).await;
            }
        }));
        Ok(sampler)
    }

    /// As things are now.
    pub async fn now(&self) -> Peaks {
        Peaks {
            memory_bytes: self.process.and_then(Process::resident_bytes),
            cursors: match &self.mongodb {
                Some(client) => open_cursors(client).await.ok(),
                None => None,
            },
        }
    }

    /// The highest since the last call.
    pub fn take_peaks(&self) -> Peaks {
        std::mem::take(&mut *self.peaks.lock())
    }

    pub fn cpu_seconds(&self) -> Option<f64> {
        self.process.and_then(Process::cpu_seconds)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// `metrics.cursor.open.total` of serverStatus.
async fn open_cursors(client: &Client) -> anyhow::Result<i64> {
    let status: Document = client.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
    let open = status
        .get_document("metrics")
        .and_then(|metrics| metrics.get_document("cursor"))
        .and_then(|cursor| cursor.get_document("open"))
        .context("serverStatus does not tell of cursors")?;
    match open.get("total") {
        Some(Bson::Int64(total)) => Ok(*total),
        Some(Bson::Int32(total)) => Ok(i64::from(*total)),
        _ => anyhow::bail!("serverStatus does not count cursors"),
    }
}

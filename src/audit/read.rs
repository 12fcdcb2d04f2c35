//! What is stored, shown and verified.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use tokio::sync::mpsc;

use super::keep::alive_every;
use crate::clock::Clock;
use crate::domain::audit::verify::{Ages, Finding, Verifier};
use crate::domain::audit::{Head, record};
use crate::domain::query::Page;
use crate::store::Result;
use crate::store::audit::{AuditKey, AuditQuery, AuditStore};

/// Heads asked for at a time.
const HEADS: usize = 1000;
/// Records asked for at a time, and their bytes.
const RECORDS: usize = 1000;
const RECORD_BYTES: usize = 8 * 1024 * 1024;
/// How late what is too old may be to go.
const GONE_WITHIN: Duration = Duration::from_secs(3600);
/// Findings that are told one by one; the others are only counted.
const FINDINGS: u64 = 1000;

/// One step of a verification.
#[derive(Debug)]
pub enum Step {
    /// So many chains and records were looked at.
    Progress {
        chains: u64,
        records: u64,
    },
    Finding(Finding),
    /// All was looked at, and so many flaws were found.
    Done {
        chains: u64,
        records: u64,
        findings: u64,
    },
}

/// Reads records, of this server and of others.
pub struct Reader {
    store: Arc<dyn AuditStore>,
    clock: Arc<dyn Clock>,
    kept: Option<Duration>,
}

/// Nobody wants to know any more.
struct Gone;

impl Reader {
    pub fn new(
        store: Arc<dyn AuditStore>,
        clock: Arc<dyn Clock>,
        kept: Option<Duration>,
    ) -> Reader {
        Reader { store, clock, kept }
    }

    pub async fn events(&self, query: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>> {
        self.store.events(query).await
    }

    /// The newest record of each chain, by server.
    pub async fn heads(&self, after: Option<&str>, limit: usize) -> Result<Vec<Head>> {
        self.store.heads(after, limit).await
    }

    /// Goes through all chains. `heads` are those that somebody kept. Ends early when nobody listens any more.
    pub async fn verify(&self, heads: Vec<Head>, told: mpsc::Sender<Result<Step>>) {
        let mut run = Run { reader: self, told: &told, chains: 0, records: 0, findings: 0 };
        if let Err(error) = run.all(heads).await {
            // Whoever asked may be gone.
            let _ = told.send(Err(error)).await;
        }
    }

    fn ages(&self) -> Ages {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4);
        Ages {
            now: self.clock.now().millis(),
            kept: self.kept.map(millis),
            apart: millis(alive_every(self.kept).saturating_add(GONE_WITHIN)),
        }
    }
}

struct Run<'a> {
    reader: &'a Reader,
    told: &'a mpsc::Sender<Result<Step>>,
    chains: u64,
    records: u64,
    findings: u64,
}

impl Run<'_> {
    async fn all(&mut self, heads: Vec<Head>) -> Result<()> {
        match self.run(heads).await {
            Ok(Ok(())) | Ok(Err(Gone)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn run(&mut self, heads: Vec<Head>) -> Result<Result<(), Gone>> {
        let store = &self.reader.store;
        let mut verifier = Verifier::new(self.reader.ages());
        heads.into_iter().for_each(|head| verifier.know(head, "the list of heads"));
        // Before its chain is read, which only grows.
        if let Some(own) = store.own_head() {
            verifier.know(own, "this server");
        }
        let mut servers = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let heads = store.heads(after.as_deref(), HEADS).await?;
            let is_last = heads.len() < HEADS;
            after = heads.last().map(|head| head.server.clone());
            servers.extend(heads.into_iter().map(|head| head.server));
            if is_last {
                break;
            }
        }
        for server in &servers {
            let first = store.chain(server, 1, 1, RECORD_BYTES).await?;
            if let Some(first) = first.first()
                && first.get_str("event").is_ok_and(|event| event == record::START)
            {
                let by = format!("the beginning of {server}");
                let listed = record::listed_heads(first).into_iter();
                listed.for_each(|head| verifier.know(head, &by));
            }
        }
        for server in &servers {
            let mut chain = verifier.chain(server);
            let mut from = i64::MIN;
            loop {
                let found = store.chain(server, from, RECORDS, RECORD_BYTES).await?;
                let Some(last) = found.last().and_then(|last| record::head(last)) else {
                    // The last one cannot be read, or there is none: what can be is shown all the same.
                    for document in &found {
                        if let Err(Gone) = self.tell(chain.record(document)).await {
                            return Ok(Err(Gone));
                        }
                    }
                    break;
                };
                for document in &found {
                    self.records += 1;
                    if let Err(Gone) = self.tell(chain.record(document)).await {
                        return Ok(Err(Gone));
                    }
                }
                from = last.seq.saturating_add(1);
                if let Err(Gone) = self.progress().await {
                    return Ok(Err(Gone));
                }
            }
            self.chains += 1;
            if let Err(Gone) = self.tell(chain.end().0).await {
                return Ok(Err(Gone));
            }
        }
        if let Err(Gone) = self.tell(verifier.missing()).await {
            return Ok(Err(Gone));
        }
        let Run { chains, records, findings, .. } = *self;
        Ok(self.told.send(Ok(Step::Done { chains, records, findings })).await.map_err(|_| Gone))
    }

    async fn tell(&mut self, findings: Vec<Finding>) -> Result<(), Gone> {
        for finding in findings {
            self.findings += 1;
            if self.findings <= FINDINGS {
                self.told.send(Ok(Step::Finding(finding))).await.map_err(|_| Gone)?;
            }
        }
        Ok(())
    }

    async fn progress(&self) -> Result<(), Gone> {
        let (chains, records) = (self.chains, self.records);
        self.told.send(Ok(Step::Progress { chains, records })).await.map_err(|_| Gone)
    }
}

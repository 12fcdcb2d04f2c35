//! The operations, whoever asks: both edges call these, and nothing here knows a protocol.

pub mod analytics;
pub mod artifacts;
pub mod configurations;
mod digest;
pub mod digests;
pub mod engine;
pub mod error;
pub mod export;
pub mod ids;
pub mod ingest;
pub mod lanes;
pub mod leases;
pub mod metrics;
pub mod mirrors;
pub mod notifications;
pub mod order;
mod resumed;
pub mod retention;
pub mod rollups;
pub mod search;
pub mod swept;
pub mod token;
mod turns;
pub mod uploads;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::domain::access::AppScope;
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactQuery, Count, CountQuery, ExecutionFilter, ExecutionKey, ExecutionOrder,
    ExecutionQuery, Page, StepCounts, StepQuery,
};
use crate::domain::step::fill_in_parents;
use crate::domain::{
    Artifact, Execution, ExecutionOp, Refusal, Step, StepNames, StepRef, StepStatus,
};
use crate::store::{Answer, By, Op, Store, StoreInfo};

pub use engine::Engine;
pub use error::{Error, Result, Violation, Violations};
pub use swept::Sweeps;
pub use token::Tokens;

/// Records asked of the store in one query; longer pages take several, so that a page of large records never
/// fills the memory before it is cut.
const QUERY_RECORDS: usize = 250;

/// How long a delete waits until the bytes of artifacts are gone. They go anyway.
const BYTES_WAITED_FOR: Duration = Duration::from_secs(20);

/// What a reply takes beside its records, at most: the page token and the framing.
const FRAMING_BYTES: usize = 16 * 1024;

/// What the number of a parent takes in a reply, where it is filled in.
const PARENT_BYTES: usize = 8;

/// The operations over one store.
pub struct App {
    store: Arc<dyn Store>,
    engine: Engine,
    limits: Limits,
    tokens: OnceCell<Arc<Tokens>>,
    sweeps: Arc<Sweeps>,
}

/// A page of a list as asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct PageRequest {
    pub size: usize,
    /// Empty: the first page.
    pub token: String,
}

/// A page with the token of the next; empty: that was all.
#[derive(Debug, Clone, PartialEq)]
pub struct PageAnswer<T> {
    pub records: Vec<T>,
    pub next_page_token: String,
}

/// An execution with its steps and artifacts, as far as they fit.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeExecution {
    pub execution: Execution,
    pub steps: Vec<Step>,
    pub steps_truncated: bool,
    pub artifacts: Vec<Artifact>,
}

impl App {
    pub fn new(store: Arc<dyn Store>, engine: Engine, limits: Limits) -> Self {
        let (tokens, sweeps) = (OnceCell::new(), Arc::default());
        App { store, engine, limits, tokens, sweeps }
    }

    /// For who marks artifacts as deleted: their bytes can go.
    pub fn sweeps(&self) -> &Arc<Sweeps> {
        &self.sweeps
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn store_info(&self) -> StoreInfo {
        self.store.info()
    }

    /// Signs and checks tokens; the secret comes from the store, once.
    pub async fn tokens(&self) -> Result<Arc<Tokens>> {
        let tokens = self
            .tokens
            .get_or_try_init(|| async {
                Ok::<_, Error>(Arc::new(Tokens::new(&self.store.secret().await?)))
            })
            .await?;
        Ok(Arc::clone(tokens))
    }

    /// Applies one write.
    pub async fn write(&self, execution_id: String, op: Op, by: impl Into<By>) -> Result<Answer> {
        self.engine.write(execution_id, op, by).await
    }

    /// The execution, if it is in the scope: one that is not is as good as none.
    pub async fn execution(&self, execution_id: &str, scope: &AppScope) -> Result<Execution> {
        let found = self.store.execution(execution_id).await?;
        found
            .filter(|execution| scope.holds_execution(execution))
            .ok_or_else(|| execution_not_found(execution_id))
    }

    /// Asked before something of an execution is read or written for somebody who may not see every app. Of the others
    /// whoever reads it finds out whether there is one.
    pub(crate) async fn check_within(&self, execution_id: &str, scope: &AppScope) -> Result<()> {
        match scope.is_all() {
            true => Ok(()),
            false => self.execution(execution_id, scope).await.map(drop),
        }
    }

    /// Deletes an execution with everything it has. The mark is a write like any other, in order with those before
    /// it; what it takes to remove the rest holds up no other write. If this is cut short, the sweep ends it.
    pub async fn delete_execution(
        &self,
        execution_id: String,
        force: bool,
        scope: AppScope,
    ) -> Result<()> {
        self.delete(execution_id, ExecutionOp::Delete { force }, scope).await
    }

    /// Deletes an execution that is gone at the source of a mirror. One that is not here either is no error.
    pub async fn delete_mirrored(
        &self,
        execution_id: String,
        position: i64,
        scope: AppScope,
    ) -> Result<()> {
        match self.delete(execution_id, ExecutionOp::DeleteMirrored { position }, scope).await {
            Err(Error::Refused(Refusal::ExecutionNotFound { .. })) => Ok(()),
            deleted => deleted,
        }
    }

    async fn delete(&self, execution_id: String, op: ExecutionOp, scope: AppScope) -> Result<()> {
        let answer = self.engine.write(execution_id.clone(), Op::Execution(op), scope).await?;
        if !matches!(answer, Answer::Deleted) {
            return Ok(());
        }
        match self.store.remove(&execution_id).await {
            // Somebody else may have marked some.
            Ok(0) => {
                self.sweeps.ask();
            }
            Ok(_) => self.sweeps.ask_and_wait(BYTES_WAITED_FOR).await,
            Err(error) => {
                // It was cut short, but what was marked may go.
                self.sweeps.ask();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Asked after the parts of an execution were read: of one that is being deleted, nobody gets a part.
    pub(crate) async fn still_there(&self, execution_id: &str, scope: &AppScope) -> Result<()> {
        self.execution(execution_id, scope).await.map(drop)
    }

    /// The execution, its steps by id and its artifacts, as many as fit a reply by their sizes; steps come first.
    pub async fn whole_execution(
        &self,
        execution_id: &str,
        scope: &AppScope,
        size_of_execution: impl Fn(&Execution) -> usize,
        size_of_step: impl Fn(&Step) -> usize,
        size_of_artifact: impl Fn(&Artifact) -> usize,
    ) -> Result<WholeExecution> {
        let size_of_step = |step: &Step| size_of_step(step) + PARENT_BYTES;
        let mut whole = self
            .read_whole(execution_id, scope, size_of_execution, size_of_step, size_of_artifact)
            .await?;
        self.still_there(execution_id, scope).await?;
        fill_in_parents(&mut whole.steps);
        Ok(whole)
    }

    async fn read_whole(
        &self,
        execution_id: &str,
        scope: &AppScope,
        size_of_execution: impl Fn(&Execution) -> usize,
        size_of_step: impl Fn(&Step) -> usize,
        size_of_artifact: impl Fn(&Artifact) -> usize,
    ) -> Result<WholeExecution> {
        let execution = self.execution(execution_id, scope).await?;
        let mut bytes = size_of_execution(&execution) + FRAMING_BYTES;
        let mut whole = WholeExecution {
            execution,
            steps: Vec::new(),
            steps_truncated: false,
            artifacts: Vec::new(),
        };
        let mut after = None;
        loop {
            let page = self
                .store
                .steps(&StepQuery {
                    execution_id: execution_id.to_owned(),
                    statuses: Vec::new(),
                    after,
                    limit: QUERY_RECORDS,
                    examine: self.limits.page_examined_records,
                    payloads: None,
                })
                .await?;
            for step in page.records {
                bytes += size_of_step(&step);
                if bytes > self.limits.page_bytes {
                    whole.steps_truncated = true;
                    return Ok(whole);
                }
                whole.steps.push(step);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let mut after = None;
        loop {
            let execution_id = execution_id.to_owned();
            let query = ArtifactQuery { execution_id, after, limit: QUERY_RECORDS };
            let page = self.store.artifacts(&query).await?;
            for artifact in page.records {
                bytes += size_of_artifact(&artifact);
                if bytes > self.limits.page_bytes {
                    return Ok(whole);
                }
                whole.artifacts.push(artifact);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(whole),
            }
        }
    }

    /// One page of executions; `size_of` is what a record takes in a reply.
    pub async fn list_executions(
        &self,
        filter: ExecutionFilter,
        order: ExecutionOrder,
        page: PageRequest,
        size_of: impl Fn(&Execution) -> usize,
    ) -> Result<PageAnswer<Execution>> {
        let tokens = self.tokens().await?;
        let identity = format!("{}/{order:?}", filter.identity());
        let kind = token::Kind::ExecutionPage;
        let after = match page.token.as_str() {
            "" => None,
            text => Some(
                tokens
                    .open(kind, identity.as_bytes(), text)
                    .and_then(|bytes| decode_key(&bytes))
                    .ok_or(Error::BadToken("page_token"))?,
            ),
        };
        let query = |after, limit, examine| ExecutionQuery {
            filter: filter.clone(),
            order,
            after,
            limit,
            examine,
        };
        let found = self
            .fill(page.size, after, size_of, ExecutionKey::of, |after, limit, examine| {
                let query = query(after, limit, examine);
                async move { self.store.executions(&query).await.map_err(Error::from) }
            })
            .await?;
        let next_page_token = found
            .next
            .map(|key| tokens.seal(kind, identity.as_bytes(), &encode_key(&key)))
            .unwrap_or_default();
        Ok(PageAnswer { records: found.records, next_page_token })
    }

    /// How many executions match, at most `limit` counted.
    pub async fn count_executions(&self, filter: ExecutionFilter, limit: usize) -> Result<Count> {
        let examine = self.limits.page_examined_records;
        Ok(self.store.count_executions(&CountQuery { filter, limit, examine }).await?)
    }

    /// How many stored executions have no usable id, and are left out of everything.
    pub async fn unreadable_executions(&self) -> Result<u64> {
        Ok(self.store.unreadable_executions().await?)
    }

    /// How many steps of each of these stand where.
    pub async fn step_counts(&self, executions: &[Execution]) -> Result<Vec<StepCounts>> {
        if executions.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> =
            executions.iter().map(|execution| execution.execution_id.clone()).collect();
        Ok(self.store.step_counts(&ids, self.limits.page_examined_records).await?)
    }

    /// One page of the steps of an execution, with input and output if `payloads`.
    pub async fn list_steps(
        &self,
        execution_id: &str,
        scope: &AppScope,
        statuses: Vec<StepStatus>,
        payloads: bool,
        page: PageRequest,
        size_of: impl Fn(&Step) -> usize,
    ) -> Result<PageAnswer<Step>> {
        let tokens = self.tokens().await?;
        let with = if payloads { "/payloads" } else { "" };
        let identity = format!("{}{execution_id}/{statuses:?}{with}", scope.identity());
        let kind = token::Kind::StepPage;
        let after = match page.token.as_str() {
            "" => None,
            text => Some(
                tokens
                    .open(kind, identity.as_bytes(), text)
                    .and_then(|bytes| Some(i32::from_be_bytes(bytes.try_into().ok()?)))
                    .ok_or(Error::BadToken("page_token"))?,
            ),
        };
        let payloads = payloads.then_some(self.limits.page_bytes);
        let mut found = self
            .fill(
                page.size,
                after,
                |step| size_of(step) + PARENT_BYTES,
                |step| step.step_id,
                |after, limit, examine| {
                    let query = StepQuery {
                        execution_id: execution_id.to_owned(),
                        statuses: statuses.clone(),
                        after,
                        limit,
                        examine,
                        payloads,
                    };
                    async move { self.store.steps(&query).await.map_err(Error::from) }
                },
            )
            .await?;
        self.still_there(execution_id, scope).await?;
        fill_in_parents(&mut found.records);
        let next_page_token = found
            .next
            .map(|step_id| tokens.seal(kind, identity.as_bytes(), &step_id.to_be_bytes()))
            .unwrap_or_default();
        Ok(PageAnswer { records: found.records, next_page_token })
    }

    /// Fills a page from several queries: at most `size` records, at most a reply's bytes (but one record at
    /// least), at most the allowed number of records examined.
    async fn fill<T, K, F>(
        &self,
        size: usize,
        mut after: Option<K>,
        size_of: impl Fn(&T) -> usize,
        key_of: impl Fn(&T) -> K,
        query: impl Fn(Option<K>, usize, usize) -> F,
    ) -> Result<Page<T, K>>
    where
        F: Future<Output = Result<Page<T, K>>>,
    {
        let queries = size.div_ceil(QUERY_RECORDS).max(1);
        let examine = (self.limits.page_examined_records / queries).max(1);
        let mut room = self.limits.page_bytes.saturating_sub(FRAMING_BYTES);
        let mut records = Vec::new();
        loop {
            let limit = (size - records.len()).min(QUERY_RECORDS);
            let page = query(after, limit, examine).await?;
            let found = page.records.len();
            for record in page.records {
                let bytes = size_of(&record) + 8;
                if bytes > room && !records.is_empty() {
                    let next = records.last().map(&key_of);
                    return Ok(Page { records, next });
                }
                room = room.saturating_sub(bytes);
                records.push(record);
            }
            // A short answer with a key has examined enough for one page.
            if page.next.is_none() || records.len() >= size || found < limit {
                return Ok(Page { records, next: page.next });
            }
            after = page.next;
        }
    }

    /// All names of the step that is named so: what belongs to it may have been stored under any of them, also before
    /// the step was.
    pub(crate) async fn names_of(&self, execution_id: &str, named: &StepRef) -> Result<StepNames> {
        let StepRef { step_id, step_key } = named.clone();
        Ok(match self.store.step(execution_id, named, false).await? {
            Some(step) => StepNames { step_id: Some(step.step_id), step_key: step.step_key },
            None => StepNames { step_id, step_key },
        })
    }

    /// One step with its payloads.
    pub async fn step(
        &self,
        execution_id: &str,
        named: &StepRef,
        scope: &AppScope,
    ) -> Result<Step> {
        self.check_within(execution_id, scope).await?;
        let not_found = || {
            Error::Refused(Refusal::StepNotFound {
                execution_id: execution_id.to_owned(),
                step: named.to_string(),
            })
        };
        match self.store.step(execution_id, named, true).await? {
            // Both names were given: they must be of one step.
            Some(step)
                if named.step_id.is_none_or(|id| id == step.step_id)
                    && (named.step_key.is_none() || named.step_key == step.step_key) =>
            {
                Ok(step)
            }
            Some(_) => Err(not_found()),
            None if self.store.execution(execution_id).await?.is_none() => {
                Err(execution_not_found(execution_id))
            }
            None => Err(not_found()),
        }
    }
}

fn execution_not_found(execution_id: &str) -> Error {
    Error::Refused(Refusal::ExecutionNotFound { execution_id: execution_id.to_owned() })
}

/// What follows in the bytes of a key.
const KEY_HAS_TIME: u8 = 1;
const KEY_HAS_ODD: u8 = 2;
const KEY_HAS_PASSED: u8 = 4;

fn encode_key(key: &ExecutionKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + key.execution_id.len());
    let flag = |there: bool, flag: u8| if there { flag } else { 0 };
    bytes.push(
        flag(key.started_at.is_some(), KEY_HAS_TIME)
            | flag(key.odd.is_some(), KEY_HAS_ODD)
            | flag(key.passed > 0, KEY_HAS_PASSED),
    );
    bytes.extend_from_slice(&key.started_at.unwrap_or(0).to_be_bytes());
    if let Some(odd) = &key.odd {
        bytes.extend_from_slice(&u32::try_from(odd.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(odd);
    }
    if key.passed > 0 {
        bytes.extend_from_slice(&key.passed.to_be_bytes());
    }
    bytes.extend_from_slice(key.execution_id.as_bytes());
    bytes
}

fn decode_key(bytes: &[u8]) -> Option<ExecutionKey> {
    let (flags, rest) = bytes.split_first()?;
    let (started_at, mut rest) = rest.split_at_checked(8)?;
    let started_at = i64::from_be_bytes(started_at.try_into().ok()?);
    let number = |rest: &mut &[u8]| {
        let (number, after) = rest.split_at_checked(4)?;
        *rest = after;
        Some(u32::from_be_bytes(number.try_into().ok()?))
    };
    let mut odd = None;
    if flags & KEY_HAS_ODD != 0 {
        let length = usize::try_from(number(&mut rest)?).ok()?;
        let (bytes, after) = rest.split_at_checked(length)?;
        (odd, rest) = (Some(bytes.to_vec()), after);
    }
    let passed = if flags & KEY_HAS_PASSED != 0 { number(&mut rest)? } else { 0 };
    Some(ExecutionKey {
        started_at: (flags & KEY_HAS_TIME != 0).then_some(started_at),
        execution_id: String::from_utf8(rest.to_vec()).ok()?,
        odd,
        passed,
    })
}

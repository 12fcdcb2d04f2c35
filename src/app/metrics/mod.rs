//! The operations of metrics: recording, by way of the recorder, and asking.

mod recorder;

use std::sync::Arc;

use super::token::Kind;
use super::{App, Error, FRAMING_BYTES, Result, execution_not_found};
use crate::domain::access::AppScope;
use crate::domain::query::Page;
use crate::domain::{MetricCounts, MetricInterval, MetricPoint, Millis, StepNames, StepRef};
use crate::store::By;
use crate::store::metrics::{IntervalQuery, MetricStore, PointKey, Span};

pub use recorder::{Observer, Pending, Recorder, Request};

/// Points asked of the store in one query.
const QUERY_POINTS: usize = 2000;

/// Points, or kept figures, that a page of intervals looks at for each record that a page may examine: folding one
/// costs far less than reading a record. Those of its first interval are always looked at.
const POINTS_PER_RECORD: usize = 50;

/// The operations on metrics over one store.
pub struct Metrics {
    app: Arc<App>,
    store: Arc<dyn MetricStore>,
    recorder: Recorder,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub span: Span,
    /// Only points of this step.
    pub step: Option<StepRef>,
    /// Empty: all.
    pub names: Vec<String>,
    pub size: usize,
    /// Empty: the first page.
    pub token: String,
    /// The apps that may be told of.
    pub scope: AppScope,
}

impl Query {
    /// What a page token belongs to.
    fn identity(&self, interval_ms: Option<i64>) -> String {
        let Span { execution_id, from, until } = &self.span;
        let step = self.step.as_ref().map(|step| format!("{step:?}")).unwrap_or_default();
        let scope = self.scope.identity();
        format!("{scope}{execution_id:?}/{from:?}/{until:?}/{:?}/{interval_ms:?}{step}", self.names)
    }
}

/// A page with the token of the next; empty: that was all.
#[derive(Debug, Clone, PartialEq)]
pub struct Told<T> {
    pub records: Vec<T>,
    pub next_page_token: String,
}

impl Metrics {
    pub fn new(app: Arc<App>, store: Arc<dyn MetricStore>, recorder: Recorder) -> Self {
        Metrics { app, store, recorder }
    }

    /// Stores one request. Refuses at once when the queue is full.
    pub async fn record(&self, request: Request, by: By) -> Result<MetricCounts> {
        self.app.check_within(&request.execution_id, &by.scope).await?;
        self.recorder.record(Request { asked: by.asked, ..request }).await
    }

    /// Queues one request, waiting for room as long as it takes.
    pub async fn enqueue(&self, request: Request, by: By) -> Result<Pending> {
        self.app.check_within(&request.execution_id, &by.scope).await?;
        self.recorder.enqueue(Request { asked: by.asked, ..request }).await
    }

    /// The token's payload, before anything is looked up.
    async fn opened(&self, query: &Query, interval_ms: Option<i64>) -> Result<Option<Vec<u8>>> {
        if query.token.is_empty() {
            return Ok(None);
        }
        let tokens = self.app.tokens().await?;
        tokens
            .open(Kind::MetricPage, query.identity(interval_ms).as_bytes(), &query.token)
            .map(Some)
            .ok_or(Error::BadToken("page_token"))
    }

    /// Points of other programs, and those put as they are, may be of no execution that is stored.
    async fn check_known(&self, execution_id: &str, scope: &AppScope) -> Result<()> {
        self.app.check_within(execution_id, scope).await?;
        if self.app.store().execution(execution_id).await?.is_some()
            || self.store.has_points(execution_id).await?
        {
            return Ok(());
        }
        Err(execution_not_found(execution_id))
    }

    /// Asked after points were read: of an execution that is being deleted, nobody gets any.
    async fn check_stays(&self, execution_id: &str, scope: &AppScope) -> Result<()> {
        self.app.check_within(execution_id, scope).await?;
        match self.app.store().is_being_deleted(execution_id).await? {
            true => Err(execution_not_found(execution_id)),
            false => Ok(()),
        }
    }

    async fn step(&self, query: &Query) -> Result<Option<StepNames>> {
        match &query.step {
            None => Ok(None),
            Some(named) => self.app.names_of(&query.span.execution_id, named).await.map(Some),
        }
    }

    /// One page of points; `size_of` is what one takes in a reply.
    pub async fn points(
        &self,
        query: &Query,
        size_of: impl Fn(&MetricPoint) -> usize,
    ) -> Result<Told<MetricPoint>> {
        let mut after = match self.opened(query, None).await? {
            None => None,
            Some(bytes) => Some(decode_point(&bytes).ok_or(Error::BadToken("page_token"))?),
        };
        self.check_known(&query.span.execution_id, &query.scope).await?;
        let step = self.step(query).await?;
        let limits = self.app.limits();
        let mut examine = limits.page_examined_records.max(query.size);
        let mut room = limits.page_bytes.saturating_sub(FRAMING_BYTES);
        let mut records = Vec::new();
        let next = 'page: loop {
            let limit =
                QUERY_POINTS.min(examine).min(match query.names.is_empty() && step.is_none() {
                    true => query.size - records.len(),
                    // Most of them may have none of the names, or be of other steps.
                    false => QUERY_POINTS,
                });
            let page = self.store.points(&query.span, after.as_ref(), limit.max(1)).await?;
            examine = examine.saturating_sub(limit.max(1));
            let more = page.next;
            for (key, point) in page.records {
                let point = point.only(&query.names);
                let is_wanted =
                    |step: &StepNames| step.is(point.step_id, point.step_key.as_deref());
                // Of another program: without a number there is nothing to tell.
                if !point.metrics.is_empty() && step.as_ref().is_none_or(is_wanted) {
                    let bytes = size_of(&point) + 8;
                    if records.len() >= query.size || (bytes > room && !records.is_empty()) {
                        break 'page after;
                    }
                    room = room.saturating_sub(bytes);
                    records.push(point);
                }
                after = Some(key);
            }
            match more {
                None => break None,
                Some(more) if records.len() >= query.size || examine == 0 => break Some(more),
                Some(more) => after = Some(more),
            }
        };
        self.check_stays(&query.span.execution_id, &query.scope).await?;
        let next_page_token = match next {
            None => String::new(),
            Some(key) => self.app.tokens().await?.seal(
                Kind::MetricPage,
                query.identity(None).as_bytes(),
                &encode_point(&key),
            ),
        };
        Ok(Told { records, next_page_token })
    }

    /// One page of intervals.
    pub async fn intervals(
        &self,
        query: &Query,
        interval_ms: i64,
        size_of: impl Fn(&MetricInterval) -> usize,
    ) -> Result<Told<MetricInterval>> {
        let after = match self.opened(query, Some(interval_ms)).await? {
            None => None,
            Some(bytes) => Some(decode_interval(&bytes).ok_or(Error::BadToken("page_token"))?),
        };
        self.check_known(&query.span.execution_id, &query.scope).await?;
        let asked = IntervalQuery {
            span: query.span.clone(),
            step: self.step(query).await?,
            names: query.names.clone(),
            interval_ms,
            after,
            // One more tells whether there is more.
            limit: query.size + 1,
            examine: self.app.limits().page_examined_records.saturating_mul(POINTS_PER_RECORD),
        };
        let Page { mut records, next } = self.store.intervals(&asked).await?;
        self.check_stays(&query.span.execution_id, &query.scope).await?;
        let mut room = self.app.limits().page_bytes.saturating_sub(FRAMING_BYTES);
        let fitting = records
            .iter()
            .take(query.size)
            .take_while(|interval| {
                let bytes = size_of(interval) + 8;
                let fits = bytes <= room;
                room = room.saturating_sub(bytes);
                fits
            })
            .count();
        // One always fits.
        let kept = fitting.max(1).min(records.len());
        let more = kept < records.len();
        records.truncate(kept);
        let next = match records.last().filter(|_| more) {
            Some(last) => Some((last.start, last.name.clone())),
            None => next,
        };
        let next_page_token = match next {
            None => String::new(),
            Some((start, name)) => self.app.tokens().await?.seal(
                Kind::MetricPage,
                query.identity(Some(interval_ms)).as_bytes(),
                &encode_interval(start, &name),
            ),
        };
        Ok(Told { records, next_page_token })
    }
}

fn encode_point(key: &PointKey) -> Vec<u8> {
    [&key.at.to_be_bytes()[..], &key.id].concat()
}

fn decode_point(bytes: &[u8]) -> Option<PointKey> {
    let (at, id) = bytes.split_first_chunk::<8>()?;
    Some(PointKey { at: i64::from_be_bytes(*at), id: id.to_vec() })
}

fn encode_interval(start: Millis, name: &str) -> Vec<u8> {
    [&start.to_be_bytes()[..], name.as_bytes()].concat()
}

fn decode_interval(bytes: &[u8]) -> Option<(Millis, String)> {
    let (start, name) = bytes.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*start), String::from_utf8(name.to_vec()).ok()?))
}

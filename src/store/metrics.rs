//! What a store promises about metrics. Points are facts that never change: they are added, read by time, and go
//! with their execution or by their own age.

use async_trait::async_trait;

use super::Result;
use crate::domain::audit::Asked;
use crate::domain::audit::entry::Written;
use crate::domain::query::Page;
use crate::domain::{MetricCounts, MetricInterval, MetricPoint, Millis, StepNames};

/// The identity of a stored point. Ids of points that came through one server sort in order of arrival; between
/// servers that is as good as their clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId(pub [u8; 12]);

/// One point with its identity.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    pub id: PointId,
    pub point: MetricPoint,
}

/// Told of points: the id of the execution, and one of its points.
pub type EachArrived<'a> = dyn FnMut(&str, Arrived) + Send + 'a;

/// The points of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub execution_id: String,
    pub points: Vec<MetricPoint>,
    /// By which the same request is known when it comes again, with the digest of all its points.
    pub request: Option<RequestId>,
    /// Points as they are: the execution need not be stored, and what is stored already is left alone.
    pub put: bool,
    /// When the request came.
    pub now: Millis,
    /// The call, where it is recorded along with the points.
    pub asked: Option<Asked>,
}

impl Recording {
    /// What is recorded of it before it is done, if anything is.
    pub fn recorded(&self) -> Option<Written> {
        let (asked, execution_id) = (self.asked.clone()?, self.execution_id.clone());
        Some(Written { asked, execution_id, step_id: None, code: None })
    }
}

/// What tells a request of an execution from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    pub id: String,
    pub digest: String,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recorded {
    pub counts: MetricCounts,
    /// The points that this very call stored, in order.
    pub stored: Vec<Arrived>,
}

/// Where a point stands in the order of time: everything after this key follows on the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointKey {
    pub at: Millis,
    /// The store's own words for the identity of the point.
    pub id: Vec<u8>,
}

/// A span of time of one execution: from, inclusive, until, exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub execution_id: String,
    pub from: Option<Millis>,
    pub until: Option<Millis>,
}

/// A page of intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalQuery {
    pub span: Span,
    /// Only points of this step.
    pub step: Option<StepNames>,
    /// Empty: all.
    pub names: Vec<String>,
    pub interval_ms: i64,
    /// Only what comes after this start and name.
    pub after: Option<IntervalKey>,
    pub limit: usize,
    /// Points and kept figures to look at, but always those of one interval.
    pub examine: usize,
}

/// Where a page of intervals ends: the start and the name of its last. No name: before all of this start.
pub type IntervalKey = (Millis, String);

/// Points of metrics, durable.
#[async_trait]
pub trait MetricStore: Send + Sync + 'static {
    /// Stores the points of several requests, each with its own outcome, in order. An answer means that they are
    /// durable. Points are judged by `domain::metric::admit`. Without `put` an execution that is not stored, or
    /// goes away meanwhile, is `ExecutionNotFound`, and nothing of the request is left behind.
    ///
    /// A request with an id is stored once: the same again, whatever became of the first attempt, answers with
    /// the first counts; with another digest it is `MetricRequestExists`. It is known for a day, one of `put` as
    /// long as its points are kept. Without an id, an error may leave a part of the points stored.
    async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>>;

    /// How many `record` calls this store wants at a time, from 1. Two of them never carry requests of one
    /// execution at the same time.
    fn metric_lanes(&self) -> usize;

    /// Points by time, of equal times in order of arrival; at most `limit`, and fewer only with no key to go on
    /// from.
    async fn points(
        &self,
        span: &Span,
        after: Option<&PointKey>,
        limit: usize,
    ) -> Result<Page<(PointKey, MetricPoint), PointKey>>;

    /// What was recorded per interval and name, by start and name, computed in the database; at most `limit`. Fewer
    /// without a key to go on from: that was all. With one, which may come with no interval at all, `examine` was
    /// used up. Only finite numbers count.
    async fn intervals(&self, query: &IntervalQuery) -> Result<Page<MetricInterval, IntervalKey>>;

    /// Whether points of this execution are stored.
    async fn has_points(&self, execution_id: &str) -> Result<bool>;

    /// Whether points may arrive that did not come through this server.
    fn arrivals_elsewhere(&self) -> bool;

    /// The least id that is given from a moment on.
    fn least_id(&self, since: Millis) -> PointId;

    /// Points of these executions whose ids were given since a moment, in any order, by execution.
    async fn arrived_since(
        &self,
        execution_ids: &[String],
        since: Millis,
        each: &mut EachArrived<'_>,
    ) -> Result<()>;

    /// Points of an execution from this id on, by id, at most `limit`.
    async fn arrived_from(
        &self,
        execution_id: &str,
        from: PointId,
        limit: usize,
    ) -> Result<Vec<Arrived>>;
}

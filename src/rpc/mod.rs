//! The gRPC edge: one file per service. Converts, calls an operation, converts back; decides nothing.

pub mod admin;
pub mod analytics;
mod analytics_requests;
mod artifact_requests;
pub mod artifacts;
pub mod audit;
pub mod audited;
pub mod auth;
pub mod authenticate;
pub mod budget;
pub mod calls;
pub mod catalog;
mod check;
pub mod codec;
mod codes;
pub mod configurations;
pub mod connection;
pub mod convert;
pub mod eager;
pub mod edge_errors;
pub mod executions;
pub mod export;
pub mod ingest;
mod ingest_codec;
pub mod linger;
mod metric_requests;
pub mod metrics;
pub mod mirrors;
pub mod notifications;
pub mod observe;
mod pace;
mod places;
pub mod put_digests;
pub mod records;
pub mod requests;
pub mod search;
pub mod shared_codec;
mod shown;
pub mod status;
pub mod steps;
mod targets;
mod unpack;
pub mod verify;
pub mod watch;
mod weight;
pub mod whole_requests;

#[cfg(test)]
pub mod tests;

use tonic::Status;

use crate::app::{App, Error, Result};
use crate::store::{Answer, By};

/// Applies what a request asked for.
pub(crate) async fn write(
    app: &App,
    by: By,
    asked: Result<requests::Asked>,
) -> Result<Answer, Status> {
    let outcome = match asked {
        Ok((execution_id, op)) => app.write(execution_id, op, by).await,
        Err(error) => Err(error),
    };
    outcome.map_err(|error| status::of(&error))
}

/// A write about one kind of record was answered with another: a defect of ours.
pub(crate) fn unexpected_answer() -> Status {
    let source = "a write was answered with a record of another kind";
    status::of(&Error::Store(crate::store::Error::failed(source)))
}

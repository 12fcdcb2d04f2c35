//! `stepwell health`: asks `grpc.health.v1`, for container health checks and scripts.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::connection::{Connection, call};
use super::exit::{Exit, Result};
use super::output::Output;

/// Done while the server is SERVING, refused while it says otherwise.
pub async fn run(connection: &Connection, output: &Output) -> Result<Exit> {
    let answer = connection.health().check(call(HealthCheckRequest::default())).await?;
    let status = answer.into_inner().status();
    let word = status.as_str_name();
    if output.is_json() {
        output.json(&serde_json::json!({ "status": word }))?;
    } else {
        output.line(word)?;
    }
    Ok(Exit::refused_if(status != ServingStatus::Serving))
}

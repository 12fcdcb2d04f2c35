//! `stepwell server-info`.

use super::connection::{Connection, call};
use super::exit::{Exit, Result};
use super::output::Output;
use super::{json, table};
use crate::proto;

pub async fn run(connection: &Connection, output: &Output) -> Result<Exit> {
    let info = connection
        .admin()
        .get_server_info(call(proto::GetServerInfoRequest {}))
        .await?
        .into_inner();
    if output.is_json() {
        output.json(&json::server_info(&info))?;
        return Ok(Exit::Done);
    }
    let mut limits: Vec<(String, i64)> = info.limits.into_iter().collect();
    limits.sort();
    let limits: Vec<String> =
        limits.into_iter().map(|(name, limit)| format!("{name} = {limit}")).collect();
    let fields = vec![
        ("version", info.version.into()),
        ("store", info.store.into()),
        ("store version", info.store_version.into()),
        ("database id", info.database_id.into()),
        ("features", info.features.join(", ").into()),
        ("limits", limits.join("\n").into()),
    ];
    for line in table::record(output, fields) {
        output.line(&line)?;
    }
    Ok(Exit::Done)
}

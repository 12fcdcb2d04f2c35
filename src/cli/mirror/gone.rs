//! What is here and no longer at the source: of a delete by another program the log of MongoDB names no record, and a log that
//! no longer reaches back says nothing at all. Then both sides are asked what they hold.

use std::collections::HashSet;

use tonic::Status;

use crate::cli::connection::Connection;
use crate::domain::limits::DIGEST_KEYS;
use crate::proto;
use crate::proto::get_digests_response::Part as Told;

/// What is no longer at the source.
pub struct Gone {
    pub execution_ids: Vec<String>,
    /// In the log of the source everything before this is from before or from when they went. What was read of them then
    /// comes before whatever says that it is as new as that.
    pub position: i64,
}

/// Which executions of the target are gone at the source. With `adopted`, those of which the source has steps are not. Artifacts
/// alone are not looked for: of one that is only in the target nobody knows whether a mirror has brought it.
pub async fn look(source: Connection, target: Connection, adopted: bool) -> Result<Gone, Status> {
    // The target first: what comes to it meanwhile is not missed at the source.
    let here = executions_of(&target, proto::ExportKind::Executions).await?.execution_ids;
    let mut there = executions_of(&source, proto::ExportKind::Executions).await?.execution_ids;
    if adopted {
        there.extend(executions_of(&source, proto::ExportKind::Steps).await?.execution_ids);
    }
    let seeming: Vec<String> = here.difference(&there).cloned().collect();
    let mut gone = Gone { execution_ids: Vec::new(), position: 0 };
    for some in seeming.chunks(DIGEST_KEYS) {
        let still = still_there(&source, some).await?;
        let ids = some.iter().filter(|id| !still.execution_ids.contains(*id)).cloned();
        gone.execution_ids.extend(ids);
        gone.position = gone.position.max(still.position);
    }
    Ok(gone)
}

/// What one reading has told.
#[derive(Default)]
struct Read {
    execution_ids: HashSet<String>,
    /// Where the log was when it began.
    position: i64,
}

/// The executions of all records of a kind.
async fn executions_of(side: &Connection, kind: proto::ExportKind) -> Result<Read, Status> {
    let all = proto::DigestSelection { kind: kind.into(), ranges: Vec::new() };
    let request = proto::GetDigestsRequest {
        selections: vec![all],
        level: proto::DigestLevel::Records.into(),
        ..Default::default()
    };
    read(side, request).await
}

/// Which of these executions are there now.
async fn still_there(side: &Connection, execution_ids: &[String]) -> Result<Read, Status> {
    let keys = execution_ids.iter().map(|execution_id| proto::DigestKey {
        kind: proto::ExportKind::Executions.into(),
        execution_id: execution_id.clone(),
        ..Default::default()
    });
    let request = proto::GetDigestsRequest {
        keys: keys.collect(),
        level: proto::DigestLevel::Records.into(),
        ..Default::default()
    };
    read(side, request).await
}

/// Of what is answered, the ids of executions, and the position.
async fn read(side: &Connection, request: proto::GetDigestsRequest) -> Result<Read, Status> {
    let mut stream = side.verify().get_digests(request).await?.into_inner();
    let mut found = Read::default();
    loop {
        match stream.message().await?.map(|answer| answer.part) {
            Some(Some(Told::Records(told))) => {
                let ids = told.records.into_iter().map(|record| record.execution_id);
                found.execution_ids.extend(ids);
            }
            Some(Some(Told::Begun(begun))) => found.position = begun.position.unwrap_or(0),
            Some(Some(Told::Complete(_))) => return Ok(found),
            Some(_) => {}
            None => return Err(Status::unavailable("the digests ended early")),
        }
    }
}

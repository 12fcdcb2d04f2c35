//! Everything of one kind, along the rows of its table. Each piece is a read of its own, so that no snapshot keeps the
//! log of writes from being taken in.

use std::sync::LazyLock;

use async_trait::async_trait;
use rusqlite::{Connection, Row};
use tokio::sync::mpsc;

use super::rows::{EXECUTION_COLUMNS, STEP_COLUMNS, STEP_PAYLOADS, execution_of, step_of};
use super::{SqliteStore, artifact_rows, configurations, metrics};
use crate::domain::plain::Part;
use crate::store::scan::{PIECE_BYTES, PIECE_RECORDS, ScanStore, Scanned};
use crate::store::{Error, Result};

/// The rows of a table after one of them. The number of the row is the last column.
fn sql(part: Part) -> &'static str {
    static ALL: LazyLock<[String; 5]> = LazyLock::new(|| {
        let executions = EXECUTION_COLUMNS.join(", ");
        let steps = STEP_COLUMNS.join(", ");
        let artifacts = artifact_rows::COLUMNS;
        let configurations = configurations::COLUMNS;
        [
            format!("SELECT {executions}, id FROM executions WHERE id > ?1 AND deleted_at IS NULL"),
            format!(
                "SELECT {steps}, {STEP_PAYLOADS}, \
                        (SELECT execution_id FROM executions e \
                         WHERE e.id = steps.execution AND e.deleted_at IS NULL), id \
                 FROM steps WHERE id > ?1"
            ),
            format!("SELECT {artifacts}, id FROM artifacts WHERE id > ?1 AND deleted_at IS NULL"),
            "SELECT id, at, step_id, metrics, step_key, execution_id, id FROM metrics WHERE id > ?1"
                .to_owned(),
            format!("SELECT {configurations}, id FROM configurations WHERE id > ?1"),
        ]
        .map(|select| format!("{select} ORDER BY id LIMIT {PIECE_RECORDS}"))
    });
    let place = Part::ALL.iter().position(|known| *known == part);
    &ALL[place.unwrap_or_default()]
}

/// The record in a row; `None`: its execution is being deleted.
fn record(part: Part, row: &Row<'_>) -> Result<Option<Scanned>> {
    Ok(Some(match part {
        Part::Executions => Scanned::Execution(execution_of(row)?),
        Part::Steps => {
            let execution_id: Option<String> = row.get(STEP_COLUMNS.len() + 2)?;
            let Some(execution_id) = execution_id else { return Ok(None) };
            Scanned::Step(step_of(row, &execution_id, true)?)
        }
        Part::Artifacts => Scanned::Artifact(artifact_rows::artifact_of(row)?),
        Part::Points => {
            Scanned::Point { execution_id: row.get(5)?, point: metrics::read_point(row)? }
        }
        Part::Configurations => Scanned::Configuration(configurations::record_of(row)?),
    }))
}

/// The records after a row, and the last row that was looked at. `None`: there is none.
fn piece(
    connection: &Connection,
    part: Part,
    after: i64,
) -> Result<(Vec<Scanned>, Option<i64>, u64)> {
    let mut statement = connection.prepare_cached(sql(part))?;
    let number = statement.column_count() - 1;
    let mut rows = statement.query([after])?;
    let (mut records, mut last, mut bytes, mut unreadable) = (Vec::new(), None, 0, 0);
    while bytes < PIECE_BYTES
        && let Some(row) = rows.next()?
    {
        last = Some(row.get(number)?);
        match record(part, row) {
            Ok(Some(found)) => {
                bytes += found.weight();
                records.push(found);
            }
            Ok(None) => {}
            Err(Error::Corrupt { collection, id, field }) => {
                tracing::warn!(collection, id, field, "a stored record cannot be read");
                unreadable += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok((records, last, unreadable))
}

#[async_trait]
impl ScanStore for SqliteStore {
    async fn scan(&self, part: Part, out: mpsc::Sender<Vec<Scanned>>) -> Result<u64> {
        let (mut after, mut unreadable) = (i64::MIN, 0);
        loop {
            let (records, last, more) =
                self.readers.run(move |connection| piece(connection, part, after)).await?;
            unreadable += more;
            let Some(last) = last else { return Ok(unreadable) };
            after = last;
            if !records.is_empty() && out.send(records).await.is_err() {
                return Ok(unreadable);
            }
        }
    }
}

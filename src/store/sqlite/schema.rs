//! The tables, how a database file gets them, and how a connection is set up. Knows nothing of records.
//!
//! A start time that is not known is stored as the smallest integer, so that such records are the oldest in
//! every index and one comparison serves all pages. A status that is no known word is stored as ''.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

use super::{OpenError, Synchronous};

/// Stored for a start time that is not known.
pub const NO_START: i64 = i64::MIN;

/// "STPW": tells our files from other programs' databases of the same name.
const APPLICATION_ID: i32 = 0x5354_5057;

/// One entry per version of the schema; the database counts in `user_version` how many it has seen. Never
/// change an entry that was released: add one.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE executions (
        id                   INTEGER PRIMARY KEY,
        execution_id         TEXT NOT NULL UNIQUE,
        stored_at            INTEGER NOT NULL,
        app_id               INTEGER,
        app_name             TEXT NOT NULL,
        sub_app_id           INTEGER,
        sub_app_name         TEXT,
        user_id              TEXT,
        status               TEXT NOT NULL,
        started_at           INTEGER NOT NULL,
        completed_at         INTEGER,
        duration_ms          INTEGER,
        error                TEXT,
        error_info           BLOB,
        metadata             BLOB,
        created_at           INTEGER,
        updated_at           INTEGER,
        revision             INTEGER NOT NULL,
        heartbeat_timeout_ms INTEGER,
        last_heartbeat_at    INTEGER,
        cancel_requested_at  INTEGER,
        cancel_reason        TEXT,
        parent_execution_id  TEXT,
        pinned               INTEGER,
        create_digest        TEXT,
        start_digest         TEXT,
        finish_digest        TEXT
    ) STRICT;
    -- The usual filters are one or two of user, app and status, newest first. With the status in the index a
    -- rare status of a big app is one short range; all statuses are a merge of five ranges.
    CREATE INDEX executions_app ON executions (app_id, status, started_at, execution_id)
        WHERE app_id IS NOT NULL;
    CREATE INDEX executions_sub_app ON executions (app_id, sub_app_id, started_at, execution_id)
        WHERE sub_app_id IS NOT NULL;
    CREATE INDEX executions_app_name ON executions (app_name, status, started_at, execution_id);
    CREATE INDEX executions_user ON executions (user_id, status, started_at, execution_id)
        WHERE user_id IS NOT NULL;
    CREATE INDEX executions_status ON executions (status, started_at, execution_id);
    CREATE INDEX executions_started ON executions (started_at, execution_id);
    CREATE INDEX executions_lease ON executions (heartbeat_timeout_ms)
        WHERE status = 'running' AND heartbeat_timeout_ms IS NOT NULL;

    CREATE TABLE steps (
        id               INTEGER PRIMARY KEY,
        execution        INTEGER NOT NULL, -- executions.id
        step_id          INTEGER NOT NULL,
        stored_at        INTEGER NOT NULL,
        step_key         TEXT,
        step_name        TEXT NOT NULL,
        step_version     TEXT,
        status           TEXT NOT NULL,
        started_at       INTEGER,
        completed_at     INTEGER,
        duration_ms      INTEGER,
        error            TEXT,
        error_info       BLOB,
        retry_count      INTEGER NOT NULL,
        metadata         BLOB,
        revision         INTEGER NOT NULL,
        created_at       INTEGER,
        updated_at       INTEGER,
        depends_on       TEXT,
        parent_step_id   INTEGER,
        progress         REAL,
        progress_message TEXT,
        attempts         BLOB,
        create_digest    TEXT,
        start_digest     TEXT,
        finish_digest    TEXT,
        -- Last, so that reads without payloads need not walk over them.
        input            BLOB,
        output           BLOB
    ) STRICT;
    CREATE UNIQUE INDEX steps_id ON steps (execution, step_id);
    CREATE UNIQUE INDEX steps_key ON steps (execution, step_key) WHERE step_key IS NOT NULL;

    -- Inputs (id = 2 * steps.id) and outputs (id = 2 * steps.id + 1) too long to be rewritten with every
    -- change of their step, whose own column then is x''.
    CREATE TABLE step_payloads (
        id    INTEGER PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT;

    -- The log. Numbers have no gaps: the writer gives them, and a rolled back number is given again.
    CREATE TABLE changes (
        seq          INTEGER PRIMARY KEY,
        at           INTEGER NOT NULL,
        execution_id TEXT NOT NULL,
        step_id      INTEGER,
        kind         INTEGER NOT NULL,
        flags        INTEGER NOT NULL,
        revision     INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE meta (
        name  TEXT PRIMARY KEY,
        value ANY NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('secret', randomblob(32)), ('pruned_through', 0);
", "
    -- Artifacts. The row is the artifact: it is there once the bytes are complete. Marked as deleted it is
    -- invisible, and goes when its bytes are gone.
    CREATE TABLE artifacts (
        id            INTEGER PRIMARY KEY,
        artifact_id   TEXT NOT NULL UNIQUE,
        execution_id  TEXT NOT NULL,
        stored_at     INTEGER NOT NULL,
        step_id       INTEGER,
        artifact_type TEXT NOT NULL,
        artifact_name TEXT NOT NULL,
        mime_type     TEXT,
        size_bytes    INTEGER,
        storage_type  TEXT,
        storage_path  TEXT,
        metadata      BLOB,
        created_at    INTEGER,
        sha256        TEXT,
        deleted_at    INTEGER,
        create_digest TEXT
    ) STRICT;
    CREATE INDEX artifacts_execution ON artifacts (execution_id, artifact_id);
    CREATE INDEX artifacts_path ON artifacts (storage_path) WHERE storage_path IS NOT NULL;
    CREATE UNIQUE INDEX artifacts_digest ON artifacts (create_digest) WHERE deleted_at IS NULL;
    CREATE INDEX artifacts_stored ON artifacts (stored_at);
    CREATE INDEX artifacts_deleted ON artifacts (deleted_at) WHERE deleted_at IS NOT NULL;
    ALTER TABLE changes ADD COLUMN artifact_id TEXT;
    -- Bytes on their way, and for a while those that arrived.
    CREATE TABLE artifact_uploads (
        upload_id      TEXT PRIMARY KEY,
        digest         TEXT NOT NULL,
        artifact_id    TEXT NOT NULL,
        storage_type   TEXT NOT NULL,
        storage_path   TEXT NOT NULL,
        turn           INTEGER NOT NULL,
        received_bytes INTEGER NOT NULL,
        hash_state     BLOB NOT NULL,
        storage_state  BLOB NOT NULL,
        finished       INTEGER NOT NULL,
        updated_at     INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX artifact_uploads_updated ON artifact_uploads (updated_at);
", "
    -- Configurations. An app without a number is told apart by its name; see `configurations`.
    CREATE TABLE configurations (
        id            INTEGER PRIMARY KEY,
        stored_at     INTEGER NOT NULL,
        app_id        INTEGER,
        app_name      TEXT NOT NULL,
        sub_app_id    INTEGER,
        sub_app_name  TEXT,
        version       TEXT NOT NULL,
        active        INTEGER NOT NULL,
        created_at    INTEGER NOT NULL,
        created_by    TEXT,
        configuration BLOB NOT NULL
    ) STRICT;
    -- NULL is never equal to NULL, so what has no part needs an index of its own.
    CREATE UNIQUE INDEX configurations_part ON configurations (app_id, sub_app_id, version)
        WHERE app_id IS NOT NULL;
    CREATE UNIQUE INDEX configurations_app ON configurations (app_id, version)
        WHERE app_id IS NOT NULL AND sub_app_id IS NULL;
    CREATE UNIQUE INDEX configurations_named_part ON configurations (app_name, sub_app_name, version)
        WHERE app_id IS NULL;
    CREATE UNIQUE INDEX configurations_named_app ON configurations (app_name, version)
        WHERE app_id IS NULL AND sub_app_name IS NULL;
    CREATE INDEX configurations_active ON configurations (active, app_id, sub_app_id) WHERE active = 1;
    -- Lists: newest first.
    CREATE INDEX configurations_created ON configurations (created_at);
    CREATE INDEX configurations_app_created ON configurations (app_id, created_at);
    CREATE INDEX configurations_name_created ON configurations (app_name, created_at) WHERE app_id IS NULL;
    ALTER TABLE executions ADD COLUMN configuration_version TEXT;
", "
    -- Points of metrics, in order of arrival.
    CREATE TABLE metrics (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        execution_id TEXT NOT NULL,
        at           INTEGER NOT NULL,
        step_id      INTEGER,
        metrics      BLOB NOT NULL
    ) STRICT;
    CREATE INDEX metrics_execution ON metrics (execution_id, at, id);
    CREATE INDEX metrics_at ON metrics (at);
    -- Requests that may come again. What has no end is known for ever.
    CREATE TABLE metric_requests (
        execution_id TEXT NOT NULL,
        request_id   TEXT NOT NULL,
        known_until  INTEGER,
        digest       TEXT NOT NULL,
        accepted     INTEGER NOT NULL,
        too_old      INTEGER NOT NULL,
        in_future    INTEGER NOT NULL,
        PRIMARY KEY (execution_id, request_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX metric_requests_known ON metric_requests (known_until)
        WHERE known_until IS NOT NULL;
", "
    -- By age, for retention. An execution with `deleted_at` is one for nobody any more: its steps are being taken
    -- away, then it goes itself.
    CREATE INDEX executions_stored ON executions (stored_at);
    CREATE INDEX steps_stored ON steps (stored_at);
    ALTER TABLE executions ADD COLUMN deleted_at INTEGER;
    CREATE INDEX executions_deleted ON executions (deleted_at) WHERE deleted_at IS NOT NULL;
", "
    -- Set where who stored a configuration made it active: doing so again changes nothing.
    ALTER TABLE configurations ADD COLUMN published_active INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX configurations_name ON configurations (app_name, app_id, sub_app_id, sub_app_name);
", "
    -- What every execution counts as in the rollups. A time that nobody knows is the smallest integer.
    CREATE TABLE rollup_counted (
        execution_id TEXT PRIMARY KEY,
        day          INTEGER NOT NULL,
        quarter      INTEGER,
        outcome      TEXT NOT NULL,
        duration_ms  INTEGER,
        app_id       INTEGER,
        app_name     TEXT NOT NULL,
        sub_app_id   INTEGER,
        sub_app_name TEXT,
        user_id      TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX rollup_counted_day ON rollup_counted (day, execution_id);
    -- Failed executions (step -1) and steps, as they are counted.
    CREATE TABLE rollup_failures (
        execution_id TEXT NOT NULL,
        step_id      INTEGER NOT NULL,
        step_name    TEXT,
        failed_at    INTEGER,
        fingerprint  TEXT NOT NULL,
        message      TEXT NOT NULL,
        app_id       INTEGER,
        app_name     TEXT NOT NULL,
        sub_app_id   INTEGER,
        sub_app_name TEXT,
        user_id      TEXT,
        PRIMARY KEY (execution_id, step_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX rollup_failures_seen ON rollup_failures (fingerprint, failed_at);
    CREATE TABLE rollups (
        level        TEXT NOT NULL,
        at           INTEGER NOT NULL,
        group_id     TEXT NOT NULL,
        app_id       INTEGER,
        app_name     TEXT NOT NULL,
        sub_app_id   INTEGER,
        sub_app_name TEXT,
        user_id      TEXT,
        data         BLOB NOT NULL,
        PRIMARY KEY (level, at, group_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollup_failure_counts (
        level        TEXT NOT NULL,
        at           INTEGER NOT NULL,
        id           TEXT NOT NULL,
        outcome      TEXT NOT NULL,
        step_name    TEXT,
        fingerprint  TEXT NOT NULL,
        app_id       INTEGER,
        app_name     TEXT NOT NULL,
        sub_app_id   INTEGER,
        sub_app_name TEXT,
        user_id      TEXT,
        p0           INTEGER NOT NULL,
        p1           INTEGER NOT NULL,
        p2           INTEGER NOT NULL,
        p3           INTEGER NOT NULL,
        PRIMARY KEY (level, at, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX steps_failed ON steps (execution) WHERE status = 'failed';
", "
    -- Texts that search finds, and under the same row their terms, which are made before.
    CREATE TABLE search_texts (
        id           INTEGER PRIMARY KEY,
        execution_id TEXT NOT NULL,
        kind         INTEGER NOT NULL,
        part         TEXT NOT NULL,
        step_id      INTEGER,
        artifact_id  TEXT,
        name         TEXT,
        text         TEXT NOT NULL,
        truncated    INTEGER NOT NULL,
        seen         INTEGER NOT NULL,
        UNIQUE (execution_id, kind, part)
    ) STRICT;
    CREATE INDEX search_texts_seen ON search_texts (seen);
    CREATE VIRTUAL TABLE search_terms
        USING fts5(terms, content='', contentless_delete=1, detail=none, tokenize='ascii');
", "
    -- Steps are counted by status in it.
    CREATE INDEX steps_status ON steps (execution, status);
", "
    -- Whether it was imported: a record only, whatever it says of bytes. NULL: from before; its digest tells.
    ALTER TABLE artifacts ADD COLUMN record_only INTEGER;
    -- Uploads go with their execution.
    ALTER TABLE artifact_uploads ADD COLUMN execution_id TEXT NOT NULL DEFAULT '';
    CREATE INDEX artifact_uploads_execution ON artifact_uploads (execution_id, updated_at);
    CREATE INDEX artifact_uploads_path ON artifact_uploads (storage_path);
", "
    -- Of the latest update that carried one.
    ALTER TABLE executions ADD COLUMN update_sequence INTEGER;
    ALTER TABLE steps ADD COLUMN update_sequence INTEGER;
", "
    -- Steps as clients name them by their own keys.
    ALTER TABLE steps ADD COLUMN parent_step_key TEXT;
    ALTER TABLE steps ADD COLUMN depends_on_keys TEXT;
    ALTER TABLE artifacts ADD COLUMN step_key TEXT;
    ALTER TABLE metrics ADD COLUMN step_key TEXT;
", "
    -- Keys of callers, without their secrets.
    CREATE TABLE keys (
        id               TEXT PRIMARY KEY,
        name             TEXT NOT NULL,
        grants           TEXT NOT NULL,
        secret_sha256    BLOB NOT NULL,
        previous_sha256  BLOB,
        previous_until   INTEGER,
        created_at       INTEGER NOT NULL,
        created_by       TEXT NOT NULL,
        expires_at       INTEGER,
        revoked_at       INTEGER,
        revoked_by       TEXT,
        last_used_at     INTEGER,
        calls_per_second REAL,
        burst            INTEGER
    ) STRICT, WITHOUT ROWID;
", "
    -- The record of who did what: each document as it was hashed, with its hash, and what it is found by.
    CREATE TABLE audit_log (
        id       INTEGER PRIMARY KEY,
        server   TEXT NOT NULL,
        seq      INTEGER NOT NULL,
        at       INTEGER NOT NULL,
        document BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX audit_log_chain ON audit_log (server, seq);
    CREATE INDEX audit_log_at ON audit_log (at);
", "
    -- What a change says of where its record stands.
    ALTER TABLE changes ADD COLUMN standing BLOB;
    -- Who is told of what, and how far they are.
    CREATE TABLE subscriptions (
        id         TEXT PRIMARY KEY,
        revision   INTEGER NOT NULL,
        definition BLOB NOT NULL,
        progress   BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- What they were told of each record: of an execution (step -1), or of a step.
    CREATE TABLE subscription_told (
        subscription TEXT NOT NULL,
        execution_id TEXT NOT NULL,
        step_id      INTEGER NOT NULL,
        at           INTEGER NOT NULL,
        told         BLOB NOT NULL,
        PRIMARY KEY (subscription, execution_id, step_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX subscription_told_at ON subscription_told (at);
    CREATE TABLE deliveries (
        id           TEXT PRIMARY KEY,
        subscription TEXT NOT NULL,
        number       INTEGER NOT NULL,
        execution_id TEXT NOT NULL,
        state        TEXT NOT NULL,
        tries        INTEGER NOT NULL,
        next_at      INTEGER NOT NULL,
        last_try_at  INTEGER,
        last_status  INTEGER,
        last_failure TEXT,
        delivered_at INTEGER,
        created_at   INTEGER NOT NULL,
        at           INTEGER NOT NULL,
        -- As it was made: what changes of it is in the columns.
        delivery     BLOB NOT NULL,
        -- Last, so that what only looks which ones there are need not walk over it.
        data         TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX deliveries_number ON deliveries (subscription, number);
    CREATE INDEX deliveries_state ON deliveries (subscription, state, number);
    CREATE INDEX deliveries_created ON deliveries (created_at);
", "
    -- Of the latest write that a mirror brought: its place in the log of its source, and the revision that it made here.
    ALTER TABLE executions ADD COLUMN mirrored_position INTEGER;
    ALTER TABLE executions ADD COLUMN mirrored_revision INTEGER;
    ALTER TABLE steps ADD COLUMN mirrored_position INTEGER;
    ALTER TABLE steps ADD COLUMN mirrored_revision INTEGER;
    ALTER TABLE artifacts ADD COLUMN mirrored_position INTEGER;
    ALTER TABLE configurations ADD COLUMN mirrored_position INTEGER;
    -- How far mirrors are that bring records.
    CREATE TABLE mirrors (
        name    TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        state   TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
", "
    -- Whether the source of a mirror said last that it is the active one; NULL: that is not known any more.
    ALTER TABLE configurations ADD COLUMN mirrored_active INTEGER;
"];

/// Pages of the write-ahead log after which a commit moves it into the database file.
const CHECKPOINT_PAGES: i64 = 4000;
/// Length to which the write-ahead log is cut when it starts over.
const LOG_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// The one connection that writes, with the newest schema.
pub fn open_writer(
    path: &Path,
    synchronous: Synchronous,
    busy_timeout: Duration,
) -> Result<Connection, OpenError> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(busy_timeout)?;
    keep_plans(&connection)?;
    check_owner(&connection, path)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(
        None,
        "synchronous",
        match synchronous {
            Synchronous::Full => "full",
            Synchronous::Normal => "normal",
        },
    )?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    // No more: a commit walks over the whole table of cached pages when a B-tree was split.
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    migrate(&mut connection, path)?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}

/// Plans statements without the values that are bound to them. Else SQLite plans a statement with a bound LIMIT anew each
/// time it is run, which costs more than to run it.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// A connection that only reads. The schema is there already.
pub fn open_reader(path: &Path, busy_timeout: Duration) -> Result<Connection, OpenError> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(busy_timeout)?;
    keep_plans(&connection)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Refuses a database that another program made, before anything in it is touched.
fn check_owner(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let owner: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if owner == APPLICATION_ID || (owner == 0 && tables == 0) {
        Ok(())
    } else {
        Err(OpenError::NotOurs { path: path.to_owned() })
    }
}

/// The version of the schema that this program makes.
pub fn newest() -> i64 {
    MIGRATIONS.len() as i64
}

/// Refuses what a server would refuse to open, without touching it.
pub fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    check_owner(connection, path)?;
    let (found, known) = (version(connection)?, newest());
    if found > known {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known });
    }
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    check(connection, path)?;
    let found = version(connection)?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found.max(0) as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    fn open(path: &Path) -> Result<Connection, OpenError> {
        open_writer(path, Synchronous::Normal, Duration::from_secs(1))
    }

    #[test]
    fn opening_twice_migrates_once_and_keeps_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stepwell.db");
        let secret = |connection: &Connection| -> Vec<u8> {
            connection
                .query_row("SELECT value FROM meta WHERE name = 'secret'", [], |row| row.get(0))
                .unwrap()
        };
        let first = secret(&open(&path).unwrap());
        let again = open(&path).unwrap();
        assert_eq!(secret(&again), first);
        assert_eq!(first.len(), 32);
        assert_eq!(version(&again).unwrap(), MIGRATIONS.len() as i64);
    }

    #[test]
    fn a_database_of_a_newer_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stepwell.db");
        open(&path).unwrap().pragma_update(None, "user_version", 1000).unwrap();
        assert!(matches!(open(&path), Err(OpenError::TooNew { found: 1000, .. })));
    }

    #[test]
    fn a_database_of_another_program_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stepwell.db");
        let theirs = Connection::open(&path).unwrap();
        theirs.execute_batch("CREATE TABLE notes (text)").unwrap();
        assert!(matches!(open(&path), Err(OpenError::NotOurs { .. })));
        let tables: i64 =
            theirs.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1);
    }

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stepwell.db");
        let writer = open(&path).unwrap();
        let reader = open_reader(&path, Duration::from_secs(1)).unwrap();
        for connection in [&writer, &reader] {
            let mut statement = connection
                .prepare(
                    "SELECT step_id FROM steps INDEXED BY steps_failed \
                     WHERE execution = ?1 AND status = 'failed' ORDER BY step_id LIMIT ?2",
                )
                .unwrap();
            for limit in 1..10 {
                assert!(!statement.exists([1, limit]).unwrap());
                statement.clear_bindings();
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
        }
    }
}

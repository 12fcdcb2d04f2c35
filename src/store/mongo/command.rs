//! Write commands that may be sent twice and are executed once.
//!
//! The driver never retries `run_command`, and it alone carries many guarded updates at once. So these commands
//! carry a `txnNumber` on sessions that nobody else uses, and the very same command is sent again when its
//! answer was lost: the server recognises the statements that it has executed and only repeats their outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::raw::cstr;
use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, rawdoc};
use mongodb::{Client, ClientSession, Database};
use parking_lot::Mutex;

use super::failure::{self, DUPLICATE_KEY};
use crate::clock::Clock;
use crate::store::{Error, Result};

/// Statements in one command at most; the server takes 100,000.
const STATEMENTS: usize = 1000;
/// Size up to which statements are put together. A command may have 16 MiB, and one record nearly as much.
const COMMAND_BYTES: usize = 10 * 1024 * 1024;
const PAUSE_BEFORE_RESEND: Duration = Duration::from_millis(50);

/// What became of one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Applied, durably.
    Done,
    /// A unique index holds the key already.
    Duplicate,
    /// Part of a command in which some statement matched nothing; which one is not known.
    Doubtful,
    /// Refused by the database for a reason of its own.
    Refused(i32),
    /// No answer: applied or not.
    Unknown,
}

/// A session with the number of its last command. The driver never counts on it: its own commands would get
/// numbers below ours and be dropped silently.
struct OwnSession {
    session: ClientSession,
    number: i64,
}

/// Sends write commands.
pub(super) struct Commander {
    client: Client,
    database: Database,
    /// `None` on a standalone mongod, which knows no retryable writes.
    sessions: Option<Mutex<Vec<OwnSession>>>,
    write_concern: RawDocumentBuf,
    patience: Duration,
    call_timeout: Duration,
    clock: Arc<dyn Clock>,
}

/// A session on loan. It goes back even when the command is abandoned, never to the driver's pool.
struct Loan<'a> {
    commander: &'a Commander,
    session: Option<OwnSession>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let (Some(sessions), Some(session)) = (&self.commander.sessions, self.session.take()) {
            sessions.lock().push(session);
        }
    }
}

impl Commander {
    pub(super) fn new(
        client: Client,
        database: Database,
        replica_set: bool,
        write_concern: RawDocumentBuf,
        patience: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Commander {
            client,
            database,
            sessions: replica_set.then(|| Mutex::new(Vec::new())),
            write_concern,
            patience,
            call_timeout: patience * 2,
            clock,
        }
    }

    async fn loan(&self) -> Result<Loan<'_>> {
        let Some(sessions) = &self.sessions else {
            return Ok(Loan { commander: self, session: None });
        };
        let free = sessions.lock().pop();
        let session = match free {
            Some(session) => session,
            None => {
                let session = self.client.start_session().causal_consistency(false);
                let session = session.await.map_err(failure::error)?;
                // The driver may have used this session before; the time in microseconds is beyond its count.
                OwnSession { session, number: self.clock.now().micros }
            }
        };
        Ok(Loan { commander: self, session: Some(session) })
    }

    /// Inserts documents, in no order.
    pub(super) async fn insert(&self, collection: &str, documents: &[RawDocumentBuf]) -> Vec<Fate> {
        self.in_pieces(collection, documents, |collection, piece| {
            let mut command = rawdoc! { "insert": collection, "ordered": false };
            command.append(cstr!("documents"), piece);
            command
        })
        .await
    }

    /// Runs guarded updates, in no order.
    pub(super) async fn update(
        &self,
        collection: &str,
        statements: &[RawDocumentBuf],
    ) -> Vec<Fate> {
        self.in_pieces(collection, statements, |collection, piece| {
            let mut command = rawdoc! { "update": collection, "ordered": false };
            command.append(cstr!("updates"), piece);
            command
        })
        .await
    }

    async fn in_pieces(
        &self,
        collection: &str,
        statements: &[RawDocumentBuf],
        command: impl Fn(&str, RawArrayBuf) -> RawDocumentBuf,
    ) -> Vec<Fate> {
        let mut fates = Vec::with_capacity(statements.len());
        let mut rest = statements;
        while !rest.is_empty() {
            let mut piece = RawArrayBuf::new();
            let mut count = 0;
            let mut bytes = 0;
            for statement in rest.iter().take(STATEMENTS) {
                bytes += statement.as_bytes().len() + 8;
                if count > 0 && bytes > COMMAND_BYTES {
                    break;
                }
                piece.push(statement);
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            match self.send(command(collection, piece)).await {
                Ok(reply) => fates.extend(read_reply(&reply, now.len())),
                Err(Error::Failed(_)) if now.len() > 1 => {
                    // One statement (too large, say) must not take the others with it.
                    for statement in now {
                        let alone: RawArrayBuf = std::iter::once(statement).collect();
                        fates.push(match self.send(command(collection, alone)).await {
                            Ok(reply) => read_reply(&reply, 1)[0],
                            Err(Error::Failed(source)) => refused(collection, &source),
                            Err(_) => Fate::Unknown,
                        });
                    }
                }
                Err(Error::Failed(source)) => fates.push(refused(collection, &source)),
                Err(_) => {
                    fates.extend(std::iter::repeat_n(Fate::Unknown, now.len() + rest.len()));
                    return fates;
                }
            }
        }
        fates
    }

    /// Sends one command until it is answered or patience ends.
    async fn send(&self, mut command: RawDocumentBuf) -> Result<Document> {
        command.append(cstr!("writeConcern"), &self.write_concern);
        let mut loan = self.loan().await?;
        if let Some(own) = &mut loan.session {
            own.number += 1;
            command.append(cstr!("txnNumber"), own.number);
        }
        let started = Instant::now();
        loop {
            let mut call = self.database.run_raw_command(command.clone());
            let answer = match &mut loan.session {
                Some(own) => {
                    call = call.session(&mut own.session);
                    tokio::time::timeout(self.call_timeout, call).await
                }
                None => tokio::time::timeout(self.call_timeout, call).await,
            };
            let failed = match answer {
                Err(_) => return Err(failure::timeout()),
                Ok(Ok(reply)) => match concern_failure(&reply) {
                    None => return Ok(reply),
                    Some(code) => failure::statement(code),
                },
                Ok(Err(error)) => failure::error(error),
            };
            let again = loan.session.is_some()
                && matches!(failed, Error::Unavailable(_))
                && started.elapsed() < self.patience;
            if !again {
                return Err(failed);
            }
            tokio::time::sleep(PAUSE_BEFORE_RESEND).await;
        }
    }

    /// Gives up the sessions. Nothing is sent afterwards.
    pub(super) fn close(&self) {
        if let Some(sessions) = &self.sessions {
            sessions.lock().clear();
        }
    }
}

fn refused(collection: &str, source: &dyn std::fmt::Display) -> Fate {
    tracing::error!(collection, error = %source, "the database refused a write");
    Fate::Refused(0)
}

/// The write was executed, but whether it is durable is not known.
fn concern_failure(reply: &Document) -> Option<i32> {
    let error = reply.get_document("writeConcernError").ok()?;
    let code = error.get_i32("code").unwrap_or(0);
    // Whatever it is (time out, step-down), only asking again tells; a wrong setting fails the same way for ever.
    Some(if failure::is_passing_code(code) || code == 100 { code.max(1) } else { 64 })
}

fn read_reply(reply: &Document, count: usize) -> Vec<Fate> {
    let mut fates = vec![Fate::Done; count];
    let mut failed = 0;
    for error in reply.get_array("writeErrors").into_iter().flatten() {
        let Some(error) = error.as_document() else { continue };
        let index =
            error.get("index").and_then(whole).and_then(|index| usize::try_from(index).ok());
        let code = error.get("code").and_then(whole).and_then(|code| i32::try_from(code).ok());
        if let Some(fate) = index.and_then(|index| fates.get_mut(index)) {
            failed += 1;
            *fate = match code {
                Some(DUPLICATE_KEY) => Fate::Duplicate,
                Some(code) if failure::is_passing_code(code) => Fate::Unknown,
                code => Fate::Refused(code.unwrap_or(0)),
            };
        }
    }
    let applied = reply.get("n").and_then(whole).unwrap_or(0);
    if usize::try_from(applied).unwrap_or(0) < count - failed {
        for fate in fates.iter_mut().filter(|fate| **fate == Fate::Done) {
            *fate = Fate::Doubtful;
        }
    }
    fates
}

fn whole(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(value) => Some(i64::from(*value)),
        Bson::Int64(value) => Some(*value),
        Bson::Double(value) => Some(*value as i64),
        _ => None,
    }
}

//! Transactions, tried again while other writers are in the way.
//!
//! A server that is killed in the middle of one leaves it open, and mongod would keep its locks for a minute. So whoever
//! waits for long ends those that a server has left alone; a server that only stood still has to try again then.

use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf};
use futures::future::BoxFuture;
use mongodb::error::Error as DriverError;
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria};
use mongodb::{ClientSession, Database};

use super::connection::Connection;
use super::failure;
use crate::store::{Error, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Sendings of a commit whose answer was lost.
const COMMITS: usize = 5;

/// A transaction under way.
pub struct Transaction<'a> {
    session: ClientSession,
    database: &'a Database,
}

/// How a transaction's work ends.
pub enum Ended<T> {
    Commit(T),
    /// Nothing is to be changed after all.
    Abort(T),
}

/// Why it fails.
pub enum Failed {
    Driver(DriverError),
    /// The database refused a statement of a command.
    Refused,
    /// What has been judged already.
    Judged(Error),
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Failed::Driver(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Judged(error)
    }
}

impl Failed {
    /// The failure for the callers of a store.
    pub fn error(self, refused: &'static str) -> Error {
        match self {
            Failed::Driver(error) => failure::error(error),
            Failed::Refused => Error::failed(refused),
            Failed::Judged(error) => error,
        }
    }
}

/// For how long a transaction is tried.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub within: Duration,
    /// A transaction that nobody has gone on with for so long is one of a server that died.
    pub abandoned: Duration,
}

impl Transaction<'_> {
    /// For the driver's own actions: `.session(transaction.session())`. What is read has to be of `latest`: a session belongs to
    /// the connections of writes.
    pub fn session(&mut self) -> &mut ClientSession {
        &mut self.session
    }

    /// All that matches, as the transaction sees it.
    pub async fn collect(
        &mut self,
        find: mongodb::action::Find<'_, RawDocumentBuf>,
    ) -> Result<Vec<RawDocumentBuf>, DriverError> {
        let mut found = Vec::new();
        let mut cursor = find.session(&mut self.session).await?;
        while cursor.advance(&mut self.session).await? {
            found.push(cursor.current().to_owned());
        }
        Ok(found)
    }

    /// A command of which no statement may be refused.
    pub async fn command(&mut self, command: Document) -> Result<(), Failed> {
        let reply = self.database.run_command(command).session(&mut self.session).await?;
        match reply.contains_key("writeErrors") {
            true => Err(Failed::Refused),
            false => Ok(()),
        }
    }
}

impl Connection {
    /// Runs `work` in one transaction, which sees one moment and is safe from a failover when it ends, and again from
    /// its start while other writers are in the way. `Ok(Err(_))`: it failed otherwise.
    ///
    /// Once a commit may have taken place it is not run again, only the commit is sent again.
    pub async fn transaction<'a, T, W>(
        &'a self,
        effort: Effort,
        work: W,
    ) -> Result<Result<T, Failed>>
    where
        W: for<'t> Fn(&'t mut Transaction<'a>) -> BoxFuture<'t, Result<Ended<T>, Failed>>,
    {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = tokio::time::timeout(self.patience() * 2, self.attempt(&work));
            let attempt = async { Ok(attempt.await) };
            let error = match self.view().guarded(self.patience(), attempt).await? {
                Ok(Err(Failed::Driver(error))) if failure::is_transient(&error) => error,
                Ok(done) => return Ok(done),
                Err(_) => return Err(failure::timeout()),
            };
            if started.elapsed() >= effort.within {
                return Err(match failure::is_conflict(&error) {
                    true => Error::Contention,
                    false => failure::error(error),
                });
            }
            if started.elapsed() >= effort.abandoned {
                self.end_abandoned(effort.abandoned).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Dropping the session takes back what is not committed.
    async fn attempt<'a, T, W>(&'a self, work: &W) -> Result<T, Failed>
    where
        W: for<'t> Fn(&'t mut Transaction<'a>) -> BoxFuture<'t, Result<Ended<T>, Failed>>,
    {
        let (client, database) = self.writes();
        let mut session = client.start_session().await?;
        session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(self.majority())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .await?;
        let mut transaction = Transaction { session, database };
        let ended = work(&mut transaction).await;
        let mut session = transaction.session;
        match ended {
            Ok(Ended::Commit(done)) => {
                commit(&mut session).await?;
                Ok(done)
            }
            Ok(Ended::Abort(done)) => {
                session.abort_transaction().await?;
                Ok(done)
            }
            Err(failed) => {
                let _ = session.abort_transaction().await;
                Err(failed)
            }
        }
    }
}

async fn commit(session: &mut ClientSession) -> Result<(), DriverError> {
    let mut sent = 1;
    loop {
        match session.commit_transaction().await {
            Err(error) if failure::is_unknown_commit(&error) && sent < COMMITS => {
                sent += 1;
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
            ended => return ended,
        }
    }
}

//! Which database it is: an id of its own that is kept in it, and the replica set that it is of. A server goes on only with
//! the database that it began with, whatever stands at the address meanwhile.

use bson::{doc, rawdoc};

use super::connection::Connection;
use super::failure;
use super::names::META;
use crate::store::{Error, Result};

const ID: &str = "database_id";
/// Readings of what changes just then.
const TIMES: usize = 5;

/// A database, whatever its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub id: String,
    /// The replica set; `None`: a standalone server, or routers.
    pub set: Option<String>,
    /// Whether a database without an id is left without one.
    pub read_only: bool,
}

#[expect(clippy::disallowed_methods, reason = "made here once for each database")]
fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Identity {
    /// That of a database at first sight. The first server to give it an id wins.
    pub async fn of(connection: &Connection) -> Result<Identity> {
        for _ in 0..TIMES {
            if let Some(id) = read(connection).await? {
                // A write that changes nothing waits until what it found is safe from a failover.
                let same = doc! { "_id": ID, "value": &id };
                let safe = connection.own(META);
                let safe = safe.update_one(same, doc! { "$set": { "value": &id } });
                if connection.call(safe).await?.matched_count == 1 {
                    let set = connection.set().map(str::to_owned);
                    return Ok(Identity { id, set, read_only: false });
                }
                continue;
            }
            write(connection, &new_id()).await?;
        }
        Err(failure::away())
    }

    /// The same of a database to which nothing is written: it may have none.
    pub async fn found(connection: &Connection) -> Result<Identity> {
        let id = read(connection).await?.unwrap_or_default();
        Ok(Identity { id, set: connection.set().map(str::to_owned), read_only: true })
    }

    /// What there is instead, in words; `None`: this is it. Writes nothing.
    pub async fn other(&self, connection: &Connection) -> Result<Option<String>> {
        if let Some(set) = &self.set
            && connection.set() != Some(set)
        {
            return Ok(Some(match connection.set() {
                Some(other) => format!("the replica set {other} is at the address, not {set}"),
                None => format!("a server without a replica set is at the address, not {set}"),
            }));
        }
        Ok(match read(connection).await? {
            // One that had none may have been given one.
            Some(id) if id == self.id || self.id.is_empty() => None,
            None if self.id.is_empty() => None,
            Some(id) => Some(format!("its database_id is {id}, not {}", self.id)),
            None => Some(format!("it has no database_id, and {} is expected", self.id)),
        })
    }

    /// Gives a database that is known to be this one its id again, if somebody has dropped what it was in. Whether it
    /// has this id now.
    pub async fn restore(&self, connection: &Connection) -> Result<bool> {
        if read(connection).await?.is_none() && !self.read_only {
            let database_id = &self.id;
            tracing::warn!(database_id, "the id of the database is gone and is written again");
            write(connection, &self.id).await?;
        }
        Ok(read(connection).await?.as_ref() == Some(&self.id))
    }
}

/// The failure of a call while there is another database.
pub fn another(what: &str) -> Error {
    Error::unavailable(format!("another database is at the address: {what}"))
}

async fn read(connection: &Connection) -> Result<Option<String>> {
    // Over the connections of writes, which are there however slow reads are.
    let meta = connection.latest(META);
    let found = connection.call(meta.find_one(doc! { "_id": ID })).await?;
    Ok(found.and_then(|found| found.get_str("value").ok().map(str::to_owned)))
}

async fn write(connection: &Connection, id: &str) -> Result<()> {
    let meta = connection.own(META);
    let insert = meta.insert_one(rawdoc! { "_id": ID, "value": id });
    match connection.try_call(insert).await? {
        Ok(_) => Ok(()),
        // Another server was first.
        Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(()),
        Err(error) => Err(failure::error(error)),
    }
}

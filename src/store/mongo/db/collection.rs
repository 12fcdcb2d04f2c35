//! A collection whose operations say everything that they mean: their collation here, read preference and concerns by
//! the way in which it was gotten. So no default of a collection or of a connection string can change one of them.

use std::borrow::Borrow;
use std::future::IntoFuture;
use std::time::Duration;

use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Document, doc, rawdoc};
use mongodb::action::{
    Aggregate, CountDocuments, Delete, Find, FindOne, FindOneAndUpdate, InsertMany, InsertOne,
    ReplaceOne, Update,
};
use mongodb::error::Result as DriverResult;
use mongodb::options::{
    Collation, CollectionOptions, ReadConcern, ReadPreference, UpdateModifications, WriteConcern,
};
use mongodb::{ClientSession, Cursor, Database, SessionCursor};

use super::failure;
use super::names::Name;
use crate::detached::outside_replies;
use crate::store::Result;

const SIMPLE: &str = "simple";

/// Bytes are compared, whatever the collection would do.
fn simple() -> Collation {
    Collation::builder().locale(SIMPLE).build()
}

/// The same in a command.
pub fn simple_document() -> Document {
    doc! { "locale": SIMPLE }
}

/// The same in a raw command.
pub fn simple_raw() -> RawDocumentBuf {
    rawdoc! { "locale": SIMPLE }
}

/// One of `Connection::latest`, `committed` and `own`.
#[derive(Clone)]
pub struct Collection {
    /// Over the connections of reads, or those of writes.
    finds: mongodb::Collection<RawDocumentBuf>,
    changes: mongodb::Collection<RawDocumentBuf>,
}

impl Collection {
    /// On the primary, whatever the connection string says.
    pub(super) fn open(
        (finds, changes): (&Database, &Database),
        name: Name,
        reads: ReadConcern,
        writes: WriteConcern,
    ) -> Collection {
        let mut options = CollectionOptions::default();
        options.selection_criteria = Some(ReadPreference::Primary.into());
        options.read_concern = Some(reads);
        options.write_concern = Some(writes);
        Collection {
            finds: finds.collection_with_options(&name, options.clone()),
            changes: changes.collection_with_options(&name, options),
        }
    }

    pub fn find(&self, filter: Document) -> Find<'_, RawDocumentBuf> {
        self.finds.find(filter).collation(simple())
    }

    pub fn find_one(&self, filter: Document) -> FindOne<'_, RawDocumentBuf> {
        self.finds.find_one(filter).collation(simple())
    }

    pub fn count_documents(&self, filter: Document) -> CountDocuments<'_> {
        self.finds.count_documents(filter).collation(simple())
    }

    pub fn aggregate(
        &self,
        pipeline: impl IntoIterator<Item = Document>,
    ) -> Aggregate<'_, mongodb::action::ImplicitSession, RawDocumentBuf> {
        self.finds.aggregate(pipeline).collation(simple()).with_type()
    }

    pub fn insert_one(&self, document: impl Borrow<RawDocumentBuf>) -> InsertOne<'_> {
        self.changes.insert_one(document)
    }

    pub fn insert_many(
        &self,
        documents: impl IntoIterator<Item = impl Borrow<RawDocumentBuf>>,
    ) -> InsertMany<'_> {
        self.changes.insert_many(documents)
    }

    pub fn update_one(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Update<'_> {
        self.changes.update_one(filter, update).collation(simple())
    }

    pub fn update_many(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Update<'_> {
        self.changes.update_many(filter, update).collation(simple())
    }

    pub fn find_one_and_update(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> FindOneAndUpdate<'_, RawDocumentBuf> {
        self.changes.find_one_and_update(filter, update).collation(simple())
    }

    pub fn replace_one(
        &self,
        filter: Document,
        document: impl Borrow<RawDocumentBuf>,
    ) -> ReplaceOne<'_> {
        self.changes.replace_one(filter, document).collation(simple())
    }

    pub fn delete_one(&self, filter: Document) -> Delete<'_> {
        self.changes.delete_one(filter).collation(simple())
    }

    pub fn delete_many(&self, filter: Document) -> Delete<'_> {
        self.changes.delete_many(filter).collation(simple())
    }
}

/// A call of the driver that finds documents.
pub trait Query: IntoFuture<Output = DriverResult<Cursor<RawDocumentBuf>>> {}

impl<Q> Query for Q where Q: IntoFuture<Output = DriverResult<Cursor<RawDocumentBuf>>> {}

/// What a query finds, document by document.
pub struct Rows {
    cursor: AnyCursor,
    /// How long the database may take over the next ones.
    patience: Duration,
}

enum AnyCursor {
    Plain(Cursor<RawDocumentBuf>),
    /// All as of one moment.
    Snapshot(SessionCursor<RawDocumentBuf>, Box<ClientSession>),
}

impl Rows {
    /// Asks, and waits at most `patience` for the first answer and for each that follows.
    pub(super) async fn open(query: impl Query, patience: Duration) -> Result<Rows> {
        match outside_replies(tokio::time::timeout(patience, query.into_future())).await {
            Ok(Ok(cursor)) => Ok(Rows { cursor: AnyCursor::Plain(cursor), patience }),
            Ok(Err(error)) => Err(failure::error(error)),
            Err(_) => Err(failure::timeout()),
        }
    }

    pub(super) fn snapshot(
        cursor: SessionCursor<RawDocumentBuf>,
        session: ClientSession,
        patience: Duration,
    ) -> Rows {
        Rows { cursor: AnyCursor::Snapshot(cursor, Box::new(session)), patience }
    }

    pub async fn next(&mut self) -> Result<Option<&RawDocument>> {
        let moved = async {
            match &mut self.cursor {
                AnyCursor::Plain(cursor) => cursor.advance().await,
                AnyCursor::Snapshot(cursor, session) => cursor.advance(session).await,
            }
        };
        let more = match outside_replies(tokio::time::timeout(self.patience, moved)).await {
            Ok(more) => more.map_err(failure::error)?,
            Err(_) => return Err(failure::timeout()),
        };
        Ok(more.then(|| match &self.cursor {
            AnyCursor::Plain(cursor) => cursor.current(),
            AnyCursor::Snapshot(cursor, _) => cursor.current(),
        }))
    }
}

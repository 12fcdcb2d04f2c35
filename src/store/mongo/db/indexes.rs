//! Indexes: each part of the store brings the list of those that it needs, and they are made here when they are missing.
//! One that another program made with the same keys is used as it is.

use std::collections::HashMap;

use bson::{Bson, Document, doc};

use super::collection::simple_document;
use super::connection::Connection;
use super::failure;
use super::values::integer_of;
use crate::store::Result;

const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_KEY_SPECS_CONFLICT: i32 = 86;

/// An index that has to be there.
#[derive(Debug, Clone)]
pub struct Index {
    collection: &'static str,
    keys: Document,
    unique: bool,
    partial: Option<Document>,
    /// Whether an index that only begins with these keys serves as well.
    prefix_serves: bool,
    /// Whether a unique index over all documents serves a unique one over some: it forbids more, but the
    /// program that made it wants just that.
    stricter_serves: bool,
    /// Documents end so many seconds after the date in the key.
    ends_after: Option<i64>,
}

impl Index {
    pub fn plain(collection: &'static str, keys: Document) -> Index {
        Index {
            collection,
            keys,
            unique: false,
            partial: None,
            prefix_serves: true,
            stricter_serves: false,
            ends_after: None,
        }
    }

    pub fn unique(collection: &'static str, keys: Document) -> Index {
        Index { unique: true, prefix_serves: false, ..Index::plain(collection, keys) }
    }

    /// Over the documents alone that match.
    pub fn partial(collection: &'static str, keys: Document, filter: Document) -> Index {
        Index::plain(collection, keys).only(filter)
    }

    /// The index that ends documents.
    pub fn ending(collection: &'static str, keys: Document, ends_after: Option<i64>) -> Index {
        let prefix_serves = ends_after.is_none();
        Index { ends_after, prefix_serves, ..Index::plain(collection, keys) }
    }

    pub fn only(self, filter: Document) -> Index {
        Index { partial: Some(filter), prefix_serves: false, ..self }
    }

    /// A unique one over all documents does as well.
    pub fn or_stricter(self) -> Index {
        Index { stricter_serves: true, ..self }
    }

    /// Whether `existing`, as listIndexes describes it, does the job.
    fn is_served_by(&self, existing: &Document) -> bool {
        let Ok(keys) = existing.get_document("key") else { return false };
        let same_keys = keys.len() == self.keys.len();
        if !begins_with(keys, &self.keys) || (!same_keys && !self.prefix_serves) {
            return false;
        }
        if !is_plain(existing) {
            return false;
        }
        if self.unique && !existing.get_bool("unique").unwrap_or(false) {
            return false;
        }
        let sparse = existing.get_bool("sparse").unwrap_or(false);
        match (&self.partial, existing.get_document("partialFilterExpression").ok()) {
            (None, None) => !sparse,
            (None, Some(_)) => false,
            // One over all documents serves too, unless it is unique and so forbids more.
            (Some(_), None) => !sparse && (!self.unique || self.stricter_serves),
            (Some(wanted), Some(existing)) => wanted == existing,
        }
    }

    /// As createIndexes takes it.
    fn specification(&self, name: &str) -> Document {
        let mut index =
            doc! { "key": self.keys.clone(), "name": name, "collation": simple_document() };
        if self.unique {
            index.insert("unique", true);
        }
        if let Some(filter) = &self.partial {
            index.insert("partialFilterExpression", filter.clone());
        }
        if let Some(seconds) = self.ends_after {
            index.insert("expireAfterSeconds", seconds);
        }
        index
    }

    /// Makes it under its usual name, or under one of ours where an index of other keys has that. `None`: it cannot
    /// be made, which is told in the log and lived without.
    async fn make(&self, connection: &Connection) -> Result<Option<String>> {
        let usual = name_of(&self.keys);
        let ours = format!("{usual}_stepwell");
        let mut refused = None;
        for name in [usual, ours] {
            let indexes = [self.specification(&name)];
            let create = doc! { "createIndexes": self.collection, "indexes": indexes };
            // Of many documents it takes its time.
            match connection.slow_command(create).await {
                Ok(_) => return Ok(Some(name)),
                Err(error) if failure::is_passing(&error) => return Err(failure::error(error)),
                Err(error) => {
                    let taken = failure::code(&error) == Some(INDEX_KEY_SPECS_CONFLICT);
                    refused = Some(failure::words(&error));
                    if !taken {
                        break;
                    }
                }
            }
        }
        tracing::error!(
            collection = self.collection,
            keys = %self.keys,
            unique = self.unique,
            error = refused,
            "an index cannot be made: drop or repair what is in its way, then restart; until then \
             it is done without"
        );
        Ok(None)
    }
}

/// What became of the indexes: the name of each that is there.
#[derive(Debug, Default)]
pub struct Indexes(Vec<(Index, Option<String>)>);

impl Indexes {
    /// The name of the index over all documents with these keys, or one that begins with them.
    pub fn named(&self, collection: &str, keys: &Document) -> Option<&str> {
        let mut over_all = self.of(collection).filter(|(index, _)| index.partial.is_none());
        over_all.find(|(index, _)| index.keys == *keys)?.1.as_deref()
    }

    /// Keys and names of those over all documents of a collection that tell no records apart.
    pub fn walked(&self, collection: &str) -> impl Iterator<Item = (&Document, &str)> {
        self.of(collection)
            .filter(|(index, _)| index.partial.is_none() && !index.unique)
            .filter_map(|(index, name)| Some((&index.keys, name.as_deref()?)))
    }

    /// Whether the database itself refuses a second record of the same id.
    pub fn keep_unique(&self, collection: &str) -> bool {
        self.of(collection).all(|(index, name)| !index.unique || name.is_some())
    }

    fn of(&self, collection: &str) -> impl Iterator<Item = &(Index, Option<String>)> {
        self.0.iter().filter(move |(index, _)| index.collection == collection)
    }
}

pub fn begins_with(keys: &Document, wanted: &Document) -> bool {
    keys.len() >= wanted.len()
        && keys.iter().zip(wanted).all(|((name, way), (wanted_name, wanted_way))| {
            name == wanted_name
                && integer_of(way).is_some()
                && integer_of(way) == integer_of(wanted_way)
        })
}

/// Whether nothing but a condition on the records keeps an index from serving everybody.
pub fn is_plain(index: &Document) -> bool {
    !index.get_bool("hidden").unwrap_or(false) && !index.contains_key("collation")
}

/// The indexes of a collection, as listIndexes describes them.
pub async fn existing(connection: &Connection, collection: &str) -> Result<Vec<Document>> {
    let list = doc! { "listIndexes": collection, "cursor": { "batchSize": 1000 } };
    match connection.try_command(list).await? {
        Ok(reply) => {
            let cursor = reply.get_document("cursor").ok();
            let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok());
            let batch = batch.into_iter().flatten().filter_map(Bson::as_document);
            Ok(batch.cloned().collect())
        }
        Err(error) if failure::code(&error) == Some(NAMESPACE_NOT_FOUND) => Ok(Vec::new()),
        Err(error) => Err(failure::error(error)),
    }
}

fn name_of(keys: &Document) -> String {
    let parts = keys.iter().map(|(key, way)| format!("{key}_{}", integer_of(way).unwrap_or(1)));
    parts.collect::<Vec<_>>().join("_")
}

/// Makes the indexes that are missing.
pub async fn make(connection: &Connection, wanted: Vec<Index>) -> Result<Indexes> {
    let mut there: HashMap<&str, Vec<Document>> = HashMap::new();
    for Index { collection, .. } in &wanted {
        if !there.contains_key(collection) {
            there.insert(collection, existing(connection, collection).await?);
        }
    }
    let mut indexes = Indexes::default();
    for wanted in wanted {
        let serving = there[wanted.collection].iter().find(|there| wanted.is_served_by(there));
        let name = match serving {
            Some(serving) => serving.get_str("name").ok().map(str::to_owned),
            None => wanted.make(connection).await?,
        };
        indexes.0.push((wanted, name));
    }
    Ok(indexes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_serves_if_it_does_the_whole_job() {
        let plain = Index::plain("c", doc! { "a": 1 });
        let unique = Index::unique("c", doc! { "a": 1 });
        let some = Index::unique("c", doc! { "a": 1 }).only(doc! { "a": { "$gt": "" } });
        let there = |more: Document| {
            let mut index = doc! { "name": "x", "key": { "a": 1.0 } };
            index.extend(more);
            index
        };
        assert!(plain.is_served_by(&there(doc! {})));
        assert!(plain.is_served_by(&there(doc! { "key": { "a": 1, "b": -1 } })));
        assert!(!plain.is_served_by(&there(doc! { "key": { "a": -1 } })));
        assert!(!plain.is_served_by(&there(doc! { "collation": { "locale": "en" } })));
        assert!(!plain.is_served_by(&there(doc! { "hidden": true })));
        assert!(!plain.is_served_by(&there(doc! { "sparse": true })));
        assert!(!unique.is_served_by(&there(doc! {})));
        assert!(unique.is_served_by(&there(doc! { "unique": true })));
        assert!(!unique.is_served_by(&there(doc! { "unique": true, "key": { "a": 1, "b": 1 } })));
        let over_all = there(doc! { "unique": true });
        assert!(!some.is_served_by(&over_all));
        assert!(some.clone().or_stricter().is_served_by(&over_all));
        let partial = doc! { "unique": true, "partialFilterExpression": { "a": { "$gt": "" } } };
        assert!(some.is_served_by(&there(partial.clone())));
        assert!(!unique.is_served_by(&there(partial)));
    }

    #[test]
    fn an_index_says_its_collation() {
        let ending = Index::ending("c", doc! { "at": 1, "b": -1 }, Some(7));
        let expected = doc! {
            "key": { "at": 1, "b": -1 },
            "name": name_of(&ending.keys),
            "collation": { "locale": "simple" },
            "expireAfterSeconds": 7_i64,
        };
        assert_eq!(ending.specification("at_1_b_-1"), expected);
    }
}

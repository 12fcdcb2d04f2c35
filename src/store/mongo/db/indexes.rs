//! Indexes: each part of the store brings the list of those that it needs; `making` makes those that are missing. One that
//! another program made with the same keys is used as it is.

use bson::{Bson, Document, doc};

use super::collection::simple_document;
use super::connection::Connection;
use super::failure;
use super::names::Name;
use super::values::{integer_of, number_of};
use crate::store::Result;

const NAMESPACE_NOT_FOUND: i32 = 26;

/// An index that has to be there.
#[derive(Debug, Clone)]
pub struct Index {
    pub(super) collection: Name,
    pub(super) keys: Document,
    pub(super) unique: bool,
    pub(super) partial: Option<Document>,
    /// Whether an index that only begins with these keys serves as well.
    prefix_serves: bool,
    /// Whether a unique index over all documents serves a unique one over some: it forbids more, but the
    /// program that made it wants just that.
    stricter_serves: bool,
    /// Documents end so many seconds after the date in the key.
    ends_after: Option<i64>,
    /// Whether other programs make the very same one, under its usual name.
    common: bool,
    /// A number that grows with every change of a document. Where old documents with equal keys forbid the index, it is
    /// made over those alone whose number is greater than that of any of them.
    pub(super) above: Option<&'static str>,
}

impl Index {
    pub fn plain(collection: Name, keys: Document) -> Index {
        Index {
            collection,
            keys,
            unique: false,
            partial: None,
            prefix_serves: true,
            stricter_serves: false,
            ends_after: None,
            common: false,
            above: None,
        }
    }

    pub fn unique(collection: Name, keys: Document) -> Index {
        Index { unique: true, prefix_serves: false, ..Index::plain(collection, keys) }
    }

    /// Over the documents alone that match.
    pub fn partial(collection: Name, keys: Document, filter: Document) -> Index {
        Index::plain(collection, keys).only(filter)
    }

    /// The index that ends documents.
    pub fn ending(collection: Name, keys: Document, ends_after: Option<i64>) -> Index {
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

    /// Other programs make the very same one, and must find it under its usual name.
    pub fn common(self) -> Index {
        Index { common: true, ..self }
    }

    /// Where there are doubles already, over the documents alone whose number in this field is greater than theirs.
    pub fn or_above(self, field: &'static str) -> Index {
        Index { above: Some(field), ..self }
    }

    pub fn collection(&self) -> Name {
        self.collection
    }

    pub fn is_unique(&self) -> bool {
        self.unique
    }

    /// The usual name of an index with these keys, which a driver gives it that is told none.
    pub(super) fn usual_name(&self) -> String {
        let parts =
            self.keys.iter().map(|(key, way)| format!("{key}_{}", integer_of(way).unwrap_or(1)));
        parts.collect::<Vec<_>>().join("_")
    }

    /// The names to try, the first one first. `collated`: the collection compares text in a way of its own, so that what
    /// other programs make under the usual name is another index.
    pub(super) fn names(&self, collated: bool) -> Vec<String> {
        let usual = self.usual_name();
        let ours = format!("{usual}_stepwell");
        let further = (2..5).map(|number| format!("{ours}_{number}"));
        let mut names = Vec::new();
        if self.may_be_usual(collated) {
            names.push(usual);
        }
        names.push(ours.clone());
        names.extend(further);
        names
    }

    pub(super) fn may_be_usual(&self, collated: bool) -> bool {
        self.common && self.partial.is_none() && !collated
    }

    /// Whether `existing` has a name that other programs need for another index: it was made before indexes like this
    /// one had a name of their own.
    pub(super) fn is_in_the_way(&self, existing: &Document, collated: bool) -> bool {
        let partial = existing.contains_key("partialFilterExpression");
        existing.get_str("name").is_ok_and(|name| name == self.usual_name())
            && existing.get_document("key").is_ok_and(|keys| begins_with(keys, &self.keys))
            && is_plain(existing)
            && ((self.partial.is_some() && partial) || (collated && !self.may_be_usual(collated)))
    }

    /// The same over the documents above a number; its plain look-ups need another one.
    pub(super) fn above(&self, bound: i64) -> Option<Index> {
        let mut filter = self.partial.clone().unwrap_or_default();
        filter.insert(self.above?, doc! { "$gt": bound });
        Some(self.clone().only(filter))
    }

    /// The same for look-ups alone.
    pub(super) fn for_look_ups(&self) -> Index {
        let plain = Index::plain(self.collection, self.keys.clone());
        Index { partial: self.partial.clone(), prefix_serves: self.partial.is_none(), ..plain }
    }

    /// The number above which `existing` keeps documents apart, if that is all it does.
    pub(super) fn bound_of(&self, existing: &Document) -> Option<i64> {
        let filter = existing.get_document("partialFilterExpression").ok()?;
        let bound = filter.get_document(self.above?).ok()?.get("$gt").and_then(integer_of)?;
        self.above(bound)?.is_served_by(existing, false).then_some(bound)
    }

    /// Whether `existing`, as listIndexes describes it, does the job.
    pub(super) fn is_served_by(&self, existing: &Document, collated: bool) -> bool {
        let Ok(keys) = existing.get_document("key") else { return false };
        let same_keys = keys.len() == self.keys.len();
        if !begins_with(keys, &self.keys) || (!same_keys && !self.prefix_serves) {
            return false;
        }
        if !is_plain(existing) || self.is_in_the_way(existing, collated) {
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
            (Some(wanted), Some(existing)) => same_filter(wanted, existing),
        }
    }

    /// As createIndexes takes it.
    pub(super) fn specification(&self, name: &str) -> Document {
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
}

/// Numbers come back in the type in which they were stored, by whatever program.
fn same_filter(one: &Document, other: &Document) -> bool {
    let same = |one: &Bson, other: &Bson| match (one, other) {
        (Bson::Document(one), Bson::Document(other)) => same_filter(one, other),
        _ => one == other || number_of(one).is_some_and(|one| number_of(other) == Some(one)),
    };
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((name, one), (other_name, other))| name == other_name && same(one, other))
}

/// How an index is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// As it was wanted, under this name.
    Whole(String),
    /// Old documents forbid it. Those above this number are kept apart.
    Above {
        bound: i64,
        look_ups: Option<String>,
    },
    Missing,
}

/// Whether a second record of the same id is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unique {
    /// By the database itself.
    Whole,
    /// By the database if its number is greater than this: whoever makes a new record looks for an older one first.
    Above(i64),
    /// By nobody.
    Missing,
}

/// What became of the indexes.
#[derive(Debug, Clone, Default)]
pub struct Indexes(pub(super) Vec<(Index, Served)>);

impl Indexes {
    /// The name of the index over all documents with these keys, or one that begins with them.
    pub fn named(&self, collection: Name, keys: &Document) -> Option<&str> {
        let mut over_all = self.of(collection).filter(|(index, _)| index.partial.is_none());
        match &over_all.find(|(index, _)| index.keys == *keys)?.1 {
            Served::Whole(name) => Some(name),
            Served::Above { look_ups, .. } => look_ups.as_deref(),
            Served::Missing => None,
        }
    }

    /// Keys and names of those over all documents of a collection that tell no records apart.
    pub fn walked(&self, collection: Name) -> impl Iterator<Item = (&Document, &str)> {
        let walked = self.of(collection);
        walked.filter(|(index, _)| index.partial.is_none() && !index.unique).filter_map(
            |(index, served)| match served {
                Served::Whole(name) => Some((&index.keys, name.as_str())),
                Served::Above { .. } | Served::Missing => None,
            },
        )
    }

    /// Whether a second record of the same id is refused, and by whom.
    pub fn unique(&self, collection: Name) -> Unique {
        let unique = self.of(collection).filter(|(index, _)| index.unique);
        let kept = unique.map(|(_, served)| match served {
            Served::Whole(_) => Unique::Whole,
            Served::Above { bound, .. } => Unique::Above(*bound),
            Served::Missing => Unique::Missing,
        });
        kept.max().unwrap_or(Unique::Whole)
    }

    /// Collections and keys of those that are not there.
    pub fn missing(&self) -> impl Iterator<Item = (Name, &Document)> {
        let missing = self.0.iter().filter(|(_, served)| *served == Served::Missing);
        missing.map(|(index, _)| (index.collection, &index.keys))
    }

    /// Collections and keys of those that were there before and are gone, or do less.
    pub fn lost_since(&self, before: &Indexes) -> Vec<(Name, Document)> {
        let pairs = self.0.iter().zip(&before.0);
        let rank = |served: &Served| match served {
            Served::Whole(_) => 2,
            Served::Above { look_ups: Some(_), .. } => 1,
            Served::Above { .. } | Served::Missing => 0,
        };
        let lost = pairs.filter(|((_, now), (_, before))| rank(now) < rank(before));
        lost.map(|((index, _), _)| (index.collection, index.keys.clone())).collect()
    }

    /// Whether doubles keep one of them from being what it should be.
    pub fn has_doubles(&self) -> bool {
        self.0.iter().any(|(_, served)| matches!(served, Served::Above { .. }))
    }

    /// Whether nothing else is there, and under other names.
    pub fn same_as(&self, other: &Indexes) -> bool {
        let served = |indexes: &Indexes| {
            indexes.0.iter().map(|(_, served)| served.clone()).collect::<Vec<_>>()
        };
        served(self) == served(other)
    }

    fn of(&self, collection: Name) -> impl Iterator<Item = &(Index, Served)> {
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
pub async fn existing(connection: &Connection, collection: Name) -> Result<Vec<Document>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::mongo::db::names::EXECUTIONS;

    #[test]
    fn an_index_serves_if_it_does_the_whole_job() {
        let plain = Index::plain(EXECUTIONS, doc! { "a": 1 });
        let unique = Index::unique(EXECUTIONS, doc! { "a": 1 });
        let some = Index::unique(EXECUTIONS, doc! { "a": 1 }).only(doc! { "a": { "$gt": "" } });
        let there = |more: Document| {
            let mut index = doc! { "name": "x", "key": { "a": 1.0 } };
            index.extend(more);
            index
        };
        assert!(plain.is_served_by(&there(doc! {}), false));
        assert!(plain.is_served_by(&there(doc! { "key": { "a": 1, "b": -1 } }), false));
        assert!(!plain.is_served_by(&there(doc! { "key": { "a": -1 } }), false));
        assert!(!plain.is_served_by(&there(doc! { "collation": { "locale": "en" } }), false));
        assert!(!plain.is_served_by(&there(doc! { "hidden": true }), false));
        assert!(!plain.is_served_by(&there(doc! { "sparse": true }), false));
        assert!(!unique.is_served_by(&there(doc! {}), false));
        assert!(unique.is_served_by(&there(doc! { "unique": true }), false));
        assert!(
            !unique.is_served_by(&there(doc! { "unique": true, "key": { "a": 1, "b": 1 } }), false)
        );
        let over_all = there(doc! { "unique": true });
        assert!(!some.is_served_by(&over_all, false));
        assert!(some.clone().or_stricter().is_served_by(&over_all, false));
        let partial = doc! { "unique": true, "partialFilterExpression": { "a": { "$gt": "" } } };
        assert!(some.is_served_by(&there(partial.clone()), false));
        assert!(!unique.is_served_by(&there(partial), false));
    }

    #[test]
    fn an_index_says_its_collation() {
        let ending = Index::ending(EXECUTIONS, doc! { "at": 1, "b": -1 }, Some(7));
        let expected = doc! {
            "key": { "at": 1, "b": -1 },
            "name": ending.usual_name(),
            "collation": { "locale": "simple" },
            "expireAfterSeconds": 7_i64,
        };
        assert_eq!(ending.specification("at_1_b_-1"), expected);
    }

    #[test]
    fn only_what_other_programs_make_too_has_the_usual_name() {
        let common = Index::unique(EXECUTIONS, doc! { "a": 1 }).common();
        assert_eq!(common.names(false)[..2], ["a_1", "a_1_stepwell"]);
        assert_eq!(common.names(true)[0], "a_1_stepwell");
        assert_eq!(
            Index::plain(EXECUTIONS, doc! { "a": 1, "b": -1 }).names(false)[0],
            "a_1_b_-1_stepwell"
        );
        let some = common.only(doc! { "b": { "$gt": "" } });
        assert_eq!(some.names(false)[0], "a_1_stepwell");
        let before = doc! { "name": "a_1", "key": { "a": 1 }, "unique": true,
        "partialFilterExpression": { "b": { "$gt": "" } } };
        assert!(some.is_in_the_way(&before, false) && !some.is_served_by(&before, false));
        let foreign = doc! { "name": "a_1", "key": { "a": 1 }, "unique": true };
        assert!(!some.is_in_the_way(&foreign, false));
    }

    #[test]
    fn above_the_doubles_an_index_keeps_documents_apart() {
        let index = Index::unique(EXECUTIONS, doc! { "a": 1 }).or_above("revision");
        let above = index.above(7).expect("it may be made above");
        let mut there = above.specification("x");
        there.remove("collation");
        assert_eq!(index.bound_of(&there), Some(7));
        assert!(!index.is_served_by(&there, false));
        there.insert("unique", false);
        assert_eq!(index.bound_of(&there), None);
        assert_eq!(index.bound_of(&doc! { "name": "x", "key": { "a": 1 }, "unique": true }), None);
    }
}

//! Makes the indexes that are missing. Where old documents with equal keys forbid a unique one, records are kept apart from
//! now on, by an index over those alone that are newer than any of them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bson::{Bson, Document, doc};

use super::connection::Connection;
use super::failure::{self, DUPLICATE_KEY};
use super::indexes::{Index, Indexes, Served, existing};
use super::names::Name;
use super::values::{field, number, text};
use crate::store::Result;

const INDEX_OPTIONS_CONFLICT: i32 = 85;
const INDEX_KEY_SPECS_CONFLICT: i32 = 86;
/// Doubles that are named.
const NAMED: i64 = 20;
/// How long the database may take to find doubles, which are found by looking at every key.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// What is greater leaves no room for changes.
const GREATEST: f64 = 9e18;

/// The indexes of the collections as they are, and which collections compare text in a way of their own.
struct There {
    indexes: HashMap<Name, Vec<Document>>,
    collated: HashSet<String>,
}

impl There {
    async fn look(connection: &Connection, wanted: &[Index]) -> Result<There> {
        let names: HashSet<Name> = wanted.iter().map(|index| index.collection).collect();
        let mut indexes = HashMap::new();
        for name in &names {
            indexes.insert(*name, existing(connection, *name).await?);
        }
        let names: Vec<Name> = names.into_iter().collect();
        let list = doc! { "listCollections": 1, "filter": { "name": { "$in": names } },
        "cursor": { "batchSize": 1000 } };
        let reply = connection.command(list).await?;
        let cursor = reply.get_document("cursor").ok();
        let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok());
        let found = batch.into_iter().flatten().filter_map(Bson::as_document);
        let is_collated = |found: &&Document| {
            found.get_document("options").is_ok_and(|options| options.contains_key("collation"))
        };
        let name = |found: &Document| found.get_str("name").ok().map(str::to_owned);
        let collated = found.filter(is_collated).filter_map(name).collect();
        Ok(There { indexes, collated })
    }

    fn of(&self, index: &Index) -> (&[Document], bool) {
        let indexes = self.indexes.get(&index.collection).map_or(&[][..], Vec::as_slice);
        (indexes, self.collated.contains(index.collection.as_str()))
    }

    /// What serves an index, as it is.
    fn serving(&self, index: &Index) -> Served {
        let (there, collated) = self.of(index);
        let name = |index: &Document| index.get_str("name").unwrap_or_default().to_owned();
        if let Some(serving) = there.iter().find(|there| index.is_served_by(there, collated)) {
            return Served::Whole(name(serving));
        }
        match there.iter().filter_map(|there| index.bound_of(there)).min() {
            Some(bound) => {
                let look_ups = index.for_look_ups();
                let look_ups = there.iter().find(|there| look_ups.is_served_by(there, collated));
                Served::Above { bound, look_ups: look_ups.map(name) }
            }
            None => Served::Missing,
        }
    }
}

/// What is there of these indexes. Makes nothing.
pub async fn look(connection: &Connection, wanted: Vec<Index>) -> Result<Indexes> {
    let there = There::look(connection, &wanted).await?;
    let served = wanted.into_iter().map(|index| {
        let served = there.serving(&index);
        (index, served)
    });
    Ok(Indexes(served.collect()))
}

/// Makes the indexes that are missing, and those again that doubles forbade.
pub async fn make(connection: &Connection, wanted: Vec<Index>) -> Result<Indexes> {
    let there = There::look(connection, &wanted).await?;
    let mut indexes = Indexes::default();
    for index in wanted {
        let (existing, collated) = there.of(&index);
        let served = match there.serving(&index) {
            Served::Whole(name) => Served::Whole(name),
            before => match create(connection, &index, index.names(collated)).await? {
                Created::Made(name) => Served::Whole(name),
                Created::Doubles if before != Served::Missing => before,
                Created::Doubles => make_above(connection, &index, collated).await?,
                Created::Refused => Served::Missing,
            },
        };
        if let Served::Whole(name) = &served {
            drop_superseded(connection, &index, existing, name, collated).await;
        }
        indexes.0.push((index, served));
    }
    Ok(indexes)
}

enum Created {
    Made(String),
    /// Documents with equal keys are in the way.
    Doubles,
    /// It cannot be made; the log says why.
    Refused,
}

/// Makes an index under the first of these names that is free.
async fn create(connection: &Connection, index: &Index, names: Vec<String>) -> Result<Created> {
    let collection = index.collection;
    let usual = index.usual_name();
    let mut refused = String::new();
    let mut names = names.into_iter().peekable();
    let mut dropped = false;
    while let Some(name) = names.peek() {
        let specification = [index.specification(name)];
        let create = doc! { "createIndexes": collection, "indexes": specification };
        // Of many documents it takes its time.
        let error = match connection.slow_command(create).await {
            Ok(_) => return Ok(Created::Made(name.clone())),
            Err(error) => error,
        };
        if failure::is_passing(&error) {
            return Err(failure::error(error));
        }
        refused = failure::words(&error);
        match failure::code(&error) {
            Some(DUPLICATE_KEY) => {
                tell_doubles(connection, index).await;
                return Ok(Created::Doubles);
            }
            // The very same under the name that it had before: there may be one of them only.
            Some(INDEX_OPTIONS_CONFLICT) if !dropped => {
                dropped = true;
                let there = existing(connection, collection).await?;
                let same = there.iter().find(|there| {
                    there.get_str("name").is_ok_and(|name| name == usual)
                        && index.is_in_the_way(there, true)
                });
                if same.is_none() || !drop_index(connection, collection, &usual).await {
                    break;
                }
            }
            Some(INDEX_KEY_SPECS_CONFLICT) => drop(names.next()),
            _ => break,
        }
    }
    tracing::error!(
        %collection,
        keys = %index.keys,
        unique = index.unique,
        error = refused,
        "an index cannot be made: remove what is in its way; it is tried again from time to time"
    );
    Ok(Created::Refused)
}

async fn make_above(connection: &Connection, index: &Index, collated: bool) -> Result<Served> {
    let names = |index: &Index, what: &str| vec![format!("{}_stepwell_{what}", index.usual_name())];
    let Some(number) = index.above else { return Ok(Served::Missing) };
    let look_ups = index.for_look_ups();
    let there = existing(connection, index.collection).await?;
    let look_ups = match there.iter().find(|there| look_ups.is_served_by(there, collated)) {
        Some(there) => there.get_str("name").ok().map(str::to_owned),
        None => match create(connection, &look_ups, names(index, "look_ups")).await? {
            Created::Made(name) => Some(name),
            Created::Doubles | Created::Refused => None,
        },
    };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX / 2);
    // Numbers are of the time of their change, so nearly always no document is above this moment.
    for greatest in [false, true] {
        let bound = match greatest {
            false => Some(now),
            true => greatest_number(connection, index.collection, number).await?,
        };
        let Some((bound, above)) = bound.and_then(|bound| Some((bound, index.above(bound)?)))
        else {
            break;
        };
        let name = format!("above_{bound}");
        if let Created::Made(_) = create(connection, &above, names(index, &name)).await? {
            tracing::warn!(
                collection = %index.collection,
                keys = %index.keys,
                bound,
                "older doubles forbid a unique index: one over newer records keeps these apart"
            );
            return Ok(Served::Above { bound, look_ups });
        }
    }
    Ok(Served::Missing)
}

/// The greatest number that a document has in this field. `None`: there is no greater one.
async fn greatest_number(
    connection: &Connection,
    collection: Name,
    number_field: &str,
) -> Result<Option<i64>> {
    let all = connection.own(collection);
    let projection = doc! { "_id": 0, number_field: 1 };
    let numbers = doc! { number_field: { "$gt": 0, "$not": { "$type": "array" } } };
    let find = all.find(numbers).sort(doc! { number_field: -1 }).limit(1).projection(projection);
    let found = connection.collect_within(find, FOUND_WITHIN).await?;
    let greatest = found.first().and_then(|raw| field(raw, number_field).and_then(number));
    let greatest = greatest.unwrap_or(0.0).ceil();
    Ok((greatest < GREATEST).then_some(greatest as i64))
}

/// Ids that several documents of a collection have, some of them. Looks at every document.
pub async fn doubles(connection: &Connection, index: &Index) -> Result<Vec<String>> {
    let id: Document =
        index.keys.keys().map(|key| (key.clone(), Bson::from(format!("${key}")))).collect();
    let pipeline = [
        doc! { "$match": index.partial.clone().unwrap_or_default() },
        doc! { "$group": { "_id": id, "number": { "$sum": 1 } } },
        doc! { "$match": { "number": { "$gt": 1 } } },
        doc! { "$limit": NAMED },
    ];
    let all = connection.own(index.collection);
    let find = all.aggregate(pipeline).allow_disk_use(true).max_time(FOUND_WITHIN);
    let found = connection.collect_within(find, FOUND_WITHIN + connection.patience()).await?;
    let name = |raw: &bson::RawDocumentBuf| {
        let id = raw.get_document("_id").ok()?;
        let words = index.keys.keys().map(|key| match field(id, key) {
            Some(value) => text(value).unwrap_or_else(|| format!("{value:?}")),
            None => "none".to_owned(),
        });
        Some(words.collect::<Vec<_>>().join("/"))
    };
    Ok(found.iter().filter_map(name).collect())
}

async fn tell_doubles(connection: &Connection, index: &Index) {
    let ids = match doubles(connection, index).await {
        Ok(ids) => ids.join(", "),
        Err(_) => "the database did not say which in time".to_owned(),
    };
    tracing::error!(
        collection = %index.collection,
        keys = %index.keys,
        ids,
        "documents have the same id, so no unique index can be made over all of them; remove or rename all but one \
         of each"
    );
}

/// Drops what was made of an index before it was there whole, and under the name that other programs need.
async fn drop_superseded(
    connection: &Connection,
    index: &Index,
    there: &[Document],
    serving: &str,
    collated: bool,
) {
    for old in there {
        let name = old.get_str("name").unwrap_or_default();
        let superseded = index.bound_of(old).is_some() || index.is_in_the_way(old, collated);
        if superseded && name != serving {
            drop_index(connection, index.collection, name).await;
        }
    }
}

async fn drop_index(connection: &Connection, collection: Name, name: &str) -> bool {
    let dropped = connection.try_command(doc! { "dropIndexes": collection, "index": name }).await;
    match dropped {
        Ok(Ok(_)) => {
            tracing::info!(%collection, index = name, "dropped an index that another one replaces");
            true
        }
        Ok(Err(error)) => {
            let error = failure::words(&error);
            tracing::warn!(%collection, index = name, error, "cannot drop an index");
            false
        }
        Err(_) => false,
    }
}

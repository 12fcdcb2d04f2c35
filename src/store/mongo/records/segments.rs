//! Where a list of executions goes on after a record: the rest of its range in the index, in the order of the index, which
//! goes across types. Comparisons know one type only, and other programs store text, numbers and more where a time of
//! start belongs; so the rest is taken type by type.

use bson::{Bson, DateTime, Document, RawDocument, doc};

use super::walks::window;
use crate::domain::query::{ExecutionKey, ExecutionOrder, ExecutionQuery};
use crate::store::mongo::db::types::{TEXT, beyond, following, rank};
use crate::store::mongo::db::values::{any, field, millis};
use crate::store::{Error, Result};

/// A part of a list: conditions on time and id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segment {
    pub filter: Document,
    /// Whether all in it have the same time.
    pub tied: bool,
    /// Records at its beginning that have been passed.
    pub passed: u32,
}

/// What stands where in a document that has something else than a time, or no usable id.
const START: &str = "s";
const ID: &str = "i";

/// The key of a document in a list, and whether its id is usable. `None`: it has no place of its own.
pub fn key_of(raw: &RawDocument) -> Option<(ExecutionKey, bool)> {
    let value = |name| field(raw, name).and_then(any).unwrap_or(Bson::Null);
    let started_at = field(raw, "started_at").and_then(millis);
    let execution_id = raw.get_str("execution_id").ok();
    let mut odd = Document::new();
    if started_at.is_none() {
        match value("started_at") {
            Bson::Array(_) => return None,
            Bson::Null | Bson::Undefined => {}
            other => drop(odd.insert(START, other)),
        }
    }
    if execution_id.is_none() {
        match value("execution_id") {
            Bson::Array(_) => return None,
            other => drop(odd.insert(ID, other)),
        }
    }
    let key = ExecutionKey {
        started_at,
        execution_id: execution_id.unwrap_or_default().to_owned(),
        odd: if odd.is_empty() { None } else { Some(odd.to_vec().ok()?) },
        passed: 0,
    };
    Some((key, execution_id.is_some()))
}

/// What an execution has in the place of a time of start.
pub fn odd_start(raw: &RawDocument) -> Option<Vec<u8>> {
    key_of(raw)?.0.odd
}

/// The parts of the list after `query.after`, in order. `several`: records may have the same key.
pub fn segments(query: &ExecutionQuery, several: bool) -> Result<Vec<Segment>> {
    let filter = &query.filter;
    let window = window(filter);
    let descending = query.order == ExecutionOrder::StartedAtDesc;
    let plain = |filter| Segment { filter, ..Segment::default() };
    let Some(after) = &query.after else {
        return Ok(vec![plain(match window.is_empty() {
            true => Document::new(),
            false => doc! { "started_at": window },
        })]);
    };
    let odd = match &after.odd {
        Some(bytes) => Document::from_reader(bytes.as_slice()).map_err(|_| Error::BadCursor)?,
        None => Document::new(),
    };
    let start = match (after.started_at, odd.get(START)) {
        (Some(at), _) => Bson::DateTime(DateTime::from_millis(at)),
        (None, Some(odd)) => odd.clone(),
        (None, None) => Bson::Null,
    };
    let same_start = match &start {
        Bson::Null => Bson::Null,
        start => doc! { "$eq": start.clone() }.into(),
    };
    let tied = |id: Bson, passed| Segment {
        filter: doc! { "started_at": same_start.clone(), "execution_id": id },
        tied: true,
        passed,
    };
    let mut segments = Vec::new();
    let within = |at: DateTime| {
        let at = at.timestamp_millis();
        filter.started_at_from.is_none_or(|from| at >= from)
            && filter.started_at_until.is_none_or(|until| at < until)
    };
    let tie_matches = match &start {
        Bson::DateTime(at) => within(*at),
        _ => window.is_empty(),
    };
    let way = if descending { "$lt" } else { "$gt" };
    if tie_matches {
        match odd.get(ID) {
            None => {
                if several && after.passed > 0 {
                    segments.push(tied(Bson::from(&after.execution_id), after.passed));
                }
                segments.push(tied(doc! { way: &after.execution_id }.into(), 0));
            }
            // Ids that are none come before all that are, or after them.
            Some(id) if (rank(id) > TEXT) == descending => {
                segments.push(tied(doc! { "$type": "string" }.into(), 0));
            }
            Some(_) => {}
        }
    }
    if !window.is_empty() {
        // Of dates alone.
        let mut range = window;
        if let Bson::DateTime(at) = start {
            let bound = range.get_datetime(way).ok().copied();
            let tighter = match bound {
                Some(bound) if descending => bound.min(at),
                Some(bound) => bound.max(at),
                None => at,
            };
            range.insert(way, tighter);
            segments.push(plain(doc! { "started_at": range }));
        } else if (rank(&start) > rank(&Bson::DateTime(DateTime::MIN))) == descending {
            segments.push(plain(doc! { "started_at": range }));
        }
        return Ok(segments);
    }
    segments.extend(beyond("started_at", &start, descending).into_iter().map(plain));
    segments.extend(following("started_at", &start, descending).into_iter().map(plain));
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::query::ExecutionFilter;

    fn after(start: Bson, order: ExecutionOrder) -> Vec<Document> {
        let raw =
            bson::RawDocumentBuf::try_from(&doc! { "execution_id": "e", "started_at": start });
        let (key, usable) = key_of(&raw.expect("a document")).expect("it has a place");
        assert!(usable);
        let query = ExecutionQuery {
            filter: ExecutionFilter::default(),
            order,
            after: Some(key),
            limit: 1,
            examine: 1,
        };
        let segments = segments(&query, false).expect("a key of ours");
        segments.into_iter().map(|segment| segment.filter).collect()
    }

    #[test]
    fn a_list_goes_on_through_all_types() {
        let numbers = after(7.into(), ExecutionOrder::StartedAtDesc);
        assert_eq!(numbers[0], doc! { "started_at": { "$eq": 7 }, "execution_id": { "$lt": "e" } });
        assert_eq!(numbers[1], doc! { "started_at": { "$lt": 7 } });
        assert!(numbers[2].get_f64("started_at").is_ok_and(f64::is_nan));
        assert_eq!(
            numbers[3..],
            [doc! { "started_at": null }, doc! { "started_at": { "$type": "minKey" } },]
        );
        let dates = after(DateTime::from_millis(5).into(), ExecutionOrder::StartedAtAsc);
        assert_eq!(dates.len(), 3);
        let above =
            ["timestamp", "regex", "dbPointer", "javascript", "javascriptWithScope", "maxKey"];
        assert_eq!(dates[2], doc! { "started_at": { "$type": above.to_vec() } });
        let missing = after(Bson::Null, ExecutionOrder::StartedAtDesc);
        assert_eq!(
            missing,
            [
                doc! { "started_at": null, "execution_id": { "$lt": "e" } },
                doc! { "started_at": { "$type": "minKey" } },
            ]
        );
    }
}

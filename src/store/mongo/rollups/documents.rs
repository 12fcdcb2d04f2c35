//! Rollups as documents: their collections, their ids and their fields.

use bson::raw::RawDocument;
use bson::{Bson, Document, doc};

use crate::domain::access::{self, AppPattern, Name, Number};
use crate::domain::rollup::{CountsAs, Failure, Group, Level, Outcome, QUARTERS_OF_DAY};
use crate::store::mongo::db::values::{field, integer, millis, small, text};
use crate::store::rollups::Selection;

/// The document of who leads in the rollups, which says how far they are, too.
pub const LEAD: &str = "follow_rollups";

pub fn day_of(quarter: Option<i64>) -> Option<i64> {
    quarter.map(|quarter| quarter.div_euclid(QUARTERS_OF_DAY))
}

pub fn group_fields(group: &Group) -> Document {
    let mut fields = doc! {
        "app_id": group.app_id,
        "app_name": &group.app_name,
        "sub_app_id": group.sub_app_id,
        "sub_app_name": &group.sub_app_name,
    };
    if let Some(user_id) = &group.user_id {
        fields.insert("user_id", user_id);
    }
    fields
}

pub fn group_of(raw: &RawDocument) -> Group {
    Group {
        app_id: field(raw, "app_id").and_then(small),
        app_name: field(raw, "app_name").and_then(text).unwrap_or_default(),
        sub_app_id: field(raw, "sub_app_id").and_then(small),
        sub_app_name: field(raw, "sub_app_name").and_then(text),
        user_id: field(raw, "user_id").and_then(text),
    }
}

pub fn outcome_of(raw: &RawDocument) -> Outcome {
    raw.get_str("outcome").ok().and_then(Outcome::parse).unwrap_or(Outcome::Unknown)
}

/// What an execution counts as, and how many failures of it are written down.
pub fn counts_as(raw: &RawDocument) -> Option<(String, CountsAs, i64)> {
    let counts_as = CountsAs {
        group: group_of(raw),
        quarter: field(raw, "quarter").and_then(integer),
        outcome: outcome_of(raw),
        duration_ms: field(raw, "duration_ms").and_then(integer),
    };
    Some((
        field(raw, "_id").and_then(text)?,
        counts_as,
        field(raw, "failures").and_then(integer).unwrap_or(0),
    ))
}

pub fn failure_of(raw: &RawDocument) -> Option<(String, Failure)> {
    let id = raw.get_document("_id").ok()?;
    let step_id = field(id, "s").and_then(small);
    let failure = Failure {
        step_id: step_id.filter(|id| *id >= 0),
        step_name: field(raw, "step_name").and_then(text),
        failed_at: field(raw, "failed_at").and_then(millis),
        fingerprint: field(raw, "fingerprint").and_then(text)?,
        message: field(raw, "message").and_then(text).unwrap_or_default(),
    };
    Some((id.get_str("e").ok()?.to_owned(), failure))
}

/// The failures of an execution: `_id` is its id and the step's, -1 for its own.
pub fn failures_of(execution_id: &str) -> Document {
    let from = doc! { "e": execution_id, "s": Bson::MinKey };
    let until = doc! { "e": execution_id, "s": Bson::MaxKey };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

pub fn selected(selection: &Selection) -> Document {
    let mut filter = Document::new();
    let mut one_of = |field: &str, wanted: Vec<Bson>| match wanted.len() {
        0 => {}
        1 => {
            filter.extend(wanted.into_iter().map(|only| (field.to_owned(), only)));
        }
        _ => {
            filter.insert(field, doc! { "$in": wanted });
        }
    };
    one_of("app_id", selection.app_ids.iter().copied().map(Bson::from).collect());
    one_of("app_name", selection.app_names.iter().cloned().map(Bson::from).collect());
    one_of("sub_app_id", selection.sub_app_ids.iter().copied().map(Bson::from).collect());
    one_of("user_id", selection.user_ids.iter().cloned().map(Bson::from).collect());
    if let Some(patterns) = selection.scope.patterns() {
        let any: Vec<Document> = patterns.iter().map(in_pattern).collect();
        match any.is_empty() {
            // Nobody's.
            true => drop(filter.insert("$nor", vec![Document::new()])),
            false => drop(filter.insert("$or", any)),
        }
    }
    filter
}

/// The condition of one pattern of a scope.
fn in_pattern(pattern: &AppPattern) -> Document {
    let mut all = Document::new();
    match &pattern.name {
        Name::Exact(name) => drop(all.insert("app_name", name)),
        Name::Beginning(beginning) => {
            let literal: String = beginning
                .chars()
                .map(|c| match c.is_ascii_alphanumeric() || !c.is_ascii() {
                    true => c.to_string(),
                    false => format!("\\x{{{:x}}}", u32::from(c)),
                })
                .collect();
            all.insert("app_name", doc! { "$regex": format!("^{literal}") });
        }
    }
    match pattern.number {
        Number::Any => {}
        Number::None => drop(all.insert("app_id", Bson::Null)),
        Number::Exact(number) => drop(all.insert("app_id", number)),
    }
    match &pattern.part {
        access::Part::Any => {}
        access::Part::Number(number) => drop(all.insert("sub_app_id", *number)),
        access::Part::Name(name) => drop(all.insert("sub_app_name", name)),
    }
    all
}

/// The rollups of a stretch of time.
pub fn between(level: Level, from: i64, until: i64) -> Document {
    let word = level.word();
    doc! { "_id": { "$gte": { "l": word, "t": from }, "$lt": { "l": word, "t": until } } }
}

/// Those of no time.
pub fn undated(level: Level) -> Document {
    let word = level.word();
    let (from, until) =
        (doc! { "l": word, "t": null }, doc! { "l": word, "t": null, "g": Bson::MaxKey });
    doc! { "_id": { "$gte": from, "$lt": until } }
}

pub fn time_of(raw: &RawDocument) -> Option<i64> {
    field(raw.get_document("_id").ok()?, "t").and_then(integer)
}

pub fn seen_filter(fingerprint: &str, selection: &Selection) -> Document {
    let mut filter = doc! { "fingerprint": fingerprint };
    filter.extend(selected(selection));
    filter
}

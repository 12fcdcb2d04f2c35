//! The rules of a sharded cluster: to which shards a command leads, what may not be, and what a router refuses.

use std::collections::BTreeSet;

use mongodb::bson::{Bson, Document};
use stepwell::store::mongo::{Spread, spread_of};

use super::listed::Scattered;
use super::wire::Command;

/// Commands that routers take, of those that servers and the driver send.
const TAKEN: [&str; 34] = [
    "abortTransaction",
    "aggregate",
    "authenticate",
    "balancerStatus",
    "buildInfo",
    "collMod",
    "commitTransaction",
    "connectionStatus",
    "count",
    "create",
    "createIndexes",
    "currentOp",
    "dbStats",
    "delete",
    "distinct",
    "dropIndexes",
    "endSessions",
    "find",
    "findAndModify",
    "getMore",
    "hello",
    "insert",
    "isMaster",
    "isdbgrid",
    "ismaster",
    "killCursors",
    "killSessions",
    "listCollections",
    "listIndexes",
    "ping",
    "saslContinue",
    "saslStart",
    "serverStatus",
    "update",
];

const ILLEGAL_OPERATION: i32 = 20;
const COMMAND_NOT_FOUND: i32 = 59;
const SHARD_KEY_NOT_FOUND: i32 = 61;
const CANNOT_CREATE_INDEX: i32 = 67;

/// Writes of a single document that may be told by `_id` alone. There are none.
const BY_ID_ALONE: &[(&str, &str)] = &[];

/// What there is to say of a command.
#[derive(Debug, Default)]
pub struct Judgement {
    pub breaches: Vec<String>,
    pub scattered: Vec<Scattered>,
    /// The code and words with which a router refuses it.
    pub refused: Option<(i32, String)>,
}

impl Judgement {
    pub fn of_one(breach: String) -> Judgement {
        Judgement { breaches: vec![breach], ..Judgement::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.breaches.is_empty() && self.scattered.is_empty()
    }

    fn refuse(&mut self, code: i32, breach: String) {
        self.refused = Some((code, breach.clone()));
        self.breaches.push(breach);
    }
}

/// To which shards a filter leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    One,
    /// Those of the values that it names.
    Some,
    All,
}

pub fn judge(command: &Command, by_router: bool) -> Judgement {
    let mut judgement = Judgement::default();
    let (name, collection) = (command.name.as_str(), command.collection.as_str());
    let told = |what: &str| format!("{name} of {}: {what}", of(command));
    if command.database == "local" {
        judgement.refuse(ILLEGAL_OPERATION, told("only stepwell doctor reads local"));
        return judgement;
    }
    if !TAKEN.contains(&name) {
        judgement.refuse(COMMAND_NOT_FOUND, told("no router is known to take it"));
        return judgement;
    }
    let of_others = ["admin", "config"].contains(&command.database.as_str());
    if of_others || collection.is_empty() || name == "getMore" || name == "killCursors" {
        return judgement;
    }
    let Some(spread) = spread_of(collection) else {
        judgement.breaches.push(told("it is not in the list of collections"));
        return judgement;
    };
    if by_router && let Some(what) = weak(command) {
        judgement.breaches.push(told(&what));
    }
    let key = key_of(collection, spread);
    if key.is_empty() {
        return judgement;
    }
    if name == "createIndexes" {
        let indexes = command.body.get_array("indexes").into_iter().flatten();
        for index in indexes.filter_map(Bson::as_document) {
            if index.get_bool("unique").unwrap_or(false) && !may_be_unique(index, &key) {
                let name = index.get_str("name").unwrap_or_default();
                let what = format!("the unique index {name} does not begin with the shard key");
                judgement.refuse(CANNOT_CREATE_INDEX, told(&what));
            }
        }
        return judgement;
    }
    for (filter, is_single) in filters(command) {
        if is_single {
            let is_by_id = BY_ID_ALONE.contains(&(name, collection)) && is_equal(filter.get("_id"));
            if !carries(&filter, &key) && !is_by_id {
                let fields = Vec::from_iter(fields_of(&filter)).join(", ");
                let what = format!("a single write without the shard key, by ({fields})");
                judgement.refuse(SHARD_KEY_NOT_FOUND, told(&what));
            }
        } else if target(&filter, &key) == Target::All {
            let what = format!("{name} {collection}");
            judgement.scattered.push(Scattered { what, fields: scattering(&filter, &key) });
        }
    }
    judgement
}

/// The fields of the shard key of a collection. In the buckets of a time series the first has another name.
fn key_of(collection: &str, spread: Spread) -> Vec<&'static str> {
    let series = collection.strip_prefix("system.buckets.").and_then(spread_of);
    match series {
        Some(series) if series != Spread::Whole => vec!["meta"],
        _ => spread.key().iter().map(|(field, _)| *field).collect(),
    }
}

fn of(command: &Command) -> &str {
    match command.collection.as_str() {
        "" => &command.database,
        collection => collection,
    }
}

/// Whether an index of these keys may be unique where a collection is sharded by this one.
fn may_be_unique(index: &Document, key: &[&str]) -> bool {
    let Ok(keys) = index.get_document("key") else { return false };
    let names: Vec<&str> = keys.keys().map(String::as_str).collect();
    names.first() == Some(&"_id") || names.starts_with(key)
}

/// A write that is answered before it is safe: a later one says nothing of it where each shard has a log of its own.
fn weak(command: &Command) -> Option<String> {
    let is_write = ["insert", "update", "delete", "findAndModify"].contains(&command.name.as_str());
    // Those wait when they are committed.
    let in_transaction = command.body.get_bool("autocommit").is_ok();
    if !is_write || in_transaction {
        return None;
    }
    let concern = command.body.get_document("writeConcern").ok();
    match concern.and_then(|concern| concern.get("w")) {
        Some(Bson::String(_)) => None,
        Some(Bson::Int32(nodes)) if *nodes > 1 => None,
        other => Some(format!("a write that waits for {other:?} alone")),
    }
}

/// The filters of a command, each with whether one document at most is written by it.
fn filters(command: &Command) -> Vec<(Document, bool)> {
    let of_body = |names: &[&str]| {
        let found = names.iter().find_map(|name| command.body.get_document(*name).ok());
        found.cloned().unwrap_or_default()
    };
    let of_statements = |is_single: fn(&Document) -> bool| {
        let one = |statement: &Document| {
            let filter = statement.get_document("q").cloned().unwrap_or_default();
            (filter, is_single(statement))
        };
        command.statements.iter().map(one).collect()
    };
    match command.name.as_str() {
        "update" => of_statements(|one| {
            !one.get_bool("multi").unwrap_or(false) || one.get_bool("upsert").unwrap_or(false)
        }),
        "delete" => of_statements(|one| {
            let all = [Bson::Int32(0), Bson::Int64(0), Bson::Double(0.0)];
            !one.get("limit").is_some_and(|limit| all.contains(limit))
        }),
        "findAndModify" => vec![(of_body(&["query"]), true)],
        "find" | "count" | "distinct" => vec![(of_body(&["filter", "query"]), false)],
        "aggregate" => {
            let stages = command.body.get_array("pipeline").into_iter().flatten();
            let stages = stages.filter_map(Bson::as_document);
            let matches = stages.map_while(|stage| stage.get_document("$match").ok());
            let matches: Vec<Bson> = matches.cloned().map(Bson::from).collect();
            let mut all = Document::new();
            if !matches.is_empty() {
                all.insert("$and", matches);
            }
            vec![(all, false)]
        }
        _ => Vec::new(),
    }
}

/// The fields that a filter names, each by the first part of its path.
pub fn fields_of(filter: &Document) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for (name, condition) in filter {
        match (name.as_str(), condition) {
            ("$and" | "$or" | "$nor", Bson::Array(all)) => {
                fields.extend(all.iter().filter_map(Bson::as_document).flat_map(fields_of));
            }
            (name, _) => {
                fields.insert(name.split('.').next().unwrap_or(name).to_owned());
            }
        }
    }
    fields
}

/// The fields of what leads to all shards: of alternatives only those that do so by themselves.
fn scattering(filter: &Document, key: &[&str]) -> BTreeSet<String> {
    let mut rest = filter.clone();
    if let Ok(any) = rest.get_array_mut("$or") {
        any.retain(|one| one.as_document().is_none_or(|one| target(one, key) == Target::All));
    }
    fields_of(&rest)
}

/// Whether a condition is a value and no operator.
fn is_equal(condition: Option<&Bson>) -> bool {
    match condition {
        None | Some(Bson::RegularExpression(_) | Bson::Array(_)) => false,
        Some(Bson::Document(operators)) => {
            let is_operator = operators.keys().next().is_some_and(|key| key.starts_with('$'));
            !is_operator || operators.contains_key("$eq")
        }
        Some(_) => true,
    }
}

/// Whether a filter has every field of the key by equality.
pub fn carries(filter: &Document, key: &[&str]) -> bool {
    let all = filter.get_array("$and").into_iter().flatten();
    let all: Vec<&Document> = all.filter_map(Bson::as_document).chain([filter]).collect();
    key.iter().all(|field| all.iter().any(|one| is_equal(one.get(*field))))
}

pub fn target(filter: &Document, key: &[&str]) -> Target {
    let of_one = |field: &str| match filter.get(field) {
        condition if is_equal(condition) => Target::One,
        Some(Bson::Document(operators)) => match operators.get_array("$in") {
            Ok(values)
                if values.iter().any(|value| matches!(value, Bson::RegularExpression(_))) =>
            {
                Target::All
            }
            Ok(values) if values.len() <= 1 => Target::One,
            Ok(_) => Target::Some,
            Err(_) => Target::All,
        },
        _ => Target::All,
    };
    // A range of shards is found by the first field alone.
    let by_key = match key {
        [only] => of_one(only),
        [first, rest @ ..] => match (of_one(first), rest.iter().map(|field| of_one(field)).max()) {
            (Target::One, Some(Target::One)) => Target::One,
            (Target::All, _) => Target::All,
            _ => Target::Some,
        },
        [] => Target::One,
    };
    let listed = |name: &str| -> Vec<Target> {
        let listed = filter.get_array(name).into_iter().flatten();
        listed.filter_map(Bson::as_document).map(|one| target(one, key)).collect()
    };
    let by_all = listed("$and").into_iter().min().unwrap_or(Target::All);
    let by_any = match listed("$or")[..] {
        [] => Target::All,
        [only] => only,
        ref any => any.iter().copied().max().unwrap_or(Target::All).max(Target::Some),
    };
    by_key.min(by_all).min(by_any)
}

//! The indexes of executions and steps, and what the store makes of those that are there.

use bson::{Bson, Document, doc};

use crate::store::mongo::db::values::epoch;
use crate::store::mongo::db::{Index, Indexes, Unique};
use crate::store::mongo::names::{EXECUTIONS, STEPS};

/// The index of steps by execution and status: steps are counted in it, and rollups find failed ones.
fn steps_by_status() -> Document {
    doc! { "execution_id": 1, "status": 1 }
}

/// An index that lists of executions walk along: newest first where these fields are equal.
pub fn executions_by(fields: &[&str]) -> Document {
    let mut index: Document =
        fields.iter().map(|field| (field.to_string(), Bson::Int32(1))).collect();
    index.extend(doc! { "started_at": -1, "execution_id": -1 });
    index
}

/// The one of an app, whose keys tell too what ran long.
pub fn executions_of_app() -> Document {
    let mut index = executions_by(&["app_id"]);
    index.insert("duration_ms", 1);
    index
}

/// The one of an app by its name, whose keys tell too what ran long, and the part of the app.
pub fn executions_of_name() -> Document {
    let mut index = executions_by(&["app_name"]);
    index.extend(doc! { "duration_ms": 1, "sub_app_id": 1 });
    index
}

/// It grows with every change by a server.
const REVISION: &str = "revision";

fn execution_key() -> Document {
    doc! { "execution_id": 1 }
}

fn step_key() -> Document {
    doc! { "execution_id": 1, "step_id": 1 }
}

pub fn wanted() -> Vec<Index> {
    let plain = Index::plain;
    vec![
        Index::unique(EXECUTIONS, execution_key()).common().or_above(REVISION),
        Index::unique(STEPS, step_key()).common().or_above(REVISION),
        // Plain equality on both uses this filter; `$type` or `$exists` would not do.
        Index::unique(STEPS, doc! { "execution_id": 1, "step_key": 1 })
            .only(doc! { "step_key": { "$gt": "" }, "execution_id": { "$gt": "" } })
            .or_above(REVISION),
        plain(EXECUTIONS, executions_by(&["app_id", "sub_app_id"])),
        plain(EXECUTIONS, executions_by(&["app_id", "status"])),
        plain(EXECUTIONS, executions_of_app()),
        plain(EXECUTIONS, executions_by(&["app_name", "status"])),
        plain(EXECUTIONS, executions_of_name()),
        plain(EXECUTIONS, executions_by(&["user_id", "status"])),
        plain(EXECUTIONS, executions_by(&["user_id"])),
        plain(EXECUTIONS, executions_by(&["status"])),
        plain(EXECUTIONS, executions_by(&[])),
        Index::partial(
            EXECUTIONS,
            doc! { "heartbeat_timeout_ms": 1 },
            doc! { "heartbeat_timeout_ms": { "$gt": 0 }, "status": "running" },
        ),
        Index::partial(
            EXECUTIONS,
            doc! { "deleted_at": 1 },
            doc! { "deleted_at": { "$gt": epoch() } },
        ),
        plain(STEPS, doc! { "status": 1 }).common(),
        plain(STEPS, doc! { "step_name": 1 }).common(),
        plain(STEPS, doc! { "started_at": -1 }).common(),
        plain(STEPS, steps_by_status()),
    ]
}

/// What became of the indexes.
#[derive(Debug)]
pub struct RecordIndexes {
    /// Who refuses a second execution of the same id, and a second step.
    pub executions: Unique,
    pub steps: Unique,
    /// Indexes are gone that were there before, and are being made again.
    pub mending: bool,
    /// The names of the indexes that tell records apart.
    pub execution_key: Option<String>,
    pub step_key: Option<String>,
    /// The name of the index in which steps are counted.
    pub steps_by_status: Option<String>,
    /// Indexes that lists of executions walk along: their leading keys and their names.
    lists: Vec<(Document, String)>,
}

impl RecordIndexes {
    pub fn of(indexes: &Indexes) -> RecordIndexes {
        let named = |collection, keys| indexes.named(collection, &keys).map(str::to_owned);
        let lists = indexes.walked(EXECUTIONS);
        RecordIndexes {
            executions: indexes.unique(EXECUTIONS),
            steps: indexes.unique(STEPS),
            mending: false,
            execution_key: named(EXECUTIONS, execution_key()),
            step_key: named(STEPS, step_key()),
            steps_by_status: named(STEPS, steps_by_status()),
            lists: lists.map(|(keys, name)| (keys.clone(), name.to_owned())).collect(),
        }
    }

    /// The same, of what is left until the others have been made again.
    pub fn left(indexes: &Indexes) -> RecordIndexes {
        RecordIndexes { mending: true, ..RecordIndexes::of(indexes) }
    }

    /// Whether the database itself refuses a second record of the same id. Without that a write has to look first, and
    /// several records may have one id.
    pub fn keep_unique(&self) -> bool {
        self.executions == Unique::Whole && self.steps == Unique::Whole
    }

    /// The greatest revision that a record may have which others are not kept apart from.
    pub fn bound(&self) -> i64 {
        let bound = |unique| match unique {
            Unique::Above(bound) => bound,
            Unique::Whole | Unique::Missing => 0,
        };
        bound(self.executions).max(bound(self.steps))
    }

    /// The name of an index that begins with these keys.
    pub fn named(&self, keys: &Document) -> Option<&str> {
        self.lists.iter().find(|(leading, _)| leading == keys).map(|(_, name)| name.as_str())
    }
}

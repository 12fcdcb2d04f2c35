//! What the parts of the store that have to do with executions and steps share: the way to the database, what this
//! server has lately read, and what it knows of deletes.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use bson::oid::ObjectId;
use bson::{Bson, RawDocumentBuf};
use parking_lot::Mutex;

use super::cache::Cache;
use super::indexes::RecordIndexes;
use super::marks::Marks;
use crate::domain::limits::Limits;
use crate::store::mongo::db::values::{field, small};
use crate::store::mongo::db::{Connection, Db, Indexes, failure};
use crate::store::{RecordKey, Result};

/// Executions and steps.
pub struct Records {
    pub(super) db: Arc<Db>,
    pub(super) limits: Limits,
    pub(super) cache: Cache,
    /// The next mark of an update.
    update_marks: AtomicI64,
    pub(super) deletes: Marks,
    /// New steps of executions that were trusted to be there.
    pub(super) unchecked: Mutex<Vec<(RecordKey, ObjectId)>>,
    indexes: OnceLock<RecordIndexes>,
}

/// Where a server begins to count the marks of its updates: anywhere, so that no two servers use the same.
#[expect(clippy::disallowed_methods, reason = "made once for each server")]
fn first_mark() -> i64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 1) as i64
}

impl Records {
    pub fn new(db: Arc<Db>, limits: Limits) -> Records {
        Records {
            db,
            limits,
            cache: Cache::new(),
            update_marks: AtomicI64::new(first_mark()),
            deletes: Marks::default(),
            unchecked: Mutex::default(),
            indexes: OnceLock::new(),
        }
    }

    /// Before anything else is asked.
    pub fn prepare(&self, indexes: &Indexes) {
        let _ = self.indexes.set(RecordIndexes::of(indexes));
    }

    pub(super) async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await
    }

    pub(super) fn indexes(&self) -> Result<&RecordIndexes> {
        self.indexes.get().ok_or_else(failure::away)
    }

    /// The index in which steps are counted by their status, and failed ones are found.
    pub fn steps_by_status(&self) -> Option<&str> {
        self.indexes.get()?.steps_by_status.as_deref()
    }

    /// A number that no other update carries.
    pub(super) fn update_mark(&self) -> i64 {
        self.update_marks.fetch_add(1, Ordering::Relaxed)
    }

    /// Forgets an execution, which is changed by somebody else than `apply`.
    pub fn forget_execution(&self, execution_id: &str) {
        self.cache.forget(&RecordKey::execution(execution_id));
    }

    /// Forgets steps that are gone, by their documents.
    pub fn forget_steps(&self, steps: &[RawDocumentBuf]) {
        for raw in steps {
            let step_id = field(raw, "step_id").and_then(small);
            if let (Ok(id), Some(step_id)) = (raw.get_str("execution_id"), step_id) {
                self.cache.forget_record(&RecordKey::step(id, step_id));
            }
        }
    }

    /// How long the marks of these documents of executions still have to stand.
    pub fn grace<'a>(&self, documents: impl Iterator<Item = &'a Bson>) -> std::time::Duration {
        self.deletes.grace(documents)
    }

    /// The documents of these executions are gone.
    pub fn bury<'a>(&self, documents: impl Iterator<Item = &'a Bson>) {
        self.deletes.bury(documents);
    }
}

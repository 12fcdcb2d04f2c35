//! What the parts of the store that have to do with executions and steps share: the way to the database, what this
//! server has lately read, and what it knows of deletes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bson::oid::ObjectId;
use bson::{Bson, RawDocumentBuf};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::cache::Cache;
use super::indexes::RecordIndexes;
use super::marks::Marks;
use crate::domain::limits::Limits;
use crate::store::mongo::audit::Ledger;
use crate::store::mongo::db::values::{field, small};
use crate::store::mongo::db::{Connection, Db, Indexes, failure};
use crate::store::{RecordKey, Result};

/// Executions and steps.
pub struct Records {
    pub(super) db: Arc<Db>,
    pub(super) limits: Limits,
    pub(super) ledger: Arc<Ledger>,
    pub(super) cache: Cache,
    /// The next mark of an update.
    update_marks: AtomicI64,
    pub(super) deletes: Marks,
    /// New steps of executions that were trusted to be there.
    pub(super) unchecked: Mutex<Vec<(RecordKey, ObjectId)>>,
    /// None until the database is set up.
    indexes: watch::Sender<Option<Arc<RecordIndexes>>>,
}

/// Where a server begins to count the marks of its updates: anywhere, so that no two servers use the same.
#[expect(clippy::disallowed_methods, reason = "made once for each server")]
fn first_mark() -> i64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 1) as i64
}

impl Records {
    pub fn new(db: Arc<Db>, limits: Limits, ledger: Arc<Ledger>) -> Records {
        Records {
            db,
            limits,
            ledger,
            cache: Cache::new(),
            update_marks: AtomicI64::new(first_mark()),
            deletes: Marks::default(),
            unchecked: Mutex::default(),
            indexes: watch::Sender::new(None),
        }
    }

    /// Before anything else is asked, and whenever the indexes are others.
    pub fn prepare(&self, indexes: &Indexes) {
        self.indexes.send_replace(Some(Arc::new(RecordIndexes::of(indexes))));
    }

    /// These are what is left, until those that are gone have been made again.
    pub fn mend(&self, left: &Indexes) {
        self.indexes.send_replace(Some(Arc::new(RecordIndexes::left(left))));
    }

    pub(super) async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await
    }

    pub(super) fn indexes(&self) -> Result<Arc<RecordIndexes>> {
        self.indexes.borrow().clone().ok_or_else(failure::away)
    }

    /// The same, if they are being made again once that is done; it is waited for as long as for the database.
    pub(super) async fn settled_indexes(&self) -> Result<Arc<RecordIndexes>> {
        let now = self.indexes()?;
        if !now.mending {
            return Ok(now);
        }
        let mut indexes = self.indexes.subscribe();
        let made = indexes.wait_for(|now| now.as_ref().is_some_and(|now| !now.mending));
        match tokio::time::timeout(self.db.patience(), made).await {
            Ok(Ok(made)) => made.clone().ok_or_else(failure::away),
            Ok(Err(_)) | Err(_) => Ok(now),
        }
    }

    /// Whether records of one id may be several.
    pub(super) fn may_have_doubles(&self) -> bool {
        !self.indexes().is_ok_and(|indexes| indexes.keep_unique())
    }

    /// The index in which steps are counted by their status, and failed ones are found.
    pub fn steps_by_status(&self) -> Option<String> {
        self.indexes().ok()?.steps_by_status.clone()
    }

    /// A number that no other update carries.
    pub(super) fn update_mark(&self) -> i64 {
        self.update_marks.fetch_add(1, Ordering::Relaxed)
    }

    /// Forgets what was read and written before the database was reached anew.
    pub fn forget_everything(&self) {
        self.cache.clear();
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

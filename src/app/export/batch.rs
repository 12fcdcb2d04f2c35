//! Changes of the log as an export takes them: each record once.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::store::{Change, ChangeKind, Changed, Collection, RecordKey};

/// An execution, and a step or an artifact of it.
pub(super) type Name = (String, Option<i32>, Option<String>);

pub(super) fn named(key: &RecordKey) -> Name {
    (key.execution_id.clone(), key.step_id, key.artifact_id.clone())
}

/// Changes, each record once.
pub(super) struct Batch {
    /// Deleted, at some time during the changes.
    pub deleted: Vec<Name>,
    /// What to look for: executions first, so that what belongs to them follows them.
    pub what: Vec<Changed>,
    /// Executions that the walk has not seen, or not as matching: with all they have.
    pub whole: HashSet<String>,
    /// Another program deleted something, and the log does not say what.
    pub lost: bool,
}

impl Batch {
    pub fn of(changes: &[Change], comes_by_change: bool) -> Batch {
        let mut deleted: BTreeSet<Name> = BTreeSet::new();
        let mut whole = HashSet::new();
        let mut lost = false;
        let mut records: BTreeMap<(u8, Name), Changed> = BTreeMap::new();
        let mut unknown: HashSet<Changed> = HashSet::new();
        for change in changes {
            let Changed::Record(key) = &change.what else {
                // Which record it is is known once it is loaded; what is gone is left to whoever deleted it.
                lost |= change.kind == ChangeKind::Deleted;
                unknown.insert(change.what.clone());
                continue;
            };
            let name = named(key);
            let execution = key.is_execution();
            if change.kind == ChangeKind::Deleted {
                deleted.insert(name.clone());
            }
            let comes = change.kind == ChangeKind::Created
                || comes_by_change && (change.status_changed || change.metadata_changed);
            if execution && comes {
                whole.insert(name.0.clone());
            }
            records.insert((u8::from(!execution), name), change.what.clone());
        }
        // What is deleted as a whole takes its parts along.
        let gone: HashSet<String> = deleted
            .iter()
            .filter(|name| name.1.is_none() && name.2.is_none())
            .map(|name| name.0.clone())
            .collect();
        whole.extend(gone.iter().cloned());
        let deleted = deleted
            .into_iter()
            .filter(|name| name.1.is_none() && name.2.is_none() || !gone.contains(&name.0))
            .collect();
        let mut what: Vec<Changed> = records.into_values().chain(unknown).collect();
        what.sort_by_key(|changed| !is_execution(changed));
        Batch { deleted, what, whole, lost }
    }
}

fn is_execution(changed: &Changed) -> bool {
    match changed {
        Changed::Record(key) => key.is_execution(),
        Changed::Unknown { collection, .. } => *collection == Collection::Executions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cursor;

    #[test]
    fn executions_come_before_what_belongs_to_them_even_where_it_is_not_known_which_they_are() {
        let change = |what: Changed| Change {
            cursor: Cursor(Vec::new()),
            at: 0,
            what,
            kind: ChangeKind::Created,
            revision: None,
            status_changed: true,
            metadata_changed: true,
            failed: None,
            standing: None,
            body: None,
            document_id: None,
        };
        let unknown = |collection, id| Changed::Unknown { collection, id: vec![id] };
        let changes = [
            change(unknown(Collection::Steps, 1)),
            change(Changed::Record(RecordKey::step("a", 1))),
            // A large one, whose document is not in the log.
            change(unknown(Collection::Executions, 2)),
            change(Changed::Record(RecordKey::step("b", 1))),
            change(Changed::Record(RecordKey::execution("b"))),
        ];
        let what = Batch::of(&changes, false).what;
        let executions: Vec<bool> = what.iter().map(is_execution).collect();
        assert_eq!(executions, [true, true, false, false, false]);
    }
}

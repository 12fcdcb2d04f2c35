//! How long records are kept. Age counts from when a record was stored. What is running or pinned is kept, with
//! everything it has.

use super::{ExecutionStatus, Millis};

/// Kinds of records that retention deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Executions,
    Steps,
    Artifacts,
}

impl Kind {
    /// Executions first: what goes with them need not be judged by itself.
    pub const ALL: [Kind; 3] = [Kind::Executions, Kind::Steps, Kind::Artifacts];
}

/// How long each kind is kept. `None`: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ages {
    pub executions: Option<Millis>,
    pub steps: Option<Millis>,
    pub artifacts: Option<Millis>,
}

impl Ages {
    pub fn of(&self, kind: Kind) -> Option<Millis> {
        match kind {
            Kind::Executions => self.executions,
            Kind::Steps => self.steps,
            Kind::Artifacts => self.artifacts,
        }
    }
}

/// Other ages for some executions and what they have. Every list that is not empty must hold the execution's value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub app_ids: Vec<i32>,
    pub app_names: Vec<String>,
    pub statuses: Vec<ExecutionStatus>,
    pub ages: Ages,
}

impl Rule {
    fn applies_to(&self, owner: &Owner) -> bool {
        fn holds<T: PartialEq>(list: &[T], value: Option<&T>) -> bool {
            list.is_empty() || value.is_some_and(|value| list.contains(value))
        }
        holds(&self.app_ids, owner.app_id.as_ref())
            && holds(&self.app_names, Some(&owner.app_name))
            && holds(&self.statuses, owner.status.as_ref())
    }
}

/// The execution to which a record belongs, as far as it decides how long the record is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub execution_id: String,
    pub app_id: Option<i32>,
    pub app_name: String,
    /// `None`: another program stored a word that is no status. It may be running.
    pub status: Option<ExecutionStatus>,
    pub pinned: bool,
    pub stored_at: Millis,
}

/// What is kept how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    pub ages: Ages,
    /// The first that applies decides instead of `ages`.
    pub rules: Vec<Rule>,
}

impl Policy {
    fn ages_for(&self, owner: Option<&Owner>) -> Ages {
        let rule = owner.and_then(|owner| self.rules.iter().find(|rule| rule.applies_to(owner)));
        rule.map_or(self.ages, |rule| rule.ages)
    }

    /// Whether a record stored at that moment is not kept any longer. Without an owner it belongs to no execution
    /// that is there.
    pub fn is_over(
        &self,
        kind: Kind,
        owner: Option<&Owner>,
        stored_at: Millis,
        now: Millis,
    ) -> bool {
        let held = owner.is_some_and(|owner| {
            owner.pinned || !owner.status.is_some_and(ExecutionStatus::is_terminal)
        });
        let age = self.ages_for(owner).of(kind);
        !held && age.is_some_and(|age| stored_at.saturating_add(age) < now)
    }

    /// Whether the execution itself is not kept any longer.
    pub fn execution_is_over(&self, owner: &Owner, now: Millis) -> bool {
        self.is_over(Kind::Executions, Some(owner), owner.stored_at, now)
    }

    /// The moment since when nothing that was stored can be over. `None`: nothing ever is.
    pub fn horizon(&self, kind: Kind, now: Millis) -> Option<Millis> {
        let rules = self.rules.iter().map(|rule| rule.ages);
        let shortest = rules.chain([self.ages]).filter_map(|ages| ages.of(kind)).min()?;
        Some(now.saturating_sub(shortest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Millis = 24 * 3600 * 1000;
    const NOW: Millis = 1_000 * DAY;

    fn owner(app_name: &str, status: ExecutionStatus) -> Owner {
        Owner {
            execution_id: "e".to_owned(),
            app_id: Some(7),
            app_name: app_name.to_owned(),
            status: Some(status),
            pinned: false,
            stored_at: NOW - 100 * DAY,
        }
    }

    fn ages(executions: Millis, steps: Millis) -> Ages {
        Ages { executions: Some(executions * DAY), steps: Some(steps * DAY), artifacts: None }
    }

    fn policy() -> Policy {
        let failed = Rule {
            app_names: vec!["a".to_owned(), "b".to_owned()],
            statuses: vec![ExecutionStatus::Failed],
            ages: ages(500, 200),
            ..Rule::default()
        };
        let a = Rule { app_names: vec!["a".to_owned()], ages: ages(10, 5), ..Rule::default() };
        Policy { ages: ages(99, 30), rules: vec![failed, a] }
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        use ExecutionStatus::*;
        let policy = policy();
        for (app, status, stored_days_ago, over) in [
            ("c", Completed, 100, true),
            ("c", Completed, 99, false),
            ("c", Completed, 98, false),
            ("c", Failed, 100, true),
            ("a", Completed, 11, true),
            ("a", Completed, 9, false),
            ("a", Failed, 400, false),
            ("a", Failed, 501, true),
            ("b", Failed, 400, false),
            ("b", Cancelled, 100, true),
        ] {
            let owner = Owner { stored_at: NOW - stored_days_ago * DAY, ..owner(app, status) };
            assert_eq!(
                policy.execution_is_over(&owner, NOW),
                over,
                "{app} {status:?} {stored_days_ago}"
            );
        }
        let step =
            |owner: Option<&Owner>, days| policy.is_over(Kind::Steps, owner, NOW - days * DAY, NOW);
        assert!(step(Some(&owner("c", Completed)), 31));
        assert!(!step(Some(&owner("c", Completed)), 29));
        assert!(!step(Some(&owner("b", Failed)), 150));
        assert!(step(None, 31), "of no execution that is there: as in general");
        assert!(!policy.is_over(Kind::Artifacts, Some(&owner("c", Completed)), 0, NOW));
    }

    #[test]
    fn what_runs_or_is_pinned_is_kept() {
        let policy = policy();
        let running = owner("c", ExecutionStatus::Running);
        let unknown = Owner { status: None, ..running.clone() };
        let pinned = Owner { pinned: true, ..owner("c", ExecutionStatus::Completed) };
        for kept in [running, unknown, pinned] {
            assert!(!policy.execution_is_over(&kept, NOW), "{kept:?}");
            assert!(!policy.is_over(Kind::Steps, Some(&kept), 0, NOW), "{kept:?}");
        }
    }

    #[test]
    fn the_horizon_is_that_of_the_shortest_age() {
        let policy = policy();
        assert_eq!(policy.horizon(Kind::Executions, NOW), Some(NOW - 10 * DAY));
        assert_eq!(policy.horizon(Kind::Artifacts, NOW), None);
    }
}

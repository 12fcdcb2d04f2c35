//! Who calls, and what they may do: decided once for each credential and shared by its calls.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::need::Need;
use super::throttle::Bucket;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::access::{AppScope, Grant, Role};
use crate::domain::audit::Actor;

/// How somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// Nobody is asked who they are.
    Anonymous,
    Key,
    AdminKey,
    Oidc,
    Certificate,
}

impl CallerKind {
    pub const ALL: [CallerKind; 5] = [
        CallerKind::Anonymous,
        CallerKind::Key,
        CallerKind::AdminKey,
        CallerKind::Oidc,
        CallerKind::Certificate,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CallerKind::Anonymous => "anonymous",
            CallerKind::Key => "key",
            CallerKind::AdminKey => "admin_key",
            CallerKind::Oidc => "oidc",
            CallerKind::Certificate => "certificate",
        }
    }
}

/// Somebody with what they may do.
#[derive(Debug)]
pub struct Caller {
    pub kind: CallerKind,
    pub id: String,
    pub name: String,
    pub grants: Vec<Grant>,
    pub expires_at: Option<Millis>,
    /// As records name them.
    pub actor: Arc<Actor>,
    /// In the order of `Need::ALL`; `None`: no role of theirs is enough.
    scopes: [Option<AppScope>; Need::ALL.len()],
    /// Cancelled once the credential is good no more.
    pub ended: CancellationToken,
    /// How often they may call.
    pub bucket: Option<Arc<Bucket>>,
}

impl Caller {
    pub fn new(
        kind: CallerKind,
        id: impl Into<String>,
        name: impl Into<String>,
        grants: Vec<Grant>,
        expires_at: Option<Millis>,
    ) -> Caller {
        let scopes = Need::ALL.map(|need| match need {
            Need::Open | Need::Known => Some(AppScope::all()),
            need => {
                let mut met = grants.iter().filter(|grant| need.is_met_by(grant.role)).peekable();
                met.peek()?;
                Some(AppScope::of(met.flat_map(|grant| grant.apps.iter().cloned())))
            }
        });
        let (id, name, ended) = (id.into(), name.into(), CancellationToken::new());
        let actor = Arc::new(Actor::new(kind.as_str(), &id, &name));
        Caller { kind, id, name, grants, expires_at, actor, scopes, ended, bucket: None }
    }

    /// Whoever reads a database of somebody else: nobody is asked who they are, and everybody may read everything.
    pub fn reader() -> Caller {
        let grants = vec![Grant::everywhere(Role::Viewer, false)];
        Caller::new(CallerKind::Anonymous, "", "", grants, None)
    }

    /// The same, with a limit of how often.
    pub fn limited(self, bucket: Option<Arc<Bucket>>) -> Caller {
        Caller { bucket, ..self }
    }

    /// Everybody, where nobody is asked.
    pub fn anonymous() -> Caller {
        let grants = vec![Grant::everywhere(Role::Admin, true)];
        Caller::new(CallerKind::Anonymous, "", "", grants, None)
    }

    /// Whether the time of the credential has passed.
    pub fn has_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The apps for which the caller may do what needs that; `None`: for none.
    pub fn scope(&self, need: Need) -> Option<&AppScope> {
        self.scopes[need as usize].as_ref()
    }
}

/// One call that was let in.
#[derive(Debug, Clone)]
pub struct Permit {
    pub caller: Arc<Caller>,
    need: Need,
}

impl Permit {
    /// `None`: no role of the caller is enough.
    pub fn new(caller: Arc<Caller>, need: Need) -> Option<Permit> {
        caller.scope(need)?;
        Some(Permit { caller, need })
    }

    /// The apps that the call is about.
    pub fn scope(&self) -> AppScope {
        self.scope_for(self.need).unwrap_or_else(|| AppScope::of([]))
    }

    /// The same of something within the call that needs more; `None`: the caller may not do it at all.
    pub fn scope_for(&self, need: Need) -> Option<AppScope> {
        self.caller.scope(need).cloned()
    }

    /// Waits until there is room for one more write of a stream, where the caller has a limit.
    pub async fn turn(&self, clock: &dyn Clock) {
        let Some(bucket) = &self.caller.bucket else { return };
        while let Err(wait) = bucket.take(clock.instant()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Who is written down as the author of what the call makes; `None`: whom the request names.
    pub fn author(&self) -> Option<&str> {
        (self.caller.kind != CallerKind::Anonymous).then_some(self.caller.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::{App, AppPattern};

    fn grant(role: Role, app: &str) -> Grant {
        Grant { role, apps: vec![AppPattern::parse(app).unwrap()], reveal: false }
    }

    #[test]
    fn each_need_has_the_apps_of_the_roles_that_meet_it() {
        let grants =
            vec![grant(Role::Viewer, "a"), grant(Role::Editor, "b"), grant(Role::Operator, "*")];
        let caller = Caller::new(CallerKind::Key, "id", "name", grants, None);
        let app = |name| App { name, number: None, part: None, part_name: None };
        let may = |need, name| caller.scope(need).is_some_and(|scope| scope.holds(app(name)));
        assert!(may(Need::Read, "a") && may(Need::Read, "b") && !may(Need::Read, "c"));
        assert!(!may(Need::Edit, "a") && may(Need::Edit, "b"));
        assert!(!may(Need::Report, "a") && may(Need::Report, "b"));
        assert!(may(Need::Operate, "c") && caller.scope(Need::Audit).is_none());
        assert!(caller.scope(Need::Administer).is_none());
        for need in Need::ALL {
            assert!(Caller::anonymous().scope(need).is_some_and(AppScope::is_all), "{need:?}");
        }
        let nobody = Caller::new(CallerKind::Oidc, "id", "name", Vec::new(), None);
        assert!(nobody.scope(Need::Known).is_some() && nobody.scope(Need::Configured).is_none());
    }

    #[test]
    fn needs_are_numbered_in_order() {
        for (index, need) in Need::ALL.into_iter().enumerate() {
            assert_eq!(need as usize, index);
        }
    }
}

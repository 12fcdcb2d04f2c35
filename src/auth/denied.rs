//! Why a call is not let in. Facts only; the words and codes for clients are made at the edge.

use std::sync::Arc;
use std::time::Duration;

use super::caller::Caller;

/// A call that is not let in.
#[derive(Debug, Clone)]
pub struct Turned {
    pub denied: Denied,
    /// Whose it is, if that is known.
    pub caller: Option<Arc<Caller>>,
}

impl From<Denied> for Turned {
    fn from(denied: Denied) -> Turned {
        Turned { denied, caller: None }
    }
}

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is no credential.
    Missing,
    /// It is unknown, wrong or revoked.
    Invalid,
    /// It was good once.
    Expired,
    /// No role of the caller is enough.
    Role,
    /// The caller's role is only for some apps.
    Scope,
    /// What would tell is not known, or not fresh enough.
    Unavailable,
    /// Too many calls, or too many bad credentials.
    RateLimited { retry_after: Duration },
}

impl Denied {
    /// The label of a metric.
    pub fn outcome(self) -> &'static str {
        match self {
            Denied::Missing => "missing",
            Denied::Invalid => "invalid",
            Denied::Expired => "expired",
            Denied::Role => "role_forbids",
            Denied::Scope => "scope_forbids",
            Denied::Unavailable => "unavailable",
            Denied::RateLimited { .. } => "rate_limited",
        }
    }
}

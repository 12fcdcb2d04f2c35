//! Decides each call before anything else is done for it: who calls, then whether a role of theirs is enough. Reads
//! nothing from the database.

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use metrics::Counter;

use super::admin_keys::AdminKeys;
use super::caller::{Caller, CallerKind, Permit};
use super::denied::{Denied, Turned};
use super::key::Key;
use super::keyring::Keyring;
use super::need::{self, Need};
use super::oidc::{Found, Oidc};
use super::throttle::BadOnes;
use crate::clock::Clock;
use crate::telemetry::metrics as names;

/// Decides calls.
pub struct Gate {
    asks: Option<Asks>,
    anonymous: Arc<Caller>,
}

/// What a gate that asks everybody who they are goes by.
pub struct Asks {
    pub admin_keys: Option<Arc<AdminKeys>>,
    pub keyring: Arc<Keyring>,
    pub oidc: Option<Arc<Oidc>>,
    pub clock: Arc<dyn Clock>,
    bad: BadOnes,
    counts: Counts,
}

impl Asks {
    pub fn new(
        admin_keys: Option<Arc<AdminKeys>>,
        keyring: Arc<Keyring>,
        oidc: Option<Arc<Oidc>>,
        clock: Arc<dyn Clock>,
    ) -> Asks {
        Asks { admin_keys, keyring, oidc, clock, bad: BadOnes::default(), counts: Counts::new() }
    }
}

/// Whether a call is let in. `None`: it needs nothing.
pub type Verdict = Result<Option<Permit>, Turned>;

/// The verdict, or how to come to it.
pub enum Decision {
    Made(Verdict),
    /// Somebody else has to be asked first.
    Later(BoxFuture<'static, Verdict>),
}

/// Who calls: how that is known, for those who count, and who it is.
type Who = (&'static str, Result<Arc<Caller>, Denied>);

/// Who calls, or the token of which only its issuer can say so.
enum Asked {
    Known(Who),
    Issuer(Arc<Oidc>, String),
}

/// Handles of the metric.
struct Counts {
    let_in: [Counter; CallerKind::ALL.len()],
}

impl Counts {
    fn new() -> Counts {
        Counts { let_in: CallerKind::ALL.map(|kind| names::auth(kind.as_str(), "ok")) }
    }
}

/// Where a call comes from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub address: Option<IpAddr>,
    /// Who its connection belongs to by a certificate.
    pub certified: Option<Arc<Caller>>,
}

/// The credential in the headers of a call.
enum Bearer<'a> {
    None,
    Token(&'a str),
    /// Not one that can be read, or more than one.
    Bad,
}

fn bearer(headers: &HeaderMap) -> Bearer<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Bearer::None };
    // Of two it would depend on who reads them which one counts.
    if values.next().is_some() {
        return Bearer::Bad;
    }
    let token = |value: &'_ HeaderValue| -> Option<(usize, usize)> {
        let text = value.to_str().ok()?;
        let (scheme, token) = text.split_once(' ')?;
        let token = token.trim();
        let start = text.len() - text[scheme.len()..].trim_start().len();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then_some((start, start + token.len()))
    };
    match (token(value), value.to_str()) {
        (Some((from, until)), Ok(text)) => Bearer::Token(&text[from..until]),
        _ => Bearer::Bad,
    }
}

impl Gate {
    /// Asks nobody who they are.
    pub fn open() -> Gate {
        Gate { asks: None, anonymous: Arc::new(Caller::anonymous()) }
    }

    /// Asks nobody who they are, and lets them read.
    pub fn reading() -> Gate {
        Gate { asks: None, anonymous: Arc::new(Caller::reader()) }
    }

    /// Asks everybody.
    pub fn asking(asks: Asks) -> Gate {
        Gate { asks: Some(asks), ..Gate::open() }
    }

    /// Why a caller whose credential has ended is let in no more.
    pub fn why_ended(&self, caller: &Caller) -> Denied {
        let asks = self.asks.as_ref();
        match asks.is_some_and(|asks| caller.has_expired(asks.clock.now().millis())) {
            true => Denied::Expired,
            false => Denied::Invalid,
        }
    }

    /// Lets a call in, or says why not.
    pub fn admit(self: &Arc<Self>, path: &str, headers: &HeaderMap, from: &Source) -> Decision {
        let need = need::of_path(path);
        let Some(asks) = &self.asks else {
            // A method that is not there is told by who looks for it.
            let need = need.unwrap_or(Need::Known);
            let permit = Permit::new(Arc::clone(&self.anonymous), need);
            let is_denied = permit.is_none() && need != Need::Open;
            return Decision::Made(if is_denied { Err(Denied::Role.into()) } else { Ok(permit) });
        };
        if need == Some(Need::Open) {
            return Decision::Made(Ok(None));
        }
        match asks.who(headers, from) {
            Asked::Known(who) => Decision::Made(asks.judge(path, need, from, who)),
            Asked::Issuer(oidc, token) => {
                let (gate, path, from) = (Arc::clone(self), path.to_owned(), from.clone());
                Decision::Later(Box::pin(async move {
                    let who = ("oidc", oidc.ask(&token).await);
                    match &gate.asks {
                        Some(asks) => asks.judge(&path, need, &from, who),
                        None => Err(Denied::Invalid.into()),
                    }
                }))
            }
        }
    }
}

impl Asks {
    fn who(&self, headers: &HeaderMap, from: &Source) -> Asked {
        // What is sent with the call decides. A certificate never makes up for it.
        Asked::Known(match (bearer(headers), &from.certified) {
            (Bearer::Token(token), _) => match &self.oidc {
                Some(oidc) if !Key::is_like(token) => match oidc.look(token) {
                    Found::Known(caller) => ("oidc", Ok(caller)),
                    Found::Denied(denied) => ("oidc", Err(denied)),
                    Found::AskProvider => return Asked::Issuer(Arc::clone(oidc), token.to_owned()),
                },
                _ => ("key", self.by_key(token)),
            },
            (Bearer::Bad, _) => ("key", Err(Denied::Invalid)),
            (Bearer::None, Some(caller)) => ("certificate", self.while_it_lasts(caller)),
            (Bearer::None, None) => ("none", Err(Denied::Missing)),
        })
    }

    /// Whether who calls may make the call.
    fn judge(&self, path: &str, need: Option<Need>, from: &Source, (kind, who): Who) -> Verdict {
        let caller = who.map_err(|denied| self.refuse(kind, denied, from.address))?;
        let permit = need.and_then(|need| Permit::new(Arc::clone(&caller), need));
        let denied = match (&permit, need) {
            (None, _) => Some(Denied::Role),
            (Some(permit), Some(need))
                if need.is_about_the_server() && !permit.scope().is_all() =>
            {
                Some(Denied::Scope)
            }
            _ => None,
        };
        if let Some(denied) = denied {
            names::auth(caller.kind.as_str(), denied.outcome()).increment(1);
            tracing::debug!(
                caller.kind = caller.kind.as_str(),
                caller.id,
                rpc = path,
                reason = denied.outcome(),
                "a call was denied"
            );
            return Err(Turned { denied, caller: Some(caller) });
        }
        self.counts.let_in[caller.kind as usize].increment(1);
        Ok(permit)
    }

    /// Counts who is not known, and refuses further bad ones where there were too many.
    fn refuse(&self, kind: &'static str, denied: Denied, address: Option<IpAddr>) -> Denied {
        let is_bad = matches!(denied, Denied::Invalid | Denied::Expired);
        let over = is_bad.then(|| self.bad.count(address, self.clock.instant())).flatten();
        let denied = match over {
            Some(retry_after) => Denied::RateLimited { retry_after },
            None => {
                if is_bad {
                    let peer = address.map(tracing::field::display);
                    tracing::warn!(peer, reason = denied.outcome(), "a credential was refused");
                }
                denied
            }
        };
        names::auth(kind, denied.outcome()).increment(1);
        denied
    }

    fn while_it_lasts(&self, caller: &Arc<Caller>) -> Result<Arc<Caller>, Denied> {
        match caller.has_expired(self.clock.now().millis()) {
            true => Err(Denied::Expired),
            false => Ok(Arc::clone(caller)),
        }
    }

    fn by_key(&self, token: &str) -> Result<Arc<Caller>, Denied> {
        let key = Key::parse(token).ok_or(Denied::Invalid)?;
        let hash = key.hash();
        if let Some(caller) = self.admin_keys.as_ref().and_then(|keys| keys.caller(&hash)) {
            return Ok(caller);
        }
        self.keyring.caller(&key, &hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_counts_and_two_are_bad() {
        let headers = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            headers
        };
        let token = |values: &[&'static str]| match bearer(&headers(values)) {
            Bearer::None => "none".to_owned(),
            Bearer::Bad => "bad".to_owned(),
            Bearer::Token(token) => format!("token {token}"),
        };
        assert_eq!(token(&[]), "none");
        assert_eq!(token(&["Bearer abc"]), "token abc");
        assert_eq!(token(&["bearer  abc "]), "token abc");
        for bad in
            [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["abc"], &["Bearer a", "Bearer a"]]
        {
            assert_eq!(token(bad), "bad", "{bad:?}");
        }
    }
}

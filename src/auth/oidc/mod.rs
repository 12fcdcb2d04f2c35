//! Tokens of an identity provider as credentials (OpenID Connect): `token` reads them, `jwks` knows the keys of the provider
//! and what each may verify, `fetch` gets them.

pub mod fetch;
pub mod jwks;
pub mod token;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::caller::{Caller, CallerKind};
use super::denied::Denied;
use super::expiry::Expiring;
use crate::clock::Clock;
use crate::domain::access::Grant;
use crate::telemetry::metrics;
use fetch::Fetch;
use jwks::{Keys, Print, Verdict};
use token::{LEEWAY, Lacking, Token};

/// How often the keys are fetched, and again after a failure.
const FETCH_EVERY: Duration = Duration::from_secs(300);
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// How often an unknown key id makes the server fetch.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Keys outlive the provider by this.
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);
/// Tokens that are remembered, so that each is verified once.
const TOKENS: usize = 10_000;

/// What somebody may do who has a value in a claim.
#[derive(Debug, Clone)]
pub struct Rule {
    pub claim: String,
    pub value: String,
    pub grant: Grant,
}

/// Whose tokens are accepted.
#[derive(Debug, Clone)]
pub struct Settings {
    pub issuer: String,
    pub audience: String,
    pub rules: Vec<Rule>,
}

/// What a token is.
pub enum Found {
    Known(Arc<Caller>),
    Denied(Denied),
    /// The provider has to be asked for its keys first.
    AskProvider,
}

/// Keys as they were published at a time.
struct Held {
    keys: Keys,
    prints: BTreeSet<Print>,
    at: Instant,
}

/// When the provider was asked last because of an unknown key id, and whether it answered.
type Asked = Option<(Instant, bool)>;

/// The tokens of one identity provider.
pub struct Oidc {
    settings: Settings,
    clock: Arc<dyn Clock>,
    expiring: Arc<Expiring>,
    /// `None`: the keys are those of a file.
    fetch: Option<Fetch>,
    held: RwLock<Option<Arc<Held>>>,
    /// By the SHA-256 of the token.
    known: Cache<[u8; 32], Arc<Caller>>,
    /// Whose token which key has signed.
    signed: Mutex<Signed>,
    asked: tokio::sync::Mutex<Asked>,
    /// What was wrong when the provider was asked last.
    failure: Mutex<Option<String>>,
    told: OnceLock<Told>,
}

/// Is told, by the setting, that other keys are in force from now on, or that those that were fetched cannot be.
type Told = Box<dyn Fn(&'static str, bool) + Send + Sync>;

#[derive(Default)]
struct Signed {
    callers: Vec<(Print, Weak<Caller>)>,
    /// Beyond this those that nobody has any more are forgotten.
    most: usize,
}

impl Signed {
    fn add(&mut self, by: Print, caller: &Arc<Caller>) {
        if self.callers.len() >= self.most {
            self.callers.retain(|(_, caller)| caller.strong_count() > 0);
            self.most = (self.callers.len() * 2).max(1024);
        }
        self.callers.push((by, Arc::downgrade(caller)));
    }
}

impl Oidc {
    pub fn new(
        settings: Settings,
        fetch: Option<Fetch>,
        expiring: Arc<Expiring>,
        clock: Arc<dyn Clock>,
    ) -> Oidc {
        Oidc {
            settings,
            clock,
            expiring,
            fetch,
            held: RwLock::default(),
            known: Cache::new(TOKENS),
            signed: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
            failure: Mutex::default(),
            told: OnceLock::new(),
        }
    }

    /// Has somebody told whenever keys that are fetched have become others, or cannot be had.
    pub fn tell(&self, told: impl Fn(&'static str, bool) + Send + Sync + 'static) {
        let _ = self.told.set(Box::new(told));
    }

    /// Takes keys in place of those of before, and says whether those were others; else what is wrong with them. Callers whose
    /// key is gone are known no more.
    pub fn take(&self, json: &[u8]) -> Result<bool, String> {
        let keys = Keys::parse(json)?;
        let prints = keys.prints();
        let held = Held { keys, prints: prints.clone(), at: self.clock.instant() };
        let before = self.held.write().replace(Arc::new(held));
        self.signed.lock().callers.retain(|(by, caller)| {
            let Some(caller) = caller.upgrade() else { return false };
            let stays = prints.contains(by);
            if !stays {
                caller.ended.cancel();
            }
            stays
        });
        Ok(before.is_some_and(|before| before.prints != prints))
    }

    /// Whose token this is, as far as the keys say that are here.
    pub fn look(&self, text: &str) -> Found {
        let Some(held) = self.held.read().clone() else { return Found::AskProvider };
        // A file is here as long as nobody says otherwise.
        if self.fetch.is_some() && self.clock.elapsed(held.at) > GOOD_FOR {
            return Found::AskProvider;
        }
        let now = self.clock.now().millis();
        let id: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        if let Some(caller) = self.known.get(&id).filter(|known| !known.ended.is_cancelled()) {
            return match caller.expires_at.is_some_and(|at| at.saturating_add(LEEWAY) <= now) {
                true => Found::Denied(Denied::Expired),
                false => Found::Known(caller),
            };
        }
        let Some(token) = Token::parse(text) else { return Found::Denied(Denied::Invalid) };
        let (kid, algorithm) = (token.kid.as_deref(), token.algorithm);
        let by = match held.keys.verify(kid, algorithm, token.message, &token.signature) {
            Verdict::Good(print) => print,
            Verdict::Bad => return Found::Denied(Denied::Invalid),
            Verdict::UnknownKey if self.fetch.is_some() => return Found::AskProvider,
            Verdict::UnknownKey => return Found::Denied(Denied::Invalid),
        };
        let Some(claims) = token.claims() else { return Found::Denied(Denied::Invalid) };
        let Settings { issuer, audience, rules } = &self.settings;
        let said = match token::check(&claims, issuer, audience, now) {
            Ok(said) => said,
            Err(Lacking::Expired) => return Found::Denied(Denied::Expired),
            Err(Lacking::Wrong) => return Found::Denied(Denied::Invalid),
        };
        let met = rules.iter().filter(|rule| token::has(&claims, &rule.claim, &rule.value));
        let grants = met.map(|rule| rule.grant.clone()).collect();
        let (subject, expires_at) = (said.subject, said.expires_at);
        let caller = Caller::new(CallerKind::Oidc, &*subject, &*subject, grants, Some(expires_at));
        let caller = Arc::new(caller);
        // Streams end when the token says. One that is opened within the leeway, because our clock is ahead of the
        // provider's, lasts until that is over.
        let ends_at = if now < expires_at { expires_at } else { expires_at + LEEWAY };
        self.expiring.add(ends_at, &caller);
        self.signed.lock().add(by, &caller);
        let is_gone = |held: &Arc<Held>| !held.prints.contains(&by);
        if self.held.read().as_ref().is_none_or(is_gone) {
            // Taken away in this moment; whoever did it may not have seen this caller.
            caller.ended.cancel();
            return Found::Denied(Denied::Invalid);
        }
        self.known.insert(id, Arc::clone(&caller));
        Found::Known(caller)
    }

    /// The same after asking the provider, which is done once a minute at most.
    pub async fn ask(&self, text: &str) -> Result<Arc<Caller>, Denied> {
        let answered = self.ask_provider().await;
        match self.look(text) {
            Found::Known(caller) => Ok(caller),
            Found::Denied(denied) => Err(denied),
            // Of a key that it does not know the provider would know whether it is good.
            Found::AskProvider => Err(if answered { Denied::Invalid } else { Denied::Unavailable }),
        }
    }

    /// Whether the provider has answered, now or when it was asked last.
    async fn ask_provider(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if let Some((at, answered)) = *asked
            && self.clock.elapsed(at) < ASK_EVERY
        {
            return answered;
        }
        let answered = self.fetch().await;
        *asked = Some((self.clock.instant(), answered));
        answered
    }

    /// Fetches the keys. What cannot be had or used leaves those of before in force.
    async fn fetch(&self) -> bool {
        let Some(fetch) = &self.fetch else { return false };
        let fetched = fetch.keys().await.and_then(|json| self.take(&json));
        let tell = |is_good| {
            if let Some(told) = self.told.get() {
                told(fetch.setting(), is_good);
            }
        };
        let mut failure = self.failure.lock();
        match fetched {
            Ok(are_others) => {
                if are_others {
                    tell(true);
                }
                if failure.take().is_some() {
                    tracing::info!("the keys of {} can be had again", fetch.setting());
                }
                true
            }
            Err(why) => {
                metrics::reload_failures(fetch.setting()).increment(1);
                if failure.as_ref() != Some(&why) {
                    let setting = fetch.setting();
                    tracing::error!("{setting} {why}; the keys of before are good for a day");
                    tell(false);
                }
                *failure = Some(why);
                false
            }
        }
    }

    /// Fetches the keys from time to time, and whenever somebody asks for it, until `stop`.
    pub async fn keep(self: Arc<Self>, asked: Arc<Notify>, stop: CancellationToken) {
        if self.fetch.is_none() {
            return;
        }
        loop {
            let pause = match stop.run_until_cancelled(self.fetch()).await {
                Some(true) => FETCH_EVERY,
                Some(false) => TRY_AGAIN,
                None => return,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = asked.notified() => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

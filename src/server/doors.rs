//! Who may come in, put together: certificates and keys, what reads them again, and the gate.

use std::sync::Arc;

use tokio::sync::Notify;

use super::files::{self, File, Followed, Unusable};
use super::tls::Tls;
use crate::audit::Audit;
use crate::auth::Gate;
use crate::auth::admin_keys::AdminKeys;
use crate::auth::certificates::Certificates;
use crate::auth::expiry::Expiring;
use crate::auth::gate::Asks;
use crate::auth::keyring::Keyring;
use crate::auth::keys::Keys;
use crate::auth::makers::MakersNow;
use crate::auth::oidc::fetch::{Fetch, Source};
use crate::auth::oidc::{self, Oidc};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError};
use crate::shutdown::Shutdown;
use crate::store::keys::KeyStore;

const ADMIN_KEYS: &str = "auth.admin_key_file";
const JWKS: &str = "auth.oidc.jwks_file";

/// Who may come in.
pub(super) struct Doors {
    pub entrance: Entrance,
    pub keys: Arc<Keys>,
    pub makers: Arc<MakersNow>,
}

/// What a call goes through.
#[derive(Clone)]
pub(super) struct Entrance {
    pub gate: Arc<Gate>,
    pub tls: Option<Arc<Tls>>,
    pub certificates: Option<Arc<Certificates>>,
}

/// What was read from files before a port opens, and is read again.
pub(super) struct Read {
    admin_keys: Option<Arc<AdminKeys>>,
    tls: Option<Arc<Tls>>,
    oidc: Option<Arc<Oidc>>,
    expiring: Arc<Expiring>,
    followed: Vec<Followed>,
}

/// Reads every file that decides who may come in. What is wrong with one ends the process.
pub(super) fn read(config: &Config, clock: &Arc<dyn Clock>) -> Result<Read, ConfigError> {
    let expiring = Arc::new(Expiring::new(Arc::clone(clock)));
    let mut read = Read { admin_keys: None, tls: None, oidc: None, expiring, followed: Vec::new() };
    if let Some((tls, followed)) = Tls::open(&config.tls, clock)? {
        read.tls = Some(tls);
        read.followed.push(followed);
    }
    if let Some(path) = &config.auth.admin_key_file {
        let keys = Arc::new(AdminKeys::default());
        let to = Arc::clone(&keys);
        let file = File { setting: ADMIN_KEYS, path: path.clone() };
        let take = move |contents: &[Vec<u8>]| {
            let text = contents.first().map(|bytes| str::from_utf8(bytes)).unwrap_or(Ok(""));
            let text = text.map_err(|_| Unusable::new(ADMIN_KEYS, "is not text"))?;
            to.take(text).map_err(|why| Unusable::new(ADMIN_KEYS, why))
        };
        read.followed.push(Followed::open(vec![file], take)?);
        read.admin_keys = Some(keys);
    }
    if let Some(oidc) = provider(&config.auth.oidc, &read.expiring, clock)? {
        let oidc = Arc::new(oidc);
        if let Some(path) = &config.auth.oidc.jwks_file {
            let to = Arc::clone(&oidc);
            let file = File { setting: JWKS, path: path.clone() };
            let take = move |contents: &[Vec<u8>]| {
                let json = contents.first().map_or(&[][..], Vec::as_slice);
                to.take(json).map(drop).map_err(|why| Unusable::new(JWKS, why))
            };
            read.followed.push(Followed::open(vec![file], take)?);
        }
        read.oidc = Some(oidc);
    }
    Ok(read)
}

/// The identity provider whose tokens are accepted, if there is one.
fn provider(
    settings: &config::Oidc,
    expiring: &Arc<Expiring>,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Oidc>, ConfigError> {
    let (Some(issuer), Some(audience)) = (&settings.issuer, &settings.audience) else {
        return Ok(None);
    };
    let rule = |rule: &config::OidcRule| {
        let (claim, value) = (rule.claim.clone(), rule.value.clone());
        rule.grant().map(|grant| oidc::Rule { claim, value, grant })
    };
    let rules: Result<Vec<_>, String> = settings.rules.iter().map(rule).collect();
    let rules = rules.map_err(|why| ConfigError::new("auth.oidc.rules", "a rule", why))?;
    let source = match (&settings.jwks_file, &settings.jwks_uri) {
        (Some(_), _) => None,
        (None, Some(uri)) => Some(Source::Uri(uri.expose().to_owned())),
        (None, None) => Some(Source::Discovery),
    };
    let fetch = source.map(|source| Fetch::new(source, issuer)).transpose();
    let fetch = fetch.map_err(|why| ConfigError::new("auth.oidc.issuer", issuer, why))?;
    let accepted = oidc::Settings { issuer: issuer.clone(), audience: audience.clone(), rules };
    Ok(Some(Oidc::new(accepted, fetch, Arc::clone(expiring), Arc::clone(clock))))
}

impl Doors {
    pub fn start(
        config: &Config,
        clock: &Arc<dyn Clock>,
        store: &Arc<dyn KeyStore>,
        read: Read,
        audit: &Audit,
        shutdown: &Shutdown,
    ) -> Result<Doors, ConfigError> {
        let Read { admin_keys, tls, oidc, expiring, followed } = read;
        let (tasks, stop) = (&shutdown.tasks, &shutdown.soft);
        tasks.spawn(files::follow(followed, audit.clone(), stop.clone()));
        let keyring = Arc::new(Keyring::new(Arc::clone(store), Arc::clone(clock)));
        let keys = Arc::new(Keys::new(Arc::clone(&keyring), Arc::clone(clock)));
        if config.read_only || !config.asks_callers() {
            let gate = if config.read_only { Gate::reading() } else { Gate::open() };
            let entrance = Entrance { gate: Arc::new(gate), tls, certificates: None };
            let makers = Arc::new(MakersNow { keyring: None, admin_keys: None });
            return Ok(Doors { entrance, keys, makers });
        }
        tasks.spawn(Arc::clone(&keyring).keep(stop.clone()));
        if let Some(oidc) = &oidc {
            let audit = audit.clone();
            oidc.tell(move |setting, is_good| audit.reloaded(setting, is_good));
            let asked = Arc::new(Notify::new());
            tasks.spawn(Arc::clone(oidc).keep(Arc::clone(&asked), stop.clone()));
            tasks.spawn(files::pass_on_hangups(asked, stop.clone()));
        }
        tasks.spawn(Arc::clone(&expiring).keep(stop.clone()));
        let certificates = certificates(config, expiring)?;
        let makers =
            MakersNow { keyring: Some(Arc::clone(&keyring)), admin_keys: admin_keys.clone() };
        let gate = Arc::new(Gate::asking(Asks::new(admin_keys, keyring, oidc, Arc::clone(clock))));
        let entrance = Entrance { gate, tls, certificates };
        Ok(Doors { entrance, keys, makers: Arc::new(makers) })
    }
}

/// Whose certificates are credentials, if any are.
fn certificates(
    config: &Config,
    expiring: Arc<Expiring>,
) -> Result<Option<Arc<Certificates>>, ConfigError> {
    let rules = &config.auth.certificates;
    if rules.is_empty() {
        return Ok(None);
    }
    let rules: Result<Vec<_>, String> = rules.iter().map(|rule| rule.checked()).collect();
    let rules = rules.map_err(|why| ConfigError::new("auth.certificates", "a rule", why))?;
    Ok(Some(Arc::new(Certificates::new(rules, expiring))))
}

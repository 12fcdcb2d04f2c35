//! Who may come in: `[auth]`, and the rules about what has to be set together before a port may be opened.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::database::Safety;
use super::lists::{CERTIFICATES, OIDC_RULES};
use super::{Config, Secret};
use crate::domain::access::{APPS_PER_GRANT, AppPattern, Grant, Role};
use crate::domain::hosts::is_safe_source;
use crate::domain::san::SanPattern;

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    pub mode: Option<AuthMode>,
    pub admin_key_file: Option<PathBuf>,
    pub oidc: Oidc,
    /// Only in the file, as `[[auth.certificates]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateRule>,
}

/// Whether callers are asked who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    Off,
    Required,
}

/// The identity provider whose tokens are accepted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Oidc {
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub jwks_uri: Option<Secret>,
    pub jwks_file: Option<PathBuf>,
    /// Only in the file, as `[[auth.oidc.rules]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<OidcRule>,
}

/// What who has a value in a claim of their token may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcRule {
    pub claim: String,
    pub value: String,
    pub role: String,
    pub apps: Vec<String>,
    #[serde(default)]
    pub reveal: bool,
}

/// What who has a name in their certificate may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRule {
    pub san: String,
    pub role: String,
    pub apps: Vec<String>,
    #[serde(default)]
    pub reveal: bool,
}

impl OidcRule {
    /// The grant; else what is wrong with the rule.
    pub fn grant(&self) -> Result<Grant, String> {
        if self.claim.is_empty() || self.value.is_empty() {
            return Err("needs a claim and a value".to_owned());
        }
        grant(&self.role, &self.apps, self.reveal)
    }
}

impl CertificateRule {
    /// Whom it is about, and the grant; else what is wrong with the rule.
    pub fn checked(&self) -> Result<(SanPattern, Grant), String> {
        let san =
            SanPattern::parse(&self.san).map_err(|why| format!("san {:?} {why}", self.san))?;
        Ok((san, grant(&self.role, &self.apps, self.reveal)?))
    }
}

fn grant(role: &str, apps: &[String], reveal: bool) -> Result<Grant, String> {
    let known = || Role::ALL.map(Role::as_str).join(", ");
    let role =
        Role::parse(role).ok_or_else(|| format!("role {role:?} is not one of {}", known()))?;
    if !(1..=APPS_PER_GRANT).contains(&apps.len()) {
        return Err(format!("apps has {} entries; 1 to {APPS_PER_GRANT} are allowed", apps.len()));
    }
    let app =
        |text: &String| AppPattern::parse(text).map_err(|why| format!("apps: {text:?} {why}"));
    Ok(Grant { role, apps: apps.iter().map(app).collect::<Result<_, _>>()?, reveal })
}

/// TLS of the ports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub mode: Option<TlsMode>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub client_ca_file: Option<PathBuf>,
    pub client_crl_file: Option<PathBuf>,
    pub client_auth: Option<ClientAuth>,
}

/// Whether the ports speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    Off,
    On,
}

/// Whether a client has to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    Optional,
    Required,
}

/// What is wrong with who may come in: the setting, and why it cannot be like this. Several settings are named in one
/// reason where only together they are wrong.
pub(super) fn conflicts(config: &Config) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    open_to_others(config, &mut found);
    tls(config, &mut found);
    auth(config, &mut found);
    oidc(&config.auth.oidc, &mut found);
    found
}

type Found = Vec<(&'static str, String)>;

fn open_to_others(config: &Config, found: &mut Found) {
    if config.listen.ip().is_loopback() {
        return;
    }
    let consent = "listens beyond this machine: say whether callers are asked who they are with auth.mode (off or \
         required), and whether connections are encrypted with tls.mode (off or on); both have to be set";
    let missing = match (config.auth.mode, config.tls.mode) {
        (None, _) => "auth.mode",
        (_, None) => "tls.mode",
        _ => return,
    };
    found.push((missing, format!("{} {consent}", config.listen)));
}

fn tls(config: &Config, found: &mut Found) {
    let tls = &config.tls;
    let is_on = tls.mode == Some(TlsMode::On);
    let others = [
        ("tls.cert_file", tls.cert_file.is_some()),
        ("tls.key_file", tls.key_file.is_some()),
        ("tls.client_ca_file", tls.client_ca_file.is_some()),
        ("tls.client_crl_file", tls.client_crl_file.is_some()),
        ("tls.client_auth", tls.client_auth.is_some()),
    ];
    for (key, is_set) in others {
        let why = match key {
            _ if is_set && !is_on => "has no effect without tls.mode = on, which is not set",
            "tls.cert_file" | "tls.key_file" if is_on && !is_set => {
                "is missing: tls.mode = on needs tls.cert_file and tls.key_file"
            }
            "tls.client_crl_file" | "tls.client_auth" if is_set && tls.client_ca_file.is_none() => {
                "needs tls.client_ca_file: without it no client is asked for a certificate"
            }
            _ => continue,
        };
        found.push((key, why.to_owned()));
    }
}

fn auth(config: &Config, found: &mut Found) {
    let auth = &config.auth;
    let required = auth.mode == Some(AuthMode::Required);
    let others = [
        ("auth.admin_key_file", auth.admin_key_file.is_some()),
        ("auth.oidc.issuer", auth.oidc.issuer.is_some()),
        ("auth.oidc.audience", auth.oidc.audience.is_some()),
        ("auth.oidc.jwks_uri", auth.oidc.jwks_uri.is_some()),
        ("auth.oidc.jwks_file", auth.oidc.jwks_file.is_some()),
        (OIDC_RULES, !auth.oidc.rules.is_empty()),
        (CERTIFICATES, !auth.certificates.is_empty()),
    ];
    for (key, _) in others.iter().filter(|(_, is_set)| *is_set && !required) {
        let why = "has no effect without auth.mode = required, which is not set";
        found.push((key, why.to_owned()));
    }
    let ways =
        [auth.admin_key_file.is_some(), auth.oidc.issuer.is_some(), !auth.certificates.is_empty()];
    if required && !ways.contains(&true) {
        let ways =
            "lets nobody in: set auth.admin_key_file, auth.oidc.issuer or [[auth.certificates]]";
        found.push(("auth.mode", ways.to_owned()));
    }
    if !auth.certificates.is_empty() && config.tls.client_ca_file.is_none() {
        let why = "needs tls.client_ca_file, the authority that issues the certificates of clients";
        found.push((CERTIFICATES, why.to_owned()));
    }
    if let Some(uri) =
        config.mongodb.uri.as_ref().filter(|_| required && !config.mongodb.trusted_network)
        && let Some(lack) = lack(uri.expose())
    {
        let reason = format!(
            "has no {lack}, so auth.mode = required protects nothing there; a database on a network that nobody else \
             reaches is allowed by mongodb.trusted_network = true"
        );
        found.push(("mongodb.uri", reason));
    }
}

fn oidc(oidc: &Oidc, found: &mut Found) {
    let mut refuse = |key, why: &str| found.push((key, why.to_owned()));
    let Some(issuer) = &oidc.issuer else {
        let others = [
            ("auth.oidc.audience", oidc.audience.is_some()),
            ("auth.oidc.jwks_uri", oidc.jwks_uri.is_some()),
            ("auth.oidc.jwks_file", oidc.jwks_file.is_some()),
            (OIDC_RULES, !oidc.rules.is_empty()),
        ];
        for (key, _) in others.into_iter().filter(|(_, is_set)| *is_set) {
            refuse(key, "needs auth.oidc.issuer, whose tokens it is about");
        }
        return;
    };
    if oidc.audience.is_none() {
        let why = "is missing: without auth.oidc.audience tokens of auth.oidc.issuer for other services would be accepted";
        refuse("auth.oidc.audience", why);
    }
    if oidc.rules.is_empty() {
        let why = "are missing: without [[auth.oidc.rules]] nobody whom auth.oidc.issuer knows may do anything";
        refuse(OIDC_RULES, why);
    }
    let source = "is where keys come from: https, or http on a loopback address";
    match (&oidc.jwks_uri, &oidc.jwks_file) {
        (Some(_), Some(_)) => {
            refuse("auth.oidc.jwks_uri", "is set beside auth.oidc.jwks_file: one of the two");
        }
        (Some(uri), None) if !is_safe_source(uri.expose()) => refuse("auth.oidc.jwks_uri", source),
        (None, None) if !is_safe_source(issuer) => refuse("auth.oidc.issuer", source),
        _ => {}
    }
}

/// What a connection string to another machine lacks.
fn lack(uri: &str) -> Option<&'static str> {
    match Safety::of(uri) {
        Safety { elsewhere: false, .. } => None,
        Safety { authenticates: false, .. } => Some("credentials"),
        Safety { tls, .. } => (!tls).then_some("TLS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_elsewhere_needs_credentials_and_tls() {
        for (uri, expected) in [
            ("mongodb://localhost:27017,127.0.0.1:5/x", None),
            ("mongodb://[::1]:27017", None),
            ("mongodb://%2Ftmp%2Fmongodb-27017.sock", None),
            ("mongodb://db:27017", Some("credentials")),
            ("mongodb://localhost,db", Some("credentials")),
            ("mongodb://u:p@db:27017", Some("TLS")),
            ("mongodb://u:p@db/?ssl=false", Some("TLS")),
            ("mongodb://u:p@db/?replicaSet=r&tls=true", None),
            ("mongodb+srv://u:p@db.example", None),
            ("mongodb+srv://db.example", Some("credentials")),
            ("mongodb+srv://u:p@db.example/?tls=false", Some("TLS")),
            ("mongodb://db/?authMechanism=MONGODB-X509&tls=true", None),
        ] {
            assert_eq!(lack(uri), expected, "{uri}");
        }
    }
}

//! Where the keys of a provider come from over the network.

use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;
use serde::Deserialize;

use crate::domain::hosts::is_safe_source;

/// How long a fetch may take; calls whose token names an unknown key wait for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longer answers are no set of keys.
const MOST_BYTES: usize = 1024 * 1024;
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Where the keys of a provider are published.
#[derive(Debug, Clone)]
pub enum Source {
    /// Here.
    Uri(String),
    /// Where the provider says.
    Discovery,
}

/// Fetches keys.
pub struct Fetch {
    source: Source,
    issuer: String,
    client: Client,
}

/// What a provider says of itself.
#[derive(Deserialize)]
struct Provider {
    issuer: String,
    jwks_uri: String,
}

impl Fetch {
    pub fn new(source: Source, issuer: &str) -> Result<Fetch, String> {
        // The cryptography of everything else here; whoever comes first decides for the process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(TIMEOUT)
            .redirect(Policy::none())
            .user_agent(concat!("stepwell/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| cause(&error))?;
        Ok(Fetch { source, issuer: issuer.to_owned(), client })
    }

    /// The setting that says where the keys come from.
    pub fn setting(&self) -> &'static str {
        match self.source {
            Source::Uri(_) => "auth.oidc.jwks_uri",
            Source::Discovery => "auth.oidc.issuer",
        }
    }

    /// What is published now; else why it cannot be had.
    pub async fn keys(&self) -> Result<Vec<u8>, String> {
        let uri = match &self.source {
            Source::Uri(uri) => uri.clone(),
            Source::Discovery => self.discover().await?,
        };
        self.get(&uri).await
    }

    async fn discover(&self) -> Result<String, String> {
        let at = format!("{}{DISCOVERY}", self.issuer.trim_end_matches('/'));
        let said = self.get(&at).await?;
        let said: Provider = serde_json::from_slice(&said)
            .map_err(|_| "says nothing about itself that has issuer and jwks_uri".to_owned())?;
        if said.issuer != self.issuer {
            return Err(format!("says that it is {:?}", said.issuer));
        }
        match is_safe_source(&said.jwks_uri) {
            true => Ok(said.jwks_uri),
            false => Err("has its keys where others may change them: without TLS".to_owned()),
        }
    }

    async fn get(&self, uri: &str) -> Result<Vec<u8>, String> {
        let asked = self.client.get(uri).header("accept", "application/json").send();
        let mut answer = asked.await.map_err(|error| cause(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("answers {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| cause(&error))? {
            if body.len() + piece.len() > MOST_BYTES {
                return Err(format!("answers more than {MOST_BYTES} bytes"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

/// The innermost cause: what the library says itself is only that something failed.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    format!("cannot be reached: {cause}")
}

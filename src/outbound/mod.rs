//! Requests to addresses that somebody outside chose: each is sent over a connection to an address that was looked up and
//! checked for it, whatever was found before, and through no proxy. Of the answer only the status is read. Knows no
//! records.

mod connect;
mod failure;
mod resolve;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use url::{Host, Url};

use crate::clock::Clock;
use crate::domain::notification::address::{Network, is_allowed};

use connect::{Connections, Place};
pub use failure::Failure;
pub use resolve::{Resolve, SystemResolver};

/// Characters of a `Retry-After`: a date has 29.
const RETRY_AFTER_CHARACTERS: usize = 64;

/// Where requests may go.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Also without TLS.
    pub allow_http: bool,
    /// Also to addresses of these networks.
    pub networks: Vec<Network>,
}

/// What is kept of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
}

/// What is wrong with a URL, as the end of a sentence about it; known without asking anybody.
pub fn check_url(text: &str, rules: &Rules) -> Result<Url, &'static str> {
    let url = read_url(text, rules)?;
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) | None => None,
    };
    if literal.is_some_and(|address| !is_allowed(address, &rules.networks)) {
        return Err("has an address that is not public: notifications.allow_networks allows it");
    }
    Ok(url)
}

fn read_url(text: &str, rules: &Rules) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    match url.scheme() {
        "https" => {}
        "http" if rules.allow_http => {}
        "http" => return Err("has no TLS: use https, or set notifications.allow_http"),
        _ => return Err("must begin with https://"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has credentials in it: send them in a header");
    }
    if url.fragment().is_some() {
        return Err("has a fragment, which is never sent");
    }
    match url.host() {
        None => Err("names no host"),
        Some(_) => Ok(url),
    }
}

/// Sends requests.
pub struct Outbound {
    rules: Rules,
    resolver: Arc<dyn Resolve>,
    connections: Connections,
    /// From the look-up of the name to the answer.
    patience: Duration,
}

impl Outbound {
    pub fn new(
        rules: Rules,
        resolver: Arc<dyn Resolve>,
        patience: Duration,
        clock: Arc<dyn Clock>,
    ) -> Outbound {
        Outbound { rules, resolver, connections: Connections::new(clock), patience }
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Posts a body. Redirects are answers like others.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        match tokio::time::timeout(self.patience, self.try_post(url, headers, body)).await {
            Ok(answered) => answered,
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn try_post(
        &self,
        url: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let url = read_url(url, &self.rules).map_err(|_| Failure::Url)?;
        let place = Place::of(&url).ok_or(Failure::Url)?;
        let addresses = self.resolve(&place).await?;
        let host = HeaderValue::from_str(&place.authority()).map_err(|_| Failure::Url)?;
        headers.insert(HOST, host);
        let agent = concat!("stepwell/", env!("CARGO_PKG_VERSION"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let request = || {
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = target.parse().map_err(|_| Failure::Url)?;
            request.headers_mut().clone_from(&headers);
            Ok(request)
        };
        let head = self.connections.send(&place, &addresses, request).await?;
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: head.status.as_u16(),
            retry_after: retry_after
                .filter(|text| text.len() <= RETRY_AFTER_CHARACTERS)
                .map(str::to_owned),
        })
    }

    /// The addresses of a place, now. One that is not allowed forbids all: who answers for the name cannot be trusted to
    /// mean the others.
    async fn resolve(&self, place: &Place) -> Result<Vec<IpAddr>, Failure> {
        let addresses = match place.host() {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => {
                self.resolver.resolve(name).await.map_err(|_| Failure::Unresolved)?
            }
        };
        if addresses.is_empty() {
            return Err(Failure::Unresolved);
        }
        match addresses.iter().all(|address| is_allowed(*address, &self.rules.networks)) {
            true => Ok(addresses),
            false => Err(Failure::ForbiddenAddress),
        }
    }
}

#[cfg(test)]
mod tests;

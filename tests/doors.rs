//! The doors of a server on a network: TLS, certificates of clients, tokens of an identity provider, and what a server reads
//! again while it runs.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "doors/certificates.rs"]
mod certificates;
#[path = "doors/cli.rs"]
mod cli;
#[path = "doors/oidc.rs"]
mod oidc;
#[path = "doors/reload.rs"]
mod reload;
#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;
#[path = "doors/tls.rs"]
mod tls;

use stepwell::config::Config;
use support::Client;
use support::access::Caller;
use support::authority::{Authority, HERE, Issued, Papers, connect};
use support::backend::{Backend, Kind};
use support::server::Server;

/// A server that speaks TLS, its authority, and its files.
struct Encrypted {
    server: Server,
    authority: Authority,
    papers: Papers,
    backend: Backend,
}

impl Encrypted {
    async fn start(change: impl FnOnce(&mut Config, &Papers)) -> Encrypted {
        let (backend, authority) = (Backend::fresh(Kind::Sqlite), Authority::new("servers"));
        let papers = Papers::new();
        papers.identify(&authority.issue(HERE));
        let server = backend
            .serve_with(|config| {
                papers.tls(config);
                change(config, &papers);
            })
            .await;
        Encrypted { server, authority, papers, backend }
    }

    /// Somebody without a certificate, over a new connection.
    fn client(&self) -> Client {
        Client {
            channel: connect(self.server.address(), &[&self.authority], None),
            address: String::new(),
        }
    }

    /// Somebody with this certificate and this key, or without, over a new connection.
    fn caller(&self, shown: Option<&Issued>, key: Option<&str>) -> Caller {
        Caller::over(connect(self.server.address(), &[&self.authority], shown), key)
    }
}

//! Files that a running server reads again: everything is changed under load, and nobody notices.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stepwell::auth::key::Key;
use stepwell::config::{AuthMode, CertificateRule};
use stepwell::proto::*;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::Encrypted;
use crate::support::access::Caller;
use crate::support::authority::{Authority, HERE, Issued, Papers, connect_by};
use crate::support::client::*;
use crate::support::process::{Guarded, free_port};
use crate::support::{eventually, run};
use crate::tls::handshake;

const HOLDS_WITHIN: Duration = Duration::from_secs(10);

/// The certificate that a server shows to whoever connects now.
async fn shown(address: impl ToString, authority: &Authority) -> Option<Vec<u8>> {
    let versions = &[&rustls::version::TLS13];
    let stream = handshake(address, authority, versions, &["h2"]).await.ok()?;
    let certificates = stream.get_ref().1.peer_certificates()?;
    Some(certificates.first()?.to_vec())
}

/// What is there of a metric in this process.
fn metric(name: &str, labels: &str) -> f64 {
    let text = stepwell::telemetry::metrics::render();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{{labels}}} ")));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Callers that call again and again, over the connections that this makes.
struct Load {
    stop: Arc<AtomicBool>,
    /// How many calls of each task have ended.
    calls: Vec<Arc<AtomicU64>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn new() -> Load {
        Load { stop: Arc::default(), calls: Vec::new(), tasks: Vec::new() }
    }

    /// `caller` makes the caller of each call.
    fn add(&mut self, name: &'static str, caller: impl Fn() -> Caller + Send + 'static) {
        let (stop, calls) = (Arc::clone(&self.stop), Arc::<AtomicU64>::default());
        self.calls.push(Arc::clone(&calls));
        self.tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                if let Err(status) = caller().who().await {
                    panic!("a call failed ({name}): {status:?}");
                }
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }

    /// Until every call that has begun by now has ended: each task makes one after the other.
    async fn turn(&self) {
        for calls in &self.calls {
            let before = calls.load(Ordering::SeqCst);
            eventually("a call ends", async || {
                let failed = self.tasks.iter().any(tokio::task::JoinHandle::is_finished);
                (failed || calls.load(Ordering::SeqCst) > before).then_some(())
            })
            .await;
        }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            if let Err(failed) = task.await {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
        self.calls.iter().map(|calls| calls.load(Ordering::SeqCst)).sum()
    }
}

/// Something that others use while it is changed.
type Shared<T> = Arc<parking_lot::Mutex<T>>;

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(parking_lot::Mutex::new(value))
}

#[test]
fn certificates_authorities_and_admin_keys_are_changed_under_load_without_a_failed_call() {
    run(async {
        let (old_clients, new_clients) = (Authority::new("old"), Authority::new("new"));
        let (old_key, new_key) = (Key::generate().expect("one"), Key::generate().expect("another"));
        let e = Encrypted::start(|config, papers| {
            config.auth.mode = Some(AuthMode::Required);
            config.auth.admin_key_file = Some(papers.write("admin-keys", old_key.expose()));
            config.auth.certificates = vec![CertificateRule {
                san: "app.example".to_owned(),
                role: "viewer".to_owned(),
                apps: vec!["*".to_owned()],
                reveal: false,
            }];
            config.tls.client_ca_file = Some(papers.write("clients.pem", &old_clients.pem()));
        })
        .await;
        let Encrypted { server, authority, papers, .. } = &e;
        let address = server.address();
        let servers = shared(vec![Authority::pem(authority)]);
        let trusting = {
            let servers = Arc::clone(&servers);
            move |shown: Option<&Issued>| -> Channel { connect_by(address, &servers.lock(), shown) }
        };
        let key = shared(old_key.expose().to_owned());
        let app = shared(old_clients.issue(&["app.example"]));

        let mut load = Load::new();
        let (lasting, held) = (trusting(None), Arc::clone(&key));
        load.add("a key, one connection", move || {
            Caller::over(lasting.clone(), Some(&held.lock()))
        });
        let (open, held) = (trusting.clone(), Arc::clone(&key));
        load.add("a key, new connections", move || Caller::over(open(None), Some(&held.lock())));
        let lasting = trusting(Some(&app.lock()));
        load.add("a certificate, one connection", move || Caller::over(lasting.clone(), None));
        let (open, held) = (trusting.clone(), Arc::clone(&app));
        load.add("a certificate, new connections", move || {
            Caller::over(open(Some(&held.lock())), None)
        });

        // The certificate of the server, of the same authority and then of another one.
        let other = Authority::new("other servers");
        servers.lock().push(other.pem());
        for issuer in [authority, &other] {
            let next = issuer.issue(HERE);
            let began = Instant::now();
            papers.identify(&next);
            eventually("it is shown", async || {
                (shown(address, issuer).await? == next.der).then_some(())
            })
            .await;
            assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());
        }
        // The authority of the clients: both, then only the new one.
        let next = new_clients.issue(&["app.example"]);
        let began = Instant::now();
        papers.write("clients.pem", &format!("{}{}", old_clients.pem(), new_clients.pem()));
        eventually("the new authority is believed", async || {
            Caller::over(trusting(Some(&next)), None).who().await.ok()
        })
        .await;
        assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());
        let before = std::mem::replace(&mut *app.lock(), next);
        load.turn().await;
        let began = Instant::now();
        papers.write("clients.pem", &new_clients.pem());
        eventually("the old authority is believed no more", async || {
            Caller::over(trusting(Some(&before)), None).who().await.err()
        })
        .await;
        assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());
        // The admin key: two lines, then only the new one.
        let began = Instant::now();
        papers.write("admin-keys", &format!("{}\n{}\n", old_key.expose(), new_key.expose()));
        let with = |key: &Key| Caller::over(trusting(None), Some(key.expose()));
        eventually("the new key is good", async || with(&new_key).who().await.ok()).await;
        assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());
        new_key.expose().clone_into(&mut key.lock());
        load.turn().await;
        let began = Instant::now();
        papers.write("admin-keys", new_key.expose());
        eventually("the old key is good no more", async || with(&old_key).who().await.err()).await;
        assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());

        let calls = load.end().await;
        assert!(calls > 200, "only {calls} calls");
    });
}

#[test]
fn an_open_watch_goes_on_while_certificates_change() {
    run(async {
        let e = Encrypted::start(|_, _| {}).await;
        let (address, client) = (e.server.address(), e.client());
        let mut watch = client.watch_all(watch_all()).await;
        watch.snapshot().await;
        let next = e.authority.issue(HERE);
        e.papers.identify(&next);
        eventually("it is shown", async || {
            (shown(address, &e.authority).await? == next.der).then_some(())
        })
        .await;
        e.client().create("later").await;
        watch.until("it is told", |event| event.execution().is_some()).await;
    });
}

#[test]
fn what_cannot_be_used_leaves_in_force_what_was_there() {
    run(async {
        let e = Encrypted::start(|_, _| {}).await;
        let address = e.server.address();
        let at_first = shown(address, &e.authority).await.expect("a certificate");
        let failures =
            |what: &str| metric("stepwell_reload_failures_total", &format!("what=\"{what}\""));
        let other = e.authority.issue(HERE);
        let cases: [(&str, &str, Option<String>); 5] = [
            ("server.key", "tls.key_file", Some(other.key.clone())),
            ("server.key", "tls.key_file", Some("nonsense".to_owned())),
            (
                "server.pem",
                "tls.cert_file",
                Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
            ),
            ("server.pem", "tls.cert_file", Some(String::new())),
            ("server.pem", "tls.cert_file", None),
        ];
        for (file, setting, bad) in cases {
            let good = std::fs::read_to_string(e.papers.path(file)).expect("a file");
            let before = failures(setting);
            let began = Instant::now();
            match &bad {
                Some(bad) => drop(e.papers.write(file, bad)),
                None => std::fs::remove_file(e.papers.path(file)).expect("removed"),
            }
            eventually("it is complained of", async || (failures(setting) > before).then_some(()))
                .await;
            assert!(began.elapsed() < HOLDS_WITHIN, "{:?}", began.elapsed());
            assert_eq!(shown(address, &e.authority).await.as_ref(), Some(&at_first), "{bad:?}");
            e.client()
                .try_list_executions(ListExecutionsRequest::default())
                .await
                .expect("it serves");
            e.papers.write(file, &good);
        }
        let next = e.authority.issue(HERE);
        e.papers.identify(&next);
        eventually("the next good one is taken", async || {
            (shown(address, &e.authority).await? == next.der).then_some(())
        })
        .await;
        let expiry = metric("stepwell_certificate_expiry_seconds", "file=\"tls.cert_file\"");
        assert!((3_786_912_000.0..3_787_000_000.0).contains(&expiry), "{expiry}");
    });
}

/// SIGHUP ends nobody; what is wrong is said again, and what is right holds.
#[test]
fn files_are_read_again_on_sighup() {
    const STEPWELL: &str = env!("CARGO_BIN_EXE_stepwell");
    run(async {
        let dir = TempDir::with_prefix("stepwell-reload-").expect("a temp dir");
        let (authority, papers) = (Authority::new("servers"), Papers::new());
        papers.identify(&authority.issue(HERE));
        let address = format!("127.0.0.1:{}", free_port());
        let args = [
            "serve".to_owned(),
            format!("--listen={address}"),
            format!("--data-dir={}", dir.path().join("data").display()),
            "--tls-mode=on".to_owned(),
            format!("--tls-cert-file={}", papers.path("server.pem").display()),
            format!("--tls-key-file={}", papers.path("server.key").display()),
        ];
        let mut server = Guarded::start(Path::new(STEPWELL), &args, &dir.path().join("log"), None);
        let log = || std::fs::read_to_string(dir.path().join("log")).expect("a log");
        eventually("it serves", async || shown(&address, &authority).await).await;
        let good = std::fs::read_to_string(papers.path("server.key")).expect("a key");
        papers.write("server.key", "nonsense");
        let complaints = || log().matches("tls.key_file has no private key").count();
        eventually("it is complained of", async || (complaints() == 1).then_some(())).await;
        for more in [2, 3] {
            server.signal(Signal::SIGHUP);
            eventually("it is complained of again", async || (complaints() == more).then_some(()))
                .await;
        }
        papers.write("server.key", &good);
        let next = authority.issue(HERE);
        papers.identify(&next);
        server.signal(Signal::SIGHUP);
        eventually("it is in force", async || {
            (shown(&address, &authority).await? == next.der).then_some(())
        })
        .await;
        assert!(!log().contains("nonsense"), "{}", log());
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait(Duration::from_secs(30)), 0, "{}", log());
    });
}

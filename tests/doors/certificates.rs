//! Certificates of clients as credentials.

use std::time::{Duration, Instant};

use prost::Message as _;
use stepwell::auth::key::Key;
use stepwell::config::{AuthMode, CertificateRule, ClientAuth, Config};
use stepwell::proto::*;
use tonic::Code;

use crate::Encrypted;
use crate::support::access::{Caller, grant};
use crate::support::authority::{Authority, Issued, Papers};
use crate::support::client::*;
use crate::support::{eventually, in_time, run};

fn rule(san: &str, role: &str, apps: &[&str]) -> CertificateRule {
    CertificateRule {
        san: san.to_owned(),
        role: role.to_owned(),
        apps: apps.iter().map(|app| (*app).to_owned()).collect(),
        reveal: false,
    }
}

/// What a server knows of the certificates of clients.
struct Clients {
    authority: Authority,
    admin: Key,
}

impl Clients {
    fn new() -> Clients {
        Clients {
            authority: Authority::new("clients"),
            admin: Key::generate().expect("randomness"),
        }
    }

    fn known(&self, config: &mut Config, papers: &Papers) {
        config.auth.mode = Some(AuthMode::Required);
        config.auth.admin_key_file = Some(papers.write("admin-keys", self.admin.expose()));
        config.auth.certificates = vec![
            rule("spiffe://org/reporters/*", "reporter", &["shop"]),
            rule("viewer.example", "viewer", &["shop"]),
            rule("both.example", "viewer", &["other"]),
            rule("admin.example", "admin", &["*"]),
        ];
        config.tls.client_ca_file = Some(papers.write("clients.pem", &self.authority.pem()));
    }

    async fn serve(&self, change: impl FnOnce(&mut Config, &Papers)) -> Encrypted {
        Encrypted::start(|config, papers| {
            self.known(config, papers);
            change(config, papers);
        })
        .await
    }

    fn issue(&self, names: &[&str]) -> Issued {
        self.authority.issue(names)
    }
}

/// It was made on this side of the wire: nobody there has answered.
#[track_caller]
fn never_connected(status: &tonic::Status) {
    assert!(std::error::Error::source(status).is_some(), "{status:?}");
}

fn of_shop(id: &str) -> CreateExecutionRequest {
    CreateExecutionRequest { app_name: "shop".to_owned(), ..create(id) }
}

async fn make(caller: &Caller, request: CreateExecutionRequest) -> Answer<Execution> {
    let made: CreateExecutionResponse =
        caller.unary("ExecutionService/CreateExecution", request).await?;
    Ok(made.execution.expect("an execution"))
}

async fn list(caller: &Caller) -> Answer<Vec<String>> {
    let request = ListExecutionsRequest::default();
    let listed: ListExecutionsResponse =
        caller.unary("ExecutionService/ListExecutions", request).await?;
    Ok(listed.executions.into_iter().map(|execution| execution.execution_id).collect())
}

#[test]
fn a_certificate_is_known_by_its_names_and_not_by_its_common_name() {
    run(async {
        let clients = Clients::new();
        let e = clients.serve(|_, _| {}).await;
        let shown = clients.issue(&["10.0.0.1", "spiffe://org/reporters/7"]);
        let reporter = e.caller(Some(&shown), None);
        let who = ok(reporter.who().await);
        assert_eq!(who.kind(), CallerKind::Certificate);
        assert_eq!(who.name, "spiffe://org/reporters/7");
        let expires_at = who.expires_at.expect("an end").seconds;
        assert_eq!(expires_at, 3_786_912_000, "2090-01-01");
        let [Grant { role, apps, reveal: false }] = who.grants.as_slice() else {
            panic!("{who:?}")
        };
        assert_eq!((role.as_str(), apps.as_slice()), ("reporter", &["shop".to_owned()][..]));
        ok(make(&reporter, of_shop("mine")).await);
        refused(
            make(&reporter, CreateExecutionRequest { app_name: "b".to_owned(), ..create("b") })
                .await,
            Code::PermissionDenied,
            "SCOPE_FORBIDS",
        );
        refused(list(&reporter).await, Code::PermissionDenied, "ROLE_FORBIDS");
        // What it makes is by whom the certificate names.
        let admin = e.caller(Some(&clients.issue(&["admin.example"])), None);
        let request = CreateKeyRequest {
            name: "k".to_owned(),
            grants: vec![grant("viewer", &["shop"])],
            ..Default::default()
        };
        let made: CreateKeyResponse = ok(admin.unary("AuthService/CreateKey", request).await);
        assert_eq!(made.key.expect("a key").created_by, "admin.example");
        // All rules of all names count.
        let both = e.caller(Some(&clients.issue(&["viewer.example", "both.example"])), None);
        assert_eq!(ok(both.who().await).grants.len(), 2);
        assert_eq!(ok(list(&both).await), ["mine"]);
        // Whom no rule names has no credential, whatever else the certificate says.
        for nobody in [
            clients.authority.issue_without_names("viewer.example"),
            clients.authority.issue_without_names("spiffe://org/reporters/7"),
            clients.issue(&["stranger.example"]),
            clients.issue(&["viewer.example.evil"]),
            clients.issue(&["urn:viewer.example"]),
        ] {
            let nobody = e.caller(Some(&nobody), None);
            refused(nobody.who().await, Code::Unauthenticated, "CREDENTIAL_MISSING");
            refused(list(&nobody).await, Code::Unauthenticated, "CREDENTIAL_MISSING");
        }
    });
}

#[test]
fn a_bearer_decides_and_a_certificate_never_makes_up_for_a_bad_one() {
    run(async {
        let clients = Clients::new();
        let e = clients.serve(|_, _| {}).await;
        let shown = clients.issue(&["viewer.example"]);
        let both = e.caller(Some(&shown), Some(clients.admin.expose()));
        assert_eq!(ok(both.who().await).kind(), CallerKind::AdminKey);
        let good = e.caller(Some(&shown), None);
        ok(list(&good).await);
        let stranger = Key::generate().expect("randomness");
        for values in [
            vec![format!("Bearer {}", stranger.expose())],
            vec!["Bearer ".to_owned()],
            vec!["Basic YTpi".to_owned()],
            vec!["x".to_owned()],
            vec![format!("Bearer {}", clients.admin.expose()); 2],
        ] {
            let bad = Caller { authorization: values.clone(), ..good.clone() };
            refused(bad.who().await, Code::Unauthenticated, "CREDENTIAL_INVALID");
            refused(list(&bad).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        }
        // On the same connection each call is decided by itself.
        ok(list(&good).await);
    });
}

#[test]
fn who_has_to_show_a_certificate_gets_no_connection_without_a_good_one() {
    run(async {
        let clients = Clients::new();
        let required =
            clients.serve(|config, _| config.tls.client_auth = Some(ClientAuth::Required)).await;
        let optional = clients.serve(|_, _| {}).await;
        let key = Some(clients.admin.expose());
        let shown = clients.issue(&["viewer.example"]);
        let strange = Authority::new("clients").issue(&["viewer.example"]);
        let over = clients.authority.issue_for(&["viewer.example"], -5);
        for e in [&required, &optional] {
            ok(list(&e.caller(Some(&shown), None)).await);
            ok(e.caller(Some(&clients.issue(&["stranger.example"])), key).who().await);
            // What another authority of the same name has issued, and what has expired.
            for bad in [&strange, &over] {
                let status = e.caller(Some(bad), key).who().await.expect_err("not believed");
                never_connected(&status);
            }
        }
        ok(optional.caller(None, key).who().await);
        refused(
            optional.caller(None, None).who().await,
            Code::Unauthenticated,
            "CREDENTIAL_MISSING",
        );
        never_connected(&required.caller(None, key).who().await.expect_err("no certificate"));
    });
}

#[test]
fn a_revoked_certificate_gets_no_new_connection_once_the_list_is_there() {
    run(async {
        let clients = Clients::new();
        let e = clients
            .serve(|config, papers| {
                let none = clients.authority.revoke(&[]);
                config.tls.client_crl_file = Some(papers.write("revoked.pem", &none));
            })
            .await;
        let (bad, good) = (clients.issue(&["viewer.example"]), clients.issue(&["viewer.example"]));
        let open = e.caller(Some(&bad), None);
        ok(list(&open).await);
        let began = Instant::now();
        e.papers.write("revoked.pem", &clients.authority.revoke(&[&bad]));
        eventually("it is refused", async || list(&e.caller(Some(&bad), None)).await.err()).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        ok(list(&e.caller(Some(&good), None)).await);
        ok(list(&open).await);
    });
}

#[test]
fn calls_and_streams_end_with_the_certificate() {
    run(async {
        let clients = Clients::new();
        let e = clients.serve(|_, _| {}).await;
        let lasts = Duration::from_secs(4);
        let began = Instant::now();
        let shown = clients.authority.issue_for(&["viewer.example"], 4);
        let caller = e.caller(Some(&shown), None);
        const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecutions";
        let mut stream = ok(caller.open(WATCH, vec![watch_all().encode_to_vec()]).await);
        let ended = loop {
            match in_time("the end of a stream", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream of an expired certificate ended well"),
                Err(status) => break status,
            }
        };
        check_refusal(&ended, Code::Unauthenticated, "CREDENTIAL_EXPIRED");
        let took = began.elapsed();
        assert!(took > lasts - Duration::from_secs(1), "{took:?}");
        assert!(took < lasts + Duration::from_secs(10), "{took:?}");
        // The connection is the same.
        refused(list(&caller).await, Code::Unauthenticated, "CREDENTIAL_EXPIRED");
        // A good key on it counts all the same.
        let caller =
            Caller { authorization: vec![format!("Bearer {}", clients.admin.expose())], ..caller };
        ok(list(&caller).await);
    });
}

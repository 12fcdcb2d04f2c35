//! Tokens of an identity provider as credentials, and everything that somebody tries with them.

use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Value, json};
use stepwell::auth::key::Key;
use stepwell::config::{AuthMode, Config, OidcRule, Secret};
use stepwell::proto::*;
use tonic::Code;

use crate::support::access::Caller;
use crate::support::authority::Papers;
use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::issuer::{Issuer, SigningKey, hs256, set, token};
use crate::support::server::Server;
use crate::support::values::wall_clock_ms;
use crate::support::{eventually, in_time, run};

const AUDIENCE: &str = "stepwell";

fn rule(claim: &str, value: &str, role: &str, apps: &[&str]) -> OidcRule {
    OidcRule {
        claim: claim.to_owned(),
        value: value.to_owned(),
        role: role.to_owned(),
        apps: apps.iter().map(|app| (*app).to_owned()).collect(),
        reveal: false,
    }
}

fn now() -> i64 {
    wall_clock_ms() / 1000
}

/// A server that believes an issuer.
struct Believing {
    server: Server,
    issuer: Issuer,
    /// What is left of it goes with it.
    _backend: Backend,
}

fn believe(config: &mut Config, issuer: &str) {
    config.auth.mode = Some(AuthMode::Required);
    config.mongodb.trusted_network = true;
    config.auth.oidc.issuer = Some(issuer.to_owned());
    config.auth.oidc.audience = Some(AUDIENCE.to_owned());
    config.auth.oidc.rules = vec![
        rule("groups", "viewers", "viewer", &["shop"]),
        rule("realm.roles", "admin", "admin", &["*"]),
        rule("groups", "auditors", "auditor", &["*"]),
    ];
}

impl Believing {
    async fn start(
        kind: Kind,
        keys: &[&SigningKey],
        change: impl FnOnce(&mut Config),
    ) -> Believing {
        let issuer = Issuer::start().await;
        issuer.publish(keys);
        let backend = Backend::fresh(kind);
        let server = backend
            .serve_with(|config| {
                believe(config, &issuer.url());
                change(config);
            })
            .await;
        Believing { server, issuer, _backend: backend }
    }

    /// Claims that are enough.
    fn claims(&self) -> Value {
        claims(&self.issuer.url())
    }

    fn caller(&self, token: &str) -> Caller {
        Caller::new(&self.server, token)
    }
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": AUDIENCE, "sub": "user-7", "exp": now() + 600, "iat": now(),
        "groups": ["others", "viewers"],
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(claims.as_object_mut().expect("claims").remove(name)),
        value => claims[name] = value,
    }
    claims
}

async fn list(caller: &Caller) -> Answer<ListExecutionsResponse> {
    caller.unary("ExecutionService/ListExecutions", ListExecutionsRequest::default()).await
}

#[test]
fn a_token_gives_what_the_rules_say_of_its_claims() {
    for kind in Kind::ALL {
        run(async {
            let keys = ["ES256", "ES384", "EdDSA", "RS256", "PS384"]
                .map(|algorithm| SigningKey::new(algorithm, algorithm));
            let all: Vec<&SigningKey> = keys.iter().collect();
            let b = Believing::start(kind, &all, |_| {}).await;
            for key in &keys {
                let viewer = b.caller(&key.token(&b.claims()));
                let who = ok(viewer.who().await);
                assert_eq!(who.kind(), CallerKind::Oidc, "{}", key.kid);
                assert_eq!((who.id.as_str(), who.name.as_str()), ("user-7", "user-7"));
                let expires_at = who.expires_at.expect("an end").seconds;
                assert!((expires_at - now() - 600).abs() < 60, "{expires_at}");
                assert_eq!(who.grants.len(), 1);
                assert!(who.methods.iter().any(|method| method.ends_with(".ListExecutions")));
                ok(list(&viewer).await);
            }
            let [key, ..] = &keys;
            let admin = with(b.claims(), "realm", json!({ "roles": ["admin"] }));
            let admin = b.caller(&key.token(&admin));
            assert_eq!(ok(admin.who().await).grants.len(), 2);
            let request = CreateKeyRequest {
                name: "k".to_owned(),
                grants: vec![crate::support::access::grant("viewer", &["shop"])],
                ..Default::default()
            };
            let made: CreateKeyResponse = ok(admin.unary("AuthService/CreateKey", request).await);
            assert_eq!(made.key.expect("a key").created_by, "user-7");
            // A key is a credential beside it.
            assert_eq!(ok(b.caller(&made.secret).who().await).kind(), CallerKind::Key);
            // No rule, no grant.
            let nobody = b.caller(&key.token(&with(b.claims(), "groups", json!(["others"]))));
            assert_eq!(ok(nobody.who().await).grants, []);
            refused(list(&nobody).await, Code::PermissionDenied, "ROLE_FORBIDS");
        });
    }
}

/// What is wrong with each is told to nobody: all are refused in the same words, unless a good one has merely expired.
#[test]
fn what_somebody_makes_of_a_token_is_refused() {
    run(async {
        let (rsa, ec) = (SigningKey::new("rsa", "RS256"), SigningKey::new("ec", "ES256"));
        let stranger = SigningKey::new("ec", "ES256");
        let b = Believing::start(Kind::Sqlite, &[&rsa, &ec], |_| {}).await;
        let claims = b.claims();
        ok(b.caller(&rsa.token(&claims)).who().await);
        let good = ec.token(&claims);
        ok(b.caller(&good).who().await);
        let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
        let secret = rsa.public_text();
        let with_secret =
            |kid: &str| token(&header("HS256", kid), &claims, |message| hs256(&secret, message));
        let mut parts = good.split('.').map(str::to_owned).collect::<Vec<_>>();
        let others = ec.token(&with(claims.clone(), "sub", json!("admin")));
        let bad = [
            ("nothing signed it", token(&header("none", "ec"), &claims, |_| Vec::new())),
            ("none in other letters", token(&header("nOnE", "ec"), &claims, |_| Vec::new())),
            ("the public key as a secret", with_secret("rsa")),
            ("the same with the other key", with_secret("ec")),
            ("another algorithm of the same key", rsa.token_with(&header("PS256", "rsa"), &claims)),
            ("an algorithm of another key", rsa.token_with(&header("ES256", "rsa"), &claims)),
            ("a key of another kind", rsa.token_with(&header("RS256", "ec"), &claims)),
            ("a key of another provider", stranger.token(&claims)),
            (
                "an extension",
                ec.token_with(
                    &json!({ "alg": "ES256", "kid": "ec", "crit": ["x"], "x": 1 }),
                    &claims,
                ),
            ),
            (
                "a key of its own",
                stranger.token_with(
                    &json!({ "alg": "ES256", "kid": "ec", "jwk": stranger.jwk() }),
                    &claims,
                ),
            ),
            (
                "no key named of two",
                ec.token_with(&json!({ "alg": "RS256", "kid": Value::Null }), &claims),
            ),
            ("another audience", ec.token(&with(claims.clone(), "aud", json!("other")))),
            ("no audience", ec.token(&with(claims.clone(), "aud", Value::Null))),
            ("another issuer", ec.token(&with(claims.clone(), "iss", json!("https://evil")))),
            ("no issuer", ec.token(&with(claims.clone(), "iss", Value::Null))),
            ("no end", ec.token(&with(claims.clone(), "exp", Value::Null))),
            ("an end that is text", ec.token(&with(claims.clone(), "exp", json!("9999999999")))),
            ("nobody", ec.token(&with(claims.clone(), "sub", Value::Null))),
            ("not yet", ec.token(&with(claims.clone(), "nbf", json!(now() + 300)))),
            ("the claims of another", {
                parts[1] = others.split('.').nth(1).expect("claims").to_owned();
                parts.join(".")
            }),
            ("no signature", format!("{}.", good.rsplit_once('.').expect("a signature").0)),
            ("more parts", format!("{good}.{good}")),
        ];
        // Beyond twenty bad ones a server does not look into more for a while.
        for few in bad.chunks(15) {
            let fresh = Backend::fresh(Kind::Sqlite);
            let server = fresh.serve_with(|config| believe(config, &b.issuer.url())).await;
            for (what, token) in few {
                let status = list(&Caller::new(&server, token)).await.expect_err(what);
                check_refusal(&status, Code::Unauthenticated, "CREDENTIAL_INVALID");
                assert_eq!(
                    status.message(),
                    "the credential is not valid on this server",
                    "{what}"
                );
            }
        }
        let over = ec.token(&with(claims.clone(), "exp", json!(now() - 61)));
        refused(list(&b.caller(&over)).await, Code::Unauthenticated, "CREDENTIAL_EXPIRED");
        // Clocks differ.
        let nearly = ec.token(&with(claims.clone(), "exp", json!(now() - 30)));
        ok(list(&b.caller(&nearly)).await);
        // One of two headers would count; none does.
        let two = [format!("Bearer {good}"), format!("Bearer {good}")].to_vec();
        let two = Caller { authorization: two, ..b.caller(&good) };
        refused(list(&two).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        let mixed = [format!("Bearer {over}"), format!("Bearer {good}")].to_vec();
        let mixed = Caller { authorization: mixed, ..b.caller(&good) };
        refused(list(&mixed).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        // What is served is not told to who has nothing to show.
        const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let answer = Caller::nobody(&b.server).call(REFLECTION, vec![vec![58, 0]]).await;
        refused(answer, Code::Unauthenticated, "CREDENTIAL_MISSING");
        ok(b.caller(&good).call(REFLECTION, vec![vec![58, 0]]).await);
        // The key of another server.
        let key = Key::generate().expect("randomness");
        refused(list(&b.caller(key.expose())).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    });
}

#[test]
fn streams_end_when_the_token_does() {
    run(async {
        let key = SigningKey::new("k", "ES256");
        let b = Believing::start(Kind::Sqlite, &[&key], |_| {}).await;
        let began = Instant::now();
        let caller = b.caller(&key.token(&with(b.claims(), "exp", json!(now() + 4))));
        const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecutions";
        let mut stream = ok(caller.open(WATCH, vec![watch_all().encode_to_vec()]).await);
        let ended = loop {
            match in_time("the end of a stream", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream of an expired token ended well"),
                Err(status) => break status,
            }
        };
        check_refusal(&ended, Code::Unauthenticated, "CREDENTIAL_EXPIRED");
        let took = began.elapsed();
        assert!(took > Duration::from_secs(2) && took < Duration::from_secs(14), "{took:?}");
        // Within the leeway it is good still, also for a stream, which is not ended at once.
        ok(list(&caller).await);
        let mut again = ok(caller.open(WATCH, vec![watch_all().encode_to_vec()]).await);
        let snapshot = in_time("its snapshot", again.message()).await;
        assert!(snapshot.is_ok_and(|message| message.is_some()));
    });
}

#[test]
fn keys_are_changed_under_load_and_an_unknown_one_is_asked_for_once_a_minute() {
    run(async {
        let (old, new) = (SigningKey::new("old", "ES256"), SigningKey::new("new", "ES256"));
        let b = Believing::start(Kind::Sqlite, &[&old], |_| {}).await;
        let first = b.caller(&old.token(&b.claims()));
        ok(list(&first).await);
        let before = b.issuer.asked();
        // The provider signs with a key that this server has not seen: nobody notices.
        b.issuer.publish(&[&old, &new]);
        let calls = (0..20).map(|number| {
            let caller = b.caller(&new.token(&with(b.claims(), "jti", json!(number))));
            async move { list(&caller).await }
        });
        for answer in futures::future::join_all(calls).await {
            ok(answer);
        }
        ok(list(&first).await);
        assert_eq!(b.issuer.asked(), before + 1);
        // Somebody who makes up ids does not make the server ask again and again.
        for number in 0..10 {
            let made_up = SigningKey::new(&format!("made-up-{number}"), "ES256");
            refused(
                list(&b.caller(&made_up.token(&b.claims()))).await,
                Code::Unauthenticated,
                "CREDENTIAL_INVALID",
            );
        }
        assert_eq!(b.issuer.asked(), before + 1);
        // That other keys are in force is on record, once, and so by which setting they came.
        let claims = with(b.claims(), "groups", json!(["auditors"]));
        let auditor = b.caller(&new.token(&claims));
        let asked = ListAuditEventsRequest { page_size: 100, ..Default::default() };
        let told = eventually("what is on record", async || {
            let page: ListAuditEventsResponse =
                ok(auditor.unary("AuditService/ListAuditEvents", asked.clone()).await);
            let reloads = page.events.into_iter().filter(|event| event.event == "server.reload");
            let told: Vec<AuditEvent> = reloads.collect();
            (!told.is_empty()).then_some(told)
        })
        .await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].outcome, "ok");
        let details = told[0].details.as_ref().map(|details| format!("{details:?}"));
        assert!(details.is_some_and(|details| details.contains("auth.oidc.issuer")), "{told:?}");
    });
}

#[test]
fn keys_of_a_file_are_read_again_and_the_streams_of_those_that_are_gone_end() {
    run(async {
        let (old, new) = (SigningKey::new("old", "EdDSA"), SigningKey::new("new", "EdDSA"));
        let papers = Papers::new();
        let b = Believing::start(Kind::Sqlite, &[], |config| {
            config.auth.oidc.jwks_file = Some(papers.write("keys.json", &set(&[&old])));
        })
        .await;
        let (first, second) =
            (b.caller(&old.token(&b.claims())), b.caller(&new.token(&b.claims())));
        ok(list(&first).await);
        refused(list(&second).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        let began = Instant::now();
        papers.write("keys.json", &set(&[&old, &new]));
        eventually("the new key is known", async || {
            // Too many bad ones would not be looked into.
            tokio::time::sleep(Duration::from_secs(1)).await;
            list(&second).await.ok()
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecutions";
        let mut open = ok(first.open(WATCH, vec![watch_all().encode_to_vec()]).await);
        papers.write("keys.json", "{");
        papers.write("keys.json", &set(&[&new]));
        let began = Instant::now();
        let ended = loop {
            match in_time("the end of a stream", open.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream of a key that is gone ended well"),
                Err(status) => break status,
            }
        };
        check_refusal(&ended, Code::Unauthenticated, "CREDENTIAL_INVALID");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        refused(list(&first).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        ok(list(&second).await);
        assert_eq!(b.issuer.asked(), 0, "the file is enough");
    });
}

#[test]
fn a_provider_that_is_away_says_nothing_of_the_caller() {
    run(async {
        let key = SigningKey::new("k", "ES256");
        let issuer = Issuer::start().await;
        let backend = Backend::fresh(Kind::Sqlite);
        let server = backend
            .serve_with(|config| {
                believe(config, &issuer.url());
                config.auth.oidc.jwks_uri = Some(Secret::new(issuer.keys_url()));
            })
            .await;
        let caller = Caller::new(&server, &key.token(&claims(&issuer.url())));
        refused(caller.who().await, Code::Unavailable, "AUTH_UNAVAILABLE");
        // One that says that it is somebody else is not believed either.
        let other = Issuer::start().await;
        other.put(
            "/.well-known/openid-configuration",
            &json!({ "issuer": "https://evil", "jwks_uri": other.keys_url() }).to_string(),
        );
        other.publish(&[&key]);
        let server =
            Backend::fresh(Kind::Sqlite).serve_with(|config| believe(config, &other.url())).await;
        let caller = Caller::new(&server, &key.token(&claims(&other.url())));
        refused(caller.who().await, Code::Unavailable, "AUTH_UNAVAILABLE");
        assert_eq!(other.asked(), 0);
    });
}

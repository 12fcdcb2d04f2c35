//! Keys, from their making to their end, and credentials that are refused.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prost::Message as _;
use stepwell::auth::key::Key;
use stepwell::proto::*;
use tonic::Code;

use super::access::reason;
use crate::support::access::{Caller, Guarded, grant};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::{eventually, in_time};

pub async fn a_key_is_made_listed_rotated_and_revoked(b: Backend) {
    let g = Guarded::start(&b).await;
    let second = g.second().await;
    let request = CreateKeyRequest {
        name: "ci".to_owned(),
        grants: vec![grant("reporter", &["mine"]), grant("viewer", &["shop*#*"])],
        calls_per_second: Some(500.0),
        ..Default::default()
    };
    let made: CreateKeyResponse = ok(g.admin.unary("AuthService/CreateKey", request.clone()).await);
    let key = made.key.expect("a key");
    assert_eq!((key.name.as_str(), &key.grants), ("ci", &request.grants));
    assert!(key.created_at.is_some() && key.created_by.starts_with("admin/"), "{key:?}");
    let id = key.key_id.clone();
    assert_eq!(Key::parse(&made.secret).expect("a key in its form").id(), id);
    let caller = Caller::new(&g.server, &made.secret);
    let who = async |caller: &Caller| {
        caller.unary::<_, WhoAmIResponse>("AuthService/WhoAmI", WhoAmIRequest {}).await
    };
    ok(who(&caller).await);
    let began = Instant::now();
    eventually("it holds on the other server", async || who(&caller.at(&second)).await.ok()).await;
    assert!(began.elapsed() < Duration::from_secs(5));

    let list = async |caller: &Caller, page_size, page_token: &str| {
        let request = ListKeysRequest { page_size, page_token: page_token.to_owned() };
        caller.unary::<_, ListKeysResponse>("AuthService/ListKeys", request).await
    };
    let (other_id, _) = g.key("viewer", &["other"]).await;
    let first = ok(list(&g.admin, 1, "").await);
    let rest = ok(list(&g.admin, 5, &first.next_page_token).await);
    let listed: BTreeSet<String> =
        first.keys.iter().chain(&rest.keys).map(|key| key.key_id.clone()).collect();
    assert_eq!(listed, BTreeSet::from([id.clone(), other_id.clone()]));
    let auditor = g.caller("auditor", &["other"]).await;
    let seen = ok(list(&auditor, 0, "").await);
    let seen: Vec<String> = seen.keys.into_iter().map(|key| key.key_id).collect();
    assert!(seen.contains(&other_id) && !seen.contains(&id), "{seen:?}");
    refused(
        list(&auditor, 5, &first.next_page_token).await,
        Code::InvalidArgument,
        "INVALID_TOKEN",
    );

    let overlap = prost_types::Duration { seconds: 2, nanos: 0 };
    let request = RotateKeyRequest { key_id: id.clone(), overlap: Some(overlap) };
    let rotated: RotateKeyResponse = ok(g.admin.unary("AuthService/RotateKey", request).await);
    let next = Caller::new(&g.server, &rotated.secret);
    ok(who(&next).await);
    ok(who(&caller).await);
    eventually("the old secret is over", async || who(&caller).await.err()).await;
    refused(who(&caller).await, Code::Unauthenticated, "CREDENTIAL_INVALID");

    // Its open streams end as well, on another server too.
    let mut open = ok(next
        .open("/stepwell.v1.ExecutionService/WatchExecutions", vec![watch_all().encode_to_vec()])
        .await);
    eventually("the new secret holds there", async || who(&next.at(&second)).await.ok()).await;
    let mut elsewhere = ok(next
        .at(&second)
        .open("/stepwell.v1.ExecutionService/WatchExecutions", vec![watch_all().encode_to_vec()])
        .await);
    let request = RevokeKeyRequest { key_id: id.clone() };
    let began = Instant::now();
    let revoked: RevokeKeyResponse =
        ok(g.admin.unary("AuthService/RevokeKey", request.clone()).await);
    let revoked = revoked.key.expect("a key");
    assert!(revoked.revoked_at.is_some() && revoked.revoked_by.starts_with("admin/"));
    refused(who(&next).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    eventually("it is over on the other server", async || who(&next.at(&second)).await.err()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for stream in [&mut open, &mut elsewhere] {
        let ended = loop {
            match in_time("the end of a stream", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream of a revoked key ended well"),
                Err(status) => break status,
            }
        };
        check_refusal(&ended, Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let again: RevokeKeyResponse = ok(g.admin.unary("AuthService/RevokeKey", request).await);
    assert_eq!(again.key.expect("a key").revoked_at, revoked.revoked_at, "the first time counts");
    let request = RotateKeyRequest { key_id: id, overlap: None };
    let answer = g.admin.unary::<_, RotateKeyResponse>("AuthService/RotateKey", request).await;
    refused(answer, Code::NotFound, "KEY_NOT_FOUND");
}

pub async fn nobody_gives_more_than_they_have(b: Backend) {
    let g = Guarded::start(&b).await;
    let admin = g.caller("admin", &["mine*"]).await;
    let create = async |grants: Vec<Grant>| {
        let request = CreateKeyRequest { name: "k".to_owned(), grants, ..Default::default() };
        admin.unary::<_, CreateKeyResponse>("AuthService/CreateKey", request).await
    };
    ok(create(vec![Grant { reveal: true, ..grant("editor", &["mine", "mine-too/5"]) }]).await);
    for apps in [&["*"][..], &["mine#5"], &["mine", "other"], &["mine*#*"]] {
        refused(create(vec![grant("viewer", apps)]).await, Code::PermissionDenied, "SCOPE_FORBIDS");
    }
    let (other, _) = g.key("viewer", &["other"]).await;
    let request = RevokeKeyRequest { key_id: other };
    let answer = admin.unary::<_, RevokeKeyResponse>("AuthService/RevokeKey", request).await;
    refused(answer, Code::NotFound, "KEY_NOT_FOUND");

    let bad = |request: CreateKeyRequest| async {
        let answer = g.admin.unary::<_, CreateKeyResponse>("AuthService/CreateKey", request).await;
        bad_fields(answer).into_iter().map(|(field, _)| field).collect::<Vec<_>>()
    };
    assert_eq!(bad(CreateKeyRequest::default()).await, ["grants", "name"]);
    let request = CreateKeyRequest {
        name: "k".to_owned(),
        grants: vec![
            grant("boss", &["a*b", "ok"]),
            grant("viewer", &[]),
            grant("viewer", &["a"; 51]),
        ],
        expires_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        calls_per_second: Some(0.0),
        burst: Some(0),
    };
    assert_eq!(
        bad(request).await,
        [
            "burst",
            "calls_per_second",
            "expires_at",
            "grants[0].apps[0]",
            "grants[0].role",
            "grants[1].apps",
            "grants[2].apps",
        ]
    );
}

pub async fn bad_credentials_are_refused_alike_and_bounded(b: Backend) {
    let g = Guarded::start(&b).await;
    let (id, secret) = g.key("viewer", &["mine"]).await;
    let who = async |values: Vec<String>| {
        let caller = Caller { authorization: values, ..Caller::nobody(&g.server) };
        caller.unary::<_, WhoAmIResponse>("AuthService/WhoAmI", WhoAmIRequest {}).await
    };
    let bearer = |text: &str| vec![format!("Bearer {text}")];
    let stranger = Key::generate().expect("randomness");
    let wrong = Key::with_id(&id).expect("randomness");
    let mut words = BTreeSet::new();
    for values in [
        bearer("x"),
        bearer(stranger.expose()),
        bearer(wrong.expose()),
        bearer(&secret[..secret.len() - 1]),
        bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."),
        vec![format!("Basic {secret}")],
        vec![format!("Bearer {secret}"), format!("Bearer {secret}")],
        vec![format!("Bearer {}", wrong.expose()), format!("Bearer {secret}")],
    ] {
        let status = who(values.clone()).await.expect_err("a bad credential");
        check_refusal(&status, Code::Unauthenticated, "CREDENTIAL_INVALID");
        words.insert(status.message().to_owned());
    }
    assert_eq!(words.len(), 1, "all alike: {words:?}");
    ok(who(vec![format!("bearer {secret}")]).await);
    // Twenty within ten seconds, then no more are looked into; a good one is never refused for them.
    eventually("too many bad ones", async || {
        let status = who(bearer("x")).await.expect_err("a bad credential");
        (reason(&status) == "RATE_LIMITED").then_some(status)
    })
    .await;
    refused(who(bearer(wrong.expose())).await, Code::ResourceExhausted, "RATE_LIMITED");
    ok(who(bearer(&secret)).await);
    refused(who(Vec::new()).await, Code::Unauthenticated, "CREDENTIAL_MISSING");
}

pub async fn a_key_calls_no_more_often_than_it_may(b: Backend) {
    let g = Guarded::start(&b).await;
    let request = CreateKeyRequest {
        name: "slow".to_owned(),
        grants: vec![grant("editor", &["*"])],
        calls_per_second: Some(5.0),
        burst: Some(3),
        ..Default::default()
    };
    let made: CreateKeyResponse = ok(g.admin.unary("AuthService/CreateKey", request).await);
    let caller = Caller::new(&g.server, &made.secret);
    let who =
        async || caller.unary::<_, WhoAmIResponse>("AuthService/WhoAmI", WhoAmIRequest {}).await;
    let limited = eventually("the limit", async || who().await.err()).await;
    let details = check_refusal(&limited, Code::ResourceExhausted, "RATE_LIMITED");
    let after = details.retry_info().and_then(|info| info.retry_delay).expect("when to come back");
    assert!(after <= Duration::from_millis(300), "{after:?}");
    // A stream is read more slowly instead.
    eventually("there is room for the stream", async || who().await.ok()).await;
    let writes = (1..=8).map(|sequence| {
        let write = ingest_request::Write::CreateExecution(create(&format!("e{sequence}")));
        IngestRequest { sequence, write: Some(write), mirrored: None }.encode_to_vec()
    });
    let writes: Vec<_> = writes.collect();
    let began = Instant::now();
    let answers = eventually("the stream", async || {
        caller.call("/stepwell.v1.IngestService/Ingest", writes.clone()).await.ok()
    })
    .await;
    assert_eq!(answers.len(), 8);
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
}

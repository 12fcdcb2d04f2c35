use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::auth::oidc::fetch::Source;
use crate::clock::ManualClock;
use crate::domain::access::Role;

struct Signer {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new(kid: &'static str) -> Signer {
        let (by, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(by, &random).unwrap();
        Signer { kid, pair: EcdsaKeyPair::from_pkcs8(by, document.as_ref(), &random).unwrap() }
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "x": encode(x), "y": encode(y) })
    }

    fn token(&self, header: Value, claims: Value) -> String {
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn good(&self, exp: i64) -> String {
        let claims = json!({ "iss": "https://i", "aud": "a", "sub": "s", "exp": exp });
        self.token(json!({ "alg": "ES256", "kid": self.kid }), claims)
    }
}

fn set(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

/// Tokens of an issuer that nobody can ask: its name never leads anywhere.
fn oidc(clock: &Arc<ManualClock>, asks: bool) -> Oidc {
    let settings = Settings {
        issuer: "https://i".to_owned(),
        audience: "a".to_owned(),
        rules: vec![Rule {
            claim: "sub".to_owned(),
            value: "s".to_owned(),
            grant: Grant::everywhere(Role::Viewer, false),
        }],
    };
    let source = Source::Uri("http://127.0.0.1:1/".to_owned());
    let fetch = asks.then(|| Fetch::new(source, "https://i").unwrap());
    let expiring = Arc::new(Expiring::new(Arc::clone(clock) as _));
    Oidc::new(settings, fetch, expiring, Arc::clone(clock) as _)
}

fn known(found: Found) -> Option<Arc<Caller>> {
    match found {
        Found::Known(caller) => Some(caller),
        Found::Denied(_) | Found::AskProvider => None,
    }
}

#[test]
fn a_token_is_verified_once_and_forgotten_with_its_key() {
    let clock = Arc::new(ManualClock::at(0));
    let oidc = oidc(&clock, false);
    let (one, two) = (Signer::new("1"), Signer::new("2"));
    oidc.take(&set(&[one.jwk(), two.jwk()])).unwrap();
    let (of_one, of_two) = (one.good(1000), two.good(1000));
    let first = known(oidc.look(&of_one)).unwrap();
    assert!(Arc::ptr_eq(&first, &known(oidc.look(&of_one)).unwrap()));
    let second = known(oidc.look(&of_two)).unwrap();
    assert!(oidc.take(b"{}").is_err() && !first.ended.is_cancelled(), "the keys of before stay");
    oidc.take(&set(&[two.jwk()])).unwrap();
    assert!(first.ended.is_cancelled() && !second.ended.is_cancelled());
    assert!(known(oidc.look(&of_one)).is_none() && known(oidc.look(&of_two)).is_some());
    // Another key under the same id is another key.
    oidc.take(&set(&[Signer::new("2").jwk()])).unwrap();
    assert!(second.ended.is_cancelled() && known(oidc.look(&of_two)).is_none());
}

#[test]
fn the_end_of_a_token_holds_although_it_is_remembered() {
    let clock = Arc::new(ManualClock::at(0));
    let oidc = oidc(&clock, false);
    let signer = Signer::new("1");
    oidc.take(&set(&[signer.jwk()])).unwrap();
    let token = signer.good(1000);
    assert!(known(oidc.look(&token)).is_some());
    clock.advance_ms(1_059_999);
    assert!(known(oidc.look(&token)).is_some());
    clock.advance_ms(1);
    assert!(matches!(oidc.look(&token), Found::Denied(Denied::Expired)));
}

#[tokio::test]
async fn keys_outlive_the_provider_by_a_day() {
    let clock = Arc::new(ManualClock::at(0));
    let oidc = oidc(&clock, true);
    let signer = Signer::new("1");
    let token = signer.good(1_000_000);
    assert!(matches!(oidc.look(&token), Found::AskProvider), "nobody knows the keys");
    assert_eq!(oidc.ask(&token).await.unwrap_err(), Denied::Unavailable);
    oidc.take(&set(&[signer.jwk()])).unwrap();
    clock.advance_ms(24 * 3600 * 1000);
    assert!(known(oidc.look(&token)).is_some());
    // Of an unknown key nobody says whether it is good while the provider is away.
    let other = Signer::new("2").good(1_000_000);
    assert_eq!(oidc.ask(&other).await.unwrap_err(), Denied::Unavailable);
    clock.advance_ms(1);
    assert!(matches!(oidc.look(&token), Found::AskProvider));
    assert_eq!(oidc.ask(&token).await.unwrap_err(), Denied::Unavailable);
}

#[test]
fn a_key_verifies_only_what_it_was_published_for() {
    let clock = Arc::new(ManualClock::at(0));
    let oidc = oidc(&clock, false);
    let signer = Signer::new("1");
    let changed = |name: &str, value: Value| {
        let mut jwk = signer.jwk();
        jwk[name] = value;
        jwk
    };
    let token = signer.good(1000);
    for (name, value) in [
        ("use", json!("sig")),
        ("alg", json!("ES256")),
        ("key_ops", json!(["verify"])),
        ("x5c", json!(["AAAA"])),
    ] {
        oidc.take(&set(&[changed(name, value.clone())])).unwrap();
        assert!(known(oidc.look(&token)).is_some(), "{name} {value}");
    }
    for (name, value) in [
        ("use", json!("enc")),
        ("alg", json!("ES384")),
        ("alg", json!("RS256")),
        ("alg", json!("HS256")),
        ("alg", json!("ECDH-ES")),
        ("key_ops", json!(["sign"])),
        ("kty", json!("oct")),
        ("crv", json!("secp256k1")),
        ("crv", json!("P-384")),
        ("x", json!("AAAA")),
        ("kid", json!(7)),
    ] {
        let why = oidc.take(&set(&[changed(name, value.clone())])).unwrap_err();
        assert!(why.contains("has no key"), "{name} {value}: {why}");
    }
    // A key that has no name is meant where it is clear that it is.
    let mut nameless = signer.jwk();
    nameless.as_object_mut().unwrap().remove("kid");
    let claims = |exp| json!({ "iss": "https://i", "aud": "a", "sub": "s", "exp": exp });
    let unnamed = signer.token(json!({ "alg": "ES256" }), claims(1000));
    oidc.take(&set(&[nameless.clone()])).unwrap();
    assert!(known(oidc.look(&unnamed)).is_some() && known(oidc.look(&token)).is_none());
    oidc.take(&set(&[nameless, Signer::new("2").jwk()])).unwrap();
    assert!(known(oidc.look(&unnamed)).is_some(), "it was verified with a key that is still there");
    let unnamed = signer.token(json!({ "alg": "ES256" }), claims(1001));
    assert!(known(oidc.look(&unnamed)).is_none(), "of two it could be either");
    for bad in ["", "[]", "{\"keys\": 7}", "{\"keys\": []}"] {
        assert!(oidc.take(bad.as_bytes()).is_err(), "{bad}");
    }
    let many: Vec<Value> = std::iter::repeat_n(signer.jwk(), 101).collect();
    assert!(oidc.take(&set(&many)).unwrap_err().contains("limit of 100"));
}

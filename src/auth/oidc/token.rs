//! Tokens as text (RFC 7515, compact form), and their claims (RFC 7519).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jwks::Algorithm;
use crate::domain::Millis;

/// How much the clocks of two machines may differ.
pub const LEEWAY: Millis = 60_000;
/// The longest subject; the standard has no longer ones.
const SUBJECT_CHARACTERS: usize = 255;
/// The end of the year 9999: no later time can be said.
const LATEST_SECONDS: f64 = 253_402_300_799.0;

/// A token that nobody has verified yet.
pub struct Token<'a> {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    /// What is signed.
    pub message: &'a [u8],
    pub signature: Vec<u8>,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// What a reader has to understand, whatever it is.
    crit: Option<Value>,
}

impl<'a> Token<'a> {
    /// Reads a token; `None` where it is none that could ever be accepted.
    pub fn parse(text: &'a str) -> Option<Token<'a>> {
        let (message, signature) = text.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        Some(Token {
            algorithm: Algorithm::parse(&header.alg)?,
            kid: header.kid,
            message: message.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
            payload,
        })
    }

    /// What it says, once somebody has verified it.
    pub fn claims(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.payload).ok()?).ok()
    }
}

/// What a token says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub subject: String,
    pub expires_at: Millis,
}

/// Why claims are not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacking {
    /// They are of others, for others, or not what they have to be.
    Wrong,
    Expired,
}

/// Checks the claims that every token has to have.
pub fn check(
    claims: &Map<String, Value>,
    issuer: &str,
    audience: &str,
    now: Millis,
) -> Result<Said, Lacking> {
    let said = read(claims, issuer, audience, now).ok_or(Lacking::Wrong)?;
    if now >= said.expires_at.saturating_add(LEEWAY) {
        return Err(Lacking::Expired);
    }
    Ok(said)
}

fn read(claims: &Map<String, Value>, issuer: &str, audience: &str, now: Millis) -> Option<Said> {
    if claims.get("iss")?.as_str()? != issuer {
        return None;
    }
    let is_for_us = match claims.get("aud")? {
        Value::String(one) => one == audience,
        Value::Array(all) => all.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    };
    let subject = claims.get("sub")?.as_str()?;
    let is_subject = (1..=SUBJECT_CHARACTERS).contains(&subject.chars().count())
        && !subject.chars().any(char::is_control);
    // A time that is there counts, whatever it is.
    let has_begun = match claims.get("nbf") {
        Some(time) => millis(time)? <= now.saturating_add(LEEWAY),
        None => true,
    };
    let expires_at = millis(claims.get("exp")?)?;
    let subject = subject.to_owned();
    (is_for_us && is_subject && has_begun).then_some(Said { subject, expires_at })
}

fn millis(seconds: &Value) -> Option<Millis> {
    let seconds = seconds.as_f64()?;
    (0.0..=LATEST_SECONDS).contains(&seconds).then_some((seconds * 1000.0) as Millis)
}

/// Whether a claim has this value: it is it, or a list that has it. Claims within claims are named with dots between them.
pub fn has(claims: &Map<String, Value>, claim: &str, wanted: &str) -> bool {
    let is = |value: &Value| match value {
        Value::String(text) => text == wanted,
        Value::Bool(truth) => wanted == if *truth { "true" } else { "false" },
        Value::Number(number) => number.to_string().as_str() == wanted,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    match find(claims, claim) {
        Some(Value::Array(all)) => all.iter().any(is),
        Some(value) => is(value),
        None => false,
    }
}

fn find<'a>(claims: &'a Map<String, Value>, claim: &str) -> Option<&'a Value> {
    // The name of a claim may have dots itself, as URLs have.
    claims.get(claim).or_else(|| {
        let (outer, rest) = claim.split_once('.')?;
        find(claims.get(outer)?.as_object()?, rest)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn good() -> Map<String, Value> {
        claims(json!({ "iss": "https://i", "aud": "a", "sub": "s", "exp": 1000 }))
    }

    #[test]
    fn what_every_token_has_to_say() {
        let at = |seconds: i64, claims: &Map<String, Value>| {
            check(claims, "https://i", "a", seconds * 1000).map(|said| said.expires_at)
        };
        assert_eq!(at(0, &good()), Ok(1_000_000));
        assert_eq!(at(1059, &good()), Ok(1_000_000));
        assert_eq!(at(1060, &good()), Err(Lacking::Expired));
        let with = |name: &str, value: Value| {
            let mut claims = good();
            claims.insert(name.to_owned(), value);
            claims
        };
        for (name, value) in [
            ("aud", json!(["x", "a"])),
            ("exp", json!(1000.0)),
            ("nbf", json!(160)),
            ("more", json!({ "a": [1] })),
        ] {
            assert_eq!(at(100, &with(name, value.clone())), Ok(1_000_000), "{name} {value}");
        }
        for (name, value) in [
            ("iss", json!("https://i/")),
            ("iss", json!(["https://i"])),
            ("aud", json!("b")),
            ("aud", json!([])),
            ("aud", json!([["a"]])),
            ("aud", json!({ "a": "a" })),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("sub", json!("s".repeat(256))),
            ("sub", json!("a\nb")),
            ("exp", json!("1000")),
            ("exp", json!(null)),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("nbf", json!(161)),
            ("nbf", json!("0")),
        ] {
            assert_eq!(at(100, &with(name, value.clone())), Err(Lacking::Wrong), "{name} {value}");
        }
        for name in ["iss", "aud", "sub", "exp"] {
            let mut claims = good();
            claims.remove(name);
            assert_eq!(at(100, &claims), Err(Lacking::Wrong), "without {name}");
        }
    }

    #[test]
    fn a_claim_has_a_value_or_a_list_of_them_and_may_be_within_others() {
        let claims = claims(json!({
            "groups": ["dev", "ops"],
            "team": "dev",
            "level": 3,
            "verified": true,
            "realm": { "access": { "roles": ["admin"] } },
            "https://org.example/roles": ["lead"],
            "nested": [["dev"]],
        }));
        for (claim, value, expected) in [
            ("groups", "ops", true),
            ("groups", "op", false),
            ("groups", "[\"dev\",\"ops\"]", false),
            ("team", "dev", true),
            ("team", "Dev", false),
            ("level", "3", true),
            ("verified", "true", true),
            ("realm.access.roles", "admin", true),
            ("realm.access", "admin", false),
            ("https://org.example/roles", "lead", true),
            ("nested", "dev", false),
            ("absent", "dev", false),
        ] {
            assert_eq!(has(&claims, claim, value), expected, "{claim} {value}");
        }
    }

    #[test]
    fn a_token_that_could_never_be_accepted_is_none() {
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let payload = encode(json!({}));
        let token = |header: Value| format!("{}.{payload}.AAAA", encode(header));
        assert!(
            Token::parse(&token(json!({ "alg": "ES256", "kid": "k", "typ": "JWT" }))).is_some()
        );
        for bad in [
            token(json!({ "alg": "none" })),
            token(json!({ "alg": "None" })),
            token(json!({ "alg": "HS256" })),
            token(json!({ "alg": "HS512" })),
            token(json!({ "alg": "es256" })),
            token(json!({ "alg": ["ES256"] })),
            token(json!({ "kid": "k" })),
            token(json!({ "alg": "ES256", "kid": 7 })),
            token(json!({ "alg": "ES256", "crit": ["b64"], "b64": false })),
            token(json!({ "alg": "ES256", "crit": [] })),
            format!("{}.{payload}.", encode(json!({ "alg": "none" }))),
            format!("{}.{payload}.AA=A", encode(json!({ "alg": "ES256" }))),
            format!("{}.{payload}.AAAA.AAAA.AAAA", encode(json!({ "alg": "ES256" }))),
            format!("{}.{payload}", encode(json!({ "alg": "ES256" }))),
            format!(
                "{}.{payload}.AAAA",
                URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","alg":"ES256"}"#)
            ),
            "".to_owned(),
            "..".to_owned(),
            "a.b.c".to_owned(),
        ] {
            assert!(Token::parse(&bad).is_none(), "{bad}");
        }
    }
}

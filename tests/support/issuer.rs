//! An identity provider: it signs tokens, and publishes its keys over HTTP on this machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA384, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A key that is for these tests alone: making one of RSA needs more than there is here.
const RSA: &[u8] = include_bytes!("rsa_key.der");

/// How a key signs.
pub enum Pair {
    Es256(EcdsaKeyPair),
    Es384(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
    Ps384(RsaKeyPair),
}

/// A key with its id.
pub struct SigningKey {
    pub kid: String,
    pair: Pair,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl SigningKey {
    pub fn new(kid: &str, algorithm: &str) -> SigningKey {
        let random = SystemRandom::new();
        let ecdsa = |by| {
            let document = EcdsaKeyPair::generate_pkcs8(by, &random).expect("a key");
            EcdsaKeyPair::from_pkcs8(by, document.as_ref(), &random).expect("its own key")
        };
        let rsa = || RsaKeyPair::from_der(RSA).expect("a key of RSA");
        let pair = match algorithm {
            "ES256" => Pair::Es256(ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING)),
            "ES384" => Pair::Es384(ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING)),
            "EdDSA" => {
                let document = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
                Pair::EdDsa(Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("its own key"))
            }
            "RS256" => Pair::Rs256(rsa()),
            "PS384" => Pair::Ps384(rsa()),
            other => panic!("no {other} here"),
        };
        SigningKey { kid: kid.to_owned(), pair }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Es256(_) => "ES256",
            Pair::Es384(_) => "ES384",
            Pair::EdDsa(_) => "EdDSA",
            Pair::Rs256(_) => "RS256",
            Pair::Ps384(_) => "PS384",
        }
    }

    /// As it is published.
    pub fn jwk(&self) -> Value {
        let point = |kty: &str, crv: &str, public: &[u8]| {
            let (x, y) = public[1..].split_at((public.len() - 1) / 2);
            json!({ "kty": kty, "crv": crv, "x": b64(x), "y": b64(y) })
        };
        let mut jwk = match &self.pair {
            Pair::Es256(pair) => point("EC", "P-256", pair.public_key().as_ref()),
            Pair::Es384(pair) => point("EC", "P-384", pair.public_key().as_ref()),
            Pair::EdDsa(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key()) })
            }
            Pair::Rs256(pair) | Pair::Ps384(pair) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({ "kty": "RSA", "n": b64(public.n), "e": b64(public.e) })
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["alg"] = json!(self.algorithm());
        jwk["use"] = json!("sig");
        jwk
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |pair: &RsaKeyPair, by| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(by, &random, message, &mut signature).expect("signed");
            signature
        };
        match &self.pair {
            Pair::Es256(pair) | Pair::Es384(pair) => {
                pair.sign(&random, message).expect("signed").as_ref().to_vec()
            }
            Pair::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Rs256(pair) => rsa(pair, &RSA_PKCS1_SHA256),
            Pair::Ps384(pair) => rsa(pair, &RSA_PSS_SHA384),
        }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm(), "kid": self.kid, "typ": "JWT" }), claims)
    }

    /// The same with any header.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        token(header, claims, |message| self.sign(message))
    }

    /// The modulus and the like, as bytes that an attacker takes for a shared secret.
    pub fn public_text(&self) -> Vec<u8> {
        self.jwk().to_string().into_bytes()
    }
}

/// A token that somebody signs.
pub fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", b64(signature))
}

/// Signed with a secret.
pub fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    ring::hmac::sign(&key, message).as_ref().to_vec()
}

/// The provider's port. What is at a path may be changed at any time; what is not there is 404.
pub struct Issuer {
    address: SocketAddr,
    pages: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    pub async fn start() -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let pages: Arc<Mutex<HashMap<String, String>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let (at, count) = (Arc::clone(&pages), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                if path == "/keys" {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                let page = at.lock().get(path).cloned();
                let (status, body) = match page {
                    Some(page) => ("200 OK", page),
                    None => ("404 Not Found", String::new()),
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                // Who does not read it does not want it.
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let issuer = Issuer { address, pages, asked, serving };
        let itself = json!({ "issuer": issuer.url(), "jwks_uri": issuer.keys_url() });
        issuer.put("/.well-known/openid-configuration", &itself.to_string());
        issuer
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn keys_url(&self) -> String {
        format!("{}/keys", self.url())
    }

    pub fn put(&self, path: &str, page: &str) {
        self.pages.lock().insert(path.to_owned(), page.to_owned());
    }

    /// Publishes these keys in place of those of before.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.put("/keys", &set(keys));
    }

    /// How often somebody has asked for the keys.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A set of keys as text.
pub fn set(keys: &[&SigningKey]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

//! The keys of an identity provider (RFC 7517), and what each of them may verify.
//!
//! A key decides the algorithm, and never the token: a token says which one it was signed with, and is refused unless that
//! is one for which the key was published. Secrets shared with the provider (HS256 and its like) are no keys here, and
//! neither is none.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// More keys than any provider has at a time.
const KEYS_MOST: usize = 100;
/// A modulus of RSA in bytes: 2,048 to 8,192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name; `None` for everything else.
    pub fn parse(name: &str) -> Option<Algorithm> {
        Some(match name {
            "RS256" => Algorithm::Rs256,
            "RS384" => Algorithm::Rs384,
            "RS512" => Algorithm::Rs512,
            "PS256" => Algorithm::Ps256,
            "PS384" => Algorithm::Ps384,
            "PS512" => Algorithm::Ps512,
            "ES256" => Algorithm::Es256,
            "ES384" => Algorithm::Es384,
            // The second is the newer name (RFC 9864) for the only curve of it that there is here.
            "EdDSA" | "Ed25519" => Algorithm::EdDsa,
            _ => return None,
        })
    }
}

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Tells a key, with what it may verify, from others.
pub type Print = [u8; 32];

/// One key.
#[derive(Debug, Clone)]
pub struct Key {
    kid: Option<String>,
    /// The only algorithm that it was published for; `None`: every one of its kind.
    algorithm: Option<Algorithm>,
    material: Material,
    pub print: Print,
}

/// A key as it is published.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn number(text: Option<&String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}

/// The same without the zeros before it.
fn trimmed(text: Option<&String>) -> Option<Vec<u8>> {
    let bytes = number(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Some(bytes[zeros..].to_vec())
}

/// A point of a curve whose coordinates have so many bytes.
fn point(jwk: &Jwk, bytes: usize) -> Option<Vec<u8>> {
    let (x, y) = (number(jwk.x.as_ref())?, number(jwk.y.as_ref())?);
    (x.len() == bytes && y.len() == bytes).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
}

impl Key {
    /// A key that may verify something here; `None` for all others, of which a set may have any.
    fn of(jwk: Jwk) -> Option<Key> {
        let is_for_signatures = jwk.usage.as_ref().is_none_or(|usage| usage == "sig")
            && jwk.key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == "verify"));
        if !is_for_signatures {
            return None;
        }
        let algorithm = match &jwk.alg {
            Some(name) => Some(Algorithm::parse(name)?),
            None => None,
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (trimmed(jwk.n.as_ref())?, trimmed(jwk.e.as_ref())?);
                RSA_BYTES.contains(&n.len()).then_some(Material::Rsa { n, e })?
            }
            ("EC", Some("P-256")) => Material::P256(point(&jwk, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(&jwk, 48)?),
            ("OKP", Some("Ed25519")) => {
                Material::Ed25519(number(jwk.x.as_ref()).filter(|x| x.len() == 32)?)
            }
            _ => return None,
        };
        let print = Sha256::digest(format!("{:?} {algorithm:?} {material:?}", jwk.kid)).into();
        let key = Key { kid: jwk.kid, algorithm, material, print };
        // One that says of itself what it cannot do.
        key.algorithm.is_none_or(|own| key.is_of_kind(own)).then_some(key)
    }

    fn is_of_kind(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        matches!(
            (&self.material, algorithm),
            (Material::Rsa { .. }, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512)
                | (Material::P256(_), Es256)
                | (Material::P384(_), Es384)
                | (Material::Ed25519(_), EdDsa)
        )
    }

    /// Whether a token that was signed with this algorithm may be verified with the key at all.
    fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithm.is_none_or(|own| own == algorithm) && self.is_of_kind(algorithm)
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let plain = |by: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(by, key).verify(message, signature).is_ok()
        };
        match &self.material {
            Material::P256(key) => plain(&signature::ECDSA_P256_SHA256_FIXED, key),
            Material::P384(key) => plain(&signature::ECDSA_P384_SHA384_FIXED, key),
            Material::Ed25519(key) => plain(&signature::ED25519, key),
            Material::Rsa { n, e } => {
                let by = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(by, message, signature).is_ok()
            }
        }
    }
}

/// The keys that a provider has published.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<Key>,
}

/// What keys say of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is of this key.
    Good(Print),
    Bad,
    /// The key that it names is not among these.
    UnknownKey,
}

impl Keys {
    /// Reads a set of keys; else what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Keys, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json)
            .map_err(|_| "is not a set of keys: JSON with a list `keys`".to_owned())?;
        if set.keys.len() > KEYS_MOST {
            let count = set.keys.len();
            return Err(format!("has {count} keys, more than the limit of {KEYS_MOST}"));
        }
        let read = |jwk: Value| Key::of(serde_json::from_value(jwk).ok()?);
        let keys: Vec<Key> = set.keys.into_iter().filter_map(read).collect();
        match keys.is_empty() {
            true => Err("has no key for RS, PS, ES256, ES384 or EdDSA signatures".to_owned()),
            false => Ok(Keys { keys }),
        }
    }

    pub fn prints(&self) -> BTreeSet<Print> {
        self.keys.iter().map(|key| key.print).collect()
    }

    /// Looks at a signature. Without a key id it has to be clear which key is meant.
    pub fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Verdict {
        let mut named = self.keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid);
        if kid.is_some() && named.clone().next().is_none() {
            return Verdict::UnknownKey;
        }
        let fitting: Vec<&Key> = named.by_ref().filter(|key| key.fits(algorithm)).collect();
        if kid.is_none() && fitting.len() != 1 {
            return Verdict::Bad;
        }
        let mut of = fitting.into_iter().filter(|key| key.verifies(algorithm, message, signature));
        of.next().map_or(Verdict::Bad, |key| Verdict::Good(key.print))
    }
}

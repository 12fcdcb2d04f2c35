//! Page and resume tokens: opaque to clients, signed so that a forged one or one of another request is told.
//!
//! A token is base64url(version, payload, tag) with tag = the first 16 bytes of HMAC-SHA256 (RFC 2104) over
//! kind, identity of the request and payload, under a secret that all servers on one database share.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
/// Longest token accepted, in characters. Ours are far shorter, but where another program has chosen the id or what stands in
/// place of the time of the record that a page ends with.
const TOKEN_CHARACTERS: usize = 1024 * 1024;

/// What a token is for; one of a kind is never good for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ExecutionPage,
    StepPage,
    Resume,
    ConfigurationPage,
    MetricPage,
    ArtifactPage,
    SearchPage,
    Export,
    KeyPage,
    AuditPage,
    AuditHeadPage,
    SubscriptionPage,
    DeliveryPage,
}

/// Signs and checks tokens.
#[derive(Clone)]
pub struct Tokens {
    key: Hmac<Sha256>,
}

impl Tokens {
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = Hmac::new_from_slice(secret).expect("HMAC takes keys of every length");
        Tokens { key }
    }

    fn tag(&self, kind: Kind, identity: &[u8], payload: &[u8]) -> [u8; TAG_BYTES] {
        let mut mac = self.key.clone();
        mac.update(&[VERSION, kind as u8]);
        mac.update(&(identity.len() as u64).to_le_bytes());
        mac.update(identity);
        mac.update(payload);
        let full = mac.finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&full[..TAG_BYTES]);
        tag
    }

    /// The token of `payload` for the request that `identity` tells apart.
    pub fn seal(&self, kind: Kind, identity: &[u8], payload: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(1 + payload.len() + TAG_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&self.tag(kind, identity, payload));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The payload, if the token is ours and of this request.
    pub fn open(&self, kind: Kind, identity: &[u8], token: &str) -> Option<Vec<u8>> {
        if token.len() > TOKEN_CHARACTERS {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (version, rest) = bytes.split_first()?;
        if *version != VERSION || rest.len() < TAG_BYTES {
            return None;
        }
        let (payload, tag) = rest.split_at(rest.len() - TAG_BYTES);
        let expected = self.tag(kind, identity, payload);
        bool::from(expected.ct_eq(tag)).then(|| payload.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_for_its_kind_identity_and_key() {
        let tokens = Tokens::new(&[7; 32]);
        let token = tokens.seal(Kind::ExecutionPage, b"filter", b"key");
        assert_eq!(tokens.open(Kind::ExecutionPage, b"filter", &token), Some(b"key".to_vec()));
        assert_eq!(tokens.open(Kind::Resume, b"filter", &token), None);
        assert_eq!(tokens.open(Kind::ExecutionPage, b"other", &token), None);
        assert_eq!(Tokens::new(&[8; 32]).open(Kind::ExecutionPage, b"filter", &token), None);
        for position in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last character may carry unused bits; decoding then refuses it as well.
            assert_eq!(tokens.open(Kind::ExecutionPage, b"filter", &forged), None, "{position}");
        }
    }
}

//! The SHA-256 of bytes that pass by, computed beside their way and not on it: a millisecond for each megabyte.

use bytes::Bytes;
use sha2::digest::common::hazmat::{SerializableState as _, SerializedState};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::{Error, Result};
use crate::blobs;

/// A digest, of which the last bytes may still be under way.
pub(super) enum Passing {
    Here(Sha256),
    UnderWay(JoinHandle<Sha256>),
    /// Its thread broke, or whoever waited for it did.
    Lost,
}

impl Passing {
    pub fn new() -> Self {
        Passing::Here(Sha256::new())
    }

    /// That of bytes that came earlier.
    pub fn from_state(state: &[u8]) -> Option<Self> {
        let state = SerializedState::<Sha256>::try_from(state).ok()?;
        Sha256::deserialize(&state).ok().map(Passing::Here)
    }

    /// Takes bytes, as soon as those before are done.
    pub async fn add(&mut self, bytes: Bytes) -> Result<()> {
        let mut hash = self.settled().await?.clone();
        // Not on the threads that serve.
        *self = Passing::UnderWay(tokio::task::spawn_blocking(move || {
            hash.update(&bytes);
            hash
        }));
        Ok(())
    }

    pub async fn state(&mut self) -> Result<Vec<u8>> {
        Ok(self.settled().await?.serialize().to_vec())
    }

    /// Of everything so far, in lower-case hex digits.
    pub async fn hex(&mut self) -> Result<String> {
        Ok(hex::encode(self.settled().await?.clone().finalize()))
    }

    async fn settled(&mut self) -> Result<&Sha256> {
        if let Passing::UnderWay(_) = self
            && let Passing::UnderWay(done) = std::mem::replace(self, Passing::Lost)
        {
            let done = done.await.map_err(|error| blobs::Error::Failed(error.into()))?;
            *self = Passing::Here(done);
        }
        match self {
            Passing::Here(hash) => Ok(hash),
            _ => Err(Error::Bytes(blobs::Error::Failed("the digest was lost".into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_digest_goes_on_where_it_was() {
        let whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut digest = Passing::new();
        digest.add(Bytes::from_static(b"a")).await.unwrap();
        digest.add(Bytes::from_static(b"b")).await.unwrap();
        let state = digest.state().await.unwrap();
        for mut digest in [digest, Passing::from_state(&state).unwrap()] {
            digest.add(Bytes::from_static(b"c")).await.unwrap();
            assert_eq!(digest.hex().await.unwrap(), whole);
        }
        assert!(Passing::from_state(b"short").is_none());
    }
}

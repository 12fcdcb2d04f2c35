//! The codec of every service: protobuf, but a request is weighed before it is decoded.
//!
//! Answers that are encoded already, as events are that go to thousands of watchers, are in `shared_codec`.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Buf as _;
use tonic::Status;
use tonic::codec::{
    CompressionEncoding, DecodeBuf, Decoder, EnabledCompressionEncodings, EncodeBuf, Encoder,
};

use super::status;
use super::weight::{Kind, Weights};
use crate::app::Error;

/// What a request may take once it is decoded, in bytes. It bounds the memory of the process, and a codec is made from
/// nothing, so it is one for all servers in it.
static DECODED_BYTES: AtomicUsize = AtomicUsize::new(256 * 1024 * 1024);

/// Sets what a request may take once it is decoded (`limits.decoded_bytes`).
pub fn limit_decoded_bytes(limit: usize) {
    DECODED_BYTES.store(limit, Ordering::Relaxed);
}

/// How replies may be compressed, where their client accepts it. Requests are unpacked before they come here.
pub fn compressions() -> EnabledCompressionEncodings {
    let mut enabled = EnabledCompressionEncodings::default();
    enabled.enable(CompressionEncoding::Zstd);
    enabled.enable(CompressionEncoding::Gzip);
    enabled
}

/// Encodes `T` and decodes `U`.
pub struct Codec<T, U>(PhantomData<fn() -> (T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + prost::Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Plain<T>;
    type Decoder = Weighed<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Plain::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Weighed::default()
    }
}

/// Writes messages.
pub struct Plain<T>(PhantomData<fn() -> T>);

impl<T> Default for Plain<T> {
    fn default() -> Self {
        Plain(PhantomData)
    }
}

impl<T: prost::Message> Encoder for Plain<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(item.encoded_len());
        item.encode_raw(into);
        Ok(())
    }
}

/// Refuses a request that would take more than it may once it is decoded.
pub fn weighed<T: prost::Name>(message: &[u8]) -> Result<(), Error> {
    let Some(request) = Weights::get().request(&T::full_name()) else { return Ok(()) };
    weighed_as(request, message)
}

/// What a message of this type takes once it is decoded; refused where that is more than it may.
pub fn weigh(kind: Kind, message: &[u8]) -> Result<usize, Error> {
    let (bytes, limit) =
        (Weights::get().estimate(kind, message), DECODED_BYTES.load(Ordering::Relaxed));
    if bytes > limit { Err(Error::MessageTooLarge { bytes, limit }) } else { Ok(bytes) }
}

fn weighed_as(request: Kind, message: &[u8]) -> Result<(), Error> {
    let limit = DECODED_BYTES.load(Ordering::Relaxed);
    match Weights::get().weigh(request, message, limit) {
        Some(bytes) => Err(Error::MessageTooLarge { bytes, limit }),
        None => Ok(()),
    }
}

/// Reads messages, those that are requests of the API once they are known not to take more than they may.
pub struct Weighed<T> {
    request: Option<Kind>,
    decoded: PhantomData<fn() -> T>,
}

impl<T: prost::Name> Default for Weighed<T> {
    fn default() -> Self {
        let request = Weights::get().request(&T::full_name());
        Weighed { request, decoded: PhantomData }
    }
}

impl<T: prost::Message + Default> Decoder for Weighed<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        let whole = from.copy_to_bytes(from.remaining());
        if let Some(request) = self.request {
            weighed_as(request, &whole).map_err(|error| status::of(&error))?;
        }
        // The words are those of tonic's own codec, which the edge turns into the contract's error.
        T::decode(whole).map(Some).map_err(|error| status::undecodable(&error))
    }
}

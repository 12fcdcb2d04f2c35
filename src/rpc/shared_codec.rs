//! A codec for answers that are encoded already: one event goes to thousands of watchers and is encoded once.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};

use super::codec::Weighed;

/// What a stream gathers before it hands it to HTTP/2: little, since a watcher that does not read keeps it.
const GATHERED_BYTES: usize = 2 * 1024;
/// The buffer to begin with. One that grows is doubled, and the stream keeps the largest it ever had.
const BUFFER_BYTES: usize = 1024;

/// Decodes requests of type `T`, and sends answers as they are.
pub struct SharedCodec<T>(PhantomData<fn() -> T>);

impl<T> Default for SharedCodec<T> {
    fn default() -> Self {
        SharedCodec(PhantomData)
    }
}

impl<T: prost::Message + prost::Name + Default + Send + 'static> Codec for SharedCodec<T> {
    type Encode = Bytes;
    type Decode = T;
    type Encoder = Encoded;
    type Decoder = Weighed<T>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoded
    }

    fn decoder(&mut self) -> Self::Decoder {
        Weighed::default()
    }
}

/// Sends bytes.
pub struct Encoded;

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(item.len());
        into.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, GATHERED_BYTES)
    }
}

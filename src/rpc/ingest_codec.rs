//! The messages of an Ingest stream, also those that cannot be read: one message that is too large or nested too deep
//! is a refusal of that write, as long as its sequence can be read, and does not end the stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};

use super::codec::{self, Plain};
use super::edge_errors;
use crate::app::Error;
use crate::proto;

/// The field of the sequence in every message.
const SEQUENCE: u32 = 1;
/// Marks what is left of a message that was too large: no field of any message. Its wire type does not exist, so that
/// it costs a look only where a message cannot be read.
const TOO_LARGE: u8 = (15 << 3) | 6;
/// Flag and length, before every message.
const PREFIX_BYTES: usize = 5;
/// How much of a message that is too large is looked at for its sequence, which comes first.
const LOOKED_AT: usize = 16;

/// One message.
#[derive(Debug)]
pub enum Read {
    Request(proto::IngestRequest),
    /// It cannot be read, but whose it is can.
    Refused {
        sequence: i64,
        error: Error,
    },
}

/// Reads requests, and sends answers as the library does.
#[derive(Clone, Copy, Default)]
pub struct IngestCodec {
    /// Bytes of a message at most.
    pub limit: usize,
}

impl Codec for IngestCodec {
    type Encode = proto::IngestResponse;
    type Decode = Read;
    type Encoder = Plain<proto::IngestResponse>;
    type Decoder = Requests;

    fn encoder(&mut self) -> Self::Encoder {
        Plain::default()
    }

    fn decoder(&mut self) -> Requests {
        Requests { limit: self.limit }
    }
}

/// See `IngestCodec`.
pub struct Requests {
    limit: usize,
}

impl Decoder for Requests {
    type Item = Read;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Read>, Status> {
        let whole = from.copy_to_bytes(from.remaining());
        let refused = match codec::weighed::<proto::IngestRequest>(&whole) {
            Err(error) => error,
            Ok(()) => match proto::IngestRequest::decode(&whole[..]) {
                Ok(request) => return Ok(Some(Read::Request(request))),
                Err(error) => {
                    let status = super::status::undecodable(&error);
                    let (field, description) = match too_large(&whole) {
                        Some(size) => edge_errors::larger_than(size, self.limit),
                        None => match edge_errors::unreadable(status.message()) {
                            Some(found) => found,
                            None => return Err(status),
                        },
                    };
                    if sequence(&whole).is_none() {
                        return Err(status);
                    }
                    Error::invalid(field, description)
                }
            },
        };
        match sequence(&whole) {
            Some(sequence) => Ok(Some(Read::Refused { sequence, error: refused })),
            None => Err(super::status::of(&refused)),
        }
    }
}

/// The sequence of a message that is not readable as a whole, if its fields can be told apart.
fn sequence(message: &[u8]) -> Option<i64> {
    let mut rest = message;
    let mut sequence = 0;
    while rest.has_remaining() && rest[0] != TOO_LARGE {
        match decode_key(&mut rest).ok()? {
            (SEQUENCE, WireType::Varint) => sequence = decode_varint(&mut rest).ok()?.cast_signed(),
            (field, wire_type) => {
                skip_field(wire_type, field, &mut rest, DecodeContext::default()).ok()?;
            }
        }
    }
    Some(sequence)
}

/// The sequence in the first bytes of a message.
fn first_sequence(start: &[u8]) -> Option<i64> {
    let mut rest = start;
    let first = decode_key(&mut rest).ok()?;
    (first == (SEQUENCE, WireType::Varint)).then_some(())?;
    decode_varint(&mut rest).ok().map(u64::cast_signed)
}

/// A message in place of one that is too large.
fn shortened(sequence: i64, size: usize) -> Bytes {
    let mut message = BytesMut::new();
    encode_key(SEQUENCE, WireType::Varint, &mut message);
    prost::encoding::encode_varint(sequence.cast_unsigned(), &mut message);
    message.put_u8(TOO_LARGE);
    message.put_u64(size as u64);
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// The size of a message that was too large and was shortened.
fn too_large(message: &[u8]) -> Option<u64> {
    let (rest, size) = message.split_last_chunk::<8>()?;
    (rest.last() == Some(&TOO_LARGE) && first_sequence(rest).is_some())
        .then_some(u64::from_be_bytes(*size))
}

/// A body of messages in which those that are too large are shortened to their sequence, so that the library, which
/// gives a stream up at such a message, never meets one. Those that it cannot tell anything of, compressed ones too,
/// stay as they are.
pub struct Shortened<B> {
    inner: B,
    limit: usize,
    at: At,
}

/// Where in the messages a body is.
enum At {
    /// In the prefix of a message, or in the first bytes of one that is too large: these are held back.
    Start(BytesMut),
    /// So much of the message is to come.
    Message(usize),
    /// The same, and it is left out.
    Skipped(usize),
}

impl<B> Shortened<B> {
    pub fn new(inner: B, limit: usize) -> Self {
        Shortened { inner, limit, at: At::Start(BytesMut::new()) }
    }

    /// Whether so many bytes can go on as they are: nothing in them is too large, and they end a message or in one.
    /// Then they are counted.
    fn passes(&mut self, data: &[u8]) -> bool {
        let mut left = match &self.at {
            At::Start(held) if held.is_empty() => 0,
            At::Message(left) => *left,
            At::Start(_) | At::Skipped(_) => return false,
        };
        let mut rest = data;
        loop {
            if rest.len() <= left {
                left -= rest.len();
                break;
            }
            rest = &rest[left..];
            let Some((prefix, message)) = rest.split_at_checked(PREFIX_BYTES) else { return false };
            (left, rest) = (length(prefix), message);
            if left > self.limit {
                return false;
            }
        }
        self.at = if left == 0 { At::Start(BytesMut::new()) } else { At::Message(left) };
        true
    }

    /// What goes on of these bytes.
    fn shorten(&mut self, mut data: Bytes) -> Bytes {
        let mut out = BytesMut::with_capacity(data.len() + PREFIX_BYTES + LOOKED_AT);
        while data.has_remaining() {
            match &mut self.at {
                At::Message(left) => {
                    let now = data.split_to(data.len().min(*left));
                    *left -= now.len();
                    out.extend_from_slice(&now);
                }
                At::Skipped(left) => {
                    let now = data.len().min(*left);
                    *left -= now;
                    data.advance(now);
                }
                At::Start(held) => {
                    held.put_u8(data.get_u8());
                    let Some((prefix, start)) = held.split_at_checked(PREFIX_BYTES) else {
                        continue;
                    };
                    let length = length(prefix);
                    if length > self.limit && start.len() < LOOKED_AT.min(length) {
                        continue;
                    }
                    let left = length - start.len();
                    let uncompressed = prefix[0] == 0;
                    match first_sequence(start).filter(|_| length > self.limit && uncompressed) {
                        Some(sequence) => {
                            out.extend_from_slice(&shortened(sequence, length));
                            self.at = At::Skipped(left);
                        }
                        None => {
                            out.extend_from_slice(held);
                            self.at = At::Message(left);
                        }
                    }
                }
            }
            if matches!(self.at, At::Message(0) | At::Skipped(0)) {
                self.at = At::Start(BytesMut::new());
            }
        }
        out.freeze()
    }
}

/// The length of a message by its prefix.
fn length(prefix: &[u8]) -> usize {
    let mut length = [0; 4];
    length.copy_from_slice(&prefix[1..PREFIX_BYTES]);
    u32::from_be_bytes(length) as usize
}

impl<B: Body<Data = Bytes> + Unpin> Body for Shortened<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let data = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => data,
                // The rest of a message that does not come: the library complains of its start.
                None => {
                    let held = match &mut self.at {
                        At::Start(held) => held.split().freeze(),
                        _ => Bytes::new(),
                    };
                    return Poll::Ready((!held.is_empty()).then(|| Ok(Frame::data(held))));
                }
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            let data = if self.passes(&data) { data } else { self.shorten(data) };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let held = matches!(&self.at, At::Start(held) if !held.is_empty());
        !held && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const LIMIT: usize = 100;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("small");
        [&[0][..], &length.to_be_bytes(), message].concat()
    }

    fn request(sequence: i64, bytes: usize) -> Vec<u8> {
        let write = proto::HeartbeatRequest { execution_id: "x".repeat(bytes) };
        let write = Some(proto::ingest_request::Write::Heartbeat(write));
        proto::IngestRequest { sequence, write }.encode_to_vec()
    }

    /// The bytes that go on when a body comes in pieces of a size.
    async fn through(bytes: &[u8], size: usize) -> Vec<u8> {
        let pieces: Vec<Result<_, Status>> = bytes
            .chunks(size)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = http_body_util::StreamBody::new(tokio_stream::iter(pieces));
        let body = Shortened::new(body, LIMIT).collect().await.expect("no error");
        body.to_bytes().to_vec()
    }

    #[tokio::test]
    async fn only_messages_that_are_too_large_are_shortened_however_the_bytes_come() {
        let large = request(7, 500);
        let messages = [request(5, 20), large.clone(), request(0, 0), request(8, 60), Vec::new()];
        let all = messages.map(|message| framed(&message)).concat();
        let expected = [
            framed(&request(5, 20)),
            shortened(7, large.len()).to_vec(),
            framed(&request(0, 0)),
            framed(&request(8, 60)),
            framed(&[]),
        ]
        .concat();
        for size in [1, 2, 3, 5, 7, 30, 64, all.len()] {
            assert_eq!(through(&all, size).await, expected, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn what_is_too_large_and_has_no_sequence_stays_as_it_is() {
        let mut packed = framed(&request(7, 500));
        packed[0] = 1;
        for odd in [framed(&request(0, 500)), packed, vec![0, 0, 0], vec![0, 0, 0, 9, 9, 8]] {
            for size in [1, 4, odd.len()] {
                assert_eq!(through(&odd, size).await, odd);
            }
        }
    }

    #[test]
    fn the_sequence_of_what_cannot_be_read_is_found() {
        assert_eq!(sequence(&request(-3, 5)), Some(-3));
        assert_eq!(sequence(&request(0, 5)), Some(0));
        let broken = [request(12, 0), vec![0x12, 2, 0xff, 0xff]].concat();
        assert!(proto::IngestRequest::decode(broken.as_slice()).is_err());
        assert_eq!(sequence(&broken), Some(12));
        assert_eq!(sequence(&[request(12, 0), vec![0x12, 9]].concat()), None, "cut short");
        let short = shortened(-9, 1 << 33);
        let message = &short[PREFIX_BYTES..];
        assert!(proto::IngestRequest::decode(message).is_err());
        assert_eq!((sequence(message), too_large(message)), (Some(-9), Some(1 << 33)));
        assert_eq!(too_large(&request(12, 5)), None);
    }
}

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
/// In place of a sequence that cannot be read: the end of a group that has not begun.
const UNREADABLE: u8 = (15 << 3) | 4;
/// Flag and length, before every message.
const PREFIX_BYTES: usize = 5;

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
                    if sequence(&whole).is_none() && too_large(&whole).is_none() {
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

/// Looks for the sequence of a message that is not kept, as its bytes pass.
#[derive(Default)]
struct Scan {
    sequence: i64,
    at: Field,
}

/// Where in the fields of a message the scan is.
#[derive(Default)]
enum Field {
    /// In the key of a field, as far as it was read.
    #[default]
    Begin,
    Key(u64, u32),
    /// In a number: of the field, so far, and how many bits of it.
    Number(u64, u64, u32),
    /// In the length of a field.
    Length(u64, u32),
    /// So much of a field is left.
    Skip(u64),
    /// The fields cannot be told apart.
    Lost,
}

impl Scan {
    fn saw(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if let Field::Skip(left) = &mut self.at {
                let now = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= now as u64;
                bytes = &bytes[now..];
                if *left == 0 {
                    self.at = Field::Begin;
                }
                continue;
            }
            bytes = rest;
            let (value, more) = (u64::from(first & 0x7f), first & 0x80 != 0);
            let add = |so_far: u64, bits: u32| so_far | value.checked_shl(bits).unwrap_or(0);
            self.at = match std::mem::take(&mut self.at) {
                Field::Begin if more => Field::Key(value, 7),
                Field::Begin => Scan::keyed(value),
                Field::Key(so_far, bits) if more && bits < 28 => {
                    Field::Key(add(so_far, bits), bits + 7)
                }
                Field::Key(so_far, bits) if !more => Scan::keyed(add(so_far, bits)),
                Field::Number(field, so_far, bits) if more && bits < 63 => {
                    Field::Number(field, add(so_far, bits), bits + 7)
                }
                Field::Number(field, so_far, bits) if !more => {
                    if field == u64::from(SEQUENCE) {
                        self.sequence = add(so_far, bits).cast_signed();
                    }
                    Field::Begin
                }
                Field::Length(so_far, bits) if more && bits < 63 => {
                    Field::Length(add(so_far, bits), bits + 7)
                }
                Field::Length(so_far, bits) if !more => match add(so_far, bits) {
                    0 => Field::Begin,
                    length => Field::Skip(length),
                },
                _ => Field::Lost,
            };
        }
    }

    fn keyed(key: u64) -> Field {
        let field = key >> 3;
        match key & 7 {
            0 if field > 0 => Field::Number(field, 0, 0),
            1 if field > 0 => Field::Skip(8),
            // The sequence is a number.
            2 if field > u64::from(SEQUENCE) => Field::Length(0, 0),
            5 if field > 0 => Field::Skip(4),
            _ => Field::Lost,
        }
    }

    /// The sequence, once the message has passed; none set is zero.
    fn found(&self) -> Option<i64> {
        matches!(self.at, Field::Begin).then_some(self.sequence)
    }
}

/// A message in place of one that is too large, with its sequence if it has one that can be read.
fn shortened(sequence: Option<i64>, size: usize) -> Bytes {
    let mut message = BytesMut::new();
    match sequence {
        Some(sequence) => {
            encode_key(SEQUENCE, WireType::Varint, &mut message);
            prost::encoding::encode_varint(sequence.cast_unsigned(), &mut message);
        }
        None => message.put_u8(UNREADABLE),
    }
    message.put_u8(TOO_LARGE);
    message.put_u64(size as u64);
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// Whether there is a sequence and nothing else.
fn is_sequence(mut field: &[u8]) -> bool {
    decode_key(&mut field).is_ok_and(|key| key == (SEQUENCE, WireType::Varint))
        && decode_varint(&mut field).is_ok()
        && field.is_empty()
}

/// The size of a message that was too large and was shortened.
fn too_large(message: &[u8]) -> Option<u64> {
    let (rest, size) = message.split_last_chunk::<8>()?;
    let (last, rest) = rest.split_last()?;
    (*last == TOO_LARGE && (rest == [UNREADABLE] || is_sequence(rest)))
        .then_some(u64::from_be_bytes(*size))
}

/// A body of messages in which those that are too large are shortened to their sequence, so that the library, which
/// gives a stream up at such a message, never meets one. Those that it cannot tell anything of, compressed ones too,
/// stay as they are.
pub struct Shortened<B> {
    inner: B,
    limit: usize,
    at: At,
    /// Trailers that come after what was held back.
    trailers: Option<Frame<Bytes>>,
}

/// Where in the messages a body is.
enum At {
    /// In the prefix of a message, which is held back.
    Start(BytesMut),
    /// So much of the message is to come.
    Message(usize),
    /// The same of one that is left out: its size, and what was found in it.
    Skipped { left: usize, size: usize, scan: Scan },
}

impl<B> Shortened<B> {
    pub fn new(inner: B, limit: usize) -> Self {
        Shortened { inner, limit, at: At::Start(BytesMut::new()), trailers: None }
    }

    /// Whether so many bytes can go on as they are: nothing in them is too large, and they end a message or in one.
    /// Then they are counted.
    fn passes(&mut self, data: &[u8]) -> bool {
        let mut left = match &self.at {
            At::Start(held) if held.is_empty() => 0,
            At::Message(left) => *left,
            At::Start(_) | At::Skipped { .. } => return false,
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

    /// What there is of a message that has not come whole.
    fn held_back(&mut self) -> Bytes {
        match std::mem::replace(&mut self.at, At::Start(BytesMut::new())) {
            At::Start(held) => held.freeze(),
            At::Message(_) => Bytes::new(),
            At::Skipped { size, .. } => {
                let mut prefix = BytesMut::from(&[0][..]);
                prefix.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
                prefix.freeze()
            }
        }
    }

    /// What goes on of these bytes.
    fn shorten(&mut self, mut data: Bytes) -> Bytes {
        let mut out = BytesMut::with_capacity(data.len() + 2 * PREFIX_BYTES + 16);
        while data.has_remaining() {
            match &mut self.at {
                At::Message(left) => {
                    let now = data.split_to(data.len().min(*left));
                    *left -= now.len();
                    out.extend_from_slice(&now);
                }
                At::Skipped { left, size, scan } => {
                    let now = data.split_to(data.len().min(*left));
                    *left -= now.len();
                    scan.saw(&now);
                    if *left == 0 {
                        out.extend_from_slice(&shortened(scan.found(), *size));
                        self.at = At::Start(BytesMut::new());
                    }
                }
                At::Start(held) => {
                    held.put_u8(data.get_u8());
                    if held.len() < PREFIX_BYTES {
                        continue;
                    }
                    let (length, uncompressed) = (length(held), held[0] == 0);
                    if length > self.limit && uncompressed {
                        let scan = Scan::default();
                        self.at = At::Skipped { left: length, size: length, scan };
                    } else {
                        out.extend_from_slice(held);
                        self.at = At::Message(length);
                    }
                }
            }
            if matches!(self.at, At::Message(0)) {
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
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let data = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => data,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // The rest of a message that does not come: the library complains of its start.
                end => {
                    let trailers = end.and_then(Result::ok).and_then(Result::err);
                    let held = self.held_back();
                    if held.is_empty() {
                        return Poll::Ready(trailers.map(Ok));
                    }
                    self.trailers = trailers;
                    return Poll::Ready(Some(Ok(Frame::data(held))));
                }
            };
            let data = if self.passes(&data) { data } else { self.shorten(data) };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let held = match &self.at {
            At::Start(held) => !held.is_empty(),
            At::Message(_) => false,
            At::Skipped { .. } => true,
        };
        !held && self.trailers.is_none() && self.inner.is_end_stream()
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
        proto::IngestRequest { sequence, write, mirrored: None }.encode_to_vec()
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
        // Zero is not on the wire, and the sequence may come anywhere.
        let zero = request(0, 500);
        let last = [&zero[..], &[8, 9]].concat();
        let lost = [&zero[..], &[8, 0x80]].concat();
        let messages = [
            request(5, 20),
            large.clone(),
            zero.clone(),
            last.clone(),
            lost.clone(),
            request(0, 0),
            request(8, 60),
            Vec::new(),
        ];
        let all = messages.map(|message| framed(&message)).concat();
        let expected = [
            framed(&request(5, 20)),
            shortened(Some(7), large.len()).to_vec(),
            shortened(Some(0), zero.len()).to_vec(),
            shortened(Some(9), last.len()).to_vec(),
            shortened(None, lost.len()).to_vec(),
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
    async fn what_is_compressed_or_does_not_come_whole_stays_as_it_is() {
        let mut packed = framed(&request(7, 500));
        packed[0] = 1;
        for odd in [packed, vec![0, 0, 0], vec![0, 0, 0, 9, 9]] {
            for size in [1, 4, odd.len()] {
                assert_eq!(through(&odd, size).await, odd);
            }
        }
        // Of one that is too large the library needs the prefix to complain of.
        let cut = &framed(&request(7, 500))[..200];
        for size in [1, 4, cut.len()] {
            assert_eq!(through(cut, size).await, cut[..PREFIX_BYTES]);
        }
    }

    #[tokio::test]
    async fn what_was_held_back_comes_before_the_trailers() {
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x"),
            http::HeaderValue::from_static("y"),
        )]);
        let frames: Vec<Result<_, Status>> = vec![
            Ok(Frame::data(Bytes::from_static(&[0, 0, 0]))),
            Ok(Frame::trailers(trailers.clone())),
        ];
        let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
        let mut body = Shortened::new(body, LIMIT);
        let data = body.frame().await.expect("data").expect("no error");
        assert_eq!(data.into_data().expect("data"), [0, 0, 0][..]);
        let last = body.frame().await.expect("trailers").expect("no error");
        assert_eq!(last.into_trailers().expect("trailers"), trailers);
        assert!(body.frame().await.is_none());
    }

    #[test]
    fn the_sequence_of_what_cannot_be_read_is_found() {
        assert_eq!(sequence(&request(-3, 5)), Some(-3));
        assert_eq!(sequence(&request(0, 5)), Some(0));
        let broken = [request(12, 0), vec![0x12, 2, 0xff, 0xff]].concat();
        assert!(proto::IngestRequest::decode(broken.as_slice()).is_err());
        assert_eq!(sequence(&broken), Some(12));
        assert_eq!(sequence(&[request(12, 0), vec![0x12, 9]].concat()), None, "cut short");
        for known in [Some(-9), None] {
            let short = shortened(known, 1 << 33);
            let message = &short[PREFIX_BYTES..];
            assert!(proto::IngestRequest::decode(message).is_err());
            assert_eq!((sequence(message), too_large(message)), (known, Some(1 << 33)));
        }
        assert_eq!(too_large(&request(12, 5)), None);
    }
}

//! A reader of watch events that looks only at what is measured: which kind, which change, which token. With
//! thousands of watchers beside the server, decoding whole records would cost more than sending them.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Buf as _;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Both watches answer with the same fields under the same numbers.
mod field {
    pub const RESUME_TOKEN: u32 = 1;
    pub const EXECUTION: u32 = 2;
    pub const STEP: u32 = 3;
    pub const SNAPSHOT_COMPLETE: u32 = 6;
    pub const KEEPALIVE: u32 = 7;
    /// In a StepChange.
    pub const STEP_RECORD: u32 = 2;
    /// In a Step.
    pub const PROGRESS_MESSAGE: u32 = 21;
}

/// A stream that buffers little: there are thousands.
const BUFFER_BYTES: usize = 2 * 1024;
const YIELD_BYTES: usize = 32 * 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A step changed: the number that the writer gave the change, if it is one of the writer's.
    Step(Option<u64>),
    Execution,
    SnapshotComplete,
    Keepalive,
    Other,
}

/// An event with its size on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub event: Event,
    pub bytes: usize,
}

/// Where the newest token of a stream is kept. `None`: nobody needs it.
pub type TokenSlot = Option<Arc<Mutex<Vec<u8>>>>;

/// Sends a request `M` and reads events.
pub struct WatchCodec<M> {
    token: TokenSlot,
    request: PhantomData<M>,
}

impl<M> WatchCodec<M> {
    pub fn new(token: TokenSlot) -> Self {
        WatchCodec { token, request: PhantomData }
    }
}

pub struct RequestEncoder<M>(PhantomData<M>);

pub struct EventDecoder {
    token: TokenSlot,
}

impl<M: Message + 'static> Codec for WatchCodec<M> {
    type Encode = M;
    type Decode = Received;
    type Encoder = RequestEncoder<M>;
    type Decoder = EventDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        RequestEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        EventDecoder { token: self.token.clone() }
    }
}

impl<M: Message> Encoder for RequestEncoder<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(to).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

impl Decoder for EventDecoder {
    type Item = Received;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Received>, Status> {
        let bytes = from.remaining();
        // The stream hands over exactly one message, in one piece.
        let parsed = read(from.chunk()).ok_or_else(|| Status::internal("an unreadable event"))?;
        if let (Some(slot), false) = (&self.token, parsed.token.is_empty()) {
            let mut slot = slot.lock();
            slot.clear();
            slot.extend_from_slice(parsed.token);
        }
        let event = parsed.event;
        from.advance(bytes);
        Ok(Some(Received { event, bytes }))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

struct Parsed<'a> {
    token: &'a [u8],
    event: Event,
}

fn read(message: &[u8]) -> Option<Parsed<'_>> {
    let mut parsed = Parsed { token: &[], event: Event::Other };
    let mut rest = message;
    while let Some((number, value)) = next_field(&mut rest)? {
        match (number, value) {
            (field::RESUME_TOKEN, Some(token)) => parsed.token = token,
            (field::STEP, Some(change)) => {
                let step = find(change, field::STEP_RECORD)?;
                let said =
                    step.map(|step| find(step, field::PROGRESS_MESSAGE)).unwrap_or(Some(None))?;
                parsed.event = Event::Step(
                    said.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()),
                );
            }
            (field::EXECUTION, _) => parsed.event = Event::Execution,
            (field::SNAPSHOT_COMPLETE, _) => parsed.event = Event::SnapshotComplete,
            (field::KEEPALIVE, _) => parsed.event = Event::Keepalive,
            _ => {}
        }
    }
    Some(parsed)
}

/// The field of that number. Outer `None`: unreadable.
fn find(message: &[u8], wanted: u32) -> Option<Option<&[u8]>> {
    let mut rest = message;
    while let Some((number, value)) = next_field(&mut rest)? {
        if number == wanted {
            return Some(value);
        }
    }
    Some(None)
}

type Field<'a> = (u32, Option<&'a [u8]>);

/// The next field and, where it has a length, its bytes. Outer `None`: unreadable; inner: the end.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<Option<Field<'a>>> {
    if rest.is_empty() {
        return Some(None);
    }
    let (number, wire) = decode_key(rest).ok()?;
    let skip = match wire {
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (value, after) = rest.split_at_checked(length)?;
            *rest = after;
            return Some(Some((number, Some(value))));
        }
        WireType::Varint => {
            decode_varint(rest).ok()?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    *rest = rest.get(skip..)?;
    Some(Some((number, None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepwell::proto;
    use stepwell::proto::watch_execution_response::Event as Sent;

    fn seen(event: Sent, token: &str) -> (Event, Vec<u8>) {
        let message =
            proto::WatchExecutionResponse { resume_token: token.to_owned(), event: Some(event) };
        let bytes = message.encode_to_vec();
        let parsed = read(&bytes).expect("readable: it was just encoded");
        (parsed.event, parsed.token.to_vec())
    }

    fn step(message: Option<&str>) -> Sent {
        Sent::Step(proto::StepChange {
            change_type: proto::ChangeType::Updated.into(),
            step: Some(proto::Step {
                execution_id: "e".to_owned(),
                step_id: Some(3),
                step_name: "s".to_owned(),
                revision: i64::MAX,
                progress: Some(0.5),
                progress_message: message.map(str::to_owned),
                depends_on: vec![1, 2],
                ..Default::default()
            }),
        })
    }

    #[test]
    fn events_are_told_apart_and_numbered_as_the_writer_did() {
        for (sent, event) in [
            (step(Some("1234567")), Event::Step(Some(1_234_567))),
            (step(Some("hello")), Event::Step(None)),
            (step(None), Event::Step(None)),
            (Sent::Step(proto::StepChange::default()), Event::Step(None)),
            (Sent::Execution(proto::ExecutionChange::default()), Event::Execution),
            (Sent::SnapshotComplete(proto::SnapshotComplete {}), Event::SnapshotComplete),
            (Sent::Keepalive(proto::Keepalive {}), Event::Keepalive),
            (Sent::Artifact(proto::ArtifactChange::default()), Event::Other),
        ] {
            assert_eq!(seen(sent, "tok"), (event, b"tok".to_vec()));
        }
    }

    #[test]
    fn cut_messages_are_unreadable_and_never_a_panic() {
        let message = proto::WatchExecutionResponse {
            resume_token: "token".to_owned(),
            event: Some(step(Some("77"))),
        };
        let bytes = message.encode_to_vec();
        for length in 1..bytes.len() {
            if let Some(parsed) = read(&bytes[..length]) {
                assert_eq!(parsed.event, Event::Other, "cut at {length}");
            }
        }
    }
}

//! Requests that were compressed, unpacked before anything else is done with them: whatever they expand to counts
//! as if it had been sent like that.

use std::io::Read;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use tonic::Status;

use super::status;

/// Flag and length, before every message of gRPC.
pub const PREFIX_BYTES: usize = 5;
const ENCODING: &str = "grpc-encoding";
/// The largest window that a compressed message may ask for, as a power of two. A message is hardly larger.
const WINDOW_LOG: u32 = 24;
/// What is unpacked at a time.
const STEP_BYTES: usize = 64 * 1024;

/// How messages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    Zstd,
}

/// How the messages of a request are compressed, which the library need not know any more. What nobody can unpack is
/// refused.
pub fn encoding(headers: &mut HeaderMap) -> Result<Option<Encoding>, Status> {
    let Some(found) = headers.get(ENCODING) else { return Ok(None) };
    let encoding = match found.as_bytes() {
        b"gzip" => Some(Encoding::Gzip),
        b"zstd" => Some(Encoding::Zstd),
        b"identity" => None,
        // The library says which ones there are.
        _ => return Err(status::unknown_encoding(found)),
    };
    headers.remove(ENCODING);
    Ok(encoding)
}

/// The length of the message that begins here, if it says so yet.
pub fn length(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.get(1..PREFIX_BYTES)?;
    Some(prefix.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
}

/// A whole message, with its prefix, that waits to be unpacked until there is room for what it expands to.
pub struct Packed {
    message: Bytes,
    /// What it is known to expand to, once there was too little room for that.
    wants: usize,
}

impl Packed {
    pub fn new(message: Bytes) -> Packed {
        Packed { message, wants: 0 }
    }

    pub fn len(&self) -> usize {
        self.message.len()
    }

    /// The message as it was before it was compressed. `None`: there is no room for so many bytes yet.
    pub fn unpacked(
        &mut self,
        encoding: Encoding,
        limit: usize,
        mut room: impl FnMut(usize) -> bool,
    ) -> Result<Option<Bytes>, Status> {
        if !room(self.wants) {
            return Ok(None);
        }
        let message = unpacked(&self.message, encoding, limit)?;
        self.wants = message.len();
        Ok(room(self.wants).then_some(message))
    }
}

/// A message, with its prefix, as it was before it was compressed.
pub fn unpacked(message: &[u8], encoding: Encoding, limit: usize) -> Result<Bytes, Status> {
    let packed = message.get(PREFIX_BYTES..).unwrap_or_default();
    let read = match encoding {
        Encoding::Gzip => read_all(flate2::bufread::MultiGzDecoder::new(packed), limit),
        Encoding::Zstd => {
            zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut decoder| {
                decoder.window_log_max(WINDOW_LOG)?;
                read_all(decoder, limit)
            })
        }
    };
    match read {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(status::unpacks_to_more_than(limit)),
        Err(error) => {
            tracing::debug!(%error, "a message cannot be decompressed");
            Err(status::not_unpacked())
        }
    }
}

/// Everything there is to read, as a message; `None` where that is more than the limit.
fn read_all(mut from: impl Read, limit: usize) -> std::io::Result<Option<Bytes>> {
    let mut all = BytesMut::new();
    all.put_slice(&[0; PREFIX_BYTES]);
    let mut step = vec![0; STEP_BYTES.min(limit + 1)];
    loop {
        let read = from.read(&mut step)?;
        if read == 0 {
            break;
        }
        if all.len() - PREFIX_BYTES + read > limit {
            return Ok(None);
        }
        all.put_slice(&step[..read]);
    }
    let length = u32::try_from(all.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    all[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(Some(all.freeze()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn framed(packed: &[u8]) -> Vec<u8> {
        let length = u32::try_from(packed.len()).expect("small");
        [&[1][..], &length.to_be_bytes(), packed].concat()
    }

    #[test]
    fn what_was_compressed_comes_out_and_no_more_than_the_limit() {
        for size in [0, 1, 1000, 100_000] {
            let plain = vec![7; size];
            let zstd = zstd::encode_all(&plain[..], 3).expect("memory");
            for (encoding, packed) in [(Encoding::Gzip, gzip(&plain)), (Encoding::Zstd, zstd)] {
                let out = unpacked(&framed(&packed), encoding, size).expect("it fits");
                assert_eq!((out[0], length(&out)), (0, Some(size)));
                assert_eq!(&out[PREFIX_BYTES..], plain);
                if size > 0 {
                    let bomb = unpacked(&framed(&packed), encoding, size - 1).expect_err("a bomb");
                    assert_eq!(bomb.code(), tonic::Code::ResourceExhausted, "{bomb:?}");
                }
                let cut = &packed[..packed.len() - 1];
                assert!(unpacked(&framed(cut), encoding, size).is_err(), "{encoding:?} {size}");
            }
        }
        assert!(unpacked(&framed(b"neither"), Encoding::Gzip, 100).is_err());
        assert!(unpacked(&framed(b"neither"), Encoding::Zstd, 100).is_err());
    }

    #[test]
    fn a_message_waits_for_room_and_is_unpacked_once_more_only_when_there_is() {
        let mut packed = Packed::new(framed(&gzip(&[1; 100])).into());
        let mut asked = Vec::new();
        let mut without = |bytes: usize| {
            asked.push(bytes);
            bytes < 100
        };
        for _ in 0..3 {
            assert!(packed.unpacked(Encoding::Gzip, 100, &mut without).expect("whole").is_none());
        }
        assert_eq!(asked, [0, 105, 105, 105]);
        let message = packed.unpacked(Encoding::Gzip, 100, |_| true).expect("whole");
        assert_eq!(message.expect("room").len(), 105);
    }

    #[test]
    fn a_message_cannot_ask_for_a_huge_window() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("memory");
        encoder.window_log(27).expect("a window");
        encoder.write_all(&[1; 100]).expect("memory");
        let packed = encoder.finish().expect("memory");
        assert!(unpacked(&framed(&packed), Encoding::Zstd, 1000).is_err());
    }

    #[test]
    fn many_small_members_are_one_message_within_the_limit() {
        let packed = gzip(&[1; 10]).repeat(10);
        assert!(unpacked(&framed(&packed), Encoding::Gzip, 100).is_ok());
        assert!(unpacked(&framed(&packed), Encoding::Gzip, 99).is_err());
    }
}

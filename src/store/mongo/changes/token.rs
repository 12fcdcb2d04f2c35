//! Resume tokens of MongoDB as cursors that sort in the order of the log.

use bson::raw::{RawBsonRef, RawDocument};
use bson::spec::BinarySubtype;
use bson::{Binary, Timestamp, doc};
use mongodb::change_stream::event::ResumeToken;

use crate::store::Cursor;

/// Last byte of a token's key string, and of a cursor that has nothing but that.
const END: u8 = 4;
/// Last byte of a cursor that carries type bits as well.
const WITH_TYPE_BITS: u8 = 1;
/// First byte of a token: a timestamp follows.
const TIMESTAMP: u8 = 0x82;
/// Where a token says of what it is: after the timestamp and the version.
const TOKEN_TYPE: usize = 11;
/// There, of a moment and not of an event.
const HIGH_WATER_MARK: u8 = 0x29;

/// A resume token as bytes that sort in log order: its key string, then what else it has.
pub fn cursor_of(token: &RawDocument) -> Option<Cursor> {
    let mut bytes = hex::decode(token.get_str("_data").ok()?).ok()?;
    if let Ok(Some(RawBsonRef::Binary(bits))) = token.get("_typeBits") {
        let length = u16::try_from(bits.bytes.len()).ok()?;
        bytes.extend_from_slice(bits.bytes);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(WITH_TYPE_BITS);
    }
    Some(Cursor(bytes))
}

/// Where a stream begins.
pub enum Place {
    After(ResumeToken),
    /// With everything of this time.
    From(Timestamp),
}

/// Bytes of a cursor that a client may keep. Others hold a long `_id`, which some program has chosen.
const CURSOR_BYTES: usize = 1024;
/// A cursor that is nothing but a time: its first byte, the time, its last one.
const TIME_BYTES: usize = 10;

/// The cursor of the time of one that is too long. It lies before all of that time.
pub fn shortened(cursor: &Cursor) -> Option<Cursor> {
    if cursor.0.len() <= CURSOR_BYTES {
        return None;
    }
    position(cursor)?;
    let mut bytes = cursor.0.get(..TIME_BYTES - 1)?.to_vec();
    bytes.push(END);
    Some(Cursor(bytes))
}

pub fn place_of(cursor: &Cursor) -> Option<Place> {
    let number = position(cursor)?;
    if cursor.0.len() > TIME_BYTES {
        return token_of(cursor).map(Place::After);
    }
    let (time, increment) = ((number >> 32) as u32, number as u32);
    Some(Place::From(Timestamp { time, increment }))
}

fn token_of(cursor: &Cursor) -> Option<ResumeToken> {
    position(cursor)?;
    let (last, rest) = cursor.0.split_last()?;
    let token = match *last {
        WITH_TYPE_BITS => {
            let (rest, length) = rest.split_last_chunk::<2>()?;
            let start = rest.len().checked_sub(usize::from(u16::from_be_bytes(*length)))?;
            let (data, bits) = rest.split_at(start);
            let bits = Binary { subtype: BinarySubtype::Generic, bytes: bits.to_vec() };
            doc! { "_data": hex::encode_upper(data), "_typeBits": bits }
        }
        _ => doc! { "_data": hex::encode_upper(&cursor.0) },
    };
    bson::deserialize_from_document(token).ok()
}

pub fn position(cursor: &Cursor) -> Option<u64> {
    let (first, rest) = cursor.0.split_first()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let ended = matches!(rest.last(), Some(&END | &WITH_TYPE_BITS));
    (*first == TIMESTAMP && ended).then(|| u64::from_be_bytes(*number))
}

pub fn cursor_of_token(token: &ResumeToken) -> Option<Cursor> {
    let document = bson::serialize_to_raw_document_buf(&TokenField { token }).ok()?;
    cursor_of(document.get_document("token").ok()?)
}

#[derive(serde::Serialize)]
struct TokenField<'a> {
    token: &'a ResumeToken,
}

/// The position up to which a cursor has everything. All inserts of one command may be one entry of the oplog, and their
/// events have one time.
pub fn complete_through(cursor: &Cursor) -> Option<u64> {
    let number = position(cursor)?;
    if cursor.0.len() <= TIME_BYTES {
        return Some(number.saturating_sub(1));
    }
    let between_events = cursor.0.get(TOKEN_TYPE) != Some(&HIGH_WATER_MARK);
    Some(number - u64::from(between_events && number > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_cursor_is_shortened_to_its_time() {
        let mut bytes = vec![TIMESTAMP, 0, 0, 0, 7, 0, 0, 0, 2, 0x2b, 4, 0x2c];
        let short = Cursor([bytes.as_slice(), &[9, END]].concat());
        assert_eq!(shortened(&short), None);
        bytes.extend(vec![9; CURSOR_BYTES]);
        bytes.push(END);
        let long = Cursor(bytes);
        let time = shortened(&long).unwrap();
        assert!(time < long && time < short);
        assert_eq!(position(&time), position(&long));
        assert_eq!(
            complete_through(&time),
            Some((7 << 32) + 1),
            "nothing of that time is before it"
        );
        let Some(Place::From(at)) = place_of(&time) else { panic!("not a time") };
        assert_eq!((at.time, at.increment), (7, 2));
        assert!(matches!(place_of(&short), Some(Place::After(_))));
    }
}

//! Keys as text: `swk_<id>_<secret><checksum>`, in base 62. The checksum tells a mistyped key from a wrong one before
//! anything is looked up, and lets scanners of leaked secrets know one when they see it.

use std::fmt;

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "swk_";
const ID: usize = 12;
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
const LENGTH: usize = PREFIX.len() + ID + 1 + SECRET + CHECKSUM;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// SHA-256 of a key as text.
pub type KeyHash = [u8; 32];

/// Whether this is the id of a key, and nothing more of one.
pub fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// A key in clear. Shown once, to who made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}_***", self.id())
    }
}

impl Key {
    /// A new one, with an id of its own.
    pub fn generate() -> Result<Key, getrandom::Error> {
        let mut random = [0; ID];
        getrandom::fill(&mut random)?;
        // 256 is no multiple of 62: an id needs to be unique, not secret.
        let id: String =
            random.iter().map(|byte| char::from(DIGITS[usize::from(byte % 62)])).collect();
        Key::with_id(&id)
    }

    /// Another secret for the same id.
    pub fn with_id(id: &str) -> Result<Key, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let body = format!("{PREFIX}{id}_{}", base62(&secret));
        let checksum = checksum(&body);
        Ok(Key(format!("{body}{checksum}")))
    }

    /// Reads a key; `None` where it is none, or mistyped.
    pub fn parse(text: &str) -> Option<Key> {
        let is_one = text.len() == LENGTH
            && text.starts_with(PREFIX)
            && text.as_bytes()[PREFIX.len() + ID] == b'_'
            && text[PREFIX.len()..PREFIX.len() + ID].bytes().all(|c| c.is_ascii_alphanumeric())
            && text[PREFIX.len() + ID + 1..].bytes().all(|c| c.is_ascii_alphanumeric());
        let (body, found) = text.split_at_checked(LENGTH - CHECKSUM)?;
        (is_one && checksum(body) == found).then(|| Key(text.to_owned()))
    }

    /// Whether a credential is meant to be a key, good or not.
    pub fn is_like(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    pub fn id(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + ID]
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> KeyHash {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

/// 256 bits as a number of 43 digits.
fn base62(bytes: &[u8; 32]) -> String {
    let mut number = *bytes;
    let mut digits = [b'0'; SECRET];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 62).expect("a rest below 62 makes a quotient below 256");
            rest = value % 62;
        }
        *digit = DIGITS[rest as usize];
    }
    digits.iter().copied().map(char::from).collect()
}

fn checksum(body: &str) -> String {
    let mut number = crc32(body.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

/// CRC-32 as of zlib and Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_a_mistyped_one_does_not() {
        let key = Key::generate().unwrap();
        let text = key.expose().to_owned();
        assert_eq!(text.len(), 4 + 12 + 1 + 43 + 6);
        assert_eq!(Key::parse(&text), Some(key.clone()));
        assert_ne!(Key::generate().unwrap().expose(), text);
        for position in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[position] = if wrong[position] == b'7' { b'8' } else { b'7' };
            assert_eq!(Key::parse(std::str::from_utf8(&wrong).unwrap()), None, "{position}");
        }
        for wrong in ["", "swk_", &text[1..], &format!("{text}0"), "swk_ééé"] {
            assert_eq!(Key::parse(wrong), None);
        }
        let another = Key::with_id(key.id()).unwrap();
        assert!(another.id() == key.id() && another.hash() != key.hash());
        assert!(!format!("{key:?}").contains(&text[20..]));
    }

    #[test]
    fn numbers_are_written_as_everybody_does() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(base62(&[0; 32]), "0".repeat(43));
        let mut one = [0; 32];
        one[31] = 61;
        assert_eq!(base62(&one), format!("{}z", "0".repeat(42)));
        // 2^256 - 1 in base 62.
        assert_eq!(base62(&[0xFF; 32]).len(), 43);
        assert_ne!(&base62(&[0xFF; 32])[..1], "0");
    }
}

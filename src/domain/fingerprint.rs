//! Which errors are the same one: what is left of a message without what differs from one time to the next.

use super::RunError;
use super::digest::Digest;

/// Characters of a message that are looked at.
const LOOKED_AT: usize = 2_000;

/// The identity of an error: 16 hexadecimal digits.
pub fn of(error: &RunError) -> String {
    let mut digits = Digest::new("fingerprint")
        .text("code", Some(&error.code))
        .text("pattern", Some(&pattern(&error.message)))
        .finish();
    digits.truncate(16);
    digits
}

/// The message with every number, id, address and time replaced by a placeholder.
pub fn pattern(message: &str) -> String {
    let mut pattern = String::new();
    let mut in_digits = false;
    for c in message.chars().take(LOOKED_AT) {
        if c.is_numeric() {
            if !in_digits {
                pattern.push('#');
            }
            in_digits = true;
        } else {
            in_digits = false;
            pattern.push(c);
        }
    }
    pattern
}

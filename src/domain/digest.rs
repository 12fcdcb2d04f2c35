//! Digest of what a client sent: the proof that a request is the same request again.
//!
//! SHA-256 over a canonical encoding (tag, length, bytes; object keys sorted), cut to 128 bits. Absent, null
//! and `{}` are told apart only where the caller says so: the writer simply leaves out what is empty.

use bson::{Bson, Document};
use sha2::{Digest as _, Sha256};

/// Collects the fields of one request in a fixed order.
pub struct Digest(Sha256);

impl Digest {
    /// `kind` keeps digests of different requests apart.
    pub fn new(kind: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_bytes());
        hash.update([0]);
        Digest(hash)
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn text(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            self.bytes(b'n', name.as_bytes());
            self.bytes(b's', value.as_bytes());
        }
        self
    }

    pub fn integer(mut self, name: &str, value: Option<i64>) -> Self {
        if let Some(value) = value {
            self.bytes(b'n', name.as_bytes());
            self.bytes(b'i', &value.to_le_bytes());
        }
        self
    }

    pub fn integers(mut self, name: &str, values: &[i32]) -> Self {
        if !values.is_empty() {
            self.bytes(b'n', name.as_bytes());
            for value in values {
                self.bytes(b'i', &i64::from(*value).to_le_bytes());
            }
        }
        self
    }

    pub fn texts(mut self, name: &str, values: &[String]) -> Self {
        if !values.is_empty() {
            self.bytes(b'n', name.as_bytes());
            for value in values {
                self.bytes(b's', value.as_bytes());
            }
        }
        self
    }

    /// An object; empty is the same as absent.
    pub fn object(mut self, name: &str, value: &Document) -> Self {
        if !value.is_empty() {
            self.bytes(b'n', name.as_bytes());
            self.document(value);
        }
        self
    }

    /// Any value; null and `{}` are the same as absent.
    pub fn value(mut self, name: &str, value: Option<&Bson>) -> Self {
        match value {
            None | Some(Bson::Null) => {}
            Some(Bson::Document(document)) if document.is_empty() => {}
            Some(value) => {
                self.bytes(b'n', name.as_bytes());
                self.any(value);
            }
        }
        self
    }

    pub fn error(self, value: Option<&super::terms::RunError>) -> Self {
        match value {
            None => self,
            Some(error) => self
                .text("error", Some(&error.message))
                .text("error.code", Some(&error.code))
                .text("error.stack_trace", Some(&error.stack_trace))
                .object("error.details", &error.details),
        }
    }

    fn document(&mut self, document: &Document) {
        let mut entries: Vec<_> = document.iter().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        self.0.update([b'{']);
        for (key, value) in entries {
            self.bytes(b'k', key.as_bytes());
            self.any(value);
        }
        self.0.update([b'}']);
    }

    fn any(&mut self, value: &Bson) {
        match value {
            Bson::Null => self.0.update([b'0']),
            Bson::Boolean(value) => self.0.update([b'b', u8::from(*value)]),
            Bson::Int32(value) => self.bytes(b'i', &i64::from(*value).to_le_bytes()),
            Bson::Int64(value) => self.bytes(b'i', &value.to_le_bytes()),
            Bson::Double(value) => self.bytes(b'd', &value.to_le_bytes()),
            Bson::String(value) => self.bytes(b's', value.as_bytes()),
            Bson::Array(values) => {
                self.0.update([b'[']);
                for value in values {
                    self.any(value);
                }
                self.0.update([b']']);
            }
            Bson::Document(document) => self.document(document),
            // Only records of other programs hold other types, and those are compared by field.
            other => self.bytes(b'x', other.to_string().as_bytes()),
        }
    }

    /// 32 hex digits.
    pub fn finish(self) -> String {
        hex::encode(&self.0.finalize()[..16])
    }
}

//! Messages of MongoDB's wire protocol, as far as they have to be read: OP_MSG, without compression.

use std::collections::HashMap;

use mongodb::bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use mongodb::bson::{Bson, Document};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const OP_MSG: i32 = 2013;
const HEADER: usize = 16;
/// The flags come first, then the kind of the first section.
const BODY: usize = HEADER + 5;
/// A flag: a checksum follows.
const CHECKSUM: i32 = 1;
/// Some tens of MB are the most that either side sends.
const LONGEST: usize = 64 * 1024 * 1024;

/// One message, as it came.
pub struct Message(Vec<u8>);

impl Message {
    /// `None`: there is no other.
    pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Option<Message> {
        let mut message = vec![0; HEADER];
        from.read_exact(&mut message).await.ok()?;
        let length = usize::try_from(number(&message, 0)).ok()?;
        assert!((HEADER..LONGEST).contains(&length), "a message of {length} bytes");
        message.resize(length, 0);
        from.read_exact(&mut message[HEADER..]).await.ok()?;
        Some(Message(message))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The body, which is its first section.
    pub fn body(&self) -> Option<&RawDocument> {
        let message = &self.0;
        if number(message, 12) != OP_MSG || message.get(BODY - 1) != Some(&0) {
            return None;
        }
        document_at(message, BODY)
    }

    /// The same with another body, which is all there is in it.
    pub fn with_body(&self, body: &Document) -> Message {
        let flags = number(&self.0, HEADER) & !CHECKSUM;
        op_msg(number(&self.0, 4), number(&self.0, 8), flags, body)
    }

    /// The answer to it.
    pub fn answered(&self, body: &Document) -> Message {
        op_msg(1, number(&self.0, 4), 0, body)
    }
}

fn op_msg(id: i32, to: i32, flags: i32, body: &Document) -> Message {
    let body = RawDocumentBuf::try_from(body).expect("it came as one");
    let body = body.as_bytes();
    let length = i32::try_from(BODY + body.len()).expect("it is small");
    let mut message = Vec::with_capacity(BODY + body.len());
    for number in [length, id, to, OP_MSG, flags] {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(body);
    Message(message)
}

fn number(message: &[u8], at: usize) -> i32 {
    let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, i32::from_le_bytes)
}

fn document_at(message: &[u8], at: usize) -> Option<&RawDocument> {
    let length = usize::try_from(number(message, at)).ok()?;
    RawDocument::from_bytes(message.get(at..at + length)?).ok()
}

/// Fields of commands that are looked at. Others may be large.
const READ: [&str; 7] =
    ["$db", "filter", "query", "pipeline", "indexes", "writeConcern", "autocommit"];

/// Statements of commands, of which only these fields are looked at.
const STATEMENTS: [&str; 2] = ["updates", "deletes"];
const OF_STATEMENTS: [&str; 4] = ["q", "multi", "upsert", "limit"];

/// A command: its first field is its name.
pub struct Command {
    pub name: String,
    /// Nothing for those that are not about one.
    pub collection: String,
    pub database: String,
    pub body: Document,
    pub statements: Vec<Document>,
}

impl Command {
    pub fn of(message: &Message) -> Option<Command> {
        let raw = message.body()?;
        let (mut name, mut collection) = (String::new(), String::new());
        let (mut body, mut statements) = (Document::new(), Vec::new());
        for element in raw {
            let (field, value) = element.ok()?;
            let field = field.as_str();
            if name.is_empty() {
                name = field.to_owned();
                collection = value.as_str().unwrap_or_default().to_owned();
            } else if READ.contains(&field) {
                body.insert(field, Bson::try_from(value).ok()?);
            } else if STATEMENTS.contains(&field) {
                for one in value.as_array()? {
                    statements.push(statement(one.ok()?.as_document()?)?);
                }
            }
        }
        for (field, documents) in message.sequences(BODY + raw.as_bytes().len())? {
            if STATEMENTS.contains(&field.as_str()) {
                for one in documents {
                    statements.push(statement(one)?);
                }
            }
        }
        let database = body.get_str("$db").unwrap_or_default().to_owned();
        Some(Command { name, collection, database, body, statements })
    }
}

fn statement(raw: &RawDocument) -> Option<Document> {
    let mut statement = Document::new();
    for element in raw {
        let (field, value): (_, RawBsonRef<'_>) = element.ok()?;
        if OF_STATEMENTS.contains(&field.as_str()) {
            statement.insert(field.as_str(), Bson::try_from(value).ok()?);
        }
    }
    Some(statement)
}

impl Message {
    /// What came in sections of its own.
    fn sequences(&self, mut at: usize) -> Option<HashMap<String, Vec<&RawDocument>>> {
        let has_checksum = number(&self.0, HEADER) & CHECKSUM != 0;
        let message = &self.0[..self.0.len() - if has_checksum { 4 } else { 0 }];
        let mut sequences = HashMap::new();
        while at < message.len() {
            if message[at] != 1 {
                return None;
            }
            let end = at + 1 + usize::try_from(number(message, at + 1)).ok()?;
            let name_end = at + 5 + message.get(at + 5..end)?.iter().position(|byte| *byte == 0)?;
            let name = String::from_utf8(message[at + 5..name_end].to_vec()).ok()?;
            let (mut documents, mut next) = (Vec::new(), name_end + 1);
            while next < end {
                let document = document_at(message, next)?;
                next += document.as_bytes().len();
                documents.push(document);
            }
            sequences.insert(name, documents);
            at = end;
        }
        Some(sequences)
    }
}

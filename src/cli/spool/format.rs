//! What is in a file of a spool: records one after the other, of which some are notes of the library.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use serde_json::Value as Json;

use crate::proto;
use crate::proto::ingest_request::Write;

/// A record that is not a write but a note begins with field 1000, which has a JSON text.
const NOTE_TAG: [u8; 2] = [0xc2, 0x3e];
/// No record is longer: a server takes 16 MiB.
const RECORD_BYTES: u64 = 64 * 1024 * 1024;
/// What is said as `stepwell` in notes.
const VERSION: u64 = 1;

/// Who wrote a file, and with it how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    Python,
    TypeScript,
    /// This command, from what a server has refused.
    Refused,
}

impl Maker {
    pub fn name(self) -> &'static str {
        match self {
            Maker::Python => "python",
            Maker::TypeScript => "typescript",
            Maker::Refused => "spool send",
        }
    }
}

/// Reads records one after the other. What was cut off by a crash is the end.
pub struct Records {
    input: BufReader<File>,
    maker: Maker,
    /// Where the last whole record ends.
    whole: u64,
}

impl Records {
    pub fn open(path: &Path, maker: Maker) -> io::Result<Self> {
        Ok(Records { input: BufReader::new(File::open(path)?), maker, whole: 0 })
    }

    /// How many bytes of whole records were read.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// Length, then bytes: a varint in files of TypeScript, else four bytes, little-endian. Second: how long that is.
    fn length(&mut self) -> io::Result<(u64, u64)> {
        if self.maker != Maker::TypeScript {
            let mut bytes = [0; 4];
            self.input.read_exact(&mut bytes)?;
            return Ok((u64::from(u32::from_le_bytes(bytes)), 4));
        }
        let mut length = 0;
        for index in 0..5 {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            length |= u64::from(byte[0] & 0x7f) << (7 * index);
            if byte[0] < 0x80 {
                return Ok((length, index + 1));
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn record(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let (length, head) = self.length()?;
            // A hole of zeros, as a power cut may leave it. The library for Python looks behind it.
            if length == 0 && self.maker != Maker::TypeScript {
                self.whole += head;
                continue;
            }
            if length == 0 || length > RECORD_BYTES {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut record = Vec::new();
            (&mut self.input).take(length).read_to_end(&mut record)?;
            if (record.len() as u64) < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.whole += head + length;
            return Ok(record);
        }
    }
}

impl Iterator for Records {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.record() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            read => Some(read),
        }
    }
}

/// Whether a file in which no record is whole may be the beginning of one that was cut off: each begins with a note.
pub fn may_be_cut_off(path: &Path, maker: Maker) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(8).read_to_end(&mut head)?;
    let at = match maker {
        Maker::TypeScript => head.iter().take_while(|byte| **byte >= 0x80).count() + 1,
        Maker::Python | Maker::Refused => 4,
    };
    let rest = head.get(at..).unwrap_or_default();
    let is_note = rest.iter().zip(NOTE_TAG).all(|(found, wanted)| *found == wanted);
    Ok(is_note || head.iter().all(|byte| *byte == 0))
}

/// What a note says; `None`: the record is a write.
pub fn note(record: &[u8]) -> Option<Json> {
    let mut rest = record.strip_prefix(&NOTE_TAG)?;
    while rest.first().is_some_and(|byte| *byte >= 0x80) {
        rest = &rest[1..];
    }
    Some(serde_json::from_slice(rest.get(1..).unwrap_or_default()).unwrap_or(Json::Null))
}

/// Whether this command knows how to read what comes behind a note. Only the first one of a file has to say its version.
pub fn is_known(note: &Json) -> bool {
    let version = note.as_object().map(|note| note.get("stepwell"));
    version.is_some_and(|version| version.is_none_or(|version| version.as_u64() == Some(VERSION)))
}

/// A note with its length, as the library for Python writes it. `more` is added to what all notes say.
pub fn framed_note(server: Option<&str>, more: &[(&str, &str)]) -> Vec<u8> {
    let mut content = serde_json::Map::new();
    content.insert("stepwell".to_owned(), VERSION.into());
    if let Some(server) = server {
        content.insert("server".to_owned(), server.into());
    }
    content.extend(more.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())));
    let text = Json::Object(content).to_string();
    let mut record = NOTE_TAG.to_vec();
    prost::encode_length_delimiter(text.len(), &mut record).expect("a vector grows");
    record.extend(text.as_bytes());
    framed(&record)
}

/// A record with its length, as the library for Python writes it.
pub fn framed(record: &[u8]) -> Vec<u8> {
    let mut framed = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    framed.extend(record);
    framed
}

/// The execution that a write is about.
pub fn execution_of(write: &Write) -> &str {
    match write {
        Write::CreateExecution(write) => write.execution_id.as_deref().unwrap_or_default(),
        Write::UpdateExecution(write) => &write.execution_id,
        Write::FinishExecution(write) => &write.execution_id,
        Write::Heartbeat(write) => &write.execution_id,
        Write::RequestCancel(write) => &write.execution_id,
        Write::DeleteExecution(write) => &write.execution_id,
        Write::PlanSteps(write) => &write.execution_id,
        Write::StartStep(write) => &write.execution_id,
        Write::UpdateStep(write) => &write.execution_id,
        Write::FinishStep(write) => &write.execution_id,
        Write::PutExecution(record) => &record.execution_id,
        Write::PutStep(record) => &record.execution_id,
        Write::RecordMetrics(write) | Write::PutMetrics(write) => &write.execution_id,
        Write::PutArtifact(record) => &record.execution_id,
        Write::PutConfiguration(_) => "",
    }
}

/// What a write does, as a person is told: its name, the execution, and the step.
pub fn title(write: &Write) -> String {
    let (name, step): (&str, Option<&str>) = match write {
        Write::CreateExecution(_) => ("create_execution", None),
        Write::UpdateExecution(_) => ("update_execution", None),
        Write::FinishExecution(_) => ("finish_execution", None),
        Write::Heartbeat(_) => ("heartbeat", None),
        Write::RequestCancel(_) => ("request_cancel", None),
        Write::DeleteExecution(_) => ("delete_execution", None),
        Write::PlanSteps(_) => ("plan_steps", None),
        Write::StartStep(write) => ("start_step", write.step_key.as_deref()),
        Write::UpdateStep(write) => ("update_step", write.step_key.as_deref()),
        Write::FinishStep(write) => ("finish_step", write.step_key.as_deref()),
        Write::PutExecution(_) => ("put_execution", None),
        Write::PutStep(record) => ("put_step", record.step_key.as_deref()),
        Write::RecordMetrics(_) => ("record_metrics", None),
        Write::PutMetrics(_) => ("put_metrics", None),
        Write::PutArtifact(_) => ("put_artifact", None),
        Write::PutConfiguration(_) => ("put_configuration", None),
    };
    let step = step.map(|key| format!(" step {key}")).unwrap_or_default();
    format!("{name} {}{step}", execution_of(write)).trim().to_owned()
}

/// A record that is no note as a write.
pub fn write_of(record: &[u8]) -> Option<Write> {
    <proto::IngestRequest as prost::Message>::decode(record).ok()?.write
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], maker: Maker) -> (Vec<Vec<u8>>, u64) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut records = Records::open(file.path(), maker).unwrap();
        let found = records.by_ref().map(Result::unwrap).collect();
        (found, records.whole())
    }

    #[test]
    fn records_end_where_a_crash_has_cut_them() {
        let whole = [3, 0, 0, 0, b'a', b'b', b'c', 1, 0, 0, 0, b'd'];
        assert_eq!(read(&whole, Maker::Python), (vec![b"abc".to_vec(), b"d".to_vec()], 12));
        for end in 7..whole.len() {
            assert_eq!(read(&whole[..end], Maker::Python), (vec![b"abc".to_vec()], 7), "{end}");
        }
        let mut long = vec![0xac, 0x02];
        long.extend([7; 300]);
        long.extend([1, b'd']);
        let first = vec![7; 300];
        assert_eq!(read(&long, Maker::TypeScript), (vec![first.clone(), b"d".to_vec()], 304));
        assert_eq!(read(&long[..303], Maker::TypeScript), (vec![first], 302));
        assert!(read(&long[..301], Maker::TypeScript).0.is_empty());
        // A length that nothing has.
        assert!(read(&[0xff; 64], Maker::TypeScript).0.is_empty());
        assert!(read(&[0xff; 64], Maker::Python).0.is_empty());
    }

    #[test]
    fn a_hole_of_zeros_is_what_each_library_takes_it_for() {
        let mut holed = framed(b"a");
        holed.extend([0; 12]);
        holed.extend(framed(b"b"));
        assert_eq!(read(&holed, Maker::Python).0, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(read(&[1, b'a', 0, 0, 1, b'b'], Maker::TypeScript).0, [b"a".to_vec()]);
        assert!(read(&[0; 64], Maker::Python).0.is_empty());
        assert!(read(&[0; 64], Maker::TypeScript).0.is_empty());
    }

    #[test]
    fn a_note_is_told_from_a_write() {
        let long = "x".repeat(300);
        for server in ["here:1", &long] {
            let framed = framed_note(Some(server), &[("refused", "why")]);
            let (found, whole) = read(&framed, Maker::Python);
            assert_eq!(whole, framed.len() as u64);
            let note = note(&found[0]).unwrap();
            assert!(is_known(&note));
            assert_eq!(note["server"], server);
            assert_eq!(note["refused"], "why");
            // Who does not know the field reads a request without a write.
            assert_eq!(write_of(&found[0]), None);
        }
        assert_eq!(note(b"\x08\x01"), None);
        assert!(is_known(&note(b"\xc2\x3e\x02{}").unwrap()));
        assert!(!is_known(&note(b"\xc2\x3e\x0e{\"stepwell\":2}").unwrap()));
        assert!(!is_known(&note(b"\xc2\x3e\x05{\"st").unwrap()));
    }

    #[test]
    fn the_beginning_of_a_note_is_told_from_something_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let may_be = |bytes: &[u8], maker| {
            std::fs::write(file.path(), bytes).unwrap();
            may_be_cut_off(file.path(), maker).unwrap()
        };
        let python = framed_note(Some("here:1"), &[]);
        for end in 0..8 {
            assert!(may_be(&python[..end], Maker::Python), "{end}");
        }
        for bytes in [&[0x28, 0xc2, 0x3e, 0x26, b'{'][..], &[0x90, 0x01, 0xc2, 0x3e], &[0x90], &[]]
        {
            assert!(may_be(bytes, Maker::TypeScript), "{bytes:?}");
        }
        for maker in [Maker::Python, Maker::TypeScript] {
            assert!(may_be(&[0; 64], maker));
            assert!(!may_be(b"hello, world", maker));
        }
    }
}

//! Reads and converts files on a thread of its own, a bounded step ahead of the sender.

use std::path::Path;

use tokio::sync::mpsc;

use super::extended_json;
use super::find::{Collection, Found};
use super::lines::{LINE_BYTES, Line, Lines};
use super::outgoing::{ENVELOPE_BYTES, Outgoing};
use super::points::Waiting;
use super::record::{self, AssumedStatus, Converted};
use crate::proto::ingest_request::Write;

/// Documents handed over together at most; a batch also ends when its lines are this long together.
const BATCH_DOCUMENTS: usize = 64;
const BATCH_BYTES: usize = 256 * 1024;
/// Batches waiting for the sender at most.
const BATCHES: usize = 4;

/// What became of one line, or of a file.
#[derive(Debug, PartialEq)]
pub enum Read {
    /// A document that can be sent.
    Write(Box<Outgoing>),
    /// A document that cannot.
    Refused { file: usize, line: u64, reason: String },
    /// A step without a number: it is left to a pass of its own.
    Later { file: usize },
    /// The rest of a file cannot be read.
    Unreadable { file: usize, line: u64, reason: String },
    /// So much of a file has been read from disk, in bytes since last said.
    Progress { bytes: u64 },
}

/// Executions come first, as steps need theirs. Steps that bring no number come last: the server gives them one
/// greater than all it has seen, which must not be that of a step still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Executions,
    /// Steps with a number, and whatever is no step.
    Numbered,
    /// Of files that were read before: the steps without a number.
    Unnumbered,
    /// Everything at once, for who sends nothing.
    Every,
}

impl Pass {
    /// The passes in their order.
    pub const ALL: [Pass; 3] = [Pass::Executions, Pass::Numbered, Pass::Unnumbered];

    /// Whether a file is read in this pass; `unnumbered`: it is known to have steps without a number.
    pub fn reads(self, collection: Collection, unnumbered: bool) -> bool {
        match self {
            Pass::Executions => collection == Collection::Executions,
            Pass::Numbered => collection != Collection::Executions,
            Pass::Unnumbered => unnumbered,
            Pass::Every => true,
        }
    }
}

/// How to convert.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub pass: Pass,
    pub assume: Option<AssumedStatus>,
    /// The largest message that the server takes.
    pub message_bytes: usize,
}

/// Starts reading; the batches come over the channel, which ends after the last file. A receiver that goes away
/// ends the thread.
pub fn start(files: Vec<(usize, Found)>, rules: Rules) -> mpsc::Receiver<Vec<Read>> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    tokio::task::spawn_blocking(move || {
        let mut batches = Batches { sender, batch: Vec::new(), bytes: 0 };
        for (index, file) in files {
            if read(index, &file, rules, &mut batches).is_err() {
                return;
            }
        }
        let _ = batches.flush();
    });
    receiver
}

/// The receiver is gone.
struct Gone;

struct Batches {
    sender: mpsc::Sender<Vec<Read>>,
    batch: Vec<Read>,
    bytes: usize,
}

impl Batches {
    fn push(&mut self, read: Read, bytes: usize) -> Result<(), Gone> {
        self.batch.push(read);
        self.bytes += bytes;
        if self.batch.len() >= BATCH_DOCUMENTS || self.bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Gone> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(batch).map_err(|_| Gone)
    }
}

fn read(index: usize, file: &Found, rules: Rules, batches: &mut Batches) -> Result<(), Gone> {
    let unreadable = |line: u64, path: &Path, error: &std::io::Error| Read::Unreadable {
        file: index,
        line,
        reason: format!("{}: cannot read any further: {error}", path.display()),
    };
    let mut lines = match Lines::open(&file.path) {
        Ok(lines) => lines,
        Err(error) => return batches.push(unreadable(0, &file.path, &error), 0),
    };
    let mut said = 0;
    let mut waiting = Waiting::new(index);
    loop {
        let (read, bytes) = match lines.next() {
            Ok(None) => break,
            Ok(Some(Line::TooLong { number, bytes })) => {
                let reason =
                    format!("has {bytes} bytes, more than the limit of {LINE_BYTES} per line");
                (Read::Refused { file: index, line: number, reason }, 0)
            }
            Ok(Some(Line::Text { number, text })) if file.collection == Collection::Metrics => {
                match extended_json::parse(text).and_then(record::metric_point) {
                    Ok(point) => {
                        for complete in waiting.add(number, point) {
                            let bytes = complete.bytes;
                            batches.push(sendable(complete, rules), bytes)?;
                        }
                        (Read::Progress { bytes: 0 }, 0)
                    }
                    Err(reason) => (Read::Refused { file: index, line: number, reason }, 0),
                }
            }
            Ok(Some(Line::Text { number, text })) => {
                (document(index, number, text, file.collection, rules), text.len())
            }
            Err(_) if rules.pass == Pass::Unnumbered => break,
            Err(error) => {
                let line = lines.number() + 1;
                batches.push(unreadable(line, &file.path, &error), 0)?;
                break;
            }
        };
        if rules.pass == Pass::Unnumbered {
            // All else was said when the file was read before.
            if let Read::Write(_) = read {
                batches.push(read, bytes)?;
            }
            continue;
        }
        if read != (Read::Progress { bytes: 0 }) {
            batches.push(read, bytes)?;
        }
        let consumed = lines.consumed();
        if consumed > said {
            batches.push(Read::Progress { bytes: consumed - said }, 0)?;
            said = consumed;
        }
    }
    if rules.pass == Pass::Unnumbered {
        return Ok(());
    }
    for complete in waiting.rest() {
        let bytes = complete.bytes;
        batches.push(sendable(complete, rules), bytes)?;
    }
    // Also what was not needed of a broken file: the bar ends at its end.
    batches.push(Read::Progress { bytes: file.bytes.saturating_sub(said) }, 0)
}

fn document(file: usize, line: u64, text: &[u8], collection: Collection, rules: Rules) -> Read {
    let converted = match collection {
        Collection::Metrics => Err("points of metrics are sent together".to_owned()),
        Collection::Executions => extended_json::parse(text)
            .and_then(|document| record::execution(document, rules.assume))
            .map(|found| outgoing(file, line, found, Write::PutExecution)),
        Collection::Steps => extended_json::parse(text)
            .and_then(|document| record::step(document, rules.assume))
            .map(|found| outgoing(file, line, found, Write::PutStep)),
        Collection::Configurations => extended_json::parse(text)
            .and_then(record::configuration)
            .map(|found| outgoing(file, line, found, Write::PutConfiguration)),
        Collection::Artifacts => extended_json::parse(text)
            .and_then(record::artifact)
            .map(|found| outgoing(file, line, found, Write::PutArtifact)),
    };
    match converted {
        Err(reason) => Read::Refused { file, line, reason },
        Ok(outgoing) => {
            let unnumbered =
                matches!(&outgoing.write, Write::PutStep(step) if step.step_id.is_none());
            match (rules.pass, unnumbered) {
                (Pass::Numbered, true) | (Pass::Unnumbered, false) => Read::Later { file },
                _ => sendable(outgoing, rules),
            }
        }
    }
}

fn sendable(outgoing: Outgoing, rules: Rules) -> Read {
    if outgoing.bytes <= rules.message_bytes {
        return Read::Write(Box::new(outgoing));
    }
    Read::Refused {
        file: outgoing.file,
        line: outgoing.line,
        reason: format!(
            "has {} bytes as a message, more than the server's limit of {}",
            outgoing.bytes, rules.message_bytes
        ),
    }
}

fn outgoing<T: prost::Message>(
    file: usize,
    line: u64,
    converted: Converted<T>,
    write: impl FnOnce(T) -> Write,
) -> Outgoing {
    Outgoing {
        file,
        line,
        documents: 1,
        bytes: converted.record.encoded_len() + ENVELOPE_BYTES,
        write: write(converted.record),
        assumed: converted.assumed,
        left_out: converted.left_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { pass: Pass::Executions, assume: None, message_bytes: 4096 };

    #[test]
    fn a_record_larger_than_a_message_is_refused_here() {
        let text = format!(
            r#"{{"execution_id":"e","app_name":"a","status":"failed","error":"{}"}}"#,
            "x".repeat(5000)
        );
        let read = document(0, 7, text.as_bytes(), Collection::Executions, RULES);
        let Read::Refused { file: 0, line: 7, reason } = read else { panic!("{read:?}") };
        assert!(reason.ends_with("more than the server's limit of 4096"), "{reason}");
    }

    #[test]
    fn steps_without_a_number_wait_for_those_that_have_one() {
        let step = |pass, step_id| {
            let text = format!(
                r#"{{"execution_id":"e","step_id":{step_id},"step_name":"n","status":"failed"}}"#
            );
            document(0, 1, text.as_bytes(), Collection::Steps, Rules { pass, ..RULES })
        };
        assert!(matches!(step(Pass::Numbered, "1"), Read::Write(_)));
        assert_eq!(step(Pass::Numbered, "\"a\""), Read::Later { file: 0 });
        assert_eq!(step(Pass::Unnumbered, "1"), Read::Later { file: 0 });
        assert!(matches!(step(Pass::Unnumbered, "\"a\""), Read::Write(_)));
    }

    #[tokio::test]
    async fn a_file_is_read_to_its_end_whatever_is_in_it() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("executions.jsonl");
        let content = "{\"execution_id\":\"a\",\"app_name\":\"x\",\"status\":\"completed\"}\nbroken\n\n\
                       {\"execution_id\":\"b\",\"app_name\":\"x\",\"status\":\"completed\"}";
        std::fs::write(&path, content).expect("a file");
        let found = Found { path, collection: Collection::Executions, bytes: content.len() as u64 };
        let mut batches = start(vec![(0, found)], RULES);
        let (mut lines, mut refused, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(batch) = batches.recv().await {
            for read in batch {
                match read {
                    Read::Write(outgoing) => lines.push(outgoing.line),
                    Read::Refused { line, .. } => refused.push(line),
                    Read::Progress { bytes: more } => bytes += more,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((lines, refused), (vec![1, 4], vec![2]));
        assert_eq!(bytes, content.len() as u64);
    }
}

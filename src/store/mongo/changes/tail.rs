//! One change stream, read for as long as somebody wants it.
//!
//! The driver's stream must not be abandoned in the middle of a step, so a task of its own drives it and hands
//! the changes over through a bounded channel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{RawDocumentBuf, doc};
use mongodb::action::Action as _;
use mongodb::change_stream::ChangeStream;
use tokio::sync::mpsc;

use super::event::{NUDGES, read_event};
use super::token::{cursor_of, cursor_of_token, token_of};
use crate::store::mongo::db::{Connection, failure};
use crate::store::mongo::names::{ARTIFACTS, EXECUTIONS, STEPS};
use crate::store::{Change, ChangeReader, Cursor, Error, Result};

/// How long the database waits for a change before it answers that there is none.
const WAIT: Duration = Duration::from_millis(800);
/// How long `next` waits.
const NEXT: Duration = Duration::from_secs(1);
const _: () = assert!(
    WAIT.as_millis() < NEXT.as_millis(),
    "an idle database says where its log is before `next` gives up on it"
);
const CHANGES_AT_ONCE: usize = 500;
/// Changes read ahead of the reader.
const READ_AHEAD: usize = 256;
const PAUSE: Duration = Duration::from_millis(250);
/// How long a stream may take at most to answer, where it had to be opened again and again.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

pub type Stream = ChangeStream<RawDocumentBuf>;

/// When a stream answers that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// With its first changes, or when there are none; and with what is wrong with the cursor.
    First,
    /// At once. The database may have to go through a lot of its log before it comes to a change that is for us.
    AtOnce,
}

pub async fn open_stream(ready: &Connection, after: Option<&Cursor>) -> Result<Stream> {
    match open_stream_with(ready, after, Answer::First).await {
        Opened::Silent if after.is_some() => {
            open_stream_with(ready, after, Answer::AtOnce).await.into()
        }
        opened => opened.into(),
    }
}

enum Opened {
    Stream(Stream),
    Failed(Error),
    Silent,
}

impl From<Opened> for Result<Stream> {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Stream(stream) => Ok(stream),
            Opened::Failed(error) => Err(error),
            Opened::Silent => Err(failure::timeout()),
        }
    }
}

async fn open_stream_with(ready: &Connection, after: Option<&Cursor>, answer: Answer) -> Opened {
    let token = match after {
        None => None,
        Some(cursor) => match token_of(cursor) {
            Some(token) => Some(token),
            None => return Opened::Failed(Error::BadCursor),
        },
    };
    let pipeline = [
        doc! { "$match": {
            "ns.coll": {
                "$in": [EXECUTIONS, STEPS, ARTIFACTS, NUDGES],
            },
            "operationType": { "$in": ["insert", "update", "replace", "delete"] },
        } },
        // Payloads may be huge, and hardly anybody asks for them.
        doc! { "$project": {
            "fullDocument.input": 0,
            "fullDocument.output": 0,
            "updateDescription.updatedFields.input": 0,
            "updateDescription.updatedFields.output": 0,
        } },
    ];
    let watch = ready.watch(pipeline).max_await_time(WAIT);
    // `start_after` takes every token, also one of a database that was dropped since.
    let watch = watch.optional(token, |watch, token| watch.start_after(token));
    let watch = match answer {
        Answer::First => watch,
        Answer::AtOnce => watch.batch_size(0),
    };
    match tokio::time::timeout(ready.patience() * 2, watch).await {
        Ok(Ok(stream)) => Opened::Stream(stream.with_type::<RawDocumentBuf>()),
        Ok(Err(error)) => Opened::Failed(failure::stream_error(error)),
        Err(_) => Opened::Silent,
    }
}

/// What the task hands to its reader.
enum Item {
    Change(Box<Change>),
    /// Nothing to tell, but the position moved.
    Moved(Cursor),
    Failed(Error),
}

/// Reads the stream for as long as the reader lives, and opens it anew where the driver gives up.
async fn drive(
    ready: Arc<Connection>,
    stream: Stream,
    mut cursor: Cursor,
    sender: mpsc::Sender<Item>,
) {
    let least = WAIT + ready.patience() * 2;
    let mut silence = least;
    let mut reached = cursor.clone();
    let mut stream = Some(stream);
    loop {
        let Some(open) = &mut stream else {
            let opened: Result<Stream> = match silence == least {
                true => open_stream(&ready, Some(&cursor)).await,
                // It went silent before.
                false => open_stream_with(&ready, Some(&cursor), Answer::AtOnce).await.into(),
            };
            match opened {
                Ok(open) => stream = Some(open),
                Err(error) => {
                    let passing = matches!(error, Error::Unavailable(_));
                    if sender.send(Item::Failed(error)).await.is_err() || !passing {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            continue;
        };
        let item = match tokio::time::timeout(silence, open.next_if_any()).await {
            Ok(Ok(Some(event))) => {
                let token = event.get_document("_id").ok().and_then(cursor_of);
                let Some(token) = token else { continue };
                cursor = token;
                match read_event(&event, &cursor) {
                    Some(change) => Item::Change(Box::new(change)),
                    None => Item::Moved(cursor.clone()),
                }
            }
            Ok(Ok(None)) => {
                if let Some(token) = open.resume_token().as_ref().and_then(cursor_of_token) {
                    cursor = token;
                }
                if !open.is_alive() {
                    stream = None;
                }
                Item::Moved(cursor.clone())
            }
            Ok(Err(error)) => match failure::stream_error(error) {
                Error::Unavailable(_) => {
                    stream = None;
                    continue;
                }
                error => {
                    let _ = sender.send(Item::Failed(error)).await;
                    return;
                }
            },
            // The connection went silent, or the database goes through much that is not for us before it answers.
            // Dropping the stream is the only safe thing to do with it now, and to wait longer for the next one.
            Err(_) => {
                silence = (silence * 2).min(LONGEST_SILENCE.max(least));
                tracing::info!(?silence, "the log has not answered, and is opened anew");
                stream = None;
                continue;
            }
        };
        // A stream that was just opened says that there is nothing before it has looked.
        if cursor != reached {
            silence = least;
            reached.clone_from(&cursor);
        }
        if sender.send(item).await.is_err() {
            return;
        }
    }
}

pub struct Reader {
    receiver: mpsc::Receiver<Item>,
    cursor: Cursor,
    /// A failure that came after changes which had to be told first.
    failed: Option<Error>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    /// Reads a stream on from its cursor.
    pub fn of(ready: Arc<Connection>, stream: Stream, cursor: Cursor) -> Reader {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let task = tokio::spawn(drive(ready, stream, cursor.clone(), sender));
        Reader { receiver, cursor, failed: None, task }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Vec<Change>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut changes = Vec::new();
        let mut item = match tokio::time::timeout(NEXT, self.receiver.recv()).await {
            Err(_) => return Ok(changes),
            Ok(None) => return Err(failure::away()),
            Ok(Some(item)) => Some(item),
        };
        while let Some(now) = item {
            match now {
                Item::Change(change) => {
                    self.cursor = change.cursor.clone();
                    changes.push(*change);
                }
                Item::Moved(cursor) => self.cursor = cursor,
                Item::Failed(error) if changes.is_empty() => return Err(error),
                Item::Failed(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
            if changes.len() == CHANGES_AT_ONCE {
                break;
            }
            item = self.receiver.try_recv().ok();
        }
        Ok(changes)
    }

    fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }
}

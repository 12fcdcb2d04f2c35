//! One change stream, read for as long as somebody wants it.
//!
//! The driver's stream must not be abandoned in the middle of a step, so a task of its own drives it and hands
//! the changes over through a bounded channel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, doc};
use mongodb::action::Action as _;
use mongodb::change_stream::ChangeStream;
use tokio::sync::mpsc;

use super::event::read_event;
use super::token::{Place, cursor_of, cursor_of_token, place_of};
use crate::store::mongo::db::{Connection, Db, failure};
use crate::store::mongo::names::{ARTIFACTS, EXECUTIONS, NUDGES, STEPS};
use crate::store::{Change, ChangeReader, Cursor, Error, Result};
use crate::telemetry::metrics;

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

/// Events that are read in few fields before the log is read as usual again, where one of them was too large.
const NARROW_EVENTS: usize = 64;
/// Bytes of a key above which its document is left out.
const KEY_BYTES: i32 = 1024 * 1024;

pub type Stream = ChangeStream<RawDocumentBuf>;

/// How much of each event is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Everything but payloads.
    Usual,
    /// Only what says which document it is, when and to which revision it changed: all of it would not fit into an
    /// answer of the database.
    Narrow,
    /// The same, without documents whose key alone is too large.
    NarrowKeys,
}

impl Width {
    fn narrower(self) -> Option<Width> {
        match self {
            Width::Usual => Some(Width::Narrow),
            Width::Narrow => Some(Width::NarrowKeys),
            Width::NarrowKeys => None,
        }
    }

    fn stages(self) -> Vec<Document> {
        let few = doc! { "$project": {
            "operationType": 1,
            "ns": 1,
            "documentKey": 1,
            "clusterTime": 1,
            "wallTime": 1,
            "updateDescription.updatedFields.last_change": 1,
            "updateDescription.updatedFields.status": 1,
            "updateDescription.updatedFields.deleted_at": 1,
        } };
        let usable = doc! { "$match": {
            "$expr": { "$lte": [{ "$bsonSize": "$documentKey" }, KEY_BYTES] },
        } };
        match self {
            // Payloads may be huge, and hardly anybody asks for them.
            Width::Usual => vec![doc! { "$project": {
                "fullDocument.input": 0,
                "fullDocument.output": 0,
                "updateDescription.updatedFields.input": 0,
                "updateDescription.updatedFields.output": 0,
            } }],
            Width::Narrow => vec![few],
            Width::NarrowKeys => vec![usable, few],
        }
    }
}

/// When a stream answers that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// With its first changes, or when there are none; and with what is wrong with the cursor.
    First,
    /// At once. The database may have to go through a lot of its log before it comes to a change that is for us.
    AtOnce,
}

/// Opens the stream, and says how much of each event it reads: less than usual where what comes first is too large.
pub async fn open_stream(
    ready: &Connection,
    after: Option<&Cursor>,
    width: Width,
) -> Result<(Stream, Width)> {
    let mut width = width;
    loop {
        let opened = match open_stream_with(ready, after, Answer::First, width).await {
            Opened::Silent if after.is_some() => {
                open_stream_with(ready, after, Answer::AtOnce, width).await
            }
            opened => opened,
        };
        match opened {
            Opened::TooLarge(error) => match width.narrower() {
                Some(narrower) => width = narrower,
                None => return Err(error),
            },
            opened => return Result::from(opened).map(|stream| (stream, width)),
        }
    }
}

enum Opened {
    Stream(Stream),
    Failed(Error),
    /// An event does not fit into an answer.
    TooLarge(Error),
    Silent,
}

impl From<Opened> for Result<Stream> {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Stream(stream) => Ok(stream),
            Opened::Failed(error) | Opened::TooLarge(error) => Err(error),
            Opened::Silent => Err(failure::timeout()),
        }
    }
}

async fn open_stream_with(
    ready: &Connection,
    after: Option<&Cursor>,
    answer: Answer,
    width: Width,
) -> Opened {
    let place = match after.map(place_of) {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => return Opened::Failed(Error::BadCursor),
    };
    let mut pipeline = vec![doc! { "$match": {
        "ns.coll": {
            "$in": [EXECUTIONS, STEPS, ARTIFACTS, NUDGES],
        },
        "operationType": { "$in": ["insert", "update", "replace", "delete"] },
    } }];
    pipeline.extend(width.stages());
    let watch = ready.watch(pipeline).max_await_time(WAIT);
    // `start_after` takes every token, also one of a database that was dropped since.
    let watch = watch.optional(place, |watch, place| match place {
        Place::After(token) => watch.start_after(token),
        Place::From(time) => watch.start_at_operation_time(time),
    });
    let watch = match answer {
        Answer::First => watch,
        Answer::AtOnce => watch.batch_size(0),
    };
    match tokio::time::timeout(ready.patience() * 2, watch).await {
        Ok(Ok(stream)) => Opened::Stream(stream.with_type::<RawDocumentBuf>()),
        Ok(Err(error)) if failure::is_too_large(&error) => {
            Opened::TooLarge(failure::stream_error(error))
        }
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

/// A stream that is being read.
pub struct Reading {
    pub connection: Arc<Connection>,
    pub stream: Stream,
    pub width: Width,
}

/// Reads the stream for as long as the reader lives, and opens it anew where the driver gives up.
async fn drive(db: Arc<Db>, first: Reading, mut cursor: Cursor, sender: mpsc::Sender<Item>) {
    let least = WAIT + db.patience() * 2;
    let mut silence = least;
    let mut reached = cursor.clone();
    let mut width = first.width;
    // What was read in few fields since the stream was opened.
    let mut narrow = 0;
    let mut reading = Some(first);
    loop {
        let Some(open) = &mut reading else {
            narrow = 0;
            match open_again(&db, &cursor, width, silence == least).await {
                Ok(open) => {
                    if open.width != width {
                        width = open.width;
                        tell_width(width);
                    }
                    reading = Some(open);
                }
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
        let read = tokio::select! {
            read = tokio::time::timeout(silence, open.stream.next_if_any()) => read,
            // Who answers next may be somebody else.
            () = open.connection.lost() => {
                reading = None;
                continue;
            }
        };
        let item = match read {
            Ok(Ok(Some(event))) => {
                let token = event.get_document("_id").ok().and_then(cursor_of);
                let Some(token) = token else { continue };
                cursor = token;
                narrow += usize::from(width != Width::Usual);
                match has_huge_key(&event) {
                    true => {
                        count_skipped();
                        Item::Moved(cursor.clone())
                    }
                    false => match read_event(&event, &cursor, width == Width::Usual) {
                        Some(change) => Item::Change(Box::new(change)),
                        None => Item::Moved(cursor.clone()),
                    },
                }
            }
            Ok(Ok(None)) => {
                if let Some(token) = open.stream.resume_token().as_ref().and_then(cursor_of_token) {
                    cursor = token;
                }
                if !open.stream.is_alive() {
                    reading = None;
                }
                // Nothing is left of what was too large.
                narrow = if width == Width::Usual { 0 } else { NARROW_EVENTS };
                Item::Moved(cursor.clone())
            }
            Ok(Err(error)) if failure::is_too_large(&error) => match width.narrower() {
                Some(narrower) => {
                    width = narrower;
                    tell_width(width);
                    reading = None;
                    continue;
                }
                None => {
                    let _ = sender.send(Item::Failed(failure::stream_error(error))).await;
                    return;
                }
            },
            Ok(Err(error)) => match failure::stream_error(error) {
                Error::Unavailable(_) => {
                    reading = None;
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
                reading = None;
                continue;
            }
        };
        // A stream that was just opened says that there is nothing before it has looked.
        if cursor != reached {
            silence = least;
            reached.clone_from(&cursor);
        }
        if narrow >= NARROW_EVENTS {
            // From here on as usual; if what follows is too large again, it says so.
            width = Width::Usual;
            reading = None;
        }
        if sender.send(item).await.is_err() {
            return;
        }
    }
}

/// The stream from the cursor, over the connection of now.
async fn open_again(db: &Db, cursor: &Cursor, width: Width, answers: bool) -> Result<Reading> {
    let connection = db.ready().await?;
    let (stream, width) = match answers {
        true => open_stream(&connection, Some(cursor), width).await?,
        // It went silent before.
        false => {
            let opened = open_stream_with(&connection, Some(cursor), Answer::AtOnce, width).await;
            (Result::from(opened)?, width)
        }
    };
    Ok(Reading { connection, stream, width })
}

fn tell_width(width: Width) {
    match width {
        Width::Usual => {}
        Width::Narrow => {
            tracing::warn!("a change is too large for the log: it is read without its content");
        }
        Width::NarrowKeys => {
            tracing::error!(
                "the _id of a changed document is too large for the log: it is left out"
            );
            count_skipped();
        }
    }
}

fn count_skipped() {
    metrics::changes_skipped().increment(1);
}

/// A document that is left out, since nobody could go on after it.
fn has_huge_key(event: &RawDocumentBuf) -> bool {
    let key = event.get_document("documentKey");
    key.is_ok_and(|key| key.as_bytes().len() > KEY_BYTES.unsigned_abs() as usize)
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
    pub fn of(db: Arc<Db>, first: Reading, cursor: Cursor) -> Reader {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let task = tokio::spawn(drive(db, first, cursor.clone(), sender));
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

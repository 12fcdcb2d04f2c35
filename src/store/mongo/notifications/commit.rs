//! One batch as one transaction.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use futures::FutureExt as _;

use super::ids::{LEAD, told_id, told_of};
use crate::store::Result;
use crate::store::mongo::db::values::{binary, date};
use crate::store::mongo::db::{
    Connection, Db, Effort, Ended, Failed, delete_document, update_document,
};
use crate::store::mongo::leads::ABANDONED;
use crate::store::mongo::names::{DELIVERIES, META, Name, SUBSCRIPTIONS, TOLD};
use crate::store::notifications::{GAPS_KEPT, Moved, NotificationBatch, documents};

/// For how long a batch is tried: longer than the transaction of a dead server is left alone.
const EFFORT: Effort = Effort { within: Duration::from_secs(6), abandoned: ABANDONED };
const _: () = assert!(EFFORT.within.as_millis() > EFFORT.abandoned.as_millis());
/// Statements in one command, and their bytes.
const STATEMENTS: usize = 1_000;
const BYTES: usize = 8 * 1024 * 1024;

fn upsert(filter: Document, update: Document) -> Document {
    let mut statement = update_document(filter, update);
    statement.insert("upsert", true);
    statement
}

/// How a subscription moves, as an update of its document.
pub fn moved(moved: &Moved) -> Document {
    let mut set = doc! { "progress.at": moved.at.map(date) };
    set.insert("progress.cursor", moved.cursor.as_ref().map(|cursor| binary(&cursor.0)));
    let mut update = doc! { "$set": set };
    if let Some(gap) = &moved.gap {
        let kept = -i32::try_from(GAPS_KEPT).unwrap_or(i32::MAX);
        let each = doc! { "$each": [documents::gap(gap)], "$slice": kept };
        update.insert("$push", doc! { "progress.gaps": each });
    }
    update
}

/// The commands of a batch.
fn commands(batch: &NotificationBatch) -> Vec<Document> {
    let gone = batch.gone.iter().map(|(subscription, execution_id)| {
        let mut statement = delete_document(told_of(subscription, execution_id));
        // All of them.
        statement.insert("limit", 0);
        (statement, 0)
    });
    let told = batch
        .told
        .iter()
        .map(|(key, told)| (upsert(doc! { "_id": told_id(key) }, documents::told(told)), 256));
    let deliveries = batch.deliveries.iter().map(|delivery| {
        let mut document = documents::delivery(delivery);
        document.insert("data", &delivery.data);
        let filter = doc! { "_id": &delivery.id };
        (upsert(filter, doc! { "$setOnInsert": document }), 512 + delivery.data.len())
    });
    let moves = batch
        .moved
        .iter()
        .map(|one| (update_document(doc! { "_id": &one.subscription }, moved(one)), 1024));
    let mut commands = Vec::new();
    in_pieces("delete", TOLD, "deletes", gone.collect(), &mut commands);
    in_pieces("update", TOLD, "updates", told.collect(), &mut commands);
    in_pieces("update", DELIVERIES, "updates", deliveries.collect(), &mut commands);
    in_pieces("update", SUBSCRIPTIONS, "updates", moves.collect(), &mut commands);
    commands
}

fn in_pieces(
    name: &str,
    collection: Name,
    field: &str,
    statements: Vec<(Document, usize)>,
    to: &mut Vec<Document>,
) {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    let mut end = |piece: &mut Vec<Document>| {
        if !piece.is_empty() {
            to.push(doc! { name: collection, field: std::mem::take(piece) });
        }
    };
    for (statement, size) in statements {
        if piece.len() == STATEMENTS || bytes + size > BYTES {
            end(&mut piece);
            bytes = 0;
        }
        bytes += size;
        piece.push(statement);
    }
    end(&mut piece);
}

/// Whether the batch is in: else somebody else leads.
async fn attempt(
    ready: &Connection,
    commands: &[Document],
    filter: &Document,
    progress: &Document,
) -> Result<Result<bool, Failed>> {
    let meta = &ready.own(META);
    let work = ready.transaction(EFFORT, |transaction| {
        async move {
            let lead = meta.update_one(filter.clone(), progress.clone());
            if lead.session(transaction.session()).await?.matched_count == 0 {
                return Ok(Ended::Abort(false));
            }
            for command in commands {
                transaction.command(command.clone()).await?;
            }
            Ok(Ended::Commit(true))
        }
        .boxed()
    });
    work.await
}

pub async fn commit(db: &Arc<Db>, holder: &str, batch: &NotificationBatch) -> Result<bool> {
    let ready = db.ready().await?;
    // Always a change, so that whoever takes the lease by force meets it.
    let mut progress = doc! {
        "$inc": { "commits": 1_i64 },
        "$max": { "numbered": batch.numbered },
    };
    if let Some((cursor, at)) = &batch.head {
        progress.insert("$set", doc! { "cursor": binary(&cursor.0), "at": date(*at) });
    }
    let filter = doc! { "_id": LEAD, "holder": holder };
    let commands = commands(batch);
    if commands.is_empty() {
        let moved = ready.call(ready.own(META).update_one(filter, progress)).await?;
        return Ok(moved.matched_count == 1);
    }
    let done = attempt(&ready, &commands, &filter, &progress).await?;
    done.map_err(|failed| failed.error("the database refused to store a notification"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_go_in_pieces_of_bounded_size() {
        let mut commands = Vec::new();
        let one = |size| (doc! { "q": 1 }, size);
        in_pieces("update", TOLD, "updates", Vec::new(), &mut commands);
        assert!(commands.is_empty());
        let statements = (0..2_500).map(|_| one(1)).chain([one(BYTES), one(BYTES)]).collect();
        in_pieces("update", TOLD, "updates", statements, &mut commands);
        let sizes: Vec<usize> =
            commands.iter().map(|command| command.get_array("updates").unwrap().len()).collect();
        assert_eq!(sizes, [1000, 1000, 500, 1, 1]);
    }
}

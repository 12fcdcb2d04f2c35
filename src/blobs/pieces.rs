//! What can be done with pieces on their way out, of whatever storage.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{Pieces, Result};
use crate::detached::detached;

/// Pieces at least so long are worth the work that each makes on its way.
const WORTHWHILE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be sent while the next one is fetched.
const AHEAD: usize = 3;

/// The same bytes in longer pieces, where they come in short ones.
pub fn joined(pieces: Pieces) -> Pieces {
    let begun = (pieces, BytesMut::new(), None);
    stream::unfold(begun, |(mut pieces, mut short, mut next)| async move {
        if let Some(next) = next.take() {
            return Some((next, (pieces, short, None)));
        }
        loop {
            match pieces.next().await {
                Some(Ok(piece)) if piece.len() >= WORTHWHILE_BYTES && short.is_empty() => {
                    return Some((Ok(piece), (pieces, short, None)));
                }
                Some(Ok(piece)) if short.len() + piece.len() <= WORTHWHILE_BYTES => {
                    if short.capacity() == 0 {
                        short.reserve(WORTHWHILE_BYTES);
                    }
                    short.extend_from_slice(&piece);
                }
                Some(piece) if short.is_empty() => return Some((piece, (pieces, short, None))),
                Some(piece) => {
                    let joined = std::mem::take(&mut short).freeze();
                    return Some((Ok(joined), (pieces, short, Some(piece))));
                }
                None if short.is_empty() => return None,
                None => {
                    let joined = std::mem::take(&mut short).freeze();
                    return Some((Ok(joined), (pieces, short, None)));
                }
            }
        }
    })
    .boxed()
}

/// The same pieces, each fetched by a task of its own, so that whoever reads them may stand still at any time.
pub fn one_by_one(pieces: Pieces, tasks: &TaskTracker) -> Pieces {
    stream::unfold((pieces, tasks.clone()), |(mut pieces, tasks)| async move {
        let fetching = async move { (pieces.next().await, pieces) };
        let (piece, pieces) = detached(&tasks, fetching).await;
        piece.map(|piece| (piece, (pieces, tasks)))
    })
    .boxed()
}

/// The same pieces, fetched by a task of their own while earlier ones are sent. It ends with them, or with whoever
/// read them.
pub fn ahead(mut pieces: Pieces, tasks: &TaskTracker) -> Pieces {
    let (sender, receiver) = mpsc::channel::<Result<Bytes>>(AHEAD);
    tasks.spawn(async move {
        while let Ok(place) = sender.reserve().await
            && let Some(piece) = pieces.next().await
        {
            place.send(piece);
        }
    });
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::super::Error;
    use super::*;

    fn of(lengths: &[usize]) -> Pieces {
        let pieces = lengths.iter().zip(0_u8..).map(|(length, seed)| vec![seed; *length].into());
        stream::iter(pieces.map(Ok).collect::<Vec<_>>()).boxed()
    }

    #[tokio::test]
    async fn short_pieces_are_joined_and_no_byte_changes() {
        const LONG: usize = WORTHWHILE_BYTES;
        for (lengths, expected) in [
            (&[][..], &[][..]),
            (&[5], &[5]),
            (&[5, 6, LONG], &[11, LONG]),
            (&[LONG, 5, LONG - 5, 1], &[LONG, LONG, 1]),
            (&[LONG - 1, 2, LONG - 1], &[LONG - 1, 2, LONG - 1]),
            (&[7, 3 * LONG], &[7, 3 * LONG]),
        ] {
            let joined: Vec<Bytes> = joined(of(lengths)).try_collect().await.unwrap();
            assert_eq!(joined.iter().map(Bytes::len).collect::<Vec<_>>(), expected, "{lengths:?}");
            let before: Vec<Bytes> = of(lengths).try_collect().await.unwrap();
            assert_eq!(joined.concat(), before.concat());
        }
    }

    #[tokio::test]
    async fn an_error_comes_after_all_that_came_before_it() {
        let broken = || of(&[5, 6]).chain(stream::iter([Err(Error::Missing)])).boxed();
        let tasks = TaskTracker::new();
        for pieces in [joined(broken()), one_by_one(broken(), &tasks), ahead(broken(), &tasks)] {
            let mut came: Vec<_> = pieces.collect().await;
            assert!(matches!(came.pop(), Some(Err(Error::Missing))));
            let came: Result<Vec<Bytes>> = came.into_iter().collect();
            assert_eq!(came.unwrap().concat().len(), 11);
        }
        tasks.close();
        tasks.wait().await;
    }
}

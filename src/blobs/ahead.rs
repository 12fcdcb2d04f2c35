//! Reading ahead: the next pieces are fetched while those before are on their way to the client. Only some downloads
//! at a time may, so that many of them take no more memory than one piece each.

use std::sync::Arc;

use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::Pieces;

/// Downloads of a storage that read ahead at a time.
const AHEAD: usize = 8;
/// Pieces read ahead by one.
const PIECES: usize = 2;

/// Who may read ahead.
pub struct Ahead(Arc<Semaphore>);

impl Default for Ahead {
    fn default() -> Self {
        Ahead(Arc::new(Semaphore::new(AHEAD)))
    }
}

impl Ahead {
    /// The right to read ahead, if there is one left.
    pub fn allowed(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

/// The same pieces, read ahead if that is allowed. Ends with whoever reads them.
pub fn pieces(mut pieces: Pieces, allowed: Option<OwnedSemaphorePermit>) -> Pieces {
    let Some(allowed) = allowed else { return pieces };
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let _allowed = allowed;
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = sender.closed() => return,
            };
            let Some(piece) = piece else { return };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    ReceiverStream::new(receiver).boxed()
}

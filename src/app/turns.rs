//! Who may go on with an upload: one connection at a time.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The uploads with an id of their client that go on in this server just now. A new connection for the same id
/// takes it over: the old one is most likely dead, and not known to be.
#[derive(Default)]
pub(super) struct Active {
    going: Mutex<HashMap<String, Going>>,
}

#[derive(Clone, Default)]
pub(super) struct Going {
    pub(super) stop: CancellationToken,
    ended: CancellationToken,
}

/// The right to go on with an upload, until it is dropped.
pub(super) struct Place<'a> {
    active: &'a Active,
    upload_id: String,
    pub(super) going: Going,
}

impl Active {
    pub(super) async fn enter(&self, upload_id: &str) -> Place<'_> {
        loop {
            let before = {
                let mut all = self.going.lock();
                match all.get(upload_id) {
                    Some(before) => before.clone(),
                    None => {
                        let going = Going::default();
                        all.insert(upload_id.to_owned(), going.clone());
                        return Place { active: self, upload_id: upload_id.to_owned(), going };
                    }
                }
            };
            before.stop.cancel();
            before.ended.cancelled().await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.active.going.lock().remove(&self.upload_id);
        self.going.ended.cancel();
    }
}

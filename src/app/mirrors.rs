//! What is known of mirrors: who runs each, how far it is, and whether it may end.

use std::sync::Arc;

use super::{App, Error, Result};
use crate::clock::Clock;
use crate::domain::mirror::{Mirror, Progress, Verification};
use crate::domain::{Millis, Refusal};
use crate::store::mirrors::{MIRRORS_MOST, MirrorStore};

/// Versions that may come in between before it is given up for now.
const ROUNDS: usize = 10;

/// The operations over one store.
pub struct Mirrors {
    app: Arc<App>,
    store: Arc<dyn MirrorStore>,
    clock: Arc<dyn Clock>,
}

impl Mirrors {
    pub fn new(app: Arc<App>, store: Arc<dyn MirrorStore>, clock: Arc<dyn Clock>) -> Mirrors {
        Mirrors { app, store, clock }
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    pub fn now(&self) -> Millis {
        self.clock.now().millis()
    }

    /// Changes what is known of one as long as nobody else does so meanwhile.
    async fn change(
        &self,
        name: &str,
        change: impl Fn(Option<&Mirror>) -> std::result::Result<Mirror, Refusal>,
    ) -> Result<Mirror> {
        for _ in 0..ROUNDS {
            let kept = self.store.mirror(name).await?;
            if kept.is_none() && self.store.mirrors().await?.len() >= MIRRORS_MOST {
                let why =
                    format!("would be one more than the {MIRRORS_MOST} mirrors that there may be");
                return Err(Error::invalid("name", why));
            }
            let next = change(kept.as_ref().map(|kept| &kept.mirror))?;
            if kept.as_ref().is_some_and(|kept| kept.mirror == next) {
                return Ok(next);
            }
            if self.store.store_mirror(kept.map(|kept| kept.version), &next).await? {
                return Ok(next);
            }
        }
        Err(Error::Store(crate::store::Error::Contention))
    }

    pub async fn begin(&self, name: &str, source: &str) -> Result<Mirror> {
        let now = self.now();
        // What one has brought looks to another like what is gone at its source.
        let kept = self.store.mirrors().await?;
        if let Some(other) =
            kept.into_iter().map(|kept| kept.mirror).find(|one| one.source != source)
        {
            let (name, stored) = (other.name, other.source);
            return Err(Refusal::MirrorSourceDiffers { name, stored }.into());
        }
        self.change(name, |stored| Mirror::begun(stored, name, source, now)).await
    }

    pub async fn advance(&self, name: &str, session: i64, progress: Progress) -> Result<Mirror> {
        let now = self.now();
        self.change(name, |stored| there(stored, name)?.advanced(session, progress.clone(), now))
            .await
    }

    pub async fn verified(&self, name: &str, verification: Verification) -> Result<Mirror> {
        self.change(name, |stored| there(stored, name)?.verified(verification)).await
    }

    pub async fn get(&self, name: &str) -> Result<Mirror> {
        let kept = self.store.mirror(name).await?;
        Ok(there(kept.as_ref().map(|kept| &kept.mirror), name)?.clone())
    }

    pub async fn finish(&self, name: &str, force: bool) -> Result<Mirror> {
        let now = self.now();
        self.change(name, |stored| there(stored, name)?.finished(force, now)).await
    }
}

fn there<'a>(stored: Option<&'a Mirror>, name: &str) -> std::result::Result<&'a Mirror, Refusal> {
    stored.ok_or_else(|| Refusal::MirrorNotFound { name: name.to_owned() })
}

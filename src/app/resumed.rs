//! Uploads that are gone on with: how much of one is safe, and whether it may go on.

use super::artifacts::Artifacts;
use super::{Error, Result};
use crate::domain::Refusal;
use crate::domain::access::AppScope;
use crate::store::artifacts::Upload;

impl Artifacts {
    /// How many bytes of an upload are safe.
    pub async fn received(&self, upload_id: &str, scope: &AppScope) -> Result<u64> {
        let not_found = || Refusal::UploadNotFound { upload_id: upload_id.to_owned() };
        let found = self.store.upload(upload_id).await?.ok_or_else(not_found)?;
        if let Err(error) = self.app.check_within(&found.execution_id, scope).await {
            return Err(match error {
                Error::Refused(_) => not_found().into(),
                error => error,
            });
        }
        if self.has_expired(&found)
            || (found.finished && self.record_of(&found).await?.is_none())
            || self.has_lost_its_execution(&found).await?
        {
            return Err(not_found().into());
        }
        Ok(found.received_bytes)
    }

    /// Whether the execution of an upload is gone, or going. One from before is of none that is known.
    pub(super) async fn has_lost_its_execution(&self, upload: &Upload) -> Result<bool> {
        let id = &upload.execution_id;
        Ok(!id.is_empty() && self.app.store().execution(id).await?.is_none())
    }

    pub(super) fn has_expired(&self, upload: &Upload) -> bool {
        let expiry = i64::try_from(self.upload_expiry.as_millis()).unwrap_or(i64::MAX);
        upload.updated_at.saturating_add(expiry) <= self.now()
    }

    /// Ends what may not go on. A store that does not answer says nothing.
    pub(super) async fn check_turn(&self, upload: &Upload) -> Result<()> {
        let upload_id = upload.upload_id.clone();
        match self.store.upload(&upload_id).await {
            Ok(stored) if stored.as_ref().is_none_or(|stored| stored.turn != upload.turn) => {
                Err(Refusal::UploadTaken { upload_id }.into())
            }
            _ => Ok(()),
        }
    }
}

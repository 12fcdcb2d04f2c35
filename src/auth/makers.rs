//! What those who made subscriptions may do now: their grants never change, but a key ends.

use std::sync::Arc;

use super::admin_keys::AdminKeys;
use super::caller::{CallerKind, Permit};
use super::keyring::Keyring;
use super::need::Need;
use crate::app::notifications::{Makers, Rights};
use crate::domain::access::Grant;
use crate::store::notifications::Maker;

/// What of these grants lets somebody be told.
fn telling(grants: &[Grant]) -> Vec<Grant> {
    grants.iter().filter(|grant| Need::Edit.is_met_by(grant.role)).cloned().collect()
}

/// The maker of what a call makes.
pub fn maker(permit: &Permit) -> Maker {
    let caller = &permit.caller;
    Maker {
        kind: caller.kind.as_str().to_owned(),
        id: caller.id.clone(),
        name: caller.name.clone(),
        grants: telling(&caller.grants),
    }
}

/// Looks makers up.
pub struct MakersNow {
    /// `None`: nobody is asked who they are.
    pub keyring: Option<Arc<Keyring>>,
    pub admin_keys: Option<Arc<AdminKeys>>,
}

impl Makers for MakersNow {
    fn rights(&self, maker: &Maker) -> Rights {
        let stored = || Rights::Has(maker.grants.clone());
        let kind = CallerKind::ALL.into_iter().find(|kind| kind.as_str() == maker.kind);
        let Some(keyring) = &self.keyring else { return stored() };
        match kind {
            Some(CallerKind::Key) => match keyring.grants(&maker.id) {
                Ok(Some(grants)) => Rights::Has(telling(&grants)),
                Ok(None) => Rights::Revoked,
                // A key that was just made is known everywhere within seconds.
                Err(_) => Rights::Unknown,
            },
            Some(CallerKind::AdminKey) => {
                let is_there = self.admin_keys.as_ref().is_some_and(|keys| keys.has(&maker.id));
                if is_there { stored() } else { Rights::Revoked }
            }
            // Nobody was asked who they are then, and everybody is now: whoever it was has no credential.
            Some(CallerKind::Anonymous) | None => Rights::Revoked,
            // What a token or a certificate allows is known only with it: as it was.
            Some(CallerKind::Oidc | CallerKind::Certificate) => stored(),
        }
    }
}

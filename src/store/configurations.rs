//! Configurations of apps, durable.

use async_trait::async_trait;

use super::Result;
use crate::domain::access::{App, AppScope};
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::mirrored::{self, Mirrored, Verdict};
use crate::domain::query::Page;
use crate::domain::{Configuration, Refusal};

/// A configuration that was asked to be stored, as it is stored now.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub record: Configuration,
    /// Whether this call stored it; it was there otherwise.
    pub created: bool,
}

/// What a stored version says of mirrored writes before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MirroredBefore {
    /// The place of the latest one.
    pub position: Option<i64>,
    /// Whether the source said by it that the version is the active one. `None`: that does not count any more, as another one
    /// was made active by the source since.
    pub active: Option<bool>,
}

impl MirroredBefore {
    /// Whether the source says something new of which one is active. Of the same once more, as a mirror that begins anew says
    /// it, nothing is made active: somebody may have switched here meanwhile.
    pub fn is_switch(&self, record: &Configuration) -> bool {
        self.active != Some(record.active)
    }
}

/// What becomes of a mirrored write over a version that is stored. Through the API a version never changes, so whoever
/// stored it is whether a mirror did.
pub(super) fn mirrored_configuration(
    stored: &Configuration,
    before: MirroredBefore,
    record: &Configuration,
    position: i64,
) -> Result<Verdict> {
    let same = || Ok(stored.same_content(record));
    mirrored::judge(Mirrored { position: before.position, untouched: true }, position, same)
}

pub(super) fn configuration_conflict(record: &Configuration) -> Refusal {
    let (scope, version) = (record.scope(), &record.version);
    Refusal::MirrorConflict { what: format!("configuration {version} of {scope}") }
}

/// A record of a list, and where it stands in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub record: Configuration,
    pub place: Place,
}

/// Whether a list has the record, for whom has this access.
pub fn is_listed(query: &ConfigurationQuery, access: &AppScope, record: &Configuration) -> bool {
    query.app.lists(record) && access.holds(App::of_configuration(record))
}

/// Configurations, durable. An answer means what `Store::apply` means by it: durable, and safe from a failover.
///
/// Within a scope versions are unique, and at most one is active at any moment, whoever looks, however many
/// servers switch it at once, and wherever one of them is killed. Only a database without transactions (a
/// standalone mongod) may show two documents as active for the moment of a switch, or until the next switch or
/// sweep after a crash; `configuration` names one of them all the same.
#[async_trait]
pub trait ConfigurationStore: Send + Sync + 'static {
    /// Stores a version; one that is `active` becomes the active one of its scope in the same step. When the
    /// version is there already: with the same content it is the answer, made active if `record` is, and
    /// otherwise unchanged; with other content `Refusal::ConfigurationExists`. Where it was once made active in this
    /// way, doing so again changes nothing, whatever is active now: it may be a client that lost the answer.
    async fn put_configuration(&self, record: Configuration) -> Result<Stored>;

    /// Stores a version that a mirror brings, active or not, or replaces by it what is stored of it if a mirror brought
    /// that from a lesser position, or it is the same. What is not newer is the answer as it is. Which one is active changes
    /// only where the source says something else of it than before.
    /// `Refusal::MirrorConflict` where somebody else has stored the version with other content.
    async fn mirror_configuration(&self, record: Configuration, position: i64) -> Result<Stored>;

    /// Makes a version the active one of its scope, and the one that was not, in one step.
    /// `Refusal::ConfigurationNotFound` when there is no such version.
    async fn activate_configuration(&self, scope: &Scope, version: &str) -> Result<Configuration>;

    /// This version of the scope; without one the active one.
    async fn configuration(
        &self,
        scope: &Scope,
        version: Option<&str>,
    ) -> Result<Option<Configuration>>;

    /// The different scopes of the configurations of this name, at most so many.
    async fn scopes_named(&self, app_name: &str, limit: usize) -> Result<Vec<Part>>;

    /// One page of a history, keyset, of what is within the access. What is not leaves no trace: neither in how many are on
    /// a page, nor in whether there is another one.
    async fn configurations(
        &self,
        query: &ConfigurationQuery,
        access: &AppScope,
    ) -> Result<Page<Listed, Place>>;
}

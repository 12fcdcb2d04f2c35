//! Which records are asked for.

use bson::raw::RawDocument;

use crate::domain::Millis;

/// A filter of records. An empty list asks for all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    /// Inclusive.
    pub since: Option<Millis>,
    /// Exclusive.
    pub until: Option<Millis>,
    /// Ids or names of who did it.
    pub actors: Vec<String>,
    pub events: Vec<String>,
    pub outcomes: Vec<String>,
    /// What it was about, or one of its writes.
    pub execution_id: Option<String>,
    /// Only what keys of these ids did; `None`: everybody.
    pub keys: Option<Vec<String>>,
}

impl AuditFilter {
    /// Whether nothing but the time decides.
    pub fn is_all(&self) -> bool {
        self.actors.is_empty()
            && self.events.is_empty()
            && self.outcomes.is_empty()
            && self.execution_id.is_none()
            && self.keys.is_none()
    }

    /// Whether a stored document is asked for.
    pub fn matches(&self, document: &RawDocument) -> bool {
        let text = |document: &RawDocument, name: &str| {
            document.get(name).ok().flatten().and_then(|value| value.as_str().map(str::to_owned))
        };
        let is_in = |list: &[String], value: Option<String>| {
            value.is_some_and(|value| list.contains(&value))
        };
        let at = document.get_datetime("at").ok().map(|at| at.timestamp_millis());
        if self.since.is_some_and(|since| at.is_none_or(|at| at < since))
            || self.until.is_some_and(|until| at.is_none_or(|at| at >= until))
        {
            return false;
        }
        if !self.events.is_empty() && !is_in(&self.events, text(document, "event")) {
            return false;
        }
        if !self.outcomes.is_empty() && !is_in(&self.outcomes, text(document, "outcome")) {
            return false;
        }
        let actor = document.get_document("actor").ok();
        let actor = |name| actor.and_then(|actor| text(actor, name));
        if !self.actors.is_empty()
            && !is_in(&self.actors, actor("id"))
            && !is_in(&self.actors, actor("name"))
        {
            return false;
        }
        if let Some(keys) = &self.keys
            && !(actor("kind").as_deref() == Some("key") && is_in(keys, actor("id")))
        {
            return false;
        }
        self.execution_id.as_ref().is_none_or(|id| is_about(document, id))
    }

    /// What tells one filter from another.
    pub fn identity(&self) -> String {
        format!("{self:?}")
    }
}

fn is_about(document: &RawDocument, execution_id: &str) -> bool {
    let id = |document: &RawDocument| {
        document.get_str("execution_id").is_ok_and(|id| id == execution_id)
    };
    if document.get_document("target").is_ok_and(id) {
        return true;
    }
    let Ok(details) = document.get_document("details") else { return false };
    let Ok(writes) = details.get_array("writes") else { return false };
    writes.into_iter().flatten().any(|write| write.as_document().is_some_and(id))
}

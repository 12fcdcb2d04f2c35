//! A configuration of an app: published under a version, never changed, at most one of a scope active.

use bson::{Bson, Document};

use super::digest::Digest;
use super::terms::Millis;
use super::value;

/// One version, as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub version: String,
    pub configuration: Document,
    pub active: bool,
    pub created_at: Option<Millis>,
    pub created_by: Option<String>,
}

impl Configuration {
    /// What its version is unique in.
    pub fn scope(&self) -> Scope {
        match self.app_id {
            Some(app_id) => Scope::Numbers { app_id, sub_app_id: self.sub_app_id },
            None => Scope::Names {
                app_name: self.app_name.clone(),
                sub_app_name: self.sub_app_name.clone(),
            },
        }
    }

    /// Whether both say the same, whenever they were made and whichever is active.
    pub fn same_content(&self, other: &Configuration) -> bool {
        let text = |record: &Configuration| {
            (
                record.app_id,
                record.app_name.clone(),
                record.sub_app_id,
                record.sub_app_name.clone(),
                record.version.clone(),
                record.created_by.clone(),
            )
        };
        text(self) == text(other)
            && value::same(
                &Bson::Document(self.configuration.clone()),
                &Bson::Document(other.configuration.clone()),
            )
    }

    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        256 + self.app_name.len()
            + self.version.len()
            + value::size_of_document(&self.configuration)
    }
}

/// An app and the part of it: within a scope versions are unique, and at most one of them is active. An app
/// without a number is told apart by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    Numbers { app_id: i32, sub_app_id: Option<i32> },
    Names { app_name: String, sub_app_name: Option<String> },
}

impl Scope {
    /// The same text on every server, and another one for every other scope.
    pub fn identity(&self) -> String {
        match self {
            Scope::Numbers { app_id, sub_app_id } => Digest::new("configuration_scope")
                .integer("app_id", Some(i64::from(*app_id)))
                .integer("sub_app_id", sub_app_id.map(i64::from)),
            Scope::Names { app_name, sub_app_name } => Digest::new("configuration_scope")
                .text("app_name", Some(app_name))
                .text("sub_app_name", sub_app_name.as_deref()),
        }
        .finish()
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scope::Numbers { app_id, sub_app_id: None } => write!(f, "app {app_id}"),
            Scope::Numbers { app_id, sub_app_id: Some(part) } => write!(f, "app {app_id}/{part}"),
            Scope::Names { app_name, sub_app_name: None } => write!(f, "app {app_name}"),
            Scope::Names { app_name, sub_app_name: Some(part) } => {
                write!(f, "app {app_name}/{part}")
            }
        }
    }
}

/// A part of an app that has a configuration, by its numbers and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub app_id: Option<i32>,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
}

/// How a request names an app and a part of it. The number decides where there is one; names then say nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppRef {
    pub app_id: Option<i32>,
    pub app_name: Option<String>,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
}

impl AppRef {
    /// The scope in which versions are looked up. `None`: it names no app.
    pub fn scope(&self) -> Option<Scope> {
        match (self.app_id, &self.app_name) {
            (Some(app_id), _) => Some(Scope::Numbers { app_id, sub_app_id: self.sub_app_id }),
            (None, Some(app_name)) => Some(Scope::Names {
                app_name: app_name.clone(),
                sub_app_name: self.sub_app_name.clone(),
            }),
            (None, None) => None,
        }
    }

    /// The scope that a request means which names an app and gives no number. An app without a number comes first;
    /// a numbered one has to be the only one of its name, and else the answer is the numbers there are.
    pub fn scope_among(&self, parts: &[Part]) -> Result<Option<Scope>, Vec<i32>> {
        let Some(scope @ Scope::Names { .. }) = self.scope() else { return Ok(self.scope()) };
        let named = |part: &&Part| {
            self.sub_app_id.is_none_or(|id| part.sub_app_id == Some(id))
                && match &self.sub_app_name {
                    Some(name) => part.sub_app_name.as_ref() == Some(name),
                    // By its number alone a part is named as well.
                    None => self.sub_app_id.is_some() || part.sub_app_id.is_none(),
                }
        };
        let own = |part: &Part| part.app_id.is_none() && part.sub_app_name == self.sub_app_name;
        if parts.iter().any(own) {
            return Ok(Some(scope));
        }
        let mut numbers: Vec<(i32, Option<i32>)> = parts
            .iter()
            .filter(named)
            .filter_map(|part| Some((part.app_id?, part.sub_app_id)))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        match numbers.as_slice() {
            [] => Ok(Some(scope)),
            [(app_id, sub_app_id)] => {
                Ok(Some(Scope::Numbers { app_id: *app_id, sub_app_id: *sub_app_id }))
            }
            several => Err(several.iter().map(|(app_id, _)| *app_id).collect()),
        }
    }

    /// The same for a list, in which a part that is not named is any part.
    pub fn app_among(&self, parts: &[Part]) -> Result<AppRef, Vec<i32>> {
        let mut numbers: Vec<i32> = parts.iter().filter_map(|part| part.app_id).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if self.app_id.is_some() || parts.iter().any(|part| part.app_id.is_none()) {
            return Ok(self.clone());
        }
        let mut sub_app_id = self.sub_app_id;
        if let (None, Some(name)) = (sub_app_id, &self.sub_app_name) {
            let named = parts.iter().filter(|part| part.sub_app_name.as_ref() == Some(name));
            let mut ids: Vec<i32> = named.filter_map(|part| part.sub_app_id).collect();
            ids.sort_unstable();
            ids.dedup();
            let [id] = ids.as_slice() else {
                // No part of this name has a number, or several have: as it stands it lists none.
                return Ok(self.clone());
            };
            sub_app_id = Some(*id);
        }
        match numbers.as_slice() {
            [] => Ok(self.clone()),
            [app_id] => Ok(AppRef { app_id: Some(*app_id), sub_app_id, ..self.clone() }),
            _ => Err(numbers),
        }
    }

    /// Whether a list of this app has the record. A part that is not named is any part.
    pub fn lists(&self, record: &Configuration) -> bool {
        match (self.app_id, &self.app_name) {
            (Some(app_id), _) => {
                record.app_id == Some(app_id)
                    && self.sub_app_id.is_none_or(|id| record.sub_app_id == Some(id))
            }
            (None, Some(app_name)) => {
                record.app_id.is_none()
                    && record.app_name == *app_name
                    && self
                        .sub_app_name
                        .as_ref()
                        .is_none_or(|name| record.sub_app_name.as_ref() == Some(name))
            }
            (None, None) => true,
        }
    }
}

/// One page of a history: newest first by `created_at`, then by order of storing; records without a time last.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigurationQuery {
    /// Naming no app: those of all apps.
    pub app: AppRef,
    /// Only records after this place.
    pub after: Option<Place>,
    /// Records at most.
    pub limit: usize,
    /// Records read at most, found or not.
    pub examine: usize,
    /// Bytes of records at most, unless one alone has more.
    pub bytes: usize,
}

/// Where a record stands in a list: only the store that gave it can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(pub Vec<u8>);

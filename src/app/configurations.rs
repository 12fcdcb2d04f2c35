//! Configurations: publishing, switching, history, differences, and the plans they make.

use std::sync::Arc;

use bson::Document;

use super::{App, Error, PageAnswer, PageRequest, Result, token};
use crate::clock::Clock;
use crate::domain::access::{App as AccessApp, AppScope};
use crate::domain::configuration::{AppRef, ConfigurationQuery, Part, Place, Scope};
use crate::domain::graph::{self, GraphStep};
use crate::domain::patch::{self, Change, What};
use crate::domain::query::Page;
use crate::domain::step::StepFields;
use crate::domain::{Configuration, Refusal, StepOp, StepRef, value};
use crate::store::Op;
use crate::store::configurations::{ConfigurationStore, Listed, Stored};

/// What a planned step takes in a reply beside its texts, at most.
const STEP_BYTES: usize = 128;
/// The most that the number of a step takes in a reply.
const NUMBER_BYTES: usize = 5;

/// Scopes of one name that are told apart.
const SCOPES: usize = 1000;

/// Which version of an app's configuration. `app` names one, by number or by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    pub app: AppRef,
    /// `None`: the active one.
    pub version: Option<String>,
}

/// The operations over one store.
pub struct Configurations {
    app: Arc<App>,
    store: Arc<dyn ConfigurationStore>,
    clock: Arc<dyn Clock>,
}

impl Configurations {
    pub fn new(
        app: Arc<App>,
        store: Arc<dyn ConfigurationStore>,
        clock: Arc<dyn Clock>,
    ) -> Configurations {
        Configurations { app, store, clock }
    }

    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Stores a version that is made now.
    pub async fn publish(&self, record: Configuration, access: &AppScope) -> Result<Configuration> {
        self.check_put(&record, access).await?;
        let created_at = Some(self.clock.now().millis());
        let stored = self.store.put_configuration(Configuration { created_at, ..record }).await?;
        Ok(stored.record)
    }

    /// Stores a version as it is.
    pub async fn put(
        &self,
        record: Configuration,
        mirrored: Option<i64>,
        access: &AppScope,
    ) -> Result<Stored> {
        self.check_put(&record, access).await?;
        Ok(match mirrored {
            None => self.store.put_configuration(record).await?,
            Some(position) => self.store.mirror_configuration(record, position).await?,
        })
    }

    /// What is stored has to be within what its writer may reach, and what it replaces as the active one too.
    async fn check_put(&self, record: &Configuration, access: &AppScope) -> Result<()> {
        if access.is_all() {
            return Ok(());
        }
        let forbids = || Error::Refused(Refusal::ScopeForbids);
        if !access.holds(AccessApp::of_configuration(record)) {
            return Err(forbids());
        }
        let scope = record.scope();
        let there = self.store.configuration(&scope, Some(&record.version)).await?;
        if there.is_some_and(|there| !access.holds(AccessApp::of_configuration(&there))) {
            let (scope, version) = (scope.to_string(), record.version.clone());
            return Err(Refusal::ConfigurationExists { scope, version }.into());
        }
        match record.active {
            true if !self.may_replace_active(&scope, access).await? => Err(forbids()),
            _ => Ok(()),
        }
    }

    /// Whether the active configuration, if there is one, is within the access: apps of one number share what is active.
    async fn may_replace_active(&self, scope: &Scope, access: &AppScope) -> Result<bool> {
        let active = self.store.configuration(scope, None).await?;
        Ok(active.is_none_or(|active| access.holds(AccessApp::of_configuration(&active))))
    }

    pub async fn get(&self, named: &Named, access: &AppScope) -> Result<Configuration> {
        let scope = self.scope(&named.app, access).await?;
        let found = self.store.configuration(&scope, named.version.as_deref()).await?;
        let found = found.filter(|found| access.holds(AccessApp::of_configuration(found)));
        found.ok_or_else(|| {
            Error::Refused(Refusal::ConfigurationNotFound {
                scope: scope.to_string(),
                version: named.version.clone(),
            })
        })
    }

    pub async fn activate(
        &self,
        app: &AppRef,
        version: &str,
        access: &AppScope,
    ) -> Result<Configuration> {
        let scope = self.scope(app, access).await?;
        if !access.is_all() {
            let named = Named { app: app.clone(), version: Some(version.to_owned()) };
            self.get(&named, access).await?;
            if !self.may_replace_active(&scope, access).await? {
                return Err(Refusal::ScopeForbids.into());
            }
        }
        Ok(self.store.activate_configuration(&scope, version).await?)
    }

    /// The scope that a request means.
    async fn scope(&self, app: &AppRef, access: &AppScope) -> Result<Scope> {
        let scope = match (app.app_id, &app.app_name) {
            (None, Some(name)) => {
                let parts = self.parts(name, access).await?;
                app.scope_among(&parts).map_err(|numbers| several(&numbers))?
            }
            _ => app.scope(),
        };
        scope.ok_or_else(|| Error::invalid("app_id", "or app_name is required"))
    }

    /// The parts of the apps of a name that are within the access.
    async fn parts(&self, name: &str, access: &AppScope) -> Result<Vec<Part>> {
        let mut parts = self.store.scopes_named(name, SCOPES).await?;
        parts.retain(|part| {
            access.holds(AccessApp {
                name,
                number: part.app_id,
                part: part.sub_app_id,
                part_name: part.sub_app_name.as_deref(),
            })
        });
        Ok(parts)
    }

    /// One page of a history; `size_of` is what a record takes in a reply.
    pub async fn list(
        &self,
        app: AppRef,
        access: &AppScope,
        page: PageRequest,
        size_of: impl Fn(&Configuration) -> usize,
    ) -> Result<PageAnswer<Configuration>> {
        let app = match (app.app_id, &app.app_name) {
            (None, Some(name)) => {
                let parts = self.parts(name, access).await?;
                app.app_among(&parts).map_err(|numbers| several(&numbers))?
            }
            _ => app,
        };
        let tokens = self.app.tokens().await?;
        // Nothing but lengths and texts: no two apps have the same.
        let identity = format!("{}{app:?}", access.identity());
        let kind = token::Kind::ConfigurationPage;
        let after = match page.token.as_str() {
            "" => None,
            text => Some(
                tokens
                    .open(kind, identity.as_bytes(), text)
                    .map(Place)
                    .ok_or(Error::BadToken("page_token"))?,
            ),
        };
        let bytes = self.app.limits().page_bytes;
        let found: Page<Listed, Place> =
            self.app
                .fill(
                    page.size,
                    after,
                    |listed: &Listed| size_of(&listed.record),
                    |listed| listed.place.clone(),
                    |after, limit, examine| {
                        let app = app.clone();
                        let query = ConfigurationQuery { app, after, limit, examine, bytes };
                        async move {
                            self.store.configurations(&query, access).await.map_err(Error::from)
                        }
                    },
                )
                .await?;
        let next_page_token = found
            .next
            .map(|place| tokens.seal(kind, identity.as_bytes(), &place.0))
            .unwrap_or_default();
        let records = found.records.into_iter().map(|listed| listed.record).collect();
        Ok(PageAnswer { records, next_page_token })
    }

    /// What makes the one configuration into the other, at most a reply's bytes: beyond that one replacement of
    /// the whole, at the empty path.
    pub async fn diff(&self, from: &Named, to: &Named, access: &AppScope) -> Result<Vec<Change>> {
        let from = self.get(from, access).await?.configuration;
        let to = self.get(to, access).await?.configuration;
        let changes = patch::diff(&from, &to);
        let bytes: usize = changes.iter().map(weight).sum();
        if bytes <= self.app.limits().page_bytes / 2 {
            return Ok(changes);
        }
        let whole = Change { path: String::new(), what: What::Replace(to.into()) };
        Ok(if bytes > weight(&whole) || bytes > self.app.limits().page_bytes {
            vec![whole]
        } else {
            changes
        })
    }

    /// The plan that a version of the execution's own configuration makes of it.
    pub async fn plan(&self, execution_id: &str, version: &str, access: &AppScope) -> Result<Op> {
        let execution = self.app.execution(execution_id, access).await?;
        let app = AppRef {
            app_id: execution.app_id,
            app_name: Some(execution.app_name),
            sub_app_id: execution.sub_app_id,
            sub_app_name: execution.sub_app_name,
        };
        if app.scope().is_none() {
            return Err(Error::invalid("execution_id", "names an execution without an app"));
        }
        let version = version.to_owned();
        let named = Named { app, version: Some(version.clone()) };
        let configuration = self.get(&named, access).await?.configuration;
        let steps = self.steps(&configuration).map_err(|why| {
            let version = version.clone();
            Error::Refused(Refusal::NoPlan { version, why })
        })?;
        Ok(Op::Plan(steps.into_iter().map(planned).collect()))
    }

    fn steps(&self, configuration: &Document) -> Result<Vec<GraphStep>, String> {
        let limits = self.app.limits();
        let steps = graph::steps(configuration, limits.name_characters)?;
        let bytes: usize = steps
            .iter()
            .map(|step| {
                let version = step.step_version.as_ref().map_or(0, String::len);
                let texts = step.step_key.len() + step.step_name.len() + version;
                STEP_BYTES
                    + limits.execution_id_characters
                    + texts
                    + step.depends_on.len() * NUMBER_BYTES
            })
            .sum();
        match bytes > limits.page_bytes {
            true => Err("its steps are too large for one reply".to_owned()),
            false => Ok(steps),
        }
    }
}

fn several(numbers: &[i32]) -> Error {
    let shown: Vec<String> = numbers.iter().take(10).map(ToString::to_string).collect();
    let more = if numbers.len() > shown.len() { ", ..." } else { "" };
    let apps = shown.join(", ");
    Error::invalid(
        "app_name",
        format!("matches several apps ({apps}{more}): give app_id, and sub_app_id for a part"),
    )
}

fn planned(step: GraphStep) -> (StepRef, StepOp) {
    let fields = StepFields {
        step_version: step.step_version,
        depends_on: step.depends_on,
        ..StepFields::default()
    };
    let named = StepRef { step_id: Some(step.step_id), step_key: Some(step.step_key) };
    (named, StepOp::Plan { step_name: step.step_name, fields })
}

/// Bytes of a change in a reply, roughly.
fn weight(change: &Change) -> usize {
    32 + change.path.len()
        + match &change.what {
            What::Remove => 0,
            // A number is longer in a message than in a document, a container has its own frame.
            What::Add(value) | What::Replace(value) => value::size(value) * 2,
        }
}

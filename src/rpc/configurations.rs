//! ConfigurationService, and the configurations that come over IngestService.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::requests::Check;
use super::{authenticate, convert, shown, status};
use crate::app::configurations::{Configurations, Named};
use crate::app::{Error, PageRequest, Result};
use crate::domain::configuration::AppRef;
use crate::domain::limits::Limits;
use crate::domain::patch::{Change, What};
use crate::domain::{Configuration, graph};
use crate::proto;

/// The app that a request names: each has these four fields.
macro_rules! app_of {
    ($request:ident) => {
        AppRef {
            app_id: $request.app_id,
            app_name: $request.app_name,
            sub_app_id: $request.sub_app_id,
            sub_app_name: $request.sub_app_name,
        }
    };
}

/// A name may not be given and empty: no app is called nothing.
fn app(check: &mut Check<'_>, prefix: &str, app: &AppRef) {
    let field = |name: &str| format!("{prefix}{name}");
    if let Some(name) = &app.app_name
        && (app.app_id.is_none() || !name.is_empty())
    {
        check.required_name(&field("app_name"), name);
    }
    check.optional_name(&field("sub_app_name"), app.sub_app_name.as_ref());
}

/// The app and version that a request names.
fn named(
    check: &mut Check<'_>,
    prefix: &str,
    named: AppRef,
    version: Option<String>,
) -> Option<Named> {
    app(check, prefix, &named);
    if let Some(version) = &version {
        check.required_name(&format!("{prefix}version"), version);
    }
    if named.scope().is_none() {
        check.bad(&format!("{prefix}app_id"), "or app_name is required");
        return None;
    }
    Some(Named { app: named, version })
}

fn key(check: &mut Check<'_>, field: &str, key: Option<proto::ConfigurationKey>) -> Option<Named> {
    let Some(key) = key else {
        check.bad(field, "is required");
        return None;
    };
    let app = app_of!(key);
    named(check, &format!("{field}."), app, key.version)
}

/// A whole record; `prefix` begins the names of its fields.
fn record(check: &mut Check<'_>, prefix: &str, sent: proto::Configuration) -> Configuration {
    let field = |name: &str| format!("{prefix}{name}");
    check.whole(&field("omitted_fields"), &sent.omitted_fields);
    check.required_name(&field("app_name"), &sent.app_name);
    check.optional_name(&field("sub_app_name"), sent.sub_app_name.as_ref());
    check.required_name(&field("version"), &sent.version);
    check.optional_name(&field("created_by"), sent.created_by.as_ref());
    let configuration = check.great_object(&field("configuration"), sent.configuration.as_ref());
    for flaw in graph::flaws(&configuration) {
        check.bad(&format!("{prefix}configuration.{}", flaw.field), flaw.description);
    }
    Configuration {
        created_at: check.time(&field("created_at"), sent.created_at.as_ref()),
        app_id: sent.app_id,
        app_name: sent.app_name,
        sub_app_id: sent.sub_app_id,
        sub_app_name: sent.sub_app_name,
        version: sent.version,
        configuration,
        active: sent.active,
        created_by: sent.created_by,
    }
}

/// The record of `put_configuration`.
pub fn put(limits: &Limits, sent: proto::Configuration) -> Result<Configuration> {
    let mut check = Check::new(limits);
    let record = record(&mut check, "", sent);
    check.done(record)
}

fn published(
    limits: &Limits,
    request: proto::PublishConfigurationRequest,
) -> Result<Configuration> {
    let mut check = Check::new(limits);
    let Some(sent) = request.configuration else {
        return Err(Error::invalid("configuration", "is required"));
    };
    // The server's own, whatever is in them.
    let sent = proto::Configuration { created_at: None, active: request.activate, ..sent };
    let record = record(&mut check, "configuration.", sent);
    check.done(record)
}

fn change(change: &Change) -> proto::ConfigurationChange {
    let (op, value) = match &change.what {
        What::Add(value) => ("add", Some(value)),
        What::Remove => ("remove", None),
        What::Replace(value) => ("replace", Some(value)),
    };
    proto::ConfigurationChange {
        op: op.to_owned(),
        path: change.path.clone(),
        value: value.map(convert::value),
    }
}

/// Serves ConfigurationService.
pub struct Service {
    pub configurations: Arc<Configurations>,
}

impl Service {
    fn check(&self) -> Check<'_> {
        Check::new(self.configurations.app().limits())
    }
}

#[tonic::async_trait]
impl proto::configuration_service_server::ConfigurationService for Service {
    async fn publish_configuration(
        &self,
        request: Request<proto::PublishConfigurationRequest>,
    ) -> Result<Response<proto::PublishConfigurationResponse>, Status> {
        let limits = self.configurations.app().limits();
        let permit = authenticate::permit(&request)?;
        let stored = match published(limits, request.into_inner()) {
            Ok(mut record) => {
                if let Some(author) = permit.author() {
                    record.created_by = Some(author.to_owned());
                }
                self.configurations.publish(record, &permit.scope()).await
            }
            Err(error) => Err(error),
        };
        let stored = stored.map_err(|error| status::of(&error))?;
        let configuration = Some(convert::configuration(&stored));
        Ok(Response::new(proto::PublishConfigurationResponse { configuration }))
    }

    async fn get_configuration(
        &self,
        request: Request<proto::GetConfigurationRequest>,
    ) -> Result<Response<proto::GetConfigurationResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = self.check();
        let app = app_of!(request);
        let named = named(&mut check, "", app, request.version);
        let found = match required(check, named) {
            Ok(named) => self.configurations.get(&named, &scope).await,
            Err(error) => Err(error),
        };
        let found = found.map_err(|error| status::of(&error))?;
        let configuration = Some(convert::configuration(&found));
        Ok(Response::new(proto::GetConfigurationResponse { configuration }))
    }

    async fn list_configurations(
        &self,
        request: Request<proto::ListConfigurationsRequest>,
    ) -> Result<Response<proto::ListConfigurationsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = self.check();
        let listed = app_of!(request);
        app(&mut check, "", &listed);
        if listed.scope().is_none() {
            for (field, given) in [
                ("sub_app_id", listed.sub_app_id.is_some()),
                ("sub_app_name", listed.sub_app_name.is_some()),
            ] {
                if given {
                    check.bad(field, "names a part of an app, but no app is named");
                }
            }
        }
        let size = check.page_size(request.page_size);
        check.done(()).map_err(|error| status::of(&error))?;
        let page = PageRequest { size, token: request.page_token };
        let found = self
            .configurations
            .list(listed, &scope, page, |record| shown::configuration(record).encoded_len())
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::ListConfigurationsResponse {
            configurations: found.records.iter().map(shown::configuration).collect(),
            next_page_token: found.next_page_token,
        }))
    }

    async fn activate_configuration(
        &self,
        request: Request<proto::ActivateConfigurationRequest>,
    ) -> Result<Response<proto::ActivateConfigurationResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = self.check();
        let app = app_of!(request);
        let version = request.version;
        let named = named(&mut check, "", app, Some(version.clone()));
        let stored = match required(check, named) {
            Ok(named) => self.configurations.activate(&named.app, &version, &scope).await,
            Err(error) => Err(error),
        };
        let stored = stored.map_err(|error| status::of(&error))?;
        let configuration = Some(convert::configuration(&stored));
        Ok(Response::new(proto::ActivateConfigurationResponse { configuration }))
    }

    async fn diff_configurations(
        &self,
        request: Request<proto::DiffConfigurationsRequest>,
    ) -> Result<Response<proto::DiffConfigurationsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = self.check();
        let from = key(&mut check, "from_version", request.from_version);
        let to = key(&mut check, "to_version", request.to_version);
        let changes = match required(check, from.zip(to)) {
            Ok((from, to)) => self.configurations.diff(&from, &to, &scope).await,
            Err(error) => Err(error),
        };
        let changes = changes.map_err(|error| status::of(&error))?;
        let changes = changes.iter().map(change).collect();
        Ok(Response::new(proto::DiffConfigurationsResponse { changes }))
    }
}

/// What was converted, if nothing was wrong. Where it is missing something was, and `check` knows what.
fn required<T>(check: Check<'_>, converted: Option<T>) -> Result<T> {
    check.done(converted)?.ok_or_else(|| Error::invalid("request", "is invalid"))
}

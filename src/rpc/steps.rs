//! StepService.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::requests::PlanAsked;
use super::{convert, requests, status, unexpected_answer, write};
use crate::app::configurations::Configurations;
use crate::app::{App, PageRequest};
use crate::proto;
use crate::store::{Answer, Record};

/// Serves StepService.
pub struct Steps {
    pub app: Arc<App>,
    pub configurations: Arc<Configurations>,
}

impl Steps {
    async fn record(
        &self,
        asked: crate::app::Result<requests::Asked>,
    ) -> Result<Option<proto::Step>, Status> {
        match write(&self.app, asked).await? {
            Answer::Step(record) => Ok(Some(convert::step(&record, false))),
            _ => Err(unexpected_answer()),
        }
    }
}

#[tonic::async_trait]
impl proto::step_service_server::StepService for Steps {
    async fn plan_steps(
        &self,
        request: Request<proto::PlanStepsRequest>,
    ) -> Result<Response<proto::PlanStepsResponse>, Status> {
        let asked = match requests::plan(self.app.limits(), request.into_inner()) {
            Ok(PlanAsked::Steps(asked)) => Ok(asked),
            Ok(PlanAsked::Version { execution_id, version }) => {
                let plan = self.configurations.plan(&execution_id, &version).await;
                plan.map(|plan| (execution_id, plan))
            }
            Err(error) => Err(error),
        };
        match write(&self.app, asked).await? {
            Answer::Steps(records) => Ok(Response::new(proto::PlanStepsResponse {
                steps: records.iter().map(|record| convert::step(record, false)).collect(),
            })),
            _ => Err(unexpected_answer()),
        }
    }

    async fn start_step(
        &self,
        request: Request<proto::StartStepRequest>,
    ) -> Result<Response<proto::StartStepResponse>, Status> {
        let asked = requests::start_step(self.app.limits(), request.into_inner());
        Ok(Response::new(proto::StartStepResponse { step: self.record(asked).await? }))
    }

    async fn update_step(
        &self,
        request: Request<proto::UpdateStepRequest>,
    ) -> Result<Response<proto::UpdateStepResponse>, Status> {
        let asked = requests::update_step(self.app.limits(), request.into_inner());
        let (record, superseded) = match write(&self.app, asked).await? {
            Answer::Step(record) => (record, false),
            Answer::Superseded(Record::Step(record)) => (record, true),
            _ => return Err(unexpected_answer()),
        };
        let step = Some(convert::step(&record, false));
        Ok(Response::new(proto::UpdateStepResponse { step, superseded }))
    }

    async fn finish_step(
        &self,
        request: Request<proto::FinishStepRequest>,
    ) -> Result<Response<proto::FinishStepResponse>, Status> {
        let asked = requests::finish_step(self.app.limits(), request.into_inner());
        Ok(Response::new(proto::FinishStepResponse { step: self.record(asked).await? }))
    }

    async fn get_step(
        &self,
        request: Request<proto::GetStepRequest>,
    ) -> Result<Response<proto::GetStepResponse>, Status> {
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        check.execution_id(&request.execution_id);
        let named = check.existing_step(request.step_id, request.step_key.as_ref());
        check.done(()).map_err(|error| status::of(&error))?;
        let found = self
            .app
            .step(&request.execution_id, &named)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::GetStepResponse { step: Some(convert::step(&found, true)) }))
    }

    async fn list_steps(
        &self,
        request: Request<proto::ListStepsRequest>,
    ) -> Result<Response<proto::ListStepsResponse>, Status> {
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        check.execution_id(&request.execution_id);
        let statuses = check.step_statuses(&request.statuses);
        let size = check.page_size(request.page_size);
        check.done(()).map_err(|error| status::of(&error))?;
        let page = PageRequest { size, token: request.page_token };
        let found = self
            .app
            .list_steps(&request.execution_id, statuses, page, |step| {
                convert::step(step, false).encoded_len()
            })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::ListStepsResponse {
            steps: found.records.iter().map(|step| convert::step(step, false)).collect(),
            next_page_token: found.next_page_token,
        }))
    }
}

//! StepService.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::requests::PlanAsked;
use super::{authenticate, records, requests, shown, unexpected_answer, write};
use crate::app::configurations::Configurations;
use crate::app::{App, PageRequest};
use crate::domain::Step;
use crate::proto;
use crate::store::{Answer, By, Record};

/// Serves StepService.
pub struct Steps {
    pub app: Arc<App>,
    pub configurations: Arc<Configurations>,
}

impl Steps {
    async fn record(
        &self,
        by: By,
        asked: crate::app::Result<requests::Asked>,
    ) -> Result<Option<proto::Step>, Status> {
        match write(&self.app, by, asked).await? {
            Answer::Step(record) => Ok(Some(shown::step(&record))),
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
        let by = authenticate::by(&request)?;
        let asked = match requests::plan(self.app.limits(), request.into_inner()) {
            Ok(PlanAsked::Steps(asked)) => Ok(asked),
            Ok(PlanAsked::Version { execution_id, version }) => {
                let plan = self.configurations.plan(&execution_id, &version, &by.scope).await;
                plan.map(|plan| (execution_id, plan))
            }
            Err(error) => Err(error),
        };
        match write(&self.app, by, asked).await? {
            Answer::Steps(records) => Ok(Response::new(proto::PlanStepsResponse {
                steps: shown::steps(records.iter().map(AsRef::as_ref)),
            })),
            _ => Err(unexpected_answer()),
        }
    }

    async fn start_step(
        &self,
        request: Request<proto::StartStepRequest>,
    ) -> Result<Response<proto::StartStepResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::start_step(self.app.limits(), request.into_inner());
        Ok(Response::new(proto::StartStepResponse { step: self.record(by, asked).await? }))
    }

    async fn update_step(
        &self,
        request: Request<proto::UpdateStepRequest>,
    ) -> Result<Response<proto::UpdateStepResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::update_step(self.app.limits(), request.into_inner());
        let (record, superseded) = match write(&self.app, by, asked).await? {
            Answer::Step(record) => (record, false),
            Answer::Superseded(Record::Step(record)) => (record, true),
            _ => return Err(unexpected_answer()),
        };
        let step = Some(shown::step(&record));
        Ok(Response::new(proto::UpdateStepResponse { step, superseded }))
    }

    async fn finish_step(
        &self,
        request: Request<proto::FinishStepRequest>,
    ) -> Result<Response<proto::FinishStepResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::finish_step(self.app.limits(), request.into_inner());
        Ok(Response::new(proto::FinishStepResponse { step: self.record(by, asked).await? }))
    }

    async fn get_step(
        &self,
        request: Request<proto::GetStepRequest>,
    ) -> Result<Response<proto::GetStepResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        check.execution_id(&request.execution_id);
        let named = check.existing_step(request.step_id, request.step_key.as_ref());
        let payload_bytes = check.payload_bytes(request.max_payload_bytes);
        check.done(())?;
        let found = self.app.step(&request.execution_id, &named, &scope).await?;
        let step = Some(match payload_bytes {
            None => records::step(&found, true),
            Some(bytes) => shown::step_with_payloads(&found, bytes),
        });
        Ok(Response::new(proto::GetStepResponse { step }))
    }

    async fn list_steps(
        &self,
        request: Request<proto::ListStepsRequest>,
    ) -> Result<Response<proto::ListStepsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        check.execution_id(&request.execution_id);
        let statuses = check.step_statuses(&request.statuses);
        let size = check.page_size(request.page_size);
        check.done(())?;
        let page = PageRequest { size, token: request.page_token };
        let payloads = request.include_payloads;
        let bytes = self.app.limits().inline_payload_bytes;
        let step = |step: &Step| match payloads {
            true => shown::step_with_payloads(step, bytes),
            false => shown::step(step),
        };
        let found = self
            .app
            .list_steps(&request.execution_id, &scope, statuses, payloads, page, |found| {
                step(found).encoded_len()
            })
            .await?;
        Ok(Response::new(proto::ListStepsResponse {
            steps: found.records.iter().map(step).collect(),
            next_page_token: found.next_page_token,
        }))
    }
}

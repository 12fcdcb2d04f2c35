//! ExecutionService, but for its two watches, which `watch` serves.

use std::sync::Arc;

use prost::Message as _;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::{authenticate, convert, records, requests, shown, unexpected_answer, write};
use crate::app::{App, PageRequest, ids};
use crate::auth::Need;
use crate::proto;
use crate::store::{Answer, By, Record};

/// What the counts of the steps of one execution take in a reply at most.
const STEP_COUNTS_BYTES: usize = 32;

/// Serves ExecutionService.
pub struct Executions {
    pub app: Arc<App>,
    /// Woken when an execution with a heartbeat timeout is created.
    pub lease_made: Arc<Notify>,
}

impl Executions {
    async fn record(
        &self,
        by: By,
        asked: crate::app::Result<requests::Asked>,
    ) -> Result<Option<proto::Execution>, Status> {
        match write(&self.app, by, asked).await? {
            Answer::Execution(record) => Ok(Some(shown::execution(&record))),
            _ => Err(unexpected_answer()),
        }
    }
}

#[tonic::async_trait]
impl proto::execution_service_server::ExecutionService for Executions {
    async fn create_execution(
        &self,
        request: Request<proto::CreateExecutionRequest>,
    ) -> Result<Response<proto::CreateExecutionResponse>, Status> {
        let by = authenticate::by(&request)?;
        let request = request.into_inner();
        let leased = request.heartbeat_timeout.is_some();
        let asked = requests::create_execution(self.app.limits(), request, ids::execution_id);
        let execution = self.record(by, asked).await?;
        if leased {
            self.lease_made.notify_one();
        }
        Ok(Response::new(proto::CreateExecutionResponse { execution }))
    }

    async fn get_execution(
        &self,
        request: Request<proto::GetExecutionRequest>,
    ) -> Result<Response<proto::GetExecutionResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        check.execution_id(&request.execution_id);
        let view = proto::ExecutionView::try_from(request.view);
        if view.is_err() {
            check.bad("view", "is not a known view");
        }
        check.done(())?;
        let id = &request.execution_id;
        let answer = if view == Ok(proto::ExecutionView::Full) {
            let found = self
                .app
                .whole_execution(
                    id,
                    &scope,
                    |execution| shown::execution(execution).encoded_len(),
                    |step| shown::step(step).encoded_len() + 8,
                    |artifact| shown::artifact(artifact).encoded_len() + 8,
                )
                .await?;
            proto::GetExecutionResponse {
                execution: Some(shown::execution(&found.execution)),
                steps: found.steps.iter().map(shown::step).collect(),
                artifacts: found.artifacts.iter().map(shown::artifact).collect(),
                steps_truncated: found.steps_truncated,
            }
        } else {
            let found = self.app.execution(id, &scope).await?;
            proto::GetExecutionResponse {
                execution: Some(records::execution(&found)),
                ..Default::default()
            }
        };
        Ok(Response::new(answer))
    }

    async fn list_executions(
        &self,
        request: Request<proto::ListExecutionsRequest>,
    ) -> Result<Response<proto::ListExecutionsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        let filter = check.filter(request.filter.as_ref());
        let order = check.order(request.order);
        let size = check.page_size(request.page_size);
        check.done(())?;
        let page = PageRequest { size, token: request.page_token };
        let framing = if request.include_step_counts { STEP_COUNTS_BYTES } else { 0 };
        let found = self
            .app
            .list_executions(filter.within(scope), order, page, |record| {
                shown::execution(record).encoded_len() + framing
            })
            .await?;
        let mut step_counts = Vec::new();
        if request.include_step_counts {
            let counts = self.app.step_counts(&found.records).await;
            let counts = counts?;
            step_counts = counts.iter().map(convert::step_counts).collect();
        }
        Ok(Response::new(proto::ListExecutionsResponse {
            executions: found.records.iter().map(shown::execution).collect(),
            next_page_token: found.next_page_token,
            step_counts,
        }))
    }

    async fn count_executions(
        &self,
        request: Request<proto::CountExecutionsRequest>,
    ) -> Result<Response<proto::CountExecutionsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.app.limits());
        let filter = check.filter(request.filter.as_ref());
        let limit = check.count_limit(request.limit);
        check.done(())?;
        let counted = self.app.count_executions(filter.within(scope), limit).await?;
        Ok(Response::new(proto::CountExecutionsResponse {
            count: i64::try_from(counted.number).unwrap_or(i64::MAX),
            exact: counted.exact,
            unreadable: i64::try_from(counted.unreadable).unwrap_or(i64::MAX),
        }))
    }

    async fn update_execution(
        &self,
        request: Request<proto::UpdateExecutionRequest>,
    ) -> Result<Response<proto::UpdateExecutionResponse>, Status> {
        let permit = authenticate::permit(&request)?;
        let asked = authenticate::asked(&request);
        let request = request.into_inner();
        let allowed = match request.pinned {
            // Of who reports runs, nobody keeps them for ever.
            Some(_) => authenticate::scope_for(&permit, Need::Edit),
            None => Ok(permit.scope()),
        };
        let scope = allowed?;
        let by = By { scope, asked };
        let asked = requests::update_execution(self.app.limits(), request);
        let (record, superseded) = match write(&self.app, by, asked).await? {
            Answer::Execution(record) => (record, false),
            Answer::Superseded(Record::Execution(record)) => (record, true),
            _ => return Err(unexpected_answer()),
        };
        let execution = Some(shown::execution(&record));
        Ok(Response::new(proto::UpdateExecutionResponse { execution, superseded }))
    }

    async fn finish_execution(
        &self,
        request: Request<proto::FinishExecutionRequest>,
    ) -> Result<Response<proto::FinishExecutionResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::finish_execution(self.app.limits(), request.into_inner());
        let execution = self.record(by, asked).await?;
        Ok(Response::new(proto::FinishExecutionResponse { execution }))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::heartbeat(self.app.limits(), request.into_inner());
        match write(&self.app, by, asked).await? {
            Answer::Execution(record) => Ok(Response::new(proto::HeartbeatResponse {
                cancel_requested: record.cancel_requested_at.is_some(),
            })),
            _ => Err(unexpected_answer()),
        }
    }

    async fn request_cancel(
        &self,
        request: Request<proto::RequestCancelRequest>,
    ) -> Result<Response<proto::RequestCancelResponse>, Status> {
        let by = authenticate::by(&request)?;
        let asked = requests::request_cancel(self.app.limits(), request.into_inner());
        let execution = self.record(by, asked).await?;
        Ok(Response::new(proto::RequestCancelResponse { execution }))
    }

    async fn delete_execution(
        &self,
        request: Request<proto::DeleteExecutionRequest>,
    ) -> Result<Response<proto::DeleteExecutionResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let deleted = match requests::delete_execution(self.app.limits(), &request) {
            Ok(()) => {
                let app = &self.app;
                app.delete_execution(request.execution_id, request.force, scope).await
            }
            Err(error) => Err(error),
        };
        deleted?;
        Ok(Response::new(proto::DeleteExecutionResponse {}))
    }

    type WatchExecutionStream =
        tokio_stream::Pending<Result<proto::WatchExecutionResponse, Status>>;

    async fn watch_execution(
        &self,
        _request: Request<proto::WatchExecutionRequest>,
    ) -> Result<Response<Self::WatchExecutionStream>, Status> {
        // `rpc::watch` takes these calls before they come here, to send events that are encoded once.
        Err(unexpected_answer())
    }

    type WatchExecutionsStream =
        tokio_stream::Pending<Result<proto::WatchExecutionsResponse, Status>>;

    async fn watch_executions(
        &self,
        _request: Request<proto::WatchExecutionsRequest>,
    ) -> Result<Response<Self::WatchExecutionsStream>, Status> {
        // As above.
        Err(unexpected_answer())
    }
}

//! AdminService.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::status;
use crate::app::App;
use crate::domain::limits::{FILTER_VALUES, NESTING_DEPTH, PLANNED_STEPS};
use crate::proto;
use crate::store::inspect::Inspect;

/// Serves AdminService.
pub struct Admin {
    pub app: Arc<App>,
    /// What CheckIndexes looks at.
    pub database: Arc<dyn Inspect>,
}

#[tonic::async_trait]
impl proto::admin_service_server::AdminService for Admin {
    type RunRetentionStream =
        tokio_stream::wrappers::ReceiverStream<Result<proto::RunRetentionResponse, Status>>;

    async fn check_indexes(
        &self,
        _request: Request<proto::CheckIndexesRequest>,
    ) -> Result<Response<proto::CheckIndexesResponse>, Status> {
        let found = self.database.indexes().await.map_err(|error| status::of(&error.into()))?;
        let indexes = found
            .into_iter()
            .map(|check| proto::IndexCheck {
                collection: check.lookup.collection.to_owned(),
                keys: check.lookup.words(),
                unique: check.lookup.unique,
                served_by: check.served_by,
                advice: check.advice,
            })
            .collect();
        Ok(Response::new(proto::CheckIndexesResponse { indexes }))
    }

    async fn run_retention(
        &self,
        _request: Request<proto::RunRetentionRequest>,
    ) -> Result<Response<Self::RunRetentionStream>, Status> {
        Err(super::unexpected_answer())
    }

    async fn get_server_info(
        &self,
        _request: Request<proto::GetServerInfoRequest>,
    ) -> Result<Response<proto::GetServerInfoResponse>, Status> {
        let store = self.app.store_info();
        let limits = self.app.limits();
        let limits: HashMap<String, i64> = [
            ("name_characters", limits.name_characters),
            ("execution_id_characters", limits.execution_id_characters),
            ("message_characters", limits.message_characters),
            ("metadata_bytes", limits.metadata_bytes),
            ("error_message_bytes", limits.error_message_bytes),
            ("stack_trace_bytes", limits.stack_trace_bytes),
            ("payload_bytes", limits.payload_bytes),
            ("steps_per_execution", limits.steps_per_execution),
            ("depends_on_ids", limits.depends_on_ids),
            ("request_bytes", limits.request_bytes),
            ("page_records", limits.page_records),
            ("page_bytes", limits.page_bytes),
            ("page_examined_records", limits.page_examined_records),
            ("nesting_depth", NESTING_DEPTH),
            ("filter_values", FILTER_VALUES),
            ("planned_steps", PLANNED_STEPS),
        ]
        .into_iter()
        .map(|(name, limit)| (name.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX)))
        .collect();
        let mut features =
            vec!["ingest".to_owned(), "leases".to_owned(), "configurations".to_owned()];
        if store.watchable {
            features.push("watch".to_owned());
        }
        Ok(Response::new(proto::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: store.name.to_owned(),
            store_version: store.version,
            features,
            limits,
        }))
    }
}

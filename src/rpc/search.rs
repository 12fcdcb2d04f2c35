//! SearchService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{authenticate, convert, requests, status};
use crate::app::search::{Hit, Question, Search};
use crate::app::{App, Error, Result};
use crate::domain::search::{Kind, Query};
use crate::follow::CaughtUp;
use crate::proto;
use crate::store;

/// Serves SearchService.
pub struct SearchRpc {
    pub app: Arc<App>,
    pub search: Arc<Search>,
}

fn number(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn hit(hit: Hit) -> proto::SearchHit {
    let key = hit.entry.key;
    let (step_name, artifact_name) = match key.artifact_id {
        Some(_) => (None, hit.entry.name),
        None => (hit.entry.name, None),
    };
    let highlight = |(offset, length): (u32, u32)| proto::SearchHighlight {
        offset: number(offset as usize),
        length: number(length as usize),
    };
    proto::SearchHit {
        kind: key.kind as i32,
        execution_id: key.execution_id,
        step_id: key.step_id,
        artifact_id: key.artifact_id,
        step_name,
        artifact_name,
        snippet: hit.snippet.text,
        highlights: hit.snippet.highlights.into_iter().map(highlight).collect(),
        score: hit.score,
        truncated: hit.entry.truncated,
    }
}

impl SearchRpc {
    fn question(&self, request: proto::SearchRequest) -> Result<Question> {
        let mut check = requests::Check::new(self.app.limits());
        let query = Query::parse(&request.query);
        if let Err(bad) = &query {
            check.bad("query", bad.to_string());
        }
        let filter = check.filter(request.filter.as_ref());
        let mut kinds = Vec::new();
        for number in check.few("kinds", &request.kinds) {
            match Kind::from_number(*number) {
                Some(kind) => kinds.push(kind),
                None => check.bad(
                    "kinds",
                    format!("has {number}, which is not a kind that can be searched"),
                ),
            }
        }
        kinds.sort();
        kinds.dedup();
        let size = check.page_size(request.page_size);
        check.done(())?;
        let query = query.map_err(|bad| Error::invalid("query", bad.to_string()))?;
        Ok(Question { query, filter, kinds, size, token: request.page_token })
    }
}

#[tonic::async_trait]
impl proto::search_service_server::SearchService for SearchRpc {
    async fn search(
        &self,
        request: Request<proto::SearchRequest>,
    ) -> Result<Response<proto::SearchResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let answered = async {
            let mut question = self.question(request.into_inner())?;
            question.filter = question.filter.within(scope);
            let found = self.search.search(&question).await?;
            match found.caught_up {
                CaughtUp::NoLog => Err(Error::Store(store::Error::NoLog)),
                _ => Ok(found),
            }
        };
        let found = answered.await.map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::SearchResponse {
            hits: found.hits.into_iter().map(hit).collect(),
            next_page_token: found.next_page_token,
            up_to_date: found.caught_up == CaughtUp::Yes,
            not_indexed_since: found.not_indexed_since.map(convert::timestamp),
        }))
    }
}

//! MirrorService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{authenticate, convert, requests, status};
use crate::app::mirrors::Mirrors;
use crate::app::{Error, Result};
use crate::domain::limits::{MIRROR_REASONS, MIRROR_TOKEN_BYTES};
use crate::domain::mirror::{Copied, Mirror, Phase, Progress, Verification};
use crate::proto;
use crate::proto::mirror_service_advance_request::Told;

/// Serves MirrorService.
pub struct MirrorRpc {
    pub mirrors: Arc<Mirrors>,
}

fn phase(phase: Phase) -> proto::MirrorPhase {
    match phase {
        Phase::Copying => proto::MirrorPhase::Copying,
        Phase::Following => proto::MirrorPhase::Following,
        Phase::Finished => proto::MirrorPhase::Finished,
    }
}

fn counts(copied: &Copied) -> proto::MirrorCounts {
    proto::MirrorCounts {
        executions: copied.executions,
        steps: copied.steps,
        artifacts: copied.artifacts,
        points: copied.points,
        configurations: copied.configurations,
        deletions: copied.deletions,
    }
}

impl MirrorRpc {
    fn shown(&self, mirror: &Mirror) -> proto::Mirror {
        let progress = &mirror.progress;
        let verification = mirror.verification.map(|last| proto::MirrorVerification {
            clean: last.clean,
            position: last.position,
            differences: last.differences,
            at: Some(convert::timestamp(last.at)),
        });
        proto::Mirror {
            name: mirror.name.clone(),
            source: mirror.source.clone(),
            progress: Some(proto::MirrorProgress {
                phase: phase(progress.phase).into(),
                resume_token: progress.resume_token.clone(),
                position: progress.position,
                changed_position: progress.changed_position,
                lag_ms: mirror.lag_ms(self.mirrors.now()),
                copied: Some(counts(&progress.copied)),
                refused: progress.refused.clone().into_iter().collect(),
                conflicts: progress.conflicts,
            }),
            verification,
            session: mirror.session,
            begun_at: Some(convert::timestamp(mirror.begun_at)),
            advanced_at: Some(convert::timestamp(mirror.advanced_at)),
            finished_at: mirror.finished_at.map(convert::timestamp),
        }
    }

    fn check(&self) -> requests::Check<'_> {
        requests::Check::new(self.mirrors.app().limits())
    }

    fn progress(&self, name: &str, sent: proto::MirrorProgress) -> Result<Progress> {
        let mut check = self.check();
        check.required_name("name", name);
        let phase = match sent.phase() {
            proto::MirrorPhase::Copying => Phase::Copying,
            proto::MirrorPhase::Following => Phase::Following,
            proto::MirrorPhase::Unspecified | proto::MirrorPhase::Finished => {
                check.bad("progress.phase", "must be COPYING or FOLLOWING");
                Phase::Copying
            }
        };
        let token = sent.resume_token.len();
        let resume_token =
            match check.fits("progress.resume_token", token, "bytes", MIRROR_TOKEN_BYTES) {
                true => sent.resume_token.clone(),
                false => String::new(),
            };
        let reasons = sent.refused.len();
        if check.fits("progress.refused", reasons, "reasons", MIRROR_REASONS) {
            for reason in sent.refused.keys() {
                check.name("progress.refused", reason);
            }
        }
        if sent.lag_ms.is_some_and(|lag| lag < 0) {
            check.bad("progress.lag_ms", "must not be negative");
        }
        let copied = sent.copied.unwrap_or_default();
        check.done(Progress {
            phase,
            resume_token,
            position: sent.position,
            changed_position: sent.changed_position,
            lag_ms: sent.lag_ms,
            copied: Copied {
                executions: copied.executions,
                steps: copied.steps,
                artifacts: copied.artifacts,
                points: copied.points,
                configurations: copied.configurations,
                deletions: copied.deletions,
            },
            refused: sent.refused.into_iter().collect(),
            conflicts: sent.conflicts,
        })
    }

    async fn advanced(&self, request: proto::MirrorServiceAdvanceRequest) -> Result<Mirror> {
        let name = request.name;
        match request.told {
            Some(Told::Progress(progress)) => {
                let progress = self.progress(&name, progress)?;
                self.mirrors.advance(&name, request.session, progress).await
            }
            Some(Told::Verification(sent)) => {
                let mut check = self.check();
                check.required_name("name", &name);
                check.done(())?;
                let (clean, position, differences) = (sent.clean, sent.position, sent.differences);
                let at = self.mirrors.now();
                let verification = Verification { clean, position, differences, at };
                self.mirrors.verified(&name, verification).await
            }
            None => Err(Error::invalid("told", "is required: progress or verification")),
        }
    }

    fn named(&self, name: &str) -> Result<()> {
        let mut check = self.check();
        check.required_name("name", name);
        check.done(())
    }
}

#[tonic::async_trait]
impl proto::mirror_service_server::MirrorService for MirrorRpc {
    async fn begin(
        &self,
        request: Request<proto::MirrorServiceBeginRequest>,
    ) -> std::result::Result<Response<proto::MirrorServiceBeginResponse>, Status> {
        authenticate::scope(&request)?;
        let request = request.into_inner();
        let begun = async {
            let mut check = self.check();
            check.required_name("name", &request.name);
            check.required_name("source", &request.source);
            check.done(())?;
            self.mirrors.begin(&request.name, &request.source).await
        };
        let mirror = begun.await.map_err(|error| status::of(&error))?;
        let mirror = Some(self.shown(&mirror));
        Ok(Response::new(proto::MirrorServiceBeginResponse { mirror }))
    }

    async fn advance(
        &self,
        request: Request<proto::MirrorServiceAdvanceRequest>,
    ) -> std::result::Result<Response<proto::MirrorServiceAdvanceResponse>, Status> {
        authenticate::scope(&request)?;
        let advanced = self.advanced(request.into_inner()).await;
        let mirror = advanced.map_err(|error| status::of(&error))?;
        let mirror = Some(self.shown(&mirror));
        Ok(Response::new(proto::MirrorServiceAdvanceResponse { mirror }))
    }

    async fn get(
        &self,
        request: Request<proto::MirrorServiceGetRequest>,
    ) -> std::result::Result<Response<proto::MirrorServiceGetResponse>, Status> {
        authenticate::scope(&request)?;
        let name = request.into_inner().name;
        let found = async {
            self.named(&name)?;
            self.mirrors.get(&name).await
        };
        let mirror = found.await.map_err(|error| status::of(&error))?;
        let mirror = Some(self.shown(&mirror));
        Ok(Response::new(proto::MirrorServiceGetResponse { mirror }))
    }

    async fn finish(
        &self,
        request: Request<proto::MirrorServiceFinishRequest>,
    ) -> std::result::Result<Response<proto::MirrorServiceFinishResponse>, Status> {
        authenticate::scope(&request)?;
        let request = request.into_inner();
        let finished = async {
            self.named(&request.name)?;
            self.mirrors.finish(&request.name, request.force).await
        };
        let mirror = finished.await.map_err(|error| status::of(&error))?;
        let mirror = Some(self.shown(&mirror));
        Ok(Response::new(proto::MirrorServiceFinishResponse { mirror }))
    }
}

//! Runs a mirror: reads what the source exports, without an end, and writes it to the target, which also keeps how far it is.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};
use tonic_types::{RpcStatusExt as _, StatusExt as _};

use super::deletions::{Deleted, Deletions};
use super::gone::{self, Gone};
use super::refused::Refused;
use super::target::{Entry, FIRST_PAUSE, Kind, LONGEST_PAUSE, Target};
use crate::cli::connection::{self, Connection, call};
use crate::cli::exit::{Exit, Failure, Result};
use crate::cli::output::message;
use crate::proto;
use crate::proto::export_response::Record;
use crate::proto::ingest_request::Write;
use crate::proto::ingest_response::Result as Answer;

/// How often the target is told how far it is: while something moves, and while nothing does.
const TELL: Duration = Duration::from_millis(500);
const TELL_ANYWAY: Duration = Duration::from_secs(2);
/// How often both sides are asked what they hold, at most; and for this part of the time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const REST: u32 = 20;
/// After so long without a word the source may have moved on.
const SOURCE_SILENT: Duration = Duration::from_secs(5);
/// How long a mirror that is ended waits for the target to take in how far it is.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// A mirror that runs.
pub struct Running {
    source: Connection,
    target: Target,
    refused: Refused,
    adopt_steps: Option<String>,
    name: String,
    session: i64,
    /// As it is known to be here; its lag is worked out when it is told.
    progress: proto::MirrorProgress,
    /// Where the source is read on.
    token: String,
    /// The moment as of which everything is here; whether nothing came between the last two moments.
    as_of: Option<Instant>,
    quiet: bool,
    came: bool,
    told: Instant,
    moved: bool,
    pause: Duration,
    /// Something is gone at the source, and it is not known what.
    lost: bool,
    /// The place in the log up to which that is known.
    lost_position: i64,
    looking: Option<Looking>,
    look_at: Instant,
    /// What is gone at the source, with the place of each delete. It waits until all is here that was read of it before.
    gone: Option<(Gone, i64)>,
    deletions: Deletions,
}

/// The executions that are gone, or why they could not be looked for.
type Looked = std::result::Result<Gone, Status>;

/// A look for what is gone that is under way.
struct Looking {
    began: Instant,
    /// The place in the log as of which something is gone that it finds.
    position: i64,
    look: JoinHandle<Looked>,
}

/// Why reading from the source ended.
enum Ended {
    /// It is to be read on after a pause.
    Broke(String),
    /// From the beginning.
    Expired,
    /// Somebody has finished the mirror.
    Finished,
}

impl Running {
    pub fn new(
        source: Connection,
        target: Connection,
        mirror: proto::Mirror,
        mut refused: Refused,
        adopt_steps: Option<String>,
    ) -> Running {
        let progress = mirror.progress.unwrap_or_default();
        refused.by_reason = progress.refused.clone().into_iter().collect();
        refused.conflicts = progress.conflicts;
        // Whether something is gone was not written down.
        let lost = !progress.resume_token.is_empty();
        let progress = match progress.phase() {
            proto::MirrorPhase::Unspecified => {
                proto::MirrorProgress { phase: proto::MirrorPhase::Copying.into(), ..progress }
            }
            _ => progress,
        };
        Running {
            source,
            target: Target::new(target),
            refused,
            adopt_steps,
            name: mirror.name,
            session: mirror.session,
            token: progress.resume_token.clone(),
            progress,
            as_of: None,
            quiet: false,
            came: false,
            told: Instant::now(),
            moved: true,
            pause: FIRST_PAUSE,
            lost,
            lost_position: 0,
            looking: None,
            look_at: Instant::now(),
            gone: None,
            deletions: Deletions::default(),
        }
    }

    /// Until a signal ends it, or somebody finishes the mirror.
    pub async fn run(mut self) -> Result<Exit> {
        // Whatever it waits for by then: what is not told to be here is brought once more.
        let finished = tokio::select! {
            () = ended_by_signal() => None,
            finished = self.until_finished() => Some(finished),
        };
        match finished {
            Some(finished) => {
                finished?;
                message(&format!("mirror {} is finished", self.name));
            }
            None => {
                self.quiet = false;
                self.as_of = None;
                // The target may be away.
                let _ = tokio::time::timeout(LAST_WITHIN, self.tell()).await;
            }
        }
        Ok(Exit::Done)
    }

    async fn until_finished(&mut self) -> Result<()> {
        loop {
            let ended = match self.stream().await {
                Ok(mut stream) => self.follow(&mut stream).await?,
                Err(status) => self.broken(&status)?,
            };
            match ended {
                Ended::Finished => return Ok(()),
                Ended::Expired => {
                    message(
                        "note: the log of the source no longer reaches back to where this mirror was: everything is \
                         copied once more",
                    );
                    self.lost = true;
                    self.token = String::new();
                    self.progress.phase = proto::MirrorPhase::Copying.into();
                }
                Ended::Broke(why) => {
                    message(&format!("note: the source is read on in a moment: {why}"));
                    self.as_of = None;
                    self.quiet = false;
                    let until = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    while Instant::now() < until {
                        tokio::select! {
                            () = tokio::time::sleep_until(until) => {}
                            answer = self.target.answer(), if !self.target.is_idle() => {
                                self.answered(answer?).await?;
                            }
                            deleted = self.deletions.next() => self.deleted(deleted)?,
                        }
                    }
                    if self.tell_in_turn().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn stream(&self) -> std::result::Result<Streaming<proto::ExportResponse>, Status> {
        let request = proto::ExportRequest {
            filter: None,
            kinds: Vec::new(),
            resume_token: Some(self.token.clone()),
            follow: true,
        };
        Ok(self.source.exports().export(request).await?.into_inner())
    }

    fn broken(&self, status: &Status) -> Result<Ended> {
        match status.code() {
            Code::OutOfRange => Ok(Ended::Expired),
            // A token of a database that is another one by now.
            Code::InvalidArgument if !self.token.is_empty() => Ok(Ended::Expired),
            _ if connection::is_passing(status) => Ok(Ended::Broke(connection::describe(status))),
            _ => Err(Failure::Refused(format!("source: {}", connection::describe(status)))),
        }
    }

    /// Reads and writes until the stream ends.
    async fn follow(&mut self, stream: &mut Streaming<proto::ExportResponse>) -> Result<Ended> {
        loop {
            let tell_at = self.told + if self.moved { TELL } else { TELL_ANYWAY };
            tokio::select! {
                read = stream.message(), if !self.target.is_full() => match read {
                    Ok(Some(answer)) => {
                        self.pause = FIRST_PAUSE;
                        self.take(answer).await?;
                    }
                    Ok(None) => return Ok(Ended::Broke("it ended early".to_owned())),
                    Err(status) => return self.broken(&status),
                },
                answer = self.target.answer(), if !self.target.is_idle() => {
                    self.answered(answer?).await?;
                }
                deleted = self.deletions.next() => self.deleted(deleted)?,
                looked = looked(&mut self.looking) => self.look_ended(looked),
                () = tokio::time::sleep_until(tell_at) => {}
            }
            self.pass();
            self.look_in_turn();
            if self.tell_in_turn().await? {
                return Ok(Ended::Finished);
            }
        }
    }

    /// Takes in one message of the source.
    async fn take(&mut self, answer: proto::ExportResponse) -> Result<()> {
        let position = answer.position.unwrap_or(0);
        self.token.clone_from(&answer.resume_token);
        let token = Some(answer.resume_token);
        let (kind, write) = match answer.record {
            Some(Record::Execution(record)) => (Kind::Execution, Write::PutExecution(record)),
            Some(Record::Step(record)) => (Kind::Step, Write::PutStep(record)),
            Some(Record::Artifact(record)) => {
                while self.deletions.has(&record.artifact_id) {
                    let deleted = self.deletions.next().await;
                    self.deleted(deleted)?;
                }
                (Kind::Artifact, Write::PutArtifact(record))
            }
            Some(Record::Configuration(record)) => {
                (Kind::Configuration, Write::PutConfiguration(record))
            }
            Some(Record::Points(points)) => {
                let execution_id = points.points.first().map(|point| point.execution_id.clone());
                let request = proto::RecordMetricsRequest {
                    execution_id: execution_id.unwrap_or_default(),
                    points: points.points,
                    ..Default::default()
                };
                (Kind::Points, Write::PutMetrics(request))
            }
            Some(Record::Removed(removed)) => return self.removed(removed, token, position).await,
            Some(Record::CaughtUp(marker)) => {
                let age = Duration::from_millis(marker.age_ms.unsigned_abs());
                let now = Instant::now();
                let as_of = now.checked_sub(age).unwrap_or(now);
                self.delete_gone(marker.position).await;
                let kind = Kind::Marker { position: marker.position, as_of };
                self.target.push(Entry::new(kind, token, position, None)).await;
                return Ok(());
            }
            Some(Record::Walked(walked)) => {
                if walked.unreadable > 0 {
                    let reasons = &mut self.refused.by_reason;
                    reasons.insert("NO_USABLE_ID".to_owned(), walked.unreadable);
                }
                self.target.push(Entry::new(Kind::Passed, token, position, None)).await;
                return Ok(());
            }
            Some(Record::Complete(_)) | None => {
                self.target.push(Entry::new(Kind::Passed, token, position, None)).await;
                return Ok(());
            }
        };
        self.target.push(Entry::new(kind, token, position, Some(write))).await;
        Ok(())
    }

    async fn removed(
        &mut self,
        removed: proto::ExportedRemoval,
        token: Option<String>,
        position: i64,
    ) -> Result<()> {
        let execution_id = removed.execution_id;
        if execution_id.is_empty() && removed.artifact_id.is_none() {
            self.lost = true;
            self.lost_position = self.lost_position.max(position);
            self.target.push(Entry::new(Kind::Passed, token, position, None)).await;
            return Ok(());
        }
        if let Some(artifact_id) = removed.artifact_id {
            // By a call of its own, once what came before about the same is done.
            while self.target.is_putting(&artifact_id) {
                let answer = self.target.answer().await?;
                self.answered(answer).await?;
            }
            while self.deletions.is_full() {
                let deleted = self.deletions.next().await;
                self.deleted(deleted)?;
            }
            let entry = Entry::new(Kind::ArtifactDeletion, token, position, None);
            let sequence = self.target.push(entry).await;
            let target = self.target.connection().clone();
            self.deletions.begin(target, sequence, artifact_id);
            return Ok(());
        }
        if let Some(step_id) = removed.step_id {
            let what =
                bson::doc! { "execution_id": execution_id, "step_id": step_id, "deleted": true };
            let why = "a single step cannot be deleted here";
            self.refused.note("STEP_DELETED", why, "execution_steps", what)?;
            self.target.push(Entry::new(Kind::Passed, token, position, None)).await;
            return Ok(());
        }
        let request = proto::DeleteExecutionRequest { execution_id, force: true };
        let write = Some(Write::DeleteExecution(request));
        self.target.push(Entry::new(Kind::Deletion, token, position, write)).await;
        Ok(())
    }

    /// Looks what is gone at the source, once what was there before is copied.
    fn look_in_turn(&mut self) {
        let following = self.progress.phase() == proto::MirrorPhase::Following;
        let is_looking = self.looking.is_some() || self.gone.is_some();
        if !self.lost || !following || is_looking || Instant::now() < self.look_at {
            return;
        }
        self.lost = false;
        let (source, target) = (self.source.clone(), self.target.connection().clone());
        let look = gone::look(source, target, self.adopt_steps.is_some());
        // What comes again while it looks is newer than that, and stays.
        let position = self.progress.position.max(self.lost_position);
        self.looking = Some(Looking { began: Instant::now(), position, look: tokio::spawn(look) });
    }

    fn look_ended(&mut self, looked: Looked) {
        let Some(Looking { began, position, .. }) = self.looking.take() else { return };
        self.look_at = Instant::now() + LOOK_AGAIN.max(began.elapsed() * REST);
        match looked {
            Ok(gone) if gone.execution_ids.is_empty() => {}
            Ok(gone) => self.gone = Some((gone, position)),
            Err(status) => {
                message(&format!("note: what is gone is looked for again: {}", status.message()));
                self.lost = true;
            }
        }
    }

    /// Deletes what is gone, if the source was read as far: points and artifacts that were read before they went, and come
    /// after the delete, would stay.
    async fn delete_gone(&mut self, reached: i64) {
        if self.gone.as_ref().is_none_or(|(gone, _)| gone.position > reached) {
            return;
        }
        let Some((gone, position)) = self.gone.take() else { return };
        for execution_id in gone.execution_ids {
            let request = proto::DeleteExecutionRequest { execution_id, force: true };
            let write = Some(Write::DeleteExecution(request));
            self.target.push(Entry::new(Kind::Gone, None, position, write)).await;
        }
    }

    /// Takes in that an artifact is deleted.
    fn deleted(&mut self, deleted: Deleted) -> Result<()> {
        let position = self.target.entry(deleted.sequence).map_or(0, |entry| entry.position);
        if deleted.found? {
            self.counts().deletions += 1;
        }
        self.progress.changed_position = self.progress.changed_position.max(position);
        self.target.done(deleted.sequence);
        self.moved = true;
        Ok(())
    }

    fn counts(&mut self) -> &mut proto::MirrorCounts {
        self.progress.copied.get_or_insert_default()
    }

    /// Takes in an answer of the target.
    async fn answered(&mut self, answer: Option<(i64, Answer)>) -> Result<()> {
        let Some((sequence, answer)) = answer else { return Ok(()) };
        let Some(entry) = self.target.entry(sequence) else { return Ok(()) };
        let (kind, position, made_for) = (entry.kind, entry.position, entry.made_for);
        if let Answer::Error(error) = &answer {
            if let Some(orphan) = self.orphan(sequence, error) {
                return self.adopt(sequence, orphan).await;
            }
            if let Some(write) = self.target.entry(sequence).and_then(|entry| entry.write.clone())
                && !matches!(kind, Kind::Adopted | Kind::Gone)
            {
                self.refused.add(&write, error)?;
                self.moved = true;
            }
        } else {
            self.count(kind, &answer, position);
        }
        self.target.done(sequence);
        if let Some(step) = made_for {
            self.target.repeat(step).await;
        }
        Ok(())
    }

    fn count(&mut self, kind: Kind, answer: &Answer, position: i64) {
        if let Answer::Metrics(points) = answer
            && points.too_old + points.in_future > 0
        {
            let not_kept = self.refused.by_reason.entry("POINTS_NOT_KEPT".to_owned()).or_default();
            *not_kept += points.too_old + points.in_future;
        }
        let came = match answer {
            Answer::Execution(answer) => !answer.superseded,
            Answer::Step(answer) => !answer.superseded,
            Answer::Metrics(counts) => counts.accepted > counts.already_there,
            _ => true,
        };
        if !came {
            return;
        }
        let counts = self.counts();
        match kind {
            Kind::Execution => counts.executions += 1,
            Kind::Step => counts.steps += 1,
            Kind::Artifact => counts.artifacts += 1,
            Kind::Configuration => counts.configurations += 1,
            Kind::Deletion | Kind::Gone => counts.deletions += 1,
            Kind::Points => {
                if let Answer::Metrics(points) = answer {
                    counts.points += points.accepted - points.already_there;
                }
            }
            Kind::Adopted | Kind::ArtifactDeletion | Kind::Marker { .. } | Kind::Passed => return,
        }
        self.progress.changed_position = self.progress.changed_position.max(position);
        self.moved = true;
    }

    /// The execution that has to be made for a step, if its refusal says that there is none.
    fn orphan(&mut self, sequence: i64, error: &tonic_types::Status) -> Option<proto::Execution> {
        let app_name = self.adopt_steps.clone()?;
        let reason = error.get_details_error_info()?.reason;
        let entry = self.target.entry(sequence)?;
        let Some(Write::PutStep(step)) = &entry.write else { return None };
        if reason != "EXECUTION_NOT_FOUND" || entry.adopted {
            return None;
        }
        let status = match step.status() {
            proto::StepStatus::Pending | proto::StepStatus::Running => {
                proto::ExecutionStatus::Running
            }
            _ => proto::ExecutionStatus::Completed,
        };
        Some(proto::Execution {
            execution_id: step.execution_id.clone(),
            app_name,
            status: status.into(),
            started_at: step.started_at,
            ..Default::default()
        })
    }

    async fn adopt(&mut self, sequence: i64, execution: proto::Execution) -> Result<()> {
        if let Some(entry) = self.target.entry(sequence) {
            entry.adopted = true;
        }
        // Anything that the source ever says of the execution is newer.
        let write = Some(Write::PutExecution(execution));
        let mut made = Entry::new(Kind::Adopted, None, 0, write);
        made.made_for = Some(sequence);
        self.target.push(made).await;
        Ok(())
    }

    /// Moves on past everything that is done.
    fn pass(&mut self) {
        while let Some(entry) = self.target.pop() {
            if let Some(token) = entry.token {
                self.progress.resume_token = token;
            }
            match entry.kind {
                Kind::Marker { position, as_of } => {
                    self.progress.position = position;
                    self.progress.phase = proto::MirrorPhase::Following.into();
                    self.quiet = !self.came;
                    self.came = false;
                    self.as_of = Some(as_of);
                }
                Kind::Passed => {}
                _ => self.came = true,
            }
            self.moved = true;
        }
    }

    /// For how long at most something has been missing here.
    fn lag_ms(&self) -> Option<i64> {
        let behind = self.as_of?.elapsed();
        let looking = self.lost || self.looking.is_some() || self.gone.is_some();
        let idle = self.target.is_idle() && self.deletions.is_empty();
        if self.quiet && !looking && idle && !self.came && behind < SOURCE_SILENT {
            return Some(0);
        }
        Some(i64::try_from(behind.as_millis()).unwrap_or(i64::MAX).max(1))
    }

    /// Tells the target how far it is, if it is time. Whether the mirror is finished.
    async fn tell_in_turn(&mut self) -> Result<bool> {
        let since = self.told.elapsed();
        match since >= TELL_ANYWAY || since >= TELL && self.moved {
            true => self.tell().await,
            false => Ok(false),
        }
    }

    async fn tell(&mut self) -> Result<bool> {
        self.told = Instant::now();
        self.moved = false;
        self.refused.sync()?;
        let progress = proto::MirrorProgress {
            lag_ms: self.lag_ms(),
            refused: self.refused.by_reason.clone().into_iter().collect(),
            conflicts: self.refused.conflicts,
            ..self.progress.clone()
        };
        let request = proto::MirrorServiceAdvanceRequest {
            name: self.name.clone(),
            session: self.session,
            told: Some(proto::mirror_service_advance_request::Told::Progress(progress)),
        };
        let Err(status) = self.target.connection().mirrors().advance(call(request)).await else {
            return Ok(false);
        };
        match reason(&status).as_str() {
            "MIRROR_FINISHED" => Ok(true),
            // It comes again, with what will be known then.
            "CONTENTION" => Ok(false),
            "MIRROR_TAKEN_OVER" => Err(Failure::Refused(connection::describe(&status))),
            _ if connection::is_passing(&status) || status.code() == Code::DeadlineExceeded => {
                Ok(false)
            }
            _ => Err(Failure::Refused(connection::describe(&status))),
        }
    }
}

/// The end of a look, if there is one under way.
async fn looked(looking: &mut Option<Looking>) -> Looked {
    match looking {
        Some(Looking { look, .. }) => {
            look.await.unwrap_or_else(|_| Err(Status::unavailable("it broke off")))
        }
        None => std::future::pending().await,
    }
}

/// The reason in the details of an error; empty: there is none.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

async fn ended_by_signal() {
    let Ok(mut terminate) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

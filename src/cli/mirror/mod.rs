//! `stepwell mirror`: brings what another database holds into a server, and goes on bringing what changes there.

mod deletions;
mod gone;
mod refused;
mod run;
mod target;

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value as Json, json};

use super::connection::{Connection, ServerArgs, call};
use super::exit::{Exit, Failure, Result};
use super::json as shown;
use super::output::{Output, message};
use super::source::{Opened, Source};
use crate::proto;
use refused::Refused;
use run::Running;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to follow: mongodb://HOST:PORT/DATABASE, which is only read, or grpc://HOST:PORT.
    #[arg(value_name = "SOURCE", required = true)]
    source: Option<Source>,
    /// The server to write to; without it, that of --server.
    #[arg(long, value_name = "grpc://HOST:PORT")]
    to: Option<Source>,
    /// What to call it. A mirror of this name that was begun before goes on where it was; one process runs it at a time.
    #[arg(long, value_name = "NAME", required = true)]
    name: Option<String>,
    /// Append what cannot be brought to this file, one JSON object per line; without it, it is only told.
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
    /// Make an execution of this app for steps whose execution is not stored; without it, they are refused. A mirror goes on
    /// only with the same as it was begun with.
    #[arg(long, value_name = "APP")]
    adopt_steps: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how far a mirror is: its phase, what was copied, its lag, what was refused, and conflicts.
    Status(Named),
    /// End a mirror for ever: apps write to the target from now on.
    ///
    /// Refuses unless the lag is 0 and `stepwell verify SOURCE TARGET --mirror NAME` was clean and began after the last
    /// change.
    Finish {
        #[command(flatten)]
        named: Named,
        /// Also if it is not ready.
        #[arg(long)]
        force: bool,
    },
}

/// Between where a source is and the app that its steps without an execution are given to.
const ADOPTING: &str = ", with steps without an execution as those of ";

#[derive(Debug, clap::Args)]
struct Named {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: String,
    /// The server it writes to; without it, that of --server.
    #[arg(long, value_name = "grpc://HOST:PORT")]
    to: Option<Source>,
}

/// The server that is written to.
fn target(to: Option<&Source>, server: &ServerArgs) -> Result<Connection> {
    match to {
        None => server.connect(),
        Some(Source::Server(address)) => server.at(address).connect(),
        Some(other) => {
            Err(Failure::CouldNotStart(format!("--to {other}: must be grpc://HOST:PORT")))
        }
    }
}

pub async fn run(args: Args, server: &ServerArgs, output: &Output) -> Result<Exit> {
    match args.command {
        Some(Command::Status(named)) => {
            let connection = target(named.to.as_ref(), server)?;
            let request = proto::MirrorServiceGetRequest { name: named.name };
            let answer = connection.mirrors().get(call(request)).await?.into_inner();
            show(&answer.mirror.unwrap_or_default(), output)?;
            Ok(Exit::Done)
        }
        Some(Command::Finish { named, force }) => {
            let connection = target(named.to.as_ref(), server)?;
            let request = proto::MirrorServiceFinishRequest { name: named.name, force };
            let answer = connection.mirrors().finish(call(request)).await?.into_inner();
            show(&answer.mirror.unwrap_or_default(), output)?;
            Ok(Exit::Done)
        }
        None => mirror(args, server).await,
    }
}

async fn mirror(args: Args, server: &ServerArgs) -> Result<Exit> {
    let (Some(source), Some(name)) = (args.source, args.name) else {
        return Err(Failure::CouldNotStart("SOURCE and --name are required".to_owned()));
    };
    let connection = target(args.to.as_ref(), server)?;
    let Some(opened) = Opened::open(&source, server)? else {
        let why = "files do not change: use `stepwell import`";
        return Err(Failure::CouldNotStart(format!("{source}: {why}")));
    };
    let refused = Refused::open(args.refused.as_deref())?;
    let words = words_of(&source, args.adopt_steps.as_deref());
    let mirrored = begin(words, &opened, &connection, name).await;
    let ended = match mirrored {
        Ok(mirror) => {
            let reading = opened.connection.clone();
            Running::new(reading, connection, mirror, refused, args.adopt_steps).run().await
        }
        Err(failure) => Err(failure),
    };
    opened.close().await;
    ended
}

/// What a mirror is one of: with another database, or with other rules of what belongs to it, it would take what it has brought
/// for gone.
fn words_of(source: &Source, adopt_steps: Option<&str>) -> String {
    let place = source.place();
    match adopt_steps {
        Some(app) => format!("{place}{ADOPTING}{app}"),
        None => place,
    }
}

/// Whether a mirror with these words is one of this source.
pub fn is_of(words: &str, source: &Source) -> bool {
    let rest = words.strip_prefix(&source.place());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(ADOPTING))
}

/// Looks at both sides, and takes the mirror over.
async fn begin(
    source: String,
    opened: &Opened,
    target: &Connection,
    name: String,
) -> Result<proto::Mirror> {
    let info = |connection: Connection| async move {
        let info = connection.admin().get_server_info(call(proto::GetServerInfoRequest {})).await;
        Ok::<_, Failure>(info.map_err(Failure::from)?.into_inner())
    };
    let (from, to) = (info(opened.connection.clone()).await?, info(target.clone()).await?);
    for side in [&from, &to] {
        if !side.features.iter().any(|feature| feature == "mirrors") {
            let version = &side.version;
            let why =
                format!("the server of version {version} knows no mirrors: it needs a newer one");
            return Err(Failure::CouldNotStart(why));
        }
    }
    if !from.database_id.is_empty() && from.database_id == to.database_id {
        let why = "source and target are the same database: nothing has to be moved";
        return Err(Failure::CouldNotStart(why.to_owned()));
    }
    let request = proto::MirrorServiceBeginRequest { name, source: source.clone() };
    let answer = target.mirrors().begin(call(request)).await?.into_inner();
    let mirror = answer.mirror.unwrap_or_default();
    let begun = mirror.progress.as_ref().is_some_and(|told| !told.resume_token.is_empty());
    message(&format!(
        "mirror {} of {source} {}",
        mirror.name,
        if begun { "goes on where it was" } else { "begins" }
    ));
    Ok(mirror)
}

fn phase(progress: &proto::MirrorProgress) -> &'static str {
    match progress.phase() {
        proto::MirrorPhase::Unspecified => "unknown",
        proto::MirrorPhase::Copying => "copying",
        proto::MirrorPhase::Following => "following",
        proto::MirrorPhase::Finished => "finished",
    }
}

fn show(mirror: &proto::Mirror, output: &Output) -> Result<()> {
    let progress = mirror.progress.clone().unwrap_or_default();
    let copied = progress.copied.unwrap_or_default();
    let copied = json!({
        "executions": copied.executions,
        "steps": copied.steps,
        "artifacts": copied.artifacts,
        "points": copied.points,
        "configurations": copied.configurations,
        "deletions": copied.deletions,
    });
    let refused: serde_json::Map<String, Json> =
        progress.refused.iter().map(|(reason, count)| (reason.clone(), json!(count))).collect();
    let verification = mirror.verification.as_ref().map(|last| {
        json!({
            "clean": last.clean,
            "position": last.position,
            "differences": last.differences,
            "at": shown::time(last.at.as_ref()),
        })
    });
    let all = json!({
        "name": mirror.name,
        "source": mirror.source,
        "phase": phase(&progress),
        "copied": copied,
        "lag_ms": progress.lag_ms,
        "refused": refused,
        "conflicts": progress.conflicts,
        "position": progress.position,
        "verification": verification,
        "begun_at": shown::time(mirror.begun_at.as_ref()),
        "advanced_at": shown::time(mirror.advanced_at.as_ref()),
        "finished_at": shown::time(mirror.finished_at.as_ref()),
    });
    if output.is_json() {
        return output.json(&all);
    }
    let list = |map: &Json| {
        let pairs = map.as_object().into_iter().flatten();
        let words: Vec<String> = pairs.map(|(name, count)| format!("{name} {count}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let lag = match progress.lag_ms {
        Some(lag) => format!("{lag} ms"),
        None => "not known".to_owned(),
    };
    let verified = match &mirror.verification {
        None => "never".to_owned(),
        Some(last) if last.clean => "clean".to_owned(),
        Some(last) => format!("{} differences", last.differences),
    };
    for (name, value) in [
        ("mirror", mirror.name.clone()),
        ("source", mirror.source.clone()),
        ("phase", phase(&progress).to_owned()),
        ("copied", list(&all["copied"])),
        ("lag", lag),
        ("refused", list(&all["refused"])),
        ("conflicts", progress.conflicts.to_string()),
        ("verified", verified),
    ] {
        output.line(&format!("{name:<10} {}", super::text::one_line(&value)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_source_tell_databases_apart_and_no_secrets() {
        let words = |source: &str, adopt: Option<&str>| words_of(&source.parse().unwrap(), adopt);
        let prod = "mongodb://me:secret@prod-1:27017,prod-2:27017/ai_apps?replicaSet=rs";
        assert_eq!(words(prod, None), "mongodb database ai_apps at prod-1:27017,prod-2:27017");
        let others =
            ["mongodb://staging/ai_apps", "mongodb://prod-1:27017/ai_apps", "grpc://prod:50051"];
        for other in others {
            assert_ne!(words(other, None), words(prod, None));
        }
        assert_ne!(words(prod, Some("adopted")), words(prod, None));
        for adopt in [None, Some("adopted")] {
            assert!(is_of(&words(prod, adopt), &prod.parse().unwrap()));
            for other in others {
                assert!(!is_of(&words(prod, adopt), &other.parse().unwrap()), "{other}");
            }
        }
    }
}

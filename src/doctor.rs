//! `stepwell doctor`'s eyes and judgement: looks at the database of a configuration, beside whatever servers have
//! it open, and says what is well, what is not, and what to do about it. Beside the composition root, as it
//! opens a database; changes nothing there.

mod finding;
mod safety;
mod shards;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::server;
use crate::store::inspect::{Deployment, Disk, Documents, Durability, Facts, History, IndexCheck};
pub use finding::{Finding, State};

/// The oldest MongoDB that the tests run on.
const OLDEST_MAJOR: u32 = 6;
/// Servers judge the silence of runs by their own clocks, in steps of seconds.
const CLOCK_AHEAD_MS: i64 = 1_000;
const FREE_BYTES: u64 = 1024 * 1024 * 1024;
/// A watcher that is away for a night and comes back in the morning.
const HISTORY: Duration = Duration::from_secs(24 * 3600);

/// Looks at the database of a configuration. An error: it cannot be reached, or is none of ours.
pub async fn examine(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let database = server::look_at(config, &clock).await?;
    let facts = database.facts().await?;
    let indexes = database.indexes().await?;
    let mut findings = judge(&facts, &indexes);
    findings.extend(facts.shards.iter().flat_map(shards::judge));
    findings.extend(safety::judge(&facts, config));
    Ok(findings)
}

/// The command that makes the role by which a server may do in its database what it does, and no more, as JSON.
pub fn role(config: &Config) -> String {
    server::role(&config.mongodb.database)
}

/// The commands that spread the database over the shards of a cluster, for mongosh.
pub fn shard_plan(config: &Config) -> String {
    server::shard_plan(&config.mongodb.database)
}

/// What the facts mean.
pub fn judge(facts: &Facts, indexes: &[IndexCheck]) -> Vec<Finding> {
    let mut findings = vec![version(facts), deployment(&facts.deployment)];
    findings.push(match &facts.durability {
        Durability::Safe(says) => Finding::new("write concern", State::Well, says),
        Durability::Weak(says) => Finding::to_do(
            "write concern",
            says,
            "a failover can lose acknowledged writes: leave mongodb.write_concern and w in the URI \
             unset, or set them to majority",
        ),
    });
    findings.extend(facts.clock_ahead_ms.map(clock_skew));
    findings.push(match facts.disk {
        Some(disk) => free(disk),
        None => Finding::new("disk", State::Note, "the database does not report how much is free"),
    });
    findings.extend(history(facts));
    findings.extend(indexes.iter().map(index));
    findings.extend(facts.documents.iter().flat_map(documents));
    findings
}

/// What other programs stored that servers cannot work with as it is.
fn documents(found: &Documents) -> Vec<Finding> {
    let mut findings = Vec::new();
    if found.unreadable > 0 {
        findings.push(Finding::to_do(
            "unreadable executions",
            format!("{} documents in executions have no usable execution_id", found.unreadable),
            "they are in no list and no report: give each a text as execution_id, or remove them",
        ));
    }
    if found.lists > 0 {
        findings.push(Finding::to_do(
            "lists in executions",
            format!("{} documents in executions have an array in an indexed field", found.lists),
            "lists of executions may leave them out: store one value",
        ));
    }
    if !found.doubled.is_empty() {
        findings.push(Finding::to_do(
            "doubled ids",
            format!("several documents have one id, for instance: {}", found.doubled.join(", ")),
            "remove or rename all but one of each: until then a unique index over newer records alone keeps ids apart",
        ));
    }
    findings
}

fn version(facts: &Facts) -> Finding {
    let version = &facts.version;
    if matches!(facts.deployment, Deployment::Embedded { .. }) {
        return Finding::new("version", State::Well, format!("SQLite {version}, embedded"));
    }
    let says = format!("MongoDB {version}");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_MAJOR => Finding::to_do(
            "version",
            says,
            format!("it is older than {OLDEST_MAJOR}.0, the oldest tested version: upgrade it"),
        ),
        _ => Finding::new("version", State::Well, says),
    }
}

fn deployment(deployment: &Deployment) -> Finding {
    let subject = "deployment";
    match deployment {
        Deployment::Embedded { exists: false, .. } => Finding::new(
            subject,
            State::Note,
            "there is no database in the data directory yet; a server creates it when it first starts",
        ),
        Deployment::Embedded { schema: (found, newest), .. } if found < newest => Finding::to_do(
            subject,
            format!("a file with schema version {found} of {newest}"),
            "the next server to start upgrades it; back up the file first, because older servers \
             cannot open it afterwards",
        ),
        Deployment::Embedded { schema: (found, _), .. } => {
            Finding::new(subject, State::Well, format!("a file with schema version {found}"))
        }
        Deployment::Standalone => Finding::to_do(
            subject,
            "a standalone mongod",
            "without a replica set nothing can be watched, and a client has to repeat a write whose \
             answer is lost: start it with --replSet rs0 and run rs.initiate() once",
        ),
        Deployment::ReplicaSet { name, members: 1 } => Finding::new(
            subject,
            State::Well,
            format!("replica set {name} of one member, which cannot survive a failure"),
        ),
        Deployment::ReplicaSet { name, members } => {
            Finding::new(subject, State::Well, format!("replica set {name} of {members} members"))
        }
        Deployment::Sharded => Finding::new(subject, State::Well, "a sharded cluster"),
    }
}

fn clock_skew(ahead_ms: i64) -> Finding {
    let says = match ahead_ms {
        0.. => format!("the database's clock is {ahead_ms} ms ahead of this machine's"),
        _ => format!("the database's clock is {} ms behind this machine's", -ahead_ms),
    };
    match ahead_ms.abs() > CLOCK_AHEAD_MS {
        true => Finding::to_do(
            "clock",
            says,
            "heartbeat timeouts, default timestamps and retention depend on these clocks: synchronise \
             them with NTP",
        ),
        false => Finding::new("clock", State::Well, says),
    }
}

fn free(disk: Disk) -> Finding {
    let says = format!("{} of {} free", size(disk.free_bytes), size(disk.total_bytes));
    match disk.free_bytes < FREE_BYTES {
        true => Finding::to_do(
            "disk",
            says,
            format!(
                "less than {} is free: free up space, or keep records for a shorter time",
                size(FREE_BYTES)
            ),
        ),
        false => Finding::new("disk", State::Well, says),
    }
}

fn size(bytes: u64) -> String {
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
    format!("{:.1} GiB", bytes as f64 / GIB)
}

fn history(facts: &Facts) -> Option<Finding> {
    let subject = "history";
    let Some(History { covers_ms, full }) = facts.history else {
        return match facts.deployment {
            Deployment::ReplicaSet { .. } => Some(Finding::new(
                subject,
                State::Note,
                "how far back a watch can be resumed is unknown: this user may not read local.oplog.rs",
            )),
            _ => None,
        };
    };
    let hours = covers_ms as f64 / 3_600_000.0;
    let says = format!(
        "a watch can be resumed for {hours:.1} hours{}",
        if full { "" } else { " so far; no history has been dropped yet" }
    );
    if !full || covers_ms >= i64::try_from(HISTORY.as_millis()).unwrap_or(i64::MAX) {
        return Some(Finding::new(subject, State::Well, says));
    }
    Some(match facts.deployment {
        // Its bounds are fixed, and it is at the one that many changes reach first.
        Deployment::Embedded { .. } => Finding::new(subject, State::Note, says),
        _ => Finding::to_do(
            subject,
            says,
            "resume tokens older than that are refused with OUT_OF_RANGE: enlarge the oplog, for instance \
             db.adminCommand({replSetResizeOplog: 1, minRetentionHours: 48}) on each member",
        ),
    })
}

fn index(check: &IndexCheck) -> Finding {
    let unique = if check.lookup.unique { ", unique" } else { "" };
    let subject = format!("index {} ({}){unique}", check.lookup.collection, check.lookup.words());
    match &check.served_by {
        Some(name) => Finding::new(subject, State::Well, format!("served by {name}")),
        None => Finding::to_do(subject, "not served by any index", check.advice.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::inspect::LOOKUPS;

    fn healthy() -> Facts {
        Facts {
            version: "7.0.1".to_owned(),
            deployment: Deployment::ReplicaSet { name: "rs0".to_owned(), members: 3 },
            durability: Durability::Safe("majority".to_owned()),
            clock_ahead_ms: Some(-3),
            disk: Some(Disk { free_bytes: 9 * FREE_BYTES, total_bytes: 10 * FREE_BYTES }),
            history: Some(History { covers_ms: 90_000_000, full: true }),
            documents: Some(Documents::default()),
            access: None,
            shards: None,
            idle_keys: Vec::new(),
        }
    }

    /// The subjects that need something done.
    fn to_do(facts: &Facts) -> Vec<String> {
        let findings = judge(facts, &[]);
        for finding in &findings {
            assert_eq!(finding.state == State::ToDo, !finding.advice.is_empty(), "{finding:?}");
        }
        let to_do = findings.into_iter().filter(|finding| finding.state == State::ToDo);
        to_do.map(|finding| finding.subject).collect()
    }

    #[test]
    fn every_trouble_is_told_alone() {
        assert!(to_do(&healthy()).is_empty());
        let weak = Durability::Weak("w: 1 of 3".to_owned());
        let full = Disk { free_bytes: FREE_BYTES - 1, total_bytes: 10 * FREE_BYTES };
        let short = History { covers_ms: 80_000_000, full: true };
        for (facts, subject) in [
            (Facts { version: "5.0.9".to_owned(), ..healthy() }, "version"),
            (
                Facts { deployment: Deployment::Standalone, history: None, ..healthy() },
                "deployment",
            ),
            (Facts { durability: weak, ..healthy() }, "write concern"),
            (Facts { clock_ahead_ms: Some(-1_001), ..healthy() }, "clock"),
            (Facts { clock_ahead_ms: Some(1_001), ..healthy() }, "clock"),
            (Facts { disk: Some(full), ..healthy() }, "disk"),
            (Facts { history: Some(short), ..healthy() }, "history"),
            (
                Facts {
                    documents: Some(Documents { unreadable: 1, ..Documents::default() }),
                    ..healthy()
                },
                "unreadable executions",
            ),
            (
                Facts {
                    documents: Some(Documents {
                        doubled: vec!["e".into()],
                        ..Documents::default()
                    }),
                    ..healthy()
                },
                "doubled ids",
            ),
        ] {
            assert_eq!(to_do(&facts), [subject], "{facts:?}");
        }
    }

    #[test]
    fn what_is_not_known_or_only_young_is_no_trouble() {
        let young = Some(History { covers_ms: 1, full: false });
        for facts in [
            Facts { history: young, ..healthy() },
            Facts { history: None, disk: None, clock_ahead_ms: None, ..healthy() },
            Facts {
                deployment: Deployment::Embedded { exists: false, schema: (0, 5) },
                history: None,
                ..healthy()
            },
        ] {
            assert!(to_do(&facts).is_empty(), "{facts:?}");
        }
        let old = Deployment::Embedded { exists: true, schema: (1, 5) };
        assert_eq!(to_do(&Facts { deployment: old, ..healthy() }), ["deployment"]);
    }

    #[test]
    fn a_lookup_that_nothing_serves_is_to_do() {
        let check = |served_by: Option<&str>| IndexCheck {
            lookup: LOOKUPS[1],
            served_by: served_by.map(str::to_owned),
            advice: served_by.map_or("make it".to_owned(), |_| String::new()),
        };
        let findings = judge(&healthy(), &[check(Some("app")), check(None)]);
        let [.., served, missing] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(served.subject, "index executions (app_id, sub_app_id)");
        assert_eq!((served.state, served.says.as_str()), (State::Well, "served by app"));
        assert_eq!((missing.state, missing.advice.as_str()), (State::ToDo, "make it"));
    }
}

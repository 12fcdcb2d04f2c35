//! How the database is spread over the shards of a cluster.

use super::finding::{Finding, State};
use crate::store::inspect::{ShardedCollection, Shards};

/// What a watch may lag by until somebody should do something.
const LAG_MS: i64 = 2_000;
/// The fullest shard may have so many times the chunks of the average.
const UNEVEN: u64 = 2;

/// What the facts mean.
pub fn judge(shards: &Shards) -> Vec<Finding> {
    let mut findings: Vec<Finding> = shards.collections.iter().map(collection).collect();
    match shards.balancer {
        Some(true) => findings.push(Finding::new(
            "balancer",
            State::Well,
            "chunks move where shards are uneven",
        )),
        Some(false) => findings.push(Finding::to_do(
            "balancer",
            "it is off: a shard that is added stays empty",
            "sh.startBalancer(), once whatever it was stopped for is over",
        )),
        None => {}
    }
    if let Some(version) = &shards.features {
        findings.push(Finding::new(
            "feature compatibility",
            State::Well,
            format!("that of {version}"),
        ));
    }
    if let Some(lag) = shards.lag_ms {
        let says = format!("the log told of a change after {lag} ms");
        findings.push(match lag > LAG_MS {
            true => Finding::to_do(
                "watch lag",
                says,
                "watches wait for the quietest shard: set periodicNoopIntervalSecs to 1 on every shard and on the config servers",
            ),
            false => Finding::new("watch lag", State::Well, says),
        });
    }
    if !shards.unread.is_empty() {
        let says = format!("this user may not read {}", shards.unread.join(", "));
        findings.push(Finding::new("shards", State::Note, says));
    }
    findings
}

fn collection(found: &ShardedCollection) -> Finding {
    let subject = format!("shards of {}", found.name);
    let plan = "stepwell shard plan prints the commands";
    if !found.in_the_way.is_empty() {
        let says = format!(
            "unique indexes do not begin with its shard key: {}",
            found.in_the_way.join(", ")
        );
        return Finding::to_do(subject, says, "drop them: a server makes those that are needed");
    }
    let Some(key) = &found.key else {
        return Finding::to_do(subject, "it is not sharded: all of it is on one shard", plan);
    };
    if *key != found.wanted {
        let says = format!("it is sharded by {key}, not by {}", found.wanted);
        return Finding::to_do(subject, says, "reshardCollection spreads it by the other key");
    }
    let spread: Vec<String> =
        found.chunks.iter().map(|(shard, chunks)| format!("{shard} {chunks}")).collect();
    let says = format!("by {key}; chunks: {}; jumbo: {}", spread.join(", "), found.jumbo);
    let all: u64 = found.chunks.iter().map(|(_, chunks)| chunks).sum();
    let most = found.chunks.iter().map(|(_, chunks)| *chunks).max().unwrap_or(0);
    let shards = found.chunks.len() as u64;
    match () {
        () if found.jumbo > 0 => Finding::to_do(
            subject,
            says,
            "a jumbo chunk stays where it is: an execution with very much in it has one; see that its shard has room",
        ),
        // Few chunks are never even.
        () if all > 10 * shards && most * shards > UNEVEN * all => {
            Finding::to_do(subject, says, "the shards are uneven: see whether the balancer runs")
        }
        () => Finding::new(subject, State::Well, says),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ShardedCollection {
        ShardedCollection {
            name: "executions".to_owned(),
            wanted: "execution_id: hashed".to_owned(),
            key: Some("execution_id: hashed".to_owned()),
            chunks: vec![("a".to_owned(), 20), ("b".to_owned(), 22)],
            ..ShardedCollection::default()
        }
    }

    #[test]
    fn each_trouble_of_shards_is_told() {
        assert_eq!(collection(&good()).state, State::Well);
        for (found, word) in [
            (ShardedCollection { key: None, ..good() }, "not sharded"),
            (ShardedCollection { key: Some("_id: 1".to_owned()), ..good() }, "by _id: 1"),
            (ShardedCollection { jumbo: 1, ..good() }, "jumbo: 1"),
            (
                ShardedCollection {
                    chunks: vec![("a".to_owned(), 90), ("b".to_owned(), 2), ("c".to_owned(), 3)],
                    ..good()
                },
                "a 90",
            ),
            (
                ShardedCollection { in_the_way: vec!["u".to_owned()], ..good() },
                "begin with its shard key: u",
            ),
        ] {
            let told = collection(&found);
            assert_eq!(told.state, State::ToDo, "{told:?}");
            assert!(told.says.contains(word) && !told.advice.is_empty(), "{told:?}");
        }
        let states = |shards: &Shards| -> Vec<State> {
            judge(shards).into_iter().map(|finding| finding.state).collect()
        };
        let shards = Shards {
            balancer: Some(true),
            lag_ms: Some(2_000),
            features: Some("6.0".to_owned()),
            ..Shards::default()
        };
        assert_eq!(states(&shards), [State::Well; 3]);
        let shards = Shards {
            balancer: Some(false),
            lag_ms: Some(2_001),
            unread: vec!["config".to_owned()],
            ..Shards::default()
        };
        assert_eq!(states(&shards), [State::ToDo, State::ToDo, State::Note]);
        assert!(judge(&shards)[1].advice.contains("periodicNoopIntervalSecs"));
    }
}

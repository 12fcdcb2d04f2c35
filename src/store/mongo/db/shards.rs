//! How the database is spread over shards: the commands for whoever administers the cluster. They are printed and never run
//! here.

use std::fmt::Write as _;

use super::names::{LISTED, METRICS, Spread, Use};

impl Spread {
    /// The fields of the shard key, and how each is taken: `hashed`, or 1.
    pub fn key(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Spread::ByExecution => &[("execution_id", "\"hashed\"")],
            Spread::ById => &[("_id", "\"hashed\"")],
            Spread::ByPiece => &[("files_id", "1"), ("n", "1")],
            Spread::Whole => &[],
        }
    }
}

/// The commands for mongosh, each collection's index before the collection is spread.
pub fn plan(database: &str) -> String {
    let mut plan = format!(
        "// For mongosh, connected to a mongos as a cluster administrator. Start a server on the database first, which makes the\n\
         // collections. Each command may be run again. Take a backup; no server has to be stopped.\n\
         const stepwell = db.getSiblingDB({database:?});\n"
    );
    for listed in LISTED {
        let key: Vec<String> =
            listed.spread.key().iter().map(|(field, way)| format!("{field}: {way}")).collect();
        if key.is_empty() || listed.used == Use::Read {
            continue;
        }
        let (key, name) = (format!("{{ {} }}", key.join(", ")), listed.name);
        // A collection that compares text in a way of its own is spread by its bytes all the same. Of a time series only the
        // buckets are spread, which have no such way.
        let simple = if name == METRICS { "" } else { ", { collation: { locale: \"simple\" } }" };
        let collation = if name == METRICS { "" } else { ", collation: { locale: \"simple\" }" };
        // Writing into a String cannot fail, here and below.
        let _ = write!(
            plan,
            "\nstepwell.getCollection(\"{name}\").createIndex({key}{simple});\n\
             db.adminCommand({{ shardCollection: \"{database}.{name}\", key: {key}{collation} }});\n"
        );
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_makes_the_index_first_and_spreads_what_is_large() {
        let plan = plan("ai_apps");
        for (collection, key) in [
            ("executions", "{ execution_id: \"hashed\" }"),
            ("execution_steps", "{ execution_id: \"hashed\" }"),
            ("execution_artifacts", "{ execution_id: \"hashed\" }"),
            ("execution_metrics", "{ execution_id: \"hashed\" }"),
            ("artifacts.chunks", "{ files_id: 1, n: 1 }"),
            ("stepwell_rollup_counted", "{ _id: \"hashed\" }"),
            ("stepwell_search_texts", "{ _id: \"hashed\" }"),
            ("stepwell_metric_hours", "{ _id: \"hashed\" }"),
        ] {
            let index = format!("getCollection(\"{collection}\").createIndex({key}");
            let shard = format!("shardCollection: \"ai_apps.{collection}\", key: {key}");
            let (index, shard) = (plan.find(&index), plan.find(&shard));
            assert!(index.is_some() && index < shard, "{collection}: {plan}");
        }
        assert_eq!(plan.matches("shardCollection:").count(), 8, "{plan}");
    }
}

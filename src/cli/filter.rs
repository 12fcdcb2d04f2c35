//! The flags that choose executions, the same for every command that takes a filter.

use std::collections::HashMap;

use clap::{Args, ValueEnum};

use super::json;
use super::time::{Moment, parse_duration_ms};
use crate::domain::Now;
use crate::domain::query::parse_path;
use crate::proto;

/// A status of an execution, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Status {
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl From<Status> for proto::ExecutionStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => proto::ExecutionStatus::Running,
            Status::Completed => proto::ExecutionStatus::Completed,
            Status::Failed => proto::ExecutionStatus::Failed,
            Status::Cancelled => proto::ExecutionStatus::Cancelled,
        }
    }
}

/// Which executions. Every flag that is given must hold; of one flag given several times one value must match.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which executions")]
pub struct FilterArgs {
    /// Number of the app (app_id); may be repeated.
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub app_id: Vec<i32>,
    /// Name of the app (exact match); may be repeated.
    // The libraries call it `app`, and without this the nearest name that is proposed is that of the number.
    #[arg(long, alias = "app", value_name = "NAME")]
    pub app_name: Vec<String>,
    /// Number of the part of the app (sub_app_id); may be repeated.
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub sub_app_id: Vec<i32>,
    /// Who ran it; may be repeated.
    #[arg(long, value_name = "USER_ID")]
    pub user: Vec<String>,
    /// Its status; may be repeated, or several separated by commas.
    #[arg(long, value_enum, value_name = "STATUS", value_delimiter = ',', ignore_case = true)]
    pub status: Vec<Status>,
    /// Started at this time or later: RFC 3339 with a time zone, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    pub since: Option<Moment>,
    /// Started before this time; written like --since.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    pub until: Option<Moment>,
    /// Took at least this long, such as 90s or 1h 30m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    pub min_duration: Option<i64>,
    /// Metadata has this JSON value at this path, such as model.name="gpt-4o" or retries=3; a value that is not
    /// JSON is taken as text. A dot inside a key is written `\.`. May be repeated.
    #[arg(long, value_name = "PATH=JSON", value_parser = parse_metadata)]
    pub metadata: Vec<(String, serde_json::Value)>,
}

impl FilterArgs {
    pub fn resolve(&self, now: Now) -> proto::ExecutionFilter {
        proto::ExecutionFilter {
            app_ids: self.app_id.clone(),
            app_names: self.app_name.clone(),
            sub_app_ids: self.sub_app_id.clone(),
            user_ids: self.user.clone(),
            statuses: self
                .status
                .iter()
                .map(|status| proto::ExecutionStatus::from(*status).into())
                .collect(),
            started_at_from: self.since.as_ref().map(|moment| moment.resolve(now)),
            started_at_until: self.until.as_ref().map(|moment| moment.resolve(now)),
            min_duration_ms: self.min_duration,
            metadata: self
                .metadata
                .iter()
                .map(|(path, value)| (path.clone(), json::parse(value)))
                .collect::<HashMap<_, _>>(),
        }
    }
}

/// The first `=` outside of the path's escapes parts path and value: a key may have none itself.
fn parse_metadata(given: &str) -> Result<(String, serde_json::Value), String> {
    let (path, value) =
        given.split_once('=').ok_or("must be PATH=JSON, such as model.name=\"gpt-4o\"")?;
    if parse_path(path).is_none() {
        return Err(format!("the path {path:?} is empty or ends in a single \\"));
    }
    let value =
        serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
    Ok((path.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Flags {
        #[command(flatten)]
        filter: FilterArgs,
    }

    #[test]
    fn every_flag_reaches_the_filter() {
        let flags = Flags::parse_from([
            "list",
            "--app-id",
            "1",
            "--app-id",
            "-2",
            "--app-name",
            "a",
            "--app",
            "b",
            "--sub-app-id",
            "3",
            "--user",
            "u",
            "--status",
            "failed,CANCELLED",
            "--since",
            "1s",
            "--until",
            "1970-01-01T00:00:09Z",
            "--min-duration",
            "2s",
            "--metadata",
            "a.b=3",
            "--metadata",
            "c=plain text",
        ]);
        let filter = flags.filter.resolve(Now { micros: 5_000_000 });
        assert_eq!(filter.app_ids, [1, -2]);
        assert_eq!(filter.app_names, ["a", "b"]);
        assert_eq!(filter.sub_app_ids, [3]);
        assert_eq!(filter.user_ids, ["u"]);
        assert_eq!(filter.statuses, [3, 4]);
        assert_eq!(filter.started_at_from.map(|at| at.seconds), Some(4));
        assert_eq!(filter.started_at_until.map(|at| at.seconds), Some(9));
        assert_eq!(filter.min_duration_ms, Some(2000));
        assert_eq!(filter.metadata["a.b"], json::parse(&json!(3)));
        assert_eq!(filter.metadata["c"], json::parse(&json!("plain text")));
        let none = FilterArgs::default().resolve(Now { micros: 0 });
        assert_eq!(none, proto::ExecutionFilter::default());
    }

    #[test]
    fn metadata_needs_a_path_and_takes_json_or_text() {
        assert_eq!(parse_metadata("a=true"), Ok(("a".to_owned(), json!(true))));
        assert_eq!(parse_metadata("a=x=y"), Ok(("a".to_owned(), json!("x=y"))));
        assert_eq!(parse_metadata(r#"a\.b={"c":1}"#), Ok((r"a\.b".to_owned(), json!({"c": 1}))));
        assert!(parse_metadata("a").is_err());
        assert!(parse_metadata("=1").is_err());
        assert!(parse_metadata("a\\=1").is_err());
    }
}

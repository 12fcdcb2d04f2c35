//! Subscriptions and deliveries, for people and for programs.

use serde_json::{Value as Json, json};

use crate::cli::exit::Result;
use crate::cli::output::{Output, message};
use crate::cli::{json, table, text};
use crate::proto;

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', "-")
}

pub fn event_word(event: i32) -> String {
    let event = proto::NotificationEvent::try_from(event).unwrap_or_default();
    word(event.as_str_name(), "NOTIFICATION_EVENT_")
}

pub fn state_word(state: proto::DeliveryState) -> String {
    word(state.as_str_name(), "DELIVERY_STATE_")
}

/// The secret alone on stdout, so that it can be written into a file.
pub fn show_secret(output: &Output, made: &proto::Subscription, secret: &str) -> Result<()> {
    if output.is_json() {
        return output.json(&json!({ "subscription": subscription(made), "secret": secret }));
    }
    message(&format!(
        "subscription {} ({}); its secret is shown only now:",
        text::one_line(&made.subscription_id),
        text::one_line(&made.name)
    ));
    output.line(secret)
}

fn filter(filter: &proto::ExecutionFilter) -> Json {
    let statuses = filter
        .statuses
        .iter()
        .map(|status| proto::ExecutionStatus::try_from(*status).unwrap_or_default().as_str_name());
    let metadata: serde_json::Map<String, Json> = filter
        .metadata
        .iter()
        .map(|(path, value)| (path.clone(), json::value(Some(value))))
        .collect();
    json!({
        "app_ids": filter.app_ids,
        "app_names": filter.app_names,
        "sub_app_ids": filter.sub_app_ids,
        "user_ids": filter.user_ids,
        "statuses": statuses.collect::<Vec<_>>(),
        "started_at_from": json::time(filter.started_at_from.as_ref()),
        "started_at_until": json::time(filter.started_at_until.as_ref()),
        "min_duration_ms": filter.min_duration_ms,
        "metadata": metadata,
    })
}

fn subscription(one: &proto::Subscription) -> Json {
    let state = one.state.clone().unwrap_or_default();
    let gap = |gap: &proto::NotificationGap| json!({ "since": json::time(gap.since.as_ref()), "until": json::time(gap.until.as_ref()) });
    let mut headers: Vec<&String> = one.headers.keys().collect();
    headers.sort();
    let events = one
        .events
        .iter()
        .map(|event| proto::NotificationEvent::try_from(*event).unwrap_or_default().as_str_name());
    json!({
        "subscription_id": one.subscription_id,
        "name": one.name,
        "enabled": one.enabled,
        "filter": one.filter.as_ref().map(filter),
        "events": events.collect::<Vec<_>>(),
        "url": one.url,
        "headers": headers,
        "format": one.format().as_str_name(),
        "include_metadata": one.include_metadata,
        "revision": one.revision,
        "created_at": json::time(one.created_at.as_ref()),
        "created_by": one.created_by,
        "updated_at": json::time(one.updated_at.as_ref()),
        "state": {
            "pending": state.pending,
            "dead": state.dead,
            "gaps": state.gaps.iter().map(gap).collect::<Vec<_>>(),
            "lag_seconds": state.lag_seconds,
            "last_status": state.last_status,
            "disabled_reason": state.disabled_reason,
        },
    })
}

/// What it is just now, in a word.
fn how(one: &proto::Subscription) -> table::Content {
    let reason = one.state.as_ref().and_then(|state| state.disabled_reason.as_deref());
    match (one.enabled, reason) {
        (true, _) => table::coloured("enabled", Some(table::Colour::Good)),
        (false, Some(reason)) => {
            table::coloured(&format!("disabled: {reason}"), Some(table::Colour::Bad))
        }
        (false, None) => "disabled".into(),
    }
}

fn told_of(one: &proto::Subscription) -> String {
    one.events.iter().map(|event| event_word(*event)).collect::<Vec<_>>().join(", ")
}

pub fn list(all: &[proto::Subscription], output: &Output) -> Result<()> {
    const COLUMNS: [table::Column; 7] = [
        table::Column::whole("SUBSCRIPTION"),
        table::Column::cut("NAME", 10),
        table::Column::whole("STATE"),
        table::Column::whole("PENDING").right(),
        table::Column::whole("DEAD").right(),
        table::Column::whole("LAST STATUS").right().spare(1),
        table::Column::cut("EVENTS", 16).spare(2),
    ];
    if output.is_json() {
        return all.iter().try_for_each(|one| output.json(&subscription(one)));
    }
    let rows = all.iter().map(|one| {
        let state = one.state.clone().unwrap_or_default();
        vec![
            text::one_line(&one.subscription_id).into(),
            text::one_line(&one.name).into(),
            how(one),
            state.pending.to_string().into(),
            state.dead.to_string().into(),
            state.last_status.map(|status| status.to_string()).unwrap_or_default().into(),
            told_of(one).into(),
        ]
    });
    for line in table::render(output, &COLUMNS, rows.collect()) {
        output.line(&line)?;
    }
    Ok(())
}

pub fn show(one: &proto::Subscription, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.json(&subscription(one));
    }
    let state = one.state.clone().unwrap_or_default();
    let mut headers: Vec<String> = one.headers.keys().cloned().collect();
    headers.sort();
    let gaps = state.gaps.iter().map(|gap| {
        format!("{} to {}", text::time(gap.since.as_ref()), text::time(gap.until.as_ref()))
    });
    let chosen = one.filter.clone().unwrap_or_default();
    let chosen = match chosen == proto::ExecutionFilter::default() {
        true => "all that its maker may edit".to_owned(),
        false => filter(&chosen).to_string(),
    };
    let fields = vec![
        ("subscription", one.subscription_id.clone().into()),
        ("name", one.name.clone().into()),
        ("state", how(one)),
        ("url", one.url.clone().into()),
        ("headers", headers.join(", ").into()),
        ("format", word(one.format().as_str_name(), "NOTIFICATION_FORMAT_").into()),
        ("metadata", if one.include_metadata { "sent along" } else { "not sent" }.into()),
        ("events", told_of(one).into()),
        ("executions", chosen.into()),
        ("revision", one.revision.to_string().into()),
        ("created", text::time(one.created_at.as_ref()).into()),
        ("by", one.created_by.clone().into()),
        ("pending", state.pending.to_string().into()),
        ("dead", state.dead.to_string().into()),
        ("lag", format!("{:.1} s", state.lag_seconds).into()),
        ("last status", state.last_status.map(|s| s.to_string()).unwrap_or_default().into()),
        ("gaps", gaps.collect::<Vec<_>>().join("; ").into()),
    ];
    for line in table::record(output, fields) {
        output.line(&line)?;
    }
    Ok(())
}

pub fn delivery(one: &proto::Delivery) -> Json {
    json!({
        "delivery_id": one.delivery_id,
        "subscription_id": one.subscription_id,
        "execution_id": one.execution_id,
        "step_id": one.step_id,
        "event": one.event().as_str_name(),
        "occurred_at": json::time(one.occurred_at.as_ref()),
        "state": one.state().as_str_name(),
        "attempts": one.attempts,
        "created_at": json::time(one.created_at.as_ref()),
        "last_attempt_at": json::time(one.last_attempt_at.as_ref()),
        "next_attempt_at": json::time(one.next_attempt_at.as_ref()),
        "delivered_at": json::time(one.delivered_at.as_ref()),
        "last_status": one.last_status,
        "last_failure": one.last_failure,
    })
}

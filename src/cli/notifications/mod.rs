//! `stepwell notifications`: who is told what happens, and what became of telling them.

mod show;

use std::collections::HashMap;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::filter::FilterArgs;
use super::output::{Output, message};
use super::{table, text};
use crate::clock::Clock;
use crate::proto;
use show::{delivery, event_word, list, show, show_secret, state_word};

/// Records asked for at a time.
const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all subscriptions, or show one.
    List(List),
    /// Make a subscription, and show its secret. It is shown only now.
    Add(Box<Add>),
    /// Change a subscription. What is not given stays as it is.
    Edit(Box<Edit>),
    /// Delete subscriptions with their deliveries.
    Rm(Remove),
    /// Send a test notification, and say what the receiver answered. Exit code 1: it did not take it.
    Test(One),
    /// List the deliveries of a subscription, the latest first.
    Deliveries(Deliveries),
    /// Have a delivery, or all dead deliveries of a subscription, tried again under the same id.
    Redeliver(Redeliver),
}

/// What happened, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Event {
    ExecutionStarted,
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionCancelled,
    ExecutionHeartbeatTimeout,
    ExecutionRevived,
    ExecutionCancelRequested,
    StepFailed,
    StepRetried,
}

impl From<Event> for proto::NotificationEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::ExecutionStarted => proto::NotificationEvent::ExecutionStarted,
            Event::ExecutionCompleted => proto::NotificationEvent::ExecutionCompleted,
            Event::ExecutionFailed => proto::NotificationEvent::ExecutionFailed,
            Event::ExecutionCancelled => proto::NotificationEvent::ExecutionCancelled,
            Event::ExecutionHeartbeatTimeout => proto::NotificationEvent::ExecutionHeartbeatTimeout,
            Event::ExecutionRevived => proto::NotificationEvent::ExecutionRevived,
            Event::ExecutionCancelRequested => proto::NotificationEvent::ExecutionCancelRequested,
            Event::StepFailed => proto::NotificationEvent::StepFailed,
            Event::StepRetried => proto::NotificationEvent::StepRetried,
        }
    }
}

/// How a notification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Cloudevents,
    Slack,
}

impl From<Format> for proto::NotificationFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Cloudevents => proto::NotificationFormat::Cloudevents,
            Format::Slack => proto::NotificationFormat::Slack,
        }
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    Pending,
    Delivered,
    Dead,
}

impl From<State> for proto::DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => proto::DeliveryState::Pending,
            State::Delivered => proto::DeliveryState::Delivered,
            State::Dead => proto::DeliveryState::Dead,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only this one, with all there is to know.
    subscription_id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Add {
    /// What people call it.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Where notifications are sent: an https URL.
    #[arg(long, value_name = "URL")]
    url: String,
    /// What it is told of; may be repeated, or several separated by commas.
    #[arg(
        long,
        value_enum,
        value_name = "EVENT",
        value_delimiter = ',',
        required = true,
        ignore_case = true
    )]
    event: Vec<Event>,
    /// A header that is sent along, as `Name: value`; may be repeated. @FILE reads the value from a file.
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// How notifications are written.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "cloudevents")]
    format: Format,
    /// Send the metadata of executions and steps along.
    #[arg(long)]
    include_metadata: bool,
    /// Tell it nothing yet.
    #[arg(long)]
    disabled: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, clap::Args)]
pub struct Edit {
    /// Which subscription.
    subscription_id: String,
    /// What people call it.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where notifications are sent.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// What it is told of, instead of that before.
    #[arg(long, value_enum, value_name = "EVENT", value_delimiter = ',', ignore_case = true)]
    event: Vec<Event>,
    /// A header to set, as `Name: value`, or to remove, as `Name:`; may be repeated.
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// How notifications are written.
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Whether the metadata of executions and steps is sent along.
    #[arg(long, value_name = "BOOL")]
    include_metadata: Option<bool>,
    /// Tell it what happens from now on.
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Tell it nothing.
    #[arg(long)]
    disable: bool,
    /// Give it another secret, and show it. For 24 hours the one before signs too.
    #[arg(long)]
    rotate_secret: bool,
    /// Change it only if this still is its revision.
    #[arg(long, value_name = "REVISION")]
    expected_revision: Option<i64>,
    /// Tell it of all executions again, whatever it was told of.
    #[arg(long)]
    any_execution: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, clap::Args)]
pub struct One {
    /// Which subscription.
    subscription_id: String,
}

#[derive(Debug, clap::Args)]
pub struct Remove {
    /// Which subscriptions.
    #[arg(required = true)]
    subscription_id: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Deliveries {
    /// Of which subscription.
    subscription_id: String,
    /// Only those in this state; may be repeated, or several separated by commas.
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',', ignore_case = true)]
    state: Vec<State>,
    /// How many at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Redeliver {
    /// This delivery.
    delivery_id: Option<String>,
    /// All dead deliveries of this subscription.
    #[arg(long, value_name = "SUBSCRIPTION")]
    dead_of: Option<String>,
}

/// `Name: value`, or `Name: @FILE`.
fn parse_header(given: &str) -> std::result::Result<(String, String), String> {
    let (name, value) =
        given.split_once(':').ok_or("must be NAME: VALUE, such as Authorization: Bearer abc")?;
    let value = value.trim();
    let value = match value.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .map_err(|error| format!("{path} cannot be read: {error}"))?,
        None => value.to_owned(),
    };
    Ok((name.trim().to_owned(), value))
}

fn events(events: Vec<Event>) -> Vec<i32> {
    events.into_iter().map(|event| proto::NotificationEvent::from(event).into()).collect()
}

pub async fn run(
    command: Command,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut client = connection.notifications();
    match command {
        Command::List(List { subscription_id: Some(subscription_id) }) => {
            let request = proto::GetSubscriptionRequest { subscription_id };
            let found = client.get_subscription(call(request)).await?.into_inner().subscription;
            show(&found.unwrap_or_default(), output)?;
        }
        Command::List(_) => {
            let mut all = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = proto::ListSubscriptionsRequest { page_size: PAGE, page_token };
                let page = client.list_subscriptions(call(request)).await?.into_inner();
                all.extend(page.subscriptions);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            list(&all, output)?;
        }
        Command::Add(add) => {
            let request = proto::CreateSubscriptionRequest {
                name: add.name,
                filter: Some(add.filter.resolve(clock.now())),
                events: events(add.event),
                url: add.url,
                headers: add.header.into_iter().collect(),
                format: proto::NotificationFormat::from(add.format).into(),
                include_metadata: add.include_metadata,
                enabled: Some(!add.disabled),
            };
            let made = client.create_subscription(call(request)).await?.into_inner();
            show_secret(output, &made.subscription.unwrap_or_default(), &made.secret)?;
        }
        Command::Edit(edit) => return self::edit(*edit, connection, output, clock).await,
        Command::Rm(Remove { subscription_id }) => {
            for subscription_id in subscription_id {
                let shown = text::one_line(&subscription_id);
                let request = proto::DeleteSubscriptionRequest { subscription_id };
                client.delete_subscription(call(request)).await?;
                match output.is_json() {
                    true => output.json(&json!({ "deleted": shown }))?,
                    false => message(&format!("{shown} is deleted")),
                }
            }
        }
        Command::Test(One { subscription_id }) => {
            let request = proto::TestSubscriptionRequest { subscription_id };
            let sent = client.test_subscription(call(request)).await?.into_inner();
            if output.is_json() {
                output.json(&json!({
                    "delivered": sent.delivered, "status": sent.status, "failure": sent.failure,
                }))?;
            } else {
                let status = sent.status.map(|status| format!(" (HTTP status {status})"));
                let status = status.unwrap_or_default();
                match &sent.failure {
                    None => message(&format!("delivered{status}")),
                    Some(failure) => {
                        message(&format!("not delivered: {}{status}", text::one_line(failure)));
                    }
                }
            }
            return Ok(Exit::refused_if(!sent.delivered));
        }
        Command::Deliveries(args) => deliveries(args, connection, output).await?,
        Command::Redeliver(Redeliver { delivery_id, dead_of }) => {
            use proto::redeliver_request::Target;
            let target = match (delivery_id, dead_of) {
                (Some(id), _) => Some(Target::DeliveryId(id)),
                (None, Some(id)) => Some(Target::SubscriptionId(id)),
                (None, None) => None,
            };
            let request = proto::RedeliverRequest { target };
            let done = client.redeliver(call(request)).await?.into_inner().redelivered;
            match output.is_json() {
                true => output.json(&json!({ "redelivered": done }))?,
                false => {
                    let count = u64::try_from(done).unwrap_or(0);
                    let shown = text::count(count, "delivery is", "deliveries are");
                    message(&format!("{shown} tried again"));
                }
            }
        }
    }
    Ok(Exit::Done)
}

async fn edit(
    edit: Edit,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut client = connection.notifications();
    let filter = edit.filter.resolve(clock.now());
    let is_filtered = filter != proto::ExecutionFilter::default();
    if edit.any_execution && is_filtered {
        let why = "--any-execution cannot be used with flags that choose executions";
        return Err(Failure::CouldNotStart(why.to_owned()));
    }
    let enabled = match (edit.enable, edit.disable) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let headers: HashMap<String, String> = edit.header.into_iter().collect();
    let format = edit.format.map_or(proto::NotificationFormat::Unspecified, Into::into);
    let request = proto::UpdateSubscriptionRequest {
        subscription_id: edit.subscription_id.clone(),
        name: edit.name,
        enabled,
        filter: (is_filtered || edit.any_execution).then_some(filter),
        events: events(edit.event),
        url: edit.url,
        headers,
        format: format.into(),
        include_metadata: edit.include_metadata,
        expected_revision: edit.expected_revision,
    };
    let changed = client.update_subscription(call(request)).await?.into_inner();
    if !edit.rotate_secret {
        show(&changed.subscription.unwrap_or_default(), output)?;
        return Ok(Exit::Done);
    }
    let request = proto::RotateSecretRequest { subscription_id: edit.subscription_id };
    let rotated = client.rotate_secret(call(request)).await?.into_inner();
    show_secret(output, &rotated.subscription.unwrap_or_default(), &rotated.secret)?;
    Ok(Exit::Done)
}

async fn deliveries(args: Deliveries, connection: &Connection, output: &Output) -> Result<()> {
    const COLUMNS: [table::Column; 7] = [
        table::Column::whole("DELIVERY"),
        table::Column::whole("EVENT"),
        table::Column::cut("EXECUTION", 12),
        table::Column::whole("STATE"),
        table::Column::whole("TRIES").right(),
        table::Column::whole("LAST ANSWER"),
        table::Column::whole("OCCURRED").spare(1),
    ];
    let mut client = connection.notifications();
    let states: Vec<i32> =
        args.state.into_iter().map(|state| proto::DeliveryState::from(state).into()).collect();
    let mut all: Vec<proto::Delivery> = Vec::new();
    let mut page_token = String::new();
    while all.len() < args.limit {
        let left = i32::try_from(args.limit - all.len()).unwrap_or(PAGE).min(PAGE);
        let request = proto::ListDeliveriesRequest {
            subscription_id: args.subscription_id.clone(),
            states: states.clone(),
            page_size: left,
            page_token,
        };
        let page = client.list_deliveries(call(request)).await?.into_inner();
        all.extend(page.deliveries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.is_json() {
        return all.iter().try_for_each(|one| output.json(&delivery(one)));
    }
    let rows = all.iter().map(|one| {
        let status = one.last_status.map(|status| status.to_string());
        let answer = status.or_else(|| one.last_failure.clone()).unwrap_or_default();
        let colour = match one.state() {
            proto::DeliveryState::Delivered => Some(table::Colour::Good),
            proto::DeliveryState::Dead => Some(table::Colour::Bad),
            _ => None,
        };
        vec![
            text::one_line(&one.delivery_id).into(),
            event_word(one.event).into(),
            text::one_line(&one.execution_id).into(),
            table::coloured(&state_word(one.state()), colour),
            one.attempts.to_string().into(),
            text::one_line(&answer).into(),
            text::time(one.occurred_at.as_ref()).into(),
        ]
    });
    for line in table::render(output, &COLUMNS, rows.collect()) {
        output.line(&line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value() {
        let parsed = |given| parse_header(given);
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parsed("Authorization: Bearer a:b"), pair("Authorization", "Bearer a:b"));
        assert_eq!(parsed("X:"), pair("X", ""));
        assert!(parsed("x").is_err() && parsed("x: @/no/such/file").is_err());
    }

    #[test]
    fn every_event_and_state_has_its_word() {
        for event in Event::value_variants() {
            let number = proto::NotificationEvent::from(*event).into();
            let word = event.to_possible_value().expect("none is hidden");
            assert_eq!(event_word(number), word.get_name());
        }
        assert_eq!(Event::value_variants().len(), 9);
        assert_eq!(state_word(proto::DeliveryState::Dead), "dead");
    }
}

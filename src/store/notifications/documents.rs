//! Subscriptions, what they were told, and deliveries as documents: both stores keep the same ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bson::raw::{RawBsonRef, RawDocument};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};

use super::{Delivery, Gap, Hidden, Maker, Progress, Secret, Subscription, Told, ToldOf, Waiting};
use crate::domain::access::Grant;
use crate::domain::notification::{
    DeliveryState, Event, ExecutionTold, Format, Identity, Status, StepTold,
};
use crate::domain::query::ExecutionFilter;
use crate::domain::{ExecutionStatus, Millis};
use crate::store::Cursor;
use crate::store::keys::grant;

fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

fn date(at: Millis) -> bson::DateTime {
    bson::DateTime::from_millis(at)
}

/// A document that is read, tolerantly.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a RawDocument);

impl<'a> Fields<'a> {
    fn get(self, name: &str) -> Option<RawBsonRef<'a>> {
        self.0.get(name).ok().flatten()
    }

    fn text(self, name: &str) -> Option<String> {
        self.get(name)?.as_str().map(str::to_owned)
    }

    fn long(self, name: &str) -> Option<i64> {
        match self.get(name)? {
            RawBsonRef::Int32(number) => Some(i64::from(number)),
            RawBsonRef::Int64(number) => Some(number),
            _ => None,
        }
    }

    fn integer(self, name: &str) -> Option<i32> {
        self.long(name).and_then(|number| i32::try_from(number).ok())
    }

    fn flag(self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    fn date(self, name: &str) -> Option<Millis> {
        self.get(name)?.as_datetime().map(bson::DateTime::timestamp_millis)
    }

    fn bytes(self, name: &str) -> Option<&'a [u8]> {
        match self.get(name)? {
            RawBsonRef::Binary(binary) => Some(binary.bytes),
            _ => None,
        }
    }

    fn inner(self, name: &str) -> Option<Fields<'a>> {
        self.get(name)?.as_document().map(Fields)
    }

    fn list<T>(self, name: &str, each: impl Fn(RawBsonRef<'a>) -> Option<T>) -> Vec<T> {
        let list = self.get(name).and_then(RawBsonRef::as_array);
        list.into_iter().flatten().flatten().filter_map(each).collect()
    }
}

fn status_code(number: i64) -> Option<u16> {
    u16::try_from(number).ok()
}

pub fn identity(whose: &Identity) -> Document {
    doc! {
        "app_id": whose.app_id,
        "app_name": &whose.app_name,
        "sub_app_id": whose.sub_app_id,
        "sub_app_name": &whose.sub_app_name,
        "user_id": &whose.user_id,
        "started_at": whose.started_at.map(date),
    }
}

pub fn read_identity(raw: &RawDocument) -> Identity {
    let fields = Fields(raw);
    Identity {
        app_id: fields.integer("app_id"),
        app_name: fields.text("app_name").unwrap_or_default(),
        sub_app_id: fields.integer("sub_app_id"),
        sub_app_name: fields.text("sub_app_name"),
        user_id: fields.text("user_id"),
        started_at: fields.date("started_at"),
    }
}

fn filter(filter: &ExecutionFilter) -> Document {
    let ExecutionFilter {
        app_ids,
        app_names,
        sub_app_ids,
        user_ids,
        statuses,
        started_at_from,
        started_at_until,
        min_duration_ms,
        metadata,
        // Nobody stores one: it is that of whoever has made the subscription.
        scope: _,
    } = filter;
    let statuses: Vec<&str> = statuses.iter().map(|status| status.as_str()).collect();
    let metadata: Vec<Document> = metadata
        .iter()
        .map(|(path, value)| doc! { "path": path.clone(), "value": value.clone() })
        .collect();
    doc! {
        "app_ids": app_ids.clone(),
        "app_names": app_names.clone(),
        "sub_app_ids": sub_app_ids.clone(),
        "user_ids": user_ids.clone(),
        "statuses": statuses,
        "started_at_from": started_at_from.map(date),
        "started_at_until": started_at_until.map(date),
        "min_duration_ms": *min_duration_ms,
        "metadata": metadata,
    }
}

/// `None`: it says something that is not known here, and without that it would let through too much.
fn read_filter(fields: Fields<'_>) -> Option<ExecutionFilter> {
    let texts = |name| fields.list(name, |value| value.as_str().map(str::to_owned));
    let numbers = |name| fields.list(name, |value| value.as_i32());
    let words = texts("statuses");
    let statuses: Option<Vec<_>> = words.iter().map(|word| ExecutionStatus::parse(word)).collect();
    let paths = fields.list("metadata", |value| {
        let entry = Fields(value.as_document()?);
        let path = entry.list("path", |key| key.as_str().map(str::to_owned));
        Some((path, Bson::try_from(entry.get("value")?).ok()?))
    });
    Some(ExecutionFilter {
        app_ids: numbers("app_ids"),
        app_names: texts("app_names"),
        sub_app_ids: numbers("sub_app_ids"),
        user_ids: texts("user_ids"),
        statuses: statuses?,
        started_at_from: fields.date("started_at_from"),
        started_at_until: fields.date("started_at_until"),
        min_duration_ms: fields.long("min_duration_ms"),
        metadata: paths,
        scope: Default::default(),
    })
}

fn maker(maker: &Maker) -> Document {
    let grants: Vec<Document> = maker
        .grants
        .iter()
        .map(|grant| {
            let apps: Vec<String> = grant.apps.iter().map(ToString::to_string).collect();
            doc! { "role": grant.role.as_str(), "apps": apps, "reveal": grant.reveal }
        })
        .collect();
    doc! { "kind": &maker.kind, "id": &maker.id, "name": &maker.name, "grants": grants }
}

fn read_grant(value: RawBsonRef<'_>) -> Option<Grant> {
    let fields = Fields(value.as_document()?);
    let apps = fields.list("apps", |app| app.as_str().map(str::to_owned));
    let apps: Vec<&str> = apps.iter().map(String::as_str).collect();
    grant(&fields.text("role")?, &apps, fields.flag("reveal").unwrap_or(false))
}

fn read_maker(fields: Fields<'_>) -> Option<Maker> {
    Some(Maker {
        kind: fields.text("kind")?,
        id: fields.text("id")?,
        name: fields.text("name").unwrap_or_default(),
        grants: fields.list("grants", read_grant),
    })
}

fn read_secret(fields: Fields<'_>, name: &str) -> Option<Secret> {
    Some(Hidden(fields.bytes(name)?.try_into().ok()?))
}

/// A subscription without its id.
pub fn subscription(subscription: &Subscription) -> Document {
    let events: Vec<&str> = subscription.events.iter().map(|event| event.as_str()).collect();
    let headers: Vec<Document> = subscription
        .headers
        .iter()
        .map(|(name, value)| doc! { "name": name, "value": &value.0 })
        .collect();
    let previous = subscription
        .previous_secret
        .as_ref()
        .map(|(secret, until)| doc! { "secret": binary(&secret.0), "until": date(*until) });
    doc! {
        "name": &subscription.name,
        "enabled": subscription.enabled,
        "filter": filter(&subscription.filter),
        "events": events,
        "url": &subscription.url.0,
        "headers": headers,
        "format": subscription.format.as_str(),
        "include_metadata": subscription.include_metadata,
        "revision": subscription.revision,
        "created_at": date(subscription.created_at),
        "updated_at": date(subscription.updated_at),
        "maker": maker(&subscription.maker),
        "secret": binary(&subscription.secret.0),
        "previous_secret": previous,
        "disabled_reason": &subscription.disabled_reason,
    }
}

/// `None`: somebody else wrote it, and it is told nothing.
pub fn read_subscription(id: &str, raw: &RawDocument) -> Option<Subscription> {
    let fields = Fields(raw);
    let header = |value: RawBsonRef<'_>| {
        let fields = Fields(value.as_document()?);
        Some((fields.text("name")?, Hidden(fields.text("value")?)))
    };
    let previous = fields.inner("previous_secret");
    let previous =
        previous.and_then(|fields| Some((read_secret(fields, "secret")?, fields.date("until")?)));
    Some(Subscription {
        id: id.to_owned(),
        name: fields.text("name")?,
        enabled: fields.flag("enabled")?,
        filter: read_filter(fields.inner("filter")?)?,
        events: fields.list("events", |word| Event::parse(word.as_str()?)),
        url: Hidden(fields.text("url")?),
        headers: fields.list("headers", header),
        format: Format::parse(&fields.text("format")?)?,
        include_metadata: fields.flag("include_metadata").unwrap_or(false),
        revision: fields.long("revision")?,
        created_at: fields.date("created_at")?,
        updated_at: fields.date("updated_at").unwrap_or_default(),
        maker: read_maker(fields.inner("maker")?)?,
        secret: read_secret(fields, "secret")?,
        previous_secret: previous,
        disabled_reason: fields.text("disabled_reason"),
    })
}

pub fn gap(gap: &Gap) -> Document {
    doc! { "since": date(gap.since), "until": date(gap.until) }
}

pub fn progress(progress: &Progress) -> Document {
    let gaps: Vec<Document> = progress.gaps.iter().map(gap).collect();
    doc! {
        "cursor": progress.cursor.as_ref().map(|cursor| binary(&cursor.0)),
        "at": progress.at.map(date),
        "gaps": gaps,
        "last_status": progress.last_status.map(i32::from),
        "asked": progress.asked,
    }
}

pub fn read_progress(raw: &RawDocument) -> Progress {
    let fields = Fields(raw);
    let gap = |value: RawBsonRef<'_>| {
        let fields = Fields(value.as_document()?);
        Some(Gap { since: fields.date("since")?, until: fields.date("until")? })
    };
    Progress {
        cursor: fields.bytes("cursor").map(|bytes| Cursor(bytes.to_vec())),
        at: fields.date("at"),
        gaps: fields.list("gaps", gap),
        last_status: fields.long("last_status").and_then(status_code),
        asked: fields.long("asked").unwrap_or(0),
    }
}

/// What was told of a record, without its key.
pub fn told(told: &Told) -> Document {
    let mut document = doc! { "through": binary(&told.through.0), "at": date(told.at) };
    match &told.what {
        ToldOf::Execution { told, seen, whose } => {
            document.insert("status", told.status.map(Status::as_str));
            document.insert("cancel_requested", told.cancel_requested);
            document.insert("seen", *seen);
            document.insert("whose", identity(whose));
        }
        ToldOf::Step(told) => {
            document.insert("failed", told.failed);
            document.insert("retry_count", told.retry_count);
        }
    }
    document
}

/// `of_step`: whether the key is that of a step.
pub fn read_told(raw: &RawDocument, of_step: bool) -> Option<Told> {
    let fields = Fields(raw);
    let what = match of_step {
        true => ToldOf::Step(StepTold {
            failed: fields.flag("failed").unwrap_or(false),
            retry_count: fields.integer("retry_count").unwrap_or(0),
        }),
        false => ToldOf::Execution {
            told: ExecutionTold {
                status: fields.text("status").and_then(|word| Status::parse(&word)),
                cancel_requested: fields.flag("cancel_requested").unwrap_or(false),
            },
            seen: fields.flag("seen").unwrap_or(false),
            whose: fields
                .get("whose")
                .and_then(RawBsonRef::as_document)
                .map(read_identity)
                .unwrap_or_default(),
        },
    };
    let through = Cursor(fields.bytes("through")?.to_vec());
    Some(Told { through, at: fields.date("at").unwrap_or_default(), what })
}

/// A delivery without its id and what it tells.
pub fn delivery(delivery: &Delivery) -> Document {
    doc! {
        "subscription_id": &delivery.subscription,
        "number": delivery.number,
        "execution_id": &delivery.execution_id,
        "step_id": delivery.step_id,
        "event": delivery.event.as_str(),
        "at": date(delivery.at),
        "created_at": date(delivery.created_at),
        "state": delivery.state.as_str(),
        "tries": delivery.tries,
        "next_at": date(delivery.next_at),
        "last_try_at": delivery.last_try_at.map(date),
        "last_status": delivery.last_status.map(i32::from),
        "last_failure": &delivery.last_failure,
        "delivered_at": delivery.delivered_at.map(date),
        "whose": identity(&delivery.whose),
    }
}

pub fn read_delivery(id: &str, raw: &RawDocument, data: String) -> Option<Delivery> {
    let fields = Fields(raw);
    Some(Delivery {
        id: id.to_owned(),
        subscription: fields.text("subscription_id")?,
        number: fields.long("number")?,
        execution_id: fields.text("execution_id")?,
        step_id: fields.integer("step_id"),
        event: Event::parse(&fields.text("event")?)?,
        at: fields.date("at")?,
        created_at: fields.date("created_at")?,
        state: DeliveryState::parse(&fields.text("state")?)?,
        tries: fields.integer("tries")?,
        next_at: fields.date("next_at")?,
        last_try_at: fields.date("last_try_at"),
        last_status: fields.long("last_status").and_then(status_code),
        last_failure: fields.text("last_failure"),
        delivered_at: fields.date("delivered_at"),
        whose: fields
            .get("whose")
            .and_then(RawBsonRef::as_document)
            .map(read_identity)
            .unwrap_or_default(),
        data,
    })
}

pub fn read_waiting(id: &str, raw: &RawDocument) -> Option<Waiting> {
    let fields = Fields(raw);
    Some(Waiting {
        id: id.to_owned(),
        number: fields.long("number")?,
        execution_id: fields.text("execution_id")?,
        tries: fields.integer("tries")?,
        next_at: fields.date("next_at")?,
    })
}

/// The text form of a secret: as receivers are told it.
pub fn secret_text(secret: &Secret) -> String {
    format!("whsec_{}", STANDARD.encode(secret.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::Role;

    fn raw(document: &Document) -> bson::RawDocumentBuf {
        bson::RawDocumentBuf::try_from(document).unwrap()
    }

    fn whose() -> Identity {
        Identity {
            app_id: Some(7),
            app_name: "a".to_owned(),
            sub_app_id: None,
            sub_app_name: Some("p".to_owned()),
            user_id: None,
            started_at: Some(5),
        }
    }

    #[test]
    fn a_subscription_comes_back_as_it_was_written_and_prints_no_secret() {
        let written = Subscription {
            id: "s".to_owned(),
            name: "n".to_owned(),
            enabled: true,
            filter: ExecutionFilter {
                app_ids: vec![1],
                app_names: vec!["a".to_owned()],
                sub_app_ids: vec![2],
                user_ids: vec!["u".to_owned()],
                statuses: vec![ExecutionStatus::Failed],
                started_at_from: Some(1),
                started_at_until: Some(2),
                min_duration_ms: Some(3),
                metadata: vec![(vec!["a.b".to_owned(), "c".to_owned()], Bson::Int32(4))],
                scope: Default::default(),
            },
            events: Event::ALL.to_vec(),
            url: Hidden("https://example.com/hidden-path".to_owned()),
            headers: vec![("authorization".to_owned(), Hidden("hidden-header".to_owned()))],
            format: Format::Slack,
            include_metadata: true,
            revision: 9,
            created_at: 10,
            updated_at: 11,
            maker: Maker {
                kind: "key".to_owned(),
                id: "i".to_owned(),
                name: "m".to_owned(),
                grants: vec![Grant::everywhere(Role::Editor, true)],
            },
            secret: Hidden([7; 32]),
            previous_secret: Some((Hidden([8; 32]), 12)),
            disabled_reason: Some("GONE".to_owned()),
        };
        let stored = raw(&subscription(&written));
        assert_eq!(read_subscription("s", &stored), Some(written.clone()));
        let printed = format!("{written:?}");
        assert!(!printed.contains("hidden-") && !printed.contains("7, 7"), "{printed}");
        assert_eq!(secret_text(&written.secret).len(), "whsec_".len() + 44);
    }

    #[test]
    fn what_was_told_and_how_far_it_is_come_back() {
        let cursor = Cursor(vec![1, 2]);
        let execution = ToldOf::Execution {
            told: ExecutionTold { status: Some(Status::Silent), cancel_requested: true },
            seen: true,
            whose: whose(),
        };
        let step = ToldOf::Step(StepTold { failed: true, retry_count: 3 });
        for (what, of_step) in [(execution, false), (step, true)] {
            let written = Told { through: cursor.clone(), at: 4, what };
            assert_eq!(read_told(&raw(&told(&written)), of_step), Some(written));
        }
        let written = Progress {
            cursor: Some(cursor),
            at: Some(1),
            gaps: vec![Gap { since: 2, until: 3 }],
            last_status: Some(204),
            asked: 5,
        };
        assert_eq!(read_progress(&raw(&progress(&written))), written);
        assert_eq!(read_progress(&raw(&progress(&Progress::default()))), Progress::default());
        let written = Delivery {
            id: "d".to_owned(),
            subscription: "s".to_owned(),
            number: 1,
            execution_id: "e".to_owned(),
            step_id: Some(0),
            event: Event::StepRetried,
            at: 2,
            created_at: 3,
            state: DeliveryState::Dead,
            tries: 4,
            next_at: 5,
            last_try_at: Some(6),
            last_status: Some(500),
            last_failure: Some("status".to_owned()),
            delivered_at: None,
            whose: whose(),
            data: "{}".to_owned(),
        };
        let stored = raw(&delivery(&written));
        assert_eq!(read_delivery("d", &stored, "{}".to_owned()), Some(written.clone()));
        assert_eq!(read_waiting("d", &stored), Some(Waiting::of(&written)));
    }
}

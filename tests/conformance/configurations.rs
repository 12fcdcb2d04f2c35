//! Configurations: published, switched, compared, planned from, and put as they are; and the look at the indexes.

use std::collections::BTreeSet;

use ingest_request::Write as W;
use ingest_response::Result as R;
use prost::Message as _;
use prost_types::value::Kind as JsonKind;
use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::values::*;

/// A version of part 2 of app 1.
fn numbered(version: &str, configuration: serde_json::Value) -> Configuration {
    Configuration {
        app_id: Some(1),
        app_name: "app".into(),
        sub_app_id: Some(2),
        sub_app_name: Some("part".into()),
        version: version.into(),
        configuration: meta(configuration),
        created_by: Some("me".into()),
        ..Default::default()
    }
}

/// A version of an app without a number.
fn nameless(app_name: &str, version: &str) -> Configuration {
    Configuration {
        app_name: app_name.into(),
        version: version.into(),
        configuration: meta(json!({ "of": app_name })),
        ..Default::default()
    }
}

fn publish(configuration: Configuration, activate: bool) -> PublishConfigurationRequest {
    PublishConfigurationRequest { configuration: Some(configuration), activate }
}

/// Asks for a version of part 2 of app 1, or for the active one.
fn get(version: Option<&str>) -> GetConfigurationRequest {
    GetConfigurationRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        version: version.map(Into::into),
        ..Default::default()
    }
}

fn activate(version: &str) -> ActivateConfigurationRequest {
    ActivateConfigurationRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        version: version.into(),
        ..Default::default()
    }
}

/// Asks for the history of part 2 of app 1.
fn history() -> ListConfigurationsRequest {
    ListConfigurationsRequest { app_id: Some(1), sub_app_id: Some(2), ..Default::default() }
}

async fn active_versions(s: &Client) -> Vec<String> {
    let page = s.list_configurations(history()).await;
    assert_eq!(page.next_page_token, "");
    let active = page.configurations.into_iter().filter(|record| record.active);
    active.map(|record| record.version).collect()
}

pub async fn a_published_version_is_kept_whole(b: Backend) {
    let s = b.serve().await;
    let sent = Configuration {
        // The server's own, whatever a client says.
        active: true,
        created_at: Some(time(1)),
        ..numbered(
            "1.0",
            json!({
                "steps": [{ "id": 1, "name": "a" }, { "id": "b", "depends_on": [1] }],
                "settings": { "timeout_seconds": 30, "$odd.key": [null, 1.5, true] },
                "great": 9_007_199_254_740_992_i64,
            }),
        )
    };
    let before = wall_clock_ms();
    let stored = s.publish_configuration(publish(sent.clone(), false)).await;
    let after = wall_clock_ms();
    let at = millis(&stored.created_at).expect("the server fills it");
    assert!((before..=after).contains(&at), "{before} {at} {after}");
    let expected = Configuration { active: false, created_at: stored.created_at, ..sent };
    assert_eq!(stored, expected);
    assert_eq!(s.get_configuration(get(Some("1.0"))).await, stored);

    let bare = Configuration { app_name: "bare".into(), version: "v".into(), ..Default::default() };
    let stored = s.publish_configuration(publish(bare, true)).await;
    assert!(stored.active);
    assert_eq!(plain_meta(&stored.configuration), json!({}));
    assert_eq!((stored.app_id, stored.sub_app_id), (None, None));
    assert_eq!((stored.sub_app_name, stored.created_by), (None, None));
}

pub async fn the_same_content_again_is_the_stored_record(b: Backend) {
    let s = b.serve().await;
    let first = s.publish_configuration(publish(numbered("1", json!({ "a": 1 })), false)).await;
    let again = publish(numbered("1", json!({ "a": 1.0 })), false);
    assert_eq!(s.publish_configuration(again).await, first);
    // Activating is a wish of its own.
    let again = publish(numbered("1", json!({ "a": 1 })), true);
    let activated = s.publish_configuration(again.clone()).await;
    assert_eq!(activated, Configuration { active: true, ..first });
    assert_eq!(s.publish_configuration(again.clone()).await, activated);
    // Sent once more after another version became active it changes nothing: its answer may have been lost.
    s.publish_configuration(publish(numbered("2", json!({})), true)).await;
    let late = s.publish_configuration(again).await;
    assert_eq!(late, Configuration { active: false, ..activated.clone() });
    assert_eq!(active_versions(&s).await, ["2"]);
    s.activate_configuration(activate("1")).await;
    // Without it nothing is taken back.
    let again = publish(numbered("1", json!({ "a": 1 })), false);
    assert_eq!(s.publish_configuration(again).await, activated);

    let same = numbered("1", json!({ "a": 1 }));
    for other in [
        numbered("1", json!({ "a": 2 })),
        numbered("1", json!({ "a": 1, "b": null })),
        Configuration { app_name: "other".into(), ..same.clone() },
        Configuration { sub_app_name: None, ..same.clone() },
        Configuration { created_by: Some("you".into()), ..same.clone() },
    ] {
        for activate in [false, true] {
            let answer = s.try_publish_configuration(publish(other.clone(), activate)).await;
            let details = refused(answer, Code::AlreadyExists, "CONFIGURATION_ALREADY_EXISTS");
            let resource = details.resource_info().expect("what exists");
            assert_eq!(resource.resource_name, "app 1/2/1");
        }
    }
    assert_eq!(s.get_configuration(get(Some("1"))).await, activated);
}

pub async fn racing_publishes_of_one_version_have_one_winner(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..3 {
        let version = format!("v{round}");
        let answers = (0..16).map(|n| {
            let client = if n % 2 == 0 { one.clone() } else { two.clone() };
            let request = publish(numbered(&version, json!({ "n": n / 2 })), n % 3 == 0);
            async move { client.try_publish_configuration(request).await }
        });
        let answers = futures::future::join_all(answers).await;
        let stored = one.get_configuration(get(Some(&version))).await;
        for answer in answers {
            match answer {
                Ok(answer) => assert_eq!(answer.configuration, stored.configuration),
                Err(status) => {
                    check_refusal(&status, Code::AlreadyExists, "CONFIGURATION_ALREADY_EXISTS");
                }
            }
        }
        let page = one.list_configurations(history()).await;
        assert_eq!(page.configurations.len(), round + 1);
    }
}

pub async fn one_version_is_active_and_a_switch_is_one_step(b: Backend) {
    let s = b.serve().await;
    let none = s.try_get_configuration(get(None)).await;
    let details = refused(none, Code::NotFound, "CONFIGURATION_NOT_FOUND");
    assert_eq!(details.resource_info().expect("what").resource_type, "configuration");
    s.publish_configuration(publish(numbered("1", json!({})), true)).await;
    s.publish_configuration(publish(numbered("2", json!({})), false)).await;
    s.publish_configuration(publish(numbered("3", json!({})), true)).await;
    // Another part, and the app itself, have active ones of their own.
    let apart = Configuration { sub_app_id: Some(3), ..numbered("1", json!({})) };
    s.publish_configuration(publish(apart, true)).await;
    let whole = Configuration { sub_app_id: None, ..numbered("1", json!({})) };
    s.publish_configuration(publish(whole, true)).await;
    assert_eq!(active_versions(&s).await, ["3"]);
    let activated = s.activate_configuration(activate("2")).await;
    assert!(activated.active);
    assert_eq!(s.get_configuration(get(None)).await, activated);
    assert_eq!(s.activate_configuration(activate("2")).await, activated);
    assert_eq!(active_versions(&s).await, ["2"]);
    assert_eq!(s.get_configuration(get(Some("3"))).await.version, "3");
    for version in ["1", "3"] {
        assert!(!s.get_configuration(get(Some(version))).await.active, "{version}");
    }
    let all = ListConfigurationsRequest { app_id: Some(1), ..Default::default() };
    let active = s.list_configurations(all).await.configurations;
    assert_eq!(active.iter().filter(|record| record.active).count(), 3);
    let details = refused(
        s.try_activate_configuration(activate("4")).await,
        Code::NotFound,
        "CONFIGURATION_NOT_FOUND",
    );
    assert_eq!(details.resource_info().expect("what").resource_name, "app 1/2/4");
    assert_eq!(active_versions(&s).await, ["2"], "a switch to nothing changes nothing");
    refused(
        s.try_get_configuration(get(Some("4"))).await,
        Code::NotFound,
        "CONFIGURATION_NOT_FOUND",
    );
}

pub async fn racing_activations_leave_exactly_one_active(b: Backend) {
    const VERSIONS: usize = 50;
    let (one, two) = b.pair().await;
    for n in 0..VERSIONS {
        one.publish_configuration(publish(numbered(&format!("v{n}"), json!({ "n": n })), false))
            .await;
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let look = async {
        let mut seen = 0;
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let active = active_versions(&two).await;
            assert!(active.len() <= 1, "{active:?}");
            assert!(active.len() == 1 || seen == 0, "there was one, and now there is none");
            seen += active.len();
            match two.try_get_configuration(get(None)).await {
                Ok(record) => assert!(record.active),
                Err(status) => assert!(status.code() == Code::NotFound && seen == 0, "{status:?}"),
            }
        }
        seen
    };
    let race = async {
        let answers = (0..VERSIONS).map(|n| {
            let client = if n % 2 == 0 { one.clone() } else { two.clone() };
            async move { client.activate_configuration(activate(&format!("v{n}"))).await }
        });
        for answer in futures::future::join_all(answers).await {
            assert!(answer.active);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let (seen, ()) = futures::future::join(look, race).await;
    let active = active_versions(&one).await;
    assert_eq!(active.len(), 1, "{active:?}, of {seen} seen on the way");
    assert_eq!(one.get_configuration(get(None)).await.version, active[0]);
}

pub async fn of_two_first_activations_one_stays_active(b: Backend) {
    // Nothing is active yet, so the two have no document to meet at: the hard case.
    let (one, two) = b.pair().await;
    for part in 0..30 {
        for version in ["a", "b"] {
            let record = Configuration { sub_app_id: Some(part), ..numbered(version, json!({})) };
            one.publish_configuration(publish(record, false)).await;
        }
        let switch = |version: &str| ActivateConfigurationRequest {
            sub_app_id: Some(part),
            ..activate(version)
        };
        let (a, b) = futures::future::join(
            one.activate_configuration(switch("a")),
            two.activate_configuration(switch("b")),
        )
        .await;
        assert!(a.active && b.active);
        let list = ListConfigurationsRequest { sub_app_id: Some(part), ..history() };
        let records = one.list_configurations(list).await.configurations;
        let active = records.iter().filter(|record| record.active).count();
        assert_eq!(active, 1, "of part {part}");
    }
}

pub async fn apps_without_a_number_are_told_apart_by_name(b: Backend) {
    let s = b.serve().await;
    let named = |app_name: &str, version: Option<&str>| GetConfigurationRequest {
        app_name: Some(app_name.into()),
        version: version.map(Into::into),
        ..Default::default()
    };
    for app in ["a", "b"] {
        let stored = s.publish_configuration(publish(nameless(app, "1"), true)).await;
        assert!(stored.active);
    }
    // A part of it, and a numbered app of the same name, are others again.
    let part = Configuration { sub_app_name: Some("p".into()), ..nameless("a", "1") };
    s.publish_configuration(publish(part, true)).await;
    let numbered = Configuration {
        app_id: Some(9),
        configuration: meta(json!({ "numbered": true })),
        ..nameless("a", "1")
    };
    s.publish_configuration(publish(numbered, true)).await;
    for (request, of) in [
        (named("a", Some("1")), json!({ "of": "a" })),
        (named("a", None), json!({ "of": "a" })),
        (named("b", None), json!({ "of": "b" })),
        (
            GetConfigurationRequest { app_id: Some(9), ..named("whatever", None) },
            json!({ "numbered": true }),
        ),
    ] {
        let found = s.get_configuration(request).await;
        assert_eq!(plain_meta(&found.configuration), of);
        assert!(found.active);
    }
    let list = |app_id, app_name: Option<&str>, sub_app_name: Option<&str>| {
        let request = ListConfigurationsRequest {
            app_id,
            app_name: app_name.map(Into::into),
            sub_app_name: sub_app_name.map(Into::into),
            ..Default::default()
        };
        let s = s.clone();
        async move { s.list_configurations(request).await.configurations.len() }
    };
    assert_eq!(list(None, Some("a"), None).await, 2);
    assert_eq!(list(None, Some("a"), Some("p")).await, 1);
    assert_eq!(list(Some(9), None, None).await, 1);
    assert_eq!(list(None, None, None).await, 4);
    assert_eq!(list(None, Some("nobody"), None).await, 0);
}

pub async fn a_numbered_app_is_found_by_its_name_too(b: Backend) {
    let s = b.serve().await;
    let app = |app_id, app_name: &str, sub_app_id, sub_app_name: Option<&str>| Configuration {
        app_id,
        app_name: app_name.into(),
        sub_app_id,
        sub_app_name: sub_app_name.map(Into::into),
        version: "1".into(),
        configuration: meta(json!({ "app": app_id, "part": sub_app_id })),
        ..Default::default()
    };
    for record in [
        app(Some(1), "one", None, None),
        app(Some(1), "one", Some(7), Some("part")),
        app(Some(2), "twins", None, None),
        app(Some(3), "twins", None, None),
        app(Some(4), "mixed", None, None),
        app(None, "mixed", None, None),
    ] {
        s.publish_configuration(publish(record, true)).await;
    }
    let get = |app_name: &str, sub_app_id, sub_app_name: Option<&str>| GetConfigurationRequest {
        app_name: Some(app_name.into()),
        sub_app_id,
        sub_app_name: sub_app_name.map(Into::into),
        ..Default::default()
    };
    for (request, expected) in [
        (get("one", None, None), json!({ "app": 1, "part": null })),
        (get("one", Some(7), None), json!({ "app": 1, "part": 7 })),
        (get("one", None, Some("part")), json!({ "app": 1, "part": 7 })),
        // The one without a number comes first.
        (get("mixed", None, None), json!({ "app": null, "part": null })),
    ] {
        let found = s.get_configuration(request.clone()).await;
        assert_eq!(plain_meta(&found.configuration), expected, "{request:?}");
    }
    let missing = s.try_get_configuration(get("one", Some(8), None)).await;
    refused(missing, Code::NotFound, "CONFIGURATION_NOT_FOUND");
    let several = s.try_get_configuration(get("twins", None, None)).await;
    assert_eq!(bad_fields(several)[0].0, "app_name");

    let list = async |app_name: &str| {
        let request =
            ListConfigurationsRequest { app_name: Some(app_name.into()), ..Default::default() };
        s.try_list_configurations(request).await.map(|page| page.configurations.len())
    };
    assert_eq!(list("one").await.expect("listed"), 2);
    assert_eq!(list("mixed").await.expect("listed"), 1);
    for (part, listed) in [("part", 1), ("nope", 0)] {
        let request = ListConfigurationsRequest {
            app_name: Some("one".into()),
            sub_app_name: Some(part.into()),
            ..Default::default()
        };
        assert_eq!(s.list_configurations(request).await.configurations.len(), listed, "{part}");
    }
    assert_eq!(bad_fields(list("twins").await)[0].0, "app_name");
    let activate = ActivateConfigurationRequest {
        app_name: Some("one".into()),
        version: "1".into(),
        ..Default::default()
    };
    assert_eq!(s.activate_configuration(activate).await.app_id, Some(1));
}

pub async fn a_history_is_listed_newest_first_in_pages(b: Backend) {
    let s = b.serve().await;
    // Of the same moment, without one, and in no order: the last stored comes first among equals.
    let times = [Some(5_000), None, Some(9_000), Some(5_000), Some(1_000), None, Some(9_000)];
    let puts = times.iter().enumerate().map(|(n, at)| {
        W::PutConfiguration(Configuration {
            created_at: at.map(time),
            ..numbered(&format!("v{n}"), json!({ "n": n }))
        })
    });
    for put in puts {
        let answers = s.ingest_all(vec![put]).await;
        assert!(matches!(&answers[0], R::Configuration(stored) if stored.created), "{answers:?}");
    }
    s.publish_configuration(publish(nameless("other", "x"), true)).await;
    let expected = ["v6", "v2", "v3", "v0", "v4", "v5", "v1"];
    for page_size in [1, 2, 3, 7, 50] {
        let mut request = ListConfigurationsRequest { page_size, ..history() };
        let mut found = Vec::new();
        loop {
            let page = s.list_configurations(request.clone()).await;
            assert!(page.configurations.len() <= page_size as usize);
            found.extend(page.configurations.into_iter().map(|record| record.version));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(found, expected, "in pages of {page_size}");
    }
    // A token belongs to its list, and a page stays in place while records come.
    let first =
        s.list_configurations(ListConfigurationsRequest { page_size: 3, ..history() }).await;
    let token = first.next_page_token;
    for other in [
        ListConfigurationsRequest { sub_app_id: Some(3), ..history() },
        ListConfigurationsRequest { sub_app_id: None, ..history() },
        ListConfigurationsRequest { app_id: None, app_name: Some("app".into()), ..history() },
    ] {
        let request = ListConfigurationsRequest { page_token: token.clone(), ..other };
        let answer = s.try_list_configurations(request).await;
        let sub = answer.as_ref().is_err_and(|status| status.code() == Code::InvalidArgument);
        assert!(sub, "{answer:?}");
    }
    refused(
        s.try_list_configurations(ListConfigurationsRequest {
            page_token: "AAAA".into(),
            ..history()
        })
        .await,
        Code::InvalidArgument,
        "INVALID_TOKEN",
    );
    s.publish_configuration(publish(numbered("newest", json!({})), false)).await;
    let rest = ListConfigurationsRequest { page_token: token, ..history() };
    let rest = s.list_configurations(rest).await.configurations;
    let rest: Vec<&str> = rest.iter().map(|record| record.version.as_str()).collect();
    assert_eq!(rest, expected[3..]);
}

pub async fn a_page_of_configurations_ends_early_at_4_mib(b: Backend) {
    let s = b.serve().await;
    for n in 0..4 {
        let text = text(if n == 3 { 5_000_000 } else { 1_500_000 });
        let great = numbered(&format!("v{n}"), json!({ "text": text }));
        s.publish_configuration(publish(great, false)).await;
    }
    let mut request = history();
    let mut sizes = Vec::new();
    loop {
        let page = s.list_configurations(request.clone()).await;
        let bytes = page.encoded_len();
        assert!(bytes <= 4 * 1024 * 1024 || page.configurations.len() == 1, "{bytes}");
        sizes.push(page.configurations.len());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(sizes, [1, 2, 1]);
}

/// Applies one change of a JSON Patch to JSON, as RFC 6902 says it.
fn apply(target: &mut serde_json::Value, change: &ConfigurationChange) {
    let value = || plain_field(&change.value);
    if change.path.is_empty() {
        *target = value();
        return;
    }
    let (parent, last) = change.path.rsplit_once('/').expect("a pointer");
    let last = last.replace("~1", "/").replace("~0", "~");
    match target.pointer_mut(parent).expect("the parent is there") {
        serde_json::Value::Object(object) => match change.op.as_str() {
            "remove" => assert!(object.remove(&last).is_some(), "{change:?}"),
            op => assert_eq!(op == "replace", object.insert(last, value()).is_some(), "{change:?}"),
        },
        serde_json::Value::Array(list) => {
            let index: usize = last.parse().expect("an index");
            match change.op.as_str() {
                "remove" => {
                    list.remove(index);
                }
                "add" => list.insert(index, value()),
                "replace" => list[index] = value(),
                op => panic!("{op}"),
            }
        }
        other => panic!("{other} has nothing in it"),
    }
}

pub async fn a_difference_is_a_json_patch(b: Backend) {
    let s = b.serve().await;
    let step = |id: i32| json!({ "id": id, "name": format!("s{id}") });
    let contents = [
        json!({}),
        json!({ "steps": [step(1), step(2), step(3)], "settings": { "max_retries": 1, "a/b~": 0 } }),
        json!({ "steps": [step(1), step(3)], "settings": { "max_retries": 3 }, "description": "d" }),
        json!({ "steps": { "other": "shape" }, "settings": null }),
        json!({ "steps": [step(4), step(1), step(2), step(3), step(5)], "": { "": [] } }),
    ];
    for (n, content) in contents.iter().enumerate() {
        let sent = numbered(&format!("v{n}"), content.clone());
        s.publish_configuration(publish(sent, n == 2)).await;
    }
    let key = |version: Option<String>| ConfigurationKey {
        app_id: Some(1),
        sub_app_id: Some(2),
        version,
        ..Default::default()
    };
    let diff = |from: Option<usize>, to: Option<usize>| DiffConfigurationsRequest {
        from_version: Some(key(from.map(|n| format!("v{n}")))),
        to_version: Some(key(to.map(|n| format!("v{n}")))),
    };
    for (from, before) in contents.iter().enumerate() {
        for (to, after) in contents.iter().enumerate() {
            let changes = s.diff_configurations(diff(Some(from), Some(to))).await.changes;
            assert_eq!(changes.is_empty(), from == to);
            let mut made = before.clone();
            for change in &changes {
                assert_eq!(change.value.is_none(), change.op == "remove");
                apply(&mut made, change);
            }
            assert_eq!(made, *after, "{from} to {to}: {changes:?}");
        }
    }
    let changes = s.diff_configurations(diff(Some(1), None)).await.changes;
    let mut told: Vec<_> =
        changes.iter().map(|change| (change.op.as_str(), change.path.as_str())).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("add", "/description"),
            ("remove", "/settings/a~1b~0"),
            ("remove", "/steps/1"),
            ("replace", "/settings/max_retries"),
        ]
    );
    // More than a reply holds: the whole, as one record is.
    let many = |n: i32| {
        let fields = (0..60_000).map(|key| (format!("a rather long key {key}"), json!(n)));
        json!(fields.collect::<serde_json::Map<_, _>>())
    };
    for n in [8, 9] {
        let sent = numbered(&format!("v{n}"), many(n));
        s.publish_configuration(publish(sent, false)).await;
    }
    let whole = s.diff_configurations(diff(Some(8), Some(9))).await.changes;
    assert_eq!((whole.len(), whole[0].op.as_str(), whole[0].path.as_str()), (1, "replace", ""));
    assert_eq!(plain_field(&whole[0].value), many(9));
    refused(
        s.try_diff_configurations(diff(Some(0), Some(7))).await,
        Code::NotFound,
        "CONFIGURATION_NOT_FOUND",
    );
    let fields = bad_fields(s.try_diff_configurations(DiffConfigurationsRequest::default()).await);
    let fields: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["from_version", "to_version"]);
}

pub async fn step_graphs_hold_together(b: Backend) {
    let s = b.serve().await;
    let steps = |steps: serde_json::Value| numbered("bad", json!({ "steps": steps }));
    for (configuration, expected) in [
        (steps(json!([{ "id": 1 }, { "id": "1" }])), vec!["steps[1].id"]),
        (steps(json!([{ "id": 1, "depends_on": [2] }])), vec!["steps[0].depends_on"]),
        (steps(json!([{ "id": "a", "depends_on": ["a"] }])), vec!["steps[0].depends_on"]),
        (
            steps(json!([
                { "id": "a", "depends_on": ["nobody"] },
                { "id": "a" },
                { "id": "b" },
                { "id": "b" },
            ])),
            vec!["steps[0].depends_on", "steps[1].id", "steps[3].id"],
        ),
    ] {
        let answer = s.try_publish_configuration(publish(configuration.clone(), true)).await;
        let fields = bad_fields(answer);
        let fields: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
        let expected: Vec<String> =
            expected.iter().map(|field| format!("configuration.configuration.{field}")).collect();
        assert_eq!(fields, expected);
        let answers = s.ingest_all(vec![W::PutConfiguration(configuration)]).await;
        let R::Error(status) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(status.code, Code::InvalidArgument as i32);
    }
    // Two on a circle: one of them is named.
    let circle = steps(json!([
        { "id": "a", "depends_on": ["b"] },
        { "id": "b", "depends_on": ["a"] },
        { "id": "c", "depends_on": ["b"] },
    ]));
    let fields = bad_fields(s.try_publish_configuration(publish(circle, false)).await);
    assert_eq!(fields.len(), 1);
    assert!(!fields[0].0.contains("steps[2]") && fields[0].1.contains("cycle"), "{fields:?}");
    // Other shapes are taken as they are.
    for (n, other) in [
        json!({ "steps": [] }),
        json!({ "steps": [{ "id": 1, "depends_on": [] }, { "id": 2, "depends_on": null }] }),
        json!({ "steps": ["a", "a"] }),
        json!({ "steps": [{ "name": "no id" }, { "id": 1, "depends_on": [7] }] }),
        json!({ "steps": "three" }),
        json!({ "tasks": [{ "id": 1 }, { "id": 1 }] }),
    ]
    .into_iter()
    .enumerate()
    {
        s.publish_configuration(publish(numbered(&format!("fine {n}"), other), false)).await;
    }
}

pub async fn bad_requests_about_configurations_name_every_field(b: Backend) {
    let s = b.serve().await;
    let long = text(257);
    let fields = bad_fields(
        s.try_publish_configuration(publish(
            Configuration {
                sub_app_name: Some(long.clone()),
                version: long.clone(),
                created_by: Some(long.clone()),
                configuration: meta(json!({ "deep": nested(30) })),
                ..Default::default()
            },
            false,
        ))
        .await,
    );
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        named,
        [
            "configuration.app_name",
            "configuration.configuration",
            "configuration.created_by",
            "configuration.sub_app_name",
            "configuration.version",
        ]
    );
    for (field, description) in &fields {
        let about_size = field != "configuration.app_name";
        assert!(!about_size || description.contains("limit of"), "{field} {description}");
    }
    let great = publish(numbered("1", json!({ "text": text(6 * 1024 * 1024) })), false);
    let fields = bad_fields(s.try_publish_configuration(great).await);
    assert_eq!(fields[0].0, "configuration.configuration");
    assert!(fields[0].1.contains("limit of 6291456"), "{fields:?}");
    let nan = Configuration {
        configuration: Some(prost_types::Struct {
            fields: [(
                "n".to_owned(),
                prost_types::Value { kind: Some(JsonKind::NumberValue(f64::NAN)) },
            )]
            .into(),
        }),
        ..numbered("1", json!({}))
    };
    assert_eq!(bad_fields(s.try_publish_configuration(publish(nan, false)).await).len(), 1);
    assert_eq!(
        bad_fields(s.try_publish_configuration(Default::default()).await)[0].0,
        "configuration"
    );

    let fields = bad_fields(s.try_get_configuration(Default::default()).await);
    assert_eq!(fields[0].0, "app_id");
    let empty = GetConfigurationRequest {
        app_name: Some(String::new()),
        version: Some(long.clone()),
        ..Default::default()
    };
    let fields = bad_fields(s.try_get_configuration(empty).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["app_name", "version"]);
    let fields = bad_fields(s.try_activate_configuration(Default::default()).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["app_id", "version"]);
    let lost =
        ListConfigurationsRequest { sub_app_id: Some(1), page_size: 1001, ..Default::default() };
    let fields = bad_fields(s.try_list_configurations(lost).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["page_size", "sub_app_id"]);
    assert!(s.list_configurations(Default::default()).await.configurations.is_empty());
}

pub async fn a_configuration_makes_a_plan(b: Backend) {
    let s = b.serve().await;
    let graph = json!({ "steps": [
        { "id": "load", "name": "load the data", "version": "1.2", "output": { "rows": "int" } },
        { "id": 20, "depends_on": ["load"] },
        { "id": "end", "name": "report", "depends_on": [20, "load"] },
    ] });
    s.publish_configuration(publish(numbered("1", graph), false)).await;
    let execution = |id: &str| CreateExecutionRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        configuration_version: Some("1".into()),
        ..create(id)
    };
    let plan = |id: &str, version: &str| PlanStepsRequest {
        execution_id: id.into(),
        configuration_version: Some(version.into()),
        ..Default::default()
    };
    s.create_execution(execution("e")).await;
    let planned = s.plan_steps(plan("e", "1")).await.steps;
    let shown: Vec<_> = planned
        .iter()
        .map(|step| {
            (
                step.step_id,
                step.step_key.as_deref(),
                step.step_name.as_str(),
                step.step_version.as_deref(),
                step.depends_on.as_slice(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (Some(1), Some("load"), "load the data", Some("1.2"), [].as_slice()),
            (Some(2), Some("20"), "20", None, [1].as_slice()),
            (Some(3), Some("end"), "report", None, [1, 2].as_slice()),
        ]
    );
    assert!(planned.iter().all(|step| step.status() == StepStatus::Pending));
    assert_eq!(s.plan_steps(plan("e", "1")).await.steps, planned, "again is no change");
    s.start_step(StartStepRequest {
        step_id: None,
        step_key: Some("load".into()),
        step_name: "load the data".into(),
        ..start("e", 0)
    })
    .await;

    // In order with the creation, over Ingest.
    let answers = s
        .ingest_all(vec![
            W::CreateExecution(execution("i")),
            W::PlanSteps(plan("i", "1")),
            W::StartStep(StartStepRequest { step_name: "20".into(), ..start("i", 2) }),
        ])
        .await;
    let R::Steps(steps) = &answers[1] else { panic!("{answers:?}") };
    assert_eq!(steps.steps.len(), 3);
    let R::Step(started) = &answers[2] else { panic!("{answers:?}") };
    assert_eq!(started.step_key.as_deref(), Some("20"), "the plan came first");

    for (version, code, reason) in [
        ("2", Code::NotFound, "CONFIGURATION_NOT_FOUND"),
        ("odd", Code::FailedPrecondition, "CONFIGURATION_MAKES_NO_PLAN"),
        ("none", Code::FailedPrecondition, "CONFIGURATION_MAKES_NO_PLAN"),
        ("many", Code::FailedPrecondition, "CONFIGURATION_MAKES_NO_PLAN"),
    ] {
        let steps = match version {
            "odd" => json!({ "steps": [{ "name": "no id" }] }),
            "none" => json!({ "steps": [] }),
            _ => json!({ "steps": (0..10_001).map(|id| json!({ "id": id })).collect::<Vec<_>>() }),
        };
        if version != "2" {
            s.publish_configuration(publish(numbered(version, steps), false)).await;
        }
        refused(s.try_plan_steps(plan("e", version)).await, code, reason);
        let answers = s.ingest_all(vec![W::PlanSteps(plan("e", version))]).await;
        let R::Error(status) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(status.code, code as i32);
    }
    // Only of its own app.
    s.create("stranger").await;
    refused(
        s.try_plan_steps(plan("stranger", "1")).await,
        Code::NotFound,
        "CONFIGURATION_NOT_FOUND",
    );
    refused(s.try_plan_steps(plan("nobody", "1")).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let both = PlanStepsRequest {
        steps: vec![PlannedStep { step_id: Some(1), step_name: "s".into(), ..Default::default() }],
        ..plan("e", "1")
    };
    let neither = PlanStepsRequest { configuration_version: None, ..plan("e", "1") };
    for request in [both, neither] {
        let fields = bad_fields(s.try_plan_steps(request).await);
        assert_eq!((fields.len(), fields[0].0.as_str()), (1, "steps"));
    }
    let fields = bad_fields(s.try_plan_steps(plan("", &text(257))).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["configuration_version", "execution_id"]);
}

pub async fn an_execution_records_its_configuration_version(b: Backend) {
    let s = b.serve().await;
    let request =
        CreateExecutionRequest { configuration_version: Some("1.0".into()), ..create("e") };
    let created = s.create_execution(request.clone()).await;
    assert_eq!(created.configuration_version.as_deref(), Some("1.0"));
    assert_eq!(s.create_execution(request.clone()).await, created);
    s.update_execution(UpdateExecutionRequest { pinned: Some(true), ..update("e") }).await;
    s.finish("e", ExecutionStatus::Completed).await;
    assert_eq!(s.execution("e").await.configuration_version.as_deref(), Some("1.0"));
    for other in [None, Some("1.1".to_owned())] {
        let request = CreateExecutionRequest { configuration_version: other, ..request.clone() };
        let answer = s.try_create_execution(request).await;
        refused(answer, Code::AlreadyExists, "EXECUTION_ALREADY_EXISTS");
    }
    for bad in [String::new(), text(257)] {
        let request = CreateExecutionRequest { configuration_version: Some(bad), ..create("bad") };
        let fields = bad_fields(s.try_create_execution(request).await);
        assert_eq!(fields[0].0, "configuration_version");
    }
}

pub async fn a_put_configuration_is_kept_as_it_is(b: Backend) {
    let s = b.serve().await;
    let put = async |record: Configuration| {
        let mut answers = s.ingest_all(vec![W::PutConfiguration(record)]).await;
        answers.pop().expect("one answer")
    };
    let stored = |version: &str, active, created| {
        R::Configuration(IngestedConfiguration { version: version.into(), active, created })
    };
    let first = Configuration {
        active: true,
        created_at: Some(time(1_000)),
        ..numbered("1", json!({ "a": 1 }))
    };
    assert_eq!(put(first.clone()).await, stored("1", true, true));
    assert_eq!(s.get_configuration(get(None)).await, first);
    assert_eq!(put(first.clone()).await, stored("1", true, false));
    let second =
        Configuration { created_at: None, created_by: None, ..numbered("2", json!({ "a": 2 })) };
    assert_eq!(put(second.clone()).await, stored("2", false, true));
    assert_eq!(s.get_configuration(get(Some("2"))).await, second, "nothing is invented");
    // The same content of another day changes nothing.
    let later = Configuration { created_at: Some(time(2_000)), active: false, ..first.clone() };
    assert_eq!(put(later).await, stored("1", true, false));
    assert_eq!(s.get_configuration(get(Some("1"))).await, first);
    // An active one becomes the active one.
    let third = Configuration { active: true, ..numbered("3", json!({})) };
    assert_eq!(put(third).await, stored("3", true, true));
    assert_eq!(active_versions(&s).await, ["3"]);
    let active = Configuration { active: true, ..second };
    assert_eq!(put(active).await, stored("2", true, false));
    assert_eq!(active_versions(&s).await, ["2"]);
    let other = Configuration { configuration: meta(json!({ "a": 9 })), ..first };
    let R::Error(status) = put(other).await else { panic!("not refused") };
    assert_eq!(status.code, Code::AlreadyExists as i32);
    // Of one stream, in order.
    let many = (0..40).map(|n| {
        let record = numbered(&format!("m{n}"), json!({ "n": n }));
        W::PutConfiguration(Configuration { active: true, ..record })
    });
    s.ingest_all(many.collect()).await;
    assert_eq!(active_versions(&s).await, ["m39"]);
}

pub async fn every_lookup_is_served_by_an_index(b: Backend) {
    let s = b.serve().await;
    let checks = s.check_indexes(CheckIndexesRequest {}).await.indexes;
    let ours: BTreeSet<&str> = checks.iter().map(|check| check.collection.as_str()).collect();
    for collection in [
        "executions",
        "execution_steps",
        "app_configurations",
        "execution_artifacts",
        "execution_metrics",
    ] {
        assert!(ours.contains(collection), "{ours:?}");
        for check in checks.iter().filter(|check| check.collection == collection) {
            assert!(check.served_by.is_some() && check.advice.is_empty(), "{check:?}");
        }
    }
    for (collection, keys, unique) in [
        ("executions", "execution_id", true),
        ("executions", "app_id, sub_app_id", false),
        ("executions", "started_at desc", false),
        ("execution_steps", "execution_id, step_id", true),
        ("execution_steps", "execution_id, step_key", true),
        ("app_configurations", "app_id, sub_app_id, version", true),
        ("app_configurations", "app_name, sub_app_name, version", true),
        ("app_configurations", "active", false),
        ("execution_artifacts", "execution_id, step_id", false),
        ("execution_metrics", "execution_id, timestamp", false),
        ("execution_metrics", "timestamp", false),
    ] {
        let check =
            checks.iter().find(|check| check.collection == collection && check.keys == keys);
        assert_eq!(check.map(|check| check.unique), Some(unique), "{collection} {keys}");
    }
    // On SQLite only what the server itself asks is looked at.
    for keys in ["artifact_type", "created_at desc"] {
        let asked = checks.iter().any(|check| check.keys == keys);
        assert_eq!(asked, b.kind == Kind::Mongodb, "{keys}");
    }
    // One that goes away is missed.
    let by_user = |checks: &[IndexCheck]| {
        let check = checks.iter().find(|check| check.keys == "user_id").expect("looked for");
        check.served_by.clone()
    };
    match b.kind {
        Kind::Sqlite => {
            b.sqlite().execute_batch("DROP INDEX executions_user").expect("it can be dropped");
        }
        Kind::Mongodb => {
            // Several begin with it.
            let mut served = by_user(&checks);
            while let Some(name) = served {
                b.executions().await.drop_index(name).await.expect("it can be dropped");
                served = by_user(&s.check_indexes(CheckIndexesRequest {}).await.indexes);
            }
        }
    }
    let checks = s.check_indexes(CheckIndexesRequest {}).await.indexes;
    let missing = checks.iter().find(|check| check.keys == "user_id").expect("looked for");
    assert!(missing.served_by.is_none() && !missing.advice.is_empty(), "{missing:?}");
}

//! Clients that store artifacts, points of metrics and configurations, send again what was not answered, and remember what
//! was.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::proto::*;
use tokio::task::JoinSet;

use super::ledger::Ledger;
use super::load::may_retry;
use super::support::artifacts::{describe, noise, sha256};
use super::support::client::*;
use super::support::values::{json, meta};
use super::support::{Client, in_time};

const CLIENTS: usize = 4;
const LOST_AFTER: Duration = Duration::from_secs(5);
const POINTS: i64 = 3;

/// What was answered: of each execution its artifact, how many requests of points, and the version.
#[derive(Default)]
struct Told {
    artifacts: HashMap<String, Artifact>,
    points: HashMap<String, i64>,
    versions: HashSet<String>,
}

pub struct Others {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

fn bytes_of(id: &str) -> bytes::Bytes {
    noise(20_000, id.bytes().map(u64::from).sum())
}

fn app_of(client: usize) -> String {
    format!("others{client}")
}

/// Sends until there is an answer.
async fn send<T, R: Clone, F>(server: &Client, request: R, call: impl Fn(Client, R) -> F) -> T
where
    F: Future<Output = Answer<T>>,
{
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    loop {
        pace.tick().await;
        match tokio::time::timeout(LOST_AFTER, call(server.clone(), request.clone())).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(status)) => assert!(may_retry(&status), "{status:?}"),
            Err(_) => {}
        }
    }
}

async fn work(
    number: usize,
    server: Client,
    ledger: Arc<Ledger>,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
) {
    for run in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let id = format!("others{number}-{run}");
        ledger.attempt(&id, None);
        let created =
            send(&server, create(&id), |s, r| async move { s.try_create_execution(r).await }).await;
        ledger.acknowledge_execution(&created);
        for request in 0..2 {
            let points = (0..POINTS).map(|point| MetricPoint {
                metrics: [("m".to_owned(), (request * POINTS + point) as f64)].into(),
                timestamp: Some(prost_types::Timestamp {
                    seconds: created.started_at.as_ref().expect("a time").seconds,
                    nanos: 0,
                }),
                ..Default::default()
            });
            let request = RecordMetricsRequest {
                execution_id: id.clone(),
                points: points.collect(),
                request_id: Some(format!("r{request}")),
            };
            send(&server, request, |s, r| async move { s.try_record_metrics(r).await }).await;
            *told.lock().expect("no panic inside").points.entry(id.clone()).or_default() += 1;
        }
        let upload = |s: Client, (id, bytes): (String, bytes::Bytes)| async move {
            s.try_upload(describe(&id, "out"), &bytes).await
        };
        let artifact = send(&server, (id.clone(), bytes_of(&id)), upload).await;
        told.lock().expect("no panic inside").artifacts.insert(id.clone(), artifact);
        let publish = PublishConfigurationRequest {
            configuration: Some(Configuration {
                app_name: app_of(number),
                version: id.clone(),
                configuration: meta(json!({ "description": id })),
                ..Default::default()
            }),
            activate: run % 2 == 0,
        };
        send(&server, publish, |s, r| async move { s.try_publish_configuration(r).await }).await;
        told.lock().expect("no panic inside").versions.insert(id);
    }
}

impl Others {
    pub fn start(ledger: &Arc<Ledger>, address: &str) -> Others {
        let (told, stop) = (Arc::default(), Arc::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (told, stop) = (Arc::clone(&told), Arc::clone(&stop));
            clients.spawn(work(number, Client::of(address), Arc::clone(ledger), told, stop));
        }
        Others { told, stop, clients }
    }

    /// Lets every client end what it is at, and compares with what is stored: nothing lost, nothing twice.
    pub async fn check(mut self, server: &Client) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = in_time("the clients to end", self.clients.join_next()).await {
            client.expect("a client found a fault");
        }
        let told = std::mem::take(&mut *self.told.lock().expect("no panic inside"));
        assert!(told.versions.len() > CLIENTS, "they did hardly anything");
        for (id, artifact) in &told.artifacts {
            let stored = server.artifacts_of(id).await;
            assert_eq!(stored.len(), 1, "artifacts of {id}: {stored:?}");
            assert_eq!(stored[0].artifact_id, artifact.artifact_id);
            let bytes = ok(server.try_download(&artifact.artifact_id).await);
            assert_eq!(sha256(&bytes), sha256(&bytes_of(id)), "the bytes of {id}");
        }
        for (id, requests) in &told.points {
            let query = QueryMetricsRequest { execution_id: id.clone(), ..Default::default() };
            let mut values: Vec<f64> = server
                .query_metrics(query)
                .await
                .points
                .iter()
                .map(|point| point.metrics["m"])
                .collect();
            values.sort_by(f64::total_cmp);
            let expected: Vec<f64> = (0..requests * POINTS).map(|value| value as f64).collect();
            assert_eq!(values, expected, "points of {id}");
        }
        let mut versions = Vec::new();
        for number in 0..CLIENTS {
            let mut active = 0;
            let mut page_token = String::new();
            loop {
                let request = ListConfigurationsRequest {
                    app_name: Some(app_of(number)),
                    page_token,
                    ..Default::default()
                };
                let page = server.list_configurations(request).await;
                active += page.configurations.iter().filter(|stored| stored.active).count();
                versions.extend(page.configurations.into_iter().map(|stored| stored.version));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            assert_eq!(active, 1, "one version of {} is active", app_of(number));
        }
        let number = versions.len();
        let stored: HashSet<String> = versions.into_iter().collect();
        assert_eq!(stored.len(), number, "a version is stored twice");
        assert_eq!(stored, told.versions);
    }
}

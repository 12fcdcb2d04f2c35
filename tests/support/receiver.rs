//! A receiver of notifications on loopback: a real HTTP server that says what it is told to say, and keeps what it got.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use sha2::Sha256;
use stepwell::config::Config;
use stepwell::proto::notification_service_client::NotificationServiceClient;
use stepwell::proto::*;
use tokio::net::TcpListener;
use tonic::transport::Channel;

use super::{Client, eventually};

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: Instant,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).expect("a body in JSON")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub fn id(&self) -> String {
        self.header("webhook-id").to_owned()
    }

    /// `type` without its beginning.
    pub fn kind(&self) -> String {
        let json = self.json();
        let kind = json["type"].as_str().expect("a type");
        kind.trim_start_matches("stepwell.").to_owned()
    }

    pub fn subject(&self) -> String {
        self.json()["subject"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether one of its signatures was made with this secret.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let secret = secret.strip_prefix("whsec_").expect("a secret in its form");
        let secret = STANDARD.decode(secret).expect("base64");
        let mut mac: Hmac<Sha256> = Hmac::new_from_slice(&secret).expect("any key");
        mac.update(format!("{}.{}.", self.id(), self.header("webhook-timestamp")).as_bytes());
        mac.update(&self.body);
        let signed = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        self.header("webhook-signature").split(' ').any(|one| one == signed)
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub after: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), after: Duration::ZERO }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    pub fn after(self, after: Duration) -> Reply {
        Reply { after, ..self }
    }
}

type Answers = Box<dyn FnMut(&Received) -> Reply + Send>;

struct Inner {
    received: Mutex<Vec<Received>>,
    answers: Mutex<Answers>,
}

/// The receiver.
#[derive(Clone)]
pub struct Receiver {
    address: SocketAddr,
    inner: Arc<Inner>,
}

impl Receiver {
    /// Takes everything, until it is told otherwise.
    pub async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let answers: Answers = Box::new(|_| Reply::status(204));
        let inner = Arc::new(Inner { received: Mutex::default(), answers: Mutex::new(answers) });
        let served = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&served);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&inner), request));
                    // A client may close whenever it likes.
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Receiver { address, inner }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it answers from now on.
    pub fn answers(&self, answers: impl FnMut(&Received) -> Reply + Send + 'static) {
        *self.inner.answers.lock().expect("nobody panics while holding it") = Box::new(answers);
    }

    /// Everything so far.
    pub fn received(&self) -> Vec<Received> {
        self.inner.received.lock().expect("nobody panics while holding it").clone()
    }

    /// What it was told of an execution, each thing once, in order.
    pub fn told(&self, execution_id: &str) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        self.received()
            .iter()
            .filter(|one| one.subject() == execution_id && seen.insert(one.id()))
            .map(Received::kind)
            .collect()
    }

    /// Waits until it was told of an execution for the last time that this has happened.
    pub async fn until(&self, execution_id: &str, last: &str) -> Vec<String> {
        eventually(&format!("{execution_id} is told {last}"), async || {
            let told = self.told(execution_id);
            told.last().is_some_and(|told| told == last).then_some(told)
        })
        .await
    }

    /// Waits for so many requests.
    pub async fn at_least(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} requests"), async || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
        .await
    }
}

async fn answer(
    inner: Arc<Inner>,
    request: http::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    #[expect(clippy::disallowed_methods, reason = "tests measure real time")]
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let received = Received { at, path, headers: head.headers, body };
    let reply = {
        let mut answers = inner.answers.lock().expect("nobody panics while holding it");
        answers(&received)
    };
    inner.received.lock().expect("nobody panics while holding it").push(received);
    tokio::time::sleep(reply.after).await;
    let mut response = Response::new(Full::new(Bytes::from_static(b"thank you")));
    *response.status_mut() = http::StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().expect("a header"));
    }
    Ok(response)
}

/// Lets a server send to loopback, and soon again.
pub fn to_loopback(config: &mut Config) {
    config.notifications.allow_http = true;
    config.notifications.allow_networks = vec!["127.0.0.0/8".to_owned()];
    config.notifications.retry_seconds = vec![0.2; 100];
}

pub fn notifications(server: &Client) -> NotificationServiceClient<Channel> {
    NotificationServiceClient::new(server.channel.clone())
}

/// Every event.
pub fn all_events() -> Vec<i32> {
    (1..=9).collect()
}

/// A subscription to everything of the app `app`.
pub fn subscription(url: &str) -> CreateSubscriptionRequest {
    CreateSubscriptionRequest {
        name: "test".to_owned(),
        filter: Some(ExecutionFilter { app_names: vec!["app".to_owned()], ..Default::default() }),
        events: all_events(),
        url: url.to_owned(),
        ..Default::default()
    }
}

/// Makes a subscription: its id and its secret.
pub async fn subscribe(server: &Client, request: CreateSubscriptionRequest) -> (String, String) {
    let made = notifications(server).create_subscription(request).await;
    let made = made.expect("a subscription").into_inner();
    (made.subscription.expect("as stored").subscription_id, made.secret)
}

pub async fn get(server: &Client, id: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: id.to_owned() };
    let found = notifications(server).get_subscription(request).await.expect("it is there");
    found.into_inner().subscription.expect("a subscription")
}

pub async fn state(server: &Client, id: &str) -> SubscriptionState {
    get(server, id).await.state.expect("a state")
}

/// The deliveries in these states, the latest first.
pub async fn deliveries(server: &Client, id: &str, states: &[DeliveryState]) -> Vec<Delivery> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListDeliveriesRequest {
            subscription_id: id.to_owned(),
            states: states.iter().map(|state| i32::from(*state)).collect(),
            page_size: 7,
            page_token,
        };
        let page = notifications(server).list_deliveries(request).await.expect("a page");
        let page = page.into_inner();
        all.extend(page.deliveries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

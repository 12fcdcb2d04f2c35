//! The HTTP edge: metrics and probes. Knows nothing of executions.
//!
//! Bounded in connections, in the size of headers, and in time: a client that trickles its headers or does not
//! read its answer is let go.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::metrics;

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// How long a request's headers may take.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
const HEADERS: usize = 64;
const BUFFER_BYTES: usize = 32 * 1024;
/// Age at which a connection is closed after its current answer.
const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// How long an answer may still take after that.
const LAST_ANSWER: Duration = Duration::from_secs(3);
/// Pause after an accept that failed (out of file descriptors), instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether the server is SERVING.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// What keeps it from that.
    Not(&'static str),
}

/// What the probes need to know.
#[derive(Debug, Clone)]
pub struct HttpState {
    /// Whether the server is SERVING.
    pub ready: watch::Receiver<Readiness>,
}

/// The routes.
pub fn routes(state: HttpState) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics_text))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(state)
}

async fn index() -> Html<&'static str> {
    Html(concat!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Stepwell</title>",
        "<h1>Stepwell ",
        env!("CARGO_PKG_VERSION"),
        "</h1><ul>",
        "<li><a href=\"/metrics\">/metrics</a> for Prometheus",
        "<li><a href=\"/livez\">/livez</a> answers while the process is up",
        "<li><a href=\"/readyz\">/readyz</a> answers 200 while the server can serve",
        "</ul></html>\n",
    ))
}

async fn metrics_text() -> Response {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, TEXT)], metrics::render()).into_response()
}

fn probe(status: StatusCode, text: String) -> Response {
    const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
    (status, [(header::CACHE_CONTROL, NO_STORE)], text).into_response()
}

async fn live() -> Response {
    probe(StatusCode::OK, "ok\n".to_owned())
}

async fn ready(State(state): State<HttpState>) -> Response {
    match *state.ready.borrow() {
        Readiness::Ready => probe(StatusCode::OK, "ready\n".to_owned()),
        Readiness::Not(why) => {
            probe(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
        }
    }
}

/// Serves until `stop`, then finishes the answers under way. Returns when no connection is left.
pub async fn serve(listener: TcpListener, state: HttpState, stop: CancellationToken) {
    let routes = routes(state);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = stop
            .run_until_cancelled(async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (permit, listener.accept().await)
            })
            .await;
        match accepted {
            None => break,
            Some((Ok(permit), Ok((stream, _)))) => {
                let (routes, stop) = (routes.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, routes, stop).await;
                    drop(permit);
                });
            }
            // The semaphore is never closed, so this is an accept that failed.
            Some((_, _)) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, routes: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(routes);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // How a client's connection ends is its own affair.
        _ = serving.as_mut() => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_AGE) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWER, serving).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Running {
        address: std::net::SocketAddr,
        ready: watch::Sender<Readiness>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Running {
        metrics::install();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ready, receiver) = watch::channel(Readiness::Not("it is starting"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, HttpState { ready: receiver }, stop.clone()));
        Running { address, ready, stop, task }
    }

    async fn raw(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A refused request may end in a reset; what came before it counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("text")
    }

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        raw(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn probes_and_metrics() {
        let server = start().await;
        assert!(fetch(server.address, "/livez").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(fetch(server.address, "/readyz").await.starts_with("HTTP/1.1 503 "));
        server.ready.send_replace(Readiness::Ready);
        assert!(fetch(server.address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        server.ready.send_replace(Readiness::Not("the disk is full"));
        let full = fetch(server.address, "/readyz").await;
        assert!(full.starts_with("HTTP/1.1 503 ") && full.contains("disk is full"), "{full}");
        let text = fetch(server.address, "/metrics").await;
        assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
        assert!(text.contains("process_start_time_seconds "), "{text}");
        assert!(fetch(server.address, "/").await.contains("/readyz"));
        assert!(fetch(server.address, "/nothing").await.starts_with("HTTP/1.1 404 "));
        let posted =
            raw(server.address, "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await;
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        server.stop.cancel();
        server.task.await.expect("ended");
    }

    #[tokio::test]
    async fn headers_are_bounded() {
        let server = start().await;
        let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * BUFFER_BYTES));
        assert!(raw(server.address, &long).await.starts_with("HTTP/1.1 431 "));
        let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(HEADERS + 1));
        assert!(raw(server.address, &many).await.starts_with("HTTP/1.1 431 "));
    }

    #[expect(clippy::disallowed_methods, reason = "tests measure real time")]
    #[tokio::test]
    async fn idle_connections_do_not_delay_the_end() {
        let server = start().await;
        let mut idle = TcpStream::connect(server.address).await.expect("connected");
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.expect("an answer");
        let began = std::time::Instant::now();
        server.stop.cancel();
        server.task.await.expect("ended");
        assert!(began.elapsed() < LAST_ANSWER, "{:?}", began.elapsed());
    }
}

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::clock::SystemClock;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Answers look-ups one after the other, the last answer again and again.
struct Scripted(Mutex<VecDeque<Vec<IpAddr>>>);

#[async_trait]
impl Resolve for Scripted {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        let mut answers = self.0.lock();
        match answers.len() {
            0 => Err(io::ErrorKind::NotFound.into()),
            1 => Ok(answers[0].clone()),
            _ => Ok(answers.pop_front().unwrap_or_default()),
        }
    }
}

fn rules(networks: &[&str]) -> Rules {
    let networks = networks.iter().map(|network| Network::parse(network).unwrap());
    Rules { allow_http: true, networks: networks.collect() }
}

fn outbound(rules: Rules, answers: &[&[IpAddr]]) -> Outbound {
    let answers = answers.iter().map(|answer| answer.to_vec()).collect();
    let resolver = Arc::new(Scripted(Mutex::new(answers)));
    Outbound::new(rules, resolver, Duration::from_secs(5), Arc::new(SystemClock))
}

/// A receiver on loopback: its port, and how many connections and requests it has had.
struct Receiver {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

async fn receiver(answer: &'static str) -> Receiver {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let (count, heard) = (Arc::clone(&connections), Arc::clone(&requests));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let heard = Arc::clone(&heard);
            tokio::spawn(async move {
                let mut text = Vec::new();
                while stream.read_buf(&mut text).await.is_ok_and(|bytes| bytes > 0) {
                    let all = String::from_utf8_lossy(&text).into_owned();
                    if all.ends_with("body") {
                        heard.lock().push(all);
                        text.clear();
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    Receiver { port, connections, requests }
}

impl Receiver {
    fn heard(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.lock().len())
    }
}

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

async fn post(outbound: &Outbound, url: &str) -> Result<u16, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", HeaderValue::from_static("msg_1"));
    let answer = outbound.post(url, headers, Bytes::from_static(b"body")).await;
    answer.map(|answer| answer.status)
}

#[tokio::test]
async fn a_request_goes_to_the_checked_address_under_its_own_name() {
    let receiver = receiver(OK).await;
    let outbound = outbound(rules(&["127.0.0.0/8"]), &[&[LOOPBACK]]);
    let url = format!("http://hooks.example:{}/a%20b?c=d", receiver.port);
    assert_eq!(post(&outbound, &url).await, Ok(204));
    let heard = receiver.requests.lock()[0].clone();
    assert!(heard.starts_with("POST /a%20b?c=d HTTP/1.1\r\n"), "{heard}");
    let host = format!("host: hooks.example:{}\r\n", receiver.port);
    assert!(heard.contains(&host) && heard.contains("webhook-id: msg_1\r\n"), "{heard}");
    assert_eq!(post(&outbound, &url).await, Ok(204));
    assert_eq!(receiver.heard(), (1, 2), "one connection for both");
}

#[tokio::test]
async fn a_name_whose_second_look_up_is_forbidden_gets_nothing() {
    let receiver = receiver(OK).await;
    let public: IpAddr = "8.8.8.8".parse().unwrap();
    let private: IpAddr = "10.0.0.1".parse().unwrap();
    // Loopback stands for an address of the internet here; the connection to it stays open.
    let rules = || rules(&["127.0.0.1/32"]);
    let url = format!("http://hooks.example:{}/", receiver.port);
    for second in [&[private][..], &[LOOPBACK, private], &[public, "::1".parse().unwrap()]] {
        let before = receiver.heard();
        let outbound = outbound(rules(), &[&[LOOPBACK], second]);
        assert_eq!(post(&outbound, &url).await, Ok(204));
        assert_eq!(post(&outbound, &url).await, Err(Failure::ForbiddenAddress));
        assert_eq!(receiver.heard(), (before.0 + 1, before.1 + 1), "{second:?}");
    }
    // And without anything being allowed not even the first.
    let outbound = outbound(self::rules(&[]), &[&[LOOPBACK]]);
    let before = receiver.heard();
    assert_eq!(post(&outbound, &url).await, Err(Failure::ForbiddenAddress));
    assert_eq!(receiver.heard(), before);
    assert_eq!(post(&self::outbound(rules(), &[]), &url).await, Err(Failure::Unresolved));
    assert_eq!(post(&self::outbound(rules(), &[&[]]), &url).await, Err(Failure::Unresolved));
}

#[tokio::test]
async fn an_idle_connection_is_used_only_for_an_address_that_was_checked_now() {
    let receiver = receiver(OK).await;
    let other: IpAddr = "127.0.0.2".parse().unwrap();
    let outbound = outbound(rules(&["127.0.0.0/8"]), &[&[LOOPBACK], &[other], &[LOOPBACK]]);
    let url = format!("http://hooks.example:{}/", receiver.port);
    assert_eq!(post(&outbound, &url).await, Ok(204));
    // Nobody listens there, though a connection to the first address is still open.
    assert_eq!(post(&outbound, &url).await, Err(Failure::NotConnected));
    assert_eq!(post(&outbound, &url).await, Ok(204));
}

/// Every way to write an address that is not public is refused before anybody connects.
#[tokio::test]
async fn every_form_of_a_forbidden_address_is_refused() {
    let receiver = receiver(OK).await;
    let outbound = outbound(Rules { allow_http: true, networks: Vec::new() }, &[&[LOOPBACK]]);
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "00.00",
        "127.0.0.1.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fec0::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "100.127.255.254",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "[2001:db8::1]",
        "%31%32%37.0.0.1",
        "１２７.0.0.1",
        "localhost",
        "hooks.example",
    ] {
        let url = format!("http://{host}:{}/", receiver.port);
        assert_eq!(post(&outbound, &url).await, Err(Failure::ForbiddenAddress), "{host}");
    }
    assert_eq!(receiver.heard(), (0, 0));
}

#[tokio::test]
async fn what_a_url_may_not_be() {
    let strict = Rules::default();
    for wrong in [
        "",
        "x",
        "hooks.example/a",
        "ftp://hooks.example",
        "file:///etc/passwd",
        "http://hooks.example",
        "https://user@hooks.example",
        "https://user:word@hooks.example",
        "https://hooks.example/#a",
        "https://127.0.0.1",
        "https://[::1]/",
        "https://",
        "unix:/run/x",
        "https://a b/",
    ] {
        assert!(check_url(wrong, &strict).is_err(), "{wrong}");
    }
    for right in ["https://hooks.example", "https://8.8.8.8:8443/a?b", "HTTPS://HOOKS.EXAMPLE/"] {
        assert!(check_url(right, &strict).is_ok(), "{right}");
    }
    assert!(check_url("http://10.1.2.3/", &rules(&["10.0.0.0/8"])).is_ok());
}

#[tokio::test]
async fn an_answer_is_its_status_and_when_to_come_back() {
    let outbound = |patience| {
        let resolver = Arc::new(Scripted(Mutex::default()));
        Outbound::new(rules(&["127.0.0.0/8"]), resolver, patience, Arc::new(SystemClock))
    };
    let patient = outbound(Duration::from_secs(5));
    let answer = async |text: &'static str, outbound: &Outbound| {
        let url = format!("http://127.0.0.1:{}/", receiver(text).await.port);
        outbound.post(&url, HeaderMap::new(), Bytes::from_static(b"body")).await
    };
    let redirect =
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(answer(redirect, &patient).await.unwrap().status, 302, "and nobody follows it");
    let busy = "HTTP/1.1 503 Busy\r\nretry-after: 120\r\ncontent-length: 3\r\n\r\nno!";
    let busy = answer(busy, &patient).await.unwrap();
    assert_eq!((busy.status, busy.retry_after.as_deref()), (503, Some("120")));
    // A body without an end holds nobody up.
    let endless = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nno!";
    assert_eq!(answer(endless, &patient).await.unwrap().status, 200);
    assert_eq!(answer("SSH-2.0-x\r\n", &patient).await, Err(Failure::NoAnswer));
    let hurried = outbound(Duration::from_millis(50));
    assert_eq!(answer("", &hurried).await, Err(Failure::Timeout));
    let plain = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let url = format!("https://{}/", plain.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let refused = patient.post(&url, HeaderMap::new(), Bytes::new()).await;
    assert_eq!(refused, Err(Failure::Tls), "no TLS is spoken there");
}

#[tokio::test]
async fn no_proxy_of_the_environment_is_asked() {
    // Nothing of this module reads the environment; the sources say so.
    for source in [include_str!("mod.rs"), include_str!("connect.rs"), include_str!("resolve.rs")] {
        assert!(!source.contains("env::var") && !source.contains("reqwest"));
    }
}

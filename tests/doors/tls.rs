//! TLS: versions, protocols, clients that do not speak it, and handshakes that hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;

use crate::Encrypted;
use crate::support::access::Caller;
use crate::support::authority::{Authority, connect};
use crate::support::client::*;
use crate::support::{Client, eventually, in_time, run};

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

/// A bare connection over TLS with these versions and protocols.
pub async fn handshake(
    address: impl ToString,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let pem = authority.pem();
    for root in rustls::pki_types::pem::PemObject::pem_slice_iter(pem.as_bytes()) {
        roots.add(root.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let socket = in_time("a connection", TcpStream::connect(address.to_string())).await?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    in_time("a handshake", TlsConnector::from(Arc::new(config)).connect(name, socket)).await
}

/// A first message of TLS 1.1 or older, as programs sent it that know nothing newer.
fn hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    // No session; two ciphers of their time; no compression.
    body.extend([0, 0, 4, 0xc0, 0x13, 0x00, 0x2f, 1, 0]);
    // Groups and formats of curves.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(body);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

#[test]
fn calls_go_over_tls_1_2_and_1_3_and_older_ones_are_refused() {
    run(async {
        let e = Encrypted::start(|_, _| {}).await;
        let address = e.server.address();
        let client = e.client();
        client.create("e").await;
        for version in BOTH {
            let stream =
                handshake(address, &e.authority, &[version], &["h2"]).await.expect("accepted");
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        }
        let refused = handshake(address, &e.authority, BOTH, &["http/1.1"]).await;
        assert!(refused.is_err(), "only HTTP/2 is spoken");
        // Who believes another authority does not believe this server.
        let stranger = connect(address, &[&Authority::new("others")], None);
        let status = Caller::over(stranger, None).who().await.expect_err("not believed");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        for minor in [1, 2] {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            socket.write_all(&hello(minor)).await.expect("sent");
            let mut answer = Vec::new();
            in_time("the refusal", socket.read_to_end(&mut answer)).await.expect("read");
            // A fatal alert: handshake_failure, as such a client names no signatures, or protocol_version.
            assert!(matches!(answer[..], [21, 3, _, 0, 2, 2, 40 | 70]), "{answer:?}");
        }
    });
}

#[test]
fn a_client_that_does_not_speak_tls_is_let_go_and_hurts_nobody() {
    run(async {
        let e = Encrypted::start(|_, _| {}).await;
        let plain = Client::of(e.server.address());
        let status = plain.try_create_execution(create("e")).await.expect_err("not encrypted");
        assert!(std::error::Error::source(&status).is_some(), "{status:?}");
        let mut socket = TcpStream::connect(e.server.address()).await.expect("connected");
        let began = Instant::now();
        socket
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .expect("sent");
        let mut answer = Vec::new();
        in_time("the end", socket.read_to_end(&mut answer)).await.expect("read");
        // An alert, in clear: it says what is wrong to whoever looks at the bytes.
        assert_eq!(answer.first(), Some(&21), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // And one that does, at a server that does not.
        let backend = e.backend.clone();
        e.client().create("e").await;
        e.server.shutdown().await;
        let without = backend.serve().await;
        let caller = Caller::over(connect(without.address(), &[&e.authority], None), None);
        let status = caller.who().await.expect_err("no TLS there");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    });
}

#[test]
fn a_handshake_that_hangs_blocks_nobody_and_has_its_time() {
    run(async {
        let allowed = Duration::from_secs(2);
        let e = Encrypted::start(|config, _| config.grpc.handshake = allowed).await;
        let address = e.server.address();
        let began = Instant::now();
        let mut hanging = Vec::new();
        for at in 0..120 {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            // Nothing, a record that never comes whole, and one that comes whole but for its end.
            let said: &[u8] = match at % 3 {
                0 => &[],
                1 => &[22, 3, 1],
                _ => &hello(3)[..20],
            };
            socket.write_all(said).await.expect("sent");
            hanging.push(socket);
        }
        let client = e.client();
        client.create("e").await;
        assert!(began.elapsed() < allowed, "nobody waited for them: {:?}", began.elapsed());
        // One that trickles its handshake has no more time than one that is silent.
        let mut slow = TcpStream::connect(address).await.expect("connected");
        let opened = Instant::now();
        let trickle = async {
            for byte in hello(3) {
                if slow.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let mut rest = Vec::new();
            let _ = slow.read_to_end(&mut rest).await;
        };
        in_time("the end of one that trickles", trickle).await;
        assert!(opened.elapsed() > allowed / 2, "{:?}", opened.elapsed());
        assert!(opened.elapsed() < allowed * 3, "{:?}", opened.elapsed());
        for mut socket in hanging {
            let mut rest = Vec::new();
            let _ = in_time("the end of one that hangs", socket.read_to_end(&mut rest)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        client.execution("e").await;
    });
}

#[test]
fn handshakes_count_against_the_limit_of_connections() {
    run(async {
        let e = Encrypted::start(|config, _| config.limits.connections = Some(16)).await;
        let address = e.server.address();
        let honest = e.client();
        // Its call keeps its place.
        let mut watch = honest.watch_all(watch_all()).await;
        watch.snapshot().await;
        let mut hanging = Vec::new();
        for _ in 0..60 {
            hanging.push(TcpStream::connect(address).await.expect("connected"));
        }
        let mut closed = 0;
        for socket in &mut hanging[..40] {
            let mut rest = Vec::new();
            let _ = in_time("it makes room", socket.read_to_end(&mut rest)).await;
            closed += 1;
        }
        assert_eq!(closed, 40);
        let another = e.client();
        eventually("another gets in", async || {
            another.try_create_execution(create("e")).await.ok()
        })
        .await;
        let made = watch.until("it is told", |event| event.execution().is_some()).await;
        assert_eq!(made.execution().map(|(_, made)| made.execution_id.as_str()), Some("e"));
    });
}

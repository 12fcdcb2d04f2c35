//! Accepts connections of gRPC clients, as many as there are places for.
//!
//! A connection costs a descriptor and some memory whether or not its client ever says anything, and descriptors
//! run out for everybody. So there is a limit; at the limit the connection that is longest without a call makes room, and
//! a few places are kept for programs on this machine: probes must get in when nobody else does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower_service::Service;

use super::tls::Tls;
use crate::auth::certificates::Certificates;
use crate::rpc::budget::{Account, Budget};
use crate::rpc::connection::{self, Ended, Open, Peer};
use crate::rpc::linger::Lingering;
use crate::telemetry::metrics;

/// Places that only clients on this machine get.
const KEPT_FOR_LOOPBACK: usize = 8;
/// Connections that were sent away and are not closed yet, beyond which nobody is accepted.
const LEAVING: usize = 256;
/// Pause after an accept that failed, for want of a descriptor most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a thing that goes on happening is logged.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a connection goes through before its first call.
pub(super) struct Way {
    pub settings: connection::Settings,
    /// `None`: it is not encrypted.
    pub tls: Option<Arc<Tls>>,
    pub certificates: Option<Arc<Certificates>>,
}

/// Serves connections until `stop`, then until their calls have drained.
pub(super) async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    way: Way,
    budget: Arc<Budget>,
    limit: usize,
    stop: CancellationToken,
) where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let places = Arc::new(Places::new(limit));
    let way = Arc::new(way);
    let connections = TaskTracker::new();
    let mut failed = Rarely::default();
    loop {
        let accepted = stop.run_until_cancelled(async {
            places.some_have_left().await;
            listener.accept().await
        });
        let (stream, address) = match accepted.await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                if let Some(times) = failed.at(Instant::now()) {
                    tracing::error!(%error, times, "cannot accept connections");
                }
                // Somebody's place may be what is missing.
                places.make_room();
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
                continue;
            }
        };
        let Some(place) = places.take(address) else { continue };
        let (service, stop) = (service.clone(), stop.clone());
        let (way, account) = (Arc::clone(&way), budget.account());
        connections.spawn(async move {
            let ended = one(stream, address, &place, service, account, &way, stop).await;
            metrics::connection_ended(reason(ended));
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn one<S, B>(
    stream: TcpStream,
    address: SocketAddr,
    place: &Place,
    service: S,
    account: Arc<Account>,
    way: &Way,
    stop: CancellationToken,
) -> Ended
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let since = Instant::now();
    // It fails for a connection that is broken already, and is found out then.
    let _ = stream.set_nodelay(true);
    let open = Arc::clone(&place.open);
    let (io, certificate) = match &way.tls {
        None => (Either::Left(Lingering::new(stream)), None),
        Some(tls) => {
            let handshake = tokio::select! {
                handshake = tls.accept(Lingering::new(stream)) => handshake,
                () = sleep_until(since + way.settings.handshake) => return Ended::Handshake,
                () = open.sent_away() => return Ended::SentAway,
                () = stop.cancelled() => return Ended::Shutdown,
            };
            match handshake {
                Ok((stream, certificate)) => (Either::Right(stream), certificate),
                Err(error) => {
                    tracing::debug!(peer = %address, %error, "a handshake of TLS failed");
                    return Ended::Tls;
                }
            }
        }
    };
    let certified =
        way.certificates.as_ref().zip(certificate).and_then(|(known, shown)| known.caller(&shown));
    let peer = Peer { address, certified };
    connection::serve(io, peer, open, service, account, &way.settings, stop, since).await
}

fn reason(ended: Ended) -> &'static str {
    match ended {
        Ended::ByClient => "client",
        Ended::Handshake => "handshake",
        Ended::Tls => "tls",
        Ended::Silent => "silent",
        Ended::Idle => "idle",
        Ended::SentAway => "limit",
        Ended::Shutdown => "shutdown",
    }
}

/// The open connections.
struct Places {
    limit: usize,
    taken: Mutex<Taken>,
    left: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    open: HashMap<u64, Arc<Open>>,
    /// Connections that were sent away and are not closed yet.
    leaving: usize,
    full: Rarely,
}

/// A place among the open connections, while it is there.
struct Place {
    places: Arc<Places>,
    id: u64,
    open: Arc<Open>,
}

impl Places {
    fn new(limit: usize) -> Places {
        Places { limit, taken: Mutex::default(), left: Notify::new() }
    }

    /// A place for a connection, if there is one or somebody can be sent away for it.
    fn take(self: &Arc<Self>, address: SocketAddr) -> Option<Place> {
        let local = address.ip().to_canonical().is_loopback();
        let kept = if local { 0 } else { KEPT_FOR_LOOPBACK.min(self.limit / 2) };
        let mut taken = self.taken.lock();
        if taken.open.len() + kept >= self.limit {
            let sent_away = taken.send_one_away();
            if let Some(times) = taken.full.at(Instant::now()) {
                tracing::warn!(
                    times,
                    limit = self.limit,
                    "the limit of connections is reached: for a new one the one longest without a call is closed"
                );
            }
            if !sent_away {
                metrics::connection_ended("refused");
                return None;
            }
        }
        let (id, open) = (taken.next, Open::new());
        taken.next += 1;
        taken.open.insert(id, Arc::clone(&open));
        metrics::connections(taken.open.len());
        Some(Place { places: Arc::clone(self), id, open })
    }

    /// Sends somebody away.
    fn make_room(&self) {
        self.taken.lock().send_one_away();
    }

    /// Returns at once unless too many of those who were sent away are still there.
    async fn some_have_left(&self) {
        while self.taken.lock().leaving >= LEAVING {
            self.left.notified().await;
        }
    }
}

impl Taken {
    /// The connection that is longest without a call; whether there was one.
    fn send_one_away(&mut self) -> bool {
        let idle = self.open.iter().filter_map(|(id, open)| Some((open.idle_since()?, *id)));
        let Some((_, id)) = idle.min() else { return false };
        if let Some(open) = self.open.remove(&id) {
            open.send_away();
            self.leaving += 1;
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if taken.open.remove(&self.id).is_some() {
            metrics::connections(taken.open.len());
        } else {
            taken.leaving -= 1;
            self.places.left.notify_one();
        }
    }
}

/// Something that may happen often and is said rarely.
#[derive(Default)]
struct Rarely {
    said: Option<Instant>,
    unsaid: u64,
}

impl Rarely {
    /// How often it has happened since it was said last, if it is to be said now.
    fn at(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.said.is_some_and(|said| now.duration_since(said) < SAID_EVERY) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 1)
    }

    #[test]
    fn the_one_longest_without_a_call_makes_room_and_a_few_places_are_for_this_machine() {
        let places = Arc::new(Places::new(20));
        let mut remote = Vec::new();
        for _ in 0..12 {
            remote.push(places.take(from("10.0.0.1")).expect("a place"));
        }
        let sent_away = |places: &[Place]| -> Vec<usize> {
            let away = |(at, place): (usize, &Place)| place.open.is_sent_away().then_some(at);
            places.iter().enumerate().filter_map(away).collect()
        };
        assert!(sent_away(&remote).is_empty());
        // Eight places are left, and none for another machine.
        remote.push(places.take(from("::ffff:10.0.0.1")).expect("a place"));
        assert_eq!(sent_away(&remote), [0]);
        let local = ["127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1"];
        let mut local: Vec<Place> = local
            .iter()
            .cycle()
            .take(8)
            .map(|address| places.take(from(address)).expect("a place"))
            .collect();
        assert_eq!(sent_away(&remote), [0], "their places were kept");
        // Those who have a call stay: the next one goes.
        let busy = remote[1].open.call();
        remote.push(places.take(from("10.0.0.2")).expect("a place"));
        assert_eq!(sent_away(&remote), [0, 2]);
        drop(busy);
        // Its call was the latest.
        local.push(places.take(from("127.0.0.1")).expect("a place"));
        assert_eq!(sent_away(&remote), [0, 2, 3]);
        // Whoever left leaves a place.
        let before = places.taken.lock().open.len();
        drop(remote.remove(4));
        drop(remote.remove(0));
        let taken = places.taken.lock();
        assert_eq!((taken.open.len(), taken.leaving), (before - 1, 2));
        drop(taken);
        drop((remote, local));
    }

    #[test]
    fn nobody_gets_in_while_everybody_has_a_call() {
        let places = Arc::new(Places::new(16));
        let all: Vec<Place> = (0..16).filter_map(|_| places.take(from("127.0.0.1"))).collect();
        let calls: Vec<_> = all.iter().map(|place| place.open.call()).collect();
        assert!(places.take(from("127.0.0.1")).is_none());
        drop(calls);
        assert!(places.take(from("127.0.0.1")).is_some());
    }

    #[test]
    fn what_happens_often_is_said_once_a_minute() {
        let mut rarely = Rarely::default();
        let first = Instant::now();
        assert_eq!(rarely.at(first), Some(1));
        assert_eq!((rarely.at(first), rarely.at(first + SAID_EVERY / 2)), (None, None));
        assert_eq!(rarely.at(first + SAID_EVERY), Some(3));
    }
}

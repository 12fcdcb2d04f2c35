//! Places of calls: so many are worked on at a time, and the rest wait.
//!
//! A place that becomes free goes to the connections that wait in turn, one place each, however many calls each of them
//! has waiting: who asks for little waits for one round, not for the queue of who asks for much. No connection has more
//! than a quarter of the places.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Some places.
#[derive(Debug)]
pub struct Places {
    most_of_one: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// Names what waits, in the order it came.
    next: u64,
    /// Those that have a place or wait for one.
    clients: HashMap<u64, Client>,
    /// Those that wait and may have one more place, in turn.
    turns: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Client {
    held: usize,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    has_turn: bool,
}

impl Places {
    pub fn of(most: usize) -> Arc<Places> {
        let state = State { free: most, ..State::default() };
        Arc::new(Places { most_of_one: (most / 4).max(1), state: Mutex::new(state) })
    }

    /// A place for a call of this connection, if one becomes free soon enough.
    pub async fn take(self: &Arc<Self>, client: u64, within: Duration) -> Option<Place> {
        let place = || Place { places: Arc::clone(self), client };
        let mut waiting = {
            let mut state = self.state.lock();
            let State { free, next, clients, turns } = &mut *state;
            let known = clients.entry(client).or_default();
            // As long as one is free, nobody waits who may have it.
            if *free > 0 && known.held < self.most_of_one {
                *free -= 1;
                known.held += 1;
                return Some(place());
            }
            let (give, given) = oneshot::channel();
            *next += 1;
            known.waiting.insert(*next, give);
            known.line_up(client, self.most_of_one, turns);
            Waiting { places: self, client, number: *next, given }
        };
        timeout(within, &mut waiting.given).await.is_ok_and(|given| given.is_ok()).then(place)
    }

    fn give_back(&self, client: u64) {
        let mut state = self.state.lock();
        let State { free, clients, turns, .. } = &mut *state;
        *free += 1;
        if let Some(known) = clients.get_mut(&client) {
            known.held -= 1;
            known.line_up(client, self.most_of_one, turns);
        }
        while *free > 0
            && let Some(next) = turns.pop_front()
        {
            let Some(known) = clients.get_mut(&next) else { continue };
            known.has_turn = false;
            let Some((_, give)) = known.waiting.pop_first() else { continue };
            if give.send(()).is_ok() {
                *free -= 1;
                known.held += 1;
            }
            known.line_up(next, self.most_of_one, turns);
        }
        Self::forget(clients, client);
    }

    fn forget(clients: &mut HashMap<u64, Client>, client: u64) {
        if clients.get(&client).is_some_and(|known| known.held == 0 && known.waiting.is_empty()) {
            clients.remove(&client);
        }
    }
}

impl Client {
    /// Gives it a turn if it waits and may have one more place.
    fn line_up(&mut self, client: u64, most: usize, turns: &mut VecDeque<u64>) {
        if !self.has_turn && self.held < most && !self.waiting.is_empty() {
            self.has_turn = true;
            turns.push_back(client);
        }
    }
}

/// A call may be worked on while it is there.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    client: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(self.client);
    }
}

/// A call that waits.
struct Waiting<'a> {
    places: &'a Places,
    client: u64,
    number: u64,
    given: oneshot::Receiver<()>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        {
            let clients = &mut self.places.state.lock().clients;
            if let Some(known) = clients.get_mut(&self.client) {
                known.waiting.remove(&self.number);
            }
            Places::forget(clients, self.client);
        }
        self.given.close();
        if self.given.try_recv().is_ok() {
            // It was given one in the moment in which it stopped waiting.
            self.places.give_back(self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);
    const GREEDY: u64 = 1;
    const HONEST: u64 = 2;

    impl Places {
        fn is_untouched(&self, most: usize) -> bool {
            let state = self.state.lock();
            state.free == most && state.clients.is_empty()
        }
    }

    #[tokio::test]
    async fn a_connection_has_a_quarter_of_the_places_and_who_waits_too_long_is_refused() {
        let places = Places::of(8);
        let held = [places.take(GREEDY, SHORT).await, places.take(GREEDY, SHORT).await];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(GREEDY, SHORT).await.is_none());
        let honest = places.take(HONEST, SHORT).await;
        assert!(honest.is_some());
        drop((held, honest));
        let mut all = Vec::new();
        for client in 10..14 {
            all.push(places.take(client, SHORT).await.unwrap());
            all.push(places.take(client, SHORT).await.unwrap());
        }
        assert!(places.take(HONEST, SHORT).await.is_none(), "all places are taken");
        all.pop();
        assert!(places.take(HONEST, SHORT).await.is_some());
        drop(all);
        assert!(places.is_untouched(8));
    }

    #[tokio::test]
    async fn who_asks_for_little_waits_for_one_round_only() {
        let places = Places::of(4);
        let first = places.take(GREEDY, SHORT).await.unwrap();
        let others: Vec<Place> = {
            let mut others = Vec::new();
            for client in 10..13 {
                others.push(places.take(client, SHORT).await.unwrap());
            }
            others
        };
        let mut queue = tokio::task::JoinSet::new();
        for client in std::iter::repeat_n(GREEDY, 1000).chain(10..13) {
            let places = Arc::clone(&places);
            queue
                .spawn(async move { places.take(client, LONG).await.map(|place| (client, place)) });
        }
        let late = Arc::clone(&places);
        let honest = tokio::spawn(async move {
            tokio::task::yield_now().await;
            late.take(HONEST, LONG).await
        });
        while places.state.lock().clients.get(&HONEST).is_none_or(|c| c.waiting.is_empty()) {
            tokio::task::yield_now().await;
        }
        // Places that become free one after the other: few of them go to others first.
        drop((first, others));
        let mut before = 0;
        while !honest.is_finished() {
            let (client, place) = queue.join_next().await.unwrap().unwrap().unwrap();
            before += usize::from(client == GREEDY);
            drop(place);
        }
        assert!(before < 20, "{before} of the greedy one came first");
        drop(honest.await.unwrap());
        while let Some(given) = queue.join_next().await {
            drop(given);
        }
        assert!(places.is_untouched(4));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_place_is_lost_or_doubled_whoever_stops_waiting() {
        const MOST: usize = 8;
        let places = Places::of(MOST);
        let working = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..4_000_u64 {
            let (places, working) = (Arc::clone(&places), Arc::clone(&working));
            calls.spawn(async move {
                let within = Duration::from_micros(number % 400);
                let Some(place) = places.take(number % 7, within).await else { return };
                let now = working.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                assert!(now <= MOST, "{now}");
                tokio::task::yield_now().await;
                working.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(place);
            });
        }
        calls.join_all().await;
        assert!(places.is_untouched(MOST));
    }
}

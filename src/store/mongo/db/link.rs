//! The way to the database for as long as the store is open: reaching it, setting it up, knowing it again and reaching it
//! anew when it was lost go on in the background. While that is under way nothing is asked of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection::Connection;
use super::failure;
use super::identity::{Identity, another};
use super::options::MongoOptions;
use crate::store::{Error, Result, Unavailable};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const SHUTDOWN: Duration = Duration::from_millis(700);
/// Between two looks at the database.
const LOOK: Duration = Duration::from_secs(1);
/// How long a look may take.
const LOOKED_FOR: Duration = Duration::from_millis(2_500);
const AGAIN: Duration = Duration::from_millis(20);
/// How long looks may fail before the connection is given up.
const LOST_AFTER: Duration = Duration::from_secs(3);
/// Within which who waits has to know.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(
    LOOK.as_millis() + LOOKED_FOR.as_millis() < TOLD_WITHIN.as_millis(),
    "a database that hangs is noticed in time"
);

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Starting,
    /// It was lost, or the last attempt failed; another follows.
    Away(Arc<Unavailable>),
    Ready(Arc<Connection>),
}

/// What has to be made in a database before anything else is asked of it. It may be made once more.
pub type Prepare =
    Box<dyn Fn(Arc<Connection>) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static>;

/// The database, there or not.
pub struct Db {
    patience: Duration,
    read_only: bool,
    state: watch::Sender<State>,
    /// Known from the first time that it was reached.
    identity: Mutex<Option<Identity>>,
    reaching: Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// `Error::Failed`: the URI is malformed, or asks for what cannot be.
    pub fn new(options: &MongoOptions) -> Result<Arc<Db>> {
        Ok(Arc::new(Db {
            patience: options.check()?,
            read_only: options.read_only,
            state: watch::Sender::new(State::Starting),
            identity: Mutex::default(),
            reaching: Mutex::default(),
        }))
    }

    /// Reaches the database and prepares it, again and again for as long as it takes, and looks after it from then on.
    /// Must be called within a tokio runtime.
    pub fn reach(self: &Arc<Db>, options: MongoOptions, prepare: Prepare) {
        let reaching = tokio::spawn(reach(Arc::clone(self), options, prepare));
        if let Some(before) = self.reaching.lock().replace(reaching) {
            before.abort();
        }
    }

    /// How long the database may take to be found. One call may take twice as long.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether nothing may be written to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its id, once it has been reached.
    pub fn id(&self) -> Option<String> {
        self.identity.lock().as_ref().map(|identity| identity.id.clone())
    }

    /// The database, or why there is none. Waits only for the first attempt to reach it.
    pub async fn ready(&self) -> Result<Arc<Connection>> {
        if let Some(connection) = self.now() {
            return Ok(connection);
        }
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| !matches!(state, State::Starting));
        match tokio::time::timeout(self.patience, decided).await {
            Ok(Ok(state)) => match &*state {
                State::Ready(connection) => Ok(Arc::clone(connection)),
                State::Away(why) => Err(Error::Unavailable(why.again())),
                State::Starting => Err(failure::away()),
            },
            Ok(Err(_)) | Err(_) => Err(failure::away()),
        }
    }

    /// The database, if it is there already.
    pub fn now(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            State::Ready(connection) => Some(Arc::clone(connection)),
            State::Starting | State::Away(_) => None,
        }
    }

    fn away(&self, why: Unavailable) {
        self.state.send_replace(State::Away(Arc::new(why)));
    }

    pub async fn close(&self) {
        self.abort();
        let closed = Unavailable::unanswered();
        if let State::Ready(connection) = self.state.send_replace(State::Away(Arc::new(closed))) {
            // Ends cursors and sessions of ours in the database; it would end them by itself later.
            let _ = tokio::time::timeout(SHUTDOWN, connection.shutdown()).await;
        }
    }

    /// Stops reaching for it.
    pub fn abort(&self) {
        if let Some(reaching) = self.reaching.lock().take() {
            reaching.abort();
        }
    }
}

async fn reach(db: Arc<Db>, options: MongoOptions, prepare: Prepare) {
    let mut pause = FIRST_PAUSE;
    loop {
        let why = match attempt(&db, &options, &prepare).await {
            Ok(connection) => {
                pause = FIRST_PAUSE;
                let (version, replica_set) = (connection.version(), connection.replica_set());
                let (database_id, set) = (db.id(), connection.set());
                tracing::info!(version, replica_set, set, database_id, "MongoDB is ready");
                if !replica_set {
                    tracing::warn!(
                        "this mongod is not a replica set: nothing can be watched, and a write \
                         whose answer is lost has to be repeated by its client"
                    );
                }
                db.state.send_replace(State::Ready(Arc::clone(&connection)));
                let why = look_after(&db, &connection).await;
                tracing::warn!(why = why.why(), "MongoDB was lost");
                db.away(why.again());
                // Whoever still waits for it need not any longer.
                connection.view().leave(&why);
                tokio::spawn(async move { connection.leave().await });
                why
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, retry_ms = pause.as_millis(), "MongoDB is not ready");
                match error {
                    Error::Unavailable(why) => why,
                    other => unusable(&other),
                }
            }
        };
        db.away(why);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A database that is there and cannot be set up.
fn unusable(error: &Error) -> Unavailable {
    let source = std::error::Error::source(error).map(ToString::to_string);
    match Error::unavailable(source.unwrap_or_else(|| error.to_string())) {
        Error::Unavailable(why) => why,
        _ => Unavailable::unanswered(),
    }
}

/// Over connections of its own each time: the driver never again looks at an address at which another set has stood.
async fn attempt(db: &Db, options: &MongoOptions, prepare: &Prepare) -> Result<Arc<Connection>> {
    let opened = Connection::open(options, db.patience).await?;
    let known = db.identity.lock().clone();
    let set = match &known {
        Some(known) => known.set.clone(),
        None => options.set_of_uri(),
    };
    let view = opened.clone();
    let connection = match opened.greet().await {
        Ok(connection) => connection,
        Err(error) => {
            let other = view.view().other_than(set.as_deref());
            return Err(other.map_or(error, |other| another(&other)));
        }
    };
    if let Some(known) = &known
        && let Some(other) = known.other(&connection).await?
    {
        return Err(another(&other));
    }
    let connection = Arc::new(connection);
    prepare(Arc::clone(&connection)).await?;
    if known.is_none() {
        let identity = match db.read_only {
            true => Identity::found(&connection).await?,
            false => Identity::of(&connection).await?,
        };
        *db.identity.lock() = Some(identity);
    }
    connection.view().trust(connection.process());
    connection.view().arm();
    Ok(connection)
}

/// Looks at the database again and again, and at each new primary before it is used, until it is lost. Says why it is.
async fn look_after(db: &Db, connection: &Connection) -> Unavailable {
    let Some(identity) = db.identity.lock().clone() else { return Unavailable::unanswered() };
    let mut failing: Option<Instant> = None;
    loop {
        tokio::select! {
            () = connection.lost() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let began = now();
        let looked = tokio::time::timeout(LOOKED_FOR, look(&identity, connection)).await;
        let why = match looked {
            Ok(Ok(Seen::Right)) => {
                failing = None;
                if !connection.view().is_open() {
                    // Another pool has heard of a primary that this one does not know yet.
                    tokio::time::sleep(AGAIN).await;
                }
                continue;
            }
            Ok(Ok(Seen::Other(other))) => match another(&other) {
                Error::Unavailable(why) => return why,
                _ => return Unavailable::unanswered(),
            },
            Ok(Ok(Seen::Changing)) => Unavailable::unanswered(),
            Ok(Err(Error::Unavailable(why))) => why,
            Ok(Err(error)) => unusable(&error),
            Err(_) => Unavailable::unanswered(),
        };
        let since = *failing.get_or_insert(began);
        let silent = looked_long(since) && !connection.view().answered_lately();
        if silent {
            let other = connection.view().other_than(identity.set.as_deref());
            return match other.map(|other| another(&other)) {
                Some(Error::Unavailable(other)) => other,
                _ => match connection.view().judged(Error::Unavailable(why)) {
                    Error::Unavailable(why) => why,
                    _ => Unavailable::unanswered(),
                },
            };
        }
        // What fails at once is asked again in a moment, and not sooner.
        tokio::time::sleep(FIRST_PAUSE.min(LOOK)).await;
    }
}

fn looked_long(since: Instant) -> bool {
    now().duration_since(since) + FIRST_PAUSE >= LOST_AFTER.min(LOOKED_FOR)
}

#[expect(clippy::disallowed_methods, reason = "the clock is not handed to every part of it yet")]
fn now() -> Instant {
    Instant::now()
}

/// What is at the address.
enum Seen {
    Right,
    /// In words.
    Other(String),
    /// Another process each time.
    Changing,
}

/// Looks which database is there, past the gate. Writes only where it is certain.
async fn look(identity: &Identity, connection: &Connection) -> Result<Seen> {
    let bare = connection.unguarded();
    let now = bare.clone().greet().await?;
    let other = identity.other(&now).await?;
    let is_same = connection.view().is_right(now.process().as_deref());
    if let Some(other) = other {
        if is_same && now.set() == connection.set() {
            // The very process that had it: somebody dropped it.
            if identity.restore(&now).await? {
                return Ok(Seen::Right);
            }
        }
        return Ok(Seen::Other(other));
    }
    if !is_same {
        // What was read and who was asked are one only if nobody else came in between.
        let then = bare.greet().await?;
        if then.process() != now.process() {
            return Ok(Seen::Changing);
        }
        tracing::info!(set = now.set(), "MongoDB has another primary, with the same database");
    }
    connection.view().trust(now.process());
    Ok(Seen::Right)
}

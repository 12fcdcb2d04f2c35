//! The way to the database for as long as the store is open: reaching it and setting it up goes on in the background, and
//! until that is done nothing is asked of it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection::Connection;
use super::failure;
use super::options::MongoOptions;
use crate::store::Result;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const SHUTDOWN: Duration = Duration::from_millis(700);

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Starting,
    /// The last attempt failed; another follows.
    Away,
    Ready(Arc<Connection>),
}

/// What has to be made in a database before anything else is asked of it.
pub type Prepare =
    Box<dyn Fn(Arc<Connection>) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static>;

/// The database, there or not.
pub struct Db {
    patience: Duration,
    state: watch::Sender<State>,
    reaching: Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// `Error::Failed`: the URI is malformed, or asks for what cannot be.
    pub fn new(options: &MongoOptions) -> Result<Arc<Db>> {
        Ok(Arc::new(Db {
            patience: options.check()?,
            state: watch::Sender::new(State::Starting),
            reaching: Mutex::default(),
        }))
    }

    /// Reaches the database and prepares it, for as long as that takes. Must be called within a tokio runtime.
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
                State::Starting | State::Away => Err(failure::away()),
            },
            Ok(Err(_)) | Err(_) => Err(failure::away()),
        }
    }

    /// The database, if it is there already.
    pub fn now(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            State::Ready(connection) => Some(Arc::clone(connection)),
            State::Starting | State::Away => None,
        }
    }

    pub async fn close(&self) {
        self.abort();
        if let State::Ready(connection) = self.state.send_replace(State::Away) {
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
    let mut opened = None;
    loop {
        match attempt(&db, &options, &prepare, &mut opened).await {
            Ok(connection) => {
                let (version, replica_set) = (connection.version(), connection.replica_set());
                tracing::info!(version, replica_set, "MongoDB is ready");
                if !replica_set {
                    tracing::warn!(
                        "this mongod is not a replica set: nothing can be watched, and a write \
                         whose answer is lost has to be repeated by its client"
                    );
                }
                db.state.send_replace(State::Ready(connection));
                return;
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, retry_ms = pause.as_millis(), "MongoDB is not ready");
                db.state.send_replace(State::Away);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attempt(
    db: &Db,
    options: &MongoOptions,
    prepare: &Prepare,
    opened: &mut Option<Connection>,
) -> Result<Arc<Connection>> {
    let connection = match opened {
        Some(connection) => connection.clone(),
        None => opened.insert(Connection::open(options, db.patience).await?).clone(),
    };
    let connection = Arc::new(connection.greet().await?);
    prepare(Arc::clone(&connection)).await?;
    Ok(connection)
}

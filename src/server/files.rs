//! Files that are read again while the server runs: certificates, keys, and whatever else decides who may come in.
//!
//! They are looked at every two seconds and on SIGHUP. A change is taken once two looks see the same, so that files
//! which belong together may be replaced one after the other; SIGHUP says that they are whole. What cannot be used
//! leaves what was read before in force.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::config::ConfigError;
use crate::telemetry::metrics;

/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A change holds within this.
const HOLDS_WITHIN: Duration = Duration::from_secs(10);
const _: () = assert!(
    LOOK_EVERY.as_millis() * 3 < HOLDS_WITHIN.as_millis(),
    "one look to see a change and one to see that it is whole, even if both are late"
);
/// A file is not larger.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A file by the setting that names it.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub setting: &'static str,
    pub path: PathBuf,
}

/// Why files cannot be used: the setting, and the end of a sentence about it. Never what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    pub setting: &'static str,
    pub why: String,
}

impl Unusable {
    pub fn new(setting: &'static str, why: impl ToString) -> Unusable {
        Unusable { setting, why: why.to_string() }
    }
}

/// Takes what is in the files, in their order; or says why not, and leaves everything as it is.
type Take = Box<dyn Fn(&[Vec<u8>]) -> Result<(), Unusable> + Send>;

/// Tells contents apart without keeping them.
type Prints = Vec<[u8; 32]>;

/// Files that belong together.
pub(super) struct Followed {
    files: Vec<File>,
    take: Take,
    in_force: Prints,
    /// What was seen last, where that is not what is in force.
    seen: Option<Result<Prints, Unusable>>,
    /// It was looked into, and found to be of no use.
    judged: bool,
}

fn read(file: &File) -> Result<Vec<u8>, Unusable> {
    let unusable = |why: String| Unusable::new(file.setting, why);
    let unreadable = |error: std::io::Error| unusable(format!("cannot be read: {error}"));
    let about = std::fs::metadata(&file.path).map_err(unreadable)?;
    // Opening a pipe would wait for somebody to write into it.
    if !about.is_file() {
        return Err(unusable("is not a file".to_owned()));
    }
    if about.len() > MOST_BYTES {
        return Err(unusable(format!("is larger than {MOST_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(&file.path).map_err(unreadable)?;
    opened.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(unusable("is empty".to_owned()));
    }
    Ok(bytes)
}

fn prints(files: &[Vec<u8>]) -> Prints {
    files.iter().map(|bytes| Sha256::digest(bytes).into()).collect()
}

impl Followed {
    /// Reads files for the first time. What is wrong with them ends the process before a port opens.
    pub fn open(
        files: Vec<File>,
        take: impl Fn(&[Vec<u8>]) -> Result<(), Unusable> + Send + 'static,
    ) -> Result<Followed, ConfigError> {
        let opened = files.iter().map(read).collect::<Result<Vec<_>, _>>().and_then(|contents| {
            take(&contents)?;
            Ok(prints(&contents))
        });
        let in_force = opened.map_err(|Unusable { setting, why }| {
            let path = files.iter().find(|file| file.setting == setting).map(|file| &file.path);
            let shown = path.map_or_else(String::new, |path| path.display().to_string());
            ConfigError::new(setting, shown, why)
        })?;
        Ok(Followed { files, take: Box::new(take), in_force, seen: None, judged: false })
    }

    /// Looks at the files; `asked`: somebody says that they are whole. By its setting, what was read again, and whether
    /// it could be used.
    fn look(&mut self, asked: bool) -> Option<(&'static str, bool)> {
        let contents = self.files.iter().map(read).collect::<Result<Vec<_>, _>>();
        let now = contents.as_ref().map(|contents| prints(contents)).map_err(Unusable::clone);
        if now.as_ref() == Ok(&self.in_force) {
            self.seen = None;
            return None;
        }
        let is_settled = self.seen.as_ref() == Some(&now);
        if !is_settled {
            self.judged = false;
        }
        self.seen = Some(now);
        if !asked && (!is_settled || self.judged) {
            return None;
        }
        match contents.and_then(|contents| (self.take)(&contents).map(|()| prints(&contents))) {
            Ok(prints) => {
                (self.in_force, self.seen) = (prints, None);
                let settings = self.files.iter().map(|file| file.setting).collect::<Vec<_>>();
                tracing::info!(
                    settings = settings.join(" "),
                    "read again; it is in force from now on"
                );
                settings.first().map(|setting| (*setting, true))
            }
            Err(Unusable { setting, why }) => {
                self.judged = true;
                metrics::reload_failures(setting).increment(1);
                tracing::error!("{setting} {why}; what was read before stays in force");
                Some((setting, false))
            }
        }
    }
}

/// Says whenever somebody sends SIGHUP; never, where the process cannot listen for it.
struct Hangups(Option<Signal>);

impl Hangups {
    fn listen() -> Hangups {
        let listening = signal(SignalKind::hangup());
        if let Err(error) = &listening {
            tracing::warn!(%error, "cannot listen for SIGHUP");
        }
        Hangups(listening.ok())
    }

    async fn next(&mut self) {
        let sent = match &mut self.0 {
            Some(signal) => signal.recv().await,
            None => None,
        };
        if sent.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells somebody who reads no files of every SIGHUP, until `stop`.
pub(super) async fn pass_on_hangups(to: Arc<Notify>, stop: CancellationToken) {
    let mut hangups = Hangups::listen();
    while stop.run_until_cancelled(hangups.next()).await.is_some() {
        to.notify_one();
    }
}

/// Looks at all of them until `stop`.
pub(super) async fn follow(mut all: Vec<Followed>, audit: Audit, stop: CancellationToken) {
    if all.is_empty() {
        return;
    }
    let mut hangups = Hangups::listen();
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = hangups.next() => true,
        };
        let looked = tokio::task::spawn_blocking(move || {
            let read: Vec<_> = all.iter_mut().filter_map(|files| files.look(asked)).collect();
            (all, read)
        });
        match looked.await {
            Ok((looked, read)) => {
                all = looked;
                for (setting, is_good) in read {
                    audit.reloaded(setting, is_good);
                }
            }
            Err(error) => {
                tracing::error!(%error, "files of tls and auth are not read again from now on");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Two files that belong together: the second has to end in what the first is.
    fn pair(dir: &tempfile::TempDir) -> (Followed, Arc<Mutex<String>>) {
        let files = ["tls.cert_file", "tls.key_file"]
            .map(|setting| File { setting, path: dir.path().join(setting) });
        let taken = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&taken);
        let followed = Followed::open(files.to_vec(), move |contents| {
            let [one, two] = contents else { panic!("two files") };
            if !two.ends_with(one) {
                return Err(Unusable::new("tls.key_file", "is not that of the certificate"));
            }
            *to.lock().unwrap() = String::from_utf8(one.clone()).unwrap();
            Ok(())
        });
        (followed.unwrap(), taken)
    }

    #[test]
    fn a_change_is_taken_when_it_is_whole_and_what_is_bad_leaves_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("tls.cert_file", "1");
        write("tls.key_file", "key of 1");
        let (mut followed, taken) = pair(&dir);
        let now = || taken.lock().unwrap().clone();
        followed.look(false);
        assert!(now() == "1" && followed.seen.is_none());
        // One after the other, with a look between: nobody complains.
        write("tls.cert_file", "2");
        followed.look(false);
        assert!(now() == "1" && !followed.judged);
        write("tls.key_file", "key of 2");
        followed.look(false);
        assert_eq!(now(), "1");
        followed.look(false);
        assert_eq!(now(), "2");
        // Somebody says that it is whole.
        write("tls.cert_file", "3");
        write("tls.key_file", "key of 3");
        followed.look(true);
        assert_eq!(now(), "3");
        // What is wrong is judged once, unless somebody asks.
        write("tls.key_file", "key of 2");
        for (judged, asked) in [(false, false), (true, false), (true, false), (true, true)] {
            followed.look(asked);
            assert_eq!((now().as_str(), followed.judged), ("3", judged));
        }
        for bad in ["", " \n", "missing", "folder"] {
            let path = dir.path().join("tls.key_file");
            let _ = std::fs::remove_file(&path);
            match bad {
                "missing" => {}
                "folder" => std::fs::create_dir(&path).unwrap(),
                text => std::fs::write(&path, text).unwrap(),
            }
            followed.look(true);
            assert!(now() == "3" && followed.judged, "{bad}");
        }
        std::fs::remove_dir(dir.path().join("tls.key_file")).unwrap();
        write("tls.key_file", "key of 3");
        followed.look(false);
        assert!(followed.seen.is_none(), "it is what is in force");
    }

    #[test]
    fn what_cannot_be_read_at_first_is_refused_by_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let file = File { setting: "tls.cert_file", path: dir.path().join(name) };
            Followed::open(vec![file], |_| Ok(())).err().map(|error| error.to_string())
        };
        assert!(open("missing").unwrap().contains("tls.cert_file"));
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        assert!(open("empty").unwrap().contains("is empty"));
        std::fs::write(dir.path().join("good"), "x").unwrap();
        assert_eq!(open("good"), None);
    }
}

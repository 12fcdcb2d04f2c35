//! The files of a spool: whose they are, and what is in them.
//!
//! Python: `<start>-<pid>[.<n>].spool`, each held by a flock, with `<start>-<pid>.<upload>.artifact` and `.blob` beside
//! them. TypeScript: `<start>-<pid>-<random>~<n>.nodespool`, `.nodeartifact` and `.nodeblob`; the process listens on
//! the socket `<start>-<pid>-<random>.lock`. This command: `<owner>.<random>.refused`, `.refused-artifact` and
//! `.refused-blob`, which the libraries leave alone, each held by a flock.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::format::{self, Maker, Records};
use super::hold;
use super::left::Left;
use super::open_runs::OpenRuns;
use super::uploads;

/// Reasons of refusals that are told of one process, at most.
const REASONS: usize = 100;

/// For which server something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    Server(String),
    /// It does not say.
    Unsaid,
    /// It is nothing that this command can read, and is left alone.
    Strange(&'static str),
}

/// What can be said of it without taking it.
#[derive(Debug)]
pub struct About {
    pub in_use: bool,
    pub aim: Aim,
    pub writes: u64,
    pub bytes: u64,
    /// At the ends of files, of records that were cut off.
    pub cut_bytes: u64,
    /// Whether it has begun runs that it has not ended.
    pub has_open_runs: bool,
    /// What was refused, and why.
    pub refusals: Vec<(String, String)>,
}

/// Where spools are when nothing says otherwise: a folder for each server.
pub fn default_folders() -> Vec<PathBuf> {
    let state = env::var_os("XDG_STATE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".local/state")));
    let Some(Ok(entries)) = state.map(|state| fs::read_dir(state.join("stepwell/spool"))) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Records,
    Artifact,
    /// The bytes of an artifact, or what was being written when its process was killed.
    Rest,
}

/// A name that a file of a spool may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name<'a> {
    maker: Maker,
    owner: &'a str,
    number: u64,
    kind: Kind,
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// How the libraries name processes.
fn owner_of_library(owner: &str) -> Option<Maker> {
    let parts: Vec<&str> = owner.split('-').collect();
    let is_random = |part: &str| {
        part.len() == 8 && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match parts[..] {
        [start, pid] if is_number(start) && is_number(pid) => Some(Maker::Python),
        [start, pid, random] if is_number(start) && is_number(pid) && is_random(random) => {
            Some(Maker::TypeScript)
        }
        _ => None,
    }
}

fn parse(name: &str) -> Option<Name<'_>> {
    if let Some((owner, rest)) = name.split_once('~') {
        let (number, ending) = rest.split_once('.')?;
        let kind = match ending {
            "nodespool" => Kind::Records,
            "nodeartifact" => Kind::Artifact,
            "nodeblob" | "nodeartifact.new" => Kind::Rest,
            _ => return None,
        };
        let known = owner_of_library(owner) == Some(Maker::TypeScript) && is_number(number);
        let number = number.parse().ok().filter(|_| known)?;
        return Some(Name { maker: Maker::TypeScript, owner, number, kind });
    }
    let (owner, rest) = name.split_once('.')?;
    let library = owner_of_library(owner)?;
    let (middle, ending) = rest.rsplit_once('.').unwrap_or(("", rest));
    let (maker, kind) = match ending {
        "spool" => (Maker::Python, Kind::Records),
        "artifact" => (Maker::Python, Kind::Artifact),
        "blob" => (Maker::Python, Kind::Rest),
        "half" if middle.ends_with(".refused") => (Maker::Refused, Kind::Rest),
        "half" => (Maker::Python, Kind::Rest),
        "refused" => (Maker::Refused, Kind::Records),
        "refused-artifact" => (Maker::Refused, Kind::Artifact),
        "refused-blob" => (Maker::Refused, Kind::Rest),
        _ => return None,
    };
    let number = match (maker, kind, middle) {
        (Maker::Python, Kind::Records, "") => 0,
        (Maker::Python, Kind::Records, middle) if is_number(middle) => middle.parse().ok()?,
        (Maker::Python, Kind::Records, _) | (_, _, "") => return None,
        _ => 0,
    };
    (maker == Maker::Refused || library == Maker::Python).then_some(Name {
        maker,
        owner,
        number,
        kind,
    })
}

/// When a process began, in microseconds; the library for TypeScript says it in milliseconds.
fn started_at_us(owner: &str) -> u64 {
    let start = owner.split('-').next().and_then(|start| start.parse().ok()).unwrap_or(0_u64);
    match owner_of_library(owner) {
        Some(Maker::TypeScript) => start.saturating_mul(1000),
        _ => start,
    }
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// The files of one process: those with records by number.
#[derive(Default)]
struct Files<'a> {
    records: BTreeMap<(u64, &'a str), PathBuf>,
    artifacts: Vec<PathBuf>,
}

/// Everything in a folder, of the oldest process first. A folder that is not there has nothing in it.
pub fn find(folder: &Path) -> io::Result<Vec<Left>> {
    let mut found: BTreeMap<(u64, &str, Maker), Files> = BTreeMap::new();
    let names = names_in(folder)?;
    for (name, about) in names.iter().filter_map(|name| Some((name, parse(name)?))) {
        let of = || (started_at_us(about.owner), about.owner, about.maker);
        match about.kind {
            Kind::Records => {
                let place = (about.number, name.as_str());
                found.entry(of()).or_default().records.insert(place, folder.join(name));
            }
            Kind::Artifact => {
                found.entry(of()).or_default().artifacts.push(folder.join(name));
            }
            Kind::Rest => {}
        }
    }
    let lefts = found.into_iter().map(|((_, owner, maker), files)| Left {
        folder: folder.to_owned(),
        maker,
        owner: owner.to_owned(),
        records: files.records.into_values().collect(),
        artifacts: files.artifacts,
    });
    // The lock of a process of Python is on its files with records: without one, nothing says whether it lives.
    Ok(lefts.filter(|left| left.maker != Maker::Python || !left.records.is_empty()).collect())
}

/// Removes what nobody can use any more: bytes without a description, what was being written when its process was
/// killed, and locks of processes that are gone and have left nothing else.
pub fn sweep(folder: &Path) {
    let Ok(names) = names_in(folder) else { return };
    let Some(named) = uploads::named_bytes(folder, &names) else { return };
    for (name, about) in names.iter().filter_map(|name| Some((name, parse(name)?))) {
        if about.kind != Kind::Rest || named.contains(name) {
            continue;
        }
        let path = folder.join(name);
        let is_free = match about.maker {
            Maker::TypeScript => !hold::is_held(folder, about.owner),
            // Whoever writes them has had a file with a lock for longer: it is in a list that is made now.
            Maker::Python => names_in(folder).is_ok_and(|now| {
                !now.iter().filter_map(|name| parse(name)).any(|other| {
                    other.maker == Maker::Python
                        && other.kind == Kind::Records
                        && other.owner == about.owner
                })
            }),
            Maker::Refused => {
                hold::is_unlocked(&path) && !path.with_extension("refused.half").exists()
            }
        };
        // An artifact may have been described meanwhile.
        let again = names_in(folder).ok().and_then(|now| uploads::named_bytes(folder, &now));
        if is_free && again.is_some_and(|named| !named.contains(name)) {
            let _ = fs::remove_file(path);
        }
    }
    let Ok(names) = names_in(folder) else { return };
    let owners: HashSet<&str> =
        names.iter().filter_map(|name| parse(name)).map(|about| about.owner).collect();
    for owner in names.iter().filter_map(|name| name.strip_suffix(".lock")) {
        let is_ours = owner_of_library(owner) == Some(Maker::TypeScript);
        if is_ours && !owners.contains(owner) && !hold::is_held(folder, owner) {
            let _ = fs::remove_file(folder.join(format!("{owner}.lock")));
        }
    }
}

impl Left {
    pub fn pid(&self) -> u64 {
        self.owner.split('-').nth(1).and_then(|pid| pid.parse().ok()).unwrap_or(0)
    }

    pub fn started_at_us(&self) -> u64 {
        started_at_us(&self.owner)
    }

    pub fn files(&self) -> usize {
        self.records.len() + self.artifacts.len()
    }

    /// Reads all of it.
    pub fn describe(&self) -> About {
        let mut about = About {
            in_use: hold::is_in_use(self),
            aim: Aim::Unsaid,
            writes: 0,
            bytes: 0,
            cut_bytes: 0,
            has_open_runs: false,
            refusals: Vec::new(),
        };
        let mut open = OpenRuns::default();
        for path in &self.records {
            let read = self.describe_file(path, &mut about, &mut open);
            // What is not there any more was sent meanwhile.
            if read.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                about.be_strange("cannot be read");
            }
        }
        for path in &self.artifacts {
            if let Some(server) = uploads::server_of(path, self.maker) {
                about.is_for(&server);
            }
            if self.maker == Maker::Refused && about.refusals.len() < REASONS {
                about.refusals.push(uploads::refusal(path));
            }
        }
        about.has_open_runs = !open.is_empty();
        about
    }

    fn describe_file(&self, path: &Path, about: &mut About, open: &mut OpenRuns) -> io::Result<()> {
        let mut records = Records::open(path, self.maker)?;
        let (mut is_first, mut reason) = (true, String::new());
        for record in records.by_ref() {
            let record = record?;
            let first = std::mem::replace(&mut is_first, false);
            if let Some(note) = format::note(&record) {
                if !format::is_known(&note) {
                    about.be_strange("is of another version of the library");
                }
                if let Some(server) = note["server"].as_str() {
                    about.is_for(server);
                }
                open.restore(&note);
                reason = note["refused"].as_str().unwrap_or_default().to_owned();
                continue;
            }
            about.writes += 1;
            let write = format::write_of(&record);
            if first && write.is_none() {
                about.be_strange("is no spool");
            }
            if let Some(write) = &write {
                open.observe(write);
            }
            if self.maker == Maker::Refused && about.refusals.len() < REASONS {
                let title = write.as_ref().map_or_else(|| "a write".to_owned(), format::title);
                about.refusals.push((title, std::mem::take(&mut reason)));
            }
        }
        let bytes = fs::metadata(path)?.len();
        about.bytes += bytes;
        about.cut_bytes += bytes.saturating_sub(records.whole());
        if is_first && bytes > 0 && !format::may_be_cut_off(path, self.maker)? {
            about.be_strange("is no spool");
        }
        Ok(())
    }
}

impl About {
    /// Whether there is nothing to be sent.
    pub fn is_nothing(&self) -> bool {
        self.writes == 0 && !self.has_open_runs && !matches!(self.aim, Aim::Strange(_))
    }

    fn be_strange(&mut self, why: &'static str) {
        if !matches!(self.aim, Aim::Strange(_)) {
            self.aim = Aim::Strange(why);
        }
    }

    fn is_for(&mut self, server: &str) {
        match &self.aim {
            Aim::Unsaid => self.aim = Aim::Server(server.to_owned()),
            // What is for one server is never sent to another.
            Aim::Server(other) if other != server => self.be_strange("names several servers"),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;

//! The folder of an export. While it is under way everything is in `.export/`: what the walk found, a part per file; what
//! changed meanwhile, in `changed.part`; and how far it is, in `state.json`, so that another run can go on. At the end
//! the files appear under their names, each whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bson::{Bson, Document};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::cli::exit::{Failure, Result};
use crate::cli::import::Collection;
use crate::proto;

const UNDER_WAY: &str = ".export";
const STATE: &str = "state.json";
const CHANGED: &str = "changed.part";
pub const MANIFEST: &str = "manifest.json";

/// How far an export is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What is exported; only the same can be continued.
    pub what: Value,
    pub gzip: bool,
    /// The filter with its times, encoded, in hex; empty: not settled yet.
    pub filter: String,
    /// Empty: nothing was received yet.
    pub token: String,
    /// Whether the walk is over.
    pub walked: bool,
    /// Bytes of each part that are valid.
    lengths: BTreeMap<String, u64>,
    /// Whether everything was received, and the two positions.
    pub complete: Option<(Option<i64>, Option<i64>)>,
}

/// A file of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub name: String,
    pub documents: u64,
    pub bytes: u64,
    pub sha256: String,
}

pub struct Folder {
    out: PathBuf,
    under_way: PathBuf,
    parts: BTreeMap<String, (BufWriter<File>, u64)>,
    pub state: State,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::CouldNotStart(format!("{}: {error}", path.display()))
}

/// What follows a name of the data model in the name of its file.
fn suffix(gzip: bool) -> &'static str {
    if gzip { ".jsonl.gz" } else { ".jsonl" }
}

impl Folder {
    /// A new export, or the one that was interrupted here.
    pub fn open(out: &Path, what: Value, gzip: bool, resume: bool) -> Result<Folder> {
        let under_way = out.join(UNDER_WAY);
        let state_file = under_way.join(STATE);
        let state = if resume {
            let text = fs::read(&state_file).map_err(|error| {
                Failure::CouldNotStart(format!(
                    "{}: no interrupted export to resume: {error}",
                    out.display()
                ))
            })?;
            let state: State = serde_json::from_slice(&text).map_err(|error| {
                Failure::CouldNotStart(format!("{}: {error}", state_file.display()))
            })?;
            if state.what != what || state.gzip != gzip {
                return Err(Failure::CouldNotStart(format!(
                    "{}: the interrupted export has other flags: give the same, or another folder",
                    out.display()
                )));
            }
            state
        } else {
            fresh(out, &under_way)?;
            State { what, gzip, ..State::default() }
        };
        let mut folder = Folder { out: out.to_owned(), under_way, parts: BTreeMap::new(), state };
        folder.rewind()?;
        if !resume {
            folder.remember()?;
        }
        Ok(folder)
    }

    /// Back to what `state` says: what was written since will come again.
    pub fn rewind(&mut self) -> Result<()> {
        self.parts.clear();
        let names = Collection::ALL.map(|collection| format!("{}.part", collection.name()));
        for name in names.into_iter().chain([CHANGED.to_owned()]) {
            let path = self.under_way.join(&name);
            let length = self.state.lengths.get(&name).copied().unwrap_or(0);
            let open = || {
                let mut file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .read(true)
                    .write(true)
                    .open(&path)?;
                if file.metadata()?.len() < length {
                    return Err(io::Error::other("is shorter than what was received"));
                }
                file.set_len(length)?;
                file.seek(SeekFrom::End(0))?;
                Ok(file)
            };
            let file = open().map_err(failed(&path))?;
            self.parts.insert(name, (BufWriter::new(file), length));
        }
        Ok(())
    }

    fn append(&mut self, part: &str, line: &str) -> Result<()> {
        let (file, length) = self.parts.get_mut(part).expect("every part is open");
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        *length += line.len() as u64 + 1;
        Ok(())
    }

    /// Takes a record in.
    pub fn add(&mut self, collection: Collection, document: Document) -> Result<()> {
        let document = Bson::Document(document).into_relaxed_extjson();
        if self.state.walked {
            let line = json!({ "collection": collection.name(), "document": document });
            return self.append(CHANGED, &line.to_string());
        }
        self.append(&format!("{}.part", collection.name()), &document.to_string())
    }

    /// Takes in that a record is there no more.
    pub fn remove(&mut self, removed: &proto::ExportedRemoval) -> Result<()> {
        let line = json!({
            "removed": {
                "execution_id": removed.execution_id,
                "step_id": removed.step_id,
                "artifact_id": removed.artifact_id,
            }
        });
        self.append(CHANGED, &line.to_string())
    }

    /// Everything so far is on disk, and another run goes on from here.
    pub fn remember(&mut self) -> Result<()> {
        for (name, (file, length)) in &mut self.parts {
            let path = self.under_way.join(name);
            file.flush().and_then(|()| file.get_ref().sync_data()).map_err(failed(&path))?;
            self.state.lengths.insert(name.clone(), *length);
        }
        let text = serde_json::to_vec(&self.state).map_err(io::Error::other)?;
        replace(&self.under_way.join(STATE), &text)
    }

    /// Writes the files, and the manifest last.
    pub fn finish(mut self, more: Map<String, Value>) -> Result<Vec<Written>> {
        self.remember()?;
        let changed = Changed::read(&self.under_way.join(CHANGED))?;
        let mut files = Vec::new();
        for collection in Collection::ALL {
            files.push(self.file(collection, &changed)?);
        }
        let mut manifest = more;
        let listed = files.iter().map(|file| {
            let Written { name, documents, bytes, sha256 } = file;
            (name.clone(), json!({ "documents": documents, "bytes": bytes, "sha256": sha256 }))
        });
        manifest.insert("files".to_owned(), Value::Object(listed.collect()));
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        text.push(b'\n');
        replace(&self.out.join(MANIFEST), &text)?;
        fs::remove_dir_all(&self.under_way).map_err(failed(&self.under_way))?;
        Ok(files)
    }

    /// One file: what the walk found and nothing replaced, then what changed.
    fn file(&self, collection: Collection, changed: &Changed) -> Result<Written> {
        let name = format!("{}{}", collection.name(), suffix(self.state.gzip));
        let unfinished = self.under_way.join(&name);
        let part = self.under_way.join(format!("{}.part", collection.name()));
        let mut documents = 0;
        let mut write = || -> io::Result<Hashed<BufWriter<File>>> {
            let file = Hashed::new(BufWriter::new(File::create(&unfinished)?));
            let mut target: Target = match self.state.gzip {
                true => Target::Gzip(GzEncoder::new(file, Compression::default())),
                false => Target::Plain(file),
            };
            for line in BufReader::new(File::open(&part)?).split(b'\n') {
                let line = line?;
                if !changed.replaces(collection, &line)? {
                    target.line(&line)?;
                    documents += 1;
                }
            }
            let mut source = File::open(self.under_way.join(CHANGED))?;
            for (offset, length) in changed.kept(collection) {
                let mut line = vec![0; length];
                source.seek(SeekFrom::Start(offset))?;
                source.read_exact(&mut line)?;
                let mut entry: Value = serde_json::from_slice(&line)?;
                target.line(entry["document"].take().to_string().as_bytes())?;
                documents += 1;
            }
            let mut file = match target {
                Target::Gzip(gzip) => gzip.finish()?,
                Target::Plain(file) => file,
            };
            file.flush()?;
            file.inner.get_ref().sync_data()?;
            Ok(file)
        };
        let file = write().map_err(failed(&unfinished))?;
        let path = self.out.join(&name);
        fs::rename(&unfinished, &path).map_err(failed(&path))?;
        let sha256 = file.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Written { name, documents, bytes: file.bytes, sha256 })
    }
}

/// Makes the folder ready, unless there is an export in it.
fn fresh(out: &Path, under_way: &Path) -> Result<()> {
    if under_way.exists() {
        return Err(Failure::CouldNotStart(format!(
            "{}: an export was interrupted here: add --resume, or give another folder",
            out.display()
        )));
    }
    let taken = Collection::ALL
        .iter()
        .flat_map(|collection| {
            [true, false].map(|gzip| format!("{}{}", collection.name(), suffix(gzip)))
        })
        .chain([MANIFEST.to_owned()])
        .find(|name| out.join(name).exists());
    if let Some(name) = taken {
        return Err(Failure::CouldNotStart(format!(
            "{}: already exists: give another folder",
            out.join(name).display()
        )));
    }
    fs::create_dir_all(under_way).map_err(failed(under_way))
}

/// Puts a file in the place of another, whole or not at all.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_data()?;
        fs::rename(&new, path)
    };
    write().map_err(failed(path))
}

enum Target {
    Plain(Hashed<BufWriter<File>>),
    Gzip(GzEncoder<Hashed<BufWriter<File>>>),
}

impl Target {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let target: &mut dyn Write = match self {
            Target::Plain(file) => file,
            Target::Gzip(gzip) => gzip,
        };
        target.write_all(line)?;
        target.write_all(b"\n")
    }
}

/// Counts and digests what is written.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where a line of `changed.part` is.
type Place = (u64, usize);

/// What changed of one execution.
#[derive(Debug, Default)]
struct OfExecution {
    /// Removed at some time: nothing that the walk found of it counts.
    removed: bool,
    execution: Option<Place>,
    /// `None`: removed.
    steps: BTreeMap<i64, Option<Place>>,
    artifacts: BTreeMap<String, Option<Place>>,
    points: Vec<Place>,
}

/// What changed during the walk: of each record the last.
#[derive(Debug, Default)]
struct Changed {
    executions: BTreeMap<String, OfExecution>,
}

/// What tells a document from others.
#[derive(Debug, Default, Deserialize)]
struct Key {
    #[serde(default)]
    execution_id: String,
    step_id: Option<i64>,
    artifact_id: Option<String>,
    #[serde(rename = "_id")]
    id: Option<Value>,
}

impl Key {
    fn artifact(&self) -> String {
        match &self.id {
            Some(Value::String(id)) => id.clone(),
            Some(id) => id["$oid"].as_str().unwrap_or_default().to_owned(),
            None => String::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    collection: String,
    document: Option<Key>,
    removed: Option<Key>,
}

impl Changed {
    fn read(path: &Path) -> Result<Changed> {
        let mut changed = Changed::default();
        let mut read = || {
            let mut offset = 0;
            for line in BufReader::new(File::open(path)?).split(b'\n') {
                let line = line?;
                let place = (offset, line.len());
                offset += line.len() as u64 + 1;
                changed.take(serde_json::from_slice(&line)?, place);
            }
            Ok(())
        };
        read().map_err(failed(path))?;
        Ok(changed)
    }

    fn take(&mut self, entry: Entry, place: Place) {
        if let Some(key) = entry.removed {
            let of = self.executions.entry(key.execution_id).or_default();
            match (key.step_id, key.artifact_id) {
                (Some(step_id), _) => {
                    of.steps.insert(step_id, None);
                }
                (None, Some(artifact_id)) => {
                    of.artifacts.insert(artifact_id, None);
                }
                (None, None) => *of = OfExecution { removed: true, ..OfExecution::default() },
            }
        }
        let Some(key) = entry.document else { return };
        let artifact = key.artifact();
        let of = self.executions.entry(key.execution_id).or_default();
        match Collection::ALL.into_iter().find(|known| known.name() == entry.collection) {
            Some(Collection::Executions) => of.execution = Some(place),
            Some(Collection::Steps) => {
                of.steps.insert(key.step_id.unwrap_or(-1), Some(place));
            }
            Some(Collection::Artifacts) => {
                of.artifacts.insert(artifact, Some(place));
            }
            Some(Collection::Metrics) => of.points.push(place),
            Some(Collection::Configurations) | None => {}
        }
    }

    /// Whether a line of the walk no longer counts.
    fn replaces(&self, collection: Collection, line: &[u8]) -> io::Result<bool> {
        if self.executions.is_empty() || collection == Collection::Configurations {
            return Ok(false);
        }
        let key: Key = serde_json::from_slice(line)?;
        let Some(of) = self.executions.get(&key.execution_id) else { return Ok(false) };
        Ok(of.removed
            || match collection {
                Collection::Executions => of.execution.is_some(),
                Collection::Steps => of.steps.contains_key(&key.step_id.unwrap_or(-1)),
                Collection::Artifacts => of.artifacts.contains_key(&key.artifact()),
                Collection::Metrics => !of.points.is_empty(),
                Collection::Configurations => false,
            })
    }

    /// The lines that hold, in their order.
    fn kept(&self, collection: Collection) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for of in self.executions.values() {
            match collection {
                Collection::Executions => places.extend(of.execution),
                Collection::Steps => places.extend(of.steps.values().flatten()),
                Collection::Artifacts => places.extend(of.artifacts.values().flatten()),
                Collection::Metrics => places.extend(&of.points),
                Collection::Configurations => {}
            }
        }
        places.sort_unstable();
        places
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn text(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).expect("a file of the export")
    }

    fn removed(execution_id: &str, step_id: Option<i32>) -> proto::ExportedRemoval {
        proto::ExportedRemoval { execution_id: execution_id.to_owned(), step_id, artifact_id: None }
    }

    #[test]
    fn the_last_of_each_record_holds_and_what_was_removed_is_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path();
        let mut folder = Folder::open(out, json!({}), false, false).expect("opens");
        let step =
            |n: i32, name: &str| doc! { "execution_id": "a", "step_id": n, "step_name": name };
        for id in ["a", "b", "c"] {
            let of = doc! { "execution_id": id, "status": "running" };
            folder.add(Collection::Executions, of).expect("added");
        }
        for n in 1..=3 {
            folder.add(Collection::Steps, step(n, "walked")).expect("added");
        }
        let of_b = doc! { "execution_id": "b", "step_id": 1 };
        folder.add(Collection::Steps, of_b.clone()).expect("added");
        folder.state.walked = true;
        folder.add(Collection::Steps, step(2, "first")).expect("added");
        folder.add(Collection::Steps, step(2, "last")).expect("added");
        folder.remove(&removed("a", Some(3))).expect("removed");
        // Deleted and made again: only what came since.
        folder.remove(&removed("b", None)).expect("removed");
        folder.add(Collection::Executions, doc! { "execution_id": "b", "n": 2 }).expect("added");
        folder.add(Collection::Executions, doc! { "execution_id": "c", "n": 1 }).expect("added");
        folder.remove(&removed("c", None)).expect("removed");
        let files = folder.finish(Map::new()).expect("finishes");
        assert_eq!(
            text(out, "executions.jsonl"),
            "{\"execution_id\":\"a\",\"status\":\"running\"}\n{\"execution_id\":\"b\",\"n\":2}\n"
        );
        let steps = text(out, "execution_steps.jsonl");
        let names: Vec<Value> = steps
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["step_name"].take())
            .collect();
        assert_eq!(names, ["walked", "last"], "{steps}");
        assert!(!out.join(UNDER_WAY).exists());
        let manifest: Value = serde_json::from_str(&text(out, MANIFEST)).expect("JSON");
        assert_eq!(manifest["files"]["execution_steps.jsonl"]["documents"], 2);
        assert_eq!(files[1].sha256, manifest["files"]["execution_steps.jsonl"]["sha256"]);
        // Nothing is overwritten.
        assert!(Folder::open(out, json!({}), false, false).is_err());
    }

    #[test]
    fn an_interrupted_export_goes_on_from_what_was_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path();
        let mut folder = Folder::open(out, json!({ "filter": 1 }), true, false).expect("opens");
        folder.add(Collection::Executions, doc! { "execution_id": "a" }).expect("added");
        folder.state.token = "t".to_owned();
        folder.remember().expect("remembered");
        folder.add(Collection::Executions, doc! { "execution_id": "lost" }).expect("added");
        drop(folder);
        assert!(Folder::open(out, json!({ "filter": 1 }), true, false).is_err(), "no --resume");
        assert!(Folder::open(out, json!({ "filter": 2 }), true, true).is_err(), "another filter");
        let mut folder = Folder::open(out, json!({ "filter": 1 }), true, true).expect("resumes");
        assert_eq!(folder.state.token, "t");
        folder.add(Collection::Executions, doc! { "execution_id": "b" }).expect("added");
        let files = folder.finish(Map::new()).expect("finishes");
        assert_eq!((files[0].name.as_str(), files[0].documents), ("executions.jsonl.gz", 2));
        let mut found = String::new();
        let file = File::open(out.join("executions.jsonl.gz")).expect("opens");
        flate2::read::GzDecoder::new(file).read_to_string(&mut found).expect("gzip");
        assert_eq!(found, "{\"execution_id\":\"a\"}\n{\"execution_id\":\"b\"}\n");
    }
}

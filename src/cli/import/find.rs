//! Which files to import: the ones given, and those in the folders given.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lines::{Line, Lines};
use crate::cli::exit::{Failure, Result};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collection {
    Executions,
    Steps,
    Configurations,
    Metrics,
    Artifacts,
}

impl Collection {
    pub const ALL: [Collection; 5] = [
        Collection::Executions,
        Collection::Steps,
        Collection::Configurations,
        Collection::Metrics,
        Collection::Artifacts,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Collection::Executions => "executions",
            Collection::Steps => "execution_steps",
            Collection::Configurations => "app_configurations",
            Collection::Metrics => "execution_metrics",
            Collection::Artifacts => "execution_artifacts",
        }
    }

    /// By the part of a file name before `.jsonl`.
    fn of_stem(stem: &str) -> Option<Self> {
        Collection::ALL.into_iter().find(|collection| collection.name() == stem)
    }
}

/// One file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub collection: Collection,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The files, each once: executions before steps before artifacts, in the order given and by name within a folder.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        let meta = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        let before = found.len();
        if meta.is_dir() {
            folder(path, &mut found, &mut seen)?;
            if found.len() == before && seen.is_empty() {
                return Err(Failure::CouldNotStart(format!(
                    "{}: no executions.jsonl, execution_steps.jsonl, execution_metrics.jsonl, \
                     app_configurations.jsonl or their .gz in it",
                    path.display()
                )));
            }
        } else {
            let collection = match by_name(path) {
                Some(collection) => collection,
                None => by_content(path)?,
            };
            add(path, collection, &mut found, &mut seen)?;
        }
    }
    found.sort_by_key(|file| file.collection);
    Ok(found)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::CouldNotStart(format!("{}: {error}", path.display()))
}

fn folder(path: &Path, found: &mut Vec<Found>, seen: &mut HashSet<PathBuf>) -> Result<()> {
    let entries: io::Result<Vec<fs::DirEntry>> =
        fs::read_dir(path).and_then(|entries| entries.collect());
    let mut entries = entries.map_err(|error| unreadable(path, &error))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &error))?;
        // Links to folders are not followed, so no loop of them is.
        if kind.is_dir() {
            folder(&entry.path(), found, seen)?;
        } else if let Some(collection) = by_name(&entry.path())
            && entry.path().is_file()
        {
            add(&entry.path(), collection, found, seen)?;
        }
    }
    Ok(())
}

fn add(
    path: &Path,
    collection: Collection,
    found: &mut Vec<Found>,
    seen: &mut HashSet<PathBuf>,
) -> Result<()> {
    let canonical = fs::canonicalize(path).map_err(|error| unreadable(path, &error))?;
    if seen.insert(canonical) {
        // Opened now: a file that cannot be read is known before anything is sent.
        let file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        let bytes = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        found.push(Found { path: path.to_owned(), collection, bytes });
    }
    Ok(())
}

fn by_name(path: &Path) -> Option<Collection> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".gz").unwrap_or(name);
    Collection::of_stem(name.strip_suffix(".jsonl")?)
}

/// A file given by another name: its first document says what it holds.
fn by_content(path: &Path) -> Result<Collection> {
    let unclear = |why: &str| {
        Failure::CouldNotStart(format!(
            "{}: {why}; name it executions.jsonl, execution_steps.jsonl, execution_metrics.jsonl or \
             app_configurations.jsonl",
            path.display()
        ))
    };
    let mut lines = Lines::open(path).map_err(|error| unreadable(path, &error))?;
    match lines.next().map_err(|error| unreadable(path, &error))? {
        None => Err(unclear("it contains no document")),
        Some(Line::Text { text, .. }) => {
            let first: serde_json::Value = serde_json::from_slice(text)
                .map_err(|_| unclear("its first line is not a JSON document"))?;
            if first.get("metrics").is_some() && first.get("timestamp").is_some() {
                return Ok(Collection::Metrics);
            }
            if ["artifact_name", "artifact_type", "storage_path"]
                .iter()
                .any(|key| first.get(key).is_some())
            {
                return Ok(Collection::Artifacts);
            }
            if ["step_name", "step_id", "step_key"].iter().any(|key| first.get(key).is_some()) {
                return Ok(Collection::Steps);
            }
            if first.get("configuration").is_some() && first.get("version").is_some() {
                return Ok(Collection::Configurations);
            }
            if first.get("execution_id").is_some() && first.get("app_name").is_some() {
                return Ok(Collection::Executions);
            }
            Err(unclear(
                "its first document is not an execution, step, metric point or configuration",
            ))
        }
        Some(Line::TooLong { .. }) => Err(unclear("its first line is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_and_files_are_known_by_name_or_content() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(&path, text).expect("a file");
            path
        };
        let steps = write("b/execution_steps.jsonl.gz", "");
        let executions = write("a/c/executions.jsonl", "");
        write("a/execution_metrics.jsonl", "");
        write("a/notes.txt", "");
        write("a/my_executions.jsonl", "");
        let found = find(&[dir.path().to_owned(), executions.clone()]).expect("files");
        let found: Vec<_> = found.into_iter().map(|file| (file.path, file.collection)).collect();
        assert_eq!(
            found,
            [
                (executions, Collection::Executions),
                (steps, Collection::Steps),
                (dir.path().join("a/execution_metrics.jsonl"), Collection::Metrics),
            ]
        );

        let step = write("x.json", "\u{feff}\n{\"execution_id\":\"e\",\"step_id\":1}\n");
        let execution = write("y.json", "{\"execution_id\":\"e\",\"app_name\":\"a\"}");
        let found = find(&[step.clone(), execution.clone()]).expect("files");
        let found: Vec<_> = found.into_iter().map(|file| (file.path, file.collection)).collect();
        assert_eq!(found, [(execution, Collection::Executions), (step, Collection::Steps)]);
        let configuration =
            write("z.json", r#"{"app_name":"a","version":"1","configuration":{"step_name":1}}"#);
        let found = find(std::slice::from_ref(&configuration)).expect("a file");
        assert_eq!(
            (&found[0].path, found[0].collection),
            (&configuration, Collection::Configurations)
        );

        let point = write("z.json", r#"{"execution_id":"e","timestamp":{"$date":0},"metrics":{}}"#);
        let found = find(std::slice::from_ref(&point)).expect("files");
        assert_eq!((&found[0].path, found[0].collection), (&point, Collection::Metrics));

        let artifact =
            write("z.json", "{\"step_id\":1,\"artifact_type\":null,\"storage_path\":\"p\"}");
        let found = find(std::slice::from_ref(&artifact)).expect("a file");
        assert_eq!(found[0].collection, Collection::Artifacts);
    }

    #[test]
    fn what_cannot_be_read_or_told_could_not_start() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let unclear = dir.path().join("unclear.json");
        fs::write(&unclear, "[1, 2]").expect("a file");
        for path in [dir.path().join("absent.jsonl"), dir.path().to_owned(), unclear] {
            let failure = find(&[path]).expect_err("nothing to import");
            assert!(matches!(failure, Failure::CouldNotStart(_)), "{failure}");
        }
    }
}

//! Folders of spools as libraries leave them: whose the files are, what is in them, and who has them.

use std::fs::File;
use std::os::unix::net::UnixListener;

use prost::Message as _;

use super::*;
use crate::clock::SystemClock;
use crate::proto;
use crate::proto::ingest_request::Write;

const NODE: &str = "1700000000000-42-0a1b2c3d";

fn create(id: &str) -> Vec<u8> {
    let create = proto::CreateExecutionRequest {
        execution_id: Some(id.to_owned()),
        app_name: "app".to_owned(),
        ..proto::CreateExecutionRequest::default()
    };
    proto::IngestRequest {
        sequence: 1,
        write: Some(Write::CreateExecution(create)),
        mirrored: None,
    }
    .encode_to_vec()
}

/// A file of the library for Python with these writes.
fn python(server: Option<&str>, writes: &[&str]) -> Vec<u8> {
    let mut bytes = format::framed_note(server, &[]);
    writes.iter().for_each(|id| bytes.extend(format::framed(&create(id))));
    bytes
}

/// The same of the library for TypeScript.
fn node(server: &str, writes: &[&str]) -> Vec<u8> {
    let note = format::framed_note(Some(server), &[]).split_off(4);
    let mut bytes = Vec::new();
    for record in std::iter::once(note).chain(writes.iter().map(|id| create(id))) {
        prost::encode_length_delimiter(record.len(), &mut bytes).unwrap();
        bytes.extend(record);
    }
    bytes
}

fn only(folder: &Path) -> Left {
    let mut found = find(folder).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn files(folder: &Path) -> Vec<String> {
    names_in(folder).unwrap()
}

#[test]
fn names_say_whose_files_they_are() {
    let name = |maker, owner, number, kind| Some(Name { maker, owner, number, kind });
    let of_node = |number, kind| name(Maker::TypeScript, "17-42-0a1b2c3d", number, kind);
    assert_eq!(parse("17-42.spool"), name(Maker::Python, "17-42", 0, Kind::Records));
    assert_eq!(parse("17-42.3.spool"), name(Maker::Python, "17-42", 3, Kind::Records));
    assert_eq!(parse("17-42.u.artifact"), name(Maker::Python, "17-42", 0, Kind::Artifact));
    assert_eq!(parse("17-42.u.blob"), name(Maker::Python, "17-42", 0, Kind::Rest));
    assert_eq!(parse("17-42.u.half"), name(Maker::Python, "17-42", 0, Kind::Rest));
    assert_eq!(parse("17-42-0a1b2c3d~7.nodespool"), of_node(7, Kind::Records));
    assert_eq!(parse("17-42-0a1b2c3d~8.nodeartifact"), of_node(8, Kind::Artifact));
    assert_eq!(parse("17-42-0a1b2c3d~8.nodeartifact.new"), of_node(8, Kind::Rest));
    for owner in ["17-42", "17-42-0a1b2c3d"] {
        let refused = |kind| name(Maker::Refused, owner, 0, kind);
        assert_eq!(parse(&format!("{owner}.0f.refused")), refused(Kind::Records));
        assert_eq!(parse(&format!("{owner}.0f.refused.half")), refused(Kind::Rest));
        assert_eq!(parse(&format!("{owner}.0f.refused-artifact")), refused(Kind::Artifact));
        assert_eq!(parse(&format!("{owner}.0f.refused-blob")), refused(Kind::Rest));
    }
    for other in [
        "notes.txt",
        "a-1.spool",
        "17.spool",
        "17-42.x.spool",
        "17-42.+3.spool",
        "17-42.1.2.spool",
        "17-42.spool.bak",
        "17-42-0a1b2c3d.spool",
        "17-42~7.nodespool",
        "17-42-zz~7.nodespool",
        "17-42-0A1B2C3D~7.nodespool",
        "17-42-0a1b2c3d~7.nodespool.bak",
        "17-42-0a1b2c3d~x.nodespool",
        "17-42-0a1b2c3d.lock",
        "17-42.refused",
    ] {
        assert_eq!(parse(other), None, "{other}");
    }
    assert_eq!(started_at_us("1700-42-0a1b2c3d"), 1_700_000);
    assert_eq!(started_at_us("1700-42"), 1700);
}

#[test]
fn files_come_in_the_order_in_which_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name: &str| dir.path().join(name);
    for name in ["2000000-7.10.spool", "2000000-7.9.spool", "2000000-7.spool", "1000000-8.spool"] {
        fs::write(named(name), python(Some("here:1"), &["a"])).unwrap();
    }
    fs::write(named("1500-9-0a1b2c3d~10.nodespool"), node("here:1", &["b"])).unwrap();
    fs::write(named("1500-9-0a1b2c3d~9.nodespool"), node("here:1", &["c"])).unwrap();
    fs::write(named("1000000-8.0f.refused"), python(Some("here:1"), &["d"])).unwrap();
    let found: Vec<(Maker, Vec<String>)> = find(dir.path())
        .unwrap()
        .iter()
        .map(|left| {
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            (left.maker, left.records.iter().map(name).collect())
        })
        .collect();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        found,
        [
            (Maker::Python, owned(&["1000000-8.spool"])),
            (Maker::Refused, owned(&["1000000-8.0f.refused"])),
            (
                Maker::TypeScript,
                owned(&["1500-9-0a1b2c3d~9.nodespool", "1500-9-0a1b2c3d~10.nodespool"])
            ),
            (Maker::Python, owned(&["2000000-7.spool", "2000000-7.9.spool", "2000000-7.10.spool"])),
        ]
    );
    assert!(find(&named("nowhere")).unwrap().is_empty());
}

#[test]
fn a_file_says_what_is_in_it_and_for_which_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("17-42.spool");
    let whole = python(Some("here:1"), &["a", "b"]);
    let last = create("b").len() + 4;
    // A crash has cut it anywhere within the last record, or there is none.
    for cut in 0..last {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let about = only(dir.path()).describe();
        assert_eq!(about.aim, Aim::Server("here:1".to_owned()), "{cut}");
        assert_eq!(about.writes, if cut == 0 { 2 } else { 1 });
        assert_eq!(about.cut_bytes, if cut == 0 { 0 } else { (last - cut) as u64 });
        assert!(!about.in_use && about.has_open_runs && !about.is_nothing());
    }
    // Cut in the middle of its first note: there was nothing in it yet.
    for end in 0..20 {
        fs::write(&path, &whole[..end]).unwrap();
        let about = only(dir.path()).describe();
        assert_eq!((about.aim.clone(), about.is_nothing()), (Aim::Unsaid, true), "{end}");
    }
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join(format!("{NODE}~1.nodespool")), node("there:2", &["a"])).unwrap();
    let about = only(dir.path()).describe();
    assert_eq!((about.aim, about.writes), (Aim::Server("there:2".to_owned()), 1));
}

#[test]
fn what_is_no_spool_is_strange() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("17-42.spool");
    let strange = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match only(dir.path()).describe() {
            about @ About { aim: Aim::Strange(_), .. } => !about.is_nothing(),
            _ => false,
        }
    };
    // Text, something with a length that holds no write, and a version that is not known yet.
    assert!(strange(b"this is somebody's own file\n"));
    assert!(strange(&format::framed(b"\xff\xff\xff\xff")));
    let mut other = format::framed(b"\xc2\x3e\x0e{\"stepwell\":2}");
    other.extend(format::framed(&create("a")));
    assert!(strange(&other));
    // Two servers in the files of one process.
    fs::write(dir.path().join("17-42.1.spool"), python(Some("there:2"), &["b"])).unwrap();
    assert!(strange(&python(Some("here:1"), &["a"])));
    fs::write(dir.path().join("17-42.1.spool"), python(Some("here:1"), &["b"])).unwrap();
    assert!(!strange(&python(Some("here:1"), &["a"])));
    // One without a note does not say for which server it is, but is a spool.
    fs::remove_file(dir.path().join("17-42.1.spool")).unwrap();
    assert!(!strange(&format::framed(&create("a"))));
}

#[test]
fn what_a_living_process_has_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["17-42.spool", "17-42.1.spool"].map(|name| dir.path().join(name));
    for path in &paths {
        fs::write(path, python(Some("here:1"), &["a"])).unwrap();
    }
    for path in &paths {
        let lock = File::open(path).unwrap();
        lock.lock().unwrap();
        assert!(only(dir.path()).describe().in_use);
        assert!(hold::claim(only(dir.path()), None, &SystemClock).unwrap().is_none());
        drop(lock);
    }
    let claimed = hold::claim(only(dir.path()), None, &SystemClock).unwrap().unwrap();
    assert!(only(dir.path()).describe().in_use, "it is ours now");
    assert!(hold::claim(only(dir.path()), None, &SystemClock).unwrap().is_none());
    claimed.remove().unwrap();
    assert!(files(dir.path()).is_empty());
}

#[test]
fn what_a_living_process_of_typescript_has_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join(format!("{NODE}.lock"));
    let listener = UnixListener::bind(&lock).unwrap();
    fs::write(dir.path().join(format!("{NODE}~1.nodespool")), node("here:1", &["a"])).unwrap();
    assert!(only(dir.path()).describe().in_use);
    assert!(hold::claim(only(dir.path()), None, &SystemClock).unwrap().is_none());
    sweep(dir.path());
    assert_eq!(files(dir.path()).len(), 2);
    // As after kill -9: the socket is still there, and nobody listens.
    drop(listener);
    let claimed = hold::claim(only(dir.path()), None, &SystemClock).unwrap().unwrap();
    assert!(!lock.exists());
    let again = only(dir.path());
    assert!(again.owner != NODE && again.describe().in_use, "it is ours now");
    assert!(hold::claim(again, None, &SystemClock).unwrap().is_none());
    claimed.remove().unwrap();
    assert!(files(dir.path()).is_empty());
}

#[test]
fn what_is_let_go_is_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("{NODE}~1.nodespool")), node("here:1", &["a"])).unwrap();
    drop(hold::claim(only(dir.path()), None, &SystemClock).unwrap().unwrap());
    let left = only(dir.path());
    let about = left.describe();
    assert_eq!((about.in_use, about.writes), (false, 1));
    assert!(hold::claim(left, None, &SystemClock).unwrap().is_some());
}

#[test]
fn bytes_that_nothing_describes_are_swept_away_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    // Of a process that lives, of one that is gone, and of one whose artifact another one has taken over.
    let [living, gone, taken, taker] =
        ["0a1b2c3d", "1a1b2c3d", "2a1b2c3d", "3a1b2c3d"].map(|random| format!("17-42-{random}"));
    let _listener = UnixListener::bind(dir.path().join(format!("{living}.lock"))).unwrap();
    drop(UnixListener::bind(dir.path().join(format!("{gone}.lock"))).unwrap());
    for owner in [&living, &gone, &taken] {
        write(&format!("{owner}~1.nodeblob"), b"bytes");
    }
    let said = format!("{{\"executionId\":\"a\",\"blob\":\"/elsewhere/{taken}~1.nodeblob\"}}");
    write(&format!("{taker}~1.nodeartifact"), said.as_bytes());
    write("17-42.spool", &python(Some("here:1"), &["a"]));
    for name in ["17-42.u.blob", "17-43.u.blob", "17-43.u.half", "17-44.0f.refused-blob"] {
        write(name, b"bytes");
    }
    for name in ["somebody.lock", "notes.blob", "17-42.txt"] {
        write(name, b"theirs");
    }
    sweep(dir.path());
    let mut kept: Vec<String> = [
        format!("{living}.lock"),
        format!("{living}~1.nodeblob"),
        format!("{taken}~1.nodeblob"),
        format!("{taker}~1.nodeartifact"),
    ]
    .into();
    kept.extend(
        ["17-42.spool", "17-42.txt", "17-42.u.blob", "notes.blob", "somebody.lock"]
            .map(str::to_owned),
    );
    kept.sort();
    assert_eq!(files(dir.path()), kept);
}

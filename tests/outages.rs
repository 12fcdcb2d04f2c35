//! What keeps a database from working, caused for real: each is told apart by reason, health, readiness, metric and log,
//! nothing that was answered OK is lost, and the server goes on by itself.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

#[path = "outages/running.rs"]
#[expect(dead_code, reason = "MongoDB has a test binary of its own")]
mod running;

use std::fs;
use std::path::Path;
use std::process::Command;

use running::{Running, Told};
use support::client::*;
use support::run;
use tempfile::TempDir;
use tonic::Code;

const GONE: Told = Told { code: Code::Unavailable, reason: "STORE_GONE", outage: "gone" };
const FULL: Told = Told { code: Code::Unavailable, reason: "STORE_FULL", outage: "full" };
const READ_ONLY: Told =
    Told { code: Code::Unavailable, reason: "STORE_READ_ONLY", outage: "read_only" };

fn data() -> TempDir {
    TempDir::with_prefix("stepwell-outages-").expect("a temp dir")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// Whether a command of the system works here, as most of them do only for root.
fn works(program: &str, args: &[&str]) -> bool {
    let done = Command::new(program).args(args).output();
    done.is_ok_and(|done| done.status.success())
}

#[test]
fn files_that_are_deleted_or_replaced_are_gone() {
    type Cause = fn(&Path);
    let causes: [(&str, Cause); 6] = [
        ("the directory is deleted", |data| fs::remove_dir_all(data).expect("deleted")),
        ("the database is deleted", |data| {
            fs::remove_file(data.join("stepwell.db")).expect("deleted");
        }),
        ("the write-ahead log is deleted", |data| {
            fs::remove_file(data.join("stepwell.db-wal")).expect("deleted");
        }),
        ("the directory is replaced by its copy", |data| {
            let old = data.with_extension("old");
            fs::rename(data, &old).expect("moved");
            copy(&old, data);
        }),
        ("the database is replaced by an empty file", |data| {
            let file = data.join("stepwell.db");
            fs::remove_file(&file).expect("deleted");
            fs::write(&file, "").expect("written");
        }),
        ("the database is emptied", |data| {
            let file = data.join("stepwell.db");
            fs::File::options().write(true).truncate(true).open(file).expect("emptied");
        }),
    ];
    for (what, cause) in causes {
        println!("{what}");
        run(async {
            let dir = data();
            let data = dir.path().join("data");
            let server = Running::on_files(&data).await;
            server.client.create("before").await;
            cause(&data);
            let refused = server.client.try_create_execution(create("after")).await;
            GONE.refuses(refused.map(drop));
            server.tells(&GONE).await;
            // What another file has is no answer either.
            GONE.refuses(server.client.try_execution("before").await.map(drop));
        });
    }
}

#[test]
fn a_directory_that_is_deleted_is_noticed_without_a_write() {
    run(async {
        let dir = data();
        let server = Running::on_files(&dir.path().join("data")).await;
        fs::remove_dir_all(dir.path().join("data")).expect("deleted");
        server.tells(&GONE).await;
    });
}

#[test]
fn files_that_are_moved_back_are_found_again() {
    run(async {
        let dir = data();
        let (here, there) = (dir.path().join("data"), dir.path().join("moved"));
        let mut server = Running::on_files(&here).await;
        server.client.create("before").await;
        for round in 0..3 {
            fs::rename(&here, &there).expect("moved");
            let id = format!("between{round}");
            GONE.refuses(server.client.try_create_execution(create(&id)).await.map(drop));
            server.tells(&GONE).await;
            fs::rename(&there, &here).expect("moved back");
            server.serves().await;
            server.client.create(&id).await;
        }
        server.restart().await;
        for id in ["before", "between0", "between1", "between2"] {
            server.client.execution(id).await;
        }
    });
}

#[test]
fn what_is_answered_while_the_directory_is_deleted_is_there_or_refused() {
    run(async {
        let dir = data();
        let (here, there) = (dir.path().join("data"), dir.path().join("moved"));
        let mut server = Running::on_files(&here).await;
        let client = server.client.clone();
        let writing = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let id = format!("n{number}");
                match client.try_create_execution(create(&id)).await {
                    Ok(_) => acknowledged.push(id),
                    Err(refused) => {
                        GONE.refuses(Err(refused));
                        return acknowledged;
                    }
                }
            }
            unreachable!("it is moved");
        });
        server.eventually_written(50).await;
        fs::rename(&here, &there).expect("moved");
        let acknowledged = support::in_time("a refusal", writing).await.expect("written");
        assert!(acknowledged.len() >= 50, "{}", acknowledged.len());
        server.kill();
        fs::rename(&there, &here).expect("moved back");
        server.start().await;
        for id in acknowledged {
            server.client.execution(&id).await;
        }
    });
}

/// A small disk of its own, for root.
struct Disk(TempDir);

impl Disk {
    fn mount(size: &str) -> Option<Disk> {
        let dir = data();
        let path = dir.path().display().to_string();
        let options = format!("size={size}");
        works("mount", &["-t", "tmpfs", "-o", &options, "none", &path]).then_some(Disk(dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        works("umount", &["-l", &self.0.path().display().to_string()]);
    }
}

#[test]
fn a_full_disk_is_told_and_over_when_there_is_room() {
    let Some(disk) = Disk::mount("24m") else {
        println!("left out: no disk can be mounted here");
        return;
    };
    run(async {
        let data = disk.0.path().join("data");
        let mut server = Running::on_files(&data).await;
        server.client.create("before").await;
        for round in 0..2 {
            let ballast = disk.0.path().join("ballast");
            let mut file = fs::File::create(&ballast).expect("made");
            // Until nothing goes in any more.
            let _ = std::io::copy(&mut std::io::repeat(0), &mut file);
            drop(file);
            let acknowledged = server.write_until_refused(&FULL, round).await;
            server.tells(&FULL).await;
            // Reads go on.
            server.client.execution("before").await;
            fs::remove_file(&ballast).expect("removed");
            server.serves().await;
            let id = format!("after{round}");
            server.client.create(&id).await;
            server.restart().await;
            for id in acknowledged.into_iter().chain([id]) {
                server.client.execution(&id).await;
            }
        }
    });
}

#[test]
fn a_limit_of_file_sizes_is_a_full_disk() {
    run(async {
        let dir = data();
        let server = Running::limited(&dir.path().join("data"), 1536).await;
        let acknowledged = server.write_until_refused(&FULL, 0).await;
        assert!(!acknowledged.is_empty());
        server.tells(&FULL).await;
        for id in acknowledged {
            server.client.execution(&id).await;
        }
    });
}

#[test]
fn files_that_are_read_only_are_told() {
    run(async {
        let dir = data();
        let data = dir.path().join("data");
        let server = Running::on_files(&data).await;
        server.client.create("before").await;
        let log = data.join("stepwell.db-wal").display().to_string();
        if !works("chattr", &["+i", &log]) {
            println!("left out: no file can be made read-only for root here");
            return;
        }
        let refused = server.client.try_create_execution(create("during")).await;
        let told = std::panic::AssertUnwindSafe(async {
            READ_ONLY.refuses(refused.map(drop));
            server.tells(&READ_ONLY).await;
            server.client.execution("before").await;
        });
        let told = futures::FutureExt::catch_unwind(told).await;
        assert!(works("chattr", &["-i", &log]), "nobody could remove it");
        if let Err(panic) = told {
            std::panic::resume_unwind(panic);
        }
        server.serves().await;
        server.client.create("during").await;
    });
}

#[test]
fn a_file_that_another_program_locks_is_away() {
    run(async {
        let dir = data();
        let data = dir.path().join("data");
        let server = Running::on_files(&data).await;
        let theirs = rusqlite::Connection::open(data.join("stepwell.db")).expect("opened");
        theirs.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let away = Told { code: Code::Unavailable, reason: "STORE_AWAY", outage: "away" };
        away.refuses(server.client.try_create_execution(create("during")).await.map(drop));
        server.tells(&away).await;
        theirs.execute_batch("COMMIT").expect("unlocked");
        server.serves().await;
        server.client.create("during").await;
    });
}

//! Child processes that cannot outlive the test: a small guard holds one end of a pipe, and when the test
//! process is gone, however it went, the guard kills the child.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;

/// The script of the guard. Its first argument is a folder to remove at the end, or nothing. It says the
/// child's pid, and later how the child ended.
const GUARD: &str = r#"
trap '' INT TERM HUP
exec 3<&0
clean="$1"; log="$2"; shift 2
"$@" >"$log" 2>&1 3<&- &
child=$!
echo "pid $child"
( cat <&3 >/dev/null 2>&1; kill -9 $child ) >/dev/null 2>&1 &
watch=$!
wait $child
code=$?
kill $watch 2>/dev/null
[ -n "$clean" ] && rm -rf "$clean"
echo "exit $code"
"#;

/// A child process under guard.
#[derive(Debug)]
pub struct Guarded {
    pid: Pid,
    guard: Child,
    lifeline: Option<ChildStdin>,
    exit: Mutex<mpsc::Receiver<i32>>,
    ended: Option<i32>,
}

impl Guarded {
    /// Starts `program`; what it prints goes to the file `log`. `clean` is removed when it has ended.
    pub fn start(program: &Path, args: &[String], log: &Path, clean: Option<&Path>) -> Guarded {
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard"])
            .arg(clean.unwrap_or(Path::new("")))
            .arg(log)
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh starts");
        let lifeline = guard.stdin.take();
        let mut lines = BufReader::new(guard.stdout.take().expect("stdout is piped")).lines();
        let first = lines.next().expect("the guard says the pid").expect("the guard can be read");
        let pid = first.strip_prefix("pid ").and_then(|pid| pid.parse().ok()).expect("a pid");
        let (tell, exit) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(code) = line.strip_prefix("exit ").and_then(|code| code.parse().ok()) {
                    // Nobody may be listening any more, and that is fine.
                    let _ = tell.send(code);
                }
            }
        });
        Guarded { pid: Pid::from_raw(pid), guard, lifeline, exit: Mutex::new(exit), ended: None }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            // It may end between the look and the signal; its pid is not used again that soon.
            let _ = kill(self.pid, signal);
        }
    }

    /// Kills it and returns when it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(PATIENCE);
    }

    /// Waits for its end; its exit code.
    pub fn wait(&mut self, patience: Duration) -> i32 {
        match self.ended {
            Some(code) => code,
            None => {
                let exit = self.exit.get_mut().expect("nobody panics while holding it");
                *self.ended.insert(exit.recv_timeout(patience).expect("the process ends in time"))
            }
        }
    }

    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended =
                self.exit.get_mut().expect("nobody panics while holding it").try_recv().ok();
        }
        self.ended.is_some()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        drop(self.lifeline.take());
        let _ = self.guard.wait();
    }
}

/// A port of 127.0.0.1 that nobody listens on just now.
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    socket.local_addr().expect("a bound socket has an address").port()
}

//! Facts about the machine and about processes on it, from /proc. What cannot be read is `None`, never a guess.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where the numbers come from.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: Option<String>,
    pub memory_mib: Option<u64>,
    pub os: &'static str,
    /// Load average over the last minute when the run began: above 0 the machine was not quiet.
    pub load_1m: Option<f64>,
}

impl Machine {
    pub fn here() -> Self {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let load = fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok());
        Machine {
            cores: thread::available_parallelism().map_or(1, usize::from),
            cpu: field("/proc/cpuinfo", "model name"),
            memory_mib: memory.map(|kib| kib / 1024),
            os: std::env::consts::OS,
            load_1m: load,
        }
    }
}

/// A process on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
}

/// A process that uses less of a core than this has nothing left to do.
const IDLE: f64 = 0.05;
/// How long it may take for that.
const IDLE_PATIENCE: Duration = Duration::from_secs(1800);

/// Memory pages of Linux on the machines we build for.
const PAGE_BYTES: u64 = 4096;
/// Clock ticks a second in /proc, fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

impl Process {
    pub fn new(pid: u32) -> Self {
        Process { pid }
    }

    pub fn this() -> Self {
        Process { pid: std::process::id() }
    }

    /// Memory in use: the resident set, in bytes.
    pub fn resident_bytes(self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * PAGE_BYTES)
    }

    /// Processor time used so far, in seconds.
    pub fn cpu_seconds(self) -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The name in parentheses may hold spaces; the fields after it do not.
        let rest = &text[text.rfind(')')? + 1..];
        let mut fields = rest.split_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some((user + system) / TICKS_PER_SECOND)
    }

    /// Waits until it has nothing left to do. `false`: it still has after half an hour.
    pub async fn idle(self) -> bool {
        let began = Instant::now();
        while let Some(before) = self.cpu_seconds() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let used = self.cpu_seconds().map_or(0.0, |after| after - before);
            if used < IDLE {
                return true;
            }
            if began.elapsed() > IDLE_PATIENCE {
                return false;
            }
        }
        true
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_a_missing_one_says_nothing() {
        assert!(Process::this().resident_bytes().is_some_and(|bytes| bytes > 0));
        assert!(Process::this().cpu_seconds().is_some());
        assert_eq!(Process::new(u32::MAX).resident_bytes(), None);
    }
}

//! How a command ends: what is said and with which code the process exits.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::process::ExitCode;

use tonic::Code;

use super::status::describe;

/// Shown by `--help`. The numbers are part of the command line's contract.
pub const CODES_HELP: &str = "\
Exit codes:
  0   done; `executions watch ID`: the execution completed; `import`: everything was imported
  1   the server refused it or part of it; `executions watch ID`: the execution failed, was
      cancelled or deleted; `import`: some records were refused or not sent; `doctor`: there is something to do;
      `analytics rebuild`: something had been counted incorrectly; `audit verify`: a record is not as it was written;
      `spool send`: something stays in the spool
  2   could not start: wrong arguments, unreadable input, no server at the address, no database
  78  `serve`, `config`, `doctor`: the configuration is refused
A reader that closes the pipe early (`| head`) ends a command quietly with 0.";

/// The process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Refused,
    CouldNotStart,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::CouldNotStart => 2,
        }
    }

    /// `Refused` if anything was.
    pub fn refused_if(refused: bool) -> Self {
        if refused { Exit::Refused } else { Exit::Done }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// The server, or the network after a good start, said no.
    Refused(String),
    /// Nothing was done.
    CouldNotStart(String),
    /// There is nobody at the server's address.
    Unreachable(String),
    /// Nobody reads our output any more.
    ReaderGone,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Refused(_) => Exit::Refused,
            Failure::CouldNotStart(_) | Failure::Unreachable(_) => Exit::CouldNotStart,
            Failure::ReaderGone => Exit::Done,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(message) | Failure::CouldNotStart(message) => f.write_str(message),
            Failure::Unreachable(message) => {
                write!(f, "no server responds at the --server address: {message}")
            }
            Failure::ReaderGone => f.write_str("the output was closed by its reader"),
        }
    }
}

/// A failure to write the output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::ReaderGone
        } else {
            Failure::Refused(format!("cannot write the output: {error}"))
        }
    }
}

/// The answer to a call. A server that is not there is a command that could not start.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let message = describe(&status);
        if status.code() != Code::Unavailable {
            Failure::Refused(message)
        } else if status.source().is_some() {
            Failure::Unreachable(message)
        } else {
            Failure::CouldNotStart(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code() {
        assert_eq!(Exit::Done.code(), 0);
        assert_eq!(Exit::Refused.code(), 1);
        assert_eq!(Exit::CouldNotStart.code(), 2);
        assert_eq!(Exit::refused_if(true), Exit::Refused);
        assert_eq!(Exit::refused_if(false), Exit::Done);
        assert_eq!(Failure::ReaderGone.exit(), Exit::Done);
    }

    #[test]
    fn a_closed_pipe_is_no_failure_but_a_full_disk_is() {
        let closed = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(closed.exit(), Exit::Done);
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit(), Exit::Refused);
    }

    #[test]
    fn an_absent_server_could_not_start_and_a_refusal_is_one() {
        let away = Failure::from(tonic::Status::unavailable("connection refused"));
        assert_eq!(away.exit(), Exit::CouldNotStart);
        let unknown = Failure::from(tonic::Status::not_found("no such execution"));
        assert_eq!(unknown.exit(), Exit::Refused);
        assert_eq!(unknown.to_string(), "no such execution (NOT_FOUND)");
    }
}

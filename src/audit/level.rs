//! How much is recorded.

/// Each level has what those before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Off,
    /// Who may not come in and who may not do what; keys, deletes, what only editors and operators may do; the server's
    /// own life.
    Security,
    /// Every write.
    Writes,
    /// Every read and every stream.
    All,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Off => "off",
            Level::Security => "security",
            Level::Writes => "writes",
            Level::All => "all",
        }
    }
}

/// Somebody may not come in.
pub const REFUSED: &str = "credential.refuse";
/// Somebody may not do something.
pub const DENIED: &str = "call.deny";
/// A file was read again.
pub const RELOAD: &str = "server.reload";

//! Why there is no answer.

/// Why a request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The URL is none, or not of a scheme that is allowed.
    Url,
    /// The name has no address, or nobody tells it.
    Unresolved,
    /// An address of the name is not allowed.
    ForbiddenAddress,
    NotConnected,
    /// The other side is not who it should be.
    Tls,
    /// No answer, or one that is not HTTP.
    NoAnswer,
    Timeout,
}

impl Failure {
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Url => "bad_url",
            Failure::Unresolved => "unresolved_name",
            Failure::ForbiddenAddress => "forbidden_address",
            Failure::NotConnected => "not_connected",
            Failure::Tls => "tls",
            Failure::NoAnswer => "no_answer",
            Failure::Timeout => "timeout",
        }
    }
}

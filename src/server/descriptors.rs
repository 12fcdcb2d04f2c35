//! File descriptors: how many this process may have, and how many connections that makes.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections of clients, where nothing is configured and descriptors do not say otherwise.
const CONNECTIONS: usize = 10_000;
/// Descriptors for everything else: the database, files of artifacts, the HTTP port.
const KEPT: usize = 512;
/// Fewer connections are no server.
const LEAST_CONNECTIONS: usize = 16;

/// Raises the soft limit of descriptors to the hard one, which costs nothing; the limit then. Shells and service managers
/// set the soft one to 1024 for the sake of programs that use `select`.
pub(super) fn raised() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of file descriptors");
        }
    }
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many connections there may be.
pub(super) fn connections(configured: Option<usize>, descriptors: usize) -> usize {
    let room = descriptors.saturating_sub(KEPT).max(LEAST_CONNECTIONS);
    let connections = configured.unwrap_or(room.min(CONNECTIONS));
    if connections > room {
        tracing::warn!(
            limits.connections = connections,
            descriptors,
            "descriptors may run out before the limit of connections is reached; raise the limit of open files"
        );
    }
    connections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_everything_else() {
        assert_eq!(connections(None, 1_048_576), 10_000);
        assert_eq!(connections(None, 4096), 3584);
        assert_eq!(connections(None, 200), 16);
        assert_eq!(connections(None, usize::MAX), 10_000);
        assert_eq!(connections(Some(20_000), usize::MAX), 20_000);
        assert_eq!(connections(Some(700), 1024), 700, "as somebody wants it");
    }

    #[test]
    fn the_soft_limit_is_the_hard_one() {
        let raised = raised();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(limit.current.is_none_or(|current| current == raised as u64));
    }
}

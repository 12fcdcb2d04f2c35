//! Round trips of records through documents, and reading of what other programs store.

use super::*;

//! Who calls, and what they may do. `need` is the one table of what a method needs, `caller` what somebody may do,
//! `gate` decides each call before anything is read from the database. `certificates` knows whose certificates are
//! credentials, `oidc` whose tokens, and `expiry` ends the streams of what ends by itself. `keyring` holds the keys in memory, `admin_keys`
//! those of the server's own file, `key` knows how they are written, `keys` makes and revokes them, `makers` says what who
//! made something may still do, and `throttle` bounds how often somebody may call or be wrong.

pub mod admin_keys;
pub mod caller;
pub mod certificates;
pub mod denied;
pub mod expiry;
pub mod gate;
pub mod key;
pub mod keyring;
pub mod keys;
pub mod makers;
pub mod need;
pub mod oidc;
pub mod throttle;

pub use caller::{Caller, CallerKind, Permit};
pub use denied::{Denied, Turned};
pub use gate::Gate;
pub use need::Need;

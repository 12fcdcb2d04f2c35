//! The log of changes: `tail` reads the change stream, `token` makes cursors of its tokens, `event` says what an event
//! means and `standing` what it says of where a record stands, `log` is what the store promises.

mod event;
mod log;
mod standing;
mod tail;
mod token;

pub use log::Log;

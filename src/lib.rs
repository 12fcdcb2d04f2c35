//! Stepwell, the execution-tracking server for AI apps. Modules in reading order.

pub mod clock;
pub mod domain;
pub mod proto;
pub mod store;

//! Stepwell, the execution-tracking server for AI apps. Modules in reading order.

pub mod domain;

pub mod clock;

pub mod detached;

pub mod config;

pub mod telemetry;

pub mod store;

pub mod blobs;

pub mod outbound;

pub mod watch;

pub mod follow;

pub mod app;

pub mod audit;
pub mod auth;

pub mod proto;

pub mod rpc;

pub mod http;

pub mod shutdown;

pub mod server;

pub mod doctor;

pub mod cli;

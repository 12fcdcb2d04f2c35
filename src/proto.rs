//! Generated from `proto/`: messages, clients and servers.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("stepwell.v1");

/// The descriptors of every file in `proto/` and its imports, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

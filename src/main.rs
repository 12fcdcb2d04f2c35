//! The `stepwell` program: parses the arguments, runs the command, exits with its code.

use std::process::ExitCode;

use clap::Parser as _;

/// A quarter of a busy server's time went into the allocator of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stepwell::cli::run(stepwell::cli::Cli::parse())
}

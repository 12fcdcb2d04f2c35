//! The `stepwell` program: parses the arguments, runs the command, exits with its code.

use std::process::ExitCode;

use clap::Parser as _;

/// A call of the server makes some two hundred small allocations, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stepwell::cli::run(stepwell::cli::Cli::parse())
}

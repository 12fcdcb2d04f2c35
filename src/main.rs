//! The `stepwell` program: parses the arguments, runs the command, exits with its code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    stepwell::cli::run(stepwell::cli::Cli::parse())
}

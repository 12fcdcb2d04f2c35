//! The command line.

pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ServeFlags;

/// The execution-tracking server for AI apps, and its client commands.
#[derive(Debug, Parser)]
#[command(name = "stepwell", version, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until a signal ends it.
    Serve(ServeFlags),
    /// Print the effective configuration.
    Config(ServeFlags),
}

/// Runs the command and says with which code the process ends.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(flags) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime.block_on(serve::serve(&flags)),
            Err(error) => {
                eprintln!("error: no threads can be started: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Config(flags) => serve::print_config(&flags),
    }
}

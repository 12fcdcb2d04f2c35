//! The command line: the server, and the commands that talk to one. Client commands reach data only through
//! gRPC, so that they work with any server.

mod analytics;
mod artifacts;
mod connection;
mod doctor;
mod executions;
mod exit;
mod filter;
mod health;
mod import;
mod json;
mod output;
mod reports;
mod retention;
mod search;
pub mod serve;
mod server_info;
mod table;
mod text;
mod time;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::SystemClock;
use crate::config::ServeFlags;
use connection::ServerArgs;
use exit::{CODES_HELP, Exit, Failure, Result};
use output::{OutputArgs, message};

/// The execution-tracking server for AI apps, and its client commands.
#[derive(Debug, Parser)]
#[command(name = "stepwell", version, after_help = CODES_HELP, subcommand_required = true)]
#[command(max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until a signal ends it.
    #[command(after_help = CODES_HELP)]
    Serve(Box<ServeFlags>),
    /// Print the effective configuration.
    Config(Box<ServeFlags>),
    /// List, show, watch, cancel and delete executions.
    #[command(after_help = CODES_HELP)]
    Executions {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: executions::Command,
    },
    /// Upload, download, list and delete the files that a run produced.
    #[command(after_help = CODES_HELP)]
    Artifacts {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: artifacts::Command,
    },
    /// Import executions with everything that belongs to them, and configurations, from Extended JSON files with
    /// one document per line.
    #[command(after_help = CODES_HELP)]
    Import {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: import::Args,
    },
    /// Check the database with the server's own settings, and report what is in order and what to do.
    ///
    /// Takes the settings of `serve` (file, environment, flags), can run beside a server, and changes nothing.
    #[command(after_help = CODES_HELP)]
    Doctor {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        flags: Box<ServeFlags>,
    },
    /// Delete what is older than the server's retention times.
    #[command(after_help = CODES_HELP)]
    Retention {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: retention::Command,
    },
    /// Rebuild the counts that reports are based on.
    #[command(after_help = CODES_HELP)]
    Analytics {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: analytics::Command,
    },
    /// Find words in errors, outputs and text artifacts.
    ///
    /// Case, accents and the style of identifiers are ignored: getUserName matches get_user_name.
    #[command(after_help = CODES_HELP)]
    Search {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: search::Args,
    },
    /// Show executions by day, week or month: number, success rate, duration, and what fails.
    #[command(after_help = CODES_HELP)]
    Report {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: reports::report::Args,
    },
    /// Show the number and duration of each app's executions over time, and which apps became slower.
    ///
    /// Without --since: the last 30 days.
    #[command(after_help = CODES_HELP)]
    Trends {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: reports::trends::Args,
    },
    /// Show the most frequent errors of executions and steps, with similar errors grouped.
    ///
    /// Without --since: the last 7 days.
    #[command(after_help = CODES_HELP)]
    Errors {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: reports::errors::Args,
    },
    /// Show when executions are started, by hour of the week and user, as a heat map.
    ///
    /// Without --since: the last 28 days.
    #[command(after_help = CODES_HELP)]
    Activity {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: reports::activity::Args,
    },
    /// Check whether the server is SERVING; exit code 0 if it is.
    #[command(after_help = CODES_HELP)]
    Health {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Tell where to find the load generator.
    #[command(hide = true, disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Show the server's version, store, features and limits.
    ServerInfo {
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// What every client command takes.
#[derive(Debug, Clone, Args)]
struct ClientArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command and says with which code the process ends.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(flags) => match runtime() {
            Ok(runtime) => runtime.block_on(serve::serve(&flags)),
            Err(exit) => exit,
        },
        Command::Config(flags) => serve::print_config(&flags),
        Command::Executions { client, command } => block_on(async {
            let connection = client.server.connect()?;
            executions::run(command, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Artifacts { client, command } => block_on(async {
            let connection = client.server.connect()?;
            artifacts::run(command, &connection, &client.output.open()).await
        }),
        Command::Import { client, args } => block_on(async {
            let connection = client.server.connect()?;
            import::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Doctor { output, flags } => match serve::load(&flags) {
            Ok(config) => block_on(async { doctor::run(&config, &output.open()).await }),
            Err(exit) => exit,
        },
        Command::Retention { client, command } => block_on(async {
            let connection = client.server.connect()?;
            retention::run(command, &connection, &client.output.open()).await
        }),
        Command::Analytics { client, command } => block_on(async {
            let connection = client.server.connect()?;
            analytics::run(command, &connection, &client.output.open()).await
        }),
        Command::Search { client, args } => block_on(async {
            let connection = client.server.connect()?;
            search::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Report { client, args } => block_on(async {
            let connection = client.server.connect()?;
            reports::report::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Trends { client, args } => block_on(async {
            let connection = client.server.connect()?;
            reports::trends::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Errors { client, args } => block_on(async {
            let connection = client.server.connect()?;
            reports::errors::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Activity { client, args } => block_on(async {
            let connection = client.server.connect()?;
            reports::activity::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Health { client } => block_on(async {
            let connection = client.server.connect()?;
            health::run(&connection, &client.output.open()).await
        }),
        Command::Bench { args: _ } => {
            message(
                "error: the load generator is a separate program, `stepwell-bench`, with the same \
                 arguments; in a clone: cargo run --release -p stepwell-bench -- track --help",
            );
            Exit::CouldNotStart.into()
        }
        Command::ServerInfo { client } => block_on(async {
            let connection = client.server.connect()?;
            server_info::run(&connection, &client.output.open()).await
        }),
    }
}

/// Runs a client command on a runtime of its own.
fn block_on(command: impl Future<Output = Result<Exit>>) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let ended = runtime.block_on(command);
    // A thread that still reads a file must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !matches!(failure, Failure::ReaderGone) {
                message(&format!("error: {failure}"));
            }
            failure.exit().into()
        }
    }
}

fn runtime() -> std::result::Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        message(&format!("error: cannot start threads: {error}"));
        Exit::CouldNotStart.into()
    })
}

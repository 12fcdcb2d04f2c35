//! The command line: the server, and the commands that talk to one. Client commands reach data only through
//! gRPC, so that they work with any server.

mod analytics;
mod artifacts;
mod audit;
mod connection;
mod doctor;
mod executions;
mod exit;
mod export;
mod filter;
mod health;
mod import;
mod json;
mod keys;
mod mirror;
mod notifications;
mod output;
mod reports;
mod retention;
mod search;
pub mod serve;
mod server_info;
mod source;
mod spool;
mod status;
mod table;
mod text;
mod time;
mod verify;
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
    /// Export executions with everything that belongs to them, and configurations, to the files that `import` reads.
    #[command(after_help = CODES_HELP)]
    Export {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: export::Args,
    },
    /// Compare two sides: whether they hold the same executions with everything that belongs to them, and which differ.
    ///
    /// Both may go on changing. `_id`, revisions and what else Stepwell adds do not count. --server is not used.
    #[command(after_help = verify::CODES_HELP)]
    Verify {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: verify::Args,
    },
    /// Bring what another database holds into a server, and go on bringing what changes there, until apps write to that
    /// server.
    #[command(after_help = CODES_HELP)]
    Mirror {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: mirror::Args,
    },
    /// Check the database with the server's own settings, and report what is in order and what to do.
    ///
    /// Takes the settings of `serve` (file, environment, flags), can run beside a server, and changes nothing.
    #[command(after_help = CODES_HELP)]
    Doctor {
        /// Print the command that makes the role of a server in MongoDB, and look at nothing.
        #[arg(long)]
        print_role: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        flags: Box<ServeFlags>,
    },
    /// Spread the database over the shards of a MongoDB cluster.
    #[command(after_help = CODES_HELP)]
    Shard {
        #[command(subcommand)]
        command: ShardCommand,
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
    /// Make, list, rotate and revoke the keys by which callers are known.
    #[command(after_help = CODES_HELP)]
    Keys {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Verify, list and export the record of who did what.
    #[command(after_help = CODES_HELP)]
    Audit {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: audit::Command,
    },
    /// Tell other systems over HTTP what happens to executions and steps.
    #[command(after_help = CODES_HELP)]
    Notifications {
        #[command(flatten)]
        client: ClientArgs,
        #[command(subcommand)]
        command: notifications::Command,
    },
    /// List, send and drop what apps have reported and their server does not have yet, from the files in which the
    /// libraries for Python and TypeScript keep it.
    #[command(after_help = CODES_HELP)]
    Spool {
        #[command(flatten)]
        output: OutputArgs,
        #[command(subcommand)]
        command: spool::Command,
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

#[derive(Debug, Subcommand)]
enum ShardCommand {
    /// Print the commands for mongosh, and run none.
    ///
    /// Takes the settings of `serve` for the name of the database, and connects to nothing.
    Plan {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        flags: Box<ServeFlags>,
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
        Command::Export { client, args } => block_on(async {
            let connection = client.server.connect()?;
            export::run(&args, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Verify { client, args } => block_on(async {
            verify::run(&args, &client.server, &client.output.open(), &SystemClock).await
        }),
        Command::Mirror { client, args } => {
            block_on(async { mirror::run(args, &client.server, &client.output.open()).await })
        }
        Command::Doctor { print_role, output, flags } => match serve::load(&flags) {
            Ok(config) if print_role => {
                block_on(async { doctor::print_role(&config, &output.open()) })
            }
            Ok(config) => block_on(async { doctor::run(&config, &output.open()).await }),
            Err(exit) => exit,
        },
        Command::Shard { command: ShardCommand::Plan { output, flags } } => {
            match serve::load(&flags) {
                Ok(config) => block_on(async { doctor::print_shard_plan(&config, &output.open()) }),
                Err(exit) => exit,
            }
        }
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
        Command::Keys { client, command: keys::Command::Generate } => {
            block_on(async { keys::generate(&client.output.open()) })
        }
        Command::Keys { client, command } => block_on(async {
            let connection = client.server.connect()?;
            keys::run(command, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Audit { client, command } => block_on(async {
            let connection = client.server.connect()?;
            audit::run(command, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Notifications { client, command } => block_on(async {
            let connection = client.server.connect()?;
            notifications::run(command, &connection, &client.output.open(), &SystemClock).await
        }),
        Command::Spool { output, command } => {
            block_on(async { spool::run(command, &output.open(), &SystemClock).await })
        }
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

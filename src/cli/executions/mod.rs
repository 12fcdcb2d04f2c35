//! `stepwell executions …`: look at executions, watch them, ask them to stop, delete them.

mod change;
mod count;
mod list;
mod show;

use clap::Subcommand;

use super::connection::Connection;
use super::exit::{Exit, Result};
use super::output::Output;
use super::watch;
use crate::clock::Clock;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List executions, newest start first.
    List(list::Args),
    /// Count executions.
    Count(count::Args),
    /// Show one execution with its steps.
    Show(show::Args),
    /// Watch one execution, or all that match, live.
    Watch(watch::Args),
    /// Ask an execution to stop. Its app is told, and decides.
    Cancel(change::CancelArgs),
    /// Delete executions with all their steps.
    Delete(change::DeleteArgs),
}

pub async fn run(
    command: Command,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    match command {
        Command::List(args) => list::run(&args, connection, output, clock).await,
        Command::Count(args) => count::run(&args, connection, output, clock).await,
        Command::Show(args) => show::run(&args, connection, output).await,
        Command::Watch(args) => watch::run(&args, connection, output, clock).await,
        Command::Cancel(args) => change::cancel(args, connection, output).await,
        Command::Delete(args) => change::delete(args, connection, output).await,
    }
}

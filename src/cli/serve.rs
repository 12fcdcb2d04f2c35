//! `stepwell serve` and `stepwell config`.

use std::process::ExitCode;
use std::sync::Arc;

use super::exit::Exit;
use crate::clock::SystemClock;
use crate::config::{self, Config, ConfigError, ServeFlags};
use crate::server::Server;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Serves until a signal ends it.
pub async fn serve(flags: &ServeFlags) -> ExitCode {
    let (config, warnings) = match Config::load(flags, std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error),
    };
    let telemetry = match telemetry::init(&config.log, &config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => return refuse(&error),
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = outlive_size_limits() {
        tracing::warn!(%error, "a limit of file sizes would end the server");
    }
    let code = run(config).await;
    telemetry.flush().await;
    code
}

/// A write over the limit of file sizes fails, where the signal for it would end the process.
fn outlive_size_limits() -> std::io::Result<()> {
    let signal = rustix::process::Signal::XFSZ.as_raw();
    // It stays caught although nobody listens.
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(signal)).map(drop)
}

async fn run(config: Config) -> ExitCode {
    let shutdown = Shutdown::new(&config.shutdown);
    // Before anything is opened: a signal during the start ends the process in order as well.
    if let Err(error) = shutdown.on_signals() {
        tracing::error!(%error, "cannot listen for signals");
        return Exit::CouldNotStart.into();
    }
    match Server::start_with(config, shutdown, Arc::new(SystemClock)).await {
        Ok(server) => ExitCode::from(server.ended().await.exit_code()),
        Err(error) => {
            tracing::error!("{error:#}");
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(config::EXIT_CODE),
                None => Exit::CouldNotStart.into(),
            }
        }
    }
}

/// Prints the effective configuration, secrets hidden.
pub fn print_config(flags: &ServeFlags) -> ExitCode {
    match load(flags) {
        Ok(config) => {
            print!("{}", config.printable());
            ExitCode::SUCCESS
        }
        Err(exit) => exit,
    }
}

/// The effective configuration, for commands that only look at it; warnings go to stderr.
pub fn load(flags: &ServeFlags) -> Result<Config, ExitCode> {
    let (config, warnings) =
        Config::load(flags, std::env::vars_os()).map_err(|error| refuse(&error))?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(config)
}

fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(config::EXIT_CODE)
}

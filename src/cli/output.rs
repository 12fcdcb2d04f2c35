//! Where the output goes: data on stdout, messages on stderr, colour only for a person who wants it.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};

use clap::{Args, ValueEnum};

use super::exit::Result;

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people: tables as wide as the terminal.
    #[default]
    Table,
    /// For programs: JSON with the API's field names, one object per line where there are several.
    Json,
}

/// The flags about output.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// How to write the data.
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t, global = true)]
    pub output: Format,
}

/// Writes data to stdout and knows who reads it.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub format: Format,
    /// Columns of the terminal; `None`: not a terminal, nothing is cut.
    pub width: Option<u16>,
    /// Whether colours are welcome.
    pub colour: bool,
}

impl OutputArgs {
    pub fn open(&self) -> Output {
        let terminal = io::stdout().is_terminal();
        let width = if terminal { comfy_table::Table::new().width() } else { None };
        // COLUMNS is honoured where there is no terminal to ask: a pager or a test says it.
        let width =
            width.or_else(|| env::var("COLUMNS").ok()?.parse().ok()).filter(|width| *width > 0);
        let colour = terminal
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        Output { format: self.output, width, colour }
    }
}

impl Output {
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes one line of data at once, so that a reader sees it at once.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes a value as one line of JSON.
    pub fn json(&self, value: &serde_json::Value) -> Result<()> {
        self.line(&value.to_string())
    }
}

/// Says something on stderr. A closed stderr is nobody's fault.
pub fn message(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

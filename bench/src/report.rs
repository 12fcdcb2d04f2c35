//! What a run says in the end: a header with the machine's facts, then tables or JSON.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::Format;
use super::connect::Server;
use super::machine::Machine;
use stepwell::proto::GetServerInfoRequest;
use stepwell::proto::admin_service_client::AdminServiceClient;

/// Says something on stderr while a run goes on. A closed stderr is nobody's fault.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Who was measured, and where.
#[derive(Debug, Clone, Serialize)]
pub struct Header {
    pub bench_version: &'static str,
    pub optimized_build: bool,
    pub machine: Machine,
    pub server_address: String,
    pub server_version: String,
    pub store: String,
    pub store_version: String,
}

impl Header {
    pub async fn of(server: &Server) -> anyhow::Result<Self> {
        let mut admin = AdminServiceClient::new(server.for_writes()?);
        let mut request = tonic::Request::new(GetServerInfoRequest {});
        request.set_timeout(Duration::from_secs(10));
        let info = admin
            .get_server_info(request)
            .await
            .with_context(|| format!("no answer from the server at {}", server.address()))?
            .into_inner();
        Ok(Header {
            bench_version: env!("CARGO_PKG_VERSION"),
            optimized_build: !cfg!(debug_assertions),
            machine: Machine::here(),
            server_address: server.address().to_owned(),
            server_version: info.version,
            store: info.store,
            store_version: info.store_version,
        })
    }

    pub fn line(&self) -> String {
        let Header { bench_version, machine, server_version, store, store_version, .. } = self;
        let memory = machine.memory_mib.map_or(String::new(), |mib| format!(", {mib} MiB"));
        let load = machine.load_1m.map_or(String::new(), |load| format!(", load {load:.2}"));
        let build = if self.optimized_build { "" } else { " (UNOPTIMIZED BUILD)" };
        format!(
            "stepwell-bench {bench_version}{build} against stepwell {server_version} on {store} \
             {store_version} at {}; {} cores of {}{memory}, {}{load}",
            self.server_address,
            machine.cores,
            machine.cpu.as_deref().unwrap_or("an unknown processor"),
            machine.os,
        )
    }
}

/// Columns with a title, numbers to the right.
pub fn table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(titles.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        let alignment = if index == 0 { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
    }
    table
}

/// Everything a workload has to say.
#[derive(Debug)]
pub struct Report {
    /// For `--output json`.
    pub json: Value,
    /// For people, with the notes that explain them.
    pub tables: Vec<Table>,
    pub notes: Vec<String>,
    pub errors: u64,
    pub messages: Vec<String>,
}

impl Report {
    pub fn print(&self, header: &Header, format: Format) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match format {
            Format::Json => {
                let mut all = json!({ "header": header, "errors": self.errors,
                    "error_messages": self.messages });
                if let (Value::Object(all), Value::Object(own)) = (&mut all, self.json.clone()) {
                    all.extend(own);
                }
                writeln!(out, "{all:#}")?;
            }
            Format::Table => {
                writeln!(out, "{}", header.line())?;
                for table in &self.tables {
                    writeln!(out, "{table}")?;
                }
                for note in &self.notes {
                    writeln!(out, "{note}")?;
                }
            }
        }
        out.flush()?;
        for message in &self.messages {
            progress(&format!("error: {message}"));
        }
        if self.errors > 0 {
            progress(&format!("{} errors: these numbers are not to be trusted", self.errors));
        }
        Ok(())
    }
}

/// `12,345`: whole numbers as people read them.
pub fn whole(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    if number <= -0.5 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds to the hundredth.
pub fn ms(number: f64) -> String {
    format!("{number:.2}")
}

/// Bytes as MiB.
pub fn mib(bytes: f64) -> String {
    format!("{:.1}", bytes / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_thousands_apart() {
        for (number, said) in [
            (0.0, "0"),
            (999.4, "999"),
            (1000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-12_345.0, "-12,345"),
            (-0.2, "0"),
        ] {
            assert_eq!(whole(number), said);
        }
    }
}

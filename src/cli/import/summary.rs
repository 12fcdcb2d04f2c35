//! What became of each file: counted, shown as a bar while it goes on, and as a table or JSON at the end.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::find::{Collection, Found};
use super::outgoing::Outgoing;
use super::reader::Read;
use super::send::{Listener, Outcome};
use crate::cli::exit::Result;
use crate::cli::output::{Output, message};
use crate::cli::table::{Column, Content};
use crate::cli::{table, text};
use crate::proto::RecordMetricsResponse;

/// Refusals that the JSON summary repeats at most; stderr has them all.
const REFUSALS_REPEATED: usize = 1000;

/// Counts of one file.
#[derive(Debug, Default, Clone, PartialEq)]
struct Counts {
    documents: u64,
    stored: u64,
    already_there: u64,
    refused: u64,
    not_sent: u64,
    /// Of the refused, points of metrics that are older than what the server keeps.
    too_old: u64,
    assumed_status: u64,
    /// The file could not be read to its end.
    unreadable: bool,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    collection: Collection,
    counts: Counts,
    /// Key that is not of the model -> documents that have it.
    left_out: BTreeMap<String, u64>,
    /// Steps without a number that wait for their pass.
    unnumbered: u64,
}

#[derive(Debug)]
struct Refusal {
    file: usize,
    line: u64,
    reason: String,
}

#[derive(Debug)]
pub struct Summary {
    files: Vec<File>,
    refusals: Vec<Refusal>,
    bar: ProgressBar,
    done: u64,
}

impl Summary {
    pub fn new(files: &[Found]) -> Self {
        let bytes = files.iter().map(|file| file.bytes).sum();
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        if std::io::stderr().is_terminal()
            && let Ok(style) = ProgressStyle::with_template(
                "{bar:24} {percent:>3} %  {bytes} of {total_bytes}  {elapsed}  {wide_msg}",
            )
        {
            bar.set_style(style);
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
        }
        Summary {
            files: files
                .iter()
                .map(|file| File {
                    path: file.path.clone(),
                    collection: file.collection,
                    counts: Counts::default(),
                    left_out: BTreeMap::new(),
                    unnumbered: 0,
                })
                .collect(),
            refusals: Vec::new(),
            bar,
            done: 0,
        }
    }

    /// Whether a file has steps without a number.
    pub fn has_unnumbered(&self, file: usize) -> bool {
        self.files[file].unnumbered > 0
    }

    /// The pass of the steps without a number does not take place.
    pub fn unnumbered_not_sent(&mut self) {
        for file in &mut self.files {
            file.counts.documents += file.unnumbered;
            file.counts.not_sent += file.unnumbered;
        }
    }

    /// A record was read and never answered.
    pub fn not_sent(&mut self, record: &Outgoing) {
        self.counts(record.file).not_sent += record.documents;
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
        for file in &self.files {
            for (key, documents) in &file.left_out {
                message(&text::one_line(&format!(
                    "note: {}: {key:?} is not a field of {} and was left out of {}",
                    file.path.display(),
                    file.collection.name(),
                    text::count(*documents, "document", "documents")
                )));
            }
        }
    }

    pub fn anything_refused(&self) -> bool {
        self.files.iter().any(|file| {
            file.counts.refused > 0 || file.counts.not_sent > 0 || file.counts.unreadable
        })
    }

    pub fn print(&self, output: &Output) -> Result<()> {
        let total = self.total();
        if output.is_json() {
            let files: Vec<_> = self
                .files
                .iter()
                .map(|file| {
                    let mut counts = numbers(&file.counts);
                    counts["file"] = json!(file.path.display().to_string());
                    counts["collection"] = json!(file.collection.name());
                    counts["left_out_keys"] = json!(file.left_out);
                    counts
                })
                .collect();
            let refusals: Vec<_> = self
                .refusals
                .iter()
                .map(|refusal| {
                    json!({
                        "file": self.files[refusal.file].path.display().to_string(),
                        "line": refusal.line,
                        "reason": refusal.reason,
                    })
                })
                .collect();
            return output
                .json(&json!({ "files": files, "total": numbers(&total), "refusals": refusals }));
        }
        let mut rows: Vec<Vec<Content>> = self
            .files
            .iter()
            .map(|file| row(&file.path.display().to_string(), &file.counts))
            .collect();
        if self.files.len() > 1 {
            rows.push(row("total", &total));
        }
        for line in table::render(output, &COLUMNS, rows) {
            output.line(&line)?;
        }
        Ok(())
    }

    fn counts(&mut self, file: usize) -> &mut Counts {
        &mut self.files[file].counts
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for Counts {
            documents,
            stored,
            already_there,
            refused,
            not_sent,
            too_old,
            assumed_status,
            unreadable,
        } in self.files.iter().map(|file| &file.counts)
        {
            total.documents += documents;
            total.stored += stored;
            total.already_there += already_there;
            total.refused += refused;
            total.not_sent += not_sent;
            total.too_old += too_old;
            total.assumed_status += assumed_status;
            total.unreadable |= unreadable;
        }
        total
    }

    fn refuse(&mut self, file: usize, line: u64, documents: u64, reason: &str) {
        self.counts(file).refused += documents;
        let path = self.files[file].path.display().to_string();
        self.say(&text::one_line(&format!("refused: {path}:{line}: {reason}")));
        if self.refusals.len() < REFUSALS_REPEATED {
            self.refusals.push(Refusal { file, line, reason: reason.to_owned() });
        }
    }

    fn points(&mut self, record: &Outgoing, points: RecordMetricsResponse) {
        let counted = |count: i64| u64::try_from(count).unwrap_or(0);
        let already_there = counted(points.already_there);
        let counts = self.counts(record.file);
        counts.stored += counted(points.accepted).saturating_sub(already_there);
        counts.already_there += already_there;
        counts.too_old += counted(points.too_old);
        let points_from_here =
            |count| format!("{} from here on", text::count(count, "point", "points"));
        for (count, what) in [
            (points.too_old, "older than the server keeps (retention.metrics)"),
            (points.in_future, "ahead of the server's clock"),
        ] {
            let count = counted(count);
            if count > 0 {
                let reason = format!("{}: {what}", points_from_here(count));
                self.refuse(record.file, record.line, count, &reason);
            }
        }
    }

    /// Says something above the bar.
    fn say(&self, text: &str) {
        self.bar.suspend(|| message(text));
    }
}

impl Listener for Summary {
    fn read(&mut self, read: &Read) {
        match read {
            Read::Write(record) => {
                self.counts(record.file).documents += record.documents;
                for key in &record.left_out {
                    *self.files[record.file].left_out.entry(key.clone()).or_default() += 1;
                }
            }
            Read::Refused { file, line, reason } => {
                self.counts(*file).documents += 1;
                self.refuse(*file, *line, 1, reason);
            }
            Read::Later { file } => self.files[*file].unnumbered += 1,
            Read::Unreadable { file, line, reason } => {
                self.counts(*file).unreadable = true;
                self.say(&text::one_line(&format!("error: {reason} (line {line})")));
            }
            Read::Progress { bytes } => self.bar.inc(*bytes),
        }
    }

    fn outcome(&mut self, record: &Outgoing, outcome: Outcome) {
        match outcome {
            Outcome::Refused(reason) | Outcome::NoExecution(reason) | Outcome::Denied(reason) => {
                self.refuse(record.file, record.line, record.documents, &reason);
            }
            Outcome::Points(points) => self.points(record, points),
            stored => {
                let counts = self.counts(record.file);
                match stored {
                    Outcome::Stored => counts.stored += 1,
                    _ => counts.already_there += 1,
                }
                counts.assumed_status += u64::from(record.assumed);
            }
        }
        self.done += 1;
        if self.done.is_multiple_of(64) {
            let total = self.total();
            let refused = match total.refused {
                0 => String::new(),
                refused => format!(", {refused} refused"),
            };
            self.bar.set_message(format!("{} in{refused}", total.stored + total.already_there));
        }
    }

    fn trouble(&mut self, reason: &str) {
        self.say(&format!("note: retrying: {reason}"));
    }
}

const COLUMNS: [Column; 7] = [
    Column::cut("FILE", 16),
    Column::whole("DOCUMENTS").right(),
    Column::whole("STORED").right(),
    Column::whole("ALREADY THERE").right(),
    Column::whole("REFUSED").right(),
    Column::whole("NOT SENT").right().spare(1),
    Column::whole("ASSUMED STATUS").right().spare(2),
];

fn row(name: &str, counts: &Counts) -> Vec<Content> {
    let unless_zero = |count: u64| if count == 0 { String::new() } else { count.to_string() };
    vec![
        name.into(),
        counts.documents.to_string().into(),
        counts.stored.to_string().into(),
        counts.already_there.to_string().into(),
        counts.refused.to_string().into(),
        unless_zero(counts.not_sent).into(),
        unless_zero(counts.assumed_status).into(),
    ]
}

fn numbers(counts: &Counts) -> serde_json::Value {
    json!({
        "documents": counts.documents,
        "stored": counts.stored,
        "already_there": counts.already_there,
        "refused": counts.refused,
        "not_sent": counts.not_sent,
        "too_old": counts.too_old,
        "assumed_status": counts.assumed_status,
        "unreadable": counts.unreadable,
    })
}

//! The moving part of a terminal: lines that scroll away above, and bars that stay below.

use std::collections::HashMap;
use std::hash::Hash;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output::Output;
use crate::cli::text;

/// Bars at most; the rest are only counted.
const BARS: usize = 16;
/// Steps of a bar: progress is shown to the percent.
const BAR_STEPS: f64 = 100.0;

/// One header, some bars, and a line that counts those that have no bar of their own.
pub struct Screen<K> {
    multi: MultiProgress,
    header: ProgressBar,
    more: ProgressBar,
    bars: HashMap<K, ProgressBar>,
    colour: bool,
}

/// What a bar shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    pub label: String,
    /// From 0 to 1, if it is known.
    pub progress: Option<f64>,
    pub clock: String,
    pub message: String,
}

impl<K: Clone + Eq + Hash> Screen<K> {
    pub fn new(output: &Output) -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(15));
        let header = multi.add(ProgressBar::new_spinner());
        header.set_style(style("{spinner} {wide_msg}"));
        let more = multi.add(ProgressBar::new_spinner());
        more.set_style(style("{wide_msg}"));
        Screen { multi, header, more, bars: HashMap::new(), colour: output.colour }
    }

    pub fn header(&self, text: &str) {
        self.header.set_message(text::one_line(text));
        self.header.tick();
    }

    /// A line that scrolls away above the bars. On a narrow terminal it takes several.
    pub fn line(&self, text: &str) {
        let _ = self.multi.println(text);
    }

    /// Shows exactly these rows; `hidden` more are only counted. What is not among them goes away.
    pub fn rows(&mut self, rows: Vec<(K, Row)>, hidden: usize) {
        self.bars.retain(|key, bar| {
            let kept = rows.iter().any(|(shown, _)| shown == key);
            if !kept {
                bar.finish_and_clear();
                self.multi.remove(bar);
            }
            kept
        });
        for (key, row) in rows {
            let bar = self.bars.entry(key).or_insert_with(|| {
                let bar = self.multi.insert_before(&self.more, ProgressBar::new(BAR_STEPS as u64));
                bar.set_style(style(TEMPLATE_UNKNOWN));
                bar
            });
            let template = match (row.progress, self.colour) {
                (None, _) => TEMPLATE_UNKNOWN,
                (Some(_), false) => TEMPLATE,
                (Some(_), true) => TEMPLATE_COLOUR,
            };
            bar.set_style(style(template));
            bar.set_position((row.progress.unwrap_or(0.0).clamp(0.0, 1.0) * BAR_STEPS) as u64);
            bar.set_prefix(text::one_line(&row.label));
            bar.set_message(text::one_line(&format!("{}  {}", row.clock, row.message)));
            bar.tick();
        }
        self.more.set_message(match hidden {
            0 => String::new(),
            hidden => format!("  … and {hidden} more"),
        });
    }

    /// Leaves the header as the last line and takes the bars away.
    pub fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
        self.more.finish_and_clear();
        let last = self.header.message();
        self.header.finish_and_clear();
        self.line(&last);
    }
}

/// How many rows may have a bar, on a terminal of this height.
pub fn room() -> usize {
    BARS
}

const TEMPLATE: &str = "  {prefix:28!} {bar:20} {percent:>3} % {wide_msg}";
const TEMPLATE_COLOUR: &str = "  {prefix:28!} {bar:20.cyan/dim} {percent:>3} % {wide_msg}";
const TEMPLATE_UNKNOWN: &str = "  {prefix:28!} {spinner:20}       {wide_msg}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

//! Values as people read them: on one line, without control characters.

use std::time::Duration;

use prost_types::Timestamp;

use crate::proto;

/// Stands for a value that is not there.
pub const NOTHING: &str = "–";

/// One line that cannot move a terminal's cursor: line breaks become spaces, other control characters their
/// visible pictures.
pub fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { printable(c) }).collect()
}

/// Several lines that cannot move a terminal's cursor.
pub fn lines(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => c,
            '\t' => ' ',
            c => printable(c),
        })
        .filter(|c| *c != '\u{240d}')
        .collect()
}

fn printable(c: char) -> char {
    match c {
        // The pictures of the ASCII control characters lie in the same order.
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        // The other control characters, and marks that turn the direction of writing.
        '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    }
}

/// A time to the second for tables, in UTC.
pub fn time(at: Option<&Timestamp>) -> String {
    match at {
        None => NOTHING.to_owned(),
        Some(at) => {
            let whole = Timestamp { seconds: at.seconds, nanos: 0 };
            whole.to_string().replace('T', " ").trim_end_matches('Z').to_owned()
        }
    }
}

/// A time as RFC 3339, to the millisecond.
pub fn exact_time(at: &Timestamp) -> String {
    at.to_string()
}

/// Milliseconds as a person says them. Negative ones are shown as they are.
pub fn duration_ms(ms: Option<i64>) -> String {
    let Some(ms) = ms else { return NOTHING.to_owned() };
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", long_duration(Duration::from_millis(ms.unsigned_abs())))
}

fn long_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        _ if ms < 1000 => format!("{ms}ms"),
        0..60 => format!("{}.{}s", seconds, ms % 1000 / 100),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes:02}m"),
        _ => format!("{days}d {hours:02}h"),
    }
}

/// A running clock: `1:02:03`.
pub fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

pub fn execution_status(status: i32) -> &'static str {
    match proto::ExecutionStatus::try_from(status) {
        Ok(proto::ExecutionStatus::Running) => "running",
        Ok(proto::ExecutionStatus::Completed) => "completed",
        Ok(proto::ExecutionStatus::Failed) => "failed",
        Ok(proto::ExecutionStatus::Cancelled) => "cancelled",
        Ok(proto::ExecutionStatus::Unspecified) | Err(_) => "unknown",
    }
}

pub fn step_status(status: i32) -> &'static str {
    match proto::StepStatus::try_from(status) {
        Ok(proto::StepStatus::Pending) => "pending",
        Ok(proto::StepStatus::Running) => "running",
        Ok(proto::StepStatus::Completed) => "completed",
        Ok(proto::StepStatus::Failed) => "failed",
        Ok(proto::StepStatus::Skipped) => "skipped",
        Ok(proto::StepStatus::Unspecified) | Err(_) => "unknown",
    }
}

/// App and part of the app.
pub fn app(execution: &proto::Execution) -> String {
    match execution.sub_app_name.as_deref() {
        Some(part) if !part.is_empty() => format!("{} / {part}", execution.app_name),
        _ => execution.app_name.clone(),
    }
}

/// How a step is called in lines: its number, its key if it has one, its name.
pub fn step_label(step: &proto::Step) -> String {
    let number = step.step_id.map_or_else(|| NOTHING.to_owned(), |id| id.to_string());
    match step.step_key.as_deref() {
        Some(key) if !key.is_empty() && key != step.step_name => {
            one_line(&format!("{number} {} [{key}]", step.step_name))
        }
        _ => one_line(&format!("{number} {}", step.step_name)),
    }
}

/// An error on one line.
pub fn error(error: Option<&proto::Error>) -> String {
    match error {
        None => String::new(),
        Some(error) if error.code.is_empty() => one_line(&error.message),
        Some(error) => one_line(&format!("{}: {}", error.code, error.message)),
    }
}

/// `3 completed, 1 failed`; with `or more` where not all were counted.
pub fn step_counts(counts: &proto::StepCounts) -> String {
    let parts = [
        (counts.completed, "completed"),
        (counts.failed, "failed"),
        (counts.running, "running"),
        (counts.pending, "pending"),
        (counts.skipped, "skipped"),
    ];
    let parts = parts.into_iter().filter(|(number, _)| *number > 0);
    let mut text = parts
        .map(|(number, status)| format!("{number} {status}"))
        .chain((!counts.exact).then(|| "or more".to_owned()))
        .collect::<Vec<_>>()
        .join(", ");
    if text.is_empty() {
        text.push_str("none");
    }
    text
}

/// `1 step`, `2 steps`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_by_status() {
        let counts =
            proto::StepCounts { completed: 3, running: 1, exact: true, ..Default::default() };
        assert_eq!(step_counts(&counts), "3 completed, 1 running");
        assert_eq!(
            step_counts(&proto::StepCounts { exact: false, ..counts }),
            "3 completed, 1 running, or more"
        );
        let none = proto::StepCounts { exact: true, ..Default::default() };
        assert_eq!(step_counts(&none), "none");
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(one_line("a\nb\tc\u{1b}[31mred\u{7}"), "a b c␛[31mred␇");
        assert_eq!(one_line("  padded \r\n"), "padded");
        assert_eq!(lines("a\r\nb\u{1b}"), "a\nb␛");
        assert_eq!(one_line("\u{202e}evil"), "\u{fffd}evil");
    }

    #[test]
    fn durations_are_short_and_keep_their_sign() {
        for (ms, said) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_500, "1.5s"),
            (59_999, "59.9s"),
            (61_000, "1m 01s"),
            (3_661_000, "1h 01m"),
            (90_000_000, "1d 01h"),
            (-38_000, "-38.0s"),
            (i64::MIN, "-106751991167d 07h"),
        ] {
            assert_eq!(duration_ms(Some(ms)), said, "{ms}");
        }
        assert_eq!(duration_ms(None), NOTHING);
    }

    #[test]
    fn times_are_utc_to_the_second_and_exact_ones_to_the_millisecond() {
        let at = Timestamp { seconds: 1_547_430_586, nanos: 952_000_000 };
        assert_eq!(time(Some(&at)), "2019-01-14 01:49:46");
        assert_eq!(exact_time(&at), "2019-01-14T01:49:46.952Z");
        assert_eq!(time(None), NOTHING);
    }

    #[test]
    fn a_clock_shows_hours_only_when_there_are_some() {
        assert_eq!(elapsed(Duration::from_secs(65)), "01:05");
        assert_eq!(elapsed(Duration::from_secs(3725)), "1:02:05");
    }
}

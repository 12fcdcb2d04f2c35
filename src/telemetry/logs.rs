//! Logs, as text or JSON.

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// Writes one line an event: as text, in colour on a terminal, or as one JSON object with the fields at its top
/// level beside `timestamp`, `level`, `target` and `message`.
pub fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colour).boxed()
        }
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, level: &str, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = layer(format, move || writer.clone())
            .with_filter(crate::config::log_filter::filter(level).expect("a filter"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let bytes = written.0.lock().expect("no panic while writing").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_line_of_json_has_its_fields_at_the_top() {
        let text = written(LogFormat::Json, "info", || {
            tracing::info!(execution.id = "e1", duration_ms = 5, "a \"quoted\" word");
            tracing::debug!("not this one");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(lines[0]).expect("JSON");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "a \"quoted\" word");
        assert_eq!(line["execution.id"], "e1");
        assert_eq!(line["duration_ms"], 5);
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[test]
    fn libraries_are_quiet_unless_named() {
        let log = || {
            tracing::info!(target: "h2", "chatter");
            tracing::info!(target: "stepwell", "ours");
        };
        let text = written(LogFormat::Text, "info", log);
        assert!(text.contains("ours") && !text.contains("chatter"), "{text}");
        let text = written(LogFormat::Text, "info,h2=info", log);
        assert!(text.contains("chatter"), "{text}");
    }
}

//! What of the log is written: directives, read when the configuration is loaded and when the log begins.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Chatter of libraries that is none of an operator's business below `warn`.
const QUIET: [&str; 6] = ["h2", "hyper", "tower", "tonic", "mongodb", "opentelemetry"];

/// The filter of these directives: a level, or `tracing` directives separated by commas. A bare level speaks of
/// Stepwell; the libraries below it stay at `warn` unless a directive names them.
pub fn filter(directives: &str) -> Result<EnvFilter, String> {
    let mut whole = String::new();
    for library in QUIET {
        whole.push_str(library);
        whole.push_str("=warn,");
    }
    for directive in directives.split(',') {
        // A bare word that is no level would be taken for a module and silence everything else.
        let bare = !directive.contains(['=', '[', ':']);
        if directive.trim().is_empty() || bare && directive.trim().parse::<LevelFilter>().is_err() {
            return Err(format!("{directive:?} is not a log level"));
        }
    }
    whole.push_str(directives);
    EnvFilter::builder().parse(whole).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives() {
        for good in
            ["info", "OFF", "warn,stepwell::watch=trace", "info,h2=debug", "debug,[rpc]=trace"]
        {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,loud", "stepwell=loud", "info,,", "a=b=c"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}

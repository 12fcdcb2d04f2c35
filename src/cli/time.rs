//! Moments as people give them: RFC 3339, or how long ago.

use std::time::Duration;

use prost_types::Timestamp;

use crate::domain::Now;

/// A moment on the command line, before the clock is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    /// For clap: RFC 3339 with a zone, or a duration like `24h` or `1h 30m`, meaning so long ago.
    pub fn parse(given: &str) -> Result<Self, String> {
        let given = given.trim();
        if let Some(at) = rfc3339(given) {
            return Ok(Moment::At(at));
        }
        humantime::parse_duration(given).map(Moment::Ago).map_err(|_| {
            "must be a time with its zone, such as 2026-01-31T08:00:00Z, or a time ago, such as 24h".to_owned()
        })
    }

    pub fn resolve(&self, now: Now) -> Timestamp {
        match self {
            Moment::At(at) => *at,
            Moment::Ago(ago) => {
                let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
                let micros = now.micros.saturating_sub(ago).max(FIRST_MICROS);
                Timestamp {
                    seconds: micros.div_euclid(1_000_000),
                    nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0),
                }
            }
        }
    }
}

/// 0001-01-01, the first moment that a server takes.
const FIRST_MICROS: i64 = -62_135_596_800 * 1_000_000;

/// A time of RFC 3339. Without a zone it is nothing: whoever wrote it knows which one was meant, we do not.
pub fn rfc3339(text: &str) -> Option<Timestamp> {
    let (_, time) = text.split_once(['T', 't', ' '])?;
    let has_zone = time.ends_with(['Z', 'z']) || time.contains(['+', '-']);
    has_zone.then(|| text.parse().ok()).flatten()
}

/// For clap: a duration like `90s`, in milliseconds.
pub fn parse_duration_ms(given: &str) -> Result<i64, String> {
    let duration = humantime::parse_duration(given.trim())
        .map_err(|error| format!("{error}; write a duration as 90s, 5m or 1h 30m"))?;
    i64::try_from(duration.as_millis()).map_err(|_| "is too long".to_owned())
}

/// For clap: a duration like `90s`.
pub fn parse_duration(given: &str) -> Result<Duration, String> {
    humantime::parse_duration(given.trim())
        .map_err(|error| format!("{error}; write a duration as 90s, 5m or 1h 30m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc3339_or_ago() {
        let now = Now { micros: 1_000_000_000_000_000 };
        for (given, seconds, nanos) in [
            ("1970-01-01T00:00:01Z", 1, 0),
            ("1970-01-01T02:00:01.5+02:00", 1, 500_000_000),
            ("1970-01-01 00:00:01Z", 1, 0),
            ("24h", 1_000_000_000 - 86_400, 0),
            ("1h 30m", 1_000_000_000 - 5_400, 0),
            (" 0s ", 1_000_000_000, 0),
            ("30000years", -62_135_596_800, 0),
        ] {
            let moment = Moment::parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(moment.resolve(now), Timestamp { seconds, nanos }, "{given}");
        }
    }

    #[test]
    fn a_moment_without_zone_or_unit_is_refused() {
        for wrong in
            ["2026-01-31T08:00:00", "2026-01-31", "yesterday", "24", "", "2026-13-01T00:00:00Z"]
        {
            assert!(Moment::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration_ms("90s"), Ok(90_000));
        assert_eq!(parse_duration_ms("1ms"), Ok(1));
        assert!(parse_duration_ms("90").is_err());
    }
}

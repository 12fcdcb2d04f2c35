//! Days, weeks and months as people live them: in a time zone of the IANA database, with days of 23 or 25 hours, days
//! that begin at 01:00, and days that never were. The database is part of the program, so that every machine counts
//! alike.

use jiff::civil::{Date, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp};

use super::Millis;
use super::rollup::{QUARTER_MS, quarter};

/// A time zone.
#[derive(Debug, Clone)]
pub struct Zone {
    rules: TimeZone,
    name: String,
}

/// How long a period is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    Day,
    /// From Monday, as in ISO 8601.
    Week,
    Month,
}

/// A stretch of time, `until` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: Millis,
    pub until: Millis,
}

impl Window {
    pub fn is_empty(self) -> bool {
        self.from >= self.until
    }

    /// What both have in common.
    pub fn within(self, other: Window) -> Window {
        Window { from: self.from.max(other.from), until: self.until.min(other.until) }
    }
}

/// One day, week or month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// 2026-11-25, 2026-W48 or 2026-11.
    pub label: String,
    pub window: Window,
}

/// Hours in a week.
pub const HOURS_OF_WEEK: usize = 168;

/// The Monday from which intervals of several days are counted.
const FIRST_MONDAY: Date = Date::constant(1970, 1, 5);

/// The last moment of all calendars.
fn last_moment() -> Millis {
    Timestamp::MAX.as_second() * 1000
}

impl Zone {
    /// The zone of this name; the empty name is UTC.
    pub fn named(name: &str) -> Option<Zone> {
        if name.is_empty() {
            return Some(Zone { rules: TimeZone::UTC, name: "UTC".to_owned() });
        }
        let rules = TimeZone::get(name).ok().filter(|rules| !rules.is_unknown())?;
        let name = rules.iana_name().unwrap_or(name).to_owned();
        Some(Zone { rules, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `None`: so far from now that no calendar reaches there.
    fn date(&self, at: Millis) -> Option<Date> {
        let at = at.min(last_moment());
        Some(self.rules.to_datetime(Timestamp::from_millisecond(at).ok()?).date())
    }

    /// The first moment of a day; of one past the end of all calendars, that end.
    fn start_or_end(&self, date: Option<Date>) -> Millis {
        date.and_then(|date| self.start(date)).unwrap_or(last_moment())
    }

    /// The first moment of a day. Of a day that never was: that of the next one.
    fn start(&self, date: Date) -> Option<Millis> {
        let midnight = self.rules.to_ambiguous_timestamp(date.at(0, 0, 0, 0));
        let skipped = matches!(midnight.offset(), AmbiguousOffset::Gap { .. });
        let mut at = midnight.compatible().ok()?;
        if skipped {
            // The clock jumped over midnight, perhaps from before it: the day begins where it jumped.
            let after = Timestamp::from_millisecond(at.as_millisecond() + 1).ok()?;
            at = self.rules.preceding(after).next().map_or(at, |jump| jump.timestamp());
        }
        Some(at.as_millisecond())
    }

    fn first(period: Period, date: Date) -> Option<Date> {
        match period {
            Period::Day => Some(date),
            Period::Week => {
                let since_monday = date.weekday().since(Weekday::Monday);
                date.checked_sub(Span::new().days(since_monday)).ok()
            }
            Period::Month => Some(date.first_of_month()),
        }
    }

    /// The first day of the period so many further on.
    fn further(period: Period, first: Date, periods: i64) -> Option<Date> {
        let span = match period {
            Period::Day => Span::new().try_days(periods),
            Period::Week => Span::new().try_weeks(periods),
            Period::Month => Span::new().try_months(periods),
        };
        first.checked_add(span.ok()?).ok()
    }

    fn label(period: Period, first: Date) -> String {
        match period {
            Period::Day => first.to_string(),
            Period::Week => {
                let week = first.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Period::Month => format!("{:04}-{:02}", first.year(), first.month()),
        }
    }

    fn named_period(&self, period: Period, first: Date) -> Option<Named> {
        let window = Window {
            from: self.start(first)?,
            until: self.start_or_end(Self::further(period, first, 1)),
        };
        Some(Named { label: Self::label(period, first), window })
    }

    /// The period of a moment and those before it, oldest first, `count` of them. Days that never were are left out.
    pub fn last(&self, period: Period, at: Millis, count: usize) -> Vec<Named> {
        let Some(date) = self.date(at).and_then(|date| Self::first(period, date)) else {
            return Vec::new();
        };
        let mut last = Vec::new();
        let mut back = 0;
        while last.len() < count {
            let Some(named) = Self::further(period, date, -back)
                .and_then(|first| self.named_period(period, first))
            else {
                break;
            };
            back += 1;
            if !named.window.is_empty() {
                last.push(named);
            }
        }
        last.reverse();
        last
    }

    /// The periods that a window touches, oldest first; of more than `most`, the latest, and that there are more.
    pub fn touching(&self, period: Period, window: Window, most: usize) -> (Vec<Named>, bool) {
        if window.is_empty() {
            return (Vec::new(), false);
        }
        let mut found = self.last(period, window.until - 1, most.saturating_add(1));
        found.retain(|named| named.window.until > window.from);
        let more = found.len() > most;
        if more {
            found.remove(0);
        }
        (found, more)
    }

    /// Intervals of one length that a window touches, oldest first, or `None` if there are more than `most`. Those of
    /// whole days begin at midnight, of every so many days since a Monday; all others at multiples of their length
    /// since the epoch.
    pub fn intervals(&self, length_ms: i64, window: Window, most: usize) -> Option<Vec<Window>> {
        const DAY_MS: i64 = 24 * 3600 * 1000;
        if window.is_empty() {
            return Some(Vec::new());
        }
        if (window.until.saturating_sub(window.from) / length_ms.max(1)) as u64 > most as u64 {
            return None;
        }
        let mut found = Vec::new();
        let mut keep = |interval: Window| {
            if !interval.within(window).is_empty() {
                found.push(interval);
            }
        };
        if length_ms % DAY_MS == 0 {
            let days = length_ms / DAY_MS;
            let date = self.date(window.from)?;
            let since = i64::from(FIRST_MONDAY.until(date).ok()?.get_days());
            let mut first =
                date.checked_sub(Span::new().try_days(since.rem_euclid(days)).ok()?).ok()?;
            while let Some(from) = self.start(first).filter(|from| *from < window.until) {
                let next = Self::further(Period::Day, first, days);
                keep(Window { from, until: self.start_or_end(next) });
                let Some(next) = next else { break };
                first = next;
            }
        } else {
            let mut from = window.from.div_euclid(length_ms) * length_ms;
            while from < window.until {
                keep(Window { from, until: from.saturating_add(length_ms) });
                from = from.saturating_add(length_ms);
            }
        }
        (found.len() <= most).then_some(found)
    }

    /// The hour of the week of a moment: 0 is Monday from 00:00.
    pub fn hour_of_week(&self, at: Millis) -> usize {
        let Ok(at) = Timestamp::from_millisecond(at) else { return 0 };
        let local = self.rules.to_datetime(at);
        let day = local.date().weekday().to_monday_zero_offset();
        usize::try_from(i32::from(day) * 24 + i32::from(local.hour())).unwrap_or(0)
    }

    /// A window cut wherever the hour of the week changes, each with its hour. The offsets of all zones in use are
    /// multiples of a quarter of an hour.
    pub fn hours(&self, window: Window) -> Vec<(usize, Window)> {
        let mut hours: Vec<(usize, Window)> = Vec::new();
        let mut from = window.from;
        while from < window.until {
            let until = ((quarter(from) + 1) * QUARTER_MS).min(window.until);
            let hour = self.hour_of_week(from);
            match hours.last_mut() {
                Some((last, before)) if *last == hour => before.until = until,
                _ => hours.push((hour, Window { from, until })),
            }
            from = until;
        }
        hours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn zone(name: &str) -> Zone {
        Zone::named(name).unwrap_or_else(|| panic!("{name}"))
    }

    fn at(text: &str) -> Millis {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[test]
    fn zones_have_names_of_the_database() {
        assert_eq!(zone("").name(), "UTC");
        assert_eq!(zone("europe/berlin").name(), "Europe/Berlin");
        for wrong in ["Europe/Atlantis", "+01:00", "EST5EDT4,M3", "../etc/passwd", "Etc/Unknown"] {
            assert!(Zone::named(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn days_are_as_long_as_they_are() {
        for (name, noon, begins, hours) in [
            ("UTC", "2026-03-29T12:00:00Z", "2026-03-29T00:00:00Z", 24.0),
            // The clock goes forward, and back.
            ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", 23.0),
            ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", 25.0),
            ("America/New_York", "2026-03-08T17:00:00Z", "2026-03-08T05:00:00Z", 23.0),
            // By half an hour only.
            ("Australia/Lord_Howe", "2026-10-04T01:00:00Z", "2026-10-03T13:30:00Z", 23.5),
            ("Australia/Lord_Howe", "2026-04-05T01:00:00Z", "2026-04-04T13:00:00Z", 24.5),
            // Off by 45 minutes.
            ("Asia/Kathmandu", "2026-06-01T06:00:00Z", "2026-05-31T18:15:00Z", 24.0),
            // There was no midnight: the day began at 01:00.
            ("America/Sao_Paulo", "2018-11-04T15:00:00Z", "2018-11-04T03:00:00Z", 23.0),
            // The clock jumped from 23:30 to 00:30.
            ("America/Toronto", "1919-03-31T17:00:00Z", "1919-03-31T04:30:00Z", 23.5),
        ] {
            let days = zone(name).last(Period::Day, at(noon), 1);
            let window = days[0].window;
            assert_eq!(window.from, at(begins), "{name} {noon}");
            assert_eq!((window.until - window.from) as f64 / HOUR as f64, hours, "{name} {noon}");
        }
    }

    #[test]
    fn a_day_that_never_was_is_left_out() {
        let days = zone("Pacific/Apia").last(Period::Day, at("2011-12-31T12:00:00Z"), 3);
        let labels: Vec<&str> = days.iter().map(|day| day.label.as_str()).collect();
        assert_eq!(labels, ["2011-12-29", "2011-12-31", "2012-01-01"]);
        assert!(days.windows(2).all(|two| two[0].window.until == two[1].window.from));
    }

    #[test]
    fn periods_follow_each_other_without_a_gap_in_every_zone() {
        for name in
            ["UTC", "Europe/Lisbon", "America/Havana", "Asia/Tehran", "Africa/Cairo", "Asia/Beirut"]
        {
            let zone = zone(name);
            for period in [Period::Day, Period::Week, Period::Month] {
                let last = zone.last(period, at("2026-11-25T12:00:00Z"), 400);
                assert_eq!(last.len(), 400);
                for two in last.windows(2) {
                    assert_eq!(two[0].window.until, two[1].window.from, "{name} {period:?}");
                    assert!(two[0].label < two[1].label, "{name} {period:?}");
                }
            }
        }
    }

    #[test]
    fn weeks_are_those_of_iso_8601() {
        for (moment, label, begins) in [
            ("2026-11-25T12:00:00Z", "2026-W48", "2026-11-23T00:00:00Z"),
            ("2021-01-03T23:59:59Z", "2020-W53", "2020-12-28T00:00:00Z"),
            ("2024-12-30T00:00:00Z", "2025-W01", "2024-12-30T00:00:00Z"),
            ("2023-01-01T00:00:00Z", "2022-W52", "2022-12-26T00:00:00Z"),
        ] {
            let week = &zone("").last(Period::Week, at(moment), 1)[0];
            assert_eq!((week.label.as_str(), week.window.from), (label, at(begins)), "{moment}");
        }
        let months = zone("Asia/Tokyo").last(Period::Month, at("2026-02-28T15:00:00Z"), 2);
        assert_eq!((months[0].label.as_str(), months[1].label.as_str()), ("2026-02", "2026-03"));
        assert_eq!(months[1].window.from, at("2026-02-28T15:00:00Z"));
    }

    #[test]
    fn a_window_touches_the_periods_it_has_a_moment_of() {
        let zone = zone("");
        let window = |from, until| Window { from: at(from), until: at(until) };
        let month = window("2026-01-31T23:59:59.999Z", "2026-03-01T00:00:00Z");
        let (found, more) = zone.touching(Period::Month, month, 5);
        assert_eq!(found.iter().map(|named| &named.label[5..]).collect::<Vec<_>>(), ["01", "02"]);
        assert!(!more);
        let (found, more) = zone.touching(Period::Month, month, 1);
        assert_eq!((found[0].label.as_str(), found.len(), more), ("2026-02", 1, true));
        let none = window("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z");
        assert!(zone.touching(Period::Day, none, 5).0.is_empty());
        // The first and the last days that a request may name.
        let ends = window("0001-01-01T00:00:00Z", "0001-01-03T00:00:00Z");
        assert_eq!(zone.touching(Period::Day, ends, 5).0.len(), 2);
        let ends = Window { from: at("9999-12-29T00:00:00Z"), until: 253_402_300_799_999 };
        assert!(!zone.touching(Period::Day, ends, 5).0.is_empty());
    }

    #[test]
    fn intervals_of_days_begin_at_midnight_and_all_others_at_multiples() {
        let berlin = zone("Europe/Berlin");
        let window = Window { from: at("2026-03-27T12:00:00Z"), until: at("2026-03-30T12:00:00Z") };
        let days = berlin.intervals(24 * HOUR, window, 10).unwrap();
        let hours = days.iter().map(|day| (day.until - day.from) / HOUR).collect::<Vec<_>>();
        assert_eq!(hours, [24, 24, 23, 24]);
        let weeks = berlin.intervals(7 * 24 * HOUR, window, 10).unwrap();
        assert_eq!(weeks[0].from, at("2026-03-22T23:00:00Z"));
        assert_eq!(weeks.len(), 2);
        let odd = berlin.intervals(5 * HOUR, window, 100).unwrap();
        assert_eq!(odd[0].from % (5 * HOUR), 0);
        assert_eq!(berlin.intervals(HOUR, window, 10), None);
    }

    #[test]
    fn hours_of_the_week_follow_the_clock_on_the_wall() {
        assert_eq!(zone("").hour_of_week(at("2026-11-23T00:00:00Z")), 0);
        assert_eq!(zone("").hour_of_week(at("2026-11-29T23:59:59Z")), 167);
        assert_eq!(zone("Asia/Kathmandu").hour_of_week(at("2026-11-22T18:15:00Z")), 0);
        let week = Window { from: at("2026-10-18T22:00:00Z"), until: at("2026-10-25T23:00:00Z") };
        let hours = zone("Europe/Berlin").hours(week);
        assert_eq!(hours.len(), HOURS_OF_WEEK);
        // The hour that comes twice when the clock goes back.
        assert_eq!(hours[6 * 24 + 2].1.until - hours[6 * 24 + 2].1.from, 2 * HOUR);
        let half = zone("Asia/Kolkata").hours(Window { from: 0, until: HOUR });
        assert_eq!(half.iter().map(|(hour, _)| *hour).collect::<Vec<_>>(), [77, 78]);
    }
}

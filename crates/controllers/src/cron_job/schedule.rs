//! Cron schedules: when is the next time? Pure.
//!
//! Five fields of numbers, names, ranges, lists and steps, or a macro. A day matches if both its fields do, or, where
//! neither is a star, if one does. Times that a change of the clock skips are skipped; repeated ones count once.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use std::time::Duration;

/// How far ahead a time is looked for: 29 February of a year like 2096 is 8 years away.
const DAYS_MAX: i32 = 366 * 8;
/// Hours by which a clock may be set back.
const SHIFT_MAX_HOURS: i8 = 3;

const MACROS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Numbers as bits, and whether the field was a star.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Field {
    bits: u64,
    star: bool,
}

impl Field {
    fn parse(text: &str, low: u32, high: u32, names: &[&str]) -> Option<Field> {
        let mut field = Field::default();
        let number = |t: &str| {
            let named = names.iter().position(|n| n.eq_ignore_ascii_case(t));
            let named = named.and_then(|i| u32::try_from(i).ok()).map(|i| i + low);
            named.or_else(|| t.parse().ok()).filter(|n| (low..=high).contains(n))
        };
        for part in text.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            let step = step.map_or(Some(1), |s| s.parse().ok()).filter(|s| *s > 0)?;
            let (from, to) = match range.split_once('-') {
                _ if matches!(range, "*" | "?") => {
                    field.star |= step == 1;
                    (low, high)
                }
                Some((from, to)) => (number(from)?, number(to)?),
                // `5/15` goes on to the end.
                None => (number(range)?, if part.contains('/') { high } else { number(range)? }),
            };
            (from..=to).step_by(step).for_each(|n| field.bits |= 1 << n);
        }
        Some(field)
    }

    fn has(&self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|n| self.bits & (1 << n) != 0)
    }
}

/// When something is to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// Again after this time.
    Every(Duration),
    /// At these minutes.
    At(Box<Fields>),
}

/// The five fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl Schedule {
    /// Parses `*/5 * * * *`, `@daily`, `@every 1h30m`.
    pub fn parse(text: &str) -> Option<Schedule> {
        if let Some(interval) = text.strip_prefix("@every ") {
            return parse_interval(interval).map(Schedule::Every);
        }
        let expanded = MACROS.iter().find(|(name, _)| *name == text).map_or(text, |(_, fields)| fields);
        let fields: Vec<&str> = expanded.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else { return None };
        Some(Schedule::At(Box::new(Fields {
            minute: Field::parse(minute, 0, 59, &[])?,
            hour: Field::parse(hour, 0, 23, &[])?,
            day: Field::parse(day, 1, 31, &[])?,
            month: Field::parse(month, 1, 12, &MONTHS)?,
            weekday: Field::parse(weekday, 0, 6, &WEEKDAYS)?,
        })))
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let fields = match self {
            Schedule::Every(interval) => {
                let seconds = i64::try_from(interval.as_secs().max(1)).ok()?;
                return Timestamp::from_second(after.as_second().checked_add(seconds)?).ok();
            }
            Schedule::At(fields) => fields,
        };
        let begin = zone.to_datetime(after);
        let mut date = begin.date();
        for day in 0..DAYS_MAX {
            if fields.matches_day(date) {
                let hour = if day == 0 { begin.hour() - SHIFT_MAX_HOURS } else { 0 };
                if let Some(found) = fields.first_on(date, hour.max(0), after, zone) {
                    return Some(found);
                }
            }
            date = date.checked_add(Span::new().days(1)).ok()?;
        }
        None
    }

    /// The last time after `after` and not after `now`, and how many there were (at most `many`).
    pub fn last_due(
        &self,
        after: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
        many: usize,
    ) -> Option<(Timestamp, usize)> {
        const WINDOWS_HOURS: [i64; 4] = [1, 24, 24 * 31, 24 * 366];
        let mut last = self.next(after, zone).filter(|t| *t <= now)?;
        let mut count = 1;
        while let Some(next) = self.next(last, zone).filter(|t| *t <= now) {
            count += 1;
            if count >= many {
                // Too many to walk through: look at the end only.
                let windows = WINDOWS_HOURS
                    .iter()
                    .filter_map(|h| Timestamp::from_second(now.as_second() - h * 3_600).ok());
                let near =
                    windows.filter(|w| *w > next).find_map(|w| self.next(w, zone).filter(|t| *t <= now));
                last = near.unwrap_or(next);
                while let Some(next) = self.next(last, zone).filter(|t| *t <= now) {
                    last = next;
                }
                return Some((last, many));
            }
            last = next;
        }
        Some((last, count))
    }
}

impl Fields {
    fn matches_day(&self, date: Date) -> bool {
        let day = self.day.has(date.day());
        let weekday = self.weekday.has(date.weekday().to_sunday_zero_offset());
        let both = self.day.star || self.weekday.star;
        self.month.has(date.month()) && if both { day && weekday } else { day || weekday }
    }

    fn first_on(&self, date: Date, from_hour: i8, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let hours = (from_hour..24).filter(|h| self.hour.has(*h));
        let times =
            hours.flat_map(|h| (0..60).filter(|m| self.minute.has(*m)).map(move |m| date.at(h, m, 0, 0)));
        let mut instants = times.filter_map(|time| {
            let ambiguous = zone.to_ambiguous_timestamp(time);
            let skipped = matches!(ambiguous.offset(), jiff::tz::AmbiguousOffset::Gap { .. });
            ambiguous.compatible().ok().filter(|_| !skipped)
        });
        instants.find(|t| *t > after)
    }
}

/// `1h30m`, `90s`.
fn parse_interval(text: &str) -> Option<Duration> {
    let (mut total, mut digits) = (0u64, String::new());
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && total > 0).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, after: &str) -> String {
        Schedule::parse(schedule).unwrap().next(time(after), &TimeZone::UTC).unwrap().to_string()
    }

    #[test]
    fn the_next_time() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:45:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 * * * *", "2026-01-01T00:26:00Z", "2026-01-01T00:45:00Z"),
            ("0 9-17/4 * * *", "2026-01-01T09:00:00Z", "2026-01-01T13:00:00Z"),
            ("30 2 * * MON", "2026-01-01T00:00:00Z", "2026-01-05T02:30:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * *", "2026-01-13T00:00:00Z", "2026-02-13T00:00:00Z"),
            ("0 0 29 feb ?", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
        ] {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
        assert_eq!(
            Schedule::parse("0 0 31 2 *").unwrap().next(time("2026-01-01T00:00:00Z"), &TimeZone::UTC),
            None
        );
        for bad in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "a * * * *", "@every", "@every x", "*/0 * * * *"]
        {
            assert_eq!(Schedule::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn clocks_that_change() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let daily = Schedule::parse("30 2 * * *").unwrap();
        let after = |text: &str| daily.next(time(text), &zone).unwrap().to_string();
        assert_eq!(after("2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z", "02:30 is skipped on the 29th");
        assert_eq!(after("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(
            after("2026-10-25T00:30:00Z"),
            "2026-10-26T01:30:00Z",
            "the second 02:30 is no second time"
        );
    }

    #[test]
    fn the_last_time_that_is_due() {
        let due = |schedule: &str, after: &str, now: &str| {
            let schedule = Schedule::parse(schedule).unwrap();
            schedule.last_due(time(after), time(now), &TimeZone::UTC, 100).map(|(t, n)| (t.to_string(), n))
        };
        let start = "2026-01-01T00:00:00Z";
        assert_eq!(due("0 * * * *", start, "2026-01-01T00:59:59Z"), None);
        assert_eq!(due("0 * * * *", start, "2026-01-01T03:10:00Z"), Some(("2026-01-01T03:00:00Z".into(), 3)));
        assert_eq!(
            due("* * * * *", start, "2027-01-01T00:00:30Z"),
            Some(("2027-01-01T00:00:00Z".into(), 100))
        );
        assert_eq!(
            due("0 0 * * *", start, "2027-01-01T12:00:00Z"),
            Some(("2027-01-01T00:00:00Z".into(), 100))
        );
    }

    proptest! {
        /// The dumb twin: look at every minute.
        #[test]
        fn as_if_every_minute_were_looked_at(
            minute in 0..60u8, step in 1..40u8, hour in 0..24u8, day in 1..29u8, weekday in 0..7u8,
            shape in 0..6u8, after in 1_767_225_600i64..1_800_000_000,
        ) {
            let text = match shape {
                0 => format!("{minute} * * * *"),
                1 => format!("*/{step} {hour} * * *"),
                2 => format!("{minute} {hour} {day} * *"),
                3 => format!("{minute} {hour} * * {weekday}"),
                4 => format!("{minute} {hour} {day} * {weekday}"),
                _ => format!("{minute},{} */{} * * *", (minute + step) % 60, step % 24 + 1),
            };
            let schedule = Schedule::parse(&text).unwrap();
            let Schedule::At(fields) = &schedule else { unreachable!() };
            let matches = |t: i64| {
                let civil = TimeZone::UTC.to_datetime(Timestamp::from_second(t).unwrap());
                fields.matches_day(civil.date()) && fields.hour.has(civil.hour()) && fields.minute.has(civil.minute())
            };
            let slow = (after / 60 + 1..).map(|m| m * 60).find(|t| matches(*t));
            let fast = schedule.next(Timestamp::from_second(after).unwrap(), &TimeZone::UTC);
            prop_assert_eq!(fast.map(|t| t.as_second()), slow);
        }
    }
}

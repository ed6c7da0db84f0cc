//! `rate(5 minutes)` and `cron(0 10 ? * MON-FRI *)`: when is the next time? Pure; all times are UTC.
//!
//! A rate counts from the rule's creation, so that a restart changes nothing; what fell into a time when nothing ran is
//! not made up for. Deliberately not here: `at(…)`, time zones (EventBridge Scheduler's).

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};

/// The last year that schedules know.
const YEAR_MAX: i16 = 2199;
const YEAR_MIN: i16 = 1970;

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Every so many seconds.
    Rate(i64),
    /// By the calendar.
    Cron(Box<Cron>),
}

/// A cron expression's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    minutes: Vec<i16>,
    hours: Vec<i16>,
    months: Vec<i16>,
    years: Vec<i16>,
    day: Day,
}

/// Which days of a month.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Day {
    OfMonth(Vec<i16>),
    /// `L`.
    Last,
    /// `15W`: the working day next to it in the same month.
    Working(i16),
    /// 1 is Sunday.
    OfWeek(Vec<i16>),
    /// `6L`: the month's last of that weekday.
    LastOf(i16),
    /// `6#3`: the month's third of that weekday.
    NthOf(i16, i16),
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Schedule {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Schedule> {
        let inside = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        if let Some(words) = inside("rate") {
            return rate(words);
        }
        cron(inside("cron")?).map(|c| Schedule::Cron(Box::new(c)))
    }

    /// The first time after `after`; a rate counts from `start`.
    pub fn next(&self, start: Timestamp, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Rate(seconds) => {
                let passed = (after.as_second() - start.as_second()).max(0);
                let next = (passed / seconds + 1).checked_mul(*seconds)?.checked_add(start.as_second())?;
                Timestamp::from_second(next).ok()
            }
            Schedule::Cron(cron) => cron.next(after),
        }
    }
}

fn rate(words: &str) -> Option<Schedule> {
    let (number, unit) = words.split_once(' ')?;
    let number: i64 = number.parse().ok().filter(|n| *n > 0)?;
    let seconds = match (unit, number) {
        ("minute", 1) => 60,
        ("hour", 1) => 3_600,
        ("day", 1) => 86_400,
        ("minutes", 2..) => 60,
        ("hours", 2..) => 3_600,
        ("days", 2..) => 86_400,
        _ => return None,
    };
    Some(Schedule::Rate(number.checked_mul(seconds)?))
}

fn cron(text: &str) -> Option<Cron> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, of_month, months, of_week, years] = fields[..] else { return None };
    let day = match (of_month, of_week) {
        ("?", "?") => return None,
        (of_month, "?") => day_of_month(of_month)?,
        ("?", of_week) => day_of_week(of_week)?,
        _ => return None,
    };
    Some(Cron {
        minutes: numbers(minutes, 0, 59, &[])?,
        hours: numbers(hours, 0, 23, &[])?,
        months: numbers(months, 1, 12, &MONTHS)?,
        years: numbers(years, YEAR_MIN, YEAR_MAX, &[])?,
        day,
    })
}

fn day_of_month(text: &str) -> Option<Day> {
    if text == "L" {
        return Some(Day::Last);
    }
    match text.strip_suffix('W') {
        Some(day) => Some(Day::Working(number(day, 1, 31, &[])?)),
        None => Some(Day::OfMonth(numbers(text, 1, 31, &[])?)),
    }
}

fn day_of_week(text: &str) -> Option<Day> {
    if text == "L" {
        return Some(Day::OfWeek(vec![7]));
    }
    if let Some(day) = text.strip_suffix('L') {
        return Some(Day::LastOf(number(day, 1, 7, &DAYS)?));
    }
    match text.split_once('#') {
        Some((day, nth)) => Some(Day::NthOf(number(day, 1, 7, &DAYS)?, number(nth, 1, 5, &[])?)),
        None => Some(Day::OfWeek(numbers(text, 1, 7, &DAYS)?)),
    }
}

fn number(text: &str, low: i16, high: i16, names: &[&str]) -> Option<i16> {
    let named = names.iter().position(|n| text.eq_ignore_ascii_case(n));
    let found = match named {
        Some(at) => low + i16::try_from(at).ok()?,
        None => text.parse().ok()?,
    };
    (low..=high).contains(&found).then_some(found)
}

/// `*`, `5`, `1-5`, `MON-FRI`, `1,3`, `0/15`, `1-31/2`; sorted, each once.
fn numbers(text: &str, low: i16, high: i16, names: &[&str]) -> Option<Vec<i16>> {
    let mut out = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<usize>().ok().filter(|s| *s > 0)?),
            None => (part, 1),
        };
        let one = |text| number(text, low, high, names);
        match range.split_once('-') {
            _ if range == "*" => out.extend((low..=high).step_by(step)),
            Some((from, to)) => {
                let (from, to) = (one(from)?, one(to)?);
                // FRI-MON goes round.
                if from > to {
                    out.extend((from..=high).chain(low..=to).step_by(step));
                } else {
                    out.extend((from..=to).step_by(step));
                }
            }
            None if part.contains('/') => out.extend((one(range)?..=high).step_by(step)),
            None => out.push(one(range)?),
        }
    }
    out.sort_unstable();
    out.dedup();
    Some(out)
}

fn weekday(date: Date) -> i16 {
    i16::from(date.weekday().to_sunday_one_offset())
}

impl Cron {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        // The next whole minute.
        let from = Timestamp::from_second((after.as_second().div_euclid(60) + 1).checked_mul(60)?).ok()?;
        let from = from.to_zoned(TimeZone::UTC).datetime();
        let mut date = from.date();
        let mut floor = (i16::from(from.hour()), i16::from(from.minute()));
        while date.year() <= YEAR_MAX {
            if self.years.binary_search(&date.year()).is_err() {
                date = Date::new(date.year().checked_add(1)?, 1, 1).ok()?;
                floor = (0, 0);
                continue;
            }
            if self.months.binary_search(&i16::from(date.month())).is_ok() && self.wants(date) {
                let times = self.hours.iter().flat_map(|h| self.minutes.iter().map(move |m| (*h, *m)));
                if let Some((hour, minute)) = times.into_iter().find(|t| *t >= floor) {
                    let time = date.at(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0);
                    return Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp());
                }
            }
            date = date.tomorrow().ok()?;
            floor = (0, 0);
        }
        None
    }

    fn wants(&self, date: Date) -> bool {
        let (day, last) = (i16::from(date.day()), i16::from(date.last_of_month().day()));
        match &self.day {
            Day::OfMonth(days) => days.binary_search(&day).is_ok(),
            Day::Last => day == last,
            Day::OfWeek(days) => days.binary_search(&weekday(date)).is_ok(),
            Day::LastOf(wanted) => weekday(date) == *wanted && day + 7 > last,
            Day::NthOf(wanted, nth) => weekday(date) == *wanted && (day - 1) / 7 + 1 == *nth,
            Day::Working(wanted) => *wanted <= last && working(date, *wanted, last) == day,
        }
    }
}

/// The working day next to the `wanted` day of `date`'s month.
fn working(date: Date, wanted: i16, last: i16) -> i16 {
    let to = weekday(date) + (wanted - i16::from(date.day()));
    match (to - 1).rem_euclid(7) + 1 {
        1 if wanted == last => wanted - 2,
        1 => wanted + 1,
        7 if wanted == 1 => wanted + 2,
        7 => wanted - 1,
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let after: Timestamp = after.parse().unwrap();
        let start: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        let schedule = Schedule::parse(schedule).unwrap_or_else(|| panic!("{schedule}"));
        schedule.next(start, after).map_or("never".into(), |t| t.to_string())
    }

    #[test]
    fn rates_count_from_the_beginning() {
        assert_eq!(next("rate(1 minute)", "2026-01-01T00:00:30Z"), "2026-01-01T00:01:30Z");
        assert_eq!(next("rate(5 minutes)", "2026-01-01T00:07:00Z"), "2026-01-01T00:10:30Z");
        assert_eq!(next("rate(1 day)", "2026-03-01T00:00:00Z"), "2026-03-01T00:00:30Z");
    }

    #[test]
    fn the_calendar() {
        for (schedule, after, wanted) in [
            ("cron(0 10 * * ? *)", "2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z"),
            ("cron(0/15 * * * ? *)", "2026-11-20T10:14:59Z", "2026-11-20T10:15:00Z"),
            ("cron(0 18 ? * MON-FRI *)", "2026-11-20T18:00:00Z", "2026-11-23T18:00:00Z"),
            ("cron(0 8 1 * ? *)", "2026-11-20T00:00:00Z", "2026-12-01T08:00:00Z"),
            ("cron(5 8-10 ? 1,JUL 3 2027)", "2026-11-20T00:00:00Z", "2027-01-05T08:05:00Z"),
            ("cron(0 0 L 2 ? *)", "2026-11-20T00:00:00Z", "2027-02-28T00:00:00Z"),
            ("cron(0 0 29 2 ? *)", "2026-11-20T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("cron(0 0 ? * 6L *)", "2026-11-20T00:00:00Z", "2026-11-27T00:00:00Z"),
            ("cron(0 0 ? * 2#1 *)", "2026-11-20T00:00:00Z", "2026-12-07T00:00:00Z"),
            // 15 November 2026 is a Sunday, 1 August a Saturday, 31 October too.
            ("cron(0 0 15W 11 ? *)", "2026-11-01T00:00:00Z", "2026-11-16T00:00:00Z"),
            ("cron(0 0 1W 8 ? *)", "2026-07-01T00:00:00Z", "2026-08-03T00:00:00Z"),
            ("cron(0 0 31W 10 ? *)", "2026-10-01T00:00:00Z", "2026-10-30T00:00:00Z"),
            ("cron(0 0 ? * FRI-SUN *)", "2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"),
            ("cron(0 0 31 2 ? *)", "2026-11-20T00:00:00Z", "never"),
            ("cron(0 0 1 1 ? 2020)", "2026-11-20T00:00:00Z", "never"),
        ] {
            assert_eq!(next(schedule, after), wanted, "{schedule} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "rate(1 minutes)",
            "rate(5 minute)",
            "rate(0 minutes)",
            "rate(1 second)",
            "rate(99999999999999999 days)",
            "cron(0 10 * * * *)",
            "cron(0 10 ? * ? *)",
            "cron(60 10 * * ? *)",
            "cron(0 10 * *)",
            "cron(0/0 10 * * ? *)",
            "at(2026-01-01T00:00:00)",
            "",
        ] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
    }
}

//! Which snapshots `--keep-…` keeps: a pure function of their times.
//!
//! The rules are those of `restic forget` and `borg prune`: each rule keeps the newest snapshot of
//! each of the last N hours (days, weeks, months, years) that have one; an hour without a snapshot
//! does not count. A snapshot that any rule keeps stays. Hours and days are those of the local time
//! zone, weeks begin on Monday (ISO 8601). The hour that the end of summer time repeats counts as
//! two.

use clap::Args;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use crate::daemon::size::parse_count;

/// The rules; a rule that is `None` keeps nothing.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Keep {
    /// Keep the newest N
    #[arg(long = "keep-last", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) last: Option<usize>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long = "keep-hourly", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) hourly: Option<usize>,
    /// Likewise of days, in local time
    #[arg(long = "keep-daily", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) daily: Option<usize>,
    /// Likewise of weeks, which begin on Monday
    #[arg(long = "keep-weekly", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) weekly: Option<usize>,
    /// Likewise of months
    #[arg(long = "keep-monthly", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) monthly: Option<usize>,
    /// Likewise of years
    #[arg(long = "keep-yearly", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = parse_count)]
    pub(super) yearly: Option<usize>,
}

/// A period of local time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Period {
    year: i16,
    /// The number of the day, week or month within the year; 0 for a whole year.
    number: i16,
    /// `None` for a period of a day or longer.
    hour: Option<Hour>,
}

/// An hour of a day. The offset from UTC distinguishes the two hours at the end of summer time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hour {
    hour: i8,
    offset: Offset,
}

impl Period {
    const fn long(year: i16, number: i16) -> Self {
        let hour = None;
        Self { year, number, hour }
    }
}

impl Keep {
    /// True when no rule was given.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns for each time whether its snapshot is kept. The order does not matter; of equal
    /// times the later one in the list counts as newer.
    pub(crate) fn kept(&self, times: &[Timestamp], zone: &TimeZone) -> Vec<bool> {
        let mut newest_first: Vec<usize> = (0..times.len()).collect();
        newest_first.sort_by_key(|&at| std::cmp::Reverse((times[at], at)));
        let local = |at: usize| times[at].to_zoned(zone.clone());
        let mut kept = vec![false; times.len()];
        for &at in newest_first.iter().take(self.last.unwrap_or(0)) {
            kept[at] = true;
        }
        let rules = [
            (self.hourly, hour as fn(&Zoned) -> Period),
            (self.daily, day),
            (self.weekly, week),
            (self.monthly, month),
            (self.yearly, year),
        ];
        for (count, period_of) in rules {
            let (mut left, mut last) = (count.unwrap_or(0), None);
            for &at in &newest_first {
                let period = period_of(&local(at));
                if left > 0 && last != Some(period) {
                    kept[at] = true;
                    left -= 1;
                    last = Some(period);
                }
            }
        }
        kept
    }
}

fn hour(time: &Zoned) -> Period {
    let (hour, offset) = (time.hour(), time.offset());
    Period {
        hour: Some(Hour { hour, offset }),
        ..day(time)
    }
}

fn day(time: &Zoned) -> Period {
    Period::long(time.year(), time.day_of_year())
}

fn week(time: &Zoned) -> Period {
    let week = time.date().iso_week_date();
    Period::long(week.year(), i16::from(week.week()))
}

fn month(time: &Zoned) -> Period {
    Period::long(time.year(), i16::from(time.month()))
}

fn year(time: &Zoned) -> Period {
    Period::long(time.year(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times whose snapshots are kept, in the given order.
    fn kept<'a>(keep: &Keep, times: &[&'a str], zone: &TimeZone) -> Vec<&'a str> {
        let parsed: Vec<Timestamp> = times.iter().map(|time| time.parse().unwrap()).collect();
        let kept = keep.kept(&parsed, zone);
        let pairs = times.iter().zip(kept);
        pairs.filter(|pair| pair.1).map(|pair| *pair.0).collect()
    }

    fn utc<'a>(keep: &Keep, times: &[&'a str]) -> Vec<&'a str> {
        kept(keep, times, &TimeZone::UTC)
    }

    const TIMES: [&str; 8] = [
        "2024-12-30T12:00:00Z",
        "2025-01-01T00:10:00Z",
        "2025-01-01T00:50:00Z",
        "2025-01-01T03:00:00Z",
        "2025-01-05T23:59:59.999Z",
        "2025-01-06T00:00:00Z",
        "2025-02-01T08:00:00Z",
        "2026-02-01T08:00:00Z",
    ];

    #[test]
    fn each_rule_keeps_the_newest_of_its_last_periods_that_have_one() {
        let rule = |set: fn(&mut Keep)| {
            let mut keep = Keep::default();
            set(&mut keep);
            utc(&keep, &TIMES)
        };
        assert_eq!(rule(|keep| keep.last = Some(2)), TIMES[6..]);
        assert_eq!(
            rule(|keep| keep.hourly = Some(6)),
            [TIMES[2], TIMES[3], TIMES[4], TIMES[5], TIMES[6], TIMES[7]]
        );
        assert_eq!(
            rule(|keep| keep.daily = Some(5)),
            [TIMES[3], TIMES[4], TIMES[5], TIMES[6], TIMES[7]]
        );
        // The week of the last days of 2024 has the first days of 2025 in it.
        assert_eq!(
            rule(|keep| keep.weekly = Some(9)),
            [TIMES[4], TIMES[5], TIMES[6], TIMES[7]]
        );
        assert_eq!(
            rule(|keep| keep.monthly = Some(3)),
            [TIMES[5], TIMES[6], TIMES[7]]
        );
        assert_eq!(
            rule(|keep| keep.yearly = Some(3)),
            [TIMES[0], TIMES[6], TIMES[7]]
        );
    }

    #[test]
    fn a_snapshot_that_any_rule_keeps_stays() {
        let keep = Keep {
            last: Some(1),
            yearly: Some(3),
            ..Keep::default()
        };
        assert_eq!(utc(&keep, &TIMES), [TIMES[0], TIMES[6], TIMES[7]]);
    }

    #[test]
    fn no_rule_keeps_nothing_and_a_large_one_everything() {
        assert!(Keep::default().is_empty());
        let none = Keep {
            hourly: Some(0),
            ..Keep::default()
        };
        assert!(!none.is_empty());
        assert_eq!(utc(&none, &TIMES), [""; 0]);
        let all = Keep {
            last: Some(usize::MAX),
            ..Keep::default()
        };
        assert_eq!(utc(&all, &TIMES), TIMES);
        assert_eq!(utc(&all, &[]), [""; 0]);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let keep = Keep {
            daily: Some(3),
            ..Keep::default()
        };
        let mut backwards = TIMES;
        backwards.reverse();
        let mut kept = utc(&keep, &backwards);
        kept.reverse();
        assert_eq!(kept, utc(&keep, &TIMES));
    }

    #[test]
    fn days_are_local_and_the_hour_that_comes_twice_is_two() {
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        let daily = Keep {
            daily: Some(9),
            ..Keep::default()
        };
        let around_midnight = ["2025-01-01T04:59:00Z", "2025-01-01T05:00:00Z"];
        assert_eq!(kept(&daily, &around_midnight, &zone), around_midnight);
        assert_eq!(utc(&daily, &around_midnight), around_midnight[1..]);
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let hourly = Keep {
            hourly: Some(9),
            ..Keep::default()
        };
        // 02:30 summer time and, an hour later, 02:30 winter time.
        let twice = ["2025-10-26T00:30:00Z", "2025-10-26T01:30:00Z"];
        assert_eq!(kept(&hourly, &twice, &berlin), twice);
    }
}

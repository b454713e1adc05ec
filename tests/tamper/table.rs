//! Counts of the outcomes, by change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;

/// The outcome of opening a changed volume and reading all of it, in the order from good to bad: of
/// several, the worst counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// Everything as it was stored.
    Right,
    /// Errors where the change was, reported in the log; everything else as it was stored.
    Error,
    /// It does not open, with a reason.
    Refused,
    /// Earlier contents.
    Older,
    /// Contents of a copy of the volume that was written to separately.
    OtherHistory,
    /// Something is missing, because records of different commits disagree.
    Missing,
    /// Another error number than EIO.
    OtherErrno,
    /// An error, or a refusal, that does not name what was changed.
    Silent,
    /// A changed page is read and not refused, although the contents are right.
    Unnoticed,
    /// An error where nothing was changed.
    Spread,
    /// Something is missing, and no error says so.
    Gone,
    /// Contents that were never stored there.
    Wrong,
    /// A panic reached the caller.
    Panic,
    /// No answer.
    Hang,
}

impl Outcome {
    const ALL: [Self; 14] = [
        Self::Right,
        Self::Error,
        Self::Refused,
        Self::Older,
        Self::OtherHistory,
        Self::Missing,
        Self::OtherErrno,
        Self::Silent,
        Self::Unnoticed,
        Self::Spread,
        Self::Gone,
        Self::Wrong,
        Self::Panic,
        Self::Hang,
    ];

    const fn heading(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Older => "older",
            Self::OtherHistory => "other",
            Self::Missing => "missing",
            Self::OtherErrno => "errno",
            Self::Silent => "silent",
            Self::Unnoticed => "unseen",
            Self::Spread => "spread",
            Self::Gone => "gone",
            Self::Wrong => "WRONG",
            Self::Panic => "PANIC",
            Self::Hang => "HANG",
        }
    }

    /// True for the outcomes that are never permitted.
    pub fn is_forbidden(self) -> bool {
        self > Self::Missing
    }
}

/// Counts by changed file, kind of change, and outcome.
#[derive(Default)]
pub struct Table {
    counts: BTreeMap<(String, &'static str), BTreeMap<Outcome, u64>>,
    /// Cases with outcomes that are not permitted.
    failures: Vec<String>,
}

impl Table {
    pub fn add(&mut self, of: &str, change: &'static str, outcome: Outcome, what: &str) {
        let row = self.counts.entry((of.to_owned(), change)).or_default();
        *row.entry(outcome).or_default() += 1;
        if outcome.is_forbidden() {
            self.failures.push(format!("{outcome:?}: {of}, {what}"));
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (row, counts) in other.counts {
            let mine = self.counts.entry(row).or_default();
            for (outcome, count) in counts {
                *mine.entry(outcome).or_default() += count;
            }
        }
        self.failures.extend(other.failures);
    }

    /// All rows of this kind with this change.
    pub fn count(&self, of: &str, change: &str, outcome: Outcome) -> u64 {
        let rows = self.counts.iter();
        let rows = rows.filter(|((place, how), _)| place.starts_with(of) && *how == change);
        rows.filter_map(|(_, counts)| counts.get(&outcome)).sum()
    }

    /// All cases.
    pub fn all(&self, outcome: Outcome) -> u64 {
        let rows = self.counts.values();
        rows.filter_map(|counts| counts.get(&outcome)).sum()
    }

    pub fn changes(&self, of: &str) -> BTreeSet<&'static str> {
        let rows = self
            .counts
            .keys()
            .filter(|(place, _)| place.starts_with(of));
        rows.map(|(_, change)| *change).collect()
    }

    fn text(&self, title: &str) -> String {
        let mut text = format!("\n{title}\n{:<36}{:<26}", "of", "change");
        for outcome in Outcome::ALL {
            let _ = write!(text, "{:>8}", outcome.heading());
        }
        let mut sums: BTreeMap<Outcome, u64> = BTreeMap::new();
        for ((of, change), counts) in &self.counts {
            let _ = write!(text, "\n{of:<36}{change:<26}");
            for outcome in Outcome::ALL {
                let count = counts.get(&outcome).copied().unwrap_or(0);
                *sums.entry(outcome).or_default() += count;
                let shown = if count == 0 {
                    "-".to_owned()
                } else {
                    count.to_string()
                };
                let _ = write!(text, "{shown:>8}");
            }
        }
        let _ = write!(
            text,
            "\n{:<62}",
            format!("all {}", sums.values().sum::<u64>())
        );
        for count in sums.values() {
            let _ = write!(text, "{count:>8}");
        }
        text.push('\n');
        text
    }

    /// Prints the counts, and fails if there was an outcome that is not permitted.
    #[track_caller]
    pub fn finish(&self, title: &str) {
        // Not by a macro: the test harness would capture it.
        let _ = std::io::stderr().write_all(self.text(title).as_bytes());
        let shown: Vec<&str> = self
            .failures
            .iter()
            .take(if crate::is_full() { 10_000 } else { 20 })
            .map(String::as_str)
            .collect();
        assert!(
            self.failures.is_empty(),
            "{} of these must not be:\n{}",
            self.failures.len(),
            shown.join("\n")
        );
    }
}

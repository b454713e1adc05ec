//! The table. Absolute times are printed once. Ratios are to be compared: each is the median of the
//! ratios within a round, with the smallest and the largest of them.

use std::fmt;
use std::time::Duration;

use bilayer_bench::filesystems::Kind;
use bilayer_bench::spread::Spread;

use crate::workloads::{Measured, Sizes, Workload};

/// The rounds of each filesystem and workload, in order.
pub(crate) struct Report {
    kinds: Vec<Kind>,
    sizes: Sizes,
    samples: Vec<(Kind, Workload, Measured)>,
}

impl Report {
    pub(crate) fn new(kinds: Vec<Kind>, sizes: Sizes) -> Self {
        Self {
            kinds,
            sizes,
            samples: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, kind: Kind, workload: Workload, measured: Measured) {
        self.samples.push((kind, workload, measured));
    }

    fn of(&self, kind: Kind, workload: Workload) -> impl Iterator<Item = Measured> {
        self.samples
            .iter()
            .filter(move |sample| sample.0 == kind && sample.1 == workload)
            .map(|sample| sample.2)
    }

    fn times(&self, kind: Kind, workload: Workload) -> Vec<f64> {
        self.of(kind, workload)
            .map(|measured| measured.time.as_secs_f64())
            .collect()
    }

    /// A duration, and the rate that follows from it.
    fn absolute(&self, kind: Kind, workload: Workload) -> String {
        let Some(seconds) = Spread::of(self.times(kind, workload)).map(|spread| spread.median)
        else {
            return String::new();
        };
        let mebibytes = self.sizes.large_bytes as f64 / f64::from(1 << 20);
        let rate = match workload {
            Workload::Write | Workload::Read => format!("{:.0} MiB/s", mebibytes / seconds),
            Workload::Create => format!("{:.0}/s", self.sizes.small_files as f64 / seconds),
            _ => String::new(),
        };
        format!("{seconds:.2} s {rate:>11}")
    }

    fn ratio(&self, kind: Kind, base: Kind, workload: Workload) -> String {
        let (own, base) = (self.times(kind, workload), self.times(base, workload));
        let ratios = own.iter().zip(&base).map(|(own, base)| own / base);
        Spread::of(ratios.collect()).map_or(String::new(), |spread| spread.to_string())
    }

    fn daemon(&self, kind: Kind, workload: Workload) -> String {
        let times = self
            .of(kind, workload)
            .filter_map(|measured| measured.daemon.as_ref().map(Duration::as_secs_f64));
        Spread::of(times.collect())
            .map_or(String::new(), |spread| format!("{:.2} s", spread.median))
    }

    fn table(
        &self,
        out: &mut fmt::Formatter<'_>,
        title: &str,
        kinds: &[Kind],
        cell: &dyn Fn(Kind, Workload) -> String,
    ) -> fmt::Result {
        write!(out, "{title:<22}")?;
        for kind in kinds {
            write!(out, " {:>21}", kind.label())?;
        }
        writeln!(out)?;
        for workload in Workload::ALL {
            write!(out, "{:<22}", workload.label())?;
            for &kind in kinds {
                write!(out, " {:>21}", cell(kind, workload))?;
            }
            writeln!(out)?;
        }
        writeln!(out)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table(out, "median", &self.kinds, &|kind, workload| {
            self.absolute(kind, workload)
        })?;
        for base in [Kind::Plain, Kind::Gocryptfs, Kind::Before] {
            let others: Vec<Kind> = self
                .kinds
                .iter()
                .copied()
                .filter(|kind| *kind != base)
                .collect();
            if self.kinds.contains(&base) && !others.is_empty() {
                let title = format!("times {}", base.label());
                self.table(out, &title, &others, &|kind, workload| {
                    self.ratio(kind, base, workload)
                })?;
            }
        }
        let daemons: Vec<Kind> = self
            .kinds
            .iter()
            .copied()
            .filter(|kind| *kind != Kind::Plain)
            .collect();
        self.table(out, "daemon's CPU, median", &daemons, &|kind, workload| {
            self.daemon(kind, workload)
        })?;
        let rounds = self
            .kinds
            .first()
            .map_or(0, |kind| self.of(*kind, Workload::Write).count());
        writeln!(
            out,
            "rounds: {rounds}. Ratios are of times: below 1 is faster. [smallest, largest]"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut report = Report::new(vec![Kind::Plain, Kind::Bilayer], Sizes::new(true));
        for (plain, own) in [(1, 3), (10, 20), (2, 2)] {
            for (kind, seconds) in [(Kind::Plain, plain), (Kind::Bilayer, own)] {
                let measured = Measured {
                    time: Duration::from_secs(seconds),
                    daemon: None,
                };
                report.add(kind, Workload::Remove, measured);
            }
        }
        let ratio = report.ratio(Kind::Bilayer, Kind::Plain, Workload::Remove);
        assert_eq!(ratio, "2.00 [1.00, 3.00]");
        assert!(
            report
                .absolute(Kind::Bilayer, Workload::Remove)
                .starts_with("3.00 s")
        );
        assert!(report.absolute(Kind::Plain, Workload::Write).is_empty());
    }
}

//! Several samples of one figure: the median, with the smallest and the largest.

use std::fmt;

/// The spread of several samples.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The smallest.
    pub smallest: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub largest: f64,
}

impl Spread {
    /// `None` if there are no samples.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let (&smallest, &largest) = (samples.first()?, samples.last()?);
        let middle = samples.len() / 2;
        let median = if samples.len().is_multiple_of(2) {
            samples[middle - 1].midpoint(samples[middle])
        } else {
            samples[middle]
        };
        Some(Self {
            smallest,
            median,
            largest,
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            smallest,
            median,
            largest,
        } = self;
        write!(out, "{median:.2} [{smallest:.2}, {largest:.2}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 9.0]).unwrap();
        assert!((spread.median - 3.0).abs() < 1e-9);
        assert!(Spread::of(Vec::new()).is_none());
    }
}

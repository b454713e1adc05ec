//! Whether bytes look like noise: Pearson's chi-square test over the 256 values of a byte.
//!
//! For `n` random bytes the sum of (count - n/256)^2 / (n/256) has a chi-square distribution with
//! 255 degrees of freedom. Its quantiles by Wilson and Hilferty (1931), seven standard deviations
//! out on both sides, are 127 and 447: one random page in 10^12 falls outside, and a page of text,
//! zeros or program code is far beyond (its value is in the thousands).

/// The values of chi-square for a page of random bytes.
pub(crate) const NOISE: std::ops::RangeInclusive<f64> = 127.0..=447.0;

fn counts(bytes: &[u8]) -> [u32; 256] {
    let mut counts = [0; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    counts
}

/// Pearson's chi-square of the bytes against the uniform distribution.
pub(crate) fn chi_square(bytes: &[u8]) -> f64 {
    let expected = bytes.len() as f64 / 256.0;
    let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
    counts(bytes).iter().map(square).sum()
}

/// Shannon's entropy of the bytes' distribution, in bits a byte.
pub(crate) fn entropy(bytes: &[u8]) -> f64 {
    let total = bytes.len() as f64;
    let counts = counts(bytes);
    let present = counts.iter().filter(|&&count| count > 0);
    present
        .map(|&count| f64::from(count) / total)
        .map(|share| -share * share.log2())
        .sum()
}

/// True if the bytes (a few thousand of them) could be random.
pub(crate) fn is_noise(bytes: &[u8]) -> bool {
    NOISE.contains(&chi_square(bytes))
}

#[test]
fn noise_is_distinguished_from_everything_else() {
    for seed in 0..2000 {
        let page = crate::real::noise(seed << 32, 4032);
        assert!(is_noise(&page), "{}", chi_square(&page));
    }
    // 4096 random bytes have 8 - 255 / (2 * 4096 * ln 2) bits a byte on average (Miller, Madow).
    let page = crate::real::noise(1, 4096);
    assert!((entropy(&page) - 7.955).abs() < 0.02, "{}", entropy(&page));
    let source = include_str!("../support/src/real.rs").as_bytes();
    for page in source.chunks_exact(4032) {
        assert!(chi_square(page) > 5000.0);
        assert!(entropy(page) < 6.0);
    }
    assert!(!is_noise(&[0; 4032]));
    // Noise that hides the same line of text often enough is detected, and so are bytes that count
    // up, which are distributed too evenly.
    let even: Vec<u8> = (0..4032u32).map(|n| n as u8).collect();
    assert!(!is_noise(&even));
    let mut mixed = crate::real::noise(2, 4032);
    mixed[..512].fill(b'x');
    assert!(!is_noise(&mixed));
}

//! The generator behind every choice of a power cut: SplitMix64 (Steele, Lea, Flood: "Fast
//! splittable pseudorandom number generators", OOPSLA 2014). Small, and the same on every machine,
//! so that a seed in a bug report repeats the cut.

/// A stream of numbers that a seed determines.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, or 0 when there is none. The bias is below limit / 2^64.
    pub(super) const fn below(&mut self, limit: usize) -> usize {
        if limit == 0 {
            return 0;
        }
        ((self.next() as u128 * limit as u128) >> 64) as usize
    }

    pub(super) const fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// A probability that one cut uses throughout one file or one set of names. It may be 0 or 1:
    /// cuts that lose everything and cuts that lose nothing are as likely as those in between.
    pub(super) const fn chance(&mut self) -> Chance {
        Chance(self.below(9))
    }

    pub(super) const fn happens(&mut self, chance: Chance) -> bool {
        self.below(8) < chance.0
    }
}

/// A probability in eighths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance(usize);

#[cfg(test)]
mod tests {
    use super::*;

    /// First outputs for seed 1234567, as in the reference implementation's published test.
    #[test]
    fn splitmix64_known_answers() {
        let mut random = Random::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(expected.map(|_| random.next()), expected);
    }

    #[test]
    fn chances_reach_both_ends() {
        let mut random = Random::new(0);
        assert!((0..100).all(|_| random.happens(Chance(8))));
        assert!((0..100).all(|_| !random.happens(Chance(0))));
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(0), 0);
    }
}

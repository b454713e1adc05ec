//! AES-256-XTS (IEEE 1619-2018, NIST SP 800-38E) over whole blocks.
//!
//! ```text
//! T0 = AES(tweak key, unit as 128-bit little-endian number)     Ti+1 = Ti · x in GF(2^128)
//! Ci = AES(data key, Pi xor Ti) xor Ti                            modulo x^128 + x^7 + x^2 + x + 1
//! ```
//! Units are always a multiple of 16 bytes, so there is no ciphertext stealing, and the types
//! express this: data consists of blocks.
//!
//! All blocks of a unit are processed at once by the cipher's parallel backend (AES-NI, VAES,
//! ARMv8, or the fixsliced software one, whatever the machine has). A block-by-block implementation
//! takes several times as long. Nothing is allocated, and no branch or table index depends on data.

use aes::Aes256;
use aes::cipher::consts::U16;
use aes::cipher::inout::InOutBuf;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    Array, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks,
};
use subtle::ConstantTimeEq;

use super::derivation::DerivationError;

/// One block of the cipher.
pub type Block = [u8; 16];

/// Tweaks are computed and used in groups of this many, the most that the widest backend processes
/// at once.
const GROUP_BLOCKS: usize = 64;

/// The two expanded keys.
pub struct Aes256Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Aes256Xts {
    /// Expands data key ‖ tweak key.
    ///
    /// # Errors
    /// [`DerivationError::Degenerate`] if the two are equal, which the standards forbid; compared
    /// in constant time.
    pub fn new(keys: &[u8; 64]) -> Result<Self, DerivationError> {
        let (data, tweak) = keys.split_at(32);
        if data.ct_eq(tweak).into() {
            return Err(DerivationError::Degenerate);
        }
        let expand = |key| Aes256::new_from_slice(key).map_err(|_| DerivationError::Refused);
        Ok(Self {
            data: expand(data)?,
            tweak: expand(tweak)?,
        })
    }

    /// Encrypts one data unit, in place or from one buffer to another.
    pub fn encrypt(&self, unit: u128, blocks: InOutBuf<'_, '_, Block>) {
        self.data.encrypt_with_backend(Encrypt {
            blocks,
            first: self.first_tweak(unit),
        });
    }

    /// Decrypts one data unit, in place or from one buffer to another.
    pub fn decrypt(&self, unit: u128, blocks: InOutBuf<'_, '_, Block>) {
        self.data.decrypt_with_backend(Decrypt {
            blocks,
            first: self.first_tweak(unit),
        });
    }

    fn first_tweak(&self, unit: u128) -> u128 {
        let mut block = Array::from(unit.to_le_bytes());
        self.tweak.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }
}

/// The tweaks of [`GROUP_BLOCKS`] adjacent blocks, with low and high halves separated, so that the
/// compiler can process many of them with one instruction.
#[derive(Clone, Copy)]
struct Tweaks {
    low: [u64; GROUP_BLOCKS],
    high: [u64; GROUP_BLOCKS],
}

impl Tweaks {
    /// T0 … T63: the first eight one after the other, each later one from the tweak eight before
    /// it.
    #[inline(always)]
    fn first(first: u128) -> Self {
        let mut tweaks = Self {
            low: [0; GROUP_BLOCKS],
            high: [0; GROUP_BLOCKS],
        };
        let mut tweak = first;
        for i in 0..8 {
            tweaks.low[i] = tweak as u64;
            tweaks.high[i] = (tweak >> 64) as u64;
            tweak = times_x(tweak);
        }
        for i in 8..GROUP_BLOCKS {
            let (low, high) = (tweaks.low[i - 8], tweaks.high[i - 8]);
            tweaks.low[i] = (low << 8) ^ fold(high >> 56);
            tweaks.high[i] = (high << 8) | (low >> 56);
        }
        tweaks
    }

    /// Advances by 64 blocks: multiplies by x^64, which moves the low half up and folds the high
    /// half back in.
    #[inline(always)]
    fn advance(&mut self) {
        for (low, high) in self.low.iter_mut().zip(&mut self.high) {
            let overflow = (*high >> 63) ^ (*high >> 62) ^ (*high >> 57);
            (*low, *high) = (fold(*high), *low ^ overflow);
        }
    }

    /// XORs tweak `index` into a block.
    #[inline(always)]
    fn mask(&self, index: usize, block: &Block) -> Block {
        let tweak = u128::from(self.low[index]) | (u128::from(self.high[index]) << 64);
        (u128::from_le_bytes(*block) ^ tweak).to_le_bytes()
    }
}

/// Multiplies by x.
#[inline(always)]
fn times_x(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}

/// Multiplies by x^7 + x^2 + x + 1, to which x^128 reduces; the low 64 bits of the product.
#[inline(always)]
fn fold(bits: u64) -> u64 {
    bits ^ (bits << 1) ^ (bits << 2) ^ (bits << 7)
}

struct Encrypt<'a, 'b> {
    blocks: InOutBuf<'a, 'b, Block>,
    first: u128,
}

struct Decrypt<'a, 'b> {
    blocks: InOutBuf<'a, 'b, Block>,
    first: u128,
}

impl BlockSizeUser for Encrypt<'_, '_> {
    type BlockSize = U16;
}

impl BlockSizeUser for Decrypt<'_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Encrypt<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &B) {
        let mut tile = ParBlocks::<B>::default();
        let mut tweaks = Tweaks::first(self.first);
        let (width, count) = (B::ParBlocksSize::USIZE, self.blocks.len());
        for group in (0..count).step_by(GROUP_BLOCKS) {
            let group_end = count.min(group + GROUP_BLOCKS);
            for start in (group..group_end).step_by(width) {
                let end = group_end.min(start + width);
                let input = &self.blocks.get_in()[start..end];
                for (i, block) in input.iter().enumerate() {
                    tile[i] = Array(tweaks.mask(start - group + i, block));
                }
                // A short group also encrypts the rest of the tile, which is discarded: cheaper
                // than block by block.
                backend.encrypt_par_blocks_inplace(&mut tile);
                let output = &mut self.blocks.get_out()[start..end];
                for (i, block) in output.iter_mut().enumerate() {
                    *block = tweaks.mask(start - group + i, &tile[i].0);
                }
            }
            tweaks.advance();
        }
    }
}

impl BlockCipherDecClosure for Decrypt<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(mut self, backend: &B) {
        let mut tile = ParBlocks::<B>::default();
        let mut tweaks = Tweaks::first(self.first);
        let (width, count) = (B::ParBlocksSize::USIZE, self.blocks.len());
        for group in (0..count).step_by(GROUP_BLOCKS) {
            let group_end = count.min(group + GROUP_BLOCKS);
            for start in (group..group_end).step_by(width) {
                let end = group_end.min(start + width);
                let input = &self.blocks.get_in()[start..end];
                for (i, block) in input.iter().enumerate() {
                    tile[i] = Array(tweaks.mask(start - group + i, block));
                }
                backend.decrypt_par_blocks_inplace(&mut tile);
                let output = &mut self.blocks.get_out()[start..end];
                for (i, block) in output.iter_mut().enumerate() {
                    *block = tweaks.mask(start - group + i, &tile[i].0);
                }
            }
            tweaks.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xts_mode::Xts128;

    fn second_opinion(keys: &[u8; 64]) -> Xts128<Aes256> {
        Xts128::new(
            Aes256::new_from_slice(&keys[..32]).expect("32 bytes"),
            Aes256::new_from_slice(&keys[32..]).expect("32 bytes"),
        )
    }

    #[test]
    fn equal_halves_are_refused() {
        assert!(matches!(
            Aes256Xts::new(&[5; 64]),
            Err(DerivationError::Degenerate)
        ));
    }

    #[test]
    fn tweaks_are_successive_multiples_of_x() {
        let mut expected = 0xF0E1_D2C3_B4A5_9687_7869_5A4B_3C2D_1E0F_u128;
        let mut tweaks = Tweaks::first(expected);
        for _ in 0..5 {
            for i in 0..GROUP_BLOCKS {
                let tweak = u128::from(tweaks.low[i]) | (u128::from(tweaks.high[i]) << 64);
                assert_eq!(tweak, expected);
                expected = times_x(expected);
            }
            tweaks.advance();
        }
    }

    proptest! {
        #[test]
        fn agrees_with_xts_mode(
            keys in proptest::array::uniform32(any::<[u8; 2]>()),
            unit: u128,
            blocks in proptest::collection::vec(any::<Block>(), 1..300),
        ) {
            let mut flat = [0; 64];
            flat.copy_from_slice(keys.as_flattened());
            prop_assume!(flat[..32] != flat[32..]);
            let ours = Aes256Xts::new(&flat).expect("keys");
            let mut sealed = blocks.clone();
            ours.encrypt(unit, sealed.as_mut_slice().into());
            let mut theirs = blocks.clone();
            second_opinion(&flat)
                .encrypt_sector(theirs.as_flattened_mut(), unit.to_le_bytes().into());
            prop_assert_eq!(&sealed, &theirs);
            let mut opened = vec![[0; 16]; blocks.len()];
            ours.decrypt(unit, InOutBuf::new(&sealed, &mut opened).expect("same length"));
            prop_assert_eq!(&opened, &blocks);
            ours.decrypt(unit, sealed.as_mut_slice().into());
            prop_assert_eq!(&sealed, &blocks);
        }
    }
}

//! Defines the input from which every key is derived.
//!
//! HKDF-SHA-256 (RFC 5869), no salt (that is, 32 zero bytes), input keying material the DEK, and
//! an `info` of exactly 68 bytes, numbers little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | purpose: ASCII, filled up with zero bytes |
//! | 16 | 4 | layer: 1 customer, 2 infrastructure, 3 both |
//! | 20 | 4 | format: 1 |
//! | 24 | 16 | key-set id |
//! | 40 | 4 | epoch |
//! | 44 | 16 | crypto id |
//! | 60 | 8 | segment |
//!
//! | purpose | layer | input | crypto id, segment | output |
//! |---|---|---|---|---|
//! | `bilayer page` | 1 | customer DEK | of the page | 112 bytes: four keys, below |
//! | `bilayer page` | 2 | infrastructure DEK | of the page | 32 bytes: ChaCha20-Poly1305 key |
//! | `bilayer header` | 1 | customer DEK | zero | 32 bytes |
//! | `bilayer header` | 2 | infrastructure DEK | zero | 32 bytes |
//! | `bilayer header` | 3 | the two above, of all sets | zero | 32 bytes: superblock's MAC key |
//! | `bilayer succeed` | 1 | customer DEK | zero | 32 bytes |
//! | `bilayer succeed` | 2 | infrastructure DEK | zero | 32 bytes |
//! | `bilayer succeed` | 3 | the two above | zero | 32 bytes: verification key of the set |
//! | `bilayer export` | 1 | customer DEK | export id, 0 | 32 bytes |
//! | `bilayer export` | 2 | infrastructure DEK | export id, 0 | 32 bytes |
//! | `bilayer export` | 3 | the two above | export id, 1 or 2 | 32 bytes: MAC key |
//! | `bilayer print` | 1 | customer DEK | zero, and epoch 0 | 16 bytes: the fingerprint |
//! | `bilayer consent` | 1 | customer DEK | zero | 32 bytes: MAC key of a consent, never stored |
//!
//! - The four keys of a page are, in this order: 32 bytes XTS data key, 32 bytes XTS tweak key, 32
//!   bytes AES-256 key of the tag, 16 bytes POLYVAL key.
//! - For layer 3, key-set id and epoch are zero. The MACs are HMAC-SHA-256.
//! - `bilayer header`, 3: the input is the two above of every key set of the superblock, in its
//!   order.
//! - `bilayer succeed`, 3: see [`succession`](super::succession).
//! - `bilayer export`, 3: segment 1 is the key of the stream's header, 2 that of its end.
//!
//! The segment of a page is its index divided by [`SEGMENT_PAGES`]. So a key is used for at most
//! 2048 page positions, and random 96-bit nonces stay far from their birthday bound.
//!
//! RustCrypto derives from the customer DEK, and the outer layer's implementation derives from the
//! infrastructure DEK: the layers are independent down to their keys.

use hkdf::Hkdf;
use sha2::Sha256;

use crate::ids::{CryptoId, Epoch, KeySetId, PageIndex};
use crate::sys::wipe::with_stack_wiped;

/// The on-disk format that this belongs to.
pub const FORMAT: u16 = 1;

/// Pages that share keys: 8 MiB of sealed contents, 7.875 MiB of plain ones.
pub const SEGMENT_PAGES: u64 = 2048;

/// Bytes of `info`.
pub const INFO_BYTES: usize = 68;

/// Number of a segment of [`SEGMENT_PAGES`] pages within its sealed file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Segment(pub u64);

impl Segment {
    /// The segment of a page.
    pub const fn of(page: PageIndex) -> Self {
        Self(page.0 / SEGMENT_PAGES)
    }
}

/// Keys could not be derived. None of the causes should ever occur.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DerivationError {
    /// The implementation of HKDF refused.
    #[error("key derivation failed")]
    Refused,
    /// The two XTS keys are equal (NIST SP 800-38E, FIPS 140 IG C.I), or the POLYVAL key is zero.
    #[error("derived keys are degenerate")]
    Degenerate,
}

/// The purpose of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Page,
    Header,
    Succession,
    Fingerprint,
    Export,
    Consent,
}

impl Purpose {
    const fn name(self) -> &'static [u8; 16] {
        match self {
            Self::Page => b"bilayer page\0\0\0\0",
            Self::Header => b"bilayer header\0\0",
            Self::Succession => b"bilayer succeed\0",
            Self::Fingerprint => b"bilayer print\0\0\0",
            Self::Export => b"bilayer export\0\0",
            Self::Consent => b"bilayer consent\0",
        }
    }
}

/// The layer whose DEK a key is derived from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    Customer = 1,
    Infrastructure = 2,
    Both = 3,
}

/// Everything that a derived key is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub(crate) purpose: Purpose,
    pub(crate) origin: Origin,
    pub(crate) key_set: KeySetId,
    pub(crate) epoch: Epoch,
    pub(crate) crypto: CryptoId,
    pub(crate) segment: Segment,
}

impl Context {
    /// The `info` of the module's first table.
    pub(crate) fn info(&self) -> [u8; INFO_BYTES] {
        let mut info = [0; INFO_BYTES];
        info[0..16].copy_from_slice(self.purpose.name());
        info[16..20].copy_from_slice(&(self.origin as u32).to_le_bytes());
        info[20..24].copy_from_slice(&u32::from(FORMAT).to_le_bytes());
        info[24..40].copy_from_slice(&self.key_set.0);
        info[40..44].copy_from_slice(&self.epoch.0.to_le_bytes());
        info[44..60].copy_from_slice(&self.crypto.0);
        info[60..68].copy_from_slice(&self.segment.0.to_le_bytes());
        info
    }
}

/// HKDF-SHA-256 without salt, by RustCrypto. Leaves nothing on the stack.
pub(crate) fn hkdf_sha256(
    input: &[u8],
    info: &[u8],
    output: &mut [u8],
) -> Result<(), DerivationError> {
    with_stack_wiped(|| {
        Hkdf::<Sha256>::new(None, input)
            .expand(info, output)
            .map_err(|_| DerivationError::Refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::infrastructure;

    /// RFC 5869 A.3: SHA-256, empty salt and info.
    #[test]
    fn hkdf_rfc5869_without_salt() {
        let expected = hex::decode(
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        )
        .expect("hex");
        let mut ours = [0; 42];
        hkdf_sha256(&[0x0b; 22], b"", &mut ours).expect("derives");
        assert_eq!(ours[..], expected[..]);
        let mut theirs = [0; 42];
        infrastructure::hkdf_sha256(&[0x0b; 22], b"", &mut theirs).expect("derives");
        assert_eq!(theirs[..], expected[..]);
    }

    #[test]
    fn info_has_the_documented_layout() {
        let context = Context {
            purpose: Purpose::Page,
            origin: Origin::Infrastructure,
            key_set: KeySetId([0x11; 16]),
            epoch: Epoch(0x0403_0201),
            crypto: CryptoId([0x22; 16]),
            segment: Segment(0x0807_0605_0403_0201),
        };
        let expected = [
            hex::encode("bilayer page\0\0\0\0"),
            "02000000".into(),
            "01000000".into(),
            "11".repeat(16),
            "01020304".into(),
            "22".repeat(16),
            "0102030405060708".into(),
        ]
        .concat();
        assert_eq!(hex::encode(context.info()), expected);
    }

    #[test]
    fn pages_share_segments_by_2048() {
        assert_eq!(Segment::of(PageIndex(2047)), Segment(0));
        assert_eq!(Segment::of(PageIndex(2048)), Segment(1));
        assert_eq!(Segment::of(PageIndex(u64::MAX)), Segment(u64::MAX / 2048));
    }
}

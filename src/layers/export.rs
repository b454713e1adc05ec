//! Keys that authenticate the stream of an exported image.
//!
//! Both keys are derived from both DEKs of the key set that the stream is sealed under (see the
//! table in [`derivation`](super::derivation)). So a holder of only one layer's key can neither
//! make nor change a stream.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{DerivationError, Purpose, Segment};
use super::joint::{JointInput, hmac_sha256};
use crate::ids::{CryptoId, ExportId};

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;

/// Numbers of the two keys.
const HEADER_KEY: Segment = Segment(1);
const END_KEY: Segment = Segment(2);

/// Authenticates one stream.
pub struct ExportKeys {
    /// On the heap, so that a move leaves no copy.
    header: Zeroizing<Vec<u8>>,
    end: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ExportKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExportKeys(secret)")
    }
}

impl ExportKeys {
    /// Derives the keys of the export that is sealed under this set.
    ///
    /// # Errors
    /// When the keys cannot be derived.
    pub fn derive(export: ExportId, set: &KeySet) -> Result<Self, DerivationError> {
        let input = JointInput::derive(&[set], Purpose::Export, CryptoId(export.0))?;
        Ok(Self {
            header: input.key(HEADER_KEY)?,
            end: input.key(END_KEY)?,
        })
    }

    /// HMAC-SHA-256 of the header's bytes.
    ///
    /// # Errors
    /// [`DerivationError`], which should never occur.
    pub fn header_mac(&self, bytes: &[u8]) -> Result<[u8; MAC_BYTES], DerivationError> {
        hmac_sha256(&self.header, bytes)
    }

    /// HMAC-SHA-256 of the digest of everything before the end mark.
    ///
    /// # Errors
    /// [`DerivationError`], which should never occur.
    pub fn end_mac(&self, digest: &[u8; 32]) -> Result<[u8; MAC_BYTES], DerivationError> {
        hmac_sha256(&self.end, digest)
    }

    /// True if `mac` is the header's; compared in constant time.
    pub fn verify_header(&self, bytes: &[u8], mac: &[u8; MAC_BYTES]) -> bool {
        self.header_mac(bytes)
            .is_ok_and(|expected| expected.ct_eq(mac).into())
    }

    /// True if `mac` is the end mark's; compared in constant time.
    pub fn verify_end(&self, digest: &[u8; 32], mac: &[u8; MAC_BYTES]) -> bool {
        self.end_mac(digest)
            .is_ok_and(|expected| expected.ct_eq(mac).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, KeySetId};
    use crate::layers::dek::{CustomerDek, InfrastructureDek};

    fn set(customer: u8, infrastructure: u8, id: u8, epoch: u32) -> KeySet {
        KeySet {
            id: KeySetId([id; 16]),
            epoch: Epoch(epoch),
            customer: CustomerDek::from_bytes(&[customer; 64]).expect("memory"),
            infrastructure: InfrastructureDek::from_bytes(&[infrastructure; 32]).expect("memory"),
        }
    }

    #[test]
    fn macs_depend_on_both_keys_of_the_set_and_on_the_export() {
        let export = ExportId([7; 16]);
        let keys = ExportKeys::derive(export, &set(1, 2, 3, 4)).expect("keys");
        let mac = keys.header_mac(b"header").expect("mac");
        assert!(keys.verify_header(b"header", &mac));
        assert!(!keys.verify_header(b"headex", &mac));
        let of_end = keys.end_mac(&[9; 32]).expect("mac");
        assert!(keys.verify_end(&[9; 32], &of_end));
        assert!(!keys.verify_end(&[8; 32], &of_end));
        assert!(
            !keys.verify_header(&[9; 32], &of_end),
            "header and end have keys of their own"
        );
        for (export, other) in [
            (export, set(9, 2, 3, 4)),
            (export, set(1, 9, 3, 4)),
            (export, set(1, 2, 9, 4)),
            (export, set(1, 2, 3, 9)),
            (ExportId([8; 16]), set(1, 2, 3, 4)),
        ] {
            let other = ExportKeys::derive(export, &other).expect("keys");
            assert!(!other.verify_header(b"header", &mac));
            assert!(!other.verify_end(&[9; 32], &of_end));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = ExportKeys::derive(ExportId([7; 16]), &set(1, 2, 3, 4)).expect("keys");
        assert_eq!(format!("{keys:?}"), "ExportKeys(secret)");
    }
}

//! Keys that authenticate the stream of an exported image.
//!
//! Both keys are derived from both DEKs of the key set that the stream is sealed under. The
//! implementation of each layer derives from that layer's DEK, and one more HKDF joins the results
//! (see the table in [`derivation`](super::derivation)). So a holder of only one layer's key can
//! neither make nor change a stream.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::infrastructure;
use crate::ids::{CryptoId, Epoch, ExportId, KeySetId};
use crate::sys::wipe::with_stack_wiped;

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;

const OF_HEADER: Segment = Segment(1);
const OF_END: Segment = Segment(2);

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
        let mut joined = Zeroizing::new(vec![0; 64]);
        let (customer, machine) = joined.split_at_mut(32);
        let info = |origin| context(export, origin, set.id, set.epoch, Segment(0)).info();
        hkdf_sha256(set.customer.expose(), &info(Origin::Customer), customer)?;
        infrastructure::hkdf_sha256(
            set.infrastructure.expose(),
            &info(Origin::Infrastructure),
            machine,
        )?;
        let of = |segment| {
            let info = context(export, Origin::Both, KeySetId([0; 16]), Epoch(0), segment);
            let mut key = Zeroizing::new(vec![0; 32]);
            hkdf_sha256(&joined, &info.info(), &mut key).map(|()| key)
        };
        Ok(Self {
            header: of(OF_HEADER)?,
            end: of(OF_END)?,
        })
    }

    /// HMAC-SHA-256 of the header's bytes.
    ///
    /// # Errors
    /// [`DerivationError`], which should never occur.
    pub fn header_mac(&self, bytes: &[u8]) -> Result<[u8; MAC_BYTES], DerivationError> {
        mac(&self.header, bytes)
    }

    /// HMAC-SHA-256 of the digest of everything before the end mark.
    ///
    /// # Errors
    /// [`DerivationError`], which should never occur.
    pub fn end_mac(&self, digest: &[u8; 32]) -> Result<[u8; MAC_BYTES], DerivationError> {
        mac(&self.end, digest)
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

fn mac(key: &[u8], bytes: &[u8]) -> Result<[u8; MAC_BYTES], DerivationError> {
    with_stack_wiped(|| {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(key).map_err(|_| DerivationError::Refused)?;
        mac.update(bytes);
        Ok(mac.finalize().into_bytes().into())
    })
}

fn context(
    export: ExportId,
    origin: Origin,
    key_set: KeySetId,
    epoch: Epoch,
    segment: Segment,
) -> Context {
    Context {
        purpose: Purpose::Export,
        origin,
        key_set,
        epoch,
        crypto: CryptoId(export.0),
        segment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::dek::{CustomerDek, InfrastructureDek};

    fn set(customer: u8, machine: u8, id: u8, epoch: u32) -> KeySet {
        KeySet {
            id: KeySetId([id; 16]),
            epoch: Epoch(epoch),
            customer: CustomerDek::from_bytes(&[customer; 64]).expect("memory"),
            infrastructure: InfrastructureDek::from_bytes(&[machine; 32]).expect("memory"),
        }
    }

    #[test]
    fn both_keys_of_the_set_and_the_export_count() {
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

//! Wrapping to an X25519 key: HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256 and ChaCha20-Poly1305, the `info` [`INFO`] and no additional data.
//!
//! A wrap is the encapsulated key (32 bytes), the ciphertext, and the tag (16 bytes).

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;

use crate::keys::error::{ErrorKind, KeyError};

/// Bytes of a public key.
pub(super) const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes that a wrap is longer than what it wraps: encapsulated key and tag.
pub(super) const OVERHEAD_BYTES: usize = 48;
/// The `info` of HPKE.
const INFO: &[u8] = b"bilayer recovery 1";

/// A private key.
pub(super) type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// The key pair of a seed, by `DeriveKeyPair` (RFC 9180 section 7.1.3); the public half as bytes.
pub(super) fn key_pair(seed: &[u8]) -> (PrivateKey, Vec<u8>) {
    let (private, public) = X25519HkdfSha256::derive_keypair(seed);
    (private, public.to_bytes().to_vec())
}

/// Wraps to a public key.
pub(super) fn seal(public: &[u8; PUBLIC_KEY_BYTES], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
    let failed = || KeyError::new(ErrorKind::KeyUnavailable, "the recovery key cannot wrap");
    let public = PublicKey::from_bytes(public).map_err(|_| failed())?;
    let (encapped, sealed) =
        hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            INFO,
            plain,
            &[],
        )
        .map_err(|_| failed())?;
    Ok([encapped.to_bytes().as_slice(), &sealed].concat())
}

/// Unwraps; `None` if the ciphertext does not decrypt.
pub(super) fn open(private: &PrivateKey, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (encapped, sealed) = ciphertext.split_at_checked(PUBLIC_KEY_BYTES)?;
    let encapped = EncappedKey::from_bytes(encapped).ok()?;
    let plain = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        private,
        &encapped,
        INFO,
        sealed,
        &[],
    );
    plain.ok().map(Zeroizing::new)
}

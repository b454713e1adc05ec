//! The keys that wrap the data encryption keys, and their sources.
//!
//! ```text
//! customer RSA key (provider) ──RSA-OAEP-256──────► customer DEK
//! platform key vN  (keystore) ──ChaCha20-Poly1305─► infrastructure DEK
//! second key of vN (keystore) ──ChaCha20-Poly1305─► customer DEK of a platform-managed volume
//! passphrase ──Argon2id──► for an export, in the place of the platform keys
//! ```
//!
//! Where to look: [`secret`] has one type per role, [`uri`] names a customer key, [`customer`]
//! contains the providers, [`passphrase`] is the source of passphrases, [`wrap`] is the wrapped
//! form of a DEK in a volume, [`transport`] the one in an export, and [`keystore`] holds the
//! machine's own keys.
//!
//! Invariants: each role of a secret has its own type, and secrets are never printed, cloned or
//! logged; no secret, PIN or passphrase is ever part of a URI; every wrap, unwrap and refusal is
//! recorded in the [`audit`](crate::audit).
//!
//! The keystore's files are protected by their modes, and sealed to the machine where it has a TPM.
//! Without one, anybody who reads them as root or from a copy has the platform keys.

mod aead;
pub mod customer;
pub(crate) mod encoding;
pub mod error;
pub mod keystore;
pub mod passphrase;
pub mod secret;
pub mod transport;
pub mod uri;
pub mod wrap;

pub use customer::{CustomerKeyProvider, KeyVersion, WrapAlgorithm, WrappingKey};
pub use error::{ErrorKind, KeyError};
pub use keystore::{
    AuditHeads, KnownKeySet, PlatformKeystore, RememberedDirectory, RememberedVolume, VolumeRecord,
    WriterLock, WriterLocked,
};
pub use passphrase::PassphraseSource;
pub use uri::KeyUri;

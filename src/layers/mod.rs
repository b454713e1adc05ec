//! The two layers of encryption: algorithms and keys, without files.
//!
//! | layer | number | algorithm | implementation |
//! |---|---|---|---|
//! | customer (inner) | 1 | AES-256-XTS (IEEE 1619), tag AES-256(POLYVAL) (RFC 8452) | RustCrypto |
//! | infrastructure (outer) | 2 | ChaCha20-Poly1305 (RFC 8439) | AWS-LC, or RustCrypto |
//!
//! Both layers encrypt and authenticate, and they share no key, algorithm or implementation:
//! whatever breaks one layer leaves contents secret and unforgeable under the other.
//!
//! Where to look: [`dek`] holds the keys, [`derivation`] defines what every derived key is derived
//! from (with the byte table), [`xts`] and [`customer`] are the inner layer, and [`infrastructure`]
//! is the outer one. [`header`] authenticates the superblock, [`succession`] a key set that follows
//! another, and [`export`] the stream of an image, all with keys of `joint`.
//! [`self_test`](mod@self_test) compares everything with published results and with a second
//! implementation.
//!
//! Invariants: a derived key serves one purpose, one layer, one key set, one crypto id and one
//! segment. Keys are expanded once and stored on the heap, so that a move leaves no copy, and they
//! are zeroised when dropped. No `Debug` implementation shows a secret.

#[cfg(not(any(feature = "aws-lc", feature = "pure-rust")))]
compile_error!("choose an implementation: feature `aws-lc` (the default) or `pure-rust`");

pub mod consent;
pub mod customer;
pub mod dek;
pub mod derivation;
pub mod export;
pub mod header;
pub mod infrastructure;
mod joint;
pub mod self_test;
pub mod succession;
#[cfg(test)]
mod tests;
pub mod xts;

pub use consent::{consent_mac, verify_consent_mac};
pub use customer::CustomerKeys;
pub use dek::{CustomerDek, InfrastructureDek, KeyRing, KeySet};
pub use derivation::{DerivationError, FORMAT, Segment};
pub use export::ExportKeys;
pub use header::{fingerprint, header_mac, verify_header_mac};
pub use infrastructure::InfrastructureKeys;
pub use self_test::{SelfTestError, self_test};
pub use succession::{ActiveSet, Succession, VerificationKey};

/// Bytes of a tag of either layer.
pub const TAG_BYTES: usize = 16;

/// One of the two layers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Layer {
    /// The inner layer, under the customer DEK.
    Customer,
    /// The outer layer, under the infrastructure DEK.
    Infrastructure,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Customer => "customer (inner)",
            Self::Infrastructure => "infrastructure (outer)",
        })
    }
}

/// The tag does not match: the bytes, their position or the keys are different.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("does not authenticate")]
pub struct TagMismatch;

/// The implementation of a layer in this build, for `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerDescription {
    /// The layer.
    pub layer: Layer,
    /// Cipher and authentication.
    pub algorithm: &'static str,
    /// The library that implements it.
    pub implementation: &'static str,
    /// Whether the machine's instructions for it are used, if known.
    pub accelerated: Option<bool>,
}

/// Both layers, the inner one first.
pub fn implementations() -> [LayerDescription; 2] {
    [
        LayerDescription {
            layer: Layer::Customer,
            algorithm: "AES-256-XTS with an AES-256-POLYVAL tag",
            implementation: customer::IMPLEMENTATION,
            accelerated: Some(aes::hardware_accelerated()),
        },
        LayerDescription {
            layer: Layer::Infrastructure,
            algorithm: "ChaCha20-Poly1305",
            implementation: infrastructure::IMPLEMENTATION,
            accelerated: None,
        },
    ]
}

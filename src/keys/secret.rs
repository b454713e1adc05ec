//! The secrets of the key holders: one type per role, so that no key is used in place of another.
//!
//! Invariants: no `Clone`, a `Debug` that shows nothing, and separate memory that is locked if
//! permitted and zeroised on drop.

use std::fmt;
use std::io;

use crate::sys::memory::SecretMemory;

/// Bytes of a platform key.
pub const PLATFORM_KEY_BYTES: usize = 32;

macro_rules! platform_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(SecretMemory);

        impl $name {
            /// Draws a fresh key from the operating system.
            ///
            /// # Errors
            /// When the operating system provides no random bytes or no memory.
            pub fn random() -> io::Result<Self> {
                let mut memory = SecretMemory::zeroed(PLATFORM_KEY_BYTES)?;
                getrandom::fill(memory.expose_mut())
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Ok(Self(memory))
            }

            /// Copies the bytes; the caller zeroises the original.
            ///
            /// # Errors
            /// When the operating system provides no memory.
            pub fn from_bytes(bytes: &[u8; PLATFORM_KEY_BYTES]) -> io::Result<Self> {
                SecretMemory::copy_of(bytes).map(Self)
            }

            /// The 32 bytes, to wrap and unwrap with.
            pub(crate) fn expose(&self) -> &[u8] {
                self.0.expose()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

platform_key!(
    /// The machine's KEK of infrastructure DEKs.
    PlatformKey
);
platform_key!(
    /// The machine's KEK of the customer DEKs of platform-managed volumes: the second key of a
    /// keystore version.
    PlatformCustomerKey
);

platform_key!(
    /// Wraps the infrastructure DEKs of one export.
    TransportKey
);
platform_key!(
    /// Wraps the customer DEKs of one export of a platform-managed image.
    TransportCustomerKey
);

/// The passphrase of an encrypted private key, or of an export.
pub struct Passphrase(SecretMemory);

impl Passphrase {
    /// Copies the bytes; the caller zeroises the original.
    ///
    /// # Errors
    /// When the operating system provides no memory.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        SecretMemory::copy_of(bytes).map(Self)
    }

    /// The bytes, to derive a key from.
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(secret)")
    }
}

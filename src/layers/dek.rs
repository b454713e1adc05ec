//! Data encryption keys (DEKs), and the key sets of a volume.
//!
//! Invariants: a DEK is random, is stored in separate locked memory (a move leaves no copy behind),
//! is zeroised when dropped, and has neither `Clone` nor a `Debug` that reveals anything. The two
//! DEKs of a set are drawn independently. One key set of a ring is active, and new bytes are sealed
//! only under it; the others are read-only.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::ids::{Epoch, KeySetId};
use crate::sys::memory::SecretMemory;

macro_rules! dek {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        pub struct $name(SecretMemory);

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $len;

            /// Draws a fresh key from the operating system's generator.
            ///
            /// # Errors
            /// When the operating system provides no random bytes or no memory.
            pub fn random() -> io::Result<Self> {
                let mut memory = SecretMemory::zeroed($len)?;
                getrandom::fill(memory.expose_mut())
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Ok(Self(memory))
            }

            /// Copies the bytes; the caller zeroises the original.
            ///
            /// # Errors
            /// When there is no memory.
            pub fn from_bytes(bytes: &[u8; $len]) -> io::Result<Self> {
                Ok(Self(SecretMemory::copy_of(bytes)?))
            }

            /// The secret, for wrapping it or deriving from it. It must not be copied anywhere
            /// else.
            pub fn expose(&self) -> &[u8; $len] {
                match self.0.expose().first_chunk() {
                    Some(bytes) => bytes,
                    // Both constructors take exactly this many bytes.
                    None => unreachable!("a DEK of another length"),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

dek!(
    /// Data encryption key of the inner layer: 64 random bytes, owned by the customer.
    CustomerDek, 64
);
dek!(
    /// Data encryption key of the outer layer: 32 random bytes, owned by the machine.
    InfrastructureDek, 32
);

/// A pair of DEKs with its id and its number within the volume.
#[derive(Debug)]
pub struct KeySet {
    /// Random id, identical in every volume that has this set.
    pub id: KeySetId,
    /// Number within the volume, counted from 1.
    pub epoch: Epoch,
    /// Key of the inner layer.
    pub customer: CustomerDek,
    /// Key of the outer layer.
    pub infrastructure: InfrastructureDek,
}

impl KeySet {
    /// Draws a fresh set.
    ///
    /// # Errors
    /// When the operating system provides no random bytes or no memory.
    pub fn random(epoch: Epoch) -> io::Result<Self> {
        Ok(Self {
            id: KeySetId::random()?,
            epoch,
            customer: CustomerDek::random()?,
            infrastructure: InfrastructureDek::random()?,
        })
    }
}

/// The key sets of one volume: one active, any number read-only.
#[derive(Debug)]
pub struct KeyRing {
    /// The active set first.
    sets: Vec<Arc<KeySet>>,
    active: Arc<KeySet>,
}

impl KeyRing {
    /// A ring of the given sets. Their epochs are distinct. If two were equal, [`Self::get`] would
    /// return the active set, or else the first one.
    pub fn new(active: KeySet, read_only: Vec<KeySet>) -> Self {
        let read_only: Vec<_> = read_only.into_iter().map(Arc::new).collect();
        Self::inheriting(active, &read_only)
    }

    /// A ring of a fresh active set and read-only sets that another volume holds too.
    pub fn inheriting(active: KeySet, read_only: &[Arc<KeySet>]) -> Self {
        let active = Arc::new(active);
        let mut sets = vec![Arc::clone(&active)];
        sets.extend_from_slice(read_only);
        Self { sets, active }
    }

    /// The set under which new bytes are sealed.
    pub fn active(&self) -> &Arc<KeySet> {
        &self.active
    }

    /// The set with this number.
    pub fn get(&self, epoch: Epoch) -> Option<&Arc<KeySet>> {
        self.sets.iter().find(|set| set.epoch == epoch)
    }

    /// All sets, the active one first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeySet>> {
        self.sets.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let set = KeySet {
            id: KeySetId([7; 16]),
            epoch: Epoch(3),
            customer: CustomerDek::from_bytes(&[0xC5; 64]).unwrap(),
            infrastructure: InfrastructureDek::from_bytes(&[0x5C; 32]).unwrap(),
        };
        let shown = format!("{:?}", KeyRing::new(set, Vec::new()));
        assert!(shown.contains("CustomerDek(secret)"));
        assert!(!shown.contains("197") && !shown.to_lowercase().contains("c5c5"));
    }

    #[test]
    fn a_ring_returns_sets_by_epoch_and_prefers_the_active_one() {
        let active = KeySet::random(Epoch(2)).expect("random");
        let id = active.id;
        let ring = KeyRing::new(
            active,
            vec![
                KeySet::random(Epoch(1)).expect("random"),
                KeySet::random(Epoch(2)).expect("random"),
            ],
        );
        assert_eq!(ring.active().id, id);
        assert_eq!(ring.get(Epoch(2)).map(|set| set.id), Some(id));
        assert!(ring.get(Epoch(1)).is_some() && ring.get(Epoch(3)).is_none());
        assert_eq!(ring.iter().count(), 3);
    }

    #[test]
    fn random_keys_differ() {
        let (one, other) = (
            CustomerDek::random().expect("a"),
            CustomerDek::random().expect("b"),
        );
        assert_ne!(one.expose(), other.expose());
    }
}

//! Whether two keystores are the same holder of keys.

use subtle::ConstantTimeEq;

use super::PlatformKeystore;

impl PlatformKeystore {
    /// True if this keystore contains the keys that `other` wraps with: the same id, and the same
    /// two keys in the version that `other` uses now. The id alone proves nothing, since it is no
    /// secret. Keys are compared in constant time.
    pub(crate) fn holds_keys_of(&self, other: &Self) -> bool {
        let number = other.current_version();
        let (Some(ours), Some(theirs)) = (
            self.versions.own.get(&number),
            other.versions.own.get(&number),
        ) else {
            return false;
        };
        let infrastructure = ours
            .infrastructure
            .expose()
            .ct_eq(theirs.infrastructure.expose());
        let customer = ours.customer.expose().ct_eq(theirs.customer.expose());
        self.id == other.id && (infrastructure & customer).into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn copy(from: &Path, to: &Path) {
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.expect("cp").success());
    }

    #[test]
    fn a_copy_is_the_same_holder_and_a_namesake_is_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| directory.path().join(name);
        let own = PlatformKeystore::open_or_create(&path("own")).expect("keystore");
        assert!(own.holds_keys_of(&own));
        let other = PlatformKeystore::open_or_create(&path("other")).expect("keystore");
        assert!(!other.holds_keys_of(&own) && !own.holds_keys_of(&other));
        copy(&path("own"), &path("copy"));
        let copied = PlatformKeystore::open(&path("copy")).expect("keystore");
        assert!(copied.holds_keys_of(&own));
        // A keystore that claims the first one's id, with other keys.
        let namesake = PlatformKeystore {
            id: own.id,
            ..other
        };
        assert!(!namesake.holds_keys_of(&own) && !own.holds_keys_of(&namesake));
    }
}

//! Remembers which faults were logged, so that reading a damaged page again and again does not fill
//! the disk with log lines.

use std::hash::Hash;

use lru::LruCache;
use parking_lot::Mutex;

/// Limit on the remembered faults. A fault is logged again if this many others occurred since.
const REMEMBERED: usize = 1024;

/// The most recently logged faults.
#[derive(Debug)]
pub struct LogOnce<K: Hash + Eq>(Mutex<LruCache<K, ()>>);

impl<K: Hash + Eq> Default for LogOnce<K> {
    fn default() -> Self {
        // Empty until there is a fault: a cache with a fixed capacity allocates memory for all of
        // it.
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl<K: Hash + Eq> LogOnce<K> {
    /// True if the caller should log this fault: it was not logged yet, or is no longer remembered.
    pub fn first_time(&self, fault: K) -> bool {
        let mut logged = self.0.lock();
        let is_new = logged.put(fault, ()).is_none();
        if logged.len() > REMEMBERED {
            logged.pop_lru();
        }
        is_new
    }

    /// True once any fault was logged.
    pub fn any_logged(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_logged_again_only_after_many_others() {
        let logged = LogOnce::default();
        assert!(logged.first_time(1));
        assert!(!logged.first_time(1));
        for other in 2..=REMEMBERED {
            assert!(logged.first_time(other));
        }
        assert!(
            !logged.first_time(1),
            "the oldest of those that are remembered"
        );
        assert!(logged.first_time(0));
        assert!(
            logged.first_time(2),
            "the least recently logged fault is forgotten"
        );
    }
}

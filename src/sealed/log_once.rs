//! Remembers which faults were logged, so that somebody who reads a damaged page again and again
//! does not fill the disk with log lines.

use std::hash::Hash;

use lru::LruCache;
use parking_lot::Mutex;

/// Limit on the remembered faults. Faults are logged again if more damaged pages than this are read
/// in turn.
const REMEMBERED: usize = 1024;

/// The most recently logged faults.
#[derive(Debug)]
pub struct LogOnce<K: Hash + Eq>(Mutex<LruCache<K, ()>>);

impl<K: Hash + Eq> LogOnce<K> {
    /// True once any fault was logged.
    pub fn any_logged(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

impl<K: Hash + Eq> Default for LogOnce<K> {
    fn default() -> Self {
        // Empty until there is a fault: a cache with a fixed capacity allocates memory for all of
        // it.
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl<K: Hash + Eq> LogOnce<K> {
    /// True if this fault has not been logged yet, or has been forgotten since.
    pub fn first_time(&self, fault: K) -> bool {
        let mut logged = self.0.lock();
        let news = logged.put(fault, ()).is_none();
        if logged.len() > REMEMBERED {
            logged.pop_lru();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_logged_once_until_many_others_came() {
        let logged = LogOnce::default();
        assert!(logged.first_time(1));
        assert!(!logged.first_time(1));
        for other in 2..=REMEMBERED {
            assert!(logged.first_time(other));
        }
        assert!(
            !logged.first_time(1),
            "the oldest of as many as are remembered"
        );
        assert!(logged.first_time(0));
        assert!(
            logged.first_time(2),
            "what was not asked for longest is forgotten"
        );
    }
}

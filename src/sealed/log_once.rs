//! What was logged already: whoever reads a damaged page again and again must not fill the disk
//! with lines about it.

use std::hash::Hash;

use lru::LruCache;
use parking_lot::Mutex;

/// Faults that are remembered. Whoever goes through more damaged pages than that, over and over, has
/// them logged again.
const REMEMBERED: usize = 1024;

/// The newest faults that the log was logged of.
#[derive(Debug)]
pub struct LogOnce<K: Hash + Eq>(Mutex<LruCache<K, ()>>);

impl<K: Hash + Eq> LogOnce<K> {
    /// True once there was any fault.
    pub fn any_logged(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

impl<K: Hash + Eq> Default for LogOnce<K> {
    fn default() -> Self {
        // Empty until there is a fault: a cache of a given size sets memory aside for all of it.
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl<K: Hash + Eq> LogOnce<K> {
    /// True when this fault was not logged yet, or so many others since that it may be logged again.
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

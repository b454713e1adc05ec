//! What the log has been told: whoever reads a damaged page again and again must not fill the disk
//! with lines about it.

use std::hash::Hash;

use lru::LruCache;
use parking_lot::Mutex;

/// Faults that are remembered. Whoever goes through more damaged pages than that, over and over, has
/// them told again.
const REMEMBERED: usize = 1024;

/// The newest faults that the log was told of.
#[derive(Debug)]
pub struct Told<K: Hash + Eq>(Mutex<LruCache<K, ()>>);

impl<K: Hash + Eq> Told<K> {
    /// True once there was any fault.
    pub fn is_any(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

impl<K: Hash + Eq> Default for Told<K> {
    fn default() -> Self {
        // Empty until there is a fault: a cache of a given size sets memory aside for all of it.
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl<K: Hash + Eq> Told<K> {
    /// True when this fault was not told yet, or so many others since that it may be told again.
    pub fn is_news(&self, fault: K) -> bool {
        let mut told = self.0.lock();
        let news = told.put(fault, ()).is_none();
        if told.len() > REMEMBERED {
            told.pop_lru();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_news_once_until_many_others_came() {
        let told = Told::default();
        assert!(told.is_news(1));
        assert!(!told.is_news(1));
        for other in 2..=REMEMBERED {
            assert!(told.is_news(other));
        }
        assert!(!told.is_news(1), "the oldest of as many as are remembered");
        assert!(told.is_news(0));
        assert!(
            told.is_news(2),
            "what was not asked for longest is forgotten"
        );
    }
}

//! A keyed sum over all pages: of the pseudo-random values of (page, tag), modulo 2^256.
//!
//! When a page changes, its old value is subtracted and its new one added; 32 bytes cover all
//! pages. Only adding up all pages again verifies the sum.

use sha2::{Digest, Sha256};

/// The sum, as four numbers, lowest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sum([u64; 4]);

/// SHA-256 of key ‖ page ‖ tag: two blocks, as HMAC's inner half would be.
fn value(key: &[u8; 32], page: u64, tag: &[u8; 16]) -> [u64; 4] {
    let digest = Sha256::new()
        .chain_update(key)
        .chain_update(page.to_le_bytes())
        .chain_update(tag)
        .finalize();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

impl Sum {
    pub(crate) fn add(&mut self, key: &[u8; 32], page: u64, tag: &[u8; 16]) {
        let mut carry = false;
        for (word, more) in self.0.iter_mut().zip(value(key, page, tag)) {
            let (sum, first) = word.overflowing_add(more);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first | second);
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8; 32], page: u64, tag: &[u8; 16]) {
        let mut borrow = false;
        for (word, less) in self.0.iter_mut().zip(value(key, page, tag)) {
            let (rest, first) = word.overflowing_sub(less);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*word, borrow) = (rest, first | second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_count_and_removing_undoes() {
        let key = [7; 32];
        let (mut a, mut b) = (Sum::default(), Sum::default());
        for page in 0..100 {
            a.add(&key, page, &[page as u8; 16]);
            b.add(&key, 99 - page, &[99 - page as u8; 16]);
        }
        assert_eq!(a, b);
        a.add(&key, 5, &[1; 16]);
        assert_ne!(a, b);
        a.remove(&key, 5, &[1; 16]);
        assert_eq!(a, b);
    }
}

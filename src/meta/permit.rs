//! The permit to change something.
//!
//! Whoever builds and applies a batch, or writes pages of contents, holds it shared from the first
//! look at the live generation to the end. Raising the generation, which is what taking a view
//! comes down to, and taking the live view back need it exclusively.
//!
//! It is the outermost lock, and one thread may take it several times over. What a thread does
//! that holds other locks already (a file's `syncing`) asks by [`PermitLock::shared_within`]: that is let in even
//! while somebody waits for exclusiveness, who in turn waits for nothing but permits.

use std::cell::Cell;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// Permits of this thread. They are never held while working on another volume.
    static HELD: Cell<u32> = const { Cell::new(0) };
    /// This thread has it exclusively.
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// The lock behind the permit.
#[derive(Debug, Default)]
pub(super) struct PermitLock(RwLock<()>);

/// The right to change something.
#[derive(Debug)]
pub struct Permit<'a> {
    /// `None` for one who has paused everybody else.
    guard: Option<RwLockReadGuard<'a, ()>>,
}

/// Nobody else changes anything.
#[derive(Debug)]
pub struct Pause<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl PermitLock {
    /// Waits its turn behind one who wants it exclusively, unless this thread has a permit.
    pub(super) fn shared(&self) -> Permit<'_> {
        if HELD.get() > 0 || PAUSED.get() {
            return self.shared_within();
        }
        HELD.set(1);
        Permit {
            guard: Some(self.0.read()),
        }
    }

    /// Waits for nobody but one who has it exclusively.
    pub(super) fn shared_within(&self) -> Permit<'_> {
        if PAUSED.get() {
            return Permit { guard: None };
        }
        HELD.set(HELD.get() + 1);
        Permit {
            guard: Some(self.0.read_recursive()),
        }
    }

    /// Waits until nobody else has one.
    pub(super) fn exclusive(&self) -> Pause<'_> {
        let guard = self.0.write();
        PAUSED.set(true);
        Pause { _guard: guard }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            HELD.set(HELD.get().saturating_sub(1));
        }
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        PAUSED.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn one_thread_may_take_it_again_while_another_waits_for_all_of_it() {
        let lock = Arc::new(PermitLock::default());
        let first = lock.shared();
        let (done, wait) = channel();
        let other = std::thread::spawn({
            let lock = Arc::clone(&lock);
            move || {
                let pause = lock.exclusive();
                // Who has everything has a permit too.
                drop(lock.shared());
                drop(pause);
                done.send(()).unwrap();
            }
        });
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err());
        drop(lock.shared());
        let within = lock.shared_within();
        drop(first);
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err());
        drop(within);
        wait.recv_timeout(Duration::from_secs(20)).unwrap();
        other.join().unwrap();
        drop(lock.exclusive());
    }
}

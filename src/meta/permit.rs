//! The permit to make changes.
//!
//! Building and applying a batch, or writing pages of contents, requires a shared permit, from the
//! first look at the live generation to the end. Raising the generation, which takes a view, and
//! restoring the live view require the permit exclusively.
//!
//! Only what puts snapshots and restores in order (`long_changes`) is locked before it, and one
//! thread may take it several times. A thread that already holds other locks (a file's `syncing`)
//! asks by [`PermitLock::shared_within`]. It is admitted even while another thread waits for the
//! exclusive permit; that thread in turn waits for nothing but permits.

use std::cell::Cell;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// Number of permits that this thread holds. They are never held while working on another
    /// volume.
    static HELD: Cell<u32> = const { Cell::new(0) };
    /// This thread holds the exclusive permit.
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// The lock behind the permit.
#[derive(Debug, Default)]
pub(super) struct PermitLock(RwLock<()>);

/// The right to make changes.
#[derive(Debug)]
pub struct Permit<'a> {
    /// `None` if this thread holds the exclusive permit.
    guard: Option<RwLockReadGuard<'a, ()>>,
}

/// While this is held, nobody else makes changes.
#[derive(Debug)]
pub struct Pause<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl PermitLock {
    /// Takes a shared permit. Waits behind a thread that wants the exclusive permit, unless this
    /// thread already has a permit.
    pub(super) fn shared(&self) -> Permit<'_> {
        if HELD.get() > 0 || PAUSED.get() {
            return self.shared_within();
        }
        HELD.set(1);
        Permit {
            guard: Some(self.0.read()),
        }
    }

    /// Takes a shared permit. Waits only for a thread that holds the exclusive permit.
    pub(super) fn shared_within(&self) -> Permit<'_> {
        if PAUSED.get() {
            return Permit { guard: None };
        }
        HELD.set(HELD.get() + 1);
        Permit {
            guard: Some(self.0.read_recursive()),
        }
    }

    /// Waits until no other thread has a permit, and takes the exclusive one.
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
                // The exclusive permit includes a shared one.
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

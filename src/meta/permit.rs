//! Permits to make changes.
//!
//! A thread that builds and applies a batch, or writes pages of contents, holds a shared permit
//! from the moment at which it reads the live generation until it is done. A thread that raises the
//! generation (to take a view) or restores the live view holds the exclusive permit.
//!
//! Lock order: a thread takes its permit before any other lock, except the lock that serialises
//! snapshots and restores (`long_changes`). One thread may take a shared permit several times. A
//! thread that already holds another lock (a file's `syncing`) must not queue behind a thread that
//! waits for the exclusive permit: the holder of a shared permit may wait for that lock. It calls
//! [`PermitLock::shared_holding_locks`], which does not queue.

use std::cell::Cell;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// Number of shared permits that this thread holds. It holds permits of one volume only.
    static SHARED_HELD: Cell<u32> = const { Cell::new(0) };
    /// This thread holds the exclusive permit.
    static HOLDS_EXCLUSIVE: Cell<bool> = const { Cell::new(false) };
}

/// Grants the permits of one volume.
#[derive(Debug, Default)]
pub(super) struct PermitLock(RwLock<()>);

/// A shared permit: its holder may make changes, beside other holders.
#[derive(Debug)]
pub struct Permit<'a> {
    /// `None` if this thread holds the exclusive permit.
    guard: Option<RwLockReadGuard<'a, ()>>,
}

/// The exclusive permit: no other thread makes changes while it is held. Its holder may make
/// changes, and gets shared permits without waiting.
#[derive(Debug)]
pub struct ExclusivePermit<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl PermitLock {
    /// Takes a shared permit. Waits while another thread holds the exclusive permit or waits for
    /// it, unless this thread already holds a permit.
    pub(super) fn shared(&self) -> Permit<'_> {
        if SHARED_HELD.get() > 0 || HOLDS_EXCLUSIVE.get() {
            return self.shared_holding_locks();
        }
        SHARED_HELD.set(1);
        Permit {
            guard: Some(self.0.read()),
        }
    }

    /// Takes a shared permit, for a thread that holds other locks. Waits only while another thread
    /// holds the exclusive permit, not behind one that waits for it.
    pub(super) fn shared_holding_locks(&self) -> Permit<'_> {
        if HOLDS_EXCLUSIVE.get() {
            return Permit { guard: None };
        }
        SHARED_HELD.set(SHARED_HELD.get() + 1);
        Permit {
            guard: Some(self.0.read_recursive()),
        }
    }

    /// Waits until no other thread holds a permit, and takes the exclusive one.
    pub(super) fn exclusive(&self) -> ExclusivePermit<'_> {
        let guard = self.0.write();
        HOLDS_EXCLUSIVE.set(true);
        ExclusivePermit { _guard: guard }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            SHARED_HELD.set(SHARED_HELD.get().saturating_sub(1));
        }
    }
}

impl Drop for ExclusivePermit<'_> {
    fn drop(&mut self) {
        HOLDS_EXCLUSIVE.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn a_thread_takes_a_second_shared_permit_while_another_waits_for_the_exclusive_one() {
        let lock = Arc::new(PermitLock::default());
        let first = lock.shared();
        let (done, wait) = channel();
        let other = std::thread::spawn({
            let lock = Arc::clone(&lock);
            move || {
                let exclusive = lock.exclusive();
                // The exclusive permit includes a shared one.
                drop(lock.shared());
                drop(exclusive);
                done.send(()).unwrap();
            }
        });
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err());
        drop(lock.shared());
        let second = lock.shared_holding_locks();
        drop(first);
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err());
        drop(second);
        wait.recv_timeout(Duration::from_secs(20)).unwrap();
        other.join().unwrap();
        drop(lock.exclusive());
    }
}

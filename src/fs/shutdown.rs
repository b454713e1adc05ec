//! Stopping a filesystem at once, as a power cut would: what is not durable is lost.
//!
//! It is what `FS_IOC_SHUTDOWN` does elsewhere for those who test what survives. Every request that
//! follows gets EIO; unmounting writes nothing and leaves the volume to be recovered by the next
//! mount.

use std::sync::atomic::Ordering;

use super::Filesystem;
use crate::errno::Errno;

impl Filesystem {
    /// Stops it. There is no way back but the next mount.
    pub fn shut_down(&self) {
        self.meta.latch("shut down on request");
        self.down.store(true, Ordering::SeqCst);
    }

    /// `Err(EIO)` once it was shut down.
    pub(super) fn check_up(&self) -> Result<(), Errno> {
        if self.is_down() {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }
}

//! Stopping a filesystem at once, as a power cut would: what is not durable is lost.
//!
//! This is what `FS_IOC_SHUTDOWN` does on other filesystems, for tests of what survives. Every
//! later request gets EIO. Unmounting writes nothing and leaves the volume to the recovery of the
//! next mount.

use std::sync::atomic::Ordering;

use super::Filesystem;
use crate::errno::Errno;

impl Filesystem {
    /// Stops the filesystem until the next mount.
    pub fn shut_down(&self) {
        self.meta.latch("shut down on request");
        self.was_shut_down.store(true, Ordering::SeqCst);
    }

    /// Fails with EIO after a shutdown.
    pub(super) fn check_running(&self) -> Result<(), Errno> {
        if self.is_shut_down() {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.was_shut_down.load(Ordering::SeqCst)
    }
}

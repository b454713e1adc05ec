//! Limits of the kernel's dirty pages for the mount.
//!
//! The limit is [`DIRTY_BYTES_MAX`], which is work for a tenth of a second and less than what may
//! wait for a worker. The kernel sends dirty pages in the order in which they were written, so a
//! close or sync of a file waits until what others have written before was received. And when the
//! volume is full, programs that never check whether a write succeeded (fsync, close) may lose that
//! much, while programs that write on get an error soon. A higher limit makes no writer faster.
//! Only root can set the limit. Mounts of other users have the kernel's own, 1 % of the memory that
//! may be dirty.
//!
//! Source: Documentation/ABI/testing/sysfs-class-bdi of Linux (`max_bytes`: Linux 6.2).

use std::fs;
use std::path::Path;

/// Maximum dirty bytes of the mount.
const DIRTY_BYTES_MAX: u64 = 32 << 20;
/// Read-ahead of the kernel for sequential readers: two requests of full size.
const READ_AHEAD_KIB: u64 = 2048;

/// Sets the limits of the mount whose device has that sysfs folder.
pub(super) fn set_limits(folder: &Path) {
    for (name, value) in [
        ("read_ahead_kb", READ_AHEAD_KIB),
        ("max_bytes", DIRTY_BYTES_MAX),
        ("strict_limit", 1),
    ] {
        if let Err(error) = fs::write(folder.join(name), value.to_string()) {
            tracing::debug!(name, %error, "a limit of the kernel stays as it is");
        }
    }
}

//! Negotiation of capabilities with the kernel at the start of a session.

use fuser::{InitFlags, KernelConfig};

/// Options of a session; see [`MountOptions`](super::MountOptions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AdapterOptions {
    pub(super) writeback: bool,
    pub(super) nfs_export: bool,
    pub(super) max_background: u16,
}

/// Capabilities that are requested one by one; those that the kernel does not offer are not used.
///
/// Not `FUSE_ATOMIC_O_TRUNC`: with it the kernel sends OPEN with `O_TRUNC` before it checks whether
/// the file is a running program, so that `open(O_RDONLY | O_TRUNC)` would empty the file and fail
/// with `ETXTBSY` afterwards. Without it, a SETATTR follows that check.
///
/// `FUSE_EXPORT_SUPPORT` only if requested: Linux 6.16 and later treat an inode that was looked up
/// by a file handle as stale at the next lookup by name (its `d_time` is older than any epoch).
/// overlayfs uses handles for files that it has copied up, so it would lose files in listings if
/// both of its layers are on one mount.
const CAPABILITIES: [InitFlags; 11] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_WRITEBACK_CACHE,
];

/// Requests all capabilities. True if the kernel leaves the umask to the filesystem.
pub(super) fn negotiate(
    config: &mut KernelConfig,
    options: AdapterOptions,
    request_bytes: u32,
) -> bool {
    let mut applies_umask = false;
    for capability in CAPABILITIES {
        let wanted = match capability {
            InitFlags::FUSE_WRITEBACK_CACHE => options.writeback,
            InitFlags::FUSE_EXPORT_SUPPORT => options.nfs_export,
            _ => true,
        };
        if !wanted {
            continue;
        }
        if config.add_capabilities(capability).is_err() {
            tracing::info!(?capability, "not offered by this kernel; not used");
        } else if capability == InitFlags::FUSE_DONT_MASK {
            applies_umask = true;
        }
    }
    let background = options.max_background.max(1);
    // The setters refuse only values out of range, and then name the nearest good one.
    if let Err(nearest) = config.set_max_write(request_bytes) {
        let _ = config.set_max_write(nearest);
    }
    let _ = config.set_max_background(background);
    let _ = config.set_congestion_threshold(background / 4 * 3 + 1);
    applies_umask
}

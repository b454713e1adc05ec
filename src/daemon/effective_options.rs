//! The options of the filesystem and of the FUSE mount, from the requested options and the
//! defaults.

use std::path::Path;
use std::time::Duration;

use super::mount_request::MountRequest;
use crate::fs::FilesystemOptions;
use crate::fuse::MountOptions;
use crate::sys::identity::effective_user;
use crate::sys::limits;

/// How often the metadata is copied to a checkpoint, unless `checkpoint=` says otherwise.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(600);

/// The number of objects that may be open, within the limit on descriptors.
fn open_objects(requested: Option<usize>, default: usize) -> usize {
    /// Descriptors for other purposes: requests in progress, clients of the socket, directories.
    const OTHER_DESCRIPTORS: u64 = 128;
    /// With fewer open objects than these, small files are synced in many rounds.
    const FEW: usize = 512;
    let most = limits::open_files()
        .saturating_sub(OTHER_DESCRIPTORS)
        .max(8);
    let wanted = requested.unwrap_or(default);
    let allowed = usize::try_from(most).map_or(wanted, |most| wanted.min(most));
    if allowed < requested.unwrap_or(FEW) {
        tracing::warn!(
            wanted,
            allowed,
            "fewer files of the volume are kept open than wanted: ulimit -n does not allow more"
        );
    }
    allowed
}

pub(super) fn filesystem_options(request: &MountRequest) -> FilesystemOptions {
    let requested = &request.options;
    let mut options = FilesystemOptions::default();
    options.read_only = requested.read_only.unwrap_or(false);
    options.commit_interval = requested.commit.unwrap_or(options.commit_interval);
    options.meta_cache_bytes = requested
        .meta_cache_bytes
        .unwrap_or(options.meta_cache_bytes);
    options.open_objects = open_objects(requested.open_objects, options.open_objects);
    options.pending_bytes = requested.pending_bytes.unwrap_or(options.pending_bytes);
    options.access_times = requested.access_times.unwrap_or_default();
    options.snapshot_dir = requested.snapshot_dir.clone().unwrap_or_default();
    let checkpoint = requested.checkpoint.unwrap_or(CHECKPOINT_INTERVAL);
    options.checkpoint_interval = (!checkpoint.is_zero()).then_some(checkpoint);
    options
}

/// The options of the FUSE mount. A mount of root is for all users, under ordinary permissions,
/// like that of any disk. A volume with contents from others is mounted `nosuid,nodev`.
pub(super) fn fuse_options(request: &MountRequest, path: &Path, foreign: bool) -> MountOptions {
    let requested = &request.options;
    let mut options = MountOptions::new(path);
    let by_root = effective_user() == 0;
    options.flags = requested.flags(by_root);
    if foreign {
        let wanted = options.flags;
        options.flags = requested.restricted(wanted);
        if options.flags != wanted {
            tracing::info!(
                nosuid = options.flags.nosuid,
                nodev = options.flags.nodev,
                "the volume came from elsewhere: no set-id programs and devices of others, unless \
                 suid,dev (in fstab: trusted) is asked for"
            );
        }
    }
    options.allow_other = requested.allow_other.unwrap_or(by_root);
    options.writeback = requested.writeback.unwrap_or(options.writeback);
    options.follow_caller = requested.follow_caller.unwrap_or(options.follow_caller);
    options.nfs_export = requested.nfs_export.unwrap_or(options.nfs_export);
    options.workers = requested.workers.unwrap_or(options.workers);
    options.max_background = requested.max_background.unwrap_or(options.max_background);
    options
}

#[cfg(test)]
mod tests {
    use super::super::mount_request::tests::request;
    use super::super::options::RequestedOptions;
    use super::*;
    use crate::fs::SnapshotDir;

    #[test]
    fn options_reach_filesystem_and_fuse() {
        let mut request = request(Path::new("/v"), Path::new("/d"));
        let text = "ro,commit=7,checkpoint=8,meta_cache=2M,pending=3M,open_objects=9,workers=4,\
                    nowriteback,\
                    follow_caller=off,nfs_export=on,max_background=5,allow_other,exec,suid,nodev,\
                    snapshot_dir=off";
        request.options = RequestedOptions::parse([text], Path::new("/")).unwrap();
        let inner = filesystem_options(&request);
        assert!(inner.read_only);
        assert_eq!(inner.commit_interval.as_secs(), 7);
        assert_eq!(inner.checkpoint_interval, Some(Duration::from_secs(8)));
        assert_eq!(inner.meta_cache_bytes, 2 << 20);
        assert_eq!(inner.pending_bytes, 3 << 20);
        assert_eq!(inner.open_objects, 9);
        assert_eq!(inner.snapshot_dir, SnapshotDir::Off);
        let outer = fuse_options(&request, Path::new("/v"), false);
        assert!(outer.allow_other && !outer.writeback && !outer.follow_caller && outer.nfs_export);
        assert!(outer.flags.read_only && outer.flags.nodev && !outer.flags.nosuid);
        assert_eq!((outer.workers, outer.max_background), (4, 5));
        assert_eq!(outer.source, Path::new("/v"));
        // `suid` was asked for.
        let foreign = fuse_options(&request, Path::new("/v"), true);
        assert_eq!(foreign.flags, outer.flags);
        request.options.suid = None;
        assert!(fuse_options(&request, Path::new("/v"), true).flags.nosuid);
    }
}

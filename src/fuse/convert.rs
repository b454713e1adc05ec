//! Conversions between fuser's values and the filesystem's. Pure functions.
//!
//! **Times before 1970.** The kernel gives seconds (negative) and nanoseconds that count forward.
//! fuser 0.18 adds the nanoseconds on the wrong side: `(-2, 800 000 000)`, which is 1.2 s before
//! the epoch, arrives as a `SystemTime` 2.8 s before it. The mapping loses nothing, so
//! [`timespec_from_kernel`] reverses it exactly. A fuser release that fixes this must come with a
//! change here, hence the pinned minor version. In the other direction fuser is right, and
//! [`system_time`] is the plain conversion. One flaw remains: fuser overflows on the single value
//! -2^63 s, which the kernel sends only if exactly that time is set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::TimeOrNow;

use crate::fs::types::{
    Attr, Caller, Fallocate, FileKind, ImpliedChange, RenameFlags, SeekWhence, SetAttr, SetTime,
    Timespec, XattrMode,
};

/// Converts a time to std's type; the epoch if std cannot represent it.
pub(super) fn system_time(time: Timespec) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// Converts a time that fuser took from a request to the time that the kernel meant. See the
/// module's documentation on times before 1970.
pub(super) fn timespec_from_kernel(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            Timespec {
                secs: 0i64
                    .checked_sub_unsigned(before.as_secs())
                    .unwrap_or(i64::MIN),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

/// Converts a time of a `setattr` request.
pub(super) fn set_time(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => SetTime::At(timespec_from_kernel(time)),
    }
}

/// Converts a kind of file.
pub(super) fn file_type(kind: FileKind) -> fuser::FileType {
    match kind {
        FileKind::Regular => fuser::FileType::RegularFile,
        FileKind::Directory => fuser::FileType::Directory,
        FileKind::Symlink => fuser::FileType::Symlink,
        FileKind::Fifo => fuser::FileType::NamedPipe,
        FileKind::Socket => fuser::FileType::Socket,
        FileKind::CharDevice => fuser::FileType::CharDevice,
        FileKind::BlockDevice => fuser::FileType::BlockDevice,
    }
}

/// Converts attributes for the kernel.
pub(super) fn file_attr(attr: &Attr) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// A cacheable negative entry: an entry whose node is 0.
pub(super) fn absent() -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The caller of a request. `umask` is 0 if the kernel has applied it already.
pub(super) fn caller(request: &fuser::Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask,
    }
}

/// The fields of a SETATTR request, as fuser gives them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SetAttrRequest {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
    pub(super) ctime: Option<SystemTime>,
}

impl SetAttrRequest {
    /// Converts the request to changes of attributes.
    ///
    /// fuser does not pass on `FATTR_KILL_SUIDGID`. A chown to the same owner contains no field but
    /// the time of change, if the kernel maintains that (`writeback`, for files). A request without
    /// any field then announces a write; without writeback it may be either.
    pub(super) fn to_changes(self, writeback: bool) -> SetAttr {
        let bare = self.mode.is_none()
            && self.size.is_none()
            && self.atime.is_none()
            && self.mtime.is_none();
        let implied = match bare {
            true if self.ctime.is_some() => ImpliedChange::Owner,
            true if writeback => ImpliedChange::Contents,
            true => ImpliedChange::Either,
            false => ImpliedChange::Nothing,
        };
        SetAttr {
            perm: self.mode.map(|mode| (mode & 0o7777) as u16),
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            atime: self.atime.map(set_time),
            mtime: self.mtime.map(set_time),
            ctime: self.ctime.map(timespec_from_kernel),
            implied,
        }
    }
}

/// Converts `renameat2` flags; `None` for unknown ones.
pub(super) fn rename_flags(flags: fuser::RenameFlags) -> Option<RenameFlags> {
    if !fuser::RenameFlags::all().contains(flags) {
        return None;
    }
    Some(RenameFlags {
        no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
        exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
    })
}

/// Converts `fallocate(2)` modes; `None` for those that are not supported.
pub(super) fn fallocate_mode(mode: i32) -> Option<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Some(match mode {
        0 => Fallocate::Allocate { keep_size: false },
        KEEP => Fallocate::Allocate { keep_size: true },
        PUNCH => Fallocate::PunchHole,
        ZERO => Fallocate::ZeroRange { keep_size: false },
        ZERO_KEEP => Fallocate::ZeroRange { keep_size: true },
        _ => return None,
    })
}

/// Converts the `whence` values of `lseek(2)` that reach a filesystem.
pub(super) fn seek_whence(whence: i32) -> Option<SeekWhence> {
    match whence {
        libc::SEEK_DATA => Some(SeekWhence::Data),
        libc::SEEK_HOLE => Some(SeekWhence::Hole),
        _ => None,
    }
}

/// Converts `setxattr(2)` flags; `None` for unknown ones.
pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    match flags {
        0 => Some(XattrMode::Any),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        BOTH => Some(XattrMode::CreateAndReplace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that fuser 0.18.0 produces from the kernel's numbers (its `src/time.rs`).
    fn as_fuser_gives_it(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_of_requests_are_what_the_kernel_meant() {
        for (secs, nanos) in [
            (0, 0),
            (0, 1),
            (1, 999_999_999),
            (-1, 0),
            (-1, 1),
            (-2, 800_000_000),
            (-11_644_473_600, 999_999_999),
            (i64::from(i32::MIN), 5),
            (253_402_300_799, 0),
        ] {
            assert_eq!(
                timespec_from_kernel(as_fuser_gives_it(secs, nanos)),
                Timespec { secs, nanos },
                "{secs} {nanos}"
            );
        }
    }

    #[test]
    fn times_of_replies_count_forward() {
        let before = system_time(Timespec {
            secs: -2,
            nanos: 800_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(before).unwrap(),
            Duration::new(1, 200_000_000)
        );
        let after = system_time(Timespec { secs: 2, nanos: 5 });
        assert_eq!(
            after.duration_since(UNIX_EPOCH).unwrap(),
            Duration::new(2, 5)
        );
        for extreme in [i64::MIN, i64::MAX] {
            let _ = system_time(Timespec {
                secs: extreme,
                nanos: 999_999_999,
            });
        }
    }

    #[test]
    fn fallocate_modes() {
        let table = [
            (0, Some(Fallocate::Allocate { keep_size: false })),
            (1, Some(Fallocate::Allocate { keep_size: true })),
            (2, None),
            (3, Some(Fallocate::PunchHole)),
            (0x08, None),
            (0x10, Some(Fallocate::ZeroRange { keep_size: false })),
            (0x11, Some(Fallocate::ZeroRange { keep_size: true })),
            (0x20, None),
            (0x41, None),
            (-1, None),
        ];
        for (mode, expected) in table {
            assert_eq!(fallocate_mode(mode), expected, "{mode:#x}");
        }
    }

    #[test]
    fn other_flags() {
        assert_eq!(seek_whence(3), Some(SeekWhence::Data));
        assert_eq!(seek_whence(4), Some(SeekWhence::Hole));
        assert_eq!(seek_whence(0), None);
        assert_eq!(xattr_mode(0), Some(XattrMode::Any));
        assert_eq!(xattr_mode(1), Some(XattrMode::Create));
        assert_eq!(xattr_mode(2), Some(XattrMode::Replace));
        assert_eq!(xattr_mode(3), Some(XattrMode::CreateAndReplace));
        assert_eq!(xattr_mode(4), None);
        let flags = fuser::RenameFlags::from_bits_retain(2);
        assert_eq!(
            rename_flags(flags),
            Some(RenameFlags {
                exchange: true,
                ..RenameFlags::default()
            })
        );
        assert_eq!(rename_flags(fuser::RenameFlags::from_bits_retain(8)), None);
        assert_eq!(absent().ino.0, 0);
    }
}

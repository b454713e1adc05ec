//! Types of the filesystem's interface: plain values without any FUSE type.

use crate::ids::{Ino, ViewId};
use crate::meta::records::ViewKind;
pub use crate::meta::records::{FileKind, Timespec};
pub use crate::object::SeekWhence;

/// Block size in bytes: the unit of free space, of data and holes, and the preferred one of I/O.
pub const BLOCK_BYTES: u32 = 4096;
/// Bits of a node's number that hold the inode.
const INO_BITS: u32 = Ino::BITS;

/// The inode number that the kernel sees, below 2^53: the view (12 bits) above the inode (41 bits),
/// so that files of different views are never confused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The live root directory; FUSE fixes it at 1.
    pub const ROOT: Self = Self(1);

    /// Joins a view and an inode. `None` for an inode number that no file has: truncated to 41
    /// bits, it would be another file's.
    pub const fn new(view: ViewId, ino: Ino) -> Option<Self> {
        if ino.is_valid() {
            Some(Self(((view.0 as u64) << INO_BITS) | ino.0))
        } else {
            None
        }
    }

    /// The node of an inode in the live view; `None` for an inode number that no file has.
    pub const fn live(ino: Ino) -> Option<Self> {
        Self::new(ViewId::LIVE, ino)
    }

    /// The root directory of a view.
    pub const fn root_of(view: ViewId) -> Self {
        Self(((view.0 as u64) << INO_BITS) | Ino::ROOT.0)
    }

    /// A directory of the live view without a record, identified by its number from [`Ino::END`]
    /// on.
    pub(super) const fn without_record<const NUMBER: u64>() -> Self {
        const { assert!(Ino::END.0 + NUMBER < 1 << INO_BITS) }
        Self(Ino::END.0 + NUMBER)
    }

    /// The directory that holds the kept views of that kind.
    pub fn of_views(kind: ViewKind) -> Self {
        ViewsDirectory { kind }.node()
    }

    /// True for a node of the live view.
    pub const fn is_live(self) -> bool {
        self.view().0 == ViewId::LIVE.0
    }

    /// True for a directory that holds kept views and for the root of a kept view. Their names may
    /// lead to another node at any time.
    pub fn is_of_views(self) -> bool {
        self.holds_views() || (!self.is_live() && self.ino() == Ino::ROOT)
    }

    /// True for a directory that holds kept views. Creating, removing and renaming entries in it
    /// takes long.
    pub fn holds_views(self) -> bool {
        ViewsDirectory::of(self).is_some()
    }

    /// The id of the view.
    pub const fn view(self) -> ViewId {
        ViewId((self.0 >> INO_BITS) as u16)
    }

    /// The inode number within the view.
    pub const fn ino(self) -> Ino {
        Ino(self.0 & ((1 << INO_BITS) - 1))
    }
}

/// A directory that holds the kept views of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ViewsDirectory {
    pub(super) kind: ViewKind,
}

impl ViewsDirectory {
    pub(super) const ALL: [Self; 2] = [
        Self {
            kind: ViewKind::Snapshot,
        },
        Self {
            kind: ViewKind::Image,
        },
    ];

    pub(super) const fn node(self) -> NodeId {
        match self.kind {
            ViewKind::Snapshot => NodeId::without_record::<14>(),
            ViewKind::Image => NodeId::without_record::<13>(),
        }
    }

    /// The directory that a node stands for, if any.
    pub(super) fn of(node: NodeId) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.node() == node)
    }
}

/// File attributes as `stat` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The inode number that the kernel sees.
    pub node: NodeId,
    /// Distinguishes the files that the number has stood for (FUSE: generation).
    pub generation: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Time of last access.
    pub atime: Timespec,
    /// Time of last modification of contents.
    pub mtime: Timespec,
    /// Time of last change of the inode.
    pub ctime: Timespec,
    /// Time of creation.
    pub crtime: Timespec,
    /// Kind of file.
    pub kind: FileKind,
    /// Permission bits, set-id and sticky bits: `mode & 0o7777`.
    pub perm: u16,
    /// Number of links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file, as given to `mknod`.
    pub rdev: u32,
    /// Preferred unit of I/O, in bytes.
    pub blksize: u32,
}

/// The process that makes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Bits to clear in the mode of new files; 0 if the kernel has already cleared them.
    pub umask: u32,
}

/// The owner of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// The superuser.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// A time given to `utimensat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The current time.
    Now,
    /// This time.
    At(Timespec),
}

/// What a change of attributes does to set-id bits and `security.capability`, if its fields do not
/// show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ImpliedChange {
    /// Nothing.
    #[default]
    Nothing,
    /// A change of contents.
    Contents,
    /// A change of the owner.
    Owner,
    /// Either of them; which one is unknown.
    Either,
}

/// A request to change attributes of an inode; `None` leaves a field as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission and set-id bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Last change of contents.
    pub mtime: Option<SetTime>,
    /// Last change of the inode: the kernel's, with the writeback cache.
    pub ctime: Option<Timespec>,
    /// The kind of change, as far as the fields do not show it.
    pub implied: ImpliedChange,
}

/// Handle of an open file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

/// A directory entry, by its directory and its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirentRef<'a> {
    /// The directory.
    pub parent: NodeId,
    /// The name in it.
    pub name: &'a [u8],
}

impl<'a> DirentRef<'a> {
    /// The entry `name` of the directory `parent`.
    pub const fn new(parent: NodeId, name: &'a [u8]) -> Self {
        Self { parent, name }
    }
}

/// How a write is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteFlags {
    /// Remove set-id bits and capabilities of the file, as for a writer without any right.
    pub kill_privileges: bool,
    /// The bytes come from the kernel's cache, which maintains the times itself.
    pub cached: bool,
}

/// `renameat2` flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Fail if the new name exists.
    pub no_replace: bool,
    /// Exchange the two names.
    pub exchange: bool,
    /// Leave a whiteout at the old name.
    pub whiteout: bool,
}

/// `fallocate` modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Allocate; grow the file unless `keep_size`.
    Allocate {
        /// Leave the length as it is.
        keep_size: bool,
    },
    /// Make a hole.
    PunchHole,
    /// Write zeros.
    ZeroRange {
        /// Leave the length as it is.
        keep_size: bool,
    },
}

/// `setxattr` flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`: must not exist.
    Create,
    /// `XATTR_REPLACE`: must exist.
    Replace,
    /// Both flags, which no attribute satisfies.
    CreateAndReplace,
}

/// One entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode number that the kernel sees.
    pub node: NodeId,
    /// Kind of file.
    pub kind: FileKind,
    /// Offset from which a listing continues after this entry.
    pub next_offset: u64,
    /// Name.
    pub name: &'a [u8],
}

/// Filesystem statistics as `statfs` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Size of a block.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that an unprivileged user may use.
    pub blocks_available: u64,
    /// Maximum number of inodes.
    pub inodes: u64,
    /// Further inodes that may be created.
    pub inodes_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

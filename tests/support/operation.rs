//! Random operations and how they are drawn.

use proptest::prelude::*;

use super::{CHUNK, PAGE};

/// Names are few, so that operations meet.
pub const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
pub const XATTRS: [&[u8]; 3] = [b"user.one", b"user.two", b"trusted.three"];

/// A directory and a name in it: the directory is chosen among those there are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub directory: u8,
    pub name: u8,
}

/// A file, chosen among open and named ones.
#[derive(Clone, Copy, Debug)]
pub struct Target(pub u8);

/// Names of views are few, too.
pub const TITLES: [&str; 4] = ["one", "two", "three", "four"];

/// The name of a view.
#[derive(Clone, Copy, Debug)]
pub struct Title(pub u8);

impl Title {
    pub const fn text(self) -> &'static str {
        TITLES[self.0 as usize]
    }
}

/// What a view is kept for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Snapshot,
    Image,
}

#[derive(Clone, Debug)]
pub enum Operation {
    Create {
        at: Place,
        perm: u16,
        keep: bool,
    },
    Mkdir(Place),
    Symlink(Place),
    Fifo(Place),
    Link(Target, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, u8),
    Open(Target),
    Close(u8),
    Write {
        file: Target,
        offset: u32,
        len: u32,
        seed: u8,
    },
    Read {
        file: Target,
        offset: u32,
        len: u32,
    },
    Truncate {
        file: Target,
        size: u32,
    },
    Punch {
        file: Target,
        offset: u32,
        len: u32,
    },
    Zero {
        file: Target,
        offset: u32,
        len: u32,
        keep: bool,
    },
    Allocate {
        file: Target,
        offset: u32,
        len: u32,
        keep: bool,
    },
    Copy {
        from: Target,
        to: Target,
        at: u32,
        to_at: u32,
        len: u32,
    },
    Chmod(Place, u16),
    SetTime(Place, i64),
    SetXattr {
        at: Place,
        name: u8,
        len: u16,
        mode: u8,
    },
    RemoveXattr {
        at: Place,
        name: u8,
    },
    List(u8),
    Seek(Target),
    /// At the end of the file.
    Append {
        file: Target,
        len: u32,
        seed: u8,
    },
    Fsync(Target),
    Fdatasync(Target),
    FsyncDir(u8),
    /// What the commit timer does.
    Maintain,
    Commit,
    Reopen,
    /// Everything durable, then the end of the process without notice.
    Kill,
    Keep(Kind, Title),
    /// An image of what a snapshot shows.
    KeepAgain {
        from: Title,
        title: Title,
    },
    Drop(Kind, Title),
    RenameKept(Kind, Title, Title),
    /// A copy of the metadata, for who would have to do without them.
    Checkpoint,
    /// A volume of its own is made from an image, beside this one.
    Deploy(Title),
    /// What dropped views held goes.
    Purge,
    /// Opens a file of a view, so that it is not to be dropped.
    OpenKept(u8, Target),
    CloseKept(u8),
    Restore(Title),
    /// One path: a directory of the snapshot and an entry in it.
    RestorePath(Title, u8, u8),
    /// What differs between a snapshot and another, or the live view.
    Diff(Title, Option<Title>),
}

impl Operation {
    /// The file that the operation is done to.
    pub const fn target(&self) -> Option<Target> {
        match self {
            Self::Open(file)
            | Self::Write { file, .. }
            | Self::Truncate { file, .. }
            | Self::Punch { file, .. }
            | Self::Zero { file, .. }
            | Self::Allocate { file, .. }
            | Self::Append { file, .. }
            | Self::Fdatasync(file)
            | Self::Fsync(file) => Some(*file),
            Self::Copy { to, .. } => Some(*to),
            _ => None,
        }
    }
}

pub fn title() -> impl Strategy<Value = Title> {
    (0..TITLES.len() as u8).prop_map(Title)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Snapshot), 1 => Just(Kind::Image)]
}

/// One operation that has to do with views.
fn of_views() -> impl Strategy<Value = Operation> {
    use Operation as O;
    prop_oneof![
        8 => (kind(), title()).prop_map(|(kind, title)| O::Keep(kind, title)),
        2 => (title(), title()).prop_map(|(from, title)| O::KeepAgain { from, title }),
        7 => (kind(), title()).prop_map(|(kind, title)| O::Drop(kind, title)),
        2 => (kind(), title(), title()).prop_map(|(kind, a, b)| O::RenameKept(kind, a, b)),
        3 => Just(O::Purge),
        2 => (any::<u8>(), target()).prop_map(|(view, file)| O::OpenKept(view, file)),
        2 => any::<u8>().prop_map(O::CloseKept),
        2 => title().prop_map(O::Restore),
        4 => (title(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c)| O::RestorePath(a, b, c)),
        3 => (title(), prop::option::of(title())).prop_map(|(a, b)| O::Diff(a, b)),
        1 => Just(O::Kill),
    ]
}

pub fn place() -> impl Strategy<Value = Place> {
    (any::<u8>(), 0..NAMES.len() as u8).prop_map(|(directory, name)| Place { directory, name })
}

pub fn target() -> impl Strategy<Value = Target> {
    any::<u8>().prop_map(Target)
}

/// Offsets around the borders of pages, chunks and inline files, and others.
fn offset(largest: usize) -> impl Strategy<Value = u32> {
    let page = PAGE as u32;
    let chunk = CHUNK as u32;
    let near = prop_oneof![
        6 => 0..2_200u32,
        4 => (0..6u32, 0..5u32).prop_map(move |(n, d)| (n * page + d).saturating_sub(2)),
        3 => 0..40_000u32,
        1 => 0..400_000u32,
    ];
    prop_oneof![
        12 => near,
        2 => (1..3u32, 0..9_000u32).prop_map(move |(n, d)| n * chunk + d - 4_500),
        1 => (1..3u32, 0..3u32).prop_map(move |(n, d)| n * chunk + d - 1),
        1 => (0..3u32).prop_map(move |n| n * chunk),
    ]
    .prop_map(move |at| at.min(largest as u32))
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..3_000u32,
        4 => 0..30_000u32,
        2 => (1..4u32).prop_map(|n| n * PAGE as u32),
        1 => 0..200_000u32,
    ]
}

fn long_length() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => length(),
        1 => Just(CHUNK as u32),
        1 => 1_000_000..6_000_000u32,
        1 => Just(20_000_000u32),
    ]
}

/// One operation; no file grows beyond `largest` bytes and what a write adds to it.
pub fn operation(largest: usize) -> impl Strategy<Value = Operation> {
    use Operation as O;
    let at = move || offset(largest);
    prop_oneof![
        8 => (place(), 0..0o1000u16, any::<bool>())
            .prop_map(|(at, perm, keep)| O::Create { at, perm, keep }),
        3 => place().prop_map(O::Mkdir),
        1 => place().prop_map(O::Symlink),
        1 => place().prop_map(O::Fifo),
        3 => (target(), place()).prop_map(|(file, at)| O::Link(file, at)),
        4 => place().prop_map(O::Unlink),
        2 => place().prop_map(O::Rmdir),
        6 => (place(), place(), 0..10u8).prop_map(|(a, b, flags)| O::Rename(a, b, flags)),
        4 => target().prop_map(O::Open),
        4 => any::<u8>().prop_map(O::Close),
        24 => (target(), at(), length(), any::<u8>())
            .prop_map(|(file, offset, len, seed)| O::Write { file, offset, len, seed }),
        8 => (target(), at(), long_length())
            .prop_map(|(file, offset, len)| O::Read { file, offset, len }),
        10 => (target(), at()).prop_map(|(file, size)| O::Truncate { file, size }),
        6 => (target(), at(), long_length())
            .prop_map(|(file, offset, len)| O::Punch { file, offset, len }),
        3 => (target(), at(), length(), any::<bool>())
            .prop_map(|(file, offset, len, keep)| O::Zero { file, offset, len, keep }),
        2 => (target(), at(), length(), any::<bool>())
            .prop_map(|(file, offset, len, keep)| O::Allocate { file, offset, len, keep }),
        5 => (target(), target(), at(), at(), long_length())
            .prop_map(|(from, to, at, to_at, len)| O::Copy { from, to, at, to_at, len }),
        4 => (target(), target())
            .prop_map(|(from, to)| O::Copy { from, to, at: 0, to_at: 0, len: 20_000_000 }),
        3 => (place(), 0..0o1000u16).prop_map(|(at, perm)| O::Chmod(at, perm)),
        2 => (place(), -9_000_000_000..9_000_000_000i64).prop_map(|(at, time)| O::SetTime(at, time)),
        4 => (place(), 0..3u8, 0..600u16, 0..3u8)
            .prop_map(|(at, name, len, mode)| O::SetXattr { at, name, len, mode }),
        2 => (place(), 0..3u8).prop_map(|(at, name)| O::RemoveXattr { at, name }),
        3 => any::<u8>().prop_map(O::List),
        3 => target().prop_map(O::Seek),
        4 => (target(), length(), any::<u8>())
            .prop_map(|(file, len, seed)| O::Append { file, len, seed }),
        5 => target().prop_map(O::Fsync),
        2 => target().prop_map(O::Fdatasync),
        1 => any::<u8>().prop_map(O::FsyncDir),
        1 => Just(O::Maintain),
        2 => Just(O::Commit),
        1 => Just(O::Reopen),
        14 => of_views(),
    ]
}

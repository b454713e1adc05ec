//! Random operations, and how they are drawn.

use proptest::prelude::*;

use super::{CHUNK, PAGE};

/// Few names, so that operations often concern the same ones.
pub const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
/// Names of extended attributes.
pub const XATTRS: [&[u8]; 3] = [b"user.one", b"user.two", b"trusted.three"];

/// A directory and a name in it: the directory is chosen among the existing ones.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Chooses the directory.
    pub directory: u8,
    /// Index of the name in [`NAMES`].
    pub name: u8,
}

/// A file, chosen among open and named ones.
#[derive(Clone, Copy, Debug)]
pub struct Target(pub u8);

/// Few names of views, too.
pub const TITLES: [&str; 4] = ["one", "two", "three", "four"];

/// The name of a view.
#[derive(Clone, Copy, Debug)]
pub struct Title(pub u8);

impl Title {
    /// The name itself.
    pub const fn text(self) -> &'static str {
        TITLES[self.0 as usize]
    }
}

/// Kind of a view.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A snapshot.
    Snapshot,
    /// An image.
    Image,
}

/// One operation, with everything that was drawn for it.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Creates a file.
    Create {
        /// Its name.
        at: Place,
        /// Its permission bits.
        perm: u16,
        /// It stays open.
        keep: bool,
    },
    /// Makes a directory.
    Mkdir(Place),
    /// Makes a symbolic link.
    Symlink(Place),
    /// Makes a FIFO.
    Fifo(Place),
    /// Adds a name to a file.
    Link(Target, Place),
    /// Removes a name.
    Unlink(Place),
    /// Removes a directory.
    Rmdir(Place),
    /// Renames, with flags that the number chooses.
    Rename(Place, Place, u8),
    /// Opens a file and keeps it open.
    Open(Target),
    /// Closes a file that is open.
    Close(u8),
    /// Writes.
    Write {
        /// To this file.
        file: Target,
        /// From this byte on.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// Chooses the bytes.
        seed: u8,
    },
    /// Reads and compares.
    Read {
        /// This file.
        file: Target,
        /// From this byte on.
        offset: u32,
        /// So many bytes.
        len: u32,
    },
    /// Sets the length.
    Truncate {
        /// Of this file.
        file: Target,
        /// To so many bytes.
        size: u32,
    },
    /// Punches a hole.
    Punch {
        /// Into this file.
        file: Target,
        /// From this byte on.
        offset: u32,
        /// So many bytes.
        len: u32,
    },
    /// Zeros a range.
    Zero {
        /// Of this file.
        file: Target,
        /// From this byte on.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// The length stays.
        keep: bool,
    },
    /// Reserves space.
    Allocate {
        /// For this file.
        file: Target,
        /// From this byte on.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// The length stays.
        keep: bool,
    },
    /// Copies by `copy_file_range`.
    Copy {
        /// From this file.
        from: Target,
        /// To this file.
        to: Target,
        /// From this byte on.
        at: u32,
        /// To this byte.
        to_at: u32,
        /// So many bytes.
        len: u32,
    },
    /// Sets permission bits.
    Chmod(Place, u16),
    /// Sets the time of modification, in seconds.
    SetTime(Place, i64),
    /// Sets an extended attribute.
    SetXattr {
        /// Of this name.
        at: Place,
        /// Index in [`XATTRS`].
        name: u8,
        /// Length of its value.
        len: u16,
        /// Chooses whether it must exist, must not, or may.
        mode: u8,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// Of this name.
        at: Place,
        /// Index in [`XATTRS`].
        name: u8,
    },
    /// Lists a directory and compares.
    List(u8),
    /// Compares data and holes.
    Seek(Target),
    /// At the end of the file.
    Append {
        /// To this file.
        file: Target,
        /// So many bytes.
        len: u32,
        /// Chooses the bytes.
        seed: u8,
    },
    /// fsync of a file.
    Fsync(Target),
    /// fdatasync of a file.
    Fdatasync(Target),
    /// fsync of a directory.
    FsyncDir(u8),
    /// The work of the commit timer.
    Maintain,
    /// Commits everything.
    Commit,
    /// Unmounts and mounts again.
    Reopen,
    /// Makes everything durable, then ends the process without notice.
    Kill,
    /// Takes a snapshot or makes an image.
    Keep(Kind, Title),
    /// An image of what a snapshot shows.
    KeepAgain {
        /// The snapshot.
        from: Title,
        /// The image's name.
        title: Title,
    },
    /// Deletes a view.
    Drop(Kind, Title),
    /// Renames a view.
    RenameKept(Kind, Title, Title),
    /// A checkpoint of the metadata.
    Checkpoint,
    /// Makes a volume from an image, beside this one.
    Deploy(Title),
    /// Drops everything that only deleted views used.
    Purge,
    /// Opens a file of a view, so that the view cannot be deleted.
    OpenKept(u8, Target),
    /// Closes a file of a view.
    CloseKept(u8),
    /// Restores all of a snapshot.
    Restore(Title),
    /// Restores one path: a directory of the snapshot and an entry in it.
    RestorePath(Title, u8, u8),
    /// The differences between a snapshot and another one, or the live view.
    Diff(Title, Option<Title>),
}

impl Operation {
    /// The file that the operation concerns.
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

/// Draws a name of a view.
pub fn title() -> impl Strategy<Value = Title> {
    (0..TITLES.len() as u8).prop_map(Title)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Snapshot), 1 => Just(Kind::Image)]
}

/// An operation on views.
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

/// Draws a directory and a name.
pub fn place() -> impl Strategy<Value = Place> {
    (any::<u8>(), 0..NAMES.len() as u8).prop_map(|(directory, name)| Place { directory, name })
}

/// Draws a file.
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

/// One operation; no file grows beyond `largest` bytes plus one write.
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
        2 => (place(), -9_000_000_000..9_000_000_000i64)
            .prop_map(|(at, time)| O::SetTime(at, time)),
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

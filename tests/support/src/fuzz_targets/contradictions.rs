//! Records that are each well-formed and contradict one another: directories in circles, names that
//! lead nowhere or twice to the same inode, inode numbers that were never allocated or are
//! allocated next. A filesystem over them returns errors and ends; files that it creates are new,
//! and share nothing with others. If an import accepts the records, the filesystem is whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::check;
use bilayer::errno::Errno;
use bilayer::fs::Filesystem;
use bilayer::fs::types::{DirentRef, FileKind, NodeId, RenameFlags};
use bilayer::ids::{ChunkIndex, FolderNumber, Generation, Ino, ViewId};
use bilayer::meta::MetaError;
use bilayer::meta::copy::{self, CopyOptions};
use bilayer::meta::keys::{self, Table, VersionedKey};
use bilayer::meta::records::{
    Counters, DirentRecord, ExtentRecord, InodeRecord, Timespec, encode_xattr,
};
use bilayer::meta::stored::Stored;
use bilayer::sealed::MetaFile;
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{FreshVolume, META_NAME, Volume};

use super::exercise::exercise;
use super::hostile::{self, TableRow};
use super::sample::{self, ROOT, ROOT_USER};

/// The names in use.
const NAMES: [&str; 6] = ["dir", "small", "evil", "again", "up", "x/y"];
/// Number of directories that are moved into each other.
const MOVED: usize = 6;

/// An inode number, mostly one of the sample's.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match input.arbitrary::<u8>()? {
            small @ 0..200 => u64::from(small % 12),
            byte @ 200..230 => (1 << Ino::BITS) - 24 + u64::from(byte - 200),
            byte @ 230..240 => (1 << Ino::BITS) + u64::from(byte - 230),
            byte @ 240..=255 => u64::MAX - u64::from(byte - 240),
        }))
    }
}

#[derive(Clone, Copy, Arbitrary, Debug)]
enum Kind {
    Regular,
    Directory,
    Symlink,
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Regular => Self::Regular,
            Kind::Directory => Self::Directory,
            Kind::Symlink => Self::Symlink,
        }
    }
}

/// A change of the rows in the database.
#[derive(Arbitrary, Debug)]
enum Change {
    Inode {
        ino: Number,
        kind: Kind,
        nlink: u8,
        parent: Number,
        generation: u8,
    },
    Links {
        ino: Number,
        nlink: u32,
    },
    Name {
        parent: Number,
        name: u8,
        ino: Number,
        kind: Kind,
        generation: u8,
    },
    /// A name at a position at which a lookup does not search.
    Hidden {
        parent: Number,
        name: u8,
        ino: Number,
        hash: u32,
    },
    /// Removes the sample's row of that number.
    Remove {
        row: u8,
    },
    Contents {
        ino: Number,
        chunk: u32,
    },
    Attribute {
        ino: Number,
    },
    Orphan {
        ino: Number,
    },
    Counter {
        which: u8,
        value: Number,
    },
}

/// The bytes describe changes of the sample's rows; the first byte says whether older versions
/// remain.
pub fn target(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let mut rows = hostile::rows();
    if first & 1 == 1 {
        rows.retain(is_of_an_image);
    }
    // A short or odd end means fewer changes.
    let _ = change(&mut rows, rest);
    mount(&rows);
    let accepted = receive(&rows);
    let is_sound = first & 1 == 1 && rest.is_empty();
    assert!(accepted || !is_sound, "a sound image was refused");
}

/// True for a row as an exported image has it.
fn is_of_an_image((table, (key, value)): &TableRow) -> bool {
    let of_files = matches!(
        table,
        Table::Inode | Table::Dirent | Table::Xattr | Table::Extent
    );
    let version = VersionedKey::decode(key);
    let first = version.is_some_and(|version| version.generation == Generation(1));
    (of_files && first && value != &[0]) || *table == Table::Counters
}

fn change(rows: &mut Vec<TableRow>, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        match Change::arbitrary(&mut input)? {
            Change::Inode {
                ino,
                kind,
                nlink,
                parent,
                generation,
            } => {
                let record = InodeRecord {
                    nlink: u32::from(nlink % 5),
                    parent: Ino(parent.0),
                    target: match kind {
                        Kind::Symlink => b"to".to_vec(),
                        _ => Vec::new(),
                    },
                    ..InodeRecord::new(kind.into(), 0o755, Timespec::default())
                };
                let key = keys::inode(Ino(ino.0));
                put(rows, Table::Inode, &key, generation, record.encode());
            }
            Change::Links { ino, nlink } => {
                let key = keys::versioned(&keys::inode(Ino(ino.0)), Generation(1));
                for (table, (at, value)) in rows.iter_mut() {
                    if *table == Table::Inode
                        && *at == key
                        && let Some(record) = InodeRecord::decode(value)
                    {
                        *value = InodeRecord { nlink, ..record }.encode();
                    }
                }
            }
            Change::Name {
                parent,
                name,
                ino,
                kind,
                generation,
            } => {
                let name = NAMES[usize::from(name) % NAMES.len()].as_bytes();
                let hash = hostile::name_hash(name);
                let key = keys::dirent(Ino(parent.0), hash, name);
                put(rows, Table::Dirent, &key, generation, entry(ino, kind));
            }
            Change::Hidden {
                parent,
                name,
                ino,
                hash,
            } => {
                let name = NAMES[usize::from(name) % NAMES.len()].as_bytes();
                let key = keys::dirent(Ino(parent.0), hash, name);
                put(rows, Table::Dirent, &key, 1, entry(ino, Kind::Regular));
            }
            Change::Remove { row } => {
                let row = usize::from(row) % rows.len();
                if rows[row].0 != Table::Counters {
                    rows.remove(row);
                }
            }
            Change::Contents { ino, chunk } => {
                let key = keys::extent(Ino(ino.0), ChunkIndex(chunk));
                let value = ExtentRecord::Inline(b"evil".to_vec()).encode();
                put(rows, Table::Extent, &key, 1, value);
            }
            Change::Attribute { ino } => {
                let key = keys::xattr(Ino(ino.0), b"security.capability");
                put(rows, Table::Xattr, &key, 1, encode_xattr(b"evil"));
            }
            Change::Orphan { ino } => {
                rows.push((Table::Orphan, (keys::number(ino.0), vec![1])));
            }
            Change::Counter { which, value } => count(rows, which, value.0),
        }
    }
    Ok(())
}

fn entry(ino: Number, kind: Kind) -> Vec<u8> {
    let (ino, kind) = (Ino(ino.0), kind.into());
    DirentRecord { ino, kind }.encode()
}

fn put(rows: &mut Vec<TableRow>, table: Table, logical: &[u8], generation: u8, value: Vec<u8>) {
    let generation = match generation {
        0..=200 => 1,
        201..=250 => u64::from(generation - 200),
        251.. => u64::MAX - u64::from(255 - generation),
    };
    let key = keys::versioned(logical, Generation(generation));
    rows.push((table, (key, value)));
}

fn count(rows: &mut [TableRow], which: u8, value: u64) {
    for (table, (_, bytes)) in rows {
        if *table == Table::Counters
            && let Some(mut counters) = Counters::decode(bytes)
        {
            match which % 8 {
                0 => counters.next_ino = Ino(value),
                1 => counters.folder = FolderNumber(value),
                2 => counters.generation = Generation(value),
                3 => counters.frozen = Generation(value),
                4 => counters.used_pages = value,
                5 => counters.inodes = value,
                6 => counters.newest_view = ViewId(value as u16),
                _ => counters.restoring = Generation(value),
            }
            *bytes = counters.encode();
        }
    }
}

/// Uses a filesystem over the rows.
fn mount(rows: &[TableRow]) {
    let sample = hostile::sample();
    let store = sample.store.snapshot();
    let volume = sample.open(&store).unwrap();
    let meta = create(&store, &volume);
    if hostile::load(meta, rows).is_err() {
        return;
    }
    if let Ok(fs) = Filesystem::open(volume, sample::options()) {
        use_it(&fs);
        exercise(&fs);
    }
}

/// Processes the rows as an import does with those of an image. Accepted rows have no
/// contradiction. Returns whether they are accepted.
fn receive(rows: &[TableRow]) -> bool {
    let sample = hostile::sample();
    let store = sample.store.snapshot();
    let volume = sample.open(&store).unwrap();
    if hostile::load(create(&store, &volume), rows).is_err() {
        return false;
    }
    let file = store
        .open(&StorePath::new(META_NAME), OpenMode::Read)
        .unwrap();
    let received = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto());
    let Ok(stored) = Stored::open(&Arc::new(received.unwrap())) else {
        return false;
    };
    let target = sample.store.snapshot();
    let made = create(&target, &volume);
    let options = CopyOptions {
        limit_bytes: 1 << 30,
        frozen: true,
    };
    let mut same = |_, parts| Ok::<_, MetaError>(parts);
    if copy::copy(&stored, made, options, &mut same).is_err() {
        return false;
    }
    let fresh = FreshVolume {
        store: Arc::new(target.clone()),
        keys: Arc::clone(&volume.keys),
        meta_crypto: volume.header().meta_crypto(),
        size_bytes: None,
    };
    if !check::compare(&fresh).is_ok_and(|report| report.is_clean()) {
        return false;
    }
    drop(volume);
    let volume = sample.open(&target).unwrap();
    let fs = Filesystem::open(volume, sample::options()).unwrap();
    use_it(&fs);
    assert_eq!(fs.usage().latched, None, "an image that was accepted");
    exercise(&fs);
    true
}

fn create(store: &MemoryStore, volume: &Volume) -> MetaFile {
    let file = store.open(&StorePath::new(META_NAME), OpenMode::ReadWrite);
    let file = file.unwrap();
    file.set_len(0).unwrap();
    MetaFile::create(file, volume.keys.active(), volume.header().meta_crypto()).unwrap()
}

/// Creates files and directories, which must share nothing with others, and moves directories into
/// each other.
fn use_it(fs: &Filesystem) {
    let known: BTreeSet<NodeId> = names(fs).iter().map(|(_, _, node)| *node).collect();
    let mut made = BTreeSet::new();
    for name in ["first", "second"] {
        let file = fs.mknod(&ROOT_USER, ROOT, name.as_bytes(), 0o100_600, 0);
        let directory = fs.mkdir(&ROOT_USER, ROOT, format!("{name} dir").as_bytes(), 0o700);
        for attr in [file, directory].into_iter().flatten() {
            assert!(!known.contains(&attr.node), "{:?} is taken", attr.node);
            assert!(made.insert(attr.node), "{:?} was made before", attr.node);
            assert_eq!((attr.uid, attr.size), (0, 0));
            let is_directory = attr.kind == FileKind::Directory;
            assert_eq!(attr.nlink, 1 + u32::from(is_directory));
            assert_eq!(fs.list_xattr(&ROOT_USER, attr.node), Ok(Vec::new()));
            if is_directory {
                assert_eq!(names_in(fs, attr.node), Ok(Vec::new()));
            }
        }
    }
    let named = names(fs);
    for node in &made {
        let theirs = named.iter().filter(|(_, _, other)| other == node).count();
        assert!(theirs <= 1, "{node:?} has {theirs} names");
    }
    move_all(fs, &named);
}

/// A name, its directory and its inode.
type Named = (NodeId, Vec<u8>, NodeId);

/// Every name that can be looked up, of each directory once.
fn names(fs: &Filesystem) -> Vec<Named> {
    let mut named: Vec<Named> = Vec::new();
    let mut directories = vec![ROOT];
    let mut known = BTreeSet::from([ROOT]);
    while let Some(directory) = directories.pop() {
        for name in names_in(fs, directory).unwrap_or_default() {
            let Ok(attr) = fs.lookup(directory, &name) else {
                continue;
            };
            if attr.kind == FileKind::Directory && known.insert(attr.node) {
                directories.push(attr.node);
            }
            named.push((directory, name, attr.node));
        }
    }
    named
}

fn names_in(fs: &Filesystem, node: NodeId) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let handle = fs.open_dir(node)?;
    let mut names = Vec::new();
    let read = fs.read_dir(node, handle, 2, &mut |entry| {
        names.push(entry.name.to_vec());
        names.len() < 1000
    });
    fs.release_dir(node, handle);
    read?;
    assert!(names.len() < 1000, "a listing without an end");
    Ok(names)
}

fn move_all(fs: &Filesystem, named: &[Named]) {
    let directories = named.iter().filter(|(_, _, node)| {
        fs.getattr(*node)
            .is_ok_and(|attr| attr.kind == FileKind::Directory)
    });
    let directories: Vec<&Named> = directories.take(MOVED).collect();
    for (parent, name, _) in &directories {
        // Also into directories to which no name leads: the kernel may know them.
        let others = (0..12).filter_map(|ino| NodeId::live(Ino(ino)));
        for other in directories.iter().map(|(_, _, node)| *node).chain(others) {
            let flags = RenameFlags::default();
            let _ = fs.rename(
                &ROOT_USER,
                DirentRef::new(*parent, name),
                DirentRef::new(other, name),
                flags,
            );
            let exchange = RenameFlags {
                exchange: true,
                ..flags
            };
            let _ = fs.rename(
                &ROOT_USER,
                DirentRef::new(*parent, name),
                DirentRef::new(other, name),
                exchange,
            );
            let _ = fs.lookup(other, b"..");
        }
    }
    for (parent, name, node) in named {
        let _ = fs.link(*node, ROOT, b"linked");
        let _ = fs.unlink(*parent, name);
        let _ = fs.rmdir(*parent, name);
    }
}

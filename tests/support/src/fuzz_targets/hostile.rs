//! A volume whose keys are right and whose metadata is wrong: what a bug could leave behind, or
//! somebody who may seal pages, such as the creator of an export.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use bilayer::ids::{
    ChunkIndex, CryptoId, Epoch, FolderNumber, Generation, Ino, ObjectId, PageIndex, Sequence,
    ViewId,
};
use bilayer::meta::database::Tables;
use bilayer::meta::keys::{self, Row, Table};
use bilayer::meta::page_set::PageSet;
use bilayer::meta::records::{
    Counters, DirentRecord, ExtentRecord, FileKind, InodeRecord, ObjectName, Part, PartId,
    Timespec, ViewKind, ViewRecord, ViewState, encode_xattr,
};
use bilayer::sealed::{ContentsFile, MetaFile, PAYLOAD_BYTES};
use bilayer::store::{OpenMode, StorePath};
use bilayer::volume::{FreshVolume, META_NAME};

use super::sample::Sample;

/// A row and its table.
pub type TableRow = (Table, Row);

const HASH_KEY: [u8; 16] = [7; 16];
const TIME: Timespec = Timespec {
    secs: 1_700_000_000,
    nanos: 5,
};
const OBJECT: PartId = PartId {
    name: ObjectName {
        folder: FolderNumber(1),
        object: ObjectId([0xAB; 16]),
    },
    crypto: CryptoId([0xCD; 16]),
    epoch: Epoch(1),
};
/// Pages of the object.
const PAGES: u32 = 3;
/// How often the database was written.
const COMMITS: u64 = 6;

const SMALL: Ino = Ino(3);
const LARGE: Ino = Ino(4);
const LINK: Ino = Ino(5);
const DIRECTORY: Ino = Ino(2);

fn inode(kind: FileKind, size: u64, parent: Ino) -> InodeRecord {
    InodeRecord {
        kind,
        perm: 0o755,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        pages: if size > 2048 { u64::from(PAGES) } else { 0 },
        atime: TIME,
        mtime: TIME,
        ctime: TIME,
        crtime: TIME,
        parent,
        target: match kind {
            FileKind::Symlink => b"where/to".to_vec(),
            _ => Vec::new(),
        },
    }
}

/// The position at which a lookup of a name searches.
pub fn name_hash(name: &[u8]) -> u32 {
    keys::name_hash(&HASH_KEY, name)
}

fn entry(parent: Ino, name: &str, ino: Ino, kind: FileKind) -> (Table, Vec<u8>, Vec<u8>) {
    let key = keys::dirent(parent, name_hash(name.as_bytes()), name.as_bytes());
    (Table::Dirent, key, DirentRecord { ino, kind }.encode())
}

fn extent(shared: bool) -> Vec<u8> {
    let mut pages = PageSet::new();
    pages.insert(0..PAGES);
    let mut reserved = PageSet::new();
    reserved.insert(5..6);
    let parts = vec![Part { id: OBJECT, pages }];
    let record = ExtentRecord::Parts {
        shared,
        parts,
        reserved,
    };
    record.encode()
}

fn view(kind: ViewKind, state: ViewState, generation: u64, name: &str) -> Vec<u8> {
    let record = ViewRecord {
        kind,
        state,
        generation: Generation(generation),
        created: TIME,
        pages: u64::from(PAGES),
        inodes: 5,
        record_bytes: 1000,
        name: name.to_owned(),
        from: String::new(),
        description: "of a sample".to_owned(),
    };
    record.encode()
}

fn counters() -> Counters {
    Counters {
        clean: true,
        generation: Generation(4),
        frozen: Generation(1),
        next_ino: Ino(7),
        folder: FolderNumber(1),
        next_garbage: 1,
        used_pages: u64::from(PAGES) + 1,
        inodes: 5,
        record_bytes: 1000,
        limit_bytes: 1 << 30,
        hash_key: HASH_KEY,
        restoring: Generation(0),
        newest_view: ViewId(3),
    }
}

/// All rows of the sample: a directory, a small and a large file, a link, attributes, three views,
/// an orphan, garbage.
pub fn rows() -> Vec<TableRow> {
    let versioned = [
        (
            Table::Inode,
            keys::inode(Ino::ROOT),
            InodeRecord {
                nlink: 3,
                ..inode(FileKind::Directory, 0, Ino::ROOT)
            }
            .encode(),
        ),
        (
            Table::Inode,
            keys::inode(DIRECTORY),
            inode(FileKind::Directory, 0, Ino::ROOT).encode(),
        ),
        (
            Table::Inode,
            keys::inode(SMALL),
            inode(FileKind::Regular, 5, Ino(0)).encode(),
        ),
        (
            Table::Inode,
            keys::inode(LARGE),
            inode(FileKind::Regular, 12_000, Ino(0)).encode(),
        ),
        (
            Table::Inode,
            keys::inode(LINK),
            inode(FileKind::Symlink, 8, Ino(0)).encode(),
        ),
        entry(Ino::ROOT, "dir", DIRECTORY, FileKind::Directory),
        entry(Ino::ROOT, "small", SMALL, FileKind::Regular),
        entry(DIRECTORY, "large", LARGE, FileKind::Regular),
        entry(DIRECTORY, "link", LINK, FileKind::Symlink),
        (
            Table::Xattr,
            keys::xattr(LARGE, b"user.one"),
            encode_xattr(b"value"),
        ),
        (
            Table::Extent,
            keys::extent(SMALL, ChunkIndex(0)),
            ExtentRecord::Inline(b"small".to_vec()).encode(),
        ),
        (
            Table::Extent,
            keys::extent(LARGE, ChunkIndex(0)),
            extent(true),
        ),
    ];
    let mut rows: Vec<TableRow> = versioned
        .into_iter()
        .map(|(table, key, value)| (table, (keys::versioned(&key, Generation(1)), value)))
        .collect();
    // Later versions, which the views do not see.
    let newer = |key: &[u8], generation| keys::versioned(key, Generation(generation));
    let xattr = keys::xattr(LARGE, b"user.one");
    let large = keys::extent(LARGE, ChunkIndex(0));
    rows.extend([
        (Table::Xattr, (newer(&xattr, 3), vec![0])),
        (Table::Extent, (newer(&large, 4), extent(false))),
        (
            Table::Change,
            (keys::change(Generation(3), Table::Xattr, &xattr), vec![1]),
        ),
        (
            Table::Change,
            (keys::change(Generation(4), Table::Extent, &large), vec![1]),
        ),
        (Table::Trim, (large, vec![1])),
        (
            Table::View,
            (
                keys::view(ViewId(1)),
                view(ViewKind::Snapshot, ViewState::Kept, 1, "one"),
            ),
        ),
        (
            Table::View,
            (
                keys::view(ViewId(2)),
                view(ViewKind::Image, ViewState::Kept, 2, "two"),
            ),
        ),
        (
            Table::View,
            (
                keys::view(ViewId(3)),
                view(ViewKind::Snapshot, ViewState::Leaving, 3, "three"),
            ),
        ),
        (Table::Orphan, (keys::number(6), vec![1])),
        (
            Table::Inode,
            (
                newer(&keys::inode(Ino(6)), 4),
                inode(FileKind::Regular, 0, Ino(0)).encode(),
            ),
        ),
        (
            Table::Garbage,
            (
                keys::number(0),
                ObjectName {
                    folder: FolderNumber(1),
                    object: ObjectId([0xEE; 16]),
                }
                .encode(),
            ),
        ),
        (Table::Counters, (Vec::new(), counters().encode())),
    ]);
    rows
}

/// Puts rows into the database of an open `meta`, and closes it.
pub fn load(file: MetaFile, rows: &[TableRow]) -> Result<(), bilayer::meta::MetaError> {
    let tables = Tables::open(Arc::new(file), 1 << 20)?;
    let counters = rows
        .iter()
        .rev()
        .find(|(table, _)| *table == Table::Counters);
    let counters = counters.map_or(Vec::new(), |(_, (_, value))| value.clone());
    tables.load(&mut |loader| {
        for (table, (key, value)) in rows {
            loader.insert(*table, key, value)?;
        }
        Ok(counters.clone())
    })?;
    tables.close()
}

fn fill(fresh: &FreshVolume) {
    fresh
        .store
        .create_dir(&StorePath::new("objects/00000001"))
        .unwrap();
    let path = format!("objects/00000001/{}", OBJECT.name.object);
    let file = fresh
        .store
        .open(&StorePath::new(&path), OpenMode::CreateNew);
    let object = ContentsFile::new(file.unwrap(), fresh.keys.active(), OBJECT.crypto);
    let guard = object.lock_exclusive(PageIndex(0)..PageIndex(u64::from(PAGES)));
    let data = vec![0x5A; PAGES as usize * PAYLOAD_BYTES];
    let written = object.write_at(&guard, 0, &data, Sequence(1), &mut |_, _| Ok(()));
    written.unwrap();
    let path = StorePath::new(META_NAME);
    let file = fresh.store.open(&path, OpenMode::CreateNew).unwrap();
    drop(MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto).unwrap());
    // Several times, so that the file also contains pages of earlier commits.
    for commit in 0..COMMITS {
        let file = fresh.store.open(&path, OpenMode::ReadWrite).unwrap();
        let meta = match commit {
            0 => MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto),
            _ => MetaFile::open(file, fresh.keys.active(), fresh.meta_crypto),
        };
        let mut rows = rows();
        for number in 0..40 * (COMMITS - commit) {
            let key = keys::xattr(SMALL, format!("user.{number:04}").as_bytes());
            let value = encode_xattr(&[commit as u8; 100]);
            rows.push((Table::Xattr, (keys::versioned(&key, Generation(1)), value)));
        }
        load(meta.unwrap(), &rows).unwrap();
    }
}

thread_local! {
    static SAMPLE: OnceCell<Rc<Sample>> = const { OnceCell::new() };
}

/// A volume with all of [`rows`], and an object that one of them names.
pub fn sample() -> Rc<Sample> {
    SAMPLE.with(|sample| {
        let made = || {
            Rc::new(Sample::new(false, &mut |fresh| {
                fill(fresh);
                Ok(())
            }))
        };
        Rc::clone(sample.get_or_init(made))
    })
}

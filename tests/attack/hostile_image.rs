//! The attacker exports an image. They hold its keys, so its metadata can say anything and is
//! authentic. The victim imports it, and uses the volume as root.
//!
//! The image is refused, or the volume made from it is whole: nothing that the victim creates in it
//! is shared with the attacker's files, and nothing hangs.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bilayer::check::{self, CheckOptions};
use bilayer::errno::Errno;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{DirentRef, NodeId, RenameFlags};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::ids::{
    ChunkIndex, CryptoId, Epoch, FolderNumber, Generation, Ino, ObjectId, Sequence, ViewId,
};
use bilayer::image::stream::{Counts, ExportHeader, StreamReader, StreamWriter};
use bilayer::image::{ExportOptions, ImageError, ImportOptions, NoProgress, import};
use bilayer::keys::ErrorKind;
use bilayer::layers::{ExportKeys, KeySet};
use bilayer::meta::database::Tables;
use bilayer::meta::keys::{self, Table};
use bilayer::meta::page_set::PageSet;
use bilayer::meta::records::{
    Counters, DirentRecord, ExtentRecord, FileKind, InodeRecord, ObjectName, Part, PartId,
    Timespec, ViewRecord, ViewState, encode_xattr,
};
use bilayer::sealed::{META_STRIDE_BYTES, MetaFile};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, OpenOptions};

use crate::support::{ADMIN, ROOT, USER, format_in, keystore, quiet};

/// No import and no use of the new volume takes this long.
const LIMIT: Duration = Duration::from_secs(120);
const HASH_KEY: [u8; 16] = [7; 16];

/// A row: its table, logical key and value.
type Row = (Table, Vec<u8>, Vec<u8>);

fn inode(kind: FileKind, ino: u64, parent: u64) -> Row {
    let links = if kind == FileKind::Directory { 2 } else { 1 };
    let record = InodeRecord {
        nlink: links,
        uid: USER.uid,
        parent: Ino(parent),
        ..InodeRecord::new(kind, 0o777, Timespec::default())
    };
    (Table::Inode, keys::inode(Ino(ino)), record.encode())
}

fn name(parent: u64, name: &str, ino: u64, kind: FileKind) -> Row {
    let hash = keys::name_hash(&HASH_KEY, name.as_bytes());
    let key = keys::dirent(Ino(parent), hash, name.as_bytes());
    let ino = Ino(ino);
    (Table::Dirent, key, DirentRecord { ino, kind }.encode())
}

fn small(ino: u64) -> Row {
    let extent = ExtentRecord::Inline(b"evil".to_vec());
    let key = keys::extent(Ino(ino), ChunkIndex(0));
    (Table::Extent, key, extent.encode())
}

/// The modified rows.
type Change<'a> = &'a dyn Fn(&mut Vec<Row>);

/// `/dir/sub` and `/file`, without any contradiction.
fn sound() -> Vec<Row> {
    let mut rows = vec![
        inode(FileKind::Directory, 1, 1),
        inode(FileKind::Directory, 2, 1),
        inode(FileKind::Directory, 3, 2),
        inode(FileKind::Regular, 4, 0),
        name(1, "dir", 2, FileKind::Directory),
        name(2, "sub", 3, FileKind::Directory),
        name(1, "file", 4, FileKind::Regular),
    ];
    links(&mut rows, 1, 3);
    links(&mut rows, 2, 3);
    rows
}

/// Changes an inode's record.
fn amend(rows: &mut [Row], ino: u64, change: impl FnOnce(&mut InodeRecord)) {
    let key = keys::inode(Ino(ino));
    let row = rows
        .iter_mut()
        .find(|(table, at, _)| *table == Table::Inode && *at == key);
    let value = &mut row.unwrap().2;
    let mut record = InodeRecord::decode(value).unwrap();
    change(&mut record);
    *value = record.encode();
}

fn links(rows: &mut [Row], ino: u64, nlink: u32) {
    amend(rows, ino, |record| record.nlink = nlink);
}

fn counters() -> Counters {
    Counters {
        clean: true,
        generation: Generation(2),
        frozen: Generation(1),
        next_ino: Ino(5),
        folder: FolderNumber(1),
        next_garbage: 0,
        used_pages: 0,
        record_bytes: 0,
        inodes: 4,
        limit_bytes: 0,
        hash_key: HASH_KEY,
        restoring: Generation(0),
        newest_view: ViewId::LIVE,
    }
}

/// An export of the attacker's own, whose keys they have.
struct Attacker {
    keystore: Arc<tempfile::TempDir>,
    header: ExportHeader,
    set: Arc<KeySet>,
}

impl Attacker {
    fn new() -> Self {
        let keystore = keystore();
        let store = MemoryStore::new();
        let options = CreateOptions {
            keystore: platform(&keystore),
            ..CreateOptions::default()
        };
        format_in(Arc::new(store.clone()), &options);
        let fs = open(&store, &keystore, quiet()).unwrap();
        fs.create_view(ViewKind::Image, "image", None, "").unwrap();
        let mut stream = Vec::new();
        let to = &ExportOptions::default();
        fs.export_image("image", to, &mut stream, &NoProgress)
            .unwrap();
        fs.close().unwrap();
        let mut input = &stream[..];
        let (_, unverified) = StreamReader::begin(&mut input).unwrap();
        let header = unverified.claims().clone();
        // Everybody who may import it has its keys.
        let own = MemoryStore::new();
        receive(&stream, &own, &keystore).unwrap();
        let volume = volume::open(Arc::new(own), &open_options(&keystore)).unwrap();
        let set = volume.keys.iter().find(|set| set.id == header.key_set.id);
        let set = Arc::clone(set.unwrap());
        Self {
            keystore,
            header,
            set,
        }
    }

    /// An authentic stream with these rows.
    fn stream(&self, rows: &[Row], counters: &Counters) -> Vec<u8> {
        let rows: Vec<_> = rows
            .iter()
            .map(|(table, logical, value)| {
                let key = match table {
                    Table::Inode | Table::Dirent | Table::Xattr | Table::Extent => {
                        keys::versioned(logical, Generation(1))
                    }
                    _ => logical.clone(),
                };
                (*table, key, value.clone())
            })
            .collect();
        self.stream_of(&rows, &counters.encode())
    }

    /// An authentic stream with these physical keys.
    fn stream_of(&self, rows: &[Row], counters: &[u8]) -> Vec<u8> {
        let store = MemoryStore::new();
        let file = store.open(&StorePath::new("meta"), OpenMode::CreateNew);
        let file = file.unwrap();
        let sealed = MetaFile::create(Arc::clone(&file), &self.set, self.header.meta).unwrap();
        let tables = Tables::open(Arc::new(sealed), 1 << 20).unwrap();
        let filled = tables.load(&mut |loader| {
            for (table, key, value) in rows {
                loader.insert(*table, key, value)?;
            }
            Ok(counters.to_vec())
        });
        filled.unwrap();
        tables.close().unwrap();
        let mut meta = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut meta, 0).unwrap();
        let header = ExportHeader {
            counts: Counts {
                meta_strides: (meta.len() / META_STRIDE_BYTES) as u64,
                objects: 0,
                pages: 0,
            },
            ..self.header.clone()
        };
        let keys = ExportKeys::derive(header.export, &self.set).unwrap();
        let mut stream = Vec::new();
        let mut writer = StreamWriter::begin(&mut stream, &header, &keys).unwrap();
        let strides = writer.meta().unwrap();
        writer
            .put(&meta[..strides as usize * META_STRIDE_BYTES])
            .unwrap();
        writer.end().unwrap();
        stream
    }

    /// The victim imports a stream. `Ok` returns the volume.
    #[track_caller]
    fn import(&self, stream: Vec<u8>) -> Result<MemoryStore, ImageError> {
        let (store, keystore) = (MemoryStore::new(), Arc::clone(&self.keystore));
        let volume = store.clone();
        within_limit(move || receive(&stream, &store, &keystore)).map(|()| volume)
    }

    /// The stream is refused with a specific error, and nothing of it is left.
    #[track_caller]
    fn is_refused(&self, why: &str, rows: &[Row]) {
        self.stream_is_refused(why, self.stream(rows, &counters()));
    }

    #[track_caller]
    fn stream_is_refused(&self, why: &str, stream: Vec<u8>) {
        let (store, keystore) = (MemoryStore::new(), Arc::clone(&self.keystore));
        let target = store.clone();
        let refused = within_limit(move || receive(&stream, &target, &keystore));
        let error = refused.expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Tampered, "{why}: {error}");
        let left = store.list(&StorePath::root()).unwrap();
        assert!(left.is_empty(), "{why}: {left:?} is left");
    }

    /// The import makes a whole volume, in which root works without coming across files of the
    /// attacker's.
    #[track_caller]
    fn is_harmless(&self, why: &str, stream: Vec<u8>) -> Vec<u64> {
        let volume = self.import(stream);
        let volume = volume.unwrap_or_else(|error| panic!("{why}: {error}"));
        let (keystore, why) = (Arc::clone(&self.keystore), why.to_owned());
        within_limit(move || work_as_root(&volume, &keystore, &why))
    }
}

fn platform(keystore: &tempfile::TempDir) -> PathBuf {
    keystore.path().join("platform")
}

fn open_options(keystore: &tempfile::TempDir) -> OpenOptions {
    OpenOptions {
        keystore: platform(keystore),
        ..OpenOptions::default()
    }
}

fn receive(
    stream: &[u8],
    to: &MemoryStore,
    keystore: &tempfile::TempDir,
) -> Result<(), ImageError> {
    let options = ImportOptions {
        keystore: platform(keystore),
        ..ImportOptions::default()
    };
    import(&mut &*stream, Arc::new(to.clone()), &options, &NoProgress).map(drop)
}

fn open(
    store: &MemoryStore,
    keystore: &tempfile::TempDir,
    options: FilesystemOptions,
) -> Result<Arc<Filesystem>, bilayer::fs::FsError> {
    let volume = volume::open(Arc::new(store.clone()), &open_options(keystore))?;
    Filesystem::open(volume, options)
}

/// Runs something that an attacker would like never to end.
#[track_caller]
fn within_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waits) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = work();
        let _ = done.send(());
        result
    });
    match waits.recv_timeout(LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        // A panic of its own is passed on.
        _ => match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// Creates files and moves directories. Returns the inode numbers of what was created.
fn work_as_root(volume: &MemoryStore, keystore: &tempfile::TempDir, why: &str) -> Vec<u64> {
    let fs = open(volume, keystore, quiet()).unwrap();
    let known: Vec<u64> = everything(&fs).iter().map(|node| node.0).collect();
    let mut made = Vec::new();
    for name in ["secret", "second"] {
        let attr = fs.mknod(&ADMIN, ROOT, name.as_bytes(), 0o100_600, 0);
        let attr = attr.unwrap_or_else(|error| panic!("{why}: {error:?}"));
        assert!(
            !known.contains(&attr.node.0),
            "{why}: {} is taken",
            attr.node.0
        );
        assert_eq!((attr.uid, attr.perm, attr.nlink), (0, 0o600, 1), "{why}");
        assert_eq!(attr.size, 0, "{why}: it has contents");
        let names = fs.list_xattr(&ADMIN, attr.node).unwrap();
        assert!(names.is_empty(), "{why}: it has attributes");
        made.push(attr.node.0);
    }
    let below = fs.mkdir(&ADMIN, ROOT, b"below", 0o700).unwrap();
    assert!(!known.contains(&below.node.0), "{why}: it is taken");
    assert!(listing(&fs, below.node).is_empty(), "{why}: it has names");
    made.push(below.node.0);
    let moved = fs.rename(
        &ADMIN,
        DirentRef::new(ROOT, b"dir"),
        DirentRef::new(below.node, b"dir"),
        RenameFlags::default(),
    );
    moved.unwrap_or_else(|error| panic!("{why}: {error:?}"));
    fs.unlink(ROOT, b"file").unwrap();
    let nodes = everything(&fs);
    let distinct: std::collections::BTreeSet<u64> = nodes.iter().map(|node| node.0).collect();
    assert_eq!(nodes.len(), distinct.len(), "{why}: two names of one inode");
    let report = fs
        .check(&CheckOptions::default(), &check::NoProgress)
        .unwrap();
    assert!(report.is_clean(), "{why}: {:?}", report.findings);
    assert_eq!(fs.usage().latched, None, "{why}");
    fs.close().unwrap();
    made
}

fn listing(fs: &Filesystem, node: NodeId) -> Vec<Vec<u8>> {
    let handle = fs.open_dir(node).unwrap();
    let mut names = Vec::new();
    fs.read_dir(node, handle, 2, &mut |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .unwrap();
    fs.release_dir(node, handle);
    names
}

/// All names of the tree, as nodes.
fn everything(fs: &Filesystem) -> Vec<NodeId> {
    let (mut nodes, mut at) = (vec![ROOT], 0);
    while let Some(node) = nodes.get(at).copied() {
        at += 1;
        if fs.getattr(node).unwrap().kind != FileKind::Directory {
            continue;
        }
        for name in listing(fs, node) {
            nodes.push(fs.lookup(node, &name).unwrap().node);
        }
    }
    nodes
}

#[test]
fn a_sound_image_is_imported() {
    let attacker = Attacker::new();
    let made = attacker.is_harmless("sound", attacker.stream(&sound(), &counters()));
    assert_eq!(made, [5, 6, 7]);
}

#[test]
fn counters_of_an_image_are_ignored() {
    let attacker = Attacker::new();
    type Lie = fn(&mut Counters);
    let lies: [(&str, Lie); 9] = [
        ("the last number of all", |c| {
            c.next_ino = Ino(Ino::END.0 - 1);
        }),
        ("all numbers used up", |c| c.next_ino = Ino::END),
        ("a number that is in use", |c| c.next_ino = Ino(2)),
        ("the last folder", |c| {
            c.folder = FolderNumber(FolderNumber::END.0 - 1);
        }),
        ("all garbage", |c| c.next_garbage = 1 << 62),
        ("pages that are not there", |c| c.used_pages = 1 << 48),
        ("no inodes", |c| c.inodes = 0),
        ("the last generation", |c| {
            (c.generation, c.frozen) = (Generation::MAX, Generation::MAX);
        }),
        ("half restored", |c| c.restoring = Generation(1)),
    ];
    for (why, lie) in lies {
        let mut counters = counters();
        lie(&mut counters);
        let made = attacker.is_harmless(why, attacker.stream(&sound(), &counters));
        assert_eq!(made, [5, 6, 7], "{why}");
    }
    for next_ino in [
        Ino::END.0 + 1,
        1 << Ino::BITS,
        (1 << Ino::BITS) + 5,
        u64::MAX,
    ] {
        let counters = Counters {
            next_ino: Ino(next_ino),
            ..counters()
        };
        attacker.stream_is_refused("no number at all", attacker.stream(&sound(), &counters));
    }
}

#[test]
fn rows_that_are_no_part_of_an_image_are_ignored() {
    let attacker = Attacker::new();
    let view = ViewRecord {
        kind: ViewKind::Snapshot,
        state: ViewState::Kept,
        generation: Generation(1),
        created: Timespec::default(),
        pages: 0,
        inodes: 4,
        record_bytes: 0,
        name: "evil".to_owned(),
        from: String::new(),
        description: String::new(),
    };
    let mut rows = sound();
    rows.push((Table::View, vec![0, 0], view.encode()));
    rows.push((Table::Orphan, keys::number(1), vec![1]));
    rows.push((Table::Orphan, keys::number(u64::MAX), vec![1]));
    rows.push((Table::Change, keys::number(1), vec![1]));
    attacker.is_harmless("other tables", attacker.stream(&rows, &counters()));
}

#[test]
fn nothing_waits_for_a_number_that_is_drawn_later() {
    let attacker = Attacker::new();
    for next in [5, 6, 7, 400] {
        let mut rows = sound();
        rows.push(name(2, "evil", next, FileKind::Regular));
        attacker.is_refused("a second name of a file to come", &rows);
        let mut rows = sound();
        rows.push(name(next, "evil", 4, FileKind::Regular));
        attacker.is_refused("a name in a directory to come", &rows);
        let mut rows = sound();
        rows.push(small(next));
        attacker.is_refused("contents of a file to come", &rows);
        let mut rows = sound();
        let key = keys::xattr(Ino(next), b"security.capability");
        rows.push((Table::Xattr, key, encode_xattr(b"all of them")));
        attacker.is_refused("an attribute of a file to come", &rows);
    }
}

#[test]
fn numbers_that_no_inode_has_are_refused() {
    let attacker = Attacker::new();
    for number in [
        0,
        Ino::END.0,
        (1 << Ino::BITS) - 2,
        1 << Ino::BITS,
        (1 << Ino::BITS) + 4,
        u64::MAX,
    ] {
        let mut rows = sound();
        rows.push(name(1, "evil", number, FileKind::Regular));
        attacker.is_refused("a name leads to it", &rows);
        let mut rows = sound();
        rows.push(inode(FileKind::Regular, number, 0));
        attacker.is_refused("an inode has it", &rows);
        let mut rows = sound();
        amend(&mut rows, 3, |record| record.parent = Ino(number));
        attacker.is_refused("a directory is in it", &rows);
    }
}

#[test]
fn directories_in_a_circle_are_refused() {
    let attacker = Attacker::new();
    // `sub` contains `dir`, which contains `sub`; no path leads there.
    let mut rows = sound();
    rows.retain(|row| *row != name(1, "dir", 2, FileKind::Directory));
    rows.push(name(3, "dir", 2, FileKind::Directory));
    amend(&mut rows, 2, |record| record.parent = Ino(3));
    links(&mut rows, 1, 2);
    links(&mut rows, 3, 3);
    attacker.is_refused("a circle beside the tree", &rows);
    // Each also has a name in the root, but the path upwards leads in a circle.
    rows.push(name(1, "dir", 2, FileKind::Directory));
    links(&mut rows, 1, 3);
    attacker.is_refused("a circle that is reached", &rows);
    let mut rows = sound();
    amend(&mut rows, 2, |record| record.parent = Ino(2));
    attacker.is_refused("a directory in itself", &rows);
    let mut rows = sound();
    rows.push(name(3, "up", 1, FileKind::Directory));
    attacker.is_refused("the root below itself", &rows);
    let mut rows = sound();
    amend(&mut rows, 2, |record| record.parent = Ino(3));
    attacker.is_refused("a way upwards in a circle, downwards none", &rows);
}

#[test]
fn names_that_contradict_inodes_are_refused() {
    let attacker = Attacker::new();
    let cases: [(&str, Change<'_>); 11] = [
        ("a directory with two names", &|rows| {
            rows.push(name(1, "again", 3, FileKind::Directory));
        }),
        ("a file with two names that counts one", &|rows| {
            rows.push(name(2, "again", 4, FileKind::Regular));
        }),
        ("a file that counts a name too many", &|rows| {
            links(rows, 4, 2);
        }),
        ("a directory that counts all links there are", &|rows| {
            links(rows, 2, u32::MAX);
        }),
        ("another kind", &|rows| {
            rows.retain(|(_, key, _)| *key != name(1, "file", 4, FileKind::Regular).1);
            rows.push(name(1, "file", 4, FileKind::Directory));
        }),
        ("names in a file", &|rows| {
            rows.push(inode(FileKind::Regular, 5, 0));
            rows.push(name(4, "below", 5, FileKind::Regular));
        }),
        ("no name", &|rows| {
            rows.push(inode(FileKind::Regular, 5, 0));
        }),
        ("a name where nobody looks", &|rows| {
            rows.push(inode(FileKind::Regular, 5, 0));
            let key = keys::dirent(Ino(1), 5, b"hidden");
            let (ino, kind) = (Ino(5), FileKind::Regular);
            rows.push((Table::Dirent, key, DirentRecord { ino, kind }.encode()));
        }),
        ("a name with a slash", &|rows| {
            rows.push(inode(FileKind::Regular, 5, 0));
            rows.push(name(1, "../../etc/shadow", 5, FileKind::Regular));
        }),
        ("the name of the directory itself", &|rows| {
            rows.push(inode(FileKind::Regular, 5, 0));
            rows.push(name(1, ".", 5, FileKind::Regular));
        }),
        ("no root", &|rows| {
            rows.remove(0);
        }),
    ];
    for (why, change) in cases {
        let mut rows = sound();
        change(&mut rows);
        attacker.is_refused(why, &rows);
    }
}

#[test]
fn an_inode_without_a_name_is_left_out() {
    let attacker = Attacker::new();
    // An exporter leaves out files that were unlinked while in use; so does the importer.
    let mut rows = sound();
    let mut gone = inode(FileKind::Regular, 9, 0);
    let record = InodeRecord::decode(&gone.2).unwrap();
    gone.2 = InodeRecord { nlink: 0, ..record }.encode();
    rows.extend([gone, small(9)]);
    let made = attacker.is_harmless("unlinked", attacker.stream(&rows, &counters()));
    assert_eq!(made, [5, 6, 7]);
}

#[test]
fn contents_that_contradict_the_stream_are_refused() {
    let attacker = Attacker::new();
    let mut pages = PageSet::new();
    pages.insert(0..3);
    let part = Part {
        id: PartId {
            name: ObjectName {
                folder: FolderNumber(FolderNumber::END.0 - 1),
                object: ObjectId([9; 16]),
            },
            crypto: CryptoId([9; 16]),
            epoch: Epoch(1),
        },
        pages,
    };
    let extent = ExtentRecord::Parts {
        shared: false,
        parts: vec![part],
        reserved: PageSet::new(),
    };
    let mut rows = sound();
    let key = keys::extent(Ino(4), ChunkIndex(0));
    rows.push((Table::Extent, key, extent.encode()));
    attacker.is_refused("an object that does not come", &rows);
    let mut rows = sound();
    rows.push(small(4));
    attacker.is_refused("contents behind the size", &rows);
}

#[test]
fn versions_in_an_image_are_refused() {
    let attacker = Attacker::new();
    for generation in [0, 2, 3, 1 << 62, u64::MAX] {
        let mut rows: Vec<Row> = sound()
            .into_iter()
            .map(|(table, key, value)| (table, keys::versioned(&key, Generation(1)), value))
            .collect();
        let key = keys::versioned(&keys::inode(Ino(4)), Generation(generation));
        rows.push((Table::Inode, key, inode(FileKind::Fifo, 4, 0).2));
        let stream = attacker.stream_of(&rows, &counters().encode());
        attacker.stream_is_refused("another generation", stream);
    }
}

#[test]
fn a_volume_with_a_circle_of_directories_becomes_read_only() {
    // Such a volume could have been imported before images were compared.
    let keystore = keystore();
    let store = MemoryStore::new();
    let options = CreateOptions {
        keystore: platform(&keystore),
        ..CreateOptions::default()
    };
    let made = volume::create_empty(Arc::new(store.clone()), &options, &mut |fresh| {
        let file = fresh
            .store
            .open(&StorePath::new("meta"), OpenMode::CreateNew)?;
        let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
        let tables = Tables::open(Arc::new(file), 1 << 20)?;
        let mut rows = sound();
        amend(&mut rows, 2, |record| record.parent = Ino(3));
        tables.load(&mut |loader| {
            for (table, key, value) in &rows {
                loader.insert(*table, &keys::versioned(key, Generation(1)), value)?;
            }
            Ok(counters().encode())
        })?;
        Ok(tables.close()?)
    });
    made.unwrap();
    within_limit(move || {
        let fs = open(&store, &keystore, quiet()).unwrap();
        let other = fs.mkdir(&ADMIN, ROOT, b"other", 0o755).unwrap();
        // The kernel may know `sub` from before, as a working directory.
        let sub = NodeId::live(Ino(3)).unwrap();
        let into = fs.rename(
            &ADMIN,
            DirentRef::new(ROOT, b"other"),
            DirentRef::new(sub, b"other"),
            RenameFlags::default(),
        );
        assert_eq!(into, Err(Errno::EIO));
        let latched = fs.usage().latched.unwrap();
        assert!(
            latched.contains("inode 3") || latched.contains("inode 2"),
            "{latched}"
        );
        assert!(latched.contains("cycle"), "{latched}");
        // Existing files can still be read, and nothing is written any more.
        assert_eq!(fs.lookup(ROOT, b"other").unwrap().node, other.node);
        assert_eq!(fs.lookup(ROOT, b"dir"), Err(Errno::EIO));
        let refused = fs.mkdir(&ADMIN, ROOT, b"more", 0o755);
        assert_eq!(refused, Err(Errno::EROFS));
    });
}

/// The sequence number of a page is bounded too.
#[test]
fn the_last_commit_number_is_the_last() {
    let store = MemoryStore::new();
    let file = store.open(&StorePath::new("meta"), OpenMode::CreateNew);
    let set = Arc::new(KeySet::random(Epoch(1)).unwrap());
    let last = Sequence(u64::MAX - 1);
    let sealed = MetaFile::create_at(file.unwrap(), &set, CryptoId([1; 16]), last).unwrap();
    let mut page = vec![0; 4096];
    sealed.set_len(4096).unwrap();
    sealed.write(0, &page).unwrap();
    sealed.sync().unwrap();
    page.fill(1);
    sealed.write(0, &page).unwrap();
    assert!(sealed.sync().is_err());
    assert_eq!(sealed.sequence(), Sequence(u64::MAX));
}

//! Numbers at their bounds: the last one can be allocated, and the next allocation fails with an
//! error number instead of returning a number that is in use.

use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{DirentRef, FileKind, NodeId, RenameFlags, WriteFlags};
use bilayer::ids::{FolderNumber, Generation, Ino, ViewId};
use bilayer::meta::commit::BatchNumber;
use bilayer::meta::database::Tables;
use bilayer::meta::keys::Table;
use bilayer::meta::overlay::Overlay;
use bilayer::meta::records::{Counters, DirentRecord, InodeRecord, PAGES_MAX};
use bilayer::meta::{Batch, Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::META_NAME;

use crate::support::{ADMIN, Mount, ROOT, open_volume, pattern, quiet};

/// A volume that is closed.
struct Closed {
    store: FaultyStore,
    keystore: Arc<tempfile::TempDir>,
}

impl Closed {
    fn of(mount: Mount) -> Self {
        // If writing has ended before, the error says so.
        let _ = mount.fs.close();
        let Mount {
            store, keystore, ..
        } = mount;
        Self { store, keystore }
    }

    fn file(&self) -> MetaFile {
        let volume = open_volume(&self.store, self.keystore.path(), false);
        let path = StorePath::new(META_NAME);
        let file = self.store.open(&path, OpenMode::ReadWrite).unwrap();
        MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()).unwrap()
    }

    fn open(self) -> Mount {
        Mount::open(self.store, self.keystore, quiet()).unwrap()
    }

    /// Changes the counters.
    fn counting(self, change: impl FnOnce(&mut Counters)) -> Self {
        let tables = Tables::open(Arc::new(self.file()), 1 << 20).unwrap();
        let bytes = tables.committed().unwrap().get(Table::Counters, &[]);
        let mut counters = Counters::decode(&bytes.unwrap().unwrap()).unwrap();
        change(&mut counters);
        tables
            .commit(&Overlay::default(), &counters.encode())
            .unwrap();
        tables.close().unwrap();
        self
    }

    /// Changes the records.
    fn changing(self, change: impl FnOnce(&Meta, &mut Batch)) -> Self {
        let meta = Meta::open(self.file(), 1 << 20).unwrap();
        let mut batch = Batch::new();
        change(&meta, &mut batch);
        meta.apply(batch).unwrap();
        assert!(meta.commit(BatchNumber(u64::MAX), &|| true).unwrap());
        meta.close().unwrap();
        self
    }

    /// Changes an inode.
    fn amending(self, node: NodeId, change: impl FnOnce(&mut InodeRecord)) -> Self {
        self.changing(|meta, batch| {
            let mut record = meta.inode(node.ino(), View::LIVE).unwrap().unwrap();
            change(&mut record);
            meta.put_inode(batch, node.ino(), &record).unwrap();
        })
    }
}

fn counting(mount: Mount, change: impl FnOnce(&mut Counters)) -> Mount {
    Closed::of(mount).counting(change).open()
}

#[test]
fn nodes_are_those_of_numbers_that_files_have() {
    for number in [
        0,
        Ino::END.0,
        (1 << Ino::BITS) - 2,
        1 << Ino::BITS,
        (1 << Ino::BITS) | 1,
        u64::MAX,
    ] {
        assert_eq!(NodeId::live(Ino(number)), None, "{number}");
        assert_eq!(NodeId::new(ViewId(3), Ino(number)), None, "{number}");
    }
    for number in [1, 2, Ino::END.0 - 1] {
        let node = NodeId::new(ViewId(3), Ino(number)).unwrap();
        assert_eq!((node.view(), node.ino()), (ViewId(3), Ino(number)));
    }
    assert_eq!(NodeId::live(Ino::ROOT), Some(ROOT));
    assert_eq!(NodeId::root_of(ViewId::LIVE), ROOT);
}

/// At most `count` names with the same hash.
fn colliding(meta: &Meta, most: usize) -> Vec<String> {
    let mut by_hash = std::collections::HashMap::<u32, Vec<String>>::new();
    for number in 0.. {
        let name = format!("name {number}");
        let names = by_hash.entry(meta.name_hash(name.as_bytes())).or_default();
        names.push(name);
        if names.len() == most {
            return std::mem::take(names);
        }
    }
    unreachable!()
}

/// Each has a position of its own, however a listing is divided and while others are created and
/// removed.
#[test]
fn names_of_one_hash_are_all_found_and_listed() {
    let mut names = Vec::new();
    let mount = Closed::of(Mount::new())
        .changing(|meta, _| names = colliding(meta, 2))
        .open();
    let dir = mount.mkdir(ROOT, "dir");
    let [one, two] = [names[0].as_str(), names[1].as_str()];
    // One entry at a time, like a caller with a small buffer.
    let listed = |mount: &Mount, dir| {
        let handle = mount.fs.open_dir(dir).unwrap();
        let (mut listed, mut offset) = (Vec::new(), 2);
        loop {
            let mut next = None;
            let read = mount.fs.read_dir(dir, handle, offset, &mut |entry| {
                let is_first = next.is_none();
                if is_first {
                    let name = String::from_utf8(entry.name.to_vec()).unwrap();
                    next = Some((name, entry.next_offset));
                }
                is_first
            });
            read.unwrap();
            let Some((name, after)) = next else { break };
            assert!(offset < after && after < 1 << 31, "{name}");
            listed.push(name);
            offset = after;
        }
        mount.fs.release_dir(dir, handle);
        listed
    };
    mount.file(dir, one, b"1");
    mount.file(dir, two, b"2");
    assert_eq!(listed(&mount, dir), [one, two]);
    mount
        .fs
        .create_view(ViewKind::Snapshot, "both", None, "")
        .unwrap();
    // The second name keeps its position, and is still found, when the first is removed.
    mount.fs.unlink(dir, one.as_bytes()).unwrap();
    assert_eq!(listed(&mount, dir), [two]);
    assert_eq!(mount.contents(mount.at(&format!("dir/{two}"))), b"2");
    mount.file(dir, one, b"again");
    assert_eq!(listed(&mount, dir), [one, two]);
    // Positions depend on the order of creation, but a diff and a restore compare names.
    for name in [one, two] {
        mount.fs.unlink(dir, name.as_bytes()).unwrap();
    }
    mount.file(dir, two, b"first now");
    mount.file(dir, one, b"second now");
    assert_eq!(listed(&mount, dir), [two, one]);
    let kept = mount.at(".snapshots/both/dir");
    assert_eq!(listed(&mount, kept), [one, two]);
    let flags = RenameFlags {
        exchange: true,
        ..RenameFlags::default()
    };
    let [from, to] = [one.as_bytes(), two.as_bytes()];
    mount
        .fs
        .rename(
            &ADMIN,
            DirentRef::new(dir, from),
            DirentRef::new(dir, to),
            flags,
        )
        .unwrap();
    assert_eq!(
        mount.contents(mount.at(&format!("dir/{one}"))),
        b"first now"
    );
    let path = std::path::Path::new("dir");
    mount.fs.restore("both", Some(path)).unwrap();
    let dir = mount.at("dir");
    assert_eq!(listed(&mount, dir).len(), 2);
    assert_eq!(mount.contents(mount.at(&format!("dir/{one}"))), b"1");
    let mount = mount.reopen();
    mount.fs.restore("both", None).unwrap();
    assert_eq!(listed(&mount, mount.at("dir")), [one, two]);
    mount.finish();
}

#[test]
fn when_inode_numbers_are_used_up_there_is_no_space() {
    let mount = Mount::new();
    mount.file(ROOT, "old", b"contents");
    let snapshot = mount.fs.create_view(ViewKind::Snapshot, "one", None, "");
    snapshot.unwrap();
    let mount = counting(mount, |counters| counters.next_ino = Ino(Ino::END.0 - 1));
    let last = mount.file(ROOT, "last", b"of all");
    assert_eq!(last.ino(), Ino(Ino::END.0 - 1));
    let fs = &mount.fs;
    let used_up = Err(Errno::ENOSPC);
    assert_eq!(fs.mknod(&ADMIN, ROOT, b"file", 0o100_644, 0), used_up);
    assert_eq!(fs.mkdir(&ADMIN, ROOT, b"dir", 0o755), used_up);
    assert_eq!(fs.symlink(&ADMIN, ROOT, b"link", b"to"), used_up);
    let created = fs.create(&ADMIN, ROOT, b"file", 0o644, libc::O_RDWR);
    assert_eq!(created.map(|(attr, _)| attr), used_up);
    let whiteout = RenameFlags {
        whiteout: true,
        ..RenameFlags::default()
    };
    let renamed = fs.rename(
        &ADMIN,
        DirentRef::new(ROOT, b"old"),
        DirentRef::new(ROOT, b"new"),
        whiteout,
    );
    assert_eq!(renamed, Err(Errno::ENOSPC));
    let restored = fs.restore("one", Some("old".as_ref())).unwrap_err();
    assert_eq!(restored.errno(), Errno::ENOSPC);
    // Operations that need no new number still work.
    assert_eq!(mount.names(ROOT), ["last", "old"]);
    fs.link(last, ROOT, b"other").unwrap();
    fs.unlink(ROOT, b"old").unwrap();
    let mount = mount.reopen();
    assert_eq!(mount.contents(mount.at("other")), b"of all");
    assert_eq!(mount.fs.mkdir(&ADMIN, ROOT, b"dir", 0o755), used_up);
    mount.finish();
}

#[test]
fn when_folders_are_used_up_there_is_no_space() {
    let mount = Mount::new();
    let last = FolderNumber(FolderNumber::END.0 - 1);
    let mount = counting(mount, |counters| counters.folder = last);
    let (node, handle) = mount.create(ROOT, "file");
    let large = pattern(1, 0, 100_000);
    let written = mount
        .fs
        .write(node, handle, 0, &large, WriteFlags::default());
    assert_eq!(written, Err(Errno::ENOSPC));
    // Operations that need no object still work.
    mount.put(node, handle, 0, b"small");
    mount.fs.release(node, handle);
    let mount = mount.reopen();
    assert_eq!(&mount.contents(mount.at("file"))[..5], b"small");
    mount.finish();
}

#[test]
fn when_generations_are_used_up_there_are_no_more_views() {
    let mount = counting(Mount::new(), |counters| {
        counters.generation = Generation::MAX;
    });
    for _ in 0..2 {
        let view = mount.fs.create_view(ViewKind::Snapshot, "one", None, "");
        assert_eq!(view.unwrap_err().errno(), Errno::EMLINK);
        mount.file(ROOT, "file", b"contents");
        mount.fs.unlink(ROOT, b"file").unwrap();
    }
    mount.reopen().finish();
}

/// The kernel may still know files of the view that had the number before, and their contents.
#[test]
fn a_reused_number_is_distinguished_from_before() {
    let before_last = |counters: &mut Counters| counters.newest_view = ViewId(ViewId::MAX.0 - 1);
    let mut mount = counting(Mount::new(), before_last);
    mount.file(ROOT, "file", b"contents");
    let seen = |mount: &Mount| {
        let view = mount.fs.create_view(ViewKind::Snapshot, "one", None, "");
        assert_eq!(view.unwrap().id, ViewId::MAX.0);
        let root = mount.lookup(mount.at(".snapshots"), b"one").unwrap();
        let file = mount.lookup(root.node, b"file").unwrap();
        assert!(file.node.0 < 1 << 53, "more than a double holds exactly");
        [root, file].map(|attr| (attr.node, attr.generation))
    };
    let before = seen(&mount);
    mount.fs.delete_view(ViewKind::Snapshot, "one").unwrap();
    mount.fs.finish_purge().unwrap();
    mount = counting(mount, before_last);
    for (before, now) in before.into_iter().zip(seen(&mount)) {
        assert_eq!(before.0, now.0);
        assert_ne!(before.1, now.1);
    }
    mount.finish();
}

#[test]
fn the_last_view_is_taken_in_the_last_but_one_generation() {
    let mount = counting(Mount::new(), |counters| {
        counters.generation = Generation(Generation::MAX.0 - 1);
        counters.newest_view = ViewId::MAX;
    });
    mount.file(ROOT, "file", b"contents");
    let view = |name| mount.fs.create_view(ViewKind::Snapshot, name, None, "");
    // After the largest number comes the first, and the live view's is skipped.
    assert_eq!(view("one").unwrap().id, 1);
    assert_eq!(view("two").unwrap_err().errno(), Errno::EMLINK);
    mount.fs.unlink(ROOT, b"file").unwrap();
    let mount = mount.reopen();
    let node = mount.at(".snapshots/one/file");
    assert_eq!(mount.contents(node), b"contents");
    mount.finish();
}

#[test]
fn when_garbage_cannot_be_numbered_nothing_is_lost() {
    let mount = Mount::new();
    let large = pattern(1, 0, 100_000);
    mount.file(ROOT, "large", &large);
    let mount = counting(mount, |counters| counters.next_garbage = 1 << 62);
    let truncated = mount.truncate(mount.at("large"), 0);
    assert_eq!(truncated.err(), Some(Errno::ENOSPC));
    assert_eq!(mount.contents(mount.at("large")), large);
    // It loses its name, and is removed later.
    mount.fs.unlink(ROOT, b"large").unwrap();
    mount.file(ROOT, "small", b"contents");
    mount.commit();
}

#[test]
fn pages_are_counted_up_to_their_bound() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "file", &pattern(1, 0, 100_000));
    // More than there are: the counter must not make the record unreadable.
    let closed = Closed::of(mount).amending(node, |record| record.pages = PAGES_MAX);
    let mount = closed.open();
    let node = mount.at("file");
    let handle = mount.open_rw(node);
    mount.put(node, handle, 100_000, &pattern(1, 100_000, 100_000));
    mount.fs.fsync(node, handle, false).unwrap();
    mount.fs.release(node, handle);
    let mount = Closed::of(mount).open();
    assert_eq!(mount.contents(mount.at("file")), pattern(1, 0, 200_000));
    // And the counter of the volume: it is full.
    let mount = counting(mount, |counters| counters.used_pages = PAGES_MAX);
    let node = mount.at("file");
    let handle = mount.open_rw(node);
    let more = pattern(1, 200_000, 100_000);
    let written = mount
        .fs
        .write(node, handle, 200_000, &more, WriteFlags::default());
    let synced = written.and_then(|_| mount.fs.fsync(node, handle, false));
    assert_eq!(synced, Err(Errno::ENOSPC));
    let mount = Closed::of(mount).open();
    assert_eq!(mount.contents(mount.at("file")), pattern(1, 0, 200_000));
}

#[test]
fn links_are_counted_up_to_their_bound() {
    for nlink in [65_000, u32::MAX] {
        let mount = Mount::new();
        let (from, to) = (mount.mkdir(ROOT, "from"), mount.mkdir(ROOT, "to"));
        mount.mkdir(from, "moved");
        mount.mkdir(to, "here");
        let file = mount.file(ROOT, "file", b"contents");
        let taken = mount.fs.create_view(ViewKind::Snapshot, "one", None, "");
        taken.unwrap();
        mount.fs.rmdir(to, b"here").unwrap();
        let closed = Closed::of(mount)
            .amending(to, |record| record.nlink = nlink)
            .amending(file, |record| record.nlink = nlink);
        let mount = closed.open();
        let full = Err(Errno::EMLINK);
        assert_eq!(mount.fs.mkdir(&ADMIN, to, b"more", 0o755), full);
        assert_eq!(mount.fs.link(file, to, b"more"), full);
        let none = RenameFlags::default();
        let moved = mount.fs.rename(
            &ADMIN,
            DirentRef::new(from, b"moved"),
            DirentRef::new(to, b"moved"),
            none,
        );
        assert_eq!(moved, Err(Errno::EMLINK));
        let restored = mount.fs.restore("one", Some("to/here".as_ref()));
        let error = restored.unwrap_err().to_string();
        assert!(error.contains("Too many links"), "{error}");
        assert!(mount.names(to).is_empty());
        mount.fs.close().unwrap();
    }
}

/// A name whose inode number is not allocated yet must not become a name of a later inode.
#[test]
fn a_name_of_an_inode_to_come_ends_writing() {
    let mount = Mount::new();
    let node = mount.file(ROOT, "file", b"contents");
    let mut next = Ino::ROOT;
    let closed = Closed::of(mount).changing(|meta, batch| {
        next = meta.counters().next_ino;
        let entry = DirentRecord {
            ino: next,
            kind: FileKind::Regular,
        };
        let put = meta.put_dirent(batch, Ino::ROOT, b"evil", Some(entry));
        put.unwrap();
    });
    let mount = closed.open();
    assert_eq!(mount.fs.lookup(ROOT, b"evil"), Err(Errno::EIO));
    let latched = mount.fs.usage().latched.unwrap();
    assert!(latched.contains(&format!("inode {next}")), "{latched}");
    let made = mount.fs.mknod(&ADMIN, ROOT, b"secret", 0o100_600, 0);
    assert_eq!(made, Err(Errno::EROFS));
    assert_eq!(mount.contents(node), b"contents");
}

//! Rules for every implementation.

use bilayer::errno::Errno;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::memory::MemoryStore;
use bilayer::store::{EntryKind, OpenMode, Store, StorePath};

use super::{assert_errno, contents, create, names, path};

/// Runs the check on each implementation.
fn on_all(check: impl Fn(&dyn Store)) {
    let dir = tempfile::tempdir().unwrap();
    check(&DirectoryStore::open(dir.path()).unwrap());
    check(&MemoryStore::new());
    check(&FaultyStore::new());
}

#[test]
fn open_modes() {
    on_all(|store| {
        assert_errno(store.open(&path("a"), OpenMode::Read), Errno::ENOENT);
        assert_errno(store.open(&path("a"), OpenMode::ReadWrite), Errno::ENOENT);
        create(store, "a", b"abc");
        assert_errno(store.open(&path("a"), OpenMode::CreateNew), Errno::EEXIST);
        assert_errno(store.open(&path("d/a"), OpenMode::CreateNew), Errno::ENOENT);
        assert_errno(
            store.open(&path("a/b"), OpenMode::CreateNew),
            Errno::ENOTDIR,
        );

        let reader = store.open(&path("a"), OpenMode::Read).unwrap();
        assert_errno(reader.write_at(b"x", 0), Errno::EBADF);
        assert_errno(reader.set_len(0), Errno::EINVAL);
        let writer = store.open(&path("a"), OpenMode::ReadWrite).unwrap();
        writer.write_at(b"X", 1).unwrap();
        assert_eq!(contents(store, "a").unwrap(), b"aXc");
    });
}

#[test]
fn a_directory_is_no_file() {
    on_all(|store| {
        store.create_dir(&path("d")).unwrap();
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            assert_errno(store.open(&path("d"), mode), Errno::EISDIR);
            assert_errno(store.open(&StorePath::root(), mode), Errno::EISDIR);
        }
        assert_errno(store.unlink(&path("d")), Errno::EISDIR);
        assert_errno(store.link(&path("d"), &path("e")), Errno::EPERM);
        create(store, "f", b"");
        assert_errno(store.rename(&path("f"), &path("d")), Errno::EISDIR);
        assert_errno(store.rename(&path("d"), &path("e")), Errno::EISDIR);
        assert_errno(store.remove_dir(&path("f")), Errno::ENOTDIR);
        assert_errno(store.lock(&path("d")).map(drop), Errno::EISDIR);
    });
}

#[test]
fn the_root_cannot_be_changed() {
    on_all(|store| {
        let root = StorePath::root();
        create(store, "f", b"");
        assert_errno(store.open(&root, OpenMode::CreateNew), Errno::EEXIST);
        assert_errno(store.create_dir(&root), Errno::EEXIST);
        assert_errno(store.unlink(&root), Errno::EISDIR);
        assert_errno(store.remove_dir(&root), Errno::EBUSY);
        assert_errno(store.rename(&root, &path("x")), Errno::EISDIR);
        assert_errno(store.rename(&path("f"), &root), Errno::EISDIR);
        assert_errno(store.link(&root, &path("x")), Errno::EPERM);
        assert_errno(store.link(&path("f"), &root), Errno::EEXIST);
        assert_eq!(store.info(&root).unwrap().kind, EntryKind::Directory);
        store.sync_dir(&root).unwrap();
    });
}

#[test]
fn reads_stop_at_the_end_and_holes_are_zeros() {
    on_all(|store| {
        let file = store.open(&path("a"), OpenMode::CreateNew).unwrap();
        assert!(file.is_empty().unwrap());
        file.write_at(&[7; 5000], 10_000).unwrap();
        assert_eq!(file.len().unwrap(), 15_000);
        let mut buffer = [0xAA; 20_000];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 15_000);
        assert!(buffer[..10_000].iter().all(|&b| b == 0));
        assert!(buffer[10_000..15_000].iter().all(|&b| b == 7));
        assert!(buffer[15_000..].iter().all(|&b| b == 0xAA));
        assert_eq!(file.read_at(&mut buffer, 14_999).unwrap(), 1);
        assert_eq!(file.read_at(&mut buffer, 15_000).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
        file.write_at(b"", 1 << 40).unwrap();
        assert_eq!(file.len().unwrap(), 15_000);
        assert_errno(file.read_at(&mut buffer, u64::MAX), Errno::EINVAL);
        assert_errno(file.write_at(b"x", u64::MAX), Errno::EINVAL);
    });
}

#[test]
fn truncating_and_growing_leaves_zeros() {
    on_all(|store| {
        let file = create(store, "a", &[1; 9000]);
        file.set_len(4100).unwrap();
        file.set_len(9000).unwrap();
        let bytes = contents(store, "a").unwrap();
        assert!(bytes[..4100].iter().all(|&b| b == 1));
        assert!(bytes[4100..].iter().all(|&b| b == 0));
        let error = file.set_len(u64::MAX).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    });
}

#[test]
fn punching_keeps_the_length_and_the_neighbours() {
    on_all(|store| {
        let file = create(store, "a", &[1; 40_960]);
        file.sync().unwrap();
        file.punch(5000, 20_000).unwrap();
        file.punch(100, 0).unwrap();
        assert_eq!(file.len().unwrap(), 40_960);
        let bytes = contents(store, "a").unwrap();
        assert!(bytes[..5000].iter().all(|&b| b == 1));
        assert!(bytes[25_000..].iter().all(|&b| b == 1));
        let hole = &bytes[5000..25_000];
        if hole.iter().all(|&b| b == 1) {
            eprintln!("skipped: the filesystem of the temporary directory punches no holes");
            return;
        }
        assert!(hole.iter().all(|&b| b == 0));
        assert!(file.info().unwrap().allocated_bytes < 40_960);
    });
}

#[test]
fn reserving_keeps_the_length() {
    on_all(|store| {
        let file = create(store, "a", b"abc");
        file.reserve(0, 1 << 20).unwrap();
        file.reserve(5, 0).unwrap();
        assert_eq!(file.len().unwrap(), 3);
        file.set_len(8192).unwrap();
        let bytes = contents(store, "a").unwrap();
        assert_eq!(&bytes[..3], b"abc");
        assert!(bytes[3..].iter().all(|&b| b == 0));
    });
}

#[test]
fn links_share_bytes_and_are_counted() {
    on_all(|store| {
        let file = create(store, "a", b"one");
        store.create_dir(&path("d")).unwrap();
        store.link(&path("a"), &path("d/b")).unwrap();
        assert_errno(store.link(&path("a"), &path("d/b")), Errno::EEXIST);
        assert_errno(store.link(&path("none"), &path("c")), Errno::ENOENT);
        assert_eq!(store.info(&path("a")).unwrap().links, 2);
        file.write_at(b"two", 0).unwrap();
        assert_eq!(contents(store, "d/b").unwrap(), b"two");
        store.unlink(&path("a")).unwrap();
        assert_errno(store.unlink(&path("a")), Errno::ENOENT);
        assert_eq!(file.info().unwrap().links, 1);
        store.unlink(&path("d/b")).unwrap();
        assert_eq!(file.info().unwrap().links, 0);
        file.write_at(b"six", 0).unwrap();
        let mut bytes = [0; 3];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 3);
        assert_eq!(&bytes, b"six");
    });
}

#[test]
fn rename_replaces() {
    on_all(|store| {
        create(store, "new", b"new");
        let old = create(store, "old", b"old");
        store.create_dir(&path("d")).unwrap();
        assert_errno(store.rename(&path("none"), &path("old")), Errno::ENOENT);
        store.rename(&path("new"), &path("old")).unwrap();
        assert_eq!(contents(store, "old").unwrap(), b"new");
        assert_eq!(contents(store, "new"), None);
        assert_eq!(old.info().unwrap().links, 0);
        store.rename(&path("old"), &path("d/x")).unwrap();
        assert_eq!(names(store, &StorePath::root()), ["d"]);
        assert_eq!(contents(store, "d/x").unwrap(), b"new");
    });
}

#[test]
fn renaming_a_file_over_itself_does_nothing() {
    on_all(|store| {
        create(store, "a", b"abc");
        store.link(&path("a"), &path("b")).unwrap();
        store.rename(&path("a"), &path("b")).unwrap();
        store.rename(&path("a"), &path("a")).unwrap();
        assert_eq!(names(store, &StorePath::root()), ["a", "b"]);
        assert_eq!(store.info(&path("a")).unwrap().links, 2);
    });
}

#[test]
fn directories_are_made_listed_and_removed() {
    on_all(|store| {
        store.create_dir(&path("objects")).unwrap();
        assert_errno(store.create_dir(&path("objects")), Errno::EEXIST);
        assert_errno(store.create_dir(&path("x/1")), Errno::ENOENT);
        store.create_dir(&path("objects/1")).unwrap();
        for number in 0..300 {
            create(store, &format!("objects/1/{number}"), b"");
        }
        assert_eq!(names(store, &path("objects/1")).len(), 300);
        let kinds = store.list(&path("objects")).unwrap();
        assert_eq!(kinds, [("1".to_owned(), EntryKind::Directory)]);
        assert_errno(store.list(&path("objects/1/5")), Errno::ENOTDIR);
        assert_errno(store.list(&path("objects/2")), Errno::ENOENT);
        assert_errno(store.sync_dir(&path("objects/2")), Errno::ENOENT);
        assert_errno(store.remove_dir(&path("objects/1")), Errno::ENOTEMPTY);
        for number in 0..300 {
            store.unlink(&path(&format!("objects/1/{number}"))).unwrap();
        }
        store.remove_dir(&path("objects/1")).unwrap();
        assert_errno(store.info(&path("objects/1")), Errno::ENOENT);
        // A folder of the same name is another folder.
        store.create_dir(&path("objects/1")).unwrap();
        create(store, "objects/1/a", b"a");
        assert_eq!(names(store, &path("objects/1")), ["a"]);
        store.sync_all().unwrap();
    });
}

#[test]
fn a_lock_excludes_and_is_released() {
    on_all(|store| {
        assert_errno(store.lock(&path("lock")).map(drop), Errno::ENOENT);
        create(store, "lock", b"");
        let held = store.lock(&path("lock")).unwrap();
        let refused = store.lock(&path("lock")).map(drop).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        drop(held);
        store.lock(&path("lock")).unwrap();
    });
}

#[test]
fn info_and_space_are_plausible() {
    on_all(|store| {
        let file = create(store, "a", &[1; 5000]);
        file.sync().unwrap();
        let info = store.info(&path("a")).unwrap();
        assert_eq!(info, file.info().unwrap());
        assert_eq!(
            (info.kind, info.len_bytes, info.links),
            (EntryKind::File, 5000, 1)
        );
        assert!(info.allocated_bytes >= 4096);
        let space = store.space().unwrap();
        assert!(space.total_bytes >= space.free_bytes);
        assert!(space.free_bytes >= space.available_bytes);
        assert!(space.available_bytes > 0);
    });
}

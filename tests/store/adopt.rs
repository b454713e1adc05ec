//! Adopting files of other stores.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::faulty::{CallKind, Fault, FaultyStore};
use bilayer::store::memory::MemoryStore;
use bilayer::store::read_only::ReadOnlyStore;
use bilayer::store::sub::SubStore;
use bilayer::store::{Adopted, OpenMode, Store, StorePath};

use super::{assert_errno, contents, create, path};

/// Bytes with a hole of whole blocks and an end within one.
fn sparse() -> Vec<u8> {
    let mut bytes = vec![0; 3_000_001];
    bytes[..5000].fill(7);
    bytes[1_500_000..1_500_100].fill(8);
    bytes[3_000_000] = 9;
    bytes
}

fn make_sparse(store: &dyn Store, name: &str) {
    let file = store.open(&path(name), OpenMode::CreateNew).unwrap();
    file.write_at(&[7; 5000], 0).unwrap();
    file.write_at(&[8; 100], 1_500_000).unwrap();
    file.write_at(&[9], 3_000_000).unwrap();
}

#[test]
fn every_store_takes_from_every_store() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let directories = dirs
        .each_ref()
        .map(|dir| DirectoryStore::open(dir.path()).unwrap());
    let [one, other] = directories;
    let stores: [Arc<dyn Store>; 6] = [
        Arc::new(one),
        Arc::new(other),
        Arc::new(MemoryStore::new()),
        Arc::new(MemoryStore::new()),
        Arc::new(FaultyStore::new()),
        Arc::new(FaultyStore::new()),
    ];
    for store in &stores {
        make_sparse(&**store, "file");
        store.create_dir(&path("d")).unwrap();
    }
    for (to, target) in stores.iter().enumerate() {
        for (from, source) in stores.iter().enumerate() {
            let name = path(&format!("d/{from}"));
            let how = target.adopt(&**source, &path("file"), &name).unwrap();
            let linked = from == to || from.max(to) == 1;
            assert_eq!(how == Adopted::Linked, linked, "{from} to {to}: {how:?}");
            assert_eq!(contents(&**target, name.as_str()), Some(sparse()));
            let info = target.info(&name).unwrap();
            assert_eq!(info.links > 1, linked);
            assert!(info.allocated_bytes < 1 << 20, "a hole stays a hole");
            assert_errno(target.adopt(&**source, &path("file"), &name), Errno::EEXIST);
            let none = path("d/none");
            assert_errno(target.adopt(&**source, &path("none"), &none), Errno::ENOENT);
            assert!(
                target.adopt(&**source, &path("d"), &none).is_err(),
                "a directory"
            );
            assert_errno(target.info(&none), Errno::ENOENT);
        }
    }
}

#[test]
fn views_of_a_store_are_looked_through() {
    let below: [Arc<dyn Store>; 2] = [Arc::new(MemoryStore::new()), Arc::new(FaultyStore::new())];
    for store in below {
        for name in ["a", "b", "b/objects", "b/objects/1"] {
            store.create_dir(&path(name)).unwrap();
        }
        let view = |name| SubStore::over(Arc::clone(&store), path(name));
        let (a, b) = (view("a"), view("b"));
        create(&a, "file", b"bytes");
        let read_only = ReadOnlyStore::over(Arc::new(a.clone()));
        let to = path("objects/1/0");
        assert_eq!(
            b.adopt(&read_only, &path("file"), &to).unwrap(),
            Adopted::Linked
        );
        let inner = contents(&*store, "b/objects/1/0");
        assert_eq!(inner.as_deref(), Some(&b"bytes"[..]));
        assert_eq!(a.info(&path("file")).unwrap().links, 2);
        assert_eq!(store.adopt(&b, &to, &path("top")).unwrap(), Adopted::Linked);
        // The rest of a store, through a view of it.
        a.link(&path("file"), &path("second")).unwrap();
        a.rename(&path("second"), &path("third")).unwrap();
        a.sync_dir(&StorePath::root()).unwrap();
        a.sync_all().unwrap();
        let mut names: Vec<_> = a
            .list(&StorePath::root())
            .unwrap()
            .into_iter()
            .map(|e| e.0)
            .collect();
        names.sort();
        assert_eq!(names, ["file", "third"]);
        let lock = a.lock(&path("file")).unwrap();
        assert!(store.lock(&path("a/file")).is_err());
        drop(lock);
        a.unlink(&path("file")).unwrap();
        b.unlink(&to).unwrap();
        b.remove_dir(&path("objects/1")).unwrap();
        assert!(a.space().unwrap().free_bytes > 0);
        let top = SubStore::over(Arc::clone(&store), StorePath::root());
        assert_eq!(contents(&top, "a/third").as_deref(), Some(&b"bytes"[..]));
    }
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let source = MemoryStore::new();
    make_sparse(&source, "file");
    let target = FaultyStore::new();
    target.fail_kind(CallKind::Write, Fault::Error(Errno::ENOSPC));
    assert_errno(
        target.adopt(&source, &path("file"), &path("file")),
        Errno::ENOSPC,
    );
    assert_errno(target.info(&path("file")), Errno::ENOENT);
}

#[test]
fn only_plain_files_are_taken() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [source, target] = dirs
        .each_ref()
        .map(|dir| DirectoryStore::open(dir.path()).unwrap());
    create(&source, "file", b"bytes");
    symlink("file", dirs[0].path().join("link")).unwrap();
    let error = target
        .adopt(&source, &path("link"), &path("taken"))
        .unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert_errno(target.info(&path("taken")), Errno::ENOENT);
}

#[test]
fn across_filesystems_it_is_a_copy() {
    let memory = Path::new("/dev/shm");
    let (one, other) = (tempfile::tempdir_in(memory), tempfile::tempdir().unwrap());
    let Ok(one) = one else {
        assert!(!memory.exists(), "/dev/shm cannot be written to");
        return;
    };
    let source = DirectoryStore::open(one.path()).unwrap();
    let target = DirectoryStore::open(other.path()).unwrap();
    make_sparse(&source, "file");
    let same = std::fs::metadata(one.path())
        .map(|m| std::os::unix::fs::MetadataExt::dev(&m))
        .ok()
        == std::fs::metadata(other.path())
            .map(|m| std::os::unix::fs::MetadataExt::dev(&m))
            .ok();
    let how = target.adopt(&source, &path("file"), &path("file")).unwrap();
    assert_eq!(how == Adopted::Linked, same);
    assert_eq!(contents(&target, "file"), Some(sparse()));
}

/// ext4 permits 65 000 links to a file; other filesystems permit more than the test tries.
#[test]
fn when_links_run_out_it_is_a_copy() {
    const TRIED: u32 = 65_100;
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [source, target] = dirs
        .each_ref()
        .map(|dir| DirectoryStore::open(dir.path()).unwrap());
    create(&source, "file", b"bytes");
    for number in 0..TRIED {
        let name = path(&number.to_string());
        let how = target.adopt(&source, &path("file"), &name).unwrap();
        if how != Adopted::Linked {
            assert_eq!(target.info(&name).unwrap().links, 1);
            assert_eq!(
                contents(&target, name.as_str()).as_deref(),
                Some(&b"bytes"[..])
            );
            return;
        }
    }
    assert_eq!(
        source.info(&path("file")).unwrap().links,
        u64::from(TRIED) + 1
    );
}

//! What a deployed volume contains, and that it and its source remain usable.

use super::*;
use bilayer::errno::Errno;
use bilayer::fs::types::{SetAttr, WriteFlags};
use bilayer::meta::page_set::capacity_of_pages;
use bilayer::store::faulty::{CallKind, Fault};
use bilayer::store::memory::MemoryStore;

/// A disk with a volume that contains files of every kind.
fn filled() -> Disk {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| fill(fs, 1));
    disk
}

/// Changes everything that [`fill`] created.
fn change(fs: &Filesystem, seed: u8) {
    let at = |path| find(fs, path);
    let truncate = |node, size| {
        let changes = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        fs.setattr(&ADMIN, node, &changes).unwrap();
    };
    put(fs, ROOT, "small", &[(10, &pattern(seed, 0, 100))]);
    put(
        fs,
        ROOT,
        "second",
        &[(PAGE + 5, &pattern(seed, 0, 2 * PAGE))],
    );
    put(fs, ROOT, "empty", &[(0, &pattern(seed, 0, 3 * PAGE))]);
    put(fs, ROOT, "reserved", &[(0, &pattern(seed, 0, 40))]);
    put(
        fs,
        ROOT,
        &format!("new-{seed}"),
        &[(0, &pattern(seed, 0, 5 * PAGE))],
    );
    truncate(at("dir/large"), (CHUNK / 2 + 17) as u64);
    let sparse = at("dir/sparse");
    let handle = fs.open_file(&ADMIN, sparse, libc::O_RDWR).unwrap();
    fs.fallocate(
        sparse,
        handle,
        PAGE as u64,
        PAGE as u64,
        Fallocate::PunchHole,
    )
    .unwrap();
    fs.release(sparse, handle);
    truncate(at("dir/copy"), PAGE as u64);
    put(fs, at("dir"), "copy", &[(CHUNK - 5, &pattern(seed, 0, 50))]);
    fs.sync().unwrap();
}

#[test]
fn a_deployed_volume_holds_what_the_image_sees() {
    let disk = filled();
    let (before, counted) = (disk.tree("source"), disk.audit("source"));
    let made = disk.deploy("source", "copy");
    assert_eq!(
        made.objects,
        counted.objects - 1,
        "one was made for a reservation alone"
    );
    assert_eq!(made.linked, made.objects);
    assert_eq!(made.inodes, counted.inodes);
    let counts = disk.audit("copy");
    assert_eq!((counts.objects, counts.inodes), (made.objects, made.inodes));
    assert_eq!(counts.pages * 4096, made.bytes);
    assert_eq!(disk.tree("copy"), before);
    assert_eq!(disk.tree("source"), before);
    // Every object is the very file of the source, under the same name.
    let (source, copy) = (disk.at("source"), disk.at("copy"));
    for name in support::audit::objects(&*copy) {
        let path = StorePath::new(&format!("objects/{name}"));
        assert!(copy.info(&path).unwrap().links >= 2);
        source.info(&path).unwrap();
    }
    let volume = disk.volume("copy", None).unwrap();
    assert_eq!(volume.header().volume_id(), made.volume);
    let header = volume.header();
    let from = header.provenance().unwrap();
    assert_eq!(
        (from.volume, &*from.image),
        (
            disk.volume("source", None).unwrap().header().volume_id(),
            "copy"
        )
    );
}

#[test]
fn source_and_copy_change_independently() {
    let disk = filled();
    let before = disk.tree("source");
    disk.deploy("source", "copy");
    disk.with("source", |fs| change(fs, 2));
    let changed = disk.tree("source");
    assert_eq!(disk.tree("copy"), before);
    disk.with("copy", |fs| change(fs, 3));
    let other = disk.tree("copy");
    assert_eq!(disk.tree("source"), changed);
    // Again, now that both have parts of their own on top.
    disk.with("copy", |fs| change(fs, 4));
    disk.with("source", |fs| change(fs, 5));
    assert_ne!(disk.tree("copy"), other);
    assert_ne!(disk.tree("source"), changed);
    let last = disk.tree("copy");
    assert_eq!(disk.tree_of("source", "copy"), before, "the image itself");
    // Everything in one volume is removed.
    disk.with("source", |fs| {
        fs.delete_view(ViewKind::Image, "copy").unwrap();
        let dir = find(fs, "dir");
        for name in names(fs, dir) {
            fs.unlink(dir, name.as_bytes()).unwrap();
        }
        fs.rmdir(ROOT, b"dir").unwrap();
        for name in names(fs, ROOT) {
            fs.unlink(ROOT, name.as_bytes()).unwrap();
        }
        fs.finish_purge().unwrap();
    });
    assert_eq!(disk.audit("source").objects, 0);
    assert_eq!(disk.tree("copy"), last);
    disk.audit("copy");
}

#[test]
fn a_copy_outlives_the_directory_of_its_source() {
    let disk = filled();
    let before = disk.tree("source");
    disk.deploy("source", "copy");
    let source = disk.at("source");
    for name in support::audit::objects(&*source) {
        let path = StorePath::new(&format!("objects/{name}"));
        source.unlink(&path).unwrap();
    }
    source.unlink(&StorePath::new("volume.json")).unwrap();
    assert_eq!(disk.tree("copy"), before);
    disk.audit("copy");
}

#[test]
fn a_copy_of_a_copy() {
    let disk = filled();
    disk.deploy("source", "copy");
    disk.with("copy", |fs| change(fs, 2));
    let before = disk.tree("copy");
    disk.deploy("copy", "third");
    disk.with("copy", |fs| change(fs, 3));
    assert_eq!(disk.tree("third"), before);
    let volume = disk.volume("third", None).unwrap();
    let mut epochs: Vec<u32> = volume.keys.iter().map(|set| set.epoch.0).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3]);
    drop(volume);
    disk.with("third", |fs| change(fs, 4));
    assert_ne!(disk.tree("third"), before);
}

#[test]
fn unlinked_files_in_use_are_left_out() {
    let disk = filled();
    let fs = disk.open("source");
    let (attr, handle) = fs
        .create(&USER, ROOT, b"gone", 0o600, libc::O_RDWR)
        .unwrap();
    let bytes = pattern(9, 0, 3 * PAGE);
    fs.write(attr.node, handle, 0, &bytes, WriteFlags::default())
        .unwrap();
    fs.set_xattr(&USER, attr.node, b"user.a", b"b", XattrMode::Any)
        .unwrap();
    fs.unlink(ROOT, b"gone").unwrap();
    let before = tree(&fs);
    make_image(&fs, "copy");
    fs.release(attr.node, handle);
    fs.forget(attr.node, 1);
    fs.close().unwrap();
    drop(fs);
    let counted = disk.audit("source");
    let made = disk.deploy("source", "copy");
    assert_eq!(made.inodes, counted.inodes);
    assert_eq!(disk.tree("copy"), before);
    assert_eq!(disk.audit("copy").objects, made.objects);
}

#[test]
fn without_links_it_is_a_copy() {
    let disk = filled();
    let before = disk.tree("source");
    disk.store
        .fail_kind(CallKind::Link, Fault::Error(Errno::EMLINK));
    let made = disk.deploy("source", "copy");
    assert_eq!((made.linked, made.copied), (0, made.objects));
    disk.store.clear_faults();
    assert_eq!(disk.tree("copy"), before);
    disk.audit("copy");
    for name in support::audit::objects(&*disk.at("copy")) {
        let path = StorePath::new(&format!("copy/objects/{name}"));
        assert_eq!(disk.store.info(&path).unwrap().links, 1);
    }
    // The link limit is reached half-way: the rest is decided file by file.
    let count = std::sync::atomic::AtomicUsize::new(0);
    let rule = move |call: &bilayer::store::faulty::Call<'_>| {
        call.kind == CallKind::Link && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 2
    };
    disk.store.fail_when(rule, Fault::Error(Errno::EMLINK));
    let made = disk.deploy("source", "third");
    assert_eq!((made.linked, made.copied), (2, made.objects - 2));
    assert_eq!(disk.tree("third"), before);
}

#[test]
fn into_another_store() {
    let disk = filled();
    let before = disk.tree("source");
    let volume = disk.volume("source", None).unwrap();
    let meta = open_meta(&volume).unwrap();
    let source = Source {
        volume: &volume,
        meta: &meta,
        view: View::LIVE,
        image: "any",
    };
    let target: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let made = deploy(&source, Arc::clone(&target), &disk.options(), &NoProgress).unwrap();
    assert_eq!(made.copied, made.objects);
    let options = OpenOptions {
        keystore: disk.keystore.path().join("platform"),
        ..OpenOptions::default()
    };
    let copy = volume::open(target, &options).unwrap();
    let fs = Filesystem::open(copy, quiet()).unwrap();
    assert_eq!(tree(&fs), before);
    fs.close().unwrap();
}

#[test]
fn a_missing_object_is_named_and_nothing_is_left() {
    let disk = filled();
    let source = disk.at("source");
    // Objects that no record names do not matter.
    source.create_dir(&StorePath::new("objects/notes")).unwrap();
    source
        .open(&StorePath::new("objects/00000001.txt"), OpenMode::CreateNew)
        .unwrap();
    disk.deploy("source", "whole");
    disk.with("source", |fs| make_image(fs, "copy"));
    let names = support::audit::objects(&*disk.at("whole"));
    for name in &names {
        let path = StorePath::new(&format!("objects/{name}"));
        let aside = StorePath::new("objects/aside");
        source.rename(&path, &aside).unwrap();
        let error = disk
            .deploy_with("source", "copy", &disk.options())
            .unwrap_err();
        let (_, object) = name.split_once('/').unwrap();
        assert!(error.to_string().contains(object), "{error}");
        assert!(matches!(error, ImageError::MissingObject { .. }) && error.hint().is_some());
        assert_eq!(disk.at("copy").list(&StorePath::root()).unwrap(), []);
        source.rename(&aside, &path).unwrap();
    }
    disk.deploy("source", "copy");
    disk.audit("copy");
}

#[test]
fn sizes() {
    let disk = filled();
    let made = disk.deploy("source", "copy");
    let pages = made.bytes / 4096;
    disk.with("source", |fs| make_image(fs, "small"));
    let with = |size| DeployOptions {
        size_bytes: Some(size),
        ..disk.options()
    };
    let least = capacity_of_pages(pages);
    let error = disk
        .deploy_with("source", "small", &with(least / 2))
        .unwrap_err();
    assert!(matches!(error, ImageError::TooSmall { .. }) && error.hint().is_some());
    assert_eq!(disk.at("small").list(&StorePath::root()).unwrap(), []);
    let size = 2 * least;
    disk.deploy_with("source", "small", &with(size)).unwrap();
    disk.with("small", |fs| assert_eq!(fs.usage().limit_bytes, Some(size)));
    // Inherited data counts, and the limit is inherited.
    disk.deploy("small", "again");
    disk.with("again", |fs| {
        assert_eq!(fs.usage().limit_bytes, Some(size));
        assert_eq!(fs.usage().contents_bytes, made.bytes);
        let (attr, handle) = fs
            .create(&USER, ROOT, b"much", 0o600, libc::O_RDWR)
            .unwrap();
        let bytes = vec![7; size as usize];
        let written = fs.write(attr.node, handle, 0, &bytes, WriteFlags::default());
        assert!(written != Ok(bytes.len()), "{written:?}");
        fs.release(attr.node, handle);
    });
}

#[test]
fn an_occupied_directory_is_refused() {
    let disk = filled();
    for name in ["source", "copy"] {
        disk.with("source", |fs| make_image(fs, name));
    }
    let error = disk
        .deploy_with("source", "source", &disk.options())
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Volume(VolumeError::Occupied(_))),
        "{error:?}"
    );
    let bad = DeployOptions {
        customer_key: Some(KeyUri::parse("file:/nonexistent/key.pem").unwrap()),
        ..disk.options()
    };
    disk.deploy_with("source", "copy", &bad).unwrap_err();
    assert_eq!(disk.at("copy").list(&StorePath::root()).unwrap(), []);
}

//! Space on the disk after views are deleted: the pages that other views need, and no others.

use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::Fallocate;
use bilayer::store::Store;
use bilayer::store::faulty::FaultyStore;

use crate::support::{CHUNK, Mount, PAGE, ROOT, audit, pattern};

fn take(mount: &Mount, name: &str) {
    let fs = &mount.fs;
    fs.create_view(ViewKind::Snapshot, name, None, "").unwrap();
}

fn drop_it(mount: &Mount, name: &str) {
    mount.fs.delete_view(ViewKind::Snapshot, name).unwrap();
}

fn write(mount: &Mount, name: &str, at: usize, bytes: &[u8]) {
    let node = mount.at(name);
    let handle = mount.open_rw(node);
    mount.put(node, handle, at as u64, bytes);
    mount.fs.release(node, handle);
}

/// Pages that the objects take on the disk.
fn allocated(store: &FaultyStore) -> u64 {
    let objects = audit::objects(store);
    let paths = objects.iter().map(|name| format!("objects/{name}"));
    let bytes = paths.map(|path| {
        let path = bilayer::store::StorePath::new(&path);
        store.info(&path).unwrap().allocated_bytes
    });
    bytes.sum::<u64>() / 4096
}

/// Finishes the work that the background thread began when views were deleted.
fn settle(mount: Mount) -> Mount {
    mount.fs.finish_purge().unwrap();
    let mount = mount.reopen();
    mount.fs.finish_purge().unwrap();
    mount
}

fn used(mount: &Mount) -> u64 {
    mount.fs.usage().contents_bytes / 4096
}

/// A file with a snapshot before each of its changes, and the contents of each.
fn history(mount: &Mount) -> Vec<(String, Vec<u8>)> {
    let mut contents = pattern(0, 0, CHUNK + 500_000);
    mount.file(ROOT, "f", &contents);
    let mut shown = Vec::new();
    for round in 0..5u8 {
        let name = format!("s{round}");
        take(mount, &name);
        shown.push((format!(".snapshots/{name}/f"), contents.clone()));
        for piece in 0..4 {
            let at = (usize::from(round) * 611_953 + piece * 1_000_003) % (CHUNK + 400_000);
            let bytes = pattern(round + 1, at as u64, 5 * PAGE);
            write(mount, "f", at, &bytes);
            contents[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        // The same page repeatedly.
        write(mount, "f", 10 * PAGE, &pattern(round + 1, 0, PAGE));
        contents[10 * PAGE..11 * PAGE].copy_from_slice(&pattern(round + 1, 0, PAGE));
    }
    shown.push(("f".into(), contents));
    shown
}

fn check(mount: &Mount, shown: &[(String, Vec<u8>)]) {
    for (path, contents) in shown {
        assert!(&mount.contents(mount.at(path)) == contents, "{path}");
    }
}

#[test]
fn without_views_only_visible_pages_are_left() {
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        let mount = Mount::new();
        let mut shown = history(&mount);
        assert!(allocated(&mount.store) > used(&mount));
        for round in order {
            let name = format!("s{round}");
            drop_it(&mount, &name);
            mount.fs.finish_purge().unwrap();
            shown.retain(|(path, _)| *path != format!(".snapshots/{name}/f"));
            check(&mount, &shown);
        }
        let mount = settle(mount);
        assert_eq!(allocated(&mount.store), used(&mount));
        check(&mount, &shown);
        // New data may be written in place or elsewhere.
        write(&mount, "f", 10 * PAGE, &pattern(77, 0, 30 * PAGE));
        shown[0].1[10 * PAGE..40 * PAGE].copy_from_slice(&pattern(77, 0, 30 * PAGE));
        let mount = mount.reopen();
        check(&mount, &shown);
        mount.finish();
    }
}

#[test]
fn holes_and_truncations_give_back_what_a_view_needed() {
    let mount = Mount::new();
    let size = CHUNK;
    let mut contents = pattern(1, 0, size);
    let file = mount.file(ROOT, "f", &contents);
    take(&mount, "s");
    let handle = mount.open_rw(file);
    let hole = 100 * PAGE..600 * PAGE;
    let len = hole.len() as u64;
    let punch = Fallocate::PunchHole;
    mount
        .fs
        .fallocate(file, handle, hole.start as u64, len, punch)
        .unwrap();
    contents[hole].fill(0);
    mount.fs.release(file, handle);
    mount.truncate(file, 900 * PAGE as u64).unwrap();
    contents.truncate(900 * PAGE);
    mount.fs.sync().unwrap();
    assert_eq!(allocated(&mount.store), 1041);
    drop_it(&mount, "s");
    let mount = settle(mount);
    assert!(mount.contents(file) == contents);
    assert_eq!(used(&mount), 400);
    assert_eq!(allocated(&mount.store), 400);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("f")) == contents);
    mount.finish();
}

/// A file that only snapshots have gives back the pages that only the deleted one saw.
#[test]
fn deleted_files_give_back_their_pages_too() {
    let mount = Mount::new();
    let mut contents = pattern(1, 0, CHUNK);
    let file = mount.file(ROOT, "f", &contents);
    take(&mount, "one");
    write(&mount, "f", 0, &pattern(2, 0, 500 * PAGE));
    contents[..500 * PAGE].copy_from_slice(&pattern(2, 0, 500 * PAGE));
    take(&mount, "two");
    mount.truncate(file, 0).unwrap();
    write(&mount, "f", 0, b"small again");
    let check = |mount: &Mount| {
        assert!(mount.contents(mount.at(".snapshots/two/f")) == contents);
    };
    drop_it(&mount, "one");
    let mount = settle(mount);
    check(&mount);
    assert_eq!(allocated(&mount.store), 1041);
    mount.fs.unlink(ROOT, b"f").unwrap();
    let mount = mount.reopen();
    check(&mount);
    drop_it(&mount, "two");
    let mount = settle(mount);
    assert_eq!(allocated(&mount.store), 0);
    mount.finish();
}

/// Pages that are being written are neither lost nor given back.
#[test]
fn pages_that_are_not_durable_stay() {
    let mount = Mount::new();
    let mut contents = pattern(1, 0, CHUNK);
    let file = mount.file(ROOT, "f", &contents);
    take(&mount, "one");
    let handle = mount.open_rw(file);
    for at in [0, 300 * PAGE] {
        mount.put(file, handle, at as u64, &pattern(2, 0, 50 * PAGE));
        contents[at..at + 50 * PAGE].copy_from_slice(&pattern(2, 0, 50 * PAGE));
        if at == 0 {
            drop_it(&mount, "one");
        }
        mount.fs.finish_purge().unwrap();
    }
    let unsynced = pattern(3, 0, 200 * PAGE);
    mount.put(file, handle, 0, &unsynced);
    contents[..200 * PAGE].copy_from_slice(&unsynced);
    mount.fs.finish_purge().unwrap();
    assert!(mount.contents(file) == contents);
    mount.fs.release(file, handle);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("f")) == contents);
    mount.finish();
}

/// The contents of the other name are in the same object.
#[test]
fn pages_that_a_copy_shares_stay() {
    let mount = Mount::new();
    let contents = pattern(1, 0, CHUNK);
    let file = mount.file(ROOT, "f", &contents);
    let to = mount.file(ROOT, "copy", b"");
    let len = CHUNK as u64;
    assert_eq!(mount.fs.copy_file_range(file, 0, to, 0, len), Ok(len));
    take(&mount, "s");
    let changed = pattern(2, 0, 700 * PAGE);
    write(&mount, "f", 0, &changed);
    drop_it(&mount, "s");
    mount.fs.finish_purge().unwrap();
    assert!(mount.contents(mount.at("copy")) == contents);
    let mount = mount.reopen();
    assert!(mount.contents(mount.at("copy")) == contents);
    assert!(mount.contents(mount.at("f"))[..700 * PAGE] == changed);
    mount.finish();
}

/// A power cut at regularly chosen calls of the store while the space of a view is given back.
#[test]
fn a_cut_anywhere_loses_nothing_and_leaks_nothing() {
    let mut cuts = 0;
    for call in (1..).step_by(3) {
        let mount = Mount::new();
        let mut shown = history(&mount);
        mount.fs.sync().unwrap();
        let store = mount.store.clone();
        for name in ["s0", "s3", "s4"] {
            drop_it(&mount, name);
            shown.retain(|(path, _)| *path != format!(".snapshots/{name}/f"));
        }
        // The background thread runs first: the work that it begins is finished here.
        store.cut_at_call(store.calls() + call);
        let _ = mount.fs.finish_purge();
        let cut = store.is_cut();
        let survivor = store.power_cut(call);
        let (keystore, options) = (mount.keystore.clone(), mount.options.clone());
        let _ = mount.fs.close();
        drop(mount);
        let mount = Mount::open(survivor, keystore, options).unwrap();
        check(&mount, &shown);
        mount.fs.finish_purge().unwrap();
        check(&mount, &shown);
        for name in ["s1", "s2"] {
            drop_it(&mount, name);
            shown.retain(|(path, _)| *path != format!(".snapshots/{name}/f"));
        }
        let mount = settle(mount);
        check(&mount, &shown);
        assert_eq!(allocated(&mount.store), used(&mount), "cut at call {call}");
        mount.finish();
        if !cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "{cuts} calls of the store");
}

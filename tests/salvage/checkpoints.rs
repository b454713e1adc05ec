//! Checkpoints: their contents, how many are kept, and that an interrupted one does no harm.

use std::sync::Arc;
use std::time::Duration;

use bilayer::check::{CheckOptions, Finding, Kind, NoProgress, repair};
use bilayer::errno::Errno;
use bilayer::fs::types::WriteFlags;
use bilayer::meta::checkpoint::{self, CheckpointError};
use bilayer::meta::records::ViewKind;
use bilayer::store::faulty::{CallKind, Fault, FaultyOptions, FaultyStore, WriteUnit};
use bilayer::store::{OpenMode, Store, StorePath};

use crate::support::{Mount, ROOT, audit, fork, format, keystore, open_volume, pattern, quiet};
use crate::victim::Victim;

fn names(store: &dyn Store) -> Vec<String> {
    let entries = store
        .list(&StorePath::new("checkpoints"))
        .unwrap_or_default();
    let mut names: Vec<String> = entries.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| name != "volume.json");
    names.sort();
    names
}

#[test]
fn the_two_newest_are_kept_and_never_written_again() {
    let mount = Mount::new();
    let mut made = Vec::new();
    for round in 0..4u8 {
        mount.file(ROOT, &format!("file-{round}"), &pattern(round, 0, 9000));
        mount.fs.sync().unwrap();
        made.push(mount.fs.checkpoint_now().unwrap());
    }
    assert!(
        made.windows(2)
            .all(|pair| pair[0].sequence < pair[1].sequence)
    );
    let mut kept: Vec<String> = made[2..].iter().map(|made| made.name.to_string()).collect();
    kept.sort();
    assert_eq!(names(&mount.store), kept);
    let keys = Arc::clone(&mount.fs.volume().keys);
    let (listed, refused) = checkpoint::list(&mount.store, keys.active()).unwrap();
    assert!(refused.is_empty());
    let listed: Vec<_> = listed
        .into_iter()
        .map(|(checkpoint, _)| checkpoint)
        .collect();
    assert_eq!(listed, [made[3], made[2]]);
    mount.finish();
}

#[test]
fn a_checkpoint_contains_kept_views() {
    let mount = Mount::new();
    mount.file(ROOT, "then", b"as it was");
    let taken = mount.fs.create_view(ViewKind::Snapshot, "monday", None, "");
    taken.unwrap();
    mount.fs.unlink(ROOT, b"then").unwrap();
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    let (store, keystore) = (mount.store.clone(), Arc::clone(&mount.keystore));
    mount.fs.close().unwrap();
    drop(mount);
    store.unlink(&StorePath::new("meta")).unwrap();
    let victim = Victim::of(&store, keystore);
    let options = bilayer::salvage::Options {
        all_views: true,
        ..Default::default()
    };
    let taken = victim.salvage_with(&store, None, &options).unwrap();
    assert!(taken.files.is_empty());
    let then = std::fs::read(taken.path("snapshots/monday/then")).unwrap();
    assert_eq!(then, b"as it was");
}

/// A volume with one checkpoint and a durable change after it.
fn with_one() -> (FaultyStore, Arc<tempfile::TempDir>) {
    let mount = Mount::new();
    mount.file(ROOT, "first", &pattern(1, 0, 9000));
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    mount.file(ROOT, "second", b"second");
    mount.fs.close().unwrap();
    let keystore = Arc::clone(&mount.keystore);
    (mount.store, keystore)
}

/// One of the checkpoints opens, and all of it can be read.
fn whole_checkpoint(store: &FaultyStore, keystore: &Arc<tempfile::TempDir>) {
    let copy = FaultyStore::from_memory(&store.to_memory(), WriteUnit::Page);
    copy.unlink(&StorePath::new("meta")).unwrap();
    let victim = Victim::of(&copy, Arc::clone(keystore));
    let taken = victim.salvage(&copy).unwrap();
    let first = taken.files.get(std::path::Path::new("first"));
    assert!(first == Some(&pattern(1, 0, 9000)), "{}", taken.report);
}

/// The same, and a part of a second one.
fn with_one_and_a_part() -> (FaultyStore, Arc<tempfile::TempDir>) {
    let (store, keystore) = with_one();
    let mount = Mount::open(store, keystore, quiet()).unwrap();
    for file in 0..150u8 {
        mount.file(ROOT, &format!("file-{file}"), &pattern(file, 0, 2000));
    }
    mount.fs.sync().unwrap();
    let stop = || {
        let path =
            unfinished(&mount.store).map(|name| StorePath::new(&format!("checkpoints/{name}")));
        let info = path.and_then(|path| mount.store.info(&path).ok());
        info.is_some_and(|info| info.allocated_bytes > 200_000)
    };
    let made = mount.fs.checkpoint_throttled(&stop);
    assert!(matches!(made, Err(CheckpointError::Stopped)), "{made:?}");
    assert!(unfinished(&mount.store).is_some());
    mount.fs.close().unwrap();
    let keystore = Arc::clone(&mount.keystore);
    (mount.store, keystore)
}

/// Name of the unfinished checkpoint.
fn unfinished(store: &dyn Store) -> Option<String> {
    names(store).into_iter().find(|name| name.ends_with(".new"))
}

/// Applies a fault at each call of making a checkpoint in turn; `after` gets the store that is
/// left.
fn at_each_call(
    origin: (FaultyStore, Arc<tempfile::TempDir>),
    happens: impl Fn(&FaultyStore, u64),
    after: impl Fn(u64, Mount, Result<(), CheckpointError>) -> Option<FaultyStore>,
) -> u64 {
    let (origin, keystore) = origin;
    let origin = origin.to_memory();
    for number in 1.. {
        let store = FaultyStore::from_memory(&origin, WriteUnit::Page);
        let mount = Mount::open(store, fork(&keystore), quiet()).unwrap();
        mount.file(ROOT, "third", b"third");
        mount.fs.sync().unwrap();
        let calls = mount.store.calls();
        happens(&mount.store, calls + number);
        let made = mount.fs.checkpoint_now().map(drop);
        if made.is_ok() && mount.store.calls() < calls + number {
            // From here on no call fails.
            let _ = mount.fs.close();
            return number;
        }
        if let Some(left) = after(number, mount, made) {
            whole_checkpoint(&left, &keystore);
            let mount = Mount::open(left, fork(&keystore), quiet()).unwrap();
            for name in ["first", "second", "third"] {
                mount.at(name);
            }
            mount.fs.checkpoint_now().unwrap();
            let names = names(&mount.store);
            assert!(names.len() <= 2 && names.iter().all(|name| !name.ends_with(".new")));
            mount.finish();
        }
    }
    unreachable!("numbers do not end")
}

#[test]
fn the_power_may_fail_at_any_call() {
    for origin in [with_one(), with_one_and_a_part()] {
        let calls = at_each_call(
            origin,
            |store, call| store.cut_at_call(call),
            |number, mount, made| {
                let survivor = mount.store.power_cut(number * 7);
                drop(made);
                let _ = mount.fs.close();
                Some(survivor)
            },
        );
        assert!(calls > 20, "{calls}");
    }
}

#[test]
fn any_call_may_fail_and_the_volume_stays_usable() {
    for errno in [Errno::EIO, Errno::ENOSPC] {
        let fault = Fault::Error(errno);
        at_each_call(
            with_one_and_a_part(),
            |store, call| store.fail_call(call, fault),
            |_, mount, _| {
                mount.store.clear_faults();
                // Not latched: the volume is still usable.
                mount.file(ROOT, "fourth", b"fourth");
                mount.fs.sync().unwrap();
                mount.fs.close().unwrap();
                Some(mount.store)
            },
        );
    }
}

#[test]
fn a_checkpoint_gives_way_on_a_full_disk() {
    let store = FaultyStore::with_options(FaultyOptions {
        capacity_bytes: Some(24 << 20),
        ..FaultyOptions::default()
    });
    let keystore = keystore();
    format(&store, keystore.path(), None);
    let options = bilayer::fs::FilesystemOptions {
        checkpoint_interval: Some(Duration::from_secs(100_000)),
        ..quiet()
    };
    let mount = Mount::open(store, keystore, options).unwrap();
    mount.fs.checkpoint_now().unwrap();
    mount.file(ROOT, "one", b"one");
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    assert_eq!(names(&mount.store).len(), 2);
    let (node, handle) = mount.create(ROOT, "fill");
    let block = pattern(3, 0, 1 << 20);
    let mut at = 0;
    while mount
        .fs
        .write(node, handle, at, &block, WriteFlags::default())
        .is_ok()
    {
        at += block.len() as u64;
    }
    mount.fs.release(node, handle);
    assert!(at > 0);
    assert_eq!(names(&mount.store).len(), 1, "the older one gives way");
    assert!(matches!(
        mount.fs.checkpoint_now(),
        Err(CheckpointError::NoSpace)
    ));
    mount.fs.unlink(ROOT, b"fill").unwrap();
    mount.fs.sync().unwrap();
    mount.finish();
}

#[test]
fn one_is_made_at_a_clean_end_if_something_was_changed() {
    let options = bilayer::fs::FilesystemOptions {
        checkpoint_interval: Some(Duration::from_secs(100_000)),
        ..quiet()
    };
    let mount = Mount::with(None, options);
    mount.file(ROOT, "file", b"contents");
    let mount = mount.reopen();
    let first = names(&mount.store);
    assert_eq!(first.len(), 1);
    let mount = mount.reopen();
    assert_eq!(names(&mount.store), first, "nothing was changed");
    mount.file(ROOT, "more", b"contents");
    let mount = mount.reopen();
    assert_eq!(names(&mount.store).len(), 2);
    assert!(mount.fs.usage().checkpoint_age_seconds.is_some());
    mount.finish();
}

#[test]
fn an_unfinished_checkpoint_is_finished_by_the_next_use() {
    let (store, keystore) = with_one_and_a_part();
    let left = unfinished(&store).unwrap();
    let before = names(&store);
    // A use without checkpoints leaves it.
    let mount = Mount::open(store, keystore, quiet()).unwrap();
    let options = bilayer::fs::FilesystemOptions {
        checkpoint_interval: Some(Duration::from_secs(100_000)),
        ..quiet()
    };
    let (store, keystore) = (mount.store.clone(), Arc::clone(&mount.keystore));
    mount.fs.close().unwrap();
    drop(mount);
    assert_eq!(names(&store), before);
    let mount = Mount::open(store, keystore, options).unwrap();
    assert_eq!(names(&mount.store), before);
    let taken = mount.fs.checkpoint_bytes().unwrap();
    assert!(taken > 100_000, "{taken}");
    let mount = mount.reopen();
    let name = left.strip_suffix(".new").unwrap();
    assert!(names(&mount.store).iter().any(|made| made == name));
    assert!(unfinished(&mount.store).is_none());
    mount.finish();
}

#[test]
fn an_unfinished_checkpoint_is_no_fault() {
    let (store, keystore) = with_one_and_a_part();
    let volume = open_volume(&store, keystore.path(), false);
    let report = repair(&volume, &CheckOptions::default(), &NoProgress).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn metadata_that_ends_with_a_checkpoint_is_not_older_than_it() {
    let mount = Mount::new();
    mount.file(ROOT, "first", &pattern(1, 0, 9000));
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    let left = FaultyStore::from_memory(&mount.store.to_memory(), WriteUnit::Page);
    let volume = open_volume(&left, fork(&mount.keystore).path(), false);
    let report = repair(&volume, &CheckOptions::default(), &NoProgress).unwrap();
    let is_rolled_back = |finding: &Finding| finding.kind == Kind::RolledBack;
    assert!(
        !report.findings.iter().any(is_rolled_back),
        "{:?}",
        report.findings
    );
    drop(volume);
    mount.finish();
}

#[test]
fn an_unreadable_page_ends_the_attempt_and_keeps_the_others() {
    let (store, keystore) = with_one();
    let before = names(&store);
    let mount = Mount::open(store, keystore, quiet()).unwrap();
    mount
        .store
        .fail_kind(CallKind::Read, Fault::Error(Errno::EIO));
    let made = mount.fs.checkpoint_now();
    mount.store.clear_faults();
    assert!(made.is_err());
    assert_eq!(names(&mount.store), before);
    mount.file(ROOT, "after", b"it goes on");
    mount.fs.close().unwrap();
    let Mount {
        fs,
        store,
        keystore,
        ..
    } = mount;
    drop(fs);
    drop(open_volume(&store, keystore.path(), true));
}

fn bytes_of(store: &FaultyStore, path: &str) -> Vec<u8> {
    let file = store.open(&StorePath::new(path), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn put_back(store: &FaultyStore, path: &str, bytes: &[u8]) {
    let path = StorePath::new(path);
    let file = store.open(&path, OpenMode::ReadWrite).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_at(bytes, 0).unwrap();
}

/// Even if the keystore does not know it: the checkpoint does.
#[test]
fn metadata_older_than_a_checkpoint_is_reported() {
    let mount = Mount::new();
    mount.file(ROOT, "first", &pattern(1, 0, 9000));
    let mount = mount.reopen();
    let (store, keystore) = (mount.store.clone(), Arc::clone(&mount.keystore));
    mount.fs.close().unwrap();
    drop(mount);
    let (old, unknowing) = (bytes_of(&store, "meta"), fork(&keystore));
    let mount = Mount::open(store.clone(), keystore, quiet()).unwrap();
    mount.file(ROOT, "second", &pattern(2, 0, 9000));
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    mount.fs.close().unwrap();
    drop(mount);
    put_back(&store, "meta", &old);

    let victim = Victim::of(&store, Arc::clone(&unknowing));
    let taken = victim.salvage(&store).unwrap();
    assert!(taken.report.contains("an older copy was put back"));
    let second = taken.files.get(std::path::Path::new("second"));
    assert!(second == Some(&pattern(2, 0, 9000)), "{}", taken.report);

    let objects = audit::objects(&store);
    let volume = open_volume(&store, unknowing.path(), false);
    let report = repair(&volume, &CheckOptions::default(), &NoProgress).unwrap();
    let is_rolled_back = |finding: &Finding| finding.kind == Kind::RolledBack;
    assert!(
        report.findings.iter().any(is_rolled_back),
        "{:?}",
        report.findings
    );
    assert_eq!(audit::objects(&store), objects, "nothing is removed then");
}

#[test]
fn a_damaged_superblock_never_takes_the_place_of_its_spare() {
    let mount = Mount::new();
    mount.file(ROOT, "first", b"first");
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    let spare = bytes_of(&mount.store, "checkpoints/volume.json");
    assert_eq!(bytes_of(&mount.store, "volume.json"), spare);
    // It still parses: one digit of its MAC is changed.
    let mut damaged = spare.clone();
    let digit = damaged.len() - 5;
    damaged[digit] = if damaged[digit] == b'0' { b'1' } else { b'0' };
    put_back(&mount.store, "volume.json", &damaged);
    mount.file(ROOT, "second", b"second");
    mount.fs.sync().unwrap();
    mount.fs.checkpoint_now().unwrap();
    assert_eq!(bytes_of(&mount.store, "checkpoints/volume.json"), spare);
    put_back(&mount.store, "volume.json", &spare);
    mount.finish();
}

//! The power fails, or the disk does, at every call of a deployment.

use super::*;
use bilayer::errno::Errno;
use bilayer::store::faulty::{CallKind, Fault, WriteUnit};
use bilayer::store::memory::MemoryStore;

/// A disk with a small volume of every kind of record, and what is in it.
fn small() -> (MemoryStore, Arc<tempfile::TempDir>, Tree) {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| {
        put(fs, ROOT, "small", &[(0, &pattern(1, 0, 700))]);
        put(fs, ROOT, "pages", &[(0, &pattern(1, 0, 3 * PAGE))]);
        let dir = fs.mkdir(&USER, ROOT, b"dir", 0o755).unwrap().node;
        put(fs, dir, "other", &[(PAGE, &pattern(2, 0, PAGE))]);
        fs.forget(dir, 1);
        make_image(fs, "copy");
    });
    disk.at("copy");
    let tree = disk.tree("source");
    (disk.store.to_memory(), disk.keystore, tree)
}

/// The source is whole, and the target is a whole volume or can be deployed into.
fn check(disk: &Disk, expected: &Tree, reported: bool, what: &str) {
    assert_eq!(&disk.tree("source"), expected, "{what}");
    let opened = disk.volume("copy", None);
    assert!(!reported || opened.is_ok(), "{what}: it was reported made");
    match opened.map(drop) {
        Ok(()) => {}
        Err(VolumeError::NotAVolume) => {
            disk.deploy("source", "copy");
        }
        Err(error) => panic!("{what}: {error:?}"),
    }
    assert_eq!(&disk.tree("copy"), expected, "{what}");
    disk.audit("copy");
    disk.audit("source");
}

fn cut_everywhere(links: bool, each_file: bool) {
    let (base, keystore, expected) = small();
    let mut whole = 0;
    for call in 1.. {
        let store = FaultyStore::from_memory(&base, WriteUnit::Sector);
        if !links {
            store.fail_kind(CallKind::Link, Fault::Error(Errno::EXDEV));
        }
        if each_file {
            store.sync_each_file();
        }
        store.cut_at_call(call);
        let disk = Disk {
            store,
            keystore: fork(&keystore),
        };
        let made = disk.deploy_with("source", "copy", &disk.options());
        let cut = disk.store.is_cut();
        for seed in 0..3 {
            let survivor = Disk {
                store: disk.store.survivor(seed),
                keystore: fork(&disk.keystore),
            };
            let what = format!("links {links}, each file {each_file}, call {call}, seed {seed}");
            whole += u32::from(survivor.volume("copy", None).is_ok());
            check(&survivor, &expected, made.is_ok(), &what);
        }
        if !cut {
            assert!(made.is_ok() && call > 50);
            break;
        }
    }
    assert!(whole > 3, "some cuts fall behind the superblock");
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_links() {
    cut_everywhere(true, false);
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_copies() {
    cut_everywhere(false, false);
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_copies_that_are_synced_one_by_one() {
    cut_everywhere(false, true);
}

#[test]
fn an_error_at_every_call_takes_the_target_away() {
    let (base, keystore, expected) = small();
    for call in 1.. {
        let store = FaultyStore::from_memory(&base, WriteUnit::Page);
        let disk = Disk {
            store: store.clone(),
            keystore: fork(&keystore),
        };
        store.fail_call(call, Fault::Error(Errno::ENOSPC));
        let made = disk.deploy_with("source", "copy", &disk.options());
        let failed = store.calls() >= call;
        store.clear_faults();
        if made.is_err() {
            assert!(failed, "call {call}: {made:?}");
            let left = disk.at("copy").list(&StorePath::root()).unwrap();
            assert_eq!(left, [], "call {call}: {made:?}");
        }
        check(&disk, &expected, made.is_ok(), &format!("call {call}"));
        if !failed {
            break;
        }
    }
}

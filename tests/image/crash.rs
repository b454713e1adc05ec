//! A power cut, or an error of the disk, at every call of a deployment.

use super::inheritance::new_key;
use super::*;
use bilayer::errno::Errno;
use bilayer::store::faulty::{CallKind, Fault, WriteUnit};
use bilayer::store::memory::MemoryStore;

/// A disk with a small volume with every kind of record, and its contents.
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

/// How objects get into the new volume.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Links,
    Copies,
    /// Each file is synced by itself.
    CopiesOneByOne,
    /// Re-sealed, for another customer key.
    Resealing,
    /// Re-sealed, with each file synced by itself.
    ResealingOneByOne,
}

impl By {
    fn reseals(self) -> bool {
        matches!(self, Self::Resealing | Self::ResealingOneByOne)
    }
}

/// A deployment that can be repeated.
struct Case {
    by: By,
    base: MemoryStore,
    keystore: Arc<tempfile::TempDir>,
    expected: Tree,
    key: Option<KeyUri>,
}

impl Case {
    fn new(by: By) -> Self {
        let (base, keystore, expected) = small();
        let here = Disk {
            store: FaultyStore::new(),
            keystore: Arc::clone(&keystore),
        };
        Self {
            by,
            base,
            key: by.reseals().then(|| new_key(&here, "other.pem")),
            keystore,
            expected,
        }
    }

    fn disk(&self, unit: WriteUnit) -> Disk {
        let store = FaultyStore::from_memory(&self.base, unit);
        if matches!(self.by, By::Copies | By::CopiesOneByOne) {
            store.fail_kind(CallKind::Link, Fault::Error(Errno::EXDEV));
        }
        if matches!(self.by, By::CopiesOneByOne | By::ResealingOneByOne) {
            store.sync_each_file();
        }
        Disk {
            store,
            keystore: fork(&self.keystore),
        }
    }

    fn deploy(&self, disk: &Disk) -> Result<Deployed, ImageError> {
        let options = DeployOptions {
            customer_key: self.key.clone(),
            ..disk.options()
        };
        disk.deploy_with("source", "copy", &options)
    }

    /// The source is intact, and the target is a whole volume or can be deployed into.
    fn check(&self, disk: &Disk, reported: bool, what: &str) {
        assert_eq!(disk.tree("source"), self.expected, "{what}");
        let open = || disk.volume("copy", self.key.as_ref());
        let opened = open();
        assert!(!reported || opened.is_ok(), "{what}: it was reported made");
        match opened.map(drop) {
            Ok(()) => {}
            Err(VolumeError::NotAVolume) => {
                let made = self.deploy(disk).unwrap();
                assert_eq!(self.by.reseals(), made.resealed > 0);
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
        let fs = Filesystem::open(open().unwrap(), quiet()).unwrap();
        assert_eq!(tree(&fs), self.expected, "{what}");
        fs.close().unwrap();
        drop(fs);
        support::audit::audit_volume(&open().unwrap());
        disk.audit("source");
    }
}

fn cut_everywhere(by: By) {
    let case = Case::new(by);
    let mut whole = 0;
    for call in 1.. {
        let disk = case.disk(WriteUnit::Sector);
        disk.store.cut_at_call(call);
        let made = case.deploy(&disk);
        let cut = disk.store.is_cut();
        for seed in 0..3 {
            let survivor = Disk {
                store: disk.store.survivor(seed),
                keystore: fork(&disk.keystore),
            };
            let what = format!("{by:?}, call {call}, seed {seed}");
            whole += u32::from(survivor.volume("copy", case.key.as_ref()).is_ok());
            case.check(&survivor, made.is_ok(), &what);
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
    cut_everywhere(By::Links);
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_copies() {
    cut_everywhere(By::Copies);
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_copies_that_are_synced_one_by_one() {
    cut_everywhere(By::CopiesOneByOne);
}

#[test]
fn a_cut_at_every_call_of_a_deployment_by_resealing() {
    cut_everywhere(By::Resealing);
}

#[test]
fn a_cut_at_every_call_of_resealing_with_each_file_synced_by_itself() {
    cut_everywhere(By::ResealingOneByOne);
}

fn fail_everywhere(by: By) {
    let case = Case::new(by);
    for call in 1.. {
        let disk = case.disk(WriteUnit::Page);
        disk.store.fail_call(call, Fault::Error(Errno::ENOSPC));
        let made = case.deploy(&disk);
        let failed = disk.store.calls() >= call;
        disk.store.clear_faults();
        if made.is_err() {
            assert!(failed, "call {call}: {made:?}");
            let left = disk.at("copy").list(&StorePath::root()).unwrap();
            assert_eq!(left, [], "call {call}: {made:?}");
        }
        case.check(&disk, made.is_ok(), &format!("{by:?}, call {call}"));
        if !failed {
            break;
        }
    }
}

#[test]
fn an_error_at_every_call_takes_the_target_away() {
    fail_everywhere(By::Links);
}

#[test]
fn an_error_at_every_call_of_resealing_takes_the_target_away() {
    fail_everywhere(By::Resealing);
}

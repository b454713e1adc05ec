//! A power cut, or an error of the disk, at every call of an export and of an import.

use super::export::{IMAGE, export_image, import_options};
use super::*;
use bilayer::errno::Errno;
use bilayer::image::{Transport, import};
use bilayer::store::faulty::{Fault, WriteUnit};
use bilayer::store::memory::MemoryStore;

/// A disk with a small volume and an empty directory, the volume's contents, and its export.
struct Base {
    store: MemoryStore,
    keystore: Arc<tempfile::TempDir>,
    expected: Tree,
    stream: Vec<u8>,
}

impl Base {
    fn new() -> Self {
        let disk = Disk::new();
        disk.create("source", None);
        disk.with("source", |fs| {
            put(fs, ROOT, "small", &[(0, &pattern(1, 0, 700))]);
            put(fs, ROOT, "pages", &[(0, &pattern(1, 0, 3 * PAGE))]);
            put(fs, ROOT, "sparse", &[(PAGE, &pattern(2, 0, PAGE))]);
            make_image(fs, IMAGE);
        });
        disk.at("copy");
        let expected = disk.tree("source");
        let (stream, _) = export_image(&disk, "source", Transport::Keystore).unwrap();
        Self {
            store: disk.store.to_memory(),
            keystore: disk.keystore,
            expected,
            stream,
        }
    }

    fn disk(&self, write_unit: WriteUnit) -> Disk {
        Disk {
            store: FaultyStore::from_memory(&self.store, write_unit),
            keystore: fork(&self.keystore),
        }
    }

    fn import(&self, disk: &Disk) -> Result<(), ImageError> {
        let (target, options) = (disk.at("copy"), import_options(disk));
        import(&mut &*self.stream, target, &options, &NoProgress).map(drop)
    }

    /// The target is a whole volume or can be imported into.
    fn check(&self, disk: &Disk, reported: bool, what: &str) -> bool {
        let opened = disk.volume("copy", None);
        assert!(!reported || opened.is_ok(), "{what}: it was reported made");
        let whole = opened.is_ok();
        match opened.map(drop) {
            Ok(()) => {}
            Err(VolumeError::NotAVolume) => self.import(disk).expect(what),
            Err(error) => panic!("{what}: {error:?}"),
        }
        assert_eq!(disk.tree("copy"), self.expected, "{what}");
        disk.audit("copy");
        assert!(!has_name(disk, "copy", "meta.new"), "{what}");
        whole
    }
}

fn has_name(disk: &Disk, volume: &str, name: &str) -> bool {
    let listed = disk.at(volume).list(&StorePath::root()).unwrap();
    listed.iter().any(|(entry, _)| entry == name)
}

#[test]
fn a_cut_at_every_call_of_an_import() {
    cut_import_everywhere(false);
}

#[test]
fn a_cut_at_every_call_of_an_import_whose_files_are_synced_one_by_one() {
    cut_import_everywhere(true);
}

fn cut_import_everywhere(each_file: bool) {
    let base = Base::new();
    let mut whole = 0;
    for call in 1.. {
        let disk = base.disk(WriteUnit::Sector);
        if each_file {
            disk.store.sync_each_file();
        }
        disk.store.cut_at_call(call);
        let made = base.import(&disk);
        let cut = disk.store.is_cut();
        for seed in 0..3 {
            let survivor = Disk {
                store: disk.store.survivor(seed),
                keystore: fork(&disk.keystore),
            };
            let what = format!("call {call}, seed {seed}");
            whole += u32::from(base.check(&survivor, made.is_ok(), &what));
        }
        if !cut {
            assert!(made.is_ok() && call > 50);
            break;
        }
    }
    assert!(whole > 3, "some cuts fall behind the superblock");
}

#[test]
fn an_error_at_every_call_of_an_import_takes_the_target_away() {
    let base = Base::new();
    for call in 1.. {
        let disk = base.disk(WriteUnit::Page);
        disk.store.fail_call(call, Fault::Error(Errno::ENOSPC));
        let made = base.import(&disk);
        let failed = disk.store.calls() >= call;
        disk.store.clear_faults();
        if made.is_err() {
            assert!(failed, "call {call}: {made:?}");
            let left = disk.at("copy").list(&StorePath::root()).unwrap();
            assert_eq!(left, [], "call {call}: {made:?}");
        }
        base.check(&disk, made.is_ok(), &format!("call {call}"));
        if !failed {
            break;
        }
    }
}

/// The volume is unchanged, and the next opening removes files that the export created beside it.
#[test]
fn a_cut_at_every_call_of_an_export() {
    let base = Base::new();
    for call in 1.. {
        let disk = base.disk(WriteUnit::Sector);
        disk.store.cut_at_call(call);
        let made = export_image(&disk, "source", Transport::Keystore);
        let cut = disk.store.is_cut();
        for seed in 0..2 {
            let survivor = Disk {
                store: disk.store.survivor(seed),
                keystore: fork(&disk.keystore),
            };
            let what = format!("call {call}, seed {seed}");
            assert_eq!(survivor.tree("source"), base.expected, "{what}");
            assert!(!has_name(&survivor, "source", "meta.new"), "{what}");
            survivor.audit("source");
        }
        if !cut {
            assert!(made.is_ok() && call > 50);
            break;
        }
    }
}

#[test]
fn an_error_at_every_call_of_an_export_leaves_the_volume() {
    let base = Base::new();
    for call in 1.. {
        let disk = base.disk(WriteUnit::Page);
        disk.store.fail_call(call, Fault::Error(Errno::EIO));
        let made = export_image(&disk, "source", Transport::Keystore);
        let failed = disk.store.calls() >= call;
        disk.store.clear_faults();
        assert!(failed || made.is_ok(), "call {call}: {made:?}");
        assert_eq!(disk.tree("source"), base.expected, "call {call}");
        assert!(!has_name(&disk, "source", "meta.new"), "call {call}");
        if !failed {
            break;
        }
    }
}

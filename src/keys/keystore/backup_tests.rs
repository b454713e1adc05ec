//! Backing up and restoring.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::ids::{IncarnationId, KeySetId, Sequence};
use crate::keys::passphrase::PassphraseSource;
use crate::layers::VerificationKey;

/// A directory with keystores, backups and passphrase files.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().expect("tempdir"));
        std::fs::write(disk.path("right"), "correct horse\n").expect("write");
        std::fs::write(disk.path("wrong"), "battery staple\n").expect("write");
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn make(&self, name: &str) -> PlatformKeystore {
        PlatformKeystore::open_or_create(&self.path(name)).expect("keystore")
    }

    fn rotate(&self, name: &str) -> PlatformKeystore {
        PlatformKeystore::rotate(&self.path(name)).expect("rotate")
    }

    fn right(&self) -> PassphraseSource {
        PassphraseSource::File(self.path("right"))
    }

    fn backup(&self, name: &str, file: &str) -> Result<BackupSummary, KeyError> {
        PlatformKeystore::backup(&self.path(name), &self.path(file), &self.right(), false)
    }

    fn restore(&self, name: &str, file: &str) -> Result<RestoreSummary, KeyError> {
        PlatformKeystore::restore(&self.path(name), &self.path(file), &self.right())
    }
}

fn context() -> WrapContext {
    WrapContext {
        volume: VolumeId([1; 16]),
        key_set: KeySetId([2; 16]),
        epoch: crate::ids::Epoch(1),
    }
}

fn wrap(keystore: &PlatformKeystore) -> (WrapRecord, InfrastructureDek) {
    let dek = InfrastructureDek::random().expect("dek");
    let wrapped = keystore
        .wrap_infrastructure(&context(), &dek)
        .expect("wrap");
    (wrapped, dek)
}

fn opens(keystore: &PlatformKeystore, (wrapped, dek): &(WrapRecord, InfrastructureDek)) -> bool {
    let unwrapped = keystore.unwrap_infrastructure(&context(), wrapped);
    unwrapped.is_ok_and(|unwrapped| unwrapped.expose() == dek.expose())
}

fn record(sequence: u64, tag: u8) -> VolumeRecord {
    VolumeRecord {
        sequence: Sequence(sequence),
        page0_tags: [[tag; 16]; 2],
        header_sequence: sequence / 2,
        key_sets: vec![KnownKeySet {
            key_set: KeySetId([tag; 16]),
            verification_key: VerificationKey::from_bytes(&[tag; 32]),
        }],
        customer_key: Some("file:/k.pem".to_owned()),
        platform: Some(std::collections::BTreeSet::new()),
        directory: Some(RememberedDirectory {
            path: "/srv/volume".into(),
            inode: 7,
            filesystem: None,
            inside: None,
        }),
        written: Some(1_764_000_000),
        ..VolumeRecord::new(IncarnationId([3; 16]))
    }
}

const VOLUME: VolumeId = VolumeId([1; 16]);

#[test]
fn a_backup_restores_everything_elsewhere() {
    let disk = Disk::new();
    let old = wrap(&disk.make("own"));
    let own = disk.rotate("own");
    let new = wrap(&own);
    own.update_record(VOLUME, &record(8, 1)).expect("record");
    assert!(own.last_backup().expect("note").is_none());
    let made = disk.backup("own", "file").expect("backup");
    assert_eq!(
        (made.versions, made.volumes, made.current_version),
        (2, 1, 2)
    );
    let mode = std::fs::metadata(disk.path("file"))
        .expect("stat")
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
    assert!(
        own.last_backup()
            .expect("note")
            .expect("made")
            .is_complete(&own)
    );

    let restored = disk.restore("deep/down/there", "file").expect("restore");
    assert!(restored.is_new && !restored.is_adopted);
    assert_eq!((restored.versions_added, restored.records_added), (2, 1));
    let there = PlatformKeystore::open(&disk.path("deep/down/there")).expect("open");
    assert_eq!((there.id(), there.current_version()), (own.id(), 2));
    assert!(opens(&there, &old) && opens(&there, &new));
    assert!(there.holds_keys_of(&own) && own.holds_keys_of(&there));
    // A directory means nothing elsewhere.
    let found = there.record(VOLUME).expect("read").expect("record");
    let elsewhere = VolumeRecord {
        directory: None,
        ..record(8, 1)
    };
    assert_eq!(found, elsewhere);
    // What was restored stays until the next rotation, although nothing needs it.
    assert_eq!(there.drop_unneeded_versions().expect("drop"), []);
    let again = disk.restore("deep/down/there", "file").expect("again");
    let nothing = (
        again.versions_added,
        again.records_added,
        again.records_updated,
    );
    assert_eq!((nothing, again.is_new), ((0, 0, 0), false));
}

#[test]
fn a_lost_keystore_comes_back_to_its_place_with_its_directories() {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if machine.trim().len() != 32 {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "skipped: this machine has no /etc/machine-id"
        );
        return;
    }
    let disk = Disk::new();
    let own = disk.make("own");
    own.update_record(VOLUME, &record(8, 1)).expect("record");
    disk.backup("own", "file").expect("backup");
    std::fs::remove_dir_all(disk.path("own")).expect("lose");
    disk.restore("own", "file").expect("restore");
    let back = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert_eq!(back.record(VOLUME).expect("read"), Some(record(8, 1)));
}

#[test]
fn another_keystore_adopts_the_versions() {
    let disk = Disk::new();
    let theirs = wrap(&disk.make("theirs"));
    let (theirs_id, own) = (disk.make("theirs").id(), disk.make("own"));
    let ours = wrap(&own);
    disk.backup("theirs", "file").expect("backup");
    let restored = disk.restore("own", "file").expect("restore");
    assert!(restored.is_adopted && !restored.is_new);
    let both = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert_eq!(both.id(), own.id());
    assert!(opens(&both, &ours) && opens(&both, &theirs));
    // It wraps with its own, and takes over what the others wrapped at the next rotation.
    let adopted = theirs.0.platform_version().expect("named");
    assert_eq!(hex::encode(adopted.keystore), theirs_id);
    assert_eq!(wrap(&both).0.platform_version(), Some(own.current_name()));
    assert!(!both.is_superseded(adopted));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let rotated = disk.rotate("own");
    assert!(rotated.is_superseded(adopted));
    // A backup of it has both, and restores to either place.
    disk.backup("own", "both").expect("backup");
    let summary = disk.restore("third", "both").expect("restore");
    assert_eq!((summary.versions_added, summary.is_new), (3, true));
    let third = PlatformKeystore::open(&disk.path("third")).expect("open");
    assert!(opens(&third, &ours) && opens(&third, &theirs));
    disk.restore("theirs", "both").expect("restore");
    let back = PlatformKeystore::open(&disk.path("theirs")).expect("open");
    assert!(opens(&back, &ours) && opens(&back, &theirs));
    assert_eq!(back.id(), theirs_id);
    drop((both, own, third));
    let dropped = rotated.drop_unneeded_versions().expect("drop");
    assert_eq!(dropped.len(), 2, "{dropped:?}");
    assert!(!disk.path("own/adopted").join(theirs_id).exists());
}

#[test]
fn one_keystore_rotated_on_two_machines_cannot_be_merged() {
    let disk = Disk::new();
    disk.make("one");
    disk.backup("one", "first").expect("backup");
    disk.restore("two", "first").expect("restore");
    disk.rotate("one");
    disk.rotate("one");
    let two = disk.rotate("two");
    disk.backup("one", "second").expect("backup");
    let error = disk.restore("two", "second").expect_err("conflict");
    assert_eq!(error.kind(), ErrorKind::KeystoreInvalid);
    assert!(error.to_string().contains("on two machines"), "{error}");
    // Not even the versions that could have been added.
    let after = PlatformKeystore::open(&disk.path("two")).expect("open");
    assert_eq!(after.current_version(), 2);
    assert!(after.holds_keys_of(&two));
}

#[test]
fn a_restore_never_weakens_a_record() {
    let disk = Disk::new();
    let own = disk.make("own");
    own.update_record(VOLUME, &record(8, 1)).expect("older");
    disk.backup("own", "file").expect("backup");
    let newer = VolumeRecord {
        directory: None,
        ..record(20, 2)
    };
    own.update_record(VOLUME, &newer).expect("newer");
    disk.restore("own", "file").expect("restore");
    let after = own.record(VOLUME).expect("read").expect("record");
    assert_eq!(after.sequence, newer.sequence);
    assert_eq!(after.page0_tags, newer.page0_tags);
    assert_eq!(after.header_sequence, newer.header_sequence);
    assert_eq!(after.directory, None);
    // Both key sets are known, the newer one last.
    let sets: Vec<u8> = after
        .key_sets
        .iter()
        .map(|known| known.key_set.0[0])
        .collect();
    assert_eq!(sets, [1, 2]);

    // The other way round.
    own.update_record(VOLUME, &newer).expect("newer");
    disk.backup("own", "newer").expect("backup");
    own.update_record(VOLUME, &record(8, 1)).expect("older");
    let summary = disk.restore("own", "newer").expect("restore");
    assert_eq!(summary.records_updated, 1);
    let after = own.record(VOLUME).expect("read").expect("record");
    assert_eq!(
        (after.sequence, after.page0_tags),
        (newer.sequence, newer.page0_tags)
    );
    assert_eq!(after.directory, record(8, 1).directory, "where it is stays");

    // Another incarnation stays as it is.
    let other = VolumeRecord {
        incarnation: IncarnationId([9; 16]),
        ..record(4, 4)
    };
    own.update_record(VOLUME, &other).expect("write");
    disk.restore("own", "newer").expect("restore");
    assert_eq!(own.record(VOLUME).expect("read"), Some(other));

    // A volume that is open for writing keeps its record.
    let held = own
        .lock_writer(VOLUME, Path::new("/srv/volume"))
        .expect("lock");
    own.update_record(VOLUME, &record(8, 1)).expect("write");
    assert_eq!(
        disk.restore("own", "newer")
            .expect("restore")
            .records_updated,
        0
    );
    assert_eq!(own.record(VOLUME).expect("read"), Some(record(8, 1)));
    drop(held);
}

#[test]
fn wrong_passphrases_and_damaged_files_restore_nothing() {
    let disk = Disk::new();
    disk.make("own")
        .update_record(VOLUME, &record(8, 1))
        .expect("record");
    disk.backup("own", "file").expect("backup");
    let good = std::fs::read(disk.path("file")).expect("read");
    let refused = |bytes: &[u8], passphrase: &str| {
        std::fs::write(disk.path("bad"), bytes).expect("write");
        let source = PassphraseSource::File(disk.path(passphrase));
        let restored = PlatformKeystore::restore(&disk.path("new"), &disk.path("bad"), &source);
        let error = restored.expect_err("refused");
        assert!(!disk.path("new/keystore.json").exists(), "{error}");
        assert!(error.hint().is_some(), "{error}");
        error.kind()
    };
    assert_eq!(refused(&good, "wrong"), ErrorKind::WrongKey);
    let lines = good.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let ends: Vec<usize> = lines.map(|(at, _)| at).take(2).collect();
    // Anything after the header, and some places in it.
    let body = ends[1] + 1;
    for at in [body, body + 5, body + 100, good.len() - 1] {
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert_eq!(refused(&changed, "right"), ErrorKind::Tampered, "{at}");
    }
    for len in [
        0,
        1,
        ends[0],
        ends[0] + 1,
        ends[1],
        ends[1] + 1,
        body + 11,
        good.len() - 1,
    ] {
        let kind = refused(&good[..len], "right");
        let expected = match len <= ends[0] {
            true => ErrorKind::Usage,
            false => ErrorKind::Tampered,
        };
        assert_eq!(kind, expected, "{len}");
    }
    let longer = [&good[..], b"x"].concat();
    assert_eq!(refused(&longer, "right"), ErrorKind::Tampered);
    let text = String::from_utf8_lossy(&good[..ends[1]]).into_owned();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        [text.replacen(from, to, 1).as_bytes(), &good[ends[1]..]].concat()
    };
    for (from, to, kind) in [
        (
            "bilayer-keystore-backup",
            "bilayer-export",
            ErrorKind::Usage,
        ),
        ("\"version\":1", "\"version\":2", ErrorKind::NewerFormat),
        ("\"created\":", "\"made\":", ErrorKind::Tampered),
        (
            "\"memory_kib\":65536",
            "\"memory_kib\":4294967295",
            ErrorKind::Tampered,
        ),
        ("\"passes\":3", "\"passes\":4000000000", ErrorKind::Tampered),
        ("\"created\":1", "\"created\":2", ErrorKind::WrongKey),
        ("\"passes\":3", "\"passes\":2", ErrorKind::WrongKey),
    ] {
        assert_eq!(refused(&with(from, to), "right"), kind, "{from} {to}");
    }
    for garbage in [vec![0xff; 10_000], b"\n\n\n".to_vec(), b"{}\n".to_vec()] {
        assert_eq!(refused(&garbage, "right"), ErrorKind::Usage);
    }
    // A pipe does not block, and a directory is none.
    let _ = std::process::Command::new("mkfifo")
        .arg(disk.path("pipe"))
        .status();
    for name in ["pipe", "own"] {
        assert_eq!(
            disk.restore("new", name).expect_err(name).kind(),
            ErrorKind::Usage
        );
    }
    disk.restore("new", "file").expect("as it was");
}

#[test]
fn a_backup_overwrites_nothing_unasked_and_is_kept_elsewhere() {
    let disk = Disk::new();
    disk.make("own");
    std::fs::write(disk.path("file"), "precious").expect("write");
    assert_eq!(
        disk.backup("own", "file").expect_err("exists").kind(),
        ErrorKind::InUse
    );
    assert_eq!(std::fs::read(disk.path("file")).expect("read"), b"precious");
    let force = |file: &str| {
        PlatformKeystore::backup(&disk.path("own"), &disk.path(file), &disk.right(), true)
    };
    force("file").expect("forced");
    disk.restore("new", "file").expect("restore");
    symlink(disk.path("right"), disk.path("link")).expect("link");
    for name in ["link", "own", "own/inside", "own/versions/inside"] {
        assert_eq!(
            force(name).expect_err(name).kind(),
            ErrorKind::Usage,
            "{name}"
        );
    }
    std::fs::create_dir_all(disk.path("volume/objects")).expect("mkdir");
    std::fs::write(disk.path("volume/lock"), "").expect("write");
    assert_eq!(
        force("volume/file").expect_err("inside").kind(),
        ErrorKind::Usage
    );
    assert!(force("none/file").is_err());
    // Nothing is left beside it.
    let names = std::fs::read_dir(disk.path("")).expect("list");
    let names = names.map(|entry| entry.expect("entry").file_name());
    let left: Vec<_> = names
        .filter(|name| name.to_string_lossy().starts_with(".bilayer"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let error = PlatformKeystore::backup(
        &disk.path("own"),
        &disk.path("other"),
        &PassphraseSource::None,
        false,
    );
    assert_eq!(
        error.expect_err("no passphrase").kind(),
        ErrorKind::KeyUnavailable
    );
    assert!(!disk.path("other").exists());
}

#[test]
fn what_an_interrupted_restore_left_is_finished() {
    let disk = Disk::new();
    let first = wrap(&disk.make("own"));
    disk.rotate("own");
    let own = disk.rotate("own");
    own.update_record(VOLUME, &record(8, 1)).expect("record");
    disk.backup("own", "file").expect("backup");
    disk.restore("whole", "file").expect("restore");
    // In the order in which files are written: each beginning of it.
    let written = [
        "versions/00000003.json",
        "versions/00000002.json",
        "versions/00000001.json",
        &format!("volumes/{VOLUME}.json"),
    ];
    for count in 0..=written.len() {
        let name = format!("cut-{count}");
        for part in ["versions", "volumes"] {
            std::fs::create_dir_all(disk.path(&name).join(part)).expect("mkdir");
        }
        std::fs::set_permissions(disk.path(&name), std::fs::Permissions::from_mode(0o700))
            .expect("chmod");
        for file in &written[..count] {
            let from = disk.path("whole").join(file);
            std::fs::copy(from, disk.path(&name).join(file)).expect("copy");
        }
        std::fs::write(disk.path(&name).join("versions/.new-x"), "{").expect("leftover");
        // Nothing uses it meanwhile.
        assert!(
            PlatformKeystore::open(&disk.path(&name)).is_err(),
            "{count}"
        );
        if count > 0 {
            assert!(
                PlatformKeystore::open_or_create(&disk.path(&name)).is_err(),
                "{count}"
            );
            disk.restore(&name, "file").expect("restore");
            let back = PlatformKeystore::open(&disk.path(&name)).expect("open");
            assert_eq!(back.id(), own.id());
            assert!(opens(&back, &first));
        }
    }
}

#[test]
fn damaged_versions_are_repaired_and_missing_ones_added() {
    let disk = Disk::new();
    let first = wrap(&disk.make("own"));
    let own = disk.rotate("own");
    let second = wrap(&own);
    own.update_record(VOLUME, &record(8, 1)).expect("record");
    disk.backup("own", "file").expect("backup");
    std::fs::write(disk.path("own/versions/00000001.json"), "{").expect("damage");
    std::fs::remove_file(disk.path("own/versions/00000002.json")).expect("lose");
    assert!(PlatformKeystore::open(&disk.path("own")).is_err());
    let done = disk.restore("own", "file").expect("restore");
    assert_eq!((done.versions_repaired, done.versions_added), (1, 1));
    let back = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert!(opens(&back, &first) && opens(&back, &second));
    // A damaged record is left out of a backup, and replaced by a restore.
    let damaged = back.record_path(VOLUME);
    std::fs::write(&damaged, "{").expect("damage");
    assert_eq!(disk.backup("own", "without").expect("backup").volumes, 0);
    assert_eq!(
        disk.restore("own", "file").expect("restore").records_added,
        1
    );
    assert!(back.record(VOLUME).expect("read").is_some());
    // All keys lost, with the records still there.
    std::fs::remove_dir_all(disk.path("own/versions")).expect("lose");
    std::fs::remove_file(disk.path("own/keystore.json")).expect("lose");
    disk.restore("own", "file").expect("restore");
    let back = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert!(opens(&back, &first) && back.record(VOLUME).expect("read").is_some());
}

#[test]
fn loose_files_and_foreign_places_are_refused() {
    let disk = Disk::new();
    disk.make("own");
    disk.backup("own", "file").expect("backup");
    let version = disk.path("own/versions/00000001.json");
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for mode in [0o640, 0o604, 0o666] {
        set_mode(&version, mode);
        let error = PlatformKeystore::open(&disk.path("own")).expect_err("loose");
        assert_eq!(error.kind(), ErrorKind::KeystoreInvalid);
        assert!(error.hint().is_some_and(|hint| hint.contains("chmod 600")));
        assert!(PlatformKeystore::rotate(&disk.path("own")).is_err());
    }
    set_mode(&version, 0o600);
    PlatformKeystore::open(&disk.path("own")).expect("private again");
    std::fs::create_dir(disk.path("shared")).expect("mkdir");
    set_mode(&disk.path("shared"), 0o755);
    assert!(disk.restore("shared", "file").is_err());
    std::fs::create_dir_all(disk.path("volume/objects")).expect("mkdir");
    std::fs::write(disk.path("volume/lock"), "").expect("write");
    assert!(disk.restore("volume/keys", "file").is_err());
    assert!(!disk.path("volume/keys").exists());
}

#[test]
fn many_rotations_at_once_make_one_version_each() {
    let disk = Disk::new();
    disk.make("own");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| disk.rotate("own"));
        }
    });
    let own = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert_eq!(own.current_version(), 9);
    assert_eq!(own.versions().len(), 9);
    assert_eq!(own.drop_unneeded_versions().expect("drop").len(), 8);
}

#[test]
fn a_version_is_due_after_ninety_days() {
    let disk = Disk::new();
    let own = disk.make("own");
    let made = own.current_created().expect("made");
    let days = |days: i64| made + days * 24 * 3600;
    assert!(!own.is_due(days(89)) && own.is_due(days(90)) && own.is_due(days(900)));
    assert!(!own.is_due(days(-5)) && !own.is_due(0));
    assert!(
        PlatformKeystore::rotate_if_due(&disk.path("own"))
            .expect("not due")
            .is_none()
    );
    let version = disk.path("own/versions/00000001.json");
    let text = std::fs::read_to_string(&version).expect("read");
    let created = format!("\"created\":{made},");
    assert!(text.contains(&created), "{text:.100}");
    std::fs::write(&version, text.replace(&created, "\"created\":1700000000,")).expect("write");
    let rotated = PlatformKeystore::rotate_if_due(&disk.path("own")).expect("due");
    assert_eq!(rotated.expect("rotated").current_version(), 2);
    assert!(
        PlatformKeystore::rotate_if_due(&disk.path("own"))
            .expect("not due")
            .is_none()
    );
    // Made by an older program: the time of the file counts.
    std::fs::write(&version, text.replace(&created, "")).expect("write");
    let own = PlatformKeystore::open(&disk.path("own")).expect("open");
    assert_eq!(own.versions()[0].created, None);
    assert_eq!(own.versions()[1].created, own.current_created());
}

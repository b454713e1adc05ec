use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;
use crate::ids::{Epoch, IncarnationId, KeySetId, Sequence};
use crate::layers::VerificationKey;

fn context() -> WrapContext {
    WrapContext {
        volume: VolumeId([1; 16]),
        key_set: KeySetId([2; 16]),
        epoch: Epoch(1),
    }
}

fn context_version() -> PlatformVersion {
    PlatformVersion {
        keystore: [9; 16],
        version: 3,
    }
}

fn fresh() -> (tempfile::TempDir, PathBuf, PlatformKeystore) {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("data/bilayer/platform");
    let keystore = PlatformKeystore::open_or_create(&path).expect("create");
    (directory, path, keystore)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn record() -> VolumeRecord {
    VolumeRecord {
        pending_incarnation: None,
        key_sets: vec![KnownKeySet {
            key_set: KeySetId([5; 16]),
            verification_key: VerificationKey::from_bytes(&[6; 32]),
        }],
        incarnation: IncarnationId([3; 16]),
        sequence: Sequence(u64::MAX),
        page0_tags: [[4; 16], [5; 16]],
        header_sequence: 6,
        customer_key: Some("file:/k.pem".to_owned()),
        platform: Some([context_version()].into()),
        clean: true,
        directory: Some(RememberedDirectory {
            path: "/srv/a volume\n".into(),
            inode: 7,
            filesystem: Some("ext4:0123456789abcdef".to_owned()),
            inside: Some("/a volume\n".into()),
        }),
        former: Some(FormerDirectory {
            directory: RememberedDirectory {
                path: "/srv/before".into(),
                inode: 8,
                filesystem: None,
                inside: None,
            },
            written: Some(1_763_000_000),
        }),
        written: Some(1_764_000_000),
    }
}

#[test]
fn created_once_and_found_again() {
    let (_guard, path, first) = fresh();
    assert_eq!(first.current_version(), 1);
    let dek = InfrastructureDek::random().expect("dek");
    let wrapped = first.wrap_infrastructure(&context(), &dek).expect("wrap");
    for again in [
        PlatformKeystore::open(&path).expect("open"),
        PlatformKeystore::open_or_create(&path).expect("open"),
    ] {
        assert_eq!(again.id(), first.id());
        let back = again
            .unwrap_infrastructure(&context(), &wrapped)
            .expect("unwrap");
        assert_eq!(back.expose(), dek.expose());
    }
    for (part, mode) in [
        ("", 0o700),
        ("versions", 0o700),
        ("keystore.json", 0o600),
        ("versions/00000001.json", 0o600),
    ] {
        let found = std::fs::metadata(path.join(part))
            .expect("stat")
            .permissions();
        assert_eq!(found.mode() & 0o7777, mode, "{part}");
    }
}

#[test]
fn the_two_keys_of_a_version_are_independent_and_nothing_shows_them() {
    let (_guard, path, keystore) = fresh();
    let version = keystore.versions.own.get(&1).expect("version 1");
    assert_ne!(version.infrastructure.expose(), version.customer.expose());
    let shown = format!("{keystore:?}{:?}", version.infrastructure);
    assert!(!shown.contains(&hex::encode(version.infrastructure.expose())));
    let text = std::fs::read_to_string(path.join("versions/00000001.json")).expect("read");
    assert!(text.contains(&hex::encode(version.customer.expose())));
}

#[test]
fn many_at_once_make_one_keystore() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("platform");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| PlatformKeystore::open_or_create(&path).expect("create")))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("join").id())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(
        std::fs::read_dir(path.join("versions"))
            .expect("list")
            .count(),
        1
    );
}

#[test]
fn a_creation_that_was_cut_off_is_finished() {
    let (_guard, path, keystore) = fresh();
    let id = keystore.id();
    std::fs::remove_file(path.join("versions/00000001.json")).expect("remove");
    std::fs::write(path.join("versions/.new-x"), "{").expect("leftover");
    let missing = PlatformKeystore::open(&path).expect_err("no keys");
    assert_eq!(missing.kind(), ErrorKind::KeystoreMissing);
    let finished = PlatformKeystore::open_or_create(&path).expect("finish");
    assert_eq!((finished.id(), finished.current_version()), (id, 1));
}

#[test]
fn lost_keys_are_never_replaced_while_volumes_need_them() {
    let (_guard, path, keystore) = fresh();
    keystore
        .update_record(VolumeId([1; 16]), &record())
        .expect("record");
    std::fs::remove_file(path.join("versions/00000001.json")).expect("remove");
    let error = PlatformKeystore::open_or_create(&path).expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::KeystoreMissing);
    std::fs::remove_file(path.join("keystore.json")).expect("remove");
    let error = PlatformKeystore::open_or_create(&path).expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::KeystoreInvalid);
}

#[test]
fn a_missing_keystore_or_version_or_another_one_is_named() {
    let (guard, _, keystore) = fresh();
    let nowhere = guard.path().join("nowhere");
    let error = PlatformKeystore::open(&nowhere).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::KeystoreMissing);
    assert!(error.to_string().contains("nowhere"));
    assert!(error.hint().is_some_and(|hint| hint.contains(ENVIRONMENT)));

    let dek = InfrastructureDek::random().expect("dek");
    let wrapped = keystore
        .wrap_infrastructure(&context(), &dek)
        .expect("wrap");
    let newer = WrapRecord {
        key_version: "7".to_owned(),
        ..wrapped.clone()
    };
    let error = keystore
        .unwrap_infrastructure(&context(), &newer)
        .expect_err("version");
    assert_eq!(error.kind(), ErrorKind::KeystoreMissing);
    assert!(error.to_string().contains("\"7\""), "{error}");

    let (_guard, _, other) = fresh();
    let error = other
        .unwrap_infrastructure(&context(), &wrapped)
        .expect_err("other");
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.to_string().contains(&keystore.id()), "{error}");
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    let (_guard, path, _) = fresh();
    for mode in [0o750, 0o705, 0o701, 0o720] {
        set_mode(&path, mode);
        for result in [
            PlatformKeystore::open(&path),
            PlatformKeystore::open_or_create(&path),
        ] {
            let error = result.expect_err("shared");
            assert_eq!(error.kind(), ErrorKind::KeystoreInvalid);
            assert!(error.hint().is_some_and(|hint| hint.contains("chmod")));
        }
    }
    set_mode(&path, 0o700);
    PlatformKeystore::open(&path).expect("private again");
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if effective_user() != 0 {
        let _ = writeln!(io::stderr(), "skipped: giving a directory away takes root");
        return;
    }
    let (_guard, path, _) = fresh();
    std::os::unix::fs::chown(&path, Some(4711), None).expect("chown");
    let error = PlatformKeystore::open(&path).expect_err("foreign");
    assert!(
        error.to_string().contains("belongs to user 4711"),
        "{error}"
    );
}

#[test]
fn never_inside_a_volume_not_even_through_a_link() {
    let directory = tempfile::tempdir().expect("tempdir");
    let volume = directory.path().join("volume");
    std::fs::create_dir_all(volume.join("objects")).expect("mkdir");
    std::fs::write(volume.join("lock"), "").expect("lock");
    let link = directory.path().join("link");
    symlink(&volume, &link).expect("link");
    for path in [
        volume.join("keys"),
        volume.join("a/b/c"),
        link.join("keys"),
        volume.clone(),
    ] {
        let error = PlatformKeystore::open_or_create(&path).expect_err("inside");
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
    assert!(!volume.join("keys").exists());
    PlatformKeystore::open_or_create(&directory.path().join("beside")).expect("beside");
}

#[test]
fn files_are_read_strictly() {
    let (_guard, path, keystore) = fresh();
    keystore
        .update_record(VolumeId([1; 16]), &record())
        .expect("record");
    let files = [
        "keystore.json".to_owned(),
        "versions/00000001.json".to_owned(),
        format!("volumes/{}.json", VolumeId([1; 16])),
    ];
    let read = || -> Result<(), KeyError> {
        PlatformKeystore::open(&path)?
            .record(VolumeId([1; 16]))
            .map(|_| ())
    };
    for name in files {
        let file = path.join(&name);
        let good = std::fs::read_to_string(&file).expect("read");
        let bad = [
            good.replacen('{', "{\"extra\":1,", 1),
            good.replacen('{', "{\"version\":1,", 1),
            good.replacen("\"version\":1", "\"version\":2", 1),
            good.replacen("\"version\":1", "\"version\":1e99", 1),
            good.replacen("\"version\":1,", "", 1),
            good.replacen("bilayer", "BILAYER", 1),
            format!("{good}{good}"),
            good[..good.len() / 2].to_owned(),
            String::new(),
            " ".repeat(70_000) + &good,
            "[".repeat(60_000),
        ];
        for text in bad {
            std::fs::write(&file, &text).expect("write");
            let error = read().expect_err(&format!("{name}: {text:.100}"));
            assert_eq!(error.kind(), ErrorKind::KeystoreInvalid, "{error}");
        }
        std::fs::write(&file, &good).expect("write");
        read().expect("as it was");
    }
    // A key file that another name or keystore points at.
    std::fs::copy(
        path.join("versions/00000001.json"),
        path.join("versions/00000002.json"),
    )
    .expect("copy");
    assert_eq!(
        read().expect_err("number").kind(),
        ErrorKind::KeystoreInvalid
    );
    std::fs::remove_file(path.join("versions/00000002.json")).expect("remove");
    symlink("00000001.json", path.join("versions/00000002.json")).expect("link");
    assert!(read().is_err(), "a link is not followed");
    std::fs::remove_file(path.join("versions/00000002.json")).expect("remove");
    std::fs::write(path.join("versions/1.json"), "").expect("write");
    assert_eq!(
        read().expect_err("stray").kind(),
        ErrorKind::KeystoreInvalid
    );
}

#[test]
fn one_key_twice_is_refused_and_errors_quote_no_key() {
    let (_guard, path, keystore) = fresh();
    let file = path.join("versions/00000001.json");
    let good = std::fs::read_to_string(&file).expect("read");
    let keys = keystore.versions.own.get(&1).expect("version 1");
    let infrastructure = hex::encode(keys.infrastructure.expose());
    let customer = hex::encode(keys.customer.expose());
    for text in [
        good.replace(&customer, &infrastructure),
        good.replace(&customer, &customer.to_uppercase()),
        good.replace(&customer, &customer[2..]),
        good.replace(&format!("\"{customer}\""), &format!("[\"{customer}\"]")),
        good.replace("\"customer\"", &format!("\"{customer}\"")),
    ] {
        if text == good {
            continue;
        }
        std::fs::write(&file, text).expect("write");
        let error = PlatformKeystore::open(&path).expect_err("bad");
        assert_eq!(error.kind(), ErrorKind::KeystoreInvalid);
        assert!(!format!("{error:?}").contains(&customer[4..20]), "{error}");
    }
}

#[test]
fn records_are_replaced_whole() {
    let (_guard, path, keystore) = fresh();
    let volume = VolumeId([1; 16]);
    assert_eq!(keystore.record(volume).expect("none"), None);
    keystore.update_record(volume, &record()).expect("write");
    assert_eq!(keystore.record(volume).expect("read"), Some(record()));
    let other = VolumeRecord {
        customer_key: None,
        clean: false,
        directory: None,
        written: None,
        ..record()
    };
    keystore.update_record(volume, &other).expect("write");
    assert_eq!(keystore.record(volume).expect("read"), Some(other));
    assert_eq!(
        std::fs::read_dir(path.join("volumes"))
            .expect("list")
            .count(),
        1
    );
    // A record under another volume's name is not that volume's.
    std::fs::copy(
        path.join(format!("volumes/{volume}.json")),
        path.join(format!("volumes/{}.json", VolumeId([2; 16]))),
    )
    .expect("copy");
    assert!(keystore.record(VolumeId([2; 16])).is_err());
}

#[test]
fn where_it_is_looked_for() {
    let os = OsStr::new;
    let flag = Path::new("/flag");
    let default = || Some(PathBuf::from("/default"));
    let found = |flag, environment: Option<&str>| {
        resolve(flag, environment.map(os), default()).expect("a place")
    };
    assert_eq!(found(Some(flag), Some("/env")), flag);
    assert_eq!(found(None, Some("/env")), Path::new("/env"));
    assert_eq!(found(None, Some("")), Path::new("/default"));
    assert_eq!(found(None, None), Path::new("/default"));
    assert!(resolve(None, None, None).is_err());
    let default = |root, data: Option<&str>, home: Option<&str>| {
        default_directory(root, data.map(os), home.map(os)).map(|p| p.display().to_string())
    };
    let is = |path: &str| Some(path.to_owned());
    assert_eq!(
        default(true, Some("/d"), Some("/h")),
        is("/var/lib/bilayer/platform")
    );
    assert_eq!(
        default(false, Some("/d"), Some("/h")),
        is("/d/bilayer/platform")
    );
    assert_eq!(
        default(false, Some("relative"), Some("/h")),
        is("/h/.local/share/bilayer/platform")
    );
    assert_eq!(default(false, None, None), None);
}

#[test]
fn one_process_writes_to_a_volume() {
    let (_guard, path, keystore) = fresh();
    let volume = VolumeId([1; 16]);
    let (one, two) = (Path::new("/srv/one"), Path::new("/srv/two"));
    let lock = |volume, directory| keystore.lock_writer(volume, directory).expect("lock");
    let held = match lock(volume, one) {
        WriterLocked::Own(held) => held,
        other => panic!("{other:?}"),
    };
    assert!(matches!(&lock(volume, two), WriterLocked::Held(Some(by)) if by == one));
    assert!(matches!(lock(VolumeId([2; 16]), two), WriterLocked::Own(_)));
    drop(held);
    assert!(matches!(lock(volume, two), WriterLocked::Own(_)));
    let file = path.join(format!("volumes/{volume}.lock"));
    let mode = std::fs::metadata(&file).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It is no record, and what holds nothing else has no volumes.
    assert_eq!(keystore.record(volume).expect("none"), None);
    // What somebody put there is not followed, nor waited for.
    std::fs::remove_file(&file).expect("remove");
    std::os::unix::fs::symlink("/dev/null", &file).expect("link");
    assert!(keystore.lock_writer(volume, one).is_err());
}

#[test]
fn directories_are_remembered_strictly() {
    let (_guard, path, keystore) = fresh();
    let volume = VolumeId([1; 16]);
    keystore.update_record(volume, &record()).expect("write");
    let file = path.join(format!("volumes/{volume}.json"));
    let good = std::fs::read_to_string(&file).expect("read");
    let digits = hex::encode("/srv/a volume\n");
    for (from, to) in [
        (digits.as_str(), hex::encode("relative")),
        (digits.as_str(), hex::encode("/with\0zero")),
        (digits.as_str(), digits.to_uppercase()),
        (digits.as_str(), String::new()),
        ("ext4:0123456789abcdef", String::new()),
        ("ext4:0123456789abcdef", "ext4\\n".to_owned()),
        ("\"inode\":7", "\"inode\":-7".to_owned()),
        ("\"inode\":7", "\"inode\":7,\"more\":1".to_owned()),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&file, good.replace(from, &to)).expect("write");
        assert!(keystore.record(volume).is_err(), "{from} {to}");
    }
    std::fs::write(&file, &good).expect("write");
    assert_eq!(keystore.record(volume).expect("read"), Some(record()));
}

#[test]
fn a_directory_that_moves_while_it_is_open_leaves_its_place_behind() {
    let at = |path: &str| RememberedDirectory {
        path: path.into(),
        inode: 1,
        filesystem: None,
        inside: None,
    };
    let mut record = VolumeRecord::new(IncarnationId([1; 16]));
    let left = |record: &VolumeRecord| {
        let former = record.former.as_ref();
        former.map(|former| (former.directory.clone(), former.written))
    };
    record.set_directory(at("/a"));
    record.written = Some(5);
    record.set_directory(at("/a"));
    assert_eq!(left(&record), None);
    record.set_directory(at("/b"));
    record.written = Some(6);
    record.set_directory(at("/c"));
    assert_eq!(left(&record), Some((at("/a"), Some(5))));
    assert_eq!(record.directory, Some(at("/c")));
    record.set_directory(at("/a"));
    assert_eq!(left(&record), None);
}

//! Making and opening volumes: both key modes, wrong keys, locks, hard-linked copies.

use std::fs;

use super::*;
use crate::keys::customer;
use crate::store::directory::DirectoryStore;

#[test]
fn platform_managed_volume_round_trip() {
    let keys = Keys::new();
    let store = memory();
    let mut drawn = None;
    let options = CreateOptions {
        size_bytes: Some(1 << 30),
        ..keys.create_options(None)
    };
    let id = create_empty(Arc::clone(&store), &options, &mut |fresh| {
        assert_eq!(fresh.size_bytes, Some(1 << 30));
        drawn = Some((Arc::clone(&fresh.keys), fresh.meta_crypto));
        write_meta(fresh)
    })
    .expect("create");
    let (ring, meta_crypto) = drawn.expect("format was called");
    let volume = keys.open(&store, None).expect("open");
    assert_eq!(volume.header().volume_id(), id);
    assert_eq!(volume.header().meta_crypto(), meta_crypto);
    assert_eq!(volume.header().key_mode(), KeyMode::PlatformManaged);
    assert_eq!(volume.header().header_sequence(), 1);
    assert_eq!(
        (volume.header().format(), volume.header().features().len()),
        (1, 0)
    );
    let (made, found) = (ring.active(), volume.keys.active());
    assert_eq!((made.id, made.epoch), (found.id, found.epoch));
    assert_eq!(made.customer.expose(), found.customer.expose());
    assert_eq!(made.infrastructure.expose(), found.infrastructure.expose());
    let record = volume.record.as_ref().expect("remembered");
    assert_eq!(record.customer_key, None);
    assert!(!record.clean);
}

#[test]
fn customer_managed_volume_on_a_directory() {
    let keys = Keys::new();
    let path = keys.at().join("volume");
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&path).expect("store"));
    keys.create(&store, Some(keys.private()));
    // The keystore remembers which key it was.
    let volume = keys.open(&store, None).expect("open");
    assert_eq!(volume.header().key_mode(), KeyMode::PlatformAndCustomer);
    let uri = keys.private().to_string();
    assert_eq!(
        volume.record.as_ref().and_then(|r| r.customer_key.clone()),
        Some(uri)
    );
    assert!(format!("{volume:?}").len() < 20_000);
    drop(volume);
    keys.open(&store, Some(keys.private()))
        .expect("open by option");
}

#[test]
fn public_key_makes_and_private_key_opens() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, Some(keys.public()));
    let error = keys.open(&store, None).expect_err("public only");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    assert!(error.to_string().contains("public half"), "{error}");
    drop(keys.open(&store, Some(keys.private())).expect("private"));
    // From now on the private one is remembered.
    keys.open(&store, None).expect("remembered");
}

#[test]
fn a_key_that_is_named_counts_for_that_opening_alone() {
    let keys = Keys::new();
    let store = memory();
    let private = keys.private();
    let id = keys.create(&store, Some(private.clone()));
    let remembered = || {
        let record = keys.keystore().record(id).expect("read").expect("record");
        record.customer_key
    };
    let file = keys.at().join("private.pem");
    let elsewhere = keys.at().join("elsewhere.pem");
    fs::copy(&file, &elsewhere).expect("copy");
    let named = KeyUri::from_file(&elsewhere).expect("uri");
    drop(keys.open(&store, Some(named.clone())).expect("named"));
    assert_eq!(remembered(), Some(private.to_string()));
    fs::remove_file(&file).expect("remove");
    let error = keys.open(&store, None).expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    assert!(error.to_string().contains("private.pem"), "{error}");
    let hint = error.hint().expect("hint");
    assert!(hint.contains("-o customer_key=URI"), "{hint}");
    // Where it was is remembered still: it may be a medium that is not there.
    drop(keys.open(&store, Some(named.clone())).expect("named again"));
    assert_eq!(remembered(), Some(private.to_string()));
    assert!(keys.open(&store, None).is_err());
    // A keystore that has never seen the volume remembers the first.
    fs::remove_file(keys.keystore().record_path(id)).expect("forget");
    drop(keys.open(&store, Some(named.clone())).expect("first"));
    assert_eq!(remembered(), Some(named.to_string()));
    drop(keys.open(&store, None).expect("remembered"));
}

#[test]
fn encrypted_customer_key_with_a_passphrase_file() {
    let keys = Keys::new();
    let store = memory();
    let passphrase = crate::keys::secret::Passphrase::from_bytes(b"open sesame").expect("memory");
    let path = keys.at().join("encrypted.pem");
    customer::file::generate(&path, 2048, Some(&passphrase)).expect("generate");
    let uri = KeyUri::from_file(&path).expect("uri");
    fs::write(keys.at().join("pass"), "open sesame\n").expect("write");
    let mut options = keys.create_options(Some(uri));
    options.passphrase = PassphraseSource::File(keys.at().join("pass"));
    create_empty(Arc::clone(&store), &options, &mut write_meta).expect("create");
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::KeyUnavailable);
    let mut options = keys.open_options(None);
    options.passphrase = PassphraseSource::File(keys.at().join("pass"));
    open(store, &options).expect("open");
}

#[test]
fn wrong_and_missing_keys_are_told_apart() {
    let keys = Keys::new();
    let store = memory();
    let id = keys.create(&store, Some(keys.private()));
    let path = keys.at().join("other.pem");
    let other = customer::file::generate(&path, 2048, None).expect("other");
    let uri = KeyUri::from_file(&path).expect("uri");
    let error = keys.open(&store, Some(uri)).expect_err("another key");
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.to_string().contains(other.fingerprint()), "{error}");
    // A key that failed is not remembered.
    let record = keys.keystore().record(id).expect("read").expect("record");
    assert_eq!(record.customer_key, Some(keys.private().to_string()));

    fs::remove_file(keys.at().join(format!("platform/volumes/{id}.json"))).expect("forget");
    let error = keys.open(&store, None).expect_err("none named");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    let hint = error.hint().expect("hint");
    assert!(
        hint.contains("customer_key=") && hint.contains("unverified"),
        "{hint}"
    );
    assert!(hint.contains("private.pem"), "{hint}");

    fs::remove_dir_all(keys.at().join("platform")).expect("lose the keystore");
    let error = keys
        .open(&store, Some(keys.private()))
        .expect_err("no keystore");
    assert_eq!(error.kind(), ErrorKind::KeystoreMissing);
    assert!(
        !keys.at().join("platform").exists(),
        "opening makes no keystore"
    );
    // A new keystore is not the one that was lost.
    let elsewhere = memory();
    keys.create(&elsewhere, None);
    assert_eq!(
        kind_of(keys.open(&store, Some(keys.private()))),
        ErrorKind::WrongKey
    );
}

#[test]
fn customer_managed_mode_cannot_be_turned_off() {
    let keys = Keys::new();
    let (theirs, mine) = (memory(), memory());
    let id = keys.create(&theirs, None);
    keys.create(&mine, Some(keys.private()));
    // A platform-managed volume where a customer key was named.
    let error = keys.open(&theirs, Some(keys.private())).expect_err("named");
    assert_eq!(error.kind(), ErrorKind::Tampered);
    // The same where the record knows a customer key.
    let keystore = keys.keystore();
    let mut record = keystore.record(id).expect("read").expect("record");
    record.customer_key = Some(keys.private().to_string());
    keystore.update_record(id, &record).expect("write");
    let error = keys.open(&theirs, None).expect_err("remembered");
    assert!(matches!(error, VolumeError::Downgraded { .. }), "{error}");
}

#[test]
fn pinned_fingerprint() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    let fingerprint = {
        let volume = keys.open(&store, None).expect("open");
        volume.fingerprint().expect("fingerprint")
    };
    let pinned = |pin: &str| {
        let mut options = keys.open_options(None);
        options.fingerprint = Some(pin.to_owned());
        open(Arc::clone(&store), &options)
    };
    drop(pinned(&fingerprint).expect("same"));
    drop(pinned(&fingerprint.replace('-', "").to_uppercase()).expect("same digits"));
    for other in ["", "0123", &fingerprint.replace(&fingerprint[..4], "zzzz")] {
        assert_eq!(kind_of(pinned(other)), ErrorKind::WrongKey);
    }
}

#[test]
fn one_opener_at_a_time() {
    let keys = Keys::new();
    let path = keys.at().join("volume");
    let directory: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&path).expect("store"));
    for store in [memory(), directory] {
        keys.create(&store, None);
        let first = keys.open(&store, None).expect("open");
        assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::InUse);
        drop(first);
        keys.open(&store, None).expect("free again");
    }
}

/// A lock file that is removed lets nobody in, not even to rescue what is left.
#[test]
fn a_lost_lock_file_keeps_everybody_out_while_it_is_open() {
    let keys = Keys::new();
    let path = keys.at().join("volume");
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&path).expect("store"));
    keys.create(&store, None);
    let first = keys.open(&store, None).expect("open");
    store.unlink(&lock_path()).expect("unlink");
    let rescued = |store: &Arc<dyn Store>| {
        let options = OpenOptions {
            read_only: true,
            ..keys.open_options(None)
        };
        rescue(Arc::clone(store), None, &options).map(drop)
    };
    let refused = rescued(&store).expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::InUse);
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::InUse);
    drop(first);
    store.unlink(&lock_path()).expect("made anew");
    rescued(&store).expect("free again");
    keys.open(&store, None).expect("free again");
}

#[test]
fn a_lost_lock_file_is_created_again() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    store.unlink(&lock_path()).expect("unlink");
    let first = keys.open(&store, None).expect("open");
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::InUse);
    drop(first);
}

/// What `cp -al` does.
fn link_tree(from: &Path, to: &Path) {
    fs::create_dir(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            link_tree(&entry.path(), &target);
        } else {
            fs::hard_link(entry.path(), target).expect("link");
        }
    }
}

#[test]
fn a_hard_linked_copy_gets_files_of_its_own() {
    let keys = Keys::new();
    let (one, two) = (keys.at().join("one"), keys.at().join("two"));
    let first: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&one).expect("store"));
    keys.create(&first, None);
    link_tree(&one, &two);
    let second: Arc<dyn Store> = Arc::new(DirectoryStore::open(&two).expect("store"));
    assert_eq!(first.info(&meta_path()).expect("info").links, 2);
    let meta = read(&*first, &meta_path());
    let opened = keys.open(&first, None).expect("open");
    for store in [&first, &second] {
        for path in [meta_path(), lock_path(), header_path()] {
            assert_eq!(
                store.info(&path).expect("info").links,
                1,
                "{}",
                path.as_str()
            );
        }
        assert_eq!(read(&**store, &meta_path()), meta);
    }
    write(&*first, &meta_path(), b"changed");
    assert_eq!(read(&*second, &meta_path()), meta);
    let error = keys.open(&second, None).expect_err("it is a copy");
    assert!(matches!(error, VolumeError::IsCopy { .. }), "{error}");
    let reading = OpenOptions {
        read_only: true,
        ..keys.open_options(None)
    };
    let other = open(Arc::clone(&second), &reading).expect("to look at");
    assert!(other.is_copy() && other.check_writer().is_err());
    drop((opened, other));
    assert!(!one.join("meta.new").exists() && !one.join("lock.new").exists());
}

/// Moving a directory while a volume is created in it does not choose the volume's location.
#[test]
fn a_volume_that_is_made_takes_the_place_where_it_was_begun() {
    let keys = Keys::new();
    let top = keys.at().canonicalize().expect("path");
    let [mine, new] = ["mine", "new"].map(|name| top.join(name));
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&mine).expect("store"));
    keys.create(&store, None);
    fs::rename(&mine, top.join("aside")).expect("rename");
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&new).expect("store"));
    create_empty(
        Arc::clone(&store),
        &keys.create_options(None),
        &mut |fresh| {
            write_meta(fresh)?;
            Ok(fs::rename(&new, &mine)?)
        },
    )
    .expect("create");
    let refused = keys
        .open(&store, None)
        .expect_err("another one is expected");
    assert!(
        matches!(refused, VolumeError::AnotherVolume { .. }),
        "{refused}"
    );
    fs::rename(&mine, &new).expect("rename");
    keys.open(&store, None).expect("where it was made");
}

/// The directory was renamed between resolving its path and opening it.
#[test]
fn another_volume_is_expected_at_the_path_that_it_is_opened_by() {
    let keys = Keys::new();
    let [mine, other] = ["mine", "other"].map(|name| {
        let path = keys.at().canonicalize().expect("path").join(name);
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&path).expect("store"));
        let id = keys.create(&store, None);
        (path, store, id)
    });
    let by = |path: &Path| {
        let options = OpenOptions {
            path: Some(path.to_owned()),
            read_only: true,
            ..keys.open_options(None)
        };
        open(Arc::clone(&other.1), &options)
    };
    by(&other.0).expect("its own path");
    by(&keys.at().join("link")).expect("a path where nothing is known");
    match by(&mine.0).expect_err("another one is expected") {
        VolumeError::AnotherVolume { known, found, .. } => {
            assert_eq!((known, found), (mine.2, other.2));
        }
        error => panic!("{error}"),
    }
    let named = |path: &Path| {
        let options = OpenOptions {
            named: vec![path.to_owned()],
            read_only: true,
            ..keys.open_options(None)
        };
        open(Arc::clone(&other.1), &options).map(drop)
    };
    named(&other.0).expect("its own path");
    named(&keys.at().join("link")).expect("a link from where nothing is known");
    let refused = named(&mine.0).expect_err("a link was put in the place of another one");
    assert!(
        matches!(refused, VolumeError::AnotherVolume { .. }),
        "{refused}"
    );
    let vanished = |keystore: &str, path: &str, named: &[PathBuf]| {
        let top = keys.at().canonicalize().expect("path");
        refuse_vanished(&top.join(keystore), &top.join(path), named)
    };
    let at = std::slice::from_ref(&mine.0);
    for refused in [
        vanished("platform", "mine", &[]),
        vanished("platform", "new", at),
    ] {
        assert!(matches!(refused, Err(VolumeError::Vanished { .. })));
    }
    vanished("platform", "new", &[]).expect("fresh");
    vanished("none", "mine", at).expect("no keystore, nothing known");
}

#[test]
fn a_copy_that_shares_the_lock_of_an_open_volume_is_in_use() {
    let keys = Keys::new();
    let (one, two) = (keys.at().join("one"), keys.at().join("two"));
    let first: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&one).expect("store"));
    keys.create(&first, None);
    let opened = keys.open(&first, None).expect("open");
    link_tree(&one, &two);
    let second: Arc<dyn Store> = Arc::new(DirectoryStore::open(&two).expect("store"));
    let error = keys
        .open(&second, None)
        .expect_err("shared with an open volume");
    assert!(
        matches!(error, VolumeError::InUse { shared: true }),
        "{error}"
    );
    drop(opened);
    let error = keys.open(&second, None).expect_err("it is a copy");
    assert!(matches!(error, VolumeError::IsCopy { .. }), "{error}");
}

#[test]
fn create_refuses_what_is_not_empty_and_leaves_it_alone() {
    let keys = Keys::new();
    let store = memory();
    let id = keys.create(&store, None);
    let before = read(&*store, &header_path());
    let again = create_empty(
        Arc::clone(&store),
        &keys.create_options(None),
        &mut write_meta,
    );
    assert_eq!(again.expect_err("a volume").kind(), ErrorKind::Usage);
    assert_eq!(read(&*store, &header_path()), before);
    assert_eq!(
        keys.open(&store, None).expect("open").header().volume_id(),
        id
    );

    let path = keys.at().join("full");
    fs::create_dir_all(path.join("lost+found")).expect("mkdir");
    create::refuse_occupied_directory(&path).expect("as good as empty");
    fs::write(path.join("My Thesis.odt"), "").expect("write");
    let error = create::refuse_occupied_directory(&path).expect_err("occupied");
    assert!(error.to_string().contains("My Thesis.odt"));
    create::refuse_occupied_directory(&keys.at().join("absent")).expect("absent");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let keys = Keys::new();
    let store = memory();
    let error = create_empty(
        Arc::clone(&store),
        &keys.create_options(None),
        &mut |fresh| {
            write_meta(fresh)?;
            Err("the filesystem said no".into())
        },
    )
    .expect_err("failed");
    assert!(error.to_string().contains("said no"), "{error}");
    assert_eq!(store.list(&StorePath::root()).expect("list"), []);
    // A key that is not there: nothing was touched, not even a keystore made.
    let keys = Keys::new();
    let missing = KeyUri::from_file(&keys.at().join("none.pem")).expect("uri");
    let options = keys.create_options(Some(missing));
    let error = create_empty(Arc::clone(&store), &options, &mut write_meta).expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    assert!(!keys.at().join("platform").exists());
    assert_eq!(store.list(&StorePath::root()).expect("list"), []);
}

#[test]
fn the_keystore_cannot_be_inside_the_new_volume() {
    let keys = Keys::new();
    let path = keys.at().join("volume");
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open_or_create(&path).expect("store"));
    let options = CreateOptions {
        keystore: path.join("platform"),
        ..CreateOptions::default()
    };
    let error = create_empty(store, &options, &mut write_meta).expect_err("inside");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(fs::read_dir(&path).expect("list").count(), 0);
}

#[test]
fn a_directory_without_superblock_is_no_volume() {
    let keys = Keys::new();
    assert_eq!(kind_of(keys.open(&memory(), None)), ErrorKind::NotAVolume);
    assert!(matches!(inspect(&*memory()), Err(VolumeError::NotAVolume)));
}

#[test]
fn what_is_remembered_survives() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, Some(keys.private()));
    let volume = keys.open(&store, None).expect("open");
    volume
        .remember(Sequence(7), [[1; 16], [2; 16]], true)
        .expect("remember");
    drop(volume);
    let volume = keys.open(&store, None).expect("open");
    let record = volume.record.as_ref().expect("record");
    assert_eq!((record.sequence, record.clean), (Sequence(7), true));
    assert_eq!(record.page0_tags, [[1; 16], [2; 16]]);
    assert_eq!(record.customer_key, Some(keys.private().to_string()));
}

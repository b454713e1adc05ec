//! Closing a volume whose keystore cannot be written, without a mount.

use bilayer::fs::FsError;

use crate::support::{Mount, PAGE, ROOT, pattern, quiet};

#[test]
fn closing_reports_a_missing_record() {
    let mount = Mount::new();
    mount.file(ROOT, "file", &pattern(1, 0, PAGE));
    let volumes = mount.keystore.path().join("platform/volumes");
    let aside = mount.keystore.path().join("aside");
    std::fs::rename(&volumes, &aside).unwrap();
    std::fs::write(&volumes, "no directory").unwrap();
    let error = mount.fs.close().unwrap_err();
    assert!(matches!(error, FsError::NotRemembered(_)), "{error}");
    assert!(error.is_all_on_disk());
    let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
    drop(mount);
    // Nothing is written until the keystore is writable again; then everything is there.
    let before = store.to_memory();
    let refused = Mount::open(store.clone(), keystore.clone(), quiet());
    assert!(refused.is_err());
    assert_eq!(
        crate::support::audit::objects(&store),
        crate::support::audit::objects(&before)
    );
    std::fs::remove_file(&volumes).unwrap();
    std::fs::rename(&aside, &volumes).unwrap();
    let mount = Mount::open(store, keystore, quiet()).unwrap();
    assert_eq!(mount.contents(mount.at("file")), pattern(1, 0, PAGE));
    mount.finish();
}

#[test]
fn a_failure_is_shown_until_it_is_over() {
    let mount = Mount::new();
    assert_eq!(mount.fs.usage().keystore_failure, None);
    mount.file(ROOT, "file", &pattern(1, 0, PAGE));
    let volumes = mount.keystore.path().join("platform/volumes");
    let aside = mount.keystore.path().join("aside");
    std::fs::rename(&volumes, &aside).unwrap();
    std::fs::write(&volumes, "no directory").unwrap();
    mount.fs.sync().unwrap();
    let why = mount.fs.usage().keystore_failure.unwrap();
    assert!(why.contains("volumes"), "{why}");
    std::fs::remove_file(&volumes).unwrap();
    std::fs::rename(&aside, &volumes).unwrap();
    mount.fs.sync().unwrap();
    assert_eq!(mount.fs.usage().keystore_failure, None);
    mount.finish();
}

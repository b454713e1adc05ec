//! Rules for the directory store alone: only plain files, and nothing outside the directory.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use bilayer::store::directory::DirectoryStore;
use bilayer::store::{EntryKind, OpenMode, Store, StorePath};

use super::{contents, create, names, path};

#[test]
fn symbolic_links_are_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"outside").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    symlink(outside.path().join("none"), dir.path().join("dangling")).unwrap();
    symlink(outside.path(), dir.path().join("objects")).unwrap();

    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        for name in ["file", "dangling"] {
            let error = store.open(&path(name), mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
        assert!(store.open(&path("objects/secret"), mode).is_err());
    }
    assert!(store.open(&path("dangling"), OpenMode::CreateNew).is_err());
    assert!(
        store
            .open(&path("objects/new"), OpenMode::CreateNew)
            .is_err()
    );
    assert!(store.lock(&path("file")).is_err());
    assert!(store.list(&path("objects")).is_err());
    assert!(store.unlink(&path("objects/secret")).is_err());
    assert!(store.create_dir(&path("objects/1")).is_err());
    assert_eq!(store.info(&path("file")).unwrap().kind, EntryKind::Other);
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(left.len(), 1);

    // A hard link to a symbolic link is a link to the symbolic link itself.
    store.link(&path("file"), &path("copy")).unwrap();
    assert_eq!(store.info(&path("copy")).unwrap().kind, EntryKind::Other);
}

#[test]
fn pipes_and_sockets_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    let made = Command::new("mkfifo").arg(dir.path().join("pipe")).status();
    assert!(made.unwrap().success());
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    for (name, word) in [("pipe", "named pipe"), ("socket", "socket")] {
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            let error = store.open(&path(name), mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    let mut entries = store.list(&StorePath::root()).unwrap();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let other = |name: &str| (name.to_owned(), EntryKind::Other);
    assert_eq!(entries, [other("pipe"), other("socket")]);
}

#[test]
fn foreign_names_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    create(&store, "mine", b"");
    fs::write(dir.path().join("Not_Mine"), b"").unwrap();
    fs::write(dir.path().join(".nfs-tmp~"), b"").unwrap();
    assert_eq!(names(&store, &StorePath::root()), ["mine"]);
}

#[test]
fn modes_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    let store = DirectoryStore::open_or_create(&volume).unwrap();
    create(&store, "a", b"");
    store.create_dir(&path("d")).unwrap();
    let mode = |name: &str| {
        let metadata = fs::metadata(volume.join(name)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode(""), mode("a"), mode("d")), (0o700, 0o600, 0o700));
}

#[test]
fn a_volume_directory_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume/");
    assert_eq!(
        DirectoryStore::open(&volume).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    create(
        &DirectoryStore::open_or_create(&volume).unwrap(),
        "a",
        b"abc",
    );
    let again = DirectoryStore::open_or_create(&volume).unwrap();
    assert_eq!(contents(&again, "a").unwrap(), b"abc");
    let missing_parent = dir.path().join("none/volume");
    assert!(DirectoryStore::open_or_create(&missing_parent).is_err());
    fs::write(dir.path().join("file"), b"").unwrap();
    assert!(DirectoryStore::open(&dir.path().join("file")).is_err());
}

#[test]
fn the_open_directory_is_the_volume_wherever_it_moves() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open_or_create(&dir.path().join("volume")).unwrap();
    create(&store, "a", b"abc");
    fs::rename(dir.path().join("volume"), dir.path().join("moved")).unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    assert_eq!(contents(&store, "a").unwrap(), b"abc");
}

/// Run in a process of its own by the test below.
#[test]
#[ignore = "the second process of another test"]
fn second_process_tries_the_lock() {
    let Some(dir) = std::env::var_os("BILAYER_TEST_LOCK_DIRECTORY") else {
        return;
    };
    let store = DirectoryStore::open(dir.as_ref()).unwrap();
    let error = store.lock(&path("lock")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_lock_excludes_other_processes() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    create(&store, "lock", b"");
    let second = || {
        let test = "directory::second_process_tries_the_lock";
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", test])
            .env("BILAYER_TEST_LOCK_DIRECTORY", dir.path())
            .output()
            .unwrap()
            .status
            .success()
    };
    let held = store.lock(&path("lock")).unwrap();
    assert!(second());
    drop(held);
    assert!(!second(), "the lock was free, yet refused");
}

#[test]
fn a_locked_directory_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [store, other] = [(); 2].map(|()| DirectoryStore::open(dir.path()).unwrap());
    store.create_dir(&path("d")).unwrap();
    let set_mode = |name: &str, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(dir.path().join(name), mode).unwrap();
    };
    let mode = |name: &str| {
        let metadata = fs::metadata(dir.path().join(name)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    set_mode("d", 0o2755);
    let held = store.lock_dir(&path("d")).unwrap();
    assert_eq!(mode("d"), 0o2700);
    for store in [&store, &other] {
        let refused = store.lock_dir(&path("d")).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    }
    let refused = other.lock_dir_shared(&path("d")).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    drop(held);
    let shared = [&store, &other].map(|store| store.lock_dir_shared(&path("d")).unwrap());
    let refused = store.lock_dir(&path("d")).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    drop(shared);
    other.lock_dir(&path("d")).unwrap();
    let refused = store.lock_dir(&path("none")).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    set_mode("", 0o755);
    let before = store.restrict_to_owner().unwrap();
    assert_eq!(mode(""), 0o700);
    assert_eq!(store.restrict_to_owner(), None);
    store.set_permissions(before).unwrap();
    assert_eq!(mode(""), 0o755);
}

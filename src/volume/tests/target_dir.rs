//! The target directory of a new volume: what is cleaned up and what is left alone.

use super::*;
use crate::store::directory::DirectoryStore;

const MARK: &[u8] = b"bilayer: a volume is being made here\n";

/// A directory with a lock that holds these bytes, and these files and directories (`/` at the
/// end).
fn ground(lock: Option<&[u8]>, names: &[&str]) -> Arc<dyn Store> {
    let store = memory();
    let files = lock.map(|_| "lock").into_iter();
    for name in files.chain(names.iter().copied()) {
        match name.strip_suffix('/') {
            Some(name) => store.create_dir(&StorePath::new(name)).expect("mkdir"),
            None => drop(
                store
                    .open(&StorePath::new(name), OpenMode::CreateNew)
                    .expect("make"),
            ),
        }
    }
    if let Some(bytes) = lock {
        write(&*store, &lock_path(), bytes);
    }
    store
}

fn make(store: &Arc<dyn Store>, keys: &Keys) -> Result<VolumeId, VolumeError> {
    create_empty(
        Arc::clone(store),
        &keys.create_options(None),
        &mut write_meta,
    )
}

#[test]
fn only_what_an_attempt_left_is_taken_over() {
    let keys = Keys::new();
    let zeros = vec![0; MARK.len()];
    let whole = ["meta", "volume.json.new", "objects/", "objects/0000000a/"];
    let object = "objects/0000000a/00112233445566778899aabbccddeeff";
    let free: [(Option<&[u8]>, Vec<&str>); 6] = [
        (None, vec![]),
        (Some(b""), vec![]),
        (Some(&zeros), vec![]),
        (Some(MARK), vec![]),
        (Some(MARK), whole.to_vec()),
        (Some(MARK), [&whole[..], &[object]].concat()),
    ];
    for (lock, names) in free {
        let store = ground(lock, &names);
        make(&store, &keys).unwrap_or_else(|error| panic!("{names:?}: {error:?}"));
        assert_eq!(read(&*store, &lock_path()), b"");
        assert!(names.is_empty() || store.info(&StorePath::new(object)).is_err());
    }
    let other = b"bilayer: a volume is being made herE\n";
    let occupied: [(Option<&[u8]>, Vec<&str>); 11] = [
        (None, vec!["meta"]),
        (None, vec!["objects/"]),
        (Some(b""), vec!["objects/"]),
        (Some(&zeros), vec!["meta"]),
        (Some(other), vec!["meta"]),
        (Some(b"x"), vec![]),
        (Some(MARK), vec!["volume.json"]),
        (Some(MARK), vec!["letters"]),
        (Some(MARK), vec!["objects/", "objects/letters"]),
        (
            Some(MARK),
            vec!["objects/", "objects/0000000a/", "objects/0000000a/letter"],
        ),
        (Some(MARK), vec!["meta/"]),
    ];
    for (lock, names) in occupied {
        let store = ground(lock, &names);
        let error = make(&store, &keys).expect_err("refused");
        assert!(
            matches!(error, VolumeError::Occupied(_)),
            "{names:?}: {error:?}"
        );
        for name in &names {
            let path = StorePath::new(name.trim_end_matches('/'));
            store.info(&path).expect("left alone");
        }
        if let Some(bytes) = lock {
            assert_eq!(read(&*store, &lock_path()), bytes, "left alone");
        }
    }
}

#[test]
fn an_attempt_under_way_is_left_alone() {
    let keys = Keys::new();
    let store = ground(Some(MARK), &["meta"]);
    let lock = store.lock(&lock_path()).expect("lock");
    let error = make(&store, &keys).expect_err("in use");
    assert!(matches!(error, VolumeError::InUse { .. }), "{error:?}");
    store.info(&meta_path()).expect("left alone");
    drop(lock);
    make(&store, &keys).expect("its maker is gone");
}

#[test]
fn a_lock_that_is_somebody_elses_file_is_not_written_to() {
    let keys = Keys::new();
    let store = ground(Some(b""), &[]);
    // Names that no store path can say are not seen: one elsewhere is as good.
    store.create_dir(&objects_path()).expect("mkdir");
    let other = StorePath::new("objects/0000000a");
    store.link(&lock_path(), &other).expect("link");
    assert!(make(&store, &keys).is_err());
    assert_eq!(read(&*store, &other), b"");
}

#[test]
fn the_mark_beside_a_superblock_goes_when_the_volume_is_opened() {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, None);
    write(&*store, &lock_path(), MARK);
    drop(keys.open(&store, None).expect("open"));
    assert_eq!(read(&*store, &lock_path()), b"");
    // What is no mark is nobody's to clear.
    write(&*store, &lock_path(), b"letter");
    drop(keys.open(&store, None).expect("open"));
    assert_eq!(read(&*store, &lock_path()), b"letter");
}

#[test]
fn a_directory_with_hidden_names_is_refused() {
    let keys = Keys::new();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path();
    let store = DirectoryStore::open(path).expect("open");
    write_new(&store, "lock", MARK);
    std::fs::create_dir_all(path.join("objects/0000000a")).expect("mkdir");
    create::refuse_occupied_directory(path).expect("left by an attempt");
    for name in ["Letters", "objects/Letters", "objects/0000000a/Letter"] {
        std::fs::write(path.join(name), b"").expect("write");
        let error = create::refuse_occupied_directory(path).expect_err(name);
        assert!(matches!(error, VolumeError::Occupied(_)), "{error:?}");
        std::fs::remove_file(path.join(name)).expect("remove");
    }
    let store: Arc<dyn Store> = Arc::new(store);
    make(&store, &keys).expect("taken over");
}

fn write_new(store: &dyn Store, name: &str, bytes: &[u8]) {
    let file = store.open(&StorePath::new(name), OpenMode::CreateNew);
    file.expect("make").write_at(bytes, 0).expect("write");
}

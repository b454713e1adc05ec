//! How everything is made durable: at once if that proves something, otherwise file by file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::faulty::{CallKind, Fault, FaultyStore};
use bilayer::store::memory::MemoryStore;
use bilayer::store::sub::SubStore;
use bilayer::store::{Adopted, Store, StoreFile, StorePath, SyncPolicy};

use crate::{contents, create, path};

/// A mount; removed on drop.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, after a message, if this test may not mount.
    fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return None;
        }
        let mut command = std::process::Command::new("mount");
        let done = command.args(arguments).arg(at).status().unwrap();
        assert!(done.success(), "{command:?}");
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

/// The type of the filesystem at a path, determined independently of the program.
fn type_of(dir: &Path) -> String {
    let mut command = std::process::Command::new("stat");
    let said = command.args(["-f", "-c", "%T"]).arg(dir).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

fn policy(dir: &Path) -> SyncPolicy {
    DirectoryStore::open(dir).unwrap().sync_policy()
}

#[test]
fn the_type_of_the_backing_filesystem_decides() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = type_of(dir.path());
    let proven = ["ext2/ext3", "xfs", "btrfs", "f2fs", "tmpfs"];
    assert_eq!(
        policy(dir.path()).is_at_once(),
        proven.contains(&&*here),
        "{here}"
    );
    for other in ["/proc", "/sys"] {
        let SyncPolicy::EachFile { reason } = policy(Path::new(other)) else {
            panic!("{other}");
        };
        assert!(reason.contains(&other[1..]), "{other}: {reason}");
    }
}

/// Not the type of the path, which may be covered, nor that of its first directory.
#[test]
fn a_bind_mount_has_the_type_of_its_filesystem() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bound = dir.path().join("bound");
    fs::create_dir(&bound).unwrap();
    let here = policy(&bound);
    let Some(mounted) = Mounted::new(&["--bind", "/proc/sys"], &bound) else {
        return;
    };
    assert!(!policy(&bound).is_at_once());
    let opened = DirectoryStore::open(&bound).unwrap();
    drop(mounted);
    assert!(!opened.sync_policy().is_at_once());
    let Some(_tmpfs) = Mounted::new(&["-t", "tmpfs", "none"], &bound) else {
        return;
    };
    assert!(policy(&bound).is_at_once());
    fs::create_dir(bound.join("vol")).unwrap();
    let again = dir.path().join("again");
    fs::create_dir(&again).unwrap();
    let from = bound.join("vol");
    let Some(_again) = Mounted::new(&["--bind", from.to_str().unwrap()], &again) else {
        return;
    };
    assert!(policy(&again).is_at_once());
    drop(here);
}

/// A `syncfs` of a volume's directory does not reach a filesystem that is mounted inside it.
#[test]
fn a_volume_on_two_filesystems_is_synced_file_by_file() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("objects")).unwrap();
    assert!(policy(dir.path()).is_at_once());
    let objects = dir.path().join("objects");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "none"], &objects) else {
        return;
    };
    let devices = [dir.path(), &objects].map(|path| fs::metadata(path).unwrap().dev());
    assert_ne!(devices[0], devices[1]);
    for looks_first in [true, false] {
        let store = DirectoryStore::open(dir.path()).unwrap();
        if looks_first {
            let folder = path("objects/00000001");
            store.create_dir(&folder).unwrap();
            create(&store, "objects/00000001/one", b"");
        }
        store.sync_all().unwrap();
        assert!(!store.sync_policy().is_at_once(), "{looks_first}");
    }
}

/// The number of calls of each kind; none fails.
fn count(store: &FaultyStore, kind: CallKind) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let rule = move |call: &bilayer::store::faulty::Call<'_>| {
        counted.fetch_add(usize::from(call.kind == kind), Ordering::SeqCst);
        false
    };
    store.fail_when(rule, Fault::Error(Errno::EIO));
    calls
}

fn tree(store: &dyn Store) {
    for dir in ["objects", "objects/0", "objects/1"] {
        store.create_dir(&path(dir)).unwrap();
    }
    for name in ["meta", "objects/0/a", "objects/0/b", "objects/1/c"] {
        create(store, name, name.as_bytes());
    }
}

#[test]
fn file_by_file_everything_is_durable_too() {
    let store = FaultyStore::new();
    store.sync_each_file();
    assert!(!store.sync_policy().is_at_once());
    let kinds = [CallKind::Sync, CallKind::SyncDir, CallKind::SyncAll];
    let [files, dirs, at_once] = kinds.map(|kind| count(&store, kind));
    tree(&store);
    store.sync_all().unwrap();
    let calls = [&files, &dirs, &at_once].map(|calls| calls.load(Ordering::SeqCst));
    assert_eq!(calls, [4, 4, 0]);
    for seed in 0..50 {
        let left = store.survivor(seed);
        assert!(!left.sync_policy().is_at_once());
        for name in ["meta", "objects/0/a", "objects/0/b", "objects/1/c"] {
            let bytes = contents(&left, name);
            assert_eq!(bytes.as_deref(), Some(name.as_bytes()), "seed {seed}");
        }
    }
}

#[test]
fn of_a_volume_in_a_store_only_its_own_files() {
    let store = FaultyStore::new();
    store.sync_each_file();
    for volume in ["one", "two"] {
        store.create_dir(&path(volume)).unwrap();
    }
    let all: Arc<dyn Store> = Arc::new(store.clone());
    let [one, two] = ["one", "two"].map(|at| SubStore::over(Arc::clone(&all), path(at)));
    tree(&one);
    tree(&two);
    let files = count(&store, CallKind::Sync);
    one.sync_all().unwrap();
    assert_eq!(files.load(Ordering::SeqCst), 4);
}

#[test]
fn a_file_that_cannot_be_synced_is_an_error() {
    let store = FaultyStore::new();
    store.sync_each_file();
    tree(&store);
    let rule = |call: &bilayer::store::faulty::Call<'_>| {
        call.kind == CallKind::Sync && call.path.as_str() == "objects/0/b"
    };
    store.fail_when(rule, Fault::Error(Errno::EIO));
    store.sync_all().unwrap_err();
}

/// The descriptor is closed on return, so a failed write would not be reported any more.
#[test]
fn copied_files_are_durable_if_each_file_is_synced() {
    for each_file in [false, true] {
        let from = MemoryStore::new();
        create(&from, "a", &[7; 9000]);
        let to = FaultyStore::new();
        if each_file {
            to.sync_each_file();
        }
        let files = count(&to, CallKind::Sync);
        let adopted = to.adopt(&from, &path("a"), &path("a")).unwrap();
        assert_eq!(adopted, Adopted::Copied);
        assert_eq!(files.load(Ordering::SeqCst), usize::from(each_file));
    }
    let dir = tempfile::tempdir().unwrap();
    let from = MemoryStore::new();
    from.sync_each_file();
    assert!(!from.sync_policy().is_at_once());
    from.sync_all().unwrap();
    create(&from, "a", &[7; 9000]);
    let to = DirectoryStore::open(dir.path()).unwrap();
    to.adopt(&from, &path("a"), &path("a")).unwrap();
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), [7; 9000]);
}

#[test]
fn a_stalled_call_blocks_no_other() {
    let store = FaultyStore::new();
    let file: Arc<dyn StoreFile> = create(&store, "a", b"");
    let stall = store.stall_when(|kind, at| kind == CallKind::Write && at.as_str() == "a");
    assert!(!stall.is_reached_within(Duration::from_millis(1)));
    let (done, wait) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        file.write_at(b"late", 0).unwrap();
        done.send(()).unwrap();
    });
    assert!(stall.is_reached_within(Duration::from_secs(20)));
    create(&store, "b", b"x");
    assert_eq!(store.info(&path("a")).unwrap().len_bytes, 0);
    assert!(wait.recv_timeout(Duration::from_millis(20)).is_err());
    stall.release();
    wait.recv_timeout(Duration::from_secs(20)).unwrap();
    writer.join().unwrap();
    assert_eq!(store.info(&path("a")).unwrap().len_bytes, 4);
    assert_eq!(store.list(&StorePath::root()).unwrap().len(), 2);
}

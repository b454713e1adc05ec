//! The small volume that is attacked, and what is found in it afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::fs::types::{NodeId, XattrMode};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::store::{EntryKind, OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, OpenOptions};

use crate::support::{self, CHUNK, PAGE, ROOT, USER, pattern};

/// A case that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files of a volume's directory, by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What is stored: path of a file, its contents.
pub type Contents = BTreeMap<&'static str, Vec<u8>>;

/// What came of opening and reading a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// Everything that was stored.
    Whole,
    /// Everything that was stored at an earlier time.
    Older,
    /// Errors, and beside them only what was stored.
    PartlyRefused,
    /// It does not open.
    Refused,
}

pub fn options() -> FilesystemOptions {
    FilesystemOptions {
        commit_interval: Duration::from_secs(3600),
        meta_cache_bytes: 1 << 20,
        ..FilesystemOptions::default()
    }
}

pub fn create(store: &Arc<dyn Store>, keystore: &Path) {
    let options = CreateOptions {
        keystore: keystore.join("platform"),
        ..CreateOptions::default()
    };
    volume::create(Arc::clone(store), &options, &mut |fresh| {
        Filesystem::format(fresh, (0, 0)).map_err(Into::into)
    })
    .expect("create");
}

pub fn open(store: &Arc<dyn Store>, keystore: &Path) -> Result<Arc<Filesystem>, String> {
    let open = OpenOptions {
        keystore: keystore.join("platform"),
        ..OpenOptions::default()
    };
    let volume = volume::open(Arc::clone(store), &open).map_err(|error| error.to_string())?;
    Filesystem::open(volume, options()).map_err(|error| error.to_string())
}

/// Makes files of every sort: inline, of several pages, of two chunks with a hole.
pub fn fill(fs: &Filesystem, seed: u8) -> Contents {
    let mut contents = Contents::new();
    let dir = fs.mkdir(&USER, ROOT, b"dir", 0o755).expect("mkdir").node;
    let put = |parent: NodeId, name: &str, pieces: &[(usize, usize)]| {
        let made = fs.create(&USER, parent, name.as_bytes(), 0o644, libc::O_RDWR);
        let (attr, handle) = made.expect("create");
        let mut expected = Vec::new();
        for (at, len) in pieces {
            let data = pattern(seed, *at as u64, *len);
            let written = fs.write(attr.node, handle, *at as u64, &data, false, false);
            assert_eq!(written, Ok(*len));
            expected.resize(expected.len().max(at + len), 0);
            expected[*at..at + len].copy_from_slice(&data);
        }
        fs.fsync(attr.node, handle, false).expect("fsync");
        fs.release(attr.node, handle);
        expected
    };
    contents.insert("small", put(ROOT, "small", &[(0, 700)]));
    contents.insert("dir/pages", put(dir, "pages", &[(0, 3 * PAGE + 50)]));
    let sparse = [(PAGE, 2 * PAGE), (CHUNK + 10, PAGE)];
    contents.insert("dir/sparse", put(dir, "sparse", &sparse));
    let twin = put(dir, "twin", &[(0, 2 * PAGE)]);
    contents.insert("dir/twin", twin);
    let value = pattern(seed, 0, 5000);
    let node = fs.lookup(dir, b"twin").expect("lookup").node;
    fs.set_xattr(&USER, node, b"user.long", &value, XattrMode::Any)
        .expect("xattr");
    contents.insert("dir/twin:user.long", value);
    contents
}

/// All bytes of a closed volume.
pub fn files(store: &dyn Store) -> Files {
    fn add(store: &dyn Store, dir: &str, files: &mut Files) {
        let here = if dir.is_empty() {
            StorePath::root()
        } else {
            StorePath::new(dir)
        };
        for (name, kind) in store.list(&here).expect("list") {
            let path = format!("{dir}{}{name}", if dir.is_empty() { "" } else { "/" });
            if kind == EntryKind::Directory {
                add(store, &path, files);
                continue;
            }
            let file = store
                .open(&StorePath::new(&path), OpenMode::Read)
                .expect("open");
            let mut bytes = vec![0; file.len().expect("len") as usize];
            file.read_at(&mut bytes, 0).expect("read");
            files.insert(path, bytes);
        }
    }
    let mut found = Files::new();
    add(store, "", &mut found);
    found
}

/// Puts them into an empty store.
pub fn restore(store: &dyn Store, files: &Files) {
    for (path, bytes) in files {
        let path = StorePath::new(path);
        let mut dirs = vec![path.parent()];
        while !dirs[dirs.len() - 1].is_root() {
            dirs.push(dirs[dirs.len() - 1].parent());
        }
        for dir in dirs.iter().rev().skip(1) {
            let _ = store.create_dir(dir);
        }
        let file = store.open(&path, OpenMode::CreateNew).expect("make");
        file.write_at(bytes, 0).expect("write");
    }
}

/// Reads one stored thing: a file, or `file:attribute`.
fn read(fs: &Filesystem, path: &str) -> Result<Vec<u8>, Errno> {
    let (path, attribute) = match path.split_once(':') {
        Some((path, attribute)) => (path, Some(attribute)),
        None => (path, None),
    };
    let mut attr = fs.getattr(ROOT)?;
    for name in path.split('/') {
        let mut names = Vec::new();
        fs.read_dir(attr.node, fs.open_dir(attr.node)?, 2, &mut |entry| {
            names.push(entry.name.to_vec());
            true
        })?;
        let listed = names.iter().any(|listed| listed == name.as_bytes());
        let found = fs.lookup(attr.node, name.as_bytes());
        // A name may be refused; it must not be gone.
        assert_ne!(found.as_ref().err(), Some(&Errno::ENOENT), "{path} is gone");
        assert!(listed, "{path} is not listed");
        attr = found?;
    }
    if let Some(attribute) = attribute {
        let value = fs.get_xattr(attr.node, attribute.as_bytes());
        assert_ne!(value.as_ref().err(), Some(&Errno::ENODATA), "{path}");
        return value;
    }
    let handle = fs.open_file(&USER, attr.node, libc::O_RDONLY)?;
    let mut bytes = vec![0xEE; attr.size as usize];
    let read = fs.read(attr.node, handle, 0, &mut bytes);
    fs.release(attr.node, handle);
    assert_eq!(read?, bytes.len(), "{path} is as long as it says");
    Ok(bytes)
}

/// Opens the volume, reads everything, changes something, closes it.
fn examine(
    store: &Arc<dyn Store>,
    keystore: &Path,
    stored: &Contents,
    older: Option<&Contents>,
) -> Outcome {
    let Ok(fs) = open(store, keystore) else {
        return Outcome::Refused;
    };
    let (mut whole, mut refused) = (true, false);
    for (path, expected) in stored {
        match read(&fs, path) {
            Err(_) => refused = true,
            Ok(found) if found == *expected => {}
            Ok(found) => {
                let before = older.and_then(|older| older.get(path));
                assert!(
                    before.is_some_and(|before| is_mixture(&found, expected, before)),
                    "{path} holds what was never stored there"
                );
                whole = false;
            }
        }
    }
    // It must bear being used, too.
    if let Ok((attr, handle)) = fs.create(&USER, ROOT, b"new", 0o644, libc::O_RDWR) {
        let _ = fs.write(attr.node, handle, 0, &pattern(9, 0, 9000), false, false);
        let _ = fs.fsync(attr.node, handle, false);
        fs.release(attr.node, handle);
    }
    let _ = fs.close();
    match (refused, whole) {
        (true, _) => Outcome::PartlyRefused,
        (false, true) => Outcome::Whole,
        (false, false) => Outcome::Older,
    }
}

/// True when each page is as it is now, as it was before, or as it was when the file was made:
/// any length, nothing but zeros.
fn is_mixture(found: &[u8], now: &[u8], before: &[u8]) -> bool {
    found.chunks(PAGE).enumerate().all(|(index, page)| {
        let stored = |bytes: &[u8]| {
            bytes
                .get(index * PAGE..)
                .is_some_and(|b| b.starts_with(page))
        };
        stored(now) || stored(before) || page.iter().all(|byte| *byte == 0)
    })
}

/// The same, with a panic or a hang told as what it is.
pub fn attack(
    what: &str,
    store: &Arc<dyn Store>,
    keystore: &Path,
    stored: &Contents,
    older: Option<&Contents>,
) -> Outcome {
    let (done, wait) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outcome =
                catch_unwind(AssertUnwindSafe(|| examine(store, keystore, stored, older)));
            let _ = done.send(outcome);
        });
        match wait.recv_timeout(PATIENCE) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                panic!("{what}: {}", said.unwrap_or_default())
            }
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{what}: hangs");
                std::process::abort()
            }
            Err(RecvTimeoutError::Disconnected) => panic!("{what}: ended"),
        }
    })
}

/// A volume in memory with what it holds.
pub struct Victim {
    pub keystore: Arc<tempfile::TempDir>,
    pub stored: Contents,
    /// As it was before its last use.
    pub older: (Contents, Files),
    pub files: Files,
    /// As the end of the process left it.
    pub killed: Files,
    /// What the platform keystore knows after the clean unmount.
    records: Vec<(PathBuf, Vec<u8>)>,
}

impl Victim {
    /// Writes every file twice, with a clean unmount in between.
    pub fn new(keystore: Arc<tempfile::TempDir>) -> Self {
        use bilayer::store::memory::MemoryStore;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        create(&store, keystore.path());
        let fs = open(&store, keystore.path()).expect("open");
        let before = fill(&fs, 1);
        fs.close().expect("close");
        drop(fs);
        let old_files = files(&*store);
        let fs = open(&store, keystore.path()).expect("open again");
        let mut stored = before.clone();
        for (path, data) in &mut stored {
            if path.contains(':') {
                continue;
            }
            let node = path.split('/').fold(ROOT, |node, name| {
                fs.lookup(node, name.as_bytes()).expect("lookup").node
            });
            let handle = fs.open_file(&USER, node, libc::O_RDWR).expect("open");
            let end = data.len().min(PAGE + 300);
            let new = pattern(2, 5, end - 5);
            data[5..end].copy_from_slice(&new);
            let written = fs.write(node, handle, 5, &new, false, false);
            assert_eq!(written, Ok(new.len()));
            fs.fsync(node, handle, false).expect("fsync");
            fs.release(node, handle);
        }
        let killed = files(&*store);
        fs.close().expect("close");
        drop(fs);
        let records = fs::read_dir(keystore.path().join("platform/volumes")).expect("records");
        let records = records
            .map(|entry| entry.expect("record").path())
            .map(|path| (path.clone(), fs::read(&path).expect("record")))
            .collect();
        Self {
            keystore,
            stored,
            older: (before, old_files),
            files: files(&*store),
            killed,
            records,
        }
    }

    /// Lets the platform keystore know again what it knew before the attacks.
    pub fn remind(&self) {
        for (path, bytes) in &self.records {
            fs::write(path, bytes).expect("record");
        }
    }

    /// Opens a changed copy in memory.
    pub fn attack(&self, what: &str, files: &Files, older: bool) -> Outcome {
        let store: Arc<dyn Store> = Arc::new(bilayer::store::memory::MemoryStore::new());
        restore(&*store, files);
        let older = older.then_some(&self.older.0);
        attack(what, &store, self.keystore.path(), &self.stored, older)
    }
}

pub fn keystore() -> Arc<tempfile::TempDir> {
    support::keystore()
}

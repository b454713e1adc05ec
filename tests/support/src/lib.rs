//! Set-up that the tests share. This module has a volume in memory with a filesystem on it, for
//! tests without a mount; [`real`] has the built program and mounts through the kernel; [`world`]
//! is the filesystem beside a model of it; [`fuzz_targets`] are run by the fuzzer and over kept
//! inputs.
//!
//! Nothing keeps references as a kernel does: a helper forgets each inode that it looks up or
//! creates, so only open handles keep an unlinked file alive.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::new_without_default,
    reason = "tests make a volume or a model on purpose, never by default"
)]
#![allow(
    clippy::missing_errors_doc,
    reason = "an error of set-up ends the test, whatever it is"
)]

pub mod audit;
pub mod comparison;
pub mod deployed;
pub mod differences;
pub mod forge;
pub mod fuzz_targets;
pub mod kept;
pub mod machine;
pub mod model;
pub mod namespace;
pub mod operation;
pub mod real;
pub mod tree;
pub mod world;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bilayer::errno::Errno;
use bilayer::fs::types::{Attr, Caller, Handle, NodeId, Owner, SetAttr, WriteFlags};
use bilayer::fs::{Filesystem, FilesystemOptions, FsError};
use bilayer::store::faulty::FaultyStore;
use bilayer::store::sub::SubStore;
use bilayer::store::{Store, StorePath};
use bilayer::volume::{self, CreateOptions, OpenOptions, Volume, VolumeError};

/// Bytes of contents in one page.
pub const PAGE: usize = 4032;
/// Bytes in one chunk of a file.
pub const CHUNK: usize = 4 << 20;
/// Unit of `lseek(2)` with `SEEK_DATA` and `SEEK_HOLE`, in bytes.
pub const BLOCK: u64 = 4096;

/// An ordinary user.
pub const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    umask: 0,
};

/// Root.
pub const ADMIN: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// The root directory.
pub const ROOT: NodeId = NodeId::ROOT;

/// Options under which only fsync, close and a rename over a name commit.
pub fn quiet() -> FilesystemOptions {
    FilesystemOptions {
        commit_interval: Duration::from_secs(3600),
        meta_cache_bytes: 4 << 20,
        open_objects: 16,
        ..FilesystemOptions::default()
    }
}

/// Directory of the platform keystore. In memory if there is such a filesystem: every commit in the
/// background updates a record in it.
pub fn keystore() -> Arc<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let made = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
    Arc::new(made.expect("a directory for the keystore"))
}

/// A copy of the keystore, for a test that continues in several ways: it must not learn of the
/// commits of the others.
pub fn fork(keystore: &tempfile::TempDir) -> Arc<tempfile::TempDir> {
    let fork = self::keystore();
    copy_tree(keystore.path(), fork.path());
    fork
}

/// Copies a directory recursively.
pub fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            let mut private = std::fs::DirBuilder::new();
            private.mode(0o700).create(&target).expect("mkdir");
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Creates a platform-managed volume with an empty filesystem.
pub fn format(store: &FaultyStore, keystore: &Path, size_bytes: Option<u64>) {
    let options = CreateOptions {
        keystore: keystore.join("platform"),
        size_bytes,
        ..CreateOptions::default()
    };
    format_in(Arc::new(store.clone()), &options);
}

/// Creates a volume of this size in any store.
pub fn format_in(store: Arc<dyn Store>, options: &CreateOptions) {
    volume::create_empty(store, options, &mut |fresh| {
        Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
    })
    .expect("create");
}

/// Opens a volume, without a filesystem on it.
pub fn open_volume(store: &FaultyStore, keystore: &Path, read_only: bool) -> Volume {
    try_open_volume(Arc::new(store.clone()), keystore, read_only).expect("open the volume")
}

/// Opens a volume; the test expects that this may fail.
pub fn try_open_volume(
    store: Arc<dyn Store>,
    keystore: &Path,
    read_only: bool,
) -> Result<Volume, VolumeError> {
    let options = OpenOptions {
        keystore: keystore.join("platform"),
        read_only,
        ..OpenOptions::default()
    };
    volume::open(store, &options)
}

/// A directory of a store.
pub fn directory_of(store: &FaultyStore, at: &StorePath) -> Arc<dyn Store> {
    match at.is_root() {
        true => Arc::new(store.clone()),
        false => Arc::new(SubStore::over(Arc::new(store.clone()), at.clone())),
    }
}

/// A filesystem in use.
#[derive(Clone)]
pub struct Mount {
    /// The platform keystore, on a disk.
    pub keystore: Arc<tempfile::TempDir>,
    /// The store that contains the volume.
    pub store: FaultyStore,
    /// The volume's directory in the store.
    pub at: StorePath,
    /// Options of the filesystem.
    pub options: FilesystemOptions,
    /// The filesystem.
    pub fs: Arc<Filesystem>,
}

impl Mount {
    /// A new volume, mounted with the options of [`quiet`].
    pub fn new() -> Self {
        Self::with(None, quiet())
    }

    /// A new volume of that size, mounted with these options.
    pub fn with(size_bytes: Option<u64>, options: FilesystemOptions) -> Self {
        let (store, keystore) = (FaultyStore::new(), keystore());
        format(&store, keystore.path(), size_bytes);
        Self::open(store, keystore, options).expect("open the filesystem")
    }

    /// Opens a volume that exists.
    pub fn open(
        store: FaultyStore,
        keystore: Arc<tempfile::TempDir>,
        options: FilesystemOptions,
    ) -> Result<Self, FsError> {
        Self::open_at(store, StorePath::root(), keystore, options)
    }

    /// Opens a volume in a directory of the store.
    pub fn open_at(
        store: FaultyStore,
        at: StorePath,
        keystore: Arc<tempfile::TempDir>,
        options: FilesystemOptions,
    ) -> Result<Self, FsError> {
        let directory = directory_of(&store, &at);
        let volume = try_open_volume(directory, keystore.path(), options.read_only)?;
        let fs = Filesystem::open(volume, options.clone())?;
        Ok(Self {
            keystore,
            store,
            at,
            options,
            fs,
        })
    }

    /// Closes and opens again; in between everything is counted again.
    pub fn reopen(self) -> Self {
        let (store, at, keystore, options) = self.end();
        let totals = audit::audit_at(&store, &at, keystore.path());
        let again = Self::open_at(store, at, keystore, options).expect("open again");
        again.compare_usage(&totals);
        again
    }

    fn end(
        self,
    ) -> (
        FaultyStore,
        StorePath,
        Arc<tempfile::TempDir>,
        FilesystemOptions,
    ) {
        self.fs.close().expect("close");
        (self.store, self.at, self.keystore, self.options)
    }

    /// The filesystem's counters agree with the counts.
    pub fn compare_usage(&self, totals: &audit::Totals) {
        let usage = self.fs.usage();
        let used_bytes = totals.pages * 4096 + totals.record_bytes;
        assert_eq!(usage.used_bytes, used_bytes, "used bytes");
        assert_eq!(usage.inodes, totals.inodes, "inodes");
    }

    /// Ends the process without notice and opens again.
    pub fn kill(self) -> Self {
        self.store.restart_process();
        // Only ends its thread: the store refuses every call of the former process.
        let _ = self.fs.close();
        let (store, at, keystore, options) = (self.store, self.at, self.keystore, self.options);
        drop(self.fs);
        Self::open_at(store, at, keystore, options).expect("open after a kill")
    }

    /// Closes and counts.
    pub fn finish(self) -> audit::Totals {
        let (store, at, keystore, _) = self.end();
        audit::audit_at(&store, &at, keystore.path())
    }

    /// Makes all metadata applied so far durable.
    pub fn commit(&self) {
        let handle = self.fs.open_dir(ROOT).expect("open the root");
        self.fs.fsync_dir().expect("commit");
        self.fs.release_dir(ROOT, handle);
    }

    /// Looks a name up, and forgets the reference again.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attr, Errno> {
        let attr = self.fs.lookup(parent, name)?;
        self.fs.forget(attr.node, 1);
        Ok(attr)
    }

    /// The node at a path below the root.
    pub fn at(&self, path: &str) -> NodeId {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.fold(ROOT, |node, part| {
            let attr = self.lookup(node, part.as_bytes());
            attr.unwrap_or_else(|error| panic!("{path}: {error:?}"))
                .node
        })
    }

    /// Creates a directory as an ordinary user.
    pub fn mkdir(&self, parent: NodeId, name: &str) -> NodeId {
        let attr = self.fs.mkdir(&USER, parent, name.as_bytes(), 0o755);
        let node = attr.expect("mkdir").node;
        self.fs.forget(node, 1);
        node
    }

    /// Creates a file and keeps it open.
    pub fn create(&self, parent: NodeId, name: &str) -> (NodeId, Handle) {
        let made = self
            .fs
            .create(&USER, parent, name.as_bytes(), 0o644, libc::O_RDWR);
        let (attr, handle) = made.expect("create");
        self.fs.forget(attr.node, 1);
        (attr.node, handle)
    }

    /// Creates a file with contents and closes it.
    pub fn file(&self, parent: NodeId, name: &str, contents: &[u8]) -> NodeId {
        let (node, handle) = self.create(parent, name);
        self.put(node, handle, 0, contents);
        self.fs.release(node, handle);
        node
    }

    /// Opens a file for reading and writing as an ordinary user.
    pub fn open_rw(&self, node: NodeId) -> Handle {
        self.fs.open_file(&USER, node, libc::O_RDWR).expect("open")
    }

    /// Writes all of the bytes.
    #[track_caller]
    pub fn put(&self, node: NodeId, handle: Handle, offset: u64, data: &[u8]) {
        let written = self
            .fs
            .write(node, handle, offset, data, WriteFlags::default());
        assert_eq!(written, Ok(data.len()));
    }

    /// All bytes of a file.
    #[track_caller]
    pub fn contents(&self, node: NodeId) -> Vec<u8> {
        let handle = self
            .fs
            .open_file(&USER, node, libc::O_RDONLY)
            .expect("open");
        let bytes = self.contents_of(node, handle);
        self.fs.release(node, handle);
        bytes.expect("read")
    }

    /// Reads a file to its end by an open handle.
    pub fn contents_of(&self, node: NodeId, handle: Handle) -> Result<Vec<u8>, Errno> {
        let size = self.fs.getattr(node)?.size as usize;
        let mut bytes = vec![0xEE; size + 10];
        let read = self.fs.read(node, handle, 0, &mut bytes)?;
        assert_eq!(read, size, "a read ends at the size");
        bytes.truncate(size);
        Ok(bytes)
    }

    /// Sets the length of a file.
    pub fn truncate(&self, node: NodeId, size: u64) -> Result<Attr, Errno> {
        let changes = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.fs.setattr(&USER, node, &changes)
    }

    /// Names in a directory, without `.` and `..`, sorted.
    pub fn names(&self, node: NodeId) -> Vec<String> {
        let handle = self.fs.open_dir(node).expect("open the directory");
        let mut names = Vec::new();
        let listed = self.fs.read_dir(node, handle, 2, &mut |entry| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        });
        listed.expect("list");
        self.fs.release_dir(node, handle);
        names.sort();
        names
    }

    /// Files in the store's `objects/`.
    pub fn objects(&self) -> usize {
        audit::objects(&self.store).len()
    }
}

/// Bytes that depend on their position and on the write.
pub fn pattern(seed: u8, offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|at| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(3) ^ seed.wrapping_mul(37) | 1)
        .collect()
}

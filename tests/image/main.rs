//! Volumes from images: what they contain, how it is sealed, and that they are independent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod crash;
mod deploy;
mod disks;
mod export;
mod export_changed;
mod export_crash;
mod inheritance;
mod matrix;
mod resealing;
mod unlinked;

use bilayer_test_support as support;
use bilayer_test_support::real;

use std::collections::BTreeMap;
use std::sync::Arc;

use bilayer::fs::Filesystem;
use bilayer::fs::snapshots::{ViewError, ViewKind};
use bilayer::fs::types::{Fallocate, FileKind, NodeId, Owner, WriteFlags, XattrMode};
use bilayer::image::{DeployOptions, Deployed, ImageError, NoProgress, Source, deploy};
use bilayer::keys::KeyUri;
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::faulty::FaultyStore;
use bilayer::store::sub::SubStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, OpenOptions, Volume, VolumeError};
use support::{ADMIN, CHUNK, PAGE, ROOT, USER, fork, pattern, quiet};

/// One disk with several volumes, and the keystore of the machine.
struct Disk {
    store: FaultyStore,
    keystore: Arc<tempfile::TempDir>,
}

impl Disk {
    fn new() -> Self {
        Self {
            store: FaultyStore::new(),
            keystore: support::keystore(),
        }
    }

    /// The directory of a volume, created if missing.
    fn at(&self, name: &str) -> Arc<dyn Store> {
        let path = StorePath::new(name);
        match self.store.info(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.store.create_dir(&path).unwrap();
                self.store.sync_dir(&StorePath::root()).unwrap();
            }
            // A failing store passes its errors on.
            _ => {}
        }
        Arc::new(SubStore::over(Arc::new(self.store.clone()), path))
    }

    /// Creates a volume with an empty filesystem.
    fn create(&self, name: &str, key: Option<&KeyUri>) {
        let options = CreateOptions {
            customer_key: key.cloned(),
            keystore: self.keystore.path().join("platform"),
            ..CreateOptions::default()
        };
        volume::create_empty(self.at(name), &options, &mut |fresh| {
            Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
        })
        .unwrap();
    }

    fn volume(&self, name: &str, key: Option<&KeyUri>) -> Result<Volume, VolumeError> {
        let options = OpenOptions {
            customer_key: key.cloned(),
            keystore: self.keystore.path().join("platform"),
            ..OpenOptions::default()
        };
        volume::open(self.at(name), &options)
    }

    /// Opens the filesystem with the key that the keystore remembers.
    fn open(&self, name: &str) -> Arc<Filesystem> {
        Filesystem::open(self.volume(name, None).unwrap(), quiet()).unwrap()
    }

    /// Opens, works and closes.
    fn with<T>(&self, name: &str, work: impl FnOnce(&Filesystem) -> T) -> T {
        let fs = self.open(name);
        let result = work(&fs);
        fs.close().unwrap();
        result
    }

    /// All contents of a filesystem.
    fn tree(&self, name: &str) -> Tree {
        self.with(name, tree)
    }

    /// All contents of an image.
    fn tree_of(&self, name: &str, image: &str) -> Tree {
        self.with(name, |fs| {
            let mut entries = Tree::new();
            add(fs, find(fs, &format!(".images/{image}")), "", &mut entries);
            entries
        })
    }

    /// Counts everything in a closed volume again.
    fn audit(&self, name: &str) -> support::audit::Totals {
        support::audit::audit_volume(&self.volume(name, None).unwrap())
    }

    fn options(&self) -> DeployOptions {
        DeployOptions {
            keystore: self.keystore.path().join("platform"),
            ..DeployOptions::default()
        }
    }

    /// Creates an image of a closed volume and deploys it.
    fn deploy(&self, from: &str, to: &str) -> Deployed {
        self.with(from, |fs| make_image(fs, to));
        self.deploy_with(from, to, &self.options()).unwrap()
    }

    /// Deploys the image of this name, of a closed volume, as the new volume.
    fn deploy_with(
        &self,
        from: &str,
        to: &str,
        options: &DeployOptions,
    ) -> Result<Deployed, ImageError> {
        let volume = self.volume(from, None)?;
        let meta = open_meta(&volume)?;
        let (_, image) = meta.find_view(ViewKind::Image, to).expect("an image");
        meta.freeze(image.generation);
        meta.commit(meta.newest_batch(), &|| true)?;
        let source = Source {
            volume: &volume,
            meta: &meta,
            view: View(image.generation),
            image: to,
        };
        let result = deploy(&source, self.at(to), options, &NoProgress);
        // Only the result of the deployment matters.
        let _ = meta.close();
        result
    }
}

/// Creates an image unless there is one of that name.
fn make_image(fs: &Filesystem, name: &str) {
    match fs.create_view(ViewKind::Image, name, None, "") {
        Ok(_) | Err(ViewError::Exists { .. }) => {}
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// The metadata of an open volume without a filesystem on it.
fn open_meta(volume: &Volume) -> Result<Meta, ImageError> {
    let path = StorePath::new(volume::META_NAME);
    let file = volume.store.open(&path, OpenMode::ReadWrite);
    let file = file.map_err(bilayer::meta::MetaError::from)?;
    let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto())?;
    Ok(Meta::open(file, 4 << 20)?)
}

/// A path, and everything visible about the file there.
type Tree = BTreeMap<String, (String, Vec<u8>)>;

fn tree(fs: &Filesystem) -> Tree {
    let mut entries = Tree::new();
    add(fs, ROOT, "", &mut entries);
    entries
}

fn add(fs: &Filesystem, node: NodeId, path: &str, entries: &mut Tree) {
    let attr = fs.getattr(node).unwrap();
    let mut xattrs = Vec::new();
    for name in fs.list_xattr(&ADMIN, node).unwrap().split(|b| *b == 0) {
        if !name.is_empty() {
            xattrs.push((name.to_vec(), fs.get_xattr(node, name).unwrap()));
        }
    }
    let bytes = match attr.kind {
        FileKind::Regular => read(fs, node),
        FileKind::Symlink => fs.readlink(node).unwrap(),
        _ => Vec::new(),
    };
    // Blocks are not compared, since reservations are not inherited. Nor is the time of access.
    let seen = format!(
        "{:?} {:o} {} {} {} {} {:?} {:?} {:?} {xattrs:?}",
        attr.kind,
        attr.perm,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.size,
        attr.mtime,
        attr.ctime,
        attr.crtime
    );
    entries.insert(path.to_owned(), (seen, bytes));
    if attr.kind != FileKind::Directory {
        return;
    }
    for name in names(fs, node) {
        let child = fs.lookup(node, name.as_bytes()).unwrap().node;
        add(fs, child, &format!("{path}/{name}"), entries);
        fs.forget(child, 1);
    }
}

fn names(fs: &Filesystem, node: NodeId) -> Vec<String> {
    let handle = fs.open_dir(node).unwrap();
    let mut names = Vec::new();
    fs.read_dir(node, handle, 2, &mut |entry| {
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        true
    })
    .unwrap();
    fs.release_dir(node, handle);
    names
}

fn read(fs: &Filesystem, node: NodeId) -> Vec<u8> {
    let handle = fs.open_file(&ADMIN, node, libc::O_RDONLY).unwrap();
    let size = fs.getattr(node).unwrap().size as usize;
    let mut bytes = vec![0xEE; size + 10];
    let count = fs.read(node, handle, 0, &mut bytes).unwrap();
    fs.release(node, handle);
    assert_eq!(count, size);
    bytes.truncate(size);
    bytes
}

/// Creates a file, or writes to an existing one, and makes it durable.
fn put(fs: &Filesystem, parent: NodeId, name: &str, pieces: &[(usize, &[u8])]) -> NodeId {
    let (node, handle) = match fs.lookup(parent, name.as_bytes()) {
        Ok(attr) => (
            attr.node,
            fs.open_file(&ADMIN, attr.node, libc::O_RDWR).unwrap(),
        ),
        Err(_) => {
            let made = fs.create(&USER, parent, name.as_bytes(), 0o644, libc::O_RDWR);
            let (attr, handle) = made.unwrap();
            (attr.node, handle)
        }
    };
    for (at, bytes) in pieces {
        let written = fs.write(node, handle, *at as u64, bytes, WriteFlags::default());
        assert_eq!(written, Ok(bytes.len()));
    }
    fs.fsync(node, handle, false).unwrap();
    fs.release(node, handle);
    fs.forget(node, 1);
    node
}

/// Files of every kind.
fn fill(fs: &Filesystem, seed: u8) {
    let dir = fs.mkdir(&USER, ROOT, b"dir", 0o750).unwrap().node;
    put(fs, ROOT, "empty", &[]);
    put(fs, ROOT, "small", &[(0, &pattern(seed, 0, 700))]);
    let pages = put(fs, dir, "pages", &[(0, &pattern(seed, 0, 9 * PAGE + 50))]);
    let tail = pattern(seed, 1, PAGE);
    put(fs, dir, "sparse", &[(PAGE, &tail), (CHUNK + 10, &tail)]);
    let large = put(fs, dir, "large", &[(0, &pattern(seed, 7, CHUNK + PAGE))]);
    fs.set_xattr(
        &USER,
        pages,
        b"user.long",
        &pattern(seed, 0, 5000),
        XattrMode::Any,
    )
    .unwrap();
    fs.link(pages, ROOT, b"second").unwrap();
    let link = fs.symlink(&USER, ROOT, b"link", b"dir/pages").unwrap();
    let fifo = fs.mknod(&USER, dir, b"fifo", libc::S_IFIFO | 0o600, 0);
    // A copy, whose first chunk is a link to an object of the same volume.
    let (copy, handle) = fs.create(&USER, dir, b"copy", 0o600, libc::O_RDWR).unwrap();
    let len = (CHUNK + PAGE) as u64;
    let mut done = 0;
    while done < len {
        let more = fs.copy_file_range(large, done, copy.node, done, len - done);
        done += more.unwrap();
    }
    fs.fsync(copy.node, handle, false).unwrap();
    fs.release(copy.node, handle);
    // Reserved, partly written, partly beyond the end.
    let (reserved, handle) = fs
        .create(&USER, ROOT, b"reserved", 0o600, libc::O_RDWR)
        .unwrap();
    let keep = Fallocate::Allocate { keep_size: true };
    fs.fallocate(reserved.node, handle, 0, 2 * CHUNK as u64, keep)
        .unwrap();
    let written = fs.write(
        reserved.node,
        handle,
        0,
        &pattern(seed, 3, 3 * PAGE),
        WriteFlags::default(),
    );
    written.unwrap();
    fs.fsync(reserved.node, handle, false).unwrap();
    fs.release(reserved.node, handle);
    for node in [
        dir,
        link.node,
        pages,
        copy.node,
        reserved.node,
        fifo.unwrap().node,
    ] {
        fs.forget(node, 1);
    }
}

/// The node at a path below the root.
fn find(fs: &Filesystem, path: &str) -> NodeId {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(ROOT, |node, part| {
            let entry = fs.lookup(node, part.as_bytes());
            let entry = entry.unwrap_or_else(|error| panic!("{path}: {error:?}"));
            fs.forget(entry.node, 1);
            entry.node
        })
}

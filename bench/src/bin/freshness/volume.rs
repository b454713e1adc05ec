//! A real volume without a mount, and which pages of `meta` its commits change.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bilayer::fs::types::{Caller, Handle, NodeId, Owner, WriteFlags};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::layers::KeyRing;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::{EntryInfo, Store, StoreFile};
use bilayer::volume::{self, CreateOptions, OpenOptions, Volume};
use bilayer_bench::Outcome;
use bilayer_bench::tree::Bytes;
use rustix::fs::OFlags;

/// Bytes of a page of `meta` with its header and padding, and of one of contents.
pub(crate) const META_STRIDE: u64 = 4608;
pub(crate) const PAGE: u64 = 4096;
/// Nonce and outer tag: no two pages have the same.
const IDENTITY: usize = 28;

const FILES_PER_DIRECTORY: u64 = 500;
const SMALL_BYTES: usize = 200;
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// The effect of a commit on `meta`.
pub(crate) struct Commit {
    /// Changed pages, by their position in the file: 0 and 1 are the slots of page 0.
    pub(crate) pages: Vec<u64>,
    /// How long the changes and the commit took.
    pub(crate) seconds: f64,
}

/// A volume in a directory, open.
pub(crate) struct Bench {
    place: PathBuf,
    pub(crate) fs: Arc<Filesystem>,
    made: u64,
    random: Bytes,
}

fn error(error: impl std::fmt::Debug) -> Box<dyn std::error::Error> {
    format!("{error:?}").into()
}

/// Opens a closed volume without a filesystem on it.
pub(crate) fn open_volume(place: &Path) -> Outcome<Volume> {
    let options = OpenOptions {
        keystore: place.join("keystore"),
        ..OpenOptions::default()
    };
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&place.join("volume"))?);
    Ok(volume::open(store, &options)?)
}

/// Its key sets.
pub(crate) fn keys(place: &Path) -> Outcome<Arc<KeyRing>> {
    Ok(Arc::clone(&open_volume(place)?.keys))
}

impl Bench {
    /// An empty volume.
    pub(crate) fn create(place: &Path) -> Outcome<Self> {
        fs::create_dir(place)?;
        let options = CreateOptions {
            keystore: place.join("keystore"),
            ..CreateOptions::default()
        };
        let store: Arc<dyn Store> =
            Arc::new(DirectoryStore::open_or_create(&place.join("volume"))?);
        volume::create_empty(store, &options, &mut |fresh| {
            Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
        })?;
        Self::open(place)
    }

    fn open(place: &Path) -> Outcome<Self> {
        let options = FilesystemOptions {
            commit_interval: Duration::from_secs(3600),
            ..FilesystemOptions::default()
        };
        Ok(Self {
            place: place.to_owned(),
            fs: Filesystem::open(open_volume(place)?, options)?,
            made: 0,
            random: Bytes::new(11),
        })
    }

    /// Creates small files in directories of a few hundred.
    pub(crate) fn add_files(&mut self, count: u64) -> Outcome<()> {
        for _ in 0..count {
            let (directory, number) = (self.made / FILES_PER_DIRECTORY, self.made);
            let name = format!("directory-{directory}");
            let parent = match self.fs.lookup(NodeId::ROOT, name.as_bytes()) {
                Ok(attr) => attr.node,
                Err(_) => {
                    self.fs
                        .mkdir(&CALLER, NodeId::ROOT, name.as_bytes(), 0o755)
                        .map_err(error)?
                        .node
                }
            };
            self.make(parent, &format!("file-{number}"), SMALL_BYTES)?;
            self.made += 1;
        }
        Ok(())
    }

    fn make(&mut self, parent: NodeId, name: &str, bytes: usize) -> Outcome<()> {
        let flags = OFlags::RDWR.bits() as i32;
        let made = self
            .fs
            .create(&CALLER, parent, name.as_bytes(), 0o644, flags);
        let (attr, handle) = made.map_err(error)?;
        let mut data = vec![0; bytes];
        self.random.fill(&mut data);
        self.fs
            .write(attr.node, handle, 0, &data, WriteFlags::default())
            .map_err(error)?;
        self.fs.release(attr.node, handle);
        Ok(())
    }

    /// Rewrites randomly chosen files among the first ones.
    pub(crate) fn rewrite(&mut self, count: u64, among: u64) -> Outcome<()> {
        let mut data = [0; SMALL_BYTES];
        for _ in 0..count {
            let number = self.random.below(among as usize) as u64;
            let directory = format!("directory-{}", number / FILES_PER_DIRECTORY);
            let parent = self.fs.lookup(NodeId::ROOT, directory.as_bytes());
            let parent = parent.map_err(error)?.node;
            let name = format!("file-{number}");
            let node = self.fs.lookup(parent, name.as_bytes()).map_err(error)?.node;
            let handle = self.fs.open_file(&CALLER, node, OFlags::RDWR.bits() as i32);
            let handle = handle.map_err(error)?;
            self.random.fill(&mut data);
            let written = self.fs.write(node, handle, 0, &data, WriteFlags::default());
            written.map_err(error)?;
            self.fs.release(node, handle);
        }
        Ok(())
    }

    /// Creates a file of this many MiB, durable, and opens it.
    pub(crate) fn large(&mut self, mib: u64) -> Outcome<(NodeId, Handle)> {
        let flags = OFlags::RDWR.bits() as i32;
        let made = self
            .fs
            .create(&CALLER, NodeId::ROOT, b"large", 0o644, flags);
        let (attr, handle) = made.map_err(error)?;
        let mut data = vec![0; 1 << 20];
        for at in 0..mib {
            self.random.fill(&mut data);
            self.fs
                .write(attr.node, handle, at << 20, &data, WriteFlags::default())
                .map_err(error)?;
        }
        self.fs.sync()?;
        Ok((attr.node, handle))
    }

    /// Overwrites this many random blocks of 4 KiB.
    pub(crate) fn overwrite(
        &mut self,
        file: (NodeId, Handle),
        mib: u64,
        blocks: u64,
    ) -> Outcome<Vec<u64>> {
        let mut data = vec![0; 4096];
        let mut places = Vec::new();
        for _ in 0..blocks {
            self.random.fill(&mut data);
            let at = self.random.below((mib << 8) as usize) as u64 * 4096;
            self.fs
                .write(file.0, file.1, at, &data, WriteFlags::default())
                .map_err(error)?;
            places.push(at);
        }
        Ok(places)
    }

    /// Makes changes and commits them. Returns the pages of `meta` that have changed.
    pub(crate) fn commit(
        &mut self,
        work: &mut dyn FnMut(&mut Self) -> Outcome<()>,
    ) -> Outcome<Commit> {
        let before = identities(&self.meta())?;
        let start = Instant::now();
        work(self)?;
        self.fs.sync()?;
        let seconds = start.elapsed().as_secs_f64();
        let after = identities(&self.meta())?;
        let changed = after.iter().enumerate();
        let changed = changed.filter(|(index, now)| before.get(*index) != Some(now));
        let pages = changed.map(|(index, _)| index as u64).collect();
        Ok(Commit { pages, seconds })
    }

    fn meta(&self) -> PathBuf {
        self.place.join("volume/meta")
    }

    /// Closes it.
    pub(crate) fn close(self) -> Outcome<()> {
        Ok(self.fs.close()?)
    }

    /// The number of runs of pages with the same sequence in each object, read from the plain
    /// fields of the pages.
    pub(crate) fn runs(&self) -> Outcome<Vec<u64>> {
        let mut runs = Vec::new();
        for folder in fs::read_dir(self.place.join("volume/objects"))? {
            for object in fs::read_dir(folder?.path())? {
                let file = File::open(object?.path())?;
                let (mut last, mut count) = (None, 0);
                for page in 0..file.metadata()?.len() / PAGE {
                    let mut sequence = [0; 8];
                    file.read_exact_at(&mut sequence, page * PAGE + 48)?;
                    count += u64::from(last != Some(sequence));
                    last = Some(sequence);
                }
                runs.push(count);
            }
        }
        Ok(runs)
    }
}

/// Nonce and tag of every page.
fn identities(path: &Path) -> Outcome<Vec<[u8; IDENTITY]>> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / META_STRIDE;
    let mut found = Vec::with_capacity(pages as usize);
    for page in 0..pages {
        let mut identity = [0; IDENTITY];
        file.read_exact_at(&mut identity, page * META_STRIDE)?;
        found.push(identity);
    }
    Ok(found)
}

/// The outer tags of all pages.
pub(crate) fn tags(place: &Path) -> Outcome<Vec<[u8; 16]>> {
    let all = identities(&place.join("volume/meta"))?;
    Ok(all
        .iter()
        .filter_map(|identity| identity.last_chunk().copied())
        .collect())
}

/// Pages of the file that are not empty.
pub(crate) fn used_pages(place: &Path) -> Outcome<u64> {
    let all = identities(&place.join("volume/meta"))?;
    Ok(all
        .iter()
        .filter(|identity| **identity != [0; IDENTITY])
        .count() as u64)
}

/// A file that records which pages of `meta` are read, and how many bytes are written.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) file: Arc<dyn StoreFile>,
    pub(crate) read: std::sync::Mutex<BTreeMap<u64, u64>>,
    pub(crate) written: AtomicU64,
}

impl Watched {
    pub(crate) fn over(file: Arc<dyn StoreFile>) -> Arc<Self> {
        Arc::new(Self {
            file,
            read: std::sync::Mutex::default(),
            written: AtomicU64::new(0),
        })
    }

    /// The pages read since the last call.
    pub(crate) fn take_read(&self) -> Vec<u64> {
        let read = self.read.lock().map(|mut read| std::mem::take(&mut *read));
        read.unwrap_or_default().into_keys().collect()
    }
}

impl StoreFile for Watched {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if let Ok(mut read) = self.read.lock() {
            let end = offset + buffer.len() as u64;
            for page in offset / META_STRIDE..end.div_ceil(META_STRIDE) {
                *read.entry(page).or_default() += 1;
            }
        }
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_at(bytes, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> std::io::Result<()> {
        self.file.punch(offset, len_bytes)
    }

    fn reserve(&self, offset: u64, len_bytes: u64) -> std::io::Result<()> {
        self.file.reserve(offset, len_bytes)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.file.sync()
    }

    fn info(&self) -> std::io::Result<EntryInfo> {
        self.file.info()
    }
}

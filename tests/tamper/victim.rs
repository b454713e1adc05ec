//! The small volumes that are attacked: their contents, their earlier contents, and those of other
//! volumes that an attacker may put into them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{NodeId, Owner, WriteFlags, XattrMode};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::ids::{CryptoId, VolumeId};
use bilayer::image::{DeployOptions, NoProgress, Source, deploy};
use bilayer::layers::KeyRing;
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::memory::MemoryStore;
use bilayer::store::sub::SubStore;
use bilayer::store::{EntryKind, OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, META_NAME, OpenOptions, Volume};

use crate::pieces::{self, Held, SCRATCH, Uses};
use crate::support::{self, ADMIN, CHUNK, PAGE, ROOT, USER, pattern};

/// Files of a volume's directory, by path.
pub type Files = BTreeMap<String, Vec<u8>>;
/// The records of a platform keystore, by file name.
type Records = BTreeMap<String, Vec<u8>>;

fn options(checkpoints: bool) -> FilesystemOptions {
    FilesystemOptions {
        checkpoint_interval: checkpoints.then_some(Duration::from_secs(3600)),
        commit_interval: Duration::from_secs(3600),
        meta_cache_bytes: 1 << 20,
        ..FilesystemOptions::default()
    }
}

/// A platform keystore for one case: opening a volume changes its records.
pub struct Keystore(Arc<tempfile::TempDir>);

impl Keystore {
    fn new() -> Self {
        Self(support::keystore())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("platform")
    }

    fn volumes(&self) -> PathBuf {
        self.path().join("volumes")
    }

    /// A keystore with the same keys.
    pub fn copy(&self) -> Self {
        fn copy(from: &Path, to: &Path) {
            fs::DirBuilder::new().mode(0o700).create(to).expect("make");
            for entry in fs::read_dir(from).expect("list") {
                let from = entry.expect("entry").path();
                let to = to.join(from.file_name().expect("a name"));
                if from.is_dir() {
                    copy(&from, &to);
                } else {
                    fs::copy(&from, &to).expect("copy");
                }
            }
        }
        let new = Self::new();
        copy(&self.path(), &new.path());
        new
    }

    fn records(&self) -> Records {
        let entries = fs::read_dir(self.volumes()).expect("records");
        let entries = entries.map(|entry| entry.expect("record"));
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().expect("text");
                (name, fs::read(entry.path()).expect("record"))
            })
            .collect()
    }

    /// Replaces all its records by these.
    pub fn remember(&self, records: &Records) {
        for name in self.records().keys() {
            fs::remove_file(self.volumes().join(name)).expect("remove");
        }
        for (name, bytes) in records {
            let mut file = fs::OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600);
            let mut file = file.open(self.volumes().join(name)).expect("make");
            file.write_all(bytes).expect("write");
        }
    }
}

fn volume(store: Arc<dyn Store>, keystore: &Keystore) -> Result<Volume, String> {
    let options = OpenOptions {
        keystore: keystore.path(),
        ..OpenOptions::default()
    };
    volume::open(store, &options).map_err(|error| error.to_string())
}

/// Opens a volume, with or without checkpoints of its metadata. The error is the one that its user
/// sees.
pub fn open(
    store: Arc<dyn Store>,
    keystore: &Keystore,
    checkpoints: bool,
) -> Result<Arc<Filesystem>, String> {
    let volume = volume(store, keystore)?;
    Filesystem::open(volume, options(checkpoints)).map_err(|error| error.to_string())
}

/// One disk with several volumes.
#[derive(Clone)]
pub struct Disk(MemoryStore);

impl Disk {
    /// A copy that can be changed independently.
    fn snapshot(&self) -> Self {
        Self(self.0.snapshot())
    }

    /// A copy of a volume, to be changed.
    pub fn copy_at(&self, name: &str) -> Arc<dyn Store> {
        self.snapshot().at(name)
    }

    /// The directory of a volume.
    pub fn at(&self, name: &str) -> Arc<dyn Store> {
        let path = StorePath::new(name);
        let _ = self.0.create_dir(&path);
        Arc::new(SubStore::over(Arc::new(self.0.clone()), path))
    }

    fn create(&self, name: &str, keystore: &Keystore) {
        let options = CreateOptions {
            keystore: keystore.path(),
            ..CreateOptions::default()
        };
        volume::create_empty(self.at(name), &options, &mut |fresh| {
            Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
        })
        .expect("create");
    }

    fn open(&self, name: &str, keystore: &Keystore) -> Arc<Filesystem> {
        open(self.at(name), keystore, false).expect("open")
    }

    /// Creates a volume from the image of that name.
    fn deploy(&self, from: &str, image: &str, keystore: &Keystore) {
        let volume = volume(self.at(from), keystore).expect("open");
        let meta = open_meta(&volume);
        let (_, record) = meta.find_view(ViewKind::Image, image).expect("an image");
        meta.freeze(record.generation);
        meta.commit(meta.newest_batch(), &|| true).expect("commit");
        let source = Source {
            volume: &volume,
            meta: &meta,
            view: View(record.generation),
            image,
        };
        let options = DeployOptions {
            keystore: keystore.path(),
            ..DeployOptions::default()
        };
        deploy(&source, self.at(image), &options, &NoProgress).expect("deploy");
        meta.close().expect("close");
    }
}

fn open_meta(volume: &Volume) -> Arc<Meta> {
    let path = StorePath::new(META_NAME);
    let file = volume.store.open(&path, OpenMode::ReadWrite).expect("meta");
    let file =
        MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()).expect("meta");
    Arc::new(Meta::open(file, 4 << 20).expect("metadata"))
}

/// All bytes of a closed volume.
pub fn files(store: &dyn Store) -> Files {
    fn add(store: &dyn Store, dir: &StorePath, files: &mut Files) {
        for (name, kind) in store.list(dir).expect("list") {
            let path = match dir.is_root() {
                true => StorePath::new(&name),
                false => StorePath::new(&format!("{}/{name}", dir.as_str())),
            };
            match kind {
                EntryKind::Directory => add(store, &path, files),
                EntryKind::File => {
                    files.insert(path.as_str().to_owned(), bytes(store, &path));
                }
                EntryKind::Other => {}
            }
        }
    }
    let mut files = Files::new();
    add(store, &StorePath::root(), &mut files);
    files
}

fn bytes(store: &dyn Store, path: &StorePath) -> Vec<u8> {
    let file = store.open(path, OpenMode::Read).expect("open");
    let mut bytes = vec![0; file.len().expect("len") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

/// Writes them into an empty store.
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

fn at(fs: &Filesystem, path: &str) -> NodeId {
    path.split('/').fold(ROOT, |node, name| {
        fs.lookup(node, name.as_bytes()).expect("lookup").node
    })
}

/// Writes to a file, which is created if missing, and syncs it.
fn put(fs: &Filesystem, path: &str, offset: usize, data: &[u8]) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() {
        ROOT
    } else {
        at(fs, parent)
    };
    let (node, handle) = match fs.lookup(parent, name.as_bytes()) {
        Ok(attr) => {
            let handle = fs.open_file(&ADMIN, attr.node, libc::O_RDWR);
            (attr.node, handle.expect("open"))
        }
        Err(_) => {
            let made = fs.create(&USER, parent, name.as_bytes(), 0o640, libc::O_RDWR);
            let (attr, handle) = made.expect("create");
            (attr.node, handle)
        }
    };
    let written = fs.write(node, handle, offset as u64, data, WriteFlags::default());
    assert_eq!(written, Ok(data.len()));
    fs.fsync(node, handle, false).expect("fsync");
    fs.release(node, handle);
}

/// Creates files of every kind: inline, of one object and of two, with holes, with attributes, with
/// shared objects.
fn fill(fs: &Filesystem, seed: u8) {
    fs.mkdir(&USER, ROOT, b"dir", 0o755).expect("mkdir");
    fs.mkdir(&USER, ROOT, SCRATCH.as_bytes(), 0o755)
        .expect("mkdir");
    put(fs, "small", 0, &pattern(seed, 0, 700));
    put(fs, "dir/pages", 0, &pattern(seed, 0, 3 * PAGE + 50));
    put(fs, "dir/sparse", PAGE, &pattern(seed, 7, 2 * PAGE));
    put(fs, "dir/sparse", CHUNK + 10, &pattern(seed, 8, PAGE));
    put(fs, "dir/twin", 0, &pattern(seed, 9, 2 * PAGE));
    put(fs, "dir/quiet", 0, &pattern(seed, 10, 2 * PAGE));
    let dir = at(fs, "dir");
    let twin = at(fs, "dir/twin");
    let value = pattern(seed, 11, 5000);
    fs.set_xattr(&USER, twin, b"user.long", &value, XattrMode::Any)
        .expect("xattr");
    fs.symlink(&USER, dir, b"link", b"some/where/else")
        .expect("symlink");
    // Shares the object.
    put(fs, "dir/clone", 0, b"");
    let (from, to) = (at(fs, "dir/quiet"), at(fs, "dir/clone"));
    let copied = fs.copy_file_range(from, 0, to, 0, 2 * PAGE as u64);
    assert_eq!(copied, Ok(2 * PAGE as u64));
    fs.sync().expect("sync");
}

/// Overwrites pages of most files; after each, the contents are added to the history.
fn change(fs: &Filesystem, seed: u8, history: &mut Vec<Held>) {
    let changes = [
        ("small", 5, 600),
        ("dir/pages", 5, PAGE + 295),
        ("dir/sparse", PAGE + 5, PAGE),
        ("dir/sparse", CHUNK + 5, 300),
        ("dir/twin", PAGE, PAGE),
    ];
    for (path, offset, len) in changes {
        put(fs, path, offset, &pattern(seed, offset as u64, len));
        history.push(pieces::survey(fs));
    }
}

/// A volume in one of its states.
pub struct State {
    pub disk: Disk,
    pub files: Files,
    pub uses: Uses,
    pub records: Records,
}

impl State {
    fn of(disk: &Disk, name: &str, keystore: &Keystore, held: &Held) -> Self {
        let state = Self {
            disk: disk.snapshot(),
            files: files(&*disk.at(name)),
            uses: Uses::new(),
            records: keystore.records(),
        };
        let copy = keystore.copy();
        let fs = open(state.disk.snapshot().at(name), &copy, false).expect("open");
        let of = pieces::files_of(&fs, held);
        fs.close().expect("close");
        drop(fs);
        copy.remember(&state.records);
        let volume = volume(state.disk.snapshot().at(name), &copy).expect("open");
        let uses = pieces::uses(&open_meta(&volume), &of, held);
        Self { uses, ..state }
    }

    /// With a keystore that has never seen the volume.
    fn as_unseen(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            files: self.files.clone(),
            uses: self.uses.clone(),
            records: Records::new(),
        }
    }
}

/// The keys of a volume.
pub struct Keyed {
    pub volume: VolumeId,
    pub keys: Arc<KeyRing>,
    /// Crypto id of `meta`.
    pub meta: CryptoId,
}

/// A volume whose pages an attacker may put into the victim.
pub struct Foreign {
    pub what: &'static str,
    pub files: Files,
    /// With the same keys and ids: its pages are authentic in the victim.
    pub same_ids: bool,
}

/// A volume to be attacked.
pub struct Victim {
    /// Its directory on the disk.
    pub name: &'static str,
    pub keystore: Keystore,
    pub held: Held,
    /// All contents that were ever committed.
    pub history: Vec<Held>,
    /// Contents that the copy has committed after it was made.
    pub other_history: Vec<Held>,
    /// At an earlier time, closed.
    pub older: Files,
    /// After a clean unmount, known to the keystore.
    pub closed: State,
    /// The same, on a machine that has never seen it.
    pub unseen: State,
    /// After the process was killed.
    pub killed: State,
    pub foreign: Vec<Foreign>,
    /// It is used with checkpoints of its metadata.
    pub checkpoints: bool,
}

impl Victim {
    /// A volume that was written twice in place, gave an image, and was written again after a
    /// snapshot.
    pub fn new() -> Self {
        let (disk, keystore) = (Disk(MemoryStore::new()), Keystore::new());
        let mut history = Vec::new();
        disk.create("volume", &keystore);
        let fs = disk.open("volume", &keystore);
        fill(&fs, 1);
        history.push(pieces::survey(&fs));
        fs.close().expect("close");
        drop(fs);
        let older = files(&*disk.at("volume"));
        let (copy, other_history) = live_on(&disk, &keystore);

        let fs = disk.open("volume", &keystore);
        change(&fs, 2, &mut history);
        fs.create_view(ViewKind::Image, "deployed", None, "")
            .expect("image");
        fs.close().expect("close");
        drop(fs);
        disk.deploy("volume", "deployed", &keystore);
        let fs = disk.open("deployed", &keystore);
        change(&fs, 4, &mut Vec::new());
        fs.close().expect("close");
        drop(fs);

        let foreign = vec![
            another(&keystore),
            Foreign {
                what: "a deployed volume",
                files: files(&*disk.at("deployed")),
                same_ids: false,
            },
            Foreign {
                what: "a copy that was used on",
                files: copy,
                same_ids: true,
            },
        ];
        let mut this = Self::finish(disk, "volume", keystore, history, older, foreign, false);
        this.other_history = other_history;
        this
    }

    /// The keys of the volume, of which no attacker has all.
    pub fn keyed(&self, state: &State) -> Keyed {
        let keystore = self.keystore.copy();
        keystore.remember(&state.records);
        let volume = volume(state.disk.copy_at(self.name), &keystore).expect("open");
        Keyed {
            volume: volume.header().volume_id(),
            keys: Arc::clone(&volume.keys),
            meta: volume.header().meta_crypto(),
        }
    }

    /// The volume that was deployed from the other one, which is used further.
    pub fn deployed() -> Self {
        Self::deployed_and_used(false)
    }

    /// The same, used with checkpoints of its metadata.
    pub fn deployed_with_checkpoints() -> Self {
        Self::deployed_and_used(true)
    }

    fn deployed_and_used(checkpoints: bool) -> Self {
        let (disk, keystore) = (Disk(MemoryStore::new()), Keystore::new());
        disk.create("volume", &keystore);
        let fs = disk.open("volume", &keystore);
        fill(&fs, 1);
        fs.create_view(ViewKind::Image, "deployed", None, "")
            .expect("image");
        fs.close().expect("close");
        drop(fs);
        disk.deploy("volume", "deployed", &keystore);
        let fs = disk.open("deployed", &keystore);
        let mut history = vec![pieces::survey(&fs)];
        change(&fs, 2, &mut history);
        fs.close().expect("close");
        drop(fs);
        let older = files(&*disk.at("deployed"));
        let fs = disk.open("volume", &keystore);
        change(&fs, 6, &mut Vec::new());
        fs.close().expect("close");
        drop(fs);
        let source = Foreign {
            what: "its source",
            files: files(&*disk.at("volume")),
            same_ids: false,
        };
        let foreign = vec![another(&keystore), source];
        Self::finish(
            disk,
            "deployed",
            keystore,
            history,
            older,
            foreign,
            checkpoints,
        )
    }

    /// A volume with checkpoints of its metadata.
    pub fn with_checkpoints() -> Self {
        let (disk, keystore) = (Disk(MemoryStore::new()), Keystore::new());
        disk.create("volume", &keystore);
        let fs = open(disk.at("volume"), &keystore, true).expect("open");
        fill(&fs, 1);
        let history = vec![pieces::survey(&fs)];
        fs.close().expect("close");
        drop(fs);
        let older = files(&*disk.at("volume"));
        let foreign = vec![another(&keystore)];
        let name = "volume";
        Self::finish(disk, name, keystore, history, older, foreign, true)
    }

    /// The last use: a snapshot, and changes after it.
    fn finish(
        disk: Disk,
        name: &'static str,
        keystore: Keystore,
        mut history: Vec<Held>,
        older: Files,
        foreign: Vec<Foreign>,
        checkpoints: bool,
    ) -> Self {
        let fs = open(disk.at(name), &keystore, checkpoints).expect("open");
        fs.create_view(ViewKind::Snapshot, "one", None, "")
            .expect("snapshot");
        history.push(pieces::survey(&fs));
        put(&fs, "dir/new", 0, &pattern(3, 0, PAGE + 1));
        history.push(pieces::survey(&fs));
        put(&fs, "dir/twin", 10, &pattern(3, 10, 400));
        let held = pieces::survey(&fs);
        history.push(held.clone());
        let killed = State::of(&disk, name, &keystore, &held);
        fs.close().expect("close");
        drop(fs);
        let closed = State::of(&disk, name, &keystore, &held);
        Self {
            name,
            keystore,
            held,
            history,
            other_history: Vec::new(),
            older,
            unseen: closed.as_unseen(),
            closed,
            killed,
            foreign,
            checkpoints,
        }
    }
}

/// The state of a copy (`cp -a`) of the volume after a use of its own, and its contents.
fn live_on(disk: &Disk, keystore: &Keystore) -> (Files, Vec<Held>) {
    let (disk, keystore) = (disk.snapshot(), keystore.copy());
    let fs = disk.open("volume", &keystore);
    let mut history = Vec::new();
    change(&fs, 5, &mut history);
    fs.close().expect("close");
    (files(&*disk.at("volume")), history)
}

/// A volume with keys of its own, under the same keystore.
fn another(keystore: &Keystore) -> Foreign {
    let disk = Disk(MemoryStore::new());
    disk.create("volume", keystore);
    let fs = disk.open("volume", keystore);
    fill(&fs, 1);
    change(&fs, 2, &mut Vec::new());
    fs.close().expect("close");
    Foreign {
        what: "another volume",
        files: files(&*disk.at("volume")),
        same_ids: false,
    }
}

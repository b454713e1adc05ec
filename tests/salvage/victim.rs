//! A small volume with files of every kind, and what was extracted from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bilayer::fs::types::XattrMode;
use bilayer::salvage::output::OutputDir;
use bilayer::salvage::{self, Options, Progress, Summary};
use bilayer::store::faulty::{FaultyStore, WriteUnit};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, OpenOptions, VolumeError};

use crate::support::{CHUNK, Mount, PAGE, ROOT, USER, pattern};

/// Paths below the root, and contents.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A volume that nobody has open.
pub(crate) struct Victim {
    pub(crate) keystore: Arc<tempfile::TempDir>,
    store: MemoryStore,
    /// The contents at the checkpoint.
    pub(crate) before: Files,
    /// The contents at the end.
    pub(crate) now: Files,
}

struct Nobody;

impl Progress for Nobody {
    fn begin(&self, _: Option<u64>) {}
    fn add(&self, _: u64) {}
}

/// The result of an extraction.
pub(crate) struct Taken {
    pub(crate) out: tempfile::TempDir,
    pub(crate) summary: Summary,
    /// Below `files/`.
    pub(crate) files: Files,
    /// The report's text.
    pub(crate) report: String,
}

impl Victim {
    /// `checkpoint`: one is made half-way.
    pub(crate) fn make(checkpoint: bool) -> Self {
        let mount = Mount::new();
        let mut before = Files::new();
        for directory in 0..4u8 {
            let name = format!("dir-{directory}");
            let at = mount.mkdir(ROOT, &name);
            for file in 0..12u8 {
                // Some are stored within the metadata, some in pages of their own.
                let len = if file % 2 == 0 {
                    100 + usize::from(file)
                } else {
                    2 * PAGE + 77
                };
                let contents = pattern(directory * 16 + file, 0, len);
                let name_in = format!("file-{file}");
                let node = mount.file(at, &name_in, &contents);
                let fs = &mount.fs;
                fs.set_xattr(&USER, node, b"user.n", &[directory, file], XattrMode::Any)
                    .unwrap();
                before.insert(Path::new(&name).join(name_in), contents);
            }
        }
        let (node, handle) = mount.create(ROOT, "sparse");
        let end = pattern(99, 0, 5000);
        mount.put(node, handle, CHUNK as u64 + 123, &end);
        mount.fs.release(node, handle);
        let mut sparse = vec![0; CHUNK + 123];
        sparse.extend_from_slice(&end);
        before.insert("sparse".into(), sparse);
        mount
            .fs
            .link(mount.at("dir-1/file-1"), ROOT, b"hard")
            .map(|attr| mount.fs.forget(attr.node, 1))
            .unwrap();
        before.insert("hard".into(), before[Path::new("dir-1/file-1")].clone());
        mount.fs.sync().unwrap();
        if checkpoint {
            mount.fs.checkpoint_now().unwrap();
        }
        let mut now = before.clone();
        for file in 0..6u8 {
            let contents = pattern(200 + file, 0, if file % 2 == 0 { 50 } else { 5000 });
            let name = format!("new-{file}");
            mount.file(ROOT, &name, &contents);
            now.insert(name.into(), contents);
        }
        mount.fs.close().unwrap();
        Self {
            keystore: Arc::clone(&mount.keystore),
            store: mount.store.to_memory(),
            before,
            now,
        }
    }

    /// A volume that was created and closed elsewhere.
    pub(crate) fn of(store: &FaultyStore, keystore: Arc<tempfile::TempDir>) -> Self {
        Self {
            keystore,
            store: store.to_memory(),
            before: Files::new(),
            now: Files::new(),
        }
    }

    /// A copy of its store, which the test damages.
    pub(crate) fn copy(&self) -> FaultyStore {
        FaultyStore::from_memory(&self.store, WriteUnit::Page)
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            keystore: self.keystore.path().join("platform"),
            read_only: true,
            ..OpenOptions::default()
        }
    }

    /// Extracts what can be read.
    pub(crate) fn salvage(&self, store: &FaultyStore) -> Result<Taken, VolumeError> {
        self.salvage_with(store, None, &Options::default())
    }

    pub(crate) fn salvage_with(
        &self,
        store: &FaultyStore,
        header: Option<Vec<u8>>,
        options: &Options,
    ) -> Result<Taken, VolumeError> {
        let was = contents_of_all(store);
        let opened: Arc<dyn Store> = Arc::new(store.clone());
        let rescue = volume::rescue(opened, header, &self.options())?;
        let out = tempfile::tempdir().unwrap();
        let target = OutputDir::prepare(&out.path().join("out"), None).unwrap();
        let summary = salvage::salvage(&rescue, &target, options, &Nobody).unwrap();
        drop(rescue);
        assert!(was == contents_of_all(store), "the volume was written to");
        let report = fs::read_to_string(out.path().join("out/salvage-report.json")).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(
            parsed["counts"],
            serde_json::to_value(summary.counts).unwrap()
        );
        assert!(!out.path().join("out/.salvage-links").exists());
        Ok(Taken {
            files: files_below(&out.path().join("out/files")),
            out,
            summary,
            report,
        })
    }
}

impl Taken {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.out.path().join("out").join(path)
    }

    /// True if the report says that nothing is missing.
    pub(crate) fn is_whole(&self) -> bool {
        let counts = self.summary.counts;
        counts.lost + counts.older + counts.unset == 0
    }

    /// Files of the victim whose contents differ, except for zeros that the report names.
    #[track_caller]
    pub(crate) fn assert_nothing_made_up(&self, victim: &Victim) {
        for (path, contents) in &self.files {
            let expected = victim.now.get(path);
            let expected = expected.unwrap_or_else(|| panic!("{} was never there", path.display()));
            let agrees = contents
                .iter()
                .zip(expected)
                .all(|(a, b)| a == b || *a == 0);
            assert!(agrees, "{}: bytes that were never there", path.display());
            let same = contents == expected;
            let reported = self.report.contains(&format!("files/{}\"", path.display()));
            assert!(
                same || reported,
                "{}: silently other contents",
                path.display()
            );
        }
    }
}

/// Every file of the store, byte for byte.
fn contents_of_all(store: &FaultyStore) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![StorePath::root()];
    while let Some(dir) = waiting.pop() {
        for (name, kind) in store.list(&dir).unwrap() {
            let path = match dir.is_root() {
                true => StorePath::new(&name),
                false => StorePath::new(&format!("{}/{name}", dir.as_str())),
            };
            if kind == bilayer::store::EntryKind::Directory {
                waiting.push(path);
                continue;
            }
            let file = store.open(&path, OpenMode::Read).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            files.insert(path.as_str().to_owned(), bytes);
        }
    }
    files
}

pub(crate) fn files_below(root: &Path) -> Files {
    let mut files = Files::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                let path = entry.path().strip_prefix(root).unwrap().to_path_buf();
                files.insert(path, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// Flips a bit of a file of the store.
pub(crate) fn flip(store: &FaultyStore, path: &str, offset: u64) {
    let file = store
        .open(&StorePath::new(path), OpenMode::ReadWrite)
        .unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, offset).unwrap(), 1);
    file.write_at(&[byte[0] ^ 4], offset).unwrap();
}

pub(crate) fn length(store: &FaultyStore, path: &str) -> u64 {
    store.info(&StorePath::new(path)).unwrap().len_bytes
}

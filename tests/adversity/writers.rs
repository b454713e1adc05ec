//! Writers that are interrupted, and a record of what fsync guaranteed to them.
//!
//! Each writer keeps outside of the volume what a completed fsync covered, and what it has done
//! since without a sync: a file that was overwritten in place is the old or the new one, page by
//! page.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::real::noise;

/// Files of one writer.
const FILES: u64 = 60;
/// A page of the kernel's cache. A write is torn only at the borders of these and of sealed pages.
const KERNEL_PAGE: usize = 4096;
/// Contents of a sealed page. Sealed pages are counted from the start of each chunk.
const SEALED_PAGE: usize = 4032;
/// Contents of a chunk, whose last sealed page is a short one.
const CHUNK: usize = 4 << 20;

/// The possible contents of a file.
#[derive(Clone, Debug, Default)]
struct Guarantee {
    /// Contents at the last fsync.
    synced: Vec<u8>,
    /// Bytes that were written over them since, from the start of the file on.
    newer: Option<Vec<u8>>,
    /// Bytes that were appended since.
    appended: Vec<u8>,
}

/// One writer with its own directory.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: PathBuf,
    number: u64,
    turn: u64,
    guarantees: BTreeMap<String, Guarantee>,
    /// Files that were being changed when the writer failed: before and after.
    doubts: BTreeMap<String, [Guarantee; 2]>,
}

/// Lengths as in real trees, few of them beyond a chunk.
fn length(seed: u64) -> usize {
    let random = u64::from_le_bytes(noise(seed, 8).try_into().unwrap());
    match random % 24 {
        0 => 4_194_304 + (random >> 8) as usize % 300_000,
        1..=5 => (random >> 8) as usize % 200_000,
        _ => (random >> 8) as usize % 9_000,
    }
}

impl Writer {
    pub(crate) fn new(mount: &Path, number: u64) -> Self {
        let dir = mount.join(format!("writer-{number}"));
        fs::create_dir(&dir).unwrap();
        File::open(mount).unwrap().sync_all().unwrap();
        Self {
            dir,
            number,
            turn: 0,
            guarantees: BTreeMap::new(),
            doubts: BTreeMap::new(),
        }
    }

    /// Number of files with synced contents.
    pub(crate) fn guaranteed(&self) -> usize {
        self.guarantees.len()
    }

    /// Works until an operation fails, or for `turns` operations. Returns the failure.
    pub(crate) fn work(&mut self, turns: u64) -> io::Result<()> {
        let end = self.turn + turns;
        while self.turn < end {
            self.turn += 1;
            self.take_turn()?;
        }
        Ok(())
    }

    fn take_turn(&mut self) -> io::Result<()> {
        let seed = self.number << 40 | self.turn << 8;
        let random = noise(seed ^ 0x5EED, 8);
        let name = format!("file-{}", u64::from(random[0]) % FILES);
        let data = noise(seed, length(seed));
        match random[1] % 8 {
            0..=2 => self.write(&name, data),
            3 => self.replace(&name, data),
            4 | 5 => self.overwrite(&name, &data),
            6 => self.append(&name, &data),
            _ => self.remove(&name),
        }
    }

    /// From here on the file is as before or has these contents, until the caller says which. If
    /// nothing was synced before, nothing is guaranteed.
    fn doubt(&mut self, name: &str, newer: &[u8]) {
        if let Some(before) = self.guarantees.remove(name) {
            let newer = Guarantee {
                synced: newer.to_vec(),
                ..Guarantee::default()
            };
            self.doubts.insert(name.to_owned(), [before, newer]);
        }
    }

    fn note_synced(&mut self, name: &str, synced: Vec<u8>) {
        self.doubts.remove(name);
        let guarantee = Guarantee {
            synced,
            ..Guarantee::default()
        };
        self.guarantees.insert(name.to_owned(), guarantee);
    }

    /// Creates the file or overwrites it in place, and syncs it.
    fn write(&mut self, name: &str, data: Vec<u8>) -> io::Result<()> {
        let path = self.dir.join(name);
        let synced = |data: &[u8]| {
            let mut file = File::create(&path)?;
            file.write_all(data)?;
            file.sync_all()
        };
        // For a file that was truncated and half written, nothing is guaranteed.
        self.guarantees.remove(name);
        self.doubts.remove(name);
        synced(&data)?;
        self.note_synced(name, data);
        Ok(())
    }

    /// Writes a temporary file and renames it over the target, as editors do.
    fn replace(&mut self, name: &str, data: Vec<u8>) -> io::Result<()> {
        let (path, aside) = (self.dir.join(name), self.dir.join("aside"));
        let mut file = File::create(&aside)?;
        file.write_all(&data)?;
        file.sync_all()?;
        self.doubt(name, &data);
        fs::rename(&aside, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.note_synced(name, data);
        Ok(())
    }

    /// Overwrites synced contents without a sync.
    fn overwrite(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let Some(guarantee) = self.guarantees.get_mut(name) else {
            return Ok(());
        };
        if guarantee.newer.is_some() {
            return Ok(());
        }
        let data = &data[..data.len().min(guarantee.synced.len())];
        guarantee.newer = Some(data.to_vec());
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.write_all_at(data, 0)
    }

    fn append(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let Some(guarantee) = self.guarantees.get_mut(name) else {
            return Ok(());
        };
        if !guarantee.appended.is_empty() {
            // After a kill the end of the file would not be known.
            return Ok(());
        }
        guarantee.appended = data.to_vec();
        let mut file = OpenOptions::new().append(true).open(self.dir.join(name))?;
        file.write_all(data)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if !self.guarantees.contains_key(name) {
            return Ok(());
        }
        self.guarantees.remove(name);
        fs::remove_file(self.dir.join(name))
    }

    /// Everything that was synced exists, and all other files can be read.
    pub(crate) fn check(&mut self) {
        let number = self.number;
        let read = |name: &str| fs::read(self.dir.join(name));
        for (name, guarantee) in &self.guarantees {
            let actual = read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Err(why) = guarantee.check(&actual) {
                panic!("{name} of writer {number}: {why}");
            }
        }
        for (name, may_be) in std::mem::take(&mut self.doubts) {
            let actual = read(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
            let fits = may_be
                .iter()
                .find(|guarantee| guarantee.check(&actual).is_ok());
            let guarantee = fits.unwrap_or_else(|| {
                panic!("{name} of writer {number} is neither as before nor as after")
            });
            self.guarantees.insert(name, guarantee.clone());
        }
        for entry in fs::read_dir(&self.dir).unwrap() {
            fs::read(entry.unwrap().path()).unwrap();
        }
    }
}

/// The next offset after `at` at which a write may be torn.
fn next_border(at: usize) -> usize {
    let chunk = at / CHUNK * CHUNK;
    let sealed = chunk + ((at - chunk) / SEALED_PAGE + 1) * SEALED_PAGE;
    let kernel = (at / KERNEL_PAGE + 1) * KERNEL_PAGE;
    sealed.min(kernel).min(chunk + CHUNK)
}

impl Guarantee {
    fn check(&self, actual: &[u8]) -> Result<(), String> {
        let kept = self.synced.len();
        if actual.len() < kept || actual.len() > kept + self.appended.len() {
            return Err(format!("{} bytes of {kept} that were synced", actual.len()));
        }
        let newer = self.newer.as_deref().unwrap_or_default();
        let mut at = 0;
        while at < actual.len() {
            let mut end = next_border(at).min(actual.len());
            for border in [kept, newer.len()] {
                if at < border && border < end {
                    end = border;
                }
            }
            let piece = &actual[at..end];
            let right = if at < kept {
                piece == &self.synced[at..end] || newer.get(at..end) == Some(piece)
            } else {
                // Pages of appended data may be missing: then they are zeros.
                piece == &self.appended[at - kept..end - kept] || piece.iter().all(|b| *b == 0)
            };
            if !right {
                return Err(format!(
                    "bytes {at} to {end} of {} are neither old nor new",
                    actual.len()
                ));
            }
            at = end;
        }
        Ok(())
    }
}

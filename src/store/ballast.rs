//! Room for what makes room on a full disk.
//!
//! Even the commit that removes a file takes room; where it finds none, nothing would ever be
//! removed again. So a volume keeps a file, the *ballast*, that nobody reads. When the metadata
//! cannot be written for want of room, it is unlinked, and made again when there is room. On a disk
//! that is written in place it is blocks that are set aside. On one that copies on write (btrfs,
//! ZFS) or that is somebody else's (overlayfs, FUSE, NFS) it is bytes that cannot be compressed; as
//! blocks set aside for the metadata's file itself say nothing there, every commit counts on it.
//!
//! It holds no secret and nothing that is trusted: who removes or changes it takes away that room
//! and no more. Once it is whole it is not written again but unlinked and made anew, so that copies
//! of the volume's directory may share it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BallastKind, EntryInfo, EntryKind, OpenMode, Store, StoreFile, StorePath, os_error};
use crate::errno::Errno;

/// Its name in the volume's directory.
pub const BALLAST_NAME: &str = "ballast";
/// Its size, but for small disks and volumes.
const WHOLE_BYTES: u64 = 16 << 20;
/// It takes no more than one part in so many of the disk, and of a volume with a limit.
const SHARE: u64 = 32;
/// A disk or a volume of which that share would be less has none.
const LEAST_BYTES: u64 = 2 << 20;
/// Written at a time.
const PIECE_BYTES: u64 = 256 << 10;
/// It is not tried to make it whole again sooner after it could not be.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a write is tried again once the ballast is given up, and how long each waits: some
/// filesystems give blocks back in the background.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// What a commit writes for each byte of changes in memory where each lies in a page of its own.
const WRITTEN_PER_BYTE: u64 = 25;
/// What a commit writes beside.
const COMMIT_BYTES: u64 = 256 << 10;
/// With less than so many times the ballast free, changes wait in memory only as long as what they
/// may write is less than the ballast: the next commit may be one that finds no other room.
const TIGHT: u64 = 64;
/// How long what was found out about that counts.
const LOOKED: Duration = Duration::from_millis(100);

/// How much a commit is allowed to count on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// All of it: something is added, and removing must go on being possible after that.
    Whole,
    /// What so many bytes of changes take, or most of it: something is removed, or it is the last commit.
    Part(u64),
}

/// The ballast of a volume in use.
#[derive(Debug)]
pub struct Ballast {
    store: Arc<dyn Store>,
    kind: BallastKind,
    /// What it is to have; 0 where none is kept.
    whole_bytes: AtomicU64,
    /// What it has.
    bytes: AtomicU64,
    /// Held while it is given up or made; when making it failed.
    failed: Mutex<Option<Instant>>,
    /// Whether room is scarce, and when that was looked at.
    tight: Mutex<Option<(Instant, bool)>>,
}

impl Ballast {
    /// That of a volume which is about to be used, with what there is of it.
    pub fn of(store: Arc<dyn Store>) -> Self {
        let kind = store.ballast_kind();
        let total_bytes = match kind {
            BallastKind::None => 0,
            _ => store.space().map_or(0, |space| space.total_bytes),
        };
        let this = Self {
            store,
            kind,
            whole_bytes: AtomicU64::new(share_of(total_bytes)),
            bytes: AtomicU64::new(0),
            failed: Mutex::new(None),
            tight: Mutex::new(None),
        };
        if let Ok(info) = this.store.info(&path()) {
            match this.whole_bytes() {
                whole if whole > 0 && is_own(&info) => {
                    this.bytes
                        .store(info.len_bytes.min(whole), Ordering::SeqCst);
                }
                // Of a time on another disk, or a copy's too, whose blocks stay where they are.
                _ => drop(this.store.unlink(&path())),
            }
        }
        this
    }

    /// Takes note of the volume's own limit, in bytes.
    pub fn limit(&self, volume_bytes: u64) {
        let most = share_of(volume_bytes);
        self.whole_bytes.fetch_min(most, Ordering::SeqCst);
        if most == 0 {
            self.release();
        }
    }

    fn whole_bytes(&self) -> u64 {
        self.whole_bytes.load(Ordering::SeqCst)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// What it is made of.
    pub fn kind(&self) -> BallastKind {
        match self.whole_bytes() {
            0 => BallastKind::None,
            _ => self.kind,
        }
    }

    /// True when it is not whole. What room there is, is for it before anything else.
    pub fn is_short(&self) -> bool {
        self.bytes() < self.whole_bytes()
    }

    /// How many bytes of changes may wait for a commit where one is kept.
    pub fn pending_bytes(&self) -> Option<usize> {
        let whole = self.whole_bytes();
        if whole == 0 {
            return None;
        }
        let share = match (self.is_tight(), self.kind) {
            (true, _) => 2 * WRITTEN_PER_BYTE,
            // A quota may be full where the disk is not.
            (false, BallastKind::Bytes) => 8,
            (false, _) => return None,
        };
        Some((whole / share) as usize)
    }

    /// True where the next commit may be one that finds no other room.
    fn is_tight(&self) -> bool {
        if self.is_short() {
            return true;
        }
        let mut tight = self.tight.lock();
        if let Some((_, known)) = tight.filter(|(at, _)| at.elapsed() < LOOKED) {
            return known;
        }
        let enough = self.whole_bytes().saturating_mul(TIGHT);
        let space = self.store.space();
        let is_tight = space.map_or(true, |space| space.available_bytes < enough);
        *tight = Some((Instant::now(), is_tight));
        is_tight
    }

    /// Makes sure that there is as much of it as is needed.
    ///
    /// # Errors
    /// ENOSPC where there is not, and cannot be.
    pub fn require(&self, requirement: Requirement) -> io::Result<()> {
        let whole = self.whole_bytes();
        let needed = match requirement {
            Requirement::Whole => whole,
            Requirement::Part(bytes) => bytes
                .saturating_mul(WRITTEN_PER_BYTE)
                .saturating_add(COMMIT_BYTES)
                .min(whole / 4 * 3),
        };
        // What makes room is not kept waiting.
        if self.bytes() < needed && requirement != Requirement::Whole {
            self.allow_refill();
        }
        self.refill();
        if self.bytes() < needed {
            return Err(os_error(Errno::ENOSPC));
        }
        Ok(())
    }

    /// Gives it up. True when there was something of it.
    pub fn release(&self) -> bool {
        let _one = self.failed.lock();
        if self.bytes.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        let given = self.store.unlink(&path()).and_then(|()| {
            // Where one call reaches all of it, the blocks are free when that returns.
            match self.store.sync_policy().is_at_once() {
                true => self.store.sync_all(),
                false => self.store.sync_dir(&StorePath::root()),
            }
        });
        match given {
            Ok(()) => tracing::info!("the disk is full: the ballast was given up"),
            Err(error) => tracing::warn!(%error, "the ballast could not be given up"),
        }
        true
    }

    /// Makes it whole as far as there is room, unless that has just been tried.
    pub fn refill(&self) {
        let mut failed = self.failed.lock();
        self.detect_removal();
        if !self.is_short() || failed.is_some_and(|at| at.elapsed() < PATIENCE) {
            return;
        }
        *failed = match self.fill() {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, bytes = self.bytes(), "the ballast is not whole");
                Some(Instant::now())
            }
        };
    }

    /// Somebody may have removed or replaced it to make room: then there is nothing of it.
    fn detect_removal(&self) {
        let bytes = self.bytes();
        if bytes == 0 {
            return;
        }
        let is_there = match self.store.info(&path()) {
            Ok(info) => info.kind == EntryKind::File && info.links == 1 && info.len_bytes >= bytes,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if !is_there {
            tracing::warn!("the ballast was removed, and is made anew");
            self.bytes.store(0, Ordering::SeqCst);
        }
    }

    /// There may be room now: it may be tried again at once.
    pub fn allow_refill(&self) {
        *self.failed.lock() = None;
    }

    fn fill(&self) -> io::Result<()> {
        let file = match self.bytes() {
            0 => {
                match self.store.unlink(&path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                self.store.open(&path(), OpenMode::CreateNew)?
            }
            _ => self.store.open(&path(), OpenMode::ReadWrite)?,
        };
        let written = self.write_rest(&*file);
        // What was written counts when it is on the disk.
        let synced = file.sync();
        if synced.is_err() {
            self.bytes.store(0, Ordering::SeqCst);
        }
        written.and(synced)
    }

    fn write_rest(&self, file: &dyn StoreFile) -> io::Result<()> {
        let whole = self.whole_bytes();
        if self.kind == BallastKind::Blocks {
            return self.reserve_rest(file, whole);
        }
        let mut piece = vec![0; PIECE_BYTES as usize];
        let mut at = self.bytes();
        while at < whole {
            let piece = &mut piece[..PIECE_BYTES.min(whole - at) as usize];
            getrandom::fill(piece).map_err(|error| io::Error::other(error.to_string()))?;
            file.write_at(piece, at)?;
            at += piece.len() as u64;
            self.bytes.store(at, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Ballast {
    fn reserve_rest(&self, file: &dyn StoreFile, whole: u64) -> io::Result<()> {
        let mut at = self.bytes();
        while at < whole {
            let piece = PIECE_BYTES.min(whole - at);
            file.reserve(at, piece)?;
            at += piece;
            file.set_len(at)?;
            self.bytes.store(at, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn path() -> StorePath {
    StorePath::new(BALLAST_NAME)
}

fn share_of(bytes: u64) -> u64 {
    let share = (bytes / SHARE).min(WHOLE_BYTES) / PIECE_BYTES * PIECE_BYTES;
    if share < LEAST_BYTES { 0 } else { share }
}

/// True for a file that has blocks for what it holds, which nobody else's name leads to.
fn is_own(info: &EntryInfo) -> bool {
    let blocks = info.allocated_bytes >= info.len_bytes / 16 * 15;
    info.kind == EntryKind::File && info.links == 1 && blocks
}

/// A file whose writes take the ballast's room when there is no other.
#[derive(Debug)]
pub struct WithBallast {
    file: Arc<dyn StoreFile>,
    ballast: Arc<Ballast>,
}

impl WithBallast {
    /// Over this file.
    pub fn over(file: Arc<dyn StoreFile>, ballast: Arc<Ballast>) -> Self {
        Self { file, ballast }
    }

    fn retry_after_release(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let is_full = |result: &io::Result<()>| {
            let error = result.as_ref().err();
            error.is_some_and(|error| Errno::from_backing(error).is_full())
        };
        let mut result = write();
        if !is_full(&result) || !self.ballast.release() {
            return result;
        }
        for _ in 0..TRIES {
            result = write();
            if !is_full(&result) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        result
    }
}

impl StoreFile for WithBallast {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.retry_after_release(|| self.file.write_at(bytes, offset))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.retry_after_release(|| self.file.set_len(len_bytes))
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.file.punch(offset, len_bytes)
    }

    /// Where blocks cannot be set aside for what is written anew, the ballast is all that is.
    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        match self.ballast.kind() {
            BallastKind::Bytes => Ok(()),
            _ => self.file.reserve(offset, len_bytes),
        }
    }

    fn will_need(&self, offset: u64, len_bytes: u64) {
        self.file.will_need(offset, len_bytes);
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn info(&self) -> io::Result<EntryInfo> {
        self.file.info()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::directory::DirectoryStore;

    /// Whoever looks for room on a full disk finds a file that looks as if it could go.
    #[test]
    fn one_that_is_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(BALLAST_NAME);
        let len = || fs::metadata(&file).map_or(0, |metadata| metadata.len());
        for kind in [BallastKind::Blocks, BallastKind::Bytes] {
            let ballast = Ballast {
                store: Arc::new(DirectoryStore::open(dir.path()).unwrap()),
                kind,
                whole_bytes: AtomicU64::new(LEAST_BYTES),
                bytes: AtomicU64::new(0),
                failed: Mutex::new(None),
                tight: Mutex::new(None),
            };
            for part in [LEAST_BYTES, LEAST_BYTES / 2] {
                ballast.require(Requirement::Whole).unwrap();
                assert_eq!(len(), LEAST_BYTES);
                // As if there had been room for no more.
                fs::File::options()
                    .write(true)
                    .open(&file)
                    .unwrap()
                    .set_len(part)
                    .unwrap();
                ballast.bytes.store(part, Ordering::SeqCst);
                fs::remove_file(&file).unwrap();
                ballast.require(Requirement::Whole).unwrap();
                assert_eq!(len(), LEAST_BYTES);
            }
            // Neither is one that a copy of the volume shares.
            fs::hard_link(&file, dir.path().join("copy")).unwrap();
            ballast.refill();
            assert_eq!(ballast.store.info(&path()).unwrap().links, 1);
            fs::remove_file(dir.path().join("copy")).unwrap();
            fs::remove_file(&file).unwrap();
        }
    }
}

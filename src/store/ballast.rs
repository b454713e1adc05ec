//! A space reserve that keeps deletion possible on a full disk.
//!
//! Even the commit that removes a file needs space; without any, nothing could ever be removed
//! again. So a volume keeps a file that nobody reads, the *ballast*. When the metadata cannot be
//! written for lack of space, the ballast is unlinked, and it is created again when there is space.
//! On a filesystem that overwrites data in place it consists of preallocated blocks. On one that
//! copies on write (btrfs, ZFS) or whose behaviour is not known (overlayfs, FUSE, NFS) it consists
//! of incompressible bytes; since preallocation for the metadata file guarantees nothing there,
//! every commit relies on the ballast.
//!
//! It contains no secret and nothing that is trusted: whoever removes or changes it only takes away
//! that reserve. A complete ballast is never written again but unlinked and created anew, so copies
//! of the volume's directory may share it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BallastKind, EntryInfo, EntryKind, OpenMode, Store, StoreFile, StorePath, os_error};
use crate::errno::Errno;

/// File name in the volume's directory.
pub const BALLAST_NAME: &str = "ballast";
/// Full size, except on small disks and for small volumes.
const WHOLE_BYTES: u64 = 16 << 20;
/// At most this fraction of the disk, and of a volume with a size limit.
const SHARE: u64 = 32;
/// No ballast is kept if the fraction is less than this.
const LEAST_BYTES: u64 = 2 << 20;
/// Unit of writing.
const PIECE_BYTES: u64 = 256 << 10;
/// Time between attempts to complete the ballast.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a write is retried after the ballast was released, and the pause between attempts:
/// some filesystems free blocks in the background.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// Bytes that a commit writes per byte of changes, if each change is in a page of its own.
const WRITTEN_PER_BYTE: u64 = 25;
/// Additional bytes that a commit writes.
const COMMIT_BYTES: u64 = 256 << 10;
/// If the free space is less than this many times the ballast, pending changes are limited to what
/// the ballast can hold, since the next commit may find no other space.
const TIGHT: u64 = 64;
/// How long a result of that check is reused.
const LOOKED: Duration = Duration::from_millis(100);

/// How much of the ballast a commit requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// All of it: something is added, and removing must stay possible afterwards.
    Whole,
    /// Enough for this many bytes of changes, at most a large part of it: something is removed, or
    /// it is the last commit.
    Part(u64),
}

/// The ballast of a volume in use.
#[derive(Debug)]
pub struct Ballast {
    store: Arc<dyn Store>,
    kind: BallastKind,
    /// Target size; 0 if no ballast is kept.
    whole_bytes: AtomicU64,
    /// Current size.
    bytes: AtomicU64,
    /// Held while the ballast is released or filled. Contains the time of the last failure to fill
    /// it.
    failed: Mutex<Option<Instant>>,
    /// Whether space is scarce, and when that was checked.
    tight: Mutex<Option<(Instant, bool)>>,
}

impl Ballast {
    /// The ballast of a volume that is about to be used, as found in its directory.
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
                // It dates from another disk, or is shared with a copy, so unlinking it would free
                // nothing.
                _ => drop(this.store.unlink(&path())),
            }
        }
        this
    }

    /// Applies the volume's size limit, in bytes.
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

    /// What it consists of.
    pub fn kind(&self) -> BallastKind {
        match self.whole_bytes() {
            0 => BallastKind::None,
            _ => self.kind,
        }
    }

    /// True if it is incomplete. It has the first claim on free space then.
    pub fn is_short(&self) -> bool {
        self.bytes() < self.whole_bytes()
    }

    /// Limit on the bytes of pending changes; `None` without a limit.
    pub fn pending_bytes(&self) -> Option<usize> {
        let whole = self.whole_bytes();
        if whole == 0 {
            return None;
        }
        let share = match (self.is_tight(), self.kind) {
            (true, _) => 2 * WRITTEN_PER_BYTE,
            // A quota may be exhausted although the disk is not full.
            (false, BallastKind::Bytes) => 8,
            (false, _) => return None,
        };
        Some((whole / share) as usize)
    }

    /// True if the next commit may find no other space.
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

    /// Ensures that the required part of the ballast exists.
    ///
    /// # Errors
    /// ENOSPC if it does not exist and cannot be filled.
    pub fn require(&self, requirement: Requirement) -> io::Result<()> {
        let whole = self.whole_bytes();
        let needed = match requirement {
            Requirement::Whole => whole,
            Requirement::Part(bytes) => bytes
                .saturating_mul(WRITTEN_PER_BYTE)
                .saturating_add(COMMIT_BYTES)
                .min(whole / 4 * 3),
        };
        // A commit that frees space is not delayed.
        if self.bytes() < needed && requirement != Requirement::Whole {
            self.allow_refill();
        }
        self.refill();
        if self.bytes() < needed {
            return Err(os_error(Errno::ENOSPC));
        }
        Ok(())
    }

    /// Releases the ballast. True if there was any.
    pub fn release(&self) -> bool {
        let _one = self.failed.lock();
        if self.bytes.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        let given = self.store.unlink(&path()).and_then(|()| {
            // If one call syncs everything, the blocks are free when it returns.
            match self.store.sync_policy().is_at_once() {
                true => self.store.sync_all(),
                false => self.store.sync_dir(&StorePath::root()),
            }
        });
        match given {
            Ok(()) => tracing::info!("the disk is full: the ballast was released"),
            Err(error) => tracing::warn!(%error, "the ballast could not be released"),
        }
        true
    }

    /// Fills it as far as there is space, unless that was tried just before.
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

    /// Notices that somebody removed or replaced the file to free space: then none of it is left.
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
            tracing::warn!("the ballast was removed, and is created again");
            self.bytes.store(0, Ordering::SeqCst);
        }
    }

    /// Permits another attempt to fill it, since space may have become free.
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
        // Written bytes count once they are on the disk.
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

/// True for a fully allocated file that no other name shares.
fn is_own(info: &EntryInfo) -> bool {
    let blocks = info.allocated_bytes >= info.len_bytes / 16 * 15;
    info.kind == EntryKind::File && info.links == 1 && blocks
}

/// A file whose writes release the ballast if there is no other space.
#[derive(Debug)]
pub struct WithBallast {
    file: Arc<dyn StoreFile>,
    ballast: Arc<Ballast>,
}

impl WithBallast {
    /// Wraps a file.
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

    /// Without useful preallocation, the ballast is the only reserve.
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

    /// A user who looks for space on a full disk finds a file that seems removable.
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
                // As if there had been no more space.
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
            // A ballast that a copy of the volume shares is not used either.
            fs::hard_link(&file, dir.path().join("copy")).unwrap();
            ballast.refill();
            assert_eq!(ballast.store.info(&path()).unwrap().links, 1);
            fs::remove_file(dir.path().join("copy")).unwrap();
            fs::remove_file(&file).unwrap();
        }
    }
}

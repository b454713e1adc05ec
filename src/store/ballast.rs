//! A space reserve that keeps deletion possible on a full disk.
//!
//! Even the commit that removes a file needs space; without any, nothing could ever be removed
//! again. So a volume keeps a file that is never read, the *ballast*. When the metadata cannot be
//! written for lack of space, the ballast is unlinked, and it is created again when there is space.
//! On a filesystem that overwrites data in place it consists of preallocated blocks. On one that
//! copies on write (btrfs, ZFS) or whose behaviour is not known (overlayfs, FUSE, NFS) it consists
//! of incompressible bytes; since preallocation for the metadata file guarantees nothing there,
//! every commit relies on the ballast.
//!
//! It contains no secret and nothing that is trusted. Somebody who removes or changes it only takes
//! away the reserve. A complete ballast is never written again but unlinked and created anew, so
//! copies of the volume's directory may share it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BallastKind, EntryInfo, EntryKind, OpenMode, Store, StoreFile, StorePath, os_error};
use crate::errno::Errno;

/// File name in the volume's directory.
const BALLAST_NAME: &str = "ballast";
/// Full size, except on small disks and for small volumes.
const WHOLE_BYTES: u64 = 16 << 20;
/// The ballast is at most one part in this many of the disk, and of a volume with a size limit.
const DISK_PARTS: u64 = 32;
/// No ballast is kept if that part is less than this.
const LEAST_BYTES: u64 = 2 << 20;
/// Unit of writing.
const PIECE_BYTES: u64 = 256 << 10;
/// Minimum time between two attempts to fill the ballast.
const REFILL_INTERVAL: Duration = Duration::from_millis(500);
/// How often a write is retried after the ballast was released: some filesystems free blocks in the
/// background.
const WRITE_RETRIES: u32 = 40;
/// Delay between two of these attempts.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// Bytes that a commit writes per byte of changes, if each change is in a page of its own.
const WRITTEN_PER_BYTE: u64 = 25;
/// Additional bytes that a commit writes.
const COMMIT_BYTES: u64 = 256 << 10;
/// Space is scarce if less than this many times the ballast is free. Pending changes are then
/// limited to what the ballast can hold, since the next commit may find no other space.
const SCARCE_BALLASTS: u64 = 64;
/// Minimum time between two checks whether space is scarce.
const SCARCITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How much of the ballast a commit requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// All of it: the commit adds something, and later commits must still be able to remove.
    Whole,
    /// Enough for this many bytes of changes, or three quarters of the ballast if that is less: the
    /// commit removes something, or is the last one.
    ForChanges(u64),
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
    /// The time of the last attempt to fill the ballast, if it failed. Locked while the ballast is
    /// released or filled.
    last_failure: Mutex<Option<Instant>>,
    last_check: Mutex<Option<ScarcityCheck>>,
}

/// A check whether space is scarce.
#[derive(Clone, Copy, Debug)]
struct ScarcityCheck {
    at: Instant,
    is_scarce: bool,
}

impl Ballast {
    /// The ballast of a volume that is about to be used. A ballast that is already in its directory
    /// is taken over if it can be used.
    pub fn of(store: Arc<dyn Store>) -> Self {
        let kind = store.ballast_kind();
        let total_bytes = match kind {
            BallastKind::None => 0,
            _ => store.space().map_or(0, |space| space.total_bytes),
        };
        let this = Self {
            store,
            kind,
            whole_bytes: AtomicU64::new(size_for(total_bytes)),
            bytes: AtomicU64::new(0),
            last_failure: Mutex::new(None),
            last_check: Mutex::new(None),
        };
        if let Ok(info) = this.store.info(&path()) {
            match this.whole_bytes() {
                whole if whole > 0 && is_usable(&info) => {
                    this.bytes
                        .store(info.len_bytes.min(whole), Ordering::SeqCst);
                }
                // It dates from another disk, is shared with a copy, or is not needed here.
                _ => this.unlink_unusable(),
            }
        }
        this
    }

    /// Removes a file from which nothing would be gained at a full disk. If it cannot be removed,
    /// for instance from a read-only store, it only takes space.
    fn unlink_unusable(&self) {
        if let Err(error) = self.store.unlink(&path()) {
            tracing::debug!(%error, "an unusable ballast could not be removed");
        }
    }

    /// Applies the volume's size limit, in bytes.
    pub fn limit(&self, volume_bytes: u64) {
        let most = size_for(volume_bytes);
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

    /// The kind of the ballast.
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
        let share = match (self.is_scarce(), self.kind) {
            (true, _) => 2 * WRITTEN_PER_BYTE,
            // A quota may be exhausted although the disk is not full.
            (false, BallastKind::Bytes) => 8,
            (false, _) => return None,
        };
        Some((whole / share) as usize)
    }

    /// True if the next commit may find no other space.
    fn is_scarce(&self) -> bool {
        if self.is_short() {
            return true;
        }
        let mut last_check = self.last_check.lock();
        if let Some(check) = *last_check
            && check.at.elapsed() < SCARCITY_CHECK_INTERVAL
        {
            return check.is_scarce;
        }
        let enough = self.whole_bytes().saturating_mul(SCARCE_BALLASTS);
        let space = self.store.space();
        let is_scarce = space.map_or(true, |space| space.available_bytes < enough);
        let at = Instant::now();
        *last_check = Some(ScarcityCheck { at, is_scarce });
        is_scarce
    }

    /// Ensures that the required part of the ballast exists.
    ///
    /// # Errors
    /// ENOSPC if it does not exist and cannot be filled.
    pub fn require(&self, requirement: Requirement) -> io::Result<()> {
        let whole = self.whole_bytes();
        let needed = match requirement {
            Requirement::Whole => whole,
            Requirement::ForChanges(bytes) => bytes
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
        let _filling = self.last_failure.lock();
        if self.bytes.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        let released = self.store.unlink(&path()).and_then(|()| {
            // If one call syncs everything, the blocks are free when it returns.
            match self.store.sync_policy().is_at_once() {
                true => self.store.sync_all(),
                false => self.store.sync_dir(&StorePath::root()),
            }
        });
        match released {
            Ok(()) => tracing::info!("the disk is full: the ballast was released"),
            Err(error) => tracing::warn!(%error, "the ballast could not be released"),
        }
        true
    }

    /// Fills the ballast as far as there is space, unless an attempt failed just before.
    pub fn refill(&self) {
        let mut last_failure = self.last_failure.lock();
        self.detect_removal();
        if !self.is_short() || last_failure.is_some_and(|at| at.elapsed() < REFILL_INTERVAL) {
            return;
        }
        *last_failure = match self.fill() {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, bytes = self.bytes(), "the ballast is not whole");
                Some(Instant::now())
            }
        };
    }

    /// Resets the size if somebody removed or replaced the file to free space.
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
        *self.last_failure.lock() = None;
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
        // Written bytes count only if they reached the disk.
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

/// Target size on a disk, or for a volume, of this size.
fn size_for(bytes: u64) -> u64 {
    let share = (bytes / DISK_PARTS).min(WHOLE_BYTES) / PIECE_BYTES * PIECE_BYTES;
    if share < LEAST_BYTES { 0 } else { share }
}

/// True for a fully allocated file that no other name shares.
fn is_usable(info: &EntryInfo) -> bool {
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
        for _ in 0..WRITE_RETRIES {
            result = write();
            if !is_full(&result) {
                break;
            }
            std::thread::sleep(RETRY_DELAY);
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

    /// A user may remove the file in order to free space on a full disk.
    #[test]
    fn a_removed_ballast_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(BALLAST_NAME);
        let len = || fs::metadata(&file).map_or(0, |metadata| metadata.len());
        for kind in [BallastKind::Blocks, BallastKind::Bytes] {
            let ballast = Ballast {
                store: Arc::new(DirectoryStore::open(dir.path()).unwrap()),
                kind,
                whole_bytes: AtomicU64::new(LEAST_BYTES),
                bytes: AtomicU64::new(0),
                last_failure: Mutex::new(None),
                last_check: Mutex::new(None),
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

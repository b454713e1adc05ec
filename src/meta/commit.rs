//! Changing the metadata: building batches, applying them, committing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::keys::{self, Table};
use super::overlay::Overlay;
use super::records::{
    COUNT_MAX, DirentRecord, ExtentRecord, INODES_MAX, InodeRecord, ObjectName, PAGES_MAX,
    encode_xattr,
};
use super::{Batch, HEADROOM_BYTES, Meta, MetaError, State, View};
use crate::errno::Errno;
use crate::ids::{ChunkIndex, Ino};
use crate::store::ballast::{Ballast, Requirement};
use crate::store::{BallastKind, os_error};

/// Number of a batch. Batches become durable in the order of their numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BatchNumber(pub u64);

impl State {
    fn change_clean_mark(&mut self, clean: bool) {
        if self.counters.clean != clean {
            self.counters.clean = clean;
            self.applied += 1;
        }
    }
}

impl Meta {
    /// Sets an inode.
    ///
    /// # Errors
    /// When older versions of the record cannot be read or decoded.
    pub fn put_inode(
        &self,
        batch: &mut Batch,
        ino: Ino,
        record: &InodeRecord,
    ) -> Result<(), MetaError> {
        self.put_record(
            batch,
            Table::Inode,
            &keys::inode(ino),
            Some(record.encode()),
        )
    }

    /// Removes an inode.
    ///
    /// # Errors
    /// When older versions of the record cannot be read or decoded.
    pub fn remove_inode(&self, batch: &mut Batch, ino: Ino) -> Result<(), MetaError> {
        self.put_record(batch, Table::Inode, &keys::inode(ino), None)
    }

    /// Sets or removes a directory entry.
    ///
    /// # Errors
    /// [`MetaError::UsedUp`] if all positions for the name are occupied, and the errors of reading.
    pub fn put_dirent(
        &self,
        batch: &mut Batch,
        parent: Ino,
        name: &[u8],
        entry: Option<DirentRecord>,
    ) -> Result<(), MetaError> {
        let key = match self.key_of_name(batch, parent, name)? {
            Some(key) => key,
            None if entry.is_none() => return Ok(()),
            None => return Err(MetaError::UsedUp("positions in the directory")),
        };
        self.put_record(batch, Table::Dirent, &key, entry.map(DirentRecord::encode))
    }

    /// The logical key of a name in the live view: its existing one, or the first free one. `None`
    /// if none is free.
    fn key_of_name(
        &self,
        batch: &Batch,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<Vec<u8>>, MetaError> {
        let hash = self.name_hash(name);
        let mut taken = [false; keys::PROBE_LIMIT as usize];
        let stored = self.dirents_near(parent, hash, View::LIVE)?;
        let stored = stored.iter().map(|(key, _)| key.as_slice());
        // Positions that the batch removes stay occupied until the batch is applied.
        for key in batch.names_in(parent).chain(stored) {
            let Some((position, stored)) = keys::dirent_parts(key) else {
                return Err(MetaError::Corrupt("dirent"));
            };
            let offset = position.checked_sub(hash);
            let Some(is_taken) = offset.and_then(|offset| taken.get_mut(offset as usize)) else {
                continue;
            };
            if stored == name {
                return Ok(Some(key.to_vec()));
            }
            *is_taken = true;
        }
        let free = taken.iter().position(|taken| !taken);
        Ok(free.map(|offset| keys::dirent(parent, hash + offset as u32, name)))
    }

    /// Sets or removes an extended attribute.
    ///
    /// # Errors
    /// When older versions of the record cannot be read or decoded.
    pub fn put_xattr(
        &self,
        batch: &mut Batch,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), MetaError> {
        self.put_record(
            batch,
            Table::Xattr,
            &keys::xattr(ino, name),
            value.map(encode_xattr),
        )
    }

    /// Removes an extended attribute if it exists.
    ///
    /// # Errors
    /// When the record, or an older version of it, cannot be read.
    pub fn remove_xattr_if_present(
        &self,
        batch: &mut Batch,
        ino: Ino,
        name: &[u8],
    ) -> Result<(), MetaError> {
        if self
            .get(Table::Xattr, &keys::xattr(ino, name), View::LIVE)?
            .is_some()
        {
            self.put_xattr(batch, ino, name, None)?;
        }
        Ok(())
    }

    /// Sets or removes an extent.
    ///
    /// # Errors
    /// When older versions of the record cannot be read or decoded, and [`MetaError::UsedUp`] if an
    /// object to unlink gets no number.
    pub fn put_extent(
        &self,
        batch: &mut Batch,
        ino: Ino,
        chunk: ChunkIndex,
        extent: Option<&ExtentRecord>,
    ) -> Result<(), MetaError> {
        self.put_record(
            batch,
            Table::Extent,
            &keys::extent(ino, chunk),
            extent.map(ExtentRecord::encode),
        )
    }

    /// Marks an inode as unlinked but still in use.
    pub fn put_orphan(&self, batch: &mut Batch, ino: Ino) {
        batch.change(Table::Orphan, keys::number(ino.0), Some(vec![1]));
    }

    /// Removes the mark that [`Self::put_orphan`] sets.
    pub fn remove_orphan(&self, batch: &mut Batch, ino: Ino) {
        batch.change(Table::Orphan, keys::number(ino.0), None);
    }

    /// Queues an object's name to be unlinked once the batch is durable.
    ///
    /// # Errors
    /// [`MetaError::UsedUp`] if there are no more numbers.
    pub fn put_garbage(&self, batch: &mut Batch, name: ObjectName) -> Result<(), MetaError> {
        let number = self.allocate_garbage()?;
        batch.frees = true;
        batch.change(Table::Garbage, keys::number(number), Some(name.encode()));
        Ok(())
    }

    /// Removes a row from the queue.
    pub fn remove_garbage(&self, batch: &mut Batch, number: u64) {
        batch.change(Table::Garbage, keys::number(number), None);
    }

    /// Applies a batch in memory. It becomes durable with the next commit.
    ///
    /// # Errors
    /// [`MetaError::Latched`] after an error that ended all writing, [`MetaError::ReadOnly`] while
    /// changes are refused, [`MetaError::UsedUp`] if a counter would exceed its limit.
    pub fn apply(&self, batch: Batch) -> Result<BatchNumber, MetaError> {
        self.apply_and(batch, &|_| ())
    }

    /// Applies a batch and calls `and` atomically with it, so that no commit comes between the two.
    pub(super) fn apply_and(
        &self,
        batch: Batch,
        and: &dyn Fn(&mut State),
    ) -> Result<BatchNumber, MetaError> {
        if let Some(reason) = &*self.latched.read() {
            return Err(MetaError::Latched(reason.clone()));
        }
        let state = &mut *self.state.write();
        if state.held_at.is_some() {
            return Err(MetaError::ReadOnly);
        }
        let counters = &mut state.counters;
        let used_pages = add_bounded(counters.used_pages, batch.used_pages, PAGES_MAX);
        let inodes = add_bounded(counters.inodes, batch.inodes, INODES_MAX);
        let record_bytes = add_bounded(counters.record_bytes, batch.record_bytes, COUNT_MAX);
        (counters.used_pages, counters.inodes, counters.record_bytes) = (
            used_pages.ok_or(MetaError::UsedUp("pages"))?,
            inodes.ok_or(MetaError::UsedUp("inodes"))?,
            record_bytes.ok_or(MetaError::UsedUp("bytes of records"))?,
        );
        let changes = [batch.used_pages, batch.inodes, batch.record_bytes];
        state.pending_removes |= batch.frees || changes.iter().any(|change| *change < 0);
        state.pending_adds |= changes.iter().any(|change| *change > 0);
        state.pending.apply(batch);
        and(state);
        state.applied += 1;
        Ok(BatchNumber(state.applied))
    }

    /// Number of the most recently applied batch.
    pub fn newest_batch(&self) -> BatchNumber {
        BatchNumber(self.state.read().applied)
    }

    /// Number of the newest batch that is durable.
    pub(super) fn newest_durable_batch(&self) -> BatchNumber {
        BatchNumber(self.durable.load(Ordering::Acquire))
    }

    /// True if the batch is durable.
    pub fn is_durable(&self, batch: BatchNumber) -> bool {
        self.durable.load(Ordering::Acquire) >= batch.0
    }

    /// Memory used by uncommitted changes, in bytes.
    pub fn pending_bytes(&self) -> usize {
        self.state.read().pending.bytes()
    }

    /// Marks the volume clean and refuses every later change, atomically: the next commit records
    /// the clean mark, and no commit follows it. [`Self::set_clean`] and [`Self::release`] end this
    /// state.
    pub fn hold_clean(&self) {
        let state = &mut *self.state.write();
        state.change_clean_mark(true);
        state.held_at = Some(state.applied);
    }

    /// Announces the unmount: nothing will be added before it, so the remaining commits may use all
    /// space that is reserved for removals.
    pub fn expect_unmount(&self) {
        self.state.write().unmounting = true;
    }

    /// Permits changes again after [`Self::hold_clean`]. The clean mark stays as it is.
    pub fn release(&self) {
        let state = &mut *self.state.write();
        state.held_at = None;
        state.unmounting = false;
    }

    /// Checks that changes are permitted.
    ///
    /// # Errors
    /// [`MetaError::ReadOnly`] while changes are refused.
    pub fn check_not_held(&self) -> Result<(), MetaError> {
        match self.state.read().held_at {
            Some(_) => Err(MetaError::ReadOnly),
            None => Ok(()),
        }
    }

    /// Sets or removes the clean mark as part of the next commit, and permits changes again.
    pub fn set_clean(&self, clean: bool) {
        let state = &mut *self.state.write();
        state.held_at = None;
        state.unmounting = false;
        state.change_clean_mark(clean);
    }

    /// Commits all batches applied so far, unless `through` is already durable. Returns true if
    /// `through` is durable. `ready` is called at the instant at which the contents of the commit
    /// are fixed; if it returns false, nothing is committed and the result is false.
    ///
    /// A full disk is reported before anything is written and loses nothing: the batches stay
    /// pending. Any other failure latches.
    ///
    /// # Errors
    /// [`MetaError::Io`] if space is exhausted before the commit begins; [`MetaError::ReadOnly`] if
    /// a batch was applied after the last permitted one; [`MetaError::Latched`] after an earlier
    /// failure; every other failure latches.
    pub fn commit(
        &self,
        through: BatchNumber,
        ready: &dyn Fn() -> bool,
    ) -> Result<bool, MetaError> {
        let tables = self.tables.lock();
        if let Some(reason) = &*self.latched.read() {
            return Err(MetaError::Latched(reason.clone()));
        }
        let Some(tables) = &*tables else {
            return Err(MetaError::Latched("unmounted".into()));
        };
        if self.is_durable(through) {
            return Ok(true);
        }
        // A copy-on-write B-tree rewrites one path per change in the worst case.
        let bytes = self.pending_bytes() as u64;
        self.ensure_space(bytes)
            .map_err(|error| self.latch_unless_full(error))?;
        let (overlay, counters, applied) = {
            let state = &mut *self.state.write();
            if !ready() {
                return Ok(false);
            }
            if state.applied == self.durable.load(Ordering::Acquire) {
                return Ok(true);
            }
            if state.held_at.is_some_and(|last| state.applied > last) {
                return Err(MetaError::ReadOnly);
            }
            state.committing = Arc::new(std::mem::take(&mut state.pending));
            state.pending_removes = false;
            state.pending_adds = false;
            (
                Arc::clone(&state.committing),
                state.counters.encode(),
                state.applied,
            )
        };
        let result = tables
            .commit(&overlay, &counters)
            .and_then(|()| tables.committed());
        match result {
            Ok(committed) => {
                let state = &mut *self.state.write();
                state.committed = Arc::new(committed);
                state.committing = Arc::new(Overlay::default());
                self.durable.store(applied, Ordering::Release);
                Ok(true)
            }
            Err(error) => {
                self.latch(&error.to_string());
                Err(error)
            }
        }
    }

    /// Handles an error that occurred before anything was written. A full disk and a lack of memory
    /// may pass; any other error ends all writing.
    fn latch_unless_full(&self, error: std::io::Error) -> MetaError {
        let errno = Errno::from_backing(&error);
        if !errno.is_full() && errno != Errno::ENOMEM {
            self.latch(&format!("the backing store cannot be written: {error}"));
        }
        error.into()
    }

    /// Sets the ballast, which commits that free space, and the last commit, may use.
    pub fn set_ballast(&self, ballast: Arc<Ballast>) {
        let _ = self.ballast.set(ballast);
    }

    /// Checks that the ballast is complete, and fills it if not: it has the first claim on free
    /// space.
    ///
    /// # Errors
    /// ENOSPC if the ballast is incomplete and cannot be filled.
    pub fn check_ballast(&self) -> Result<(), MetaError> {
        match self.ballast.get().filter(|ballast| ballast.is_short()) {
            Some(ballast) => Ok(ballast.require(Requirement::Whole)?),
            None => Ok(()),
        }
    }

    /// Checks the ballast before an overwrite, if the backing filesystem needs new space for
    /// overwritten data.
    ///
    /// # Errors
    /// ENOSPC if the ballast is incomplete and cannot be filled.
    pub fn check_ballast_to_overwrite(&self) -> Result<(), MetaError> {
        match self.ballast.get().map(|ballast| ballast.kind()) {
            Some(BallastKind::Bytes) => self.check_ballast(),
            _ => Ok(()),
        }
    }

    /// Reserves the space that a commit of this many bytes of changes may need.
    fn ensure_space(&self, bytes: u64) -> std::io::Result<()> {
        let ballast = self.ballast.get();
        let kind = ballast.map_or(BallastKind::None, |ballast| ballast.kind());
        let reserved = match kind {
            BallastKind::Bytes => Err(os_error(Errno::ENOSPC)),
            _ => self.file.reserve(self.headroom_bytes() + bytes * 4),
        };
        let Some(ballast) = ballast.filter(|_| kind != BallastKind::None) else {
            return reserved;
        };
        let adds = {
            let state = self.state.read();
            !state.pending_removes && !state.pending.is_empty() && !state.unmounting
        };
        match reserved {
            Err(error) if Errno::from_backing(&error).is_full() => match (adds, kind) {
                (false, _) => ballast.require(Requirement::ForChanges(bytes)),
                (true, BallastKind::Bytes) => ballast.require(Requirement::Whole),
                (true, _) => Err(error),
            },
            reserved => reserved,
        }
    }

    /// The space to reserve in addition to what the pending changes need. A commit that removes
    /// something may use half of the space that earlier commits reserved, since only such a commit
    /// can free space on a full disk. A commit that only overwrites, such as writing reserved
    /// pages, may use a quarter of it.
    fn headroom_bytes(&self) -> u64 {
        let state = self.state.read();
        match (state.pending_removes, state.pending_adds) {
            (true, _) => HEADROOM_BYTES / 2,
            (false, false) => HEADROOM_BYTES / 4 * 3,
            (false, true) => HEADROOM_BYTES,
        }
    }

    /// Ends all writing: every change is refused from now on. Durable data stays readable.
    pub fn latch(&self, reason: &str) {
        let mut latched = self.latched.write();
        if latched.is_none() {
            tracing::error!(
                reason,
                "the volume is read-only from now on: unmount and mount it again"
            );
            *latched = Some(reason.to_owned());
        }
    }

    /// The reason why writing ended, if it did.
    pub fn latched(&self) -> Option<String> {
        self.latched.read().clone()
    }

    /// True once the metadata could not be read or contradicted itself.
    pub fn is_damaged(&self) -> bool {
        self.file.is_damaged() || self.logged.any_logged()
    }

    /// Checks that writing has not ended.
    ///
    /// # Errors
    /// EROFS once writing has ended.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.latched.read().is_some() {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }

    /// Closes the database. Every later call is refused.
    ///
    /// # Errors
    /// When redb fails to close the database. Nothing is lost then, but it is not marked clean.
    pub fn close(&self) -> Result<(), MetaError> {
        let Some(tables) = self.tables.lock().take() else {
            return Ok(());
        };
        let result = if self.latched.read().is_some() {
            Ok(())
        } else {
            tables.close()
        };
        self.latched
            .write()
            .get_or_insert_with(|| "unmounted".to_owned());
        result
    }
}

/// Adds a signed number to a counter; `None` if the sum would exceed its limit.
fn add_bounded(count: u64, more: i64, most: u64) -> Option<u64> {
    let sum = count.saturating_add_signed(more);
    (sum <= most || more <= 0).then_some(sum)
}

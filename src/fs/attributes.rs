//! Changing attributes (`chmod`, `chown`, `truncate`, `utimensat`).

use super::Filesystem;
use super::privileges::{CAPABILITY, Kill, Privileges};
use super::types::{Attr, BLOCK_BYTES, FileKind, NodeId, SetAttr, SetTime, StatFs, Timespec};
use crate::errno::Errno;
use crate::meta::Batch;
use crate::meta::page_set::{capacity_of_pages, pages_of_capacity};
use crate::meta::records::InodeRecord;
use crate::planted::{Bug, planted};
use crate::sealed::PAGE_BYTES;

impl Filesystem {
    /// Changes attributes on behalf of a process with these privileges.
    ///
    /// # Errors
    /// EISDIR or EINVAL if the size of something other than a file is set, EPERM if a change of
    /// owner would remove set-id bits of another user's file, EFBIG, EROFS, ENOSPC, or an error of
    /// metadata or contents.
    pub fn setattr(
        &self,
        privileges: &dyn Privileges,
        node: NodeId,
        changes: &SetAttr,
    ) -> Result<Attr, Errno> {
        self.check_change(node)?;
        let now = Timespec::now();
        let record = self.inode(node)?;
        let kill = Kill::by(&record, changes, privileges)?;
        match changes.size {
            Some(size) => self.set_size(node, &record, size, changes, kill, now)?,
            None => {
                let _permit = self.meta.permit();
                let _inode = self.meta.lock_inode(node.ino());
                let mut batch = Batch::new();
                self.take_written(&mut batch, node)?;
                self.amend_inode(&mut batch, node.ino(), |record| {
                    apply_changes(record, changes, kill, now);
                })?;
                if let Some(perm) = changes.perm {
                    self.acl_after_chmod(&mut batch, node.ino(), perm)?;
                }
                if kill != Kill::Nothing {
                    self.meta
                        .remove_xattr_if_present(&mut batch, node.ino(), CAPABILITY)?;
                }
                self.meta.apply(batch)?;
            }
        }
        self.getattr(node)
    }

    fn set_size(
        &self,
        node: NodeId,
        record: &InodeRecord,
        size: u64,
        changes: &SetAttr,
        kill: Kill,
        now: Timespec,
    ) -> Result<(), Errno> {
        match record.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let file = self.contents.file(node.ino())?;
        if size == 0 && file.size() > 0 {
            // A commit that repeatedly found new ordered files holds this lock to keep out further
            // ones.
            let _namespace = self.namespace.lock();
            // After "truncate, then write again", a power cut must not lose both the old and the
            // new contents.
            if !planted(Bug::TruncationUnordered) {
                self.contents.order_before_commit(node.ino());
            }
        }
        let resizes = size != file.size();
        self.contents.truncate(&file, size, &mut |record| {
            if resizes || changes.mtime.is_none() {
                record.mtime = now;
            }
            apply_changes(record, changes, kill, now);
        })?;
        drop(file);
        self.contents.forget(node.ino());
        if kill != Kill::Nothing {
            self.drop_capability(node)?;
        }
        Ok(())
    }

    /// Removes set-id bits and capabilities from a file, as a write by a process with these
    /// privileges does.
    ///
    /// # Errors
    /// EROFS if nothing may change, or an error of the metadata.
    pub fn kill_privileges(&self, privileges: &dyn Privileges, node: NodeId) -> Result<(), Errno> {
        let _permit = self.begin_change(node)?;
        let record = self.inode(node)?;
        let kill = Kill::by_writing(&record, privileges);
        if kill.leaves(record.perm) != record.perm {
            let _inode = self.meta.lock_inode(node.ino());
            let mut batch = Batch::new();
            self.amend_inode(&mut batch, node.ino(), |record| {
                record.perm = kill.leaves(record.perm);
                record.ctime = Timespec::now();
            })?;
            self.meta.apply(batch)?;
        }
        self.drop_capability(node)
    }

    fn drop_capability(&self, node: NodeId) -> Result<(), Errno> {
        let _permit = self.meta.permit();
        let mut batch = Batch::new();
        self.meta
            .remove_xattr_if_present(&mut batch, node.ino(), CAPABILITY)?;
        if !batch.is_empty() {
            self.meta.apply(batch)?;
        }
        Ok(())
    }

    /// Puts the time of an unpublished write into the record, so that it does not overwrite a time
    /// that is set now. The inode's lock must be held.
    fn take_written(&self, batch: &mut Batch, node: NodeId) -> Result<(), Errno> {
        if let Some(written) = self.contents.take_written(node.ino()) {
            self.amend_inode(batch, node.ino(), |record| {
                record.mtime = written;
                record.ctime = written;
            })?;
        }
        Ok(())
    }

    /// Space in the volume, in bytes of contents: a file of as many bytes as are free can be
    /// created.
    ///
    /// # Errors
    /// An error of the backing filesystem.
    pub fn statfs(&self) -> Result<StatFs, Errno> {
        let space = self
            .volume
            .store
            .space()
            .map_err(|error| Errno::from_backing(&error))?;
        let counters = self.meta.counters();
        let pages = |bytes: u64| bytes / PAGE_BYTES as u64;
        let blocks = |pages: u64| capacity_of_pages(pages) / u64::from(BLOCK_BYTES);
        let (mut total, mut free) = (pages(space.total_bytes), pages(space.free_bytes));
        let mut available = pages(space.available_bytes);
        if counters.limit_bytes > 0 {
            total = pages_of_capacity(counters.limit_bytes);
            let left = total.saturating_sub(self.contents.taken_pages());
            (free, available) = (free.min(left), available.min(left));
        }
        // The volume can have more inodes, but some programs keep this number in 32 bits.
        const INODES_MAX: u64 = u32::MAX as u64;
        Ok(StatFs {
            block_bytes: BLOCK_BYTES,
            blocks: blocks(total),
            blocks_free: blocks(free),
            blocks_available: blocks(available),
            inodes: INODES_MAX,
            inodes_free: INODES_MAX.saturating_sub(counters.inodes),
            name_max: super::NAME_BYTES_MAX as u32,
        })
    }
}

/// Applies everything but the size to a record.
fn apply_changes(record: &mut InodeRecord, changes: &SetAttr, kill: Kill, now: Timespec) {
    let time = |set: SetTime| match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    record.perm = changes.perm.map_or(record.perm, |perm| perm & 0o7777);
    record.uid = changes.uid.unwrap_or(record.uid);
    record.gid = changes.gid.unwrap_or(record.gid);
    if changes.perm.is_none() {
        record.perm = kill.leaves(record.perm);
    }
    record.atime = changes.atime.map_or(record.atime, time);
    record.mtime = changes.mtime.map_or(record.mtime, time);
    record.ctime = changes.ctime.unwrap_or(now);
}

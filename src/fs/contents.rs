//! Opening, reading and writing files.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::references::Access;
use super::types::{
    BLOCK_BYTES, Caller, Fallocate, FileKind, Handle, NodeId, SetAttr, Timespec, WriteFlags,
};
use super::{Filesystem, OpenFile};
use crate::errno::Errno;
use crate::object::{FILE_BYTES_MAX, File, FreedSpace};
use crate::planted::{Bug, planted};

/// A caller without any right.
const NOBODY: Caller = Caller {
    uid: u32::MAX,
    gid: u32::MAX,
    umask: 0,
};

impl Filesystem {
    /// Opens a file; `O_TRUNC` among the flags empties it.
    ///
    /// # Errors
    /// EISDIR for a directory, ENXIO for a device or pipe, EROFS, ESTALE if the inode is gone, or
    /// an error of the metadata.
    pub fn open_file(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<Handle, Errno> {
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::Read,
            _ => Access::Write,
        };
        if access == Access::Write || flags & libc::O_TRUNC != 0 {
            self.check_change(node)?;
        }
        // The reference is counted before the view is looked up: deleting a view hides it first and
        // then looks for references.
        self.references.opened(node, access);
        let file = self.file_to_open(node).inspect_err(|_| {
            self.closed(node, access);
        })?;
        let handle = self
            .allocate_handle()
            .inspect_err(|_| self.closed(node, access))?;
        let open = OpenFile {
            file,
            access,
            accessed: AtomicBool::new(flags & libc::O_NOATIME != 0),
        };
        self.open_files.write().insert(handle.0, Arc::new(open));
        if flags & libc::O_TRUNC != 0 {
            let changes = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            if let Err(error) = self.setattr(caller, node, &changes) {
                self.release(node, handle);
                return Err(error);
            }
        }
        Ok(handle)
    }

    fn file_to_open(&self, node: NodeId) -> Result<Arc<File>, Errno> {
        let view = self.view(node)?;
        match self.inode(node)?.kind {
            FileKind::Regular => Ok(self.contents.file_in(view, node.ino())?),
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::ENXIO),
        }
    }

    /// Reads from `offset` until `out` is full or the file ends. Returns the number of bytes read.
    ///
    /// # Errors
    /// EBADF for an unknown handle, or EIO if a page cannot be read or does not authenticate.
    pub fn read(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, Errno> {
        self.check_running()?;
        let open = self.open_handle(handle)?;
        if !open.accessed.swap(true, Ordering::Relaxed) {
            self.accessed(node)?;
        }
        Ok(self.contents.read(&open.file, offset, out)?)
    }

    /// Writes all of `data` and returns its length.
    ///
    /// # Errors
    /// EFBIG beyond the maximum size, ENOSPC, EROFS, or an error of contents or metadata.
    pub fn write(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<usize, Errno> {
        self.check_change(node)?;
        if flags.kill_privileges {
            self.kill_privileges(&NOBODY, node)?;
        }
        let file = self.file(node, handle)?;
        let now = (!flags.cached).then(Timespec::now);
        self.retry_after_reclaim(|| self.contents.write(&file, offset, data, now))?;
        self.contents.publish_synced(&file)?;
        Ok(data.len())
    }

    /// Called at every close of a descriptor, before [`Self::flush`]: a file that was opened only
    /// for reading counts as read. True if the access time was updated.
    ///
    /// # Errors
    /// EBADF for an unknown handle, or the inode cannot be read or changed.
    pub fn closing(&self, node: NodeId, handle: Handle) -> Result<bool, Errno> {
        let open = self.open_handle(handle)?;
        if open.access == Access::Write || open.accessed.swap(true, Ordering::Relaxed) {
            return Ok(false);
        }
        self.accessed(node)
    }

    /// Called at every close of a descriptor. It does not wait: what was written is in the backing
    /// store's cache, and fsync makes it durable.
    ///
    /// # Errors
    /// EIO after a shutdown, EROFS if writing has ended.
    pub fn flush(&self) -> Result<(), Errno> {
        self.check_running()?;
        self.meta.check_writable().or_else(|error| {
            if self.is_read_only() {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    /// Closes a file.
    pub fn release(&self, node: NodeId, handle: Handle) {
        let Some(open) = self.open_files.write().remove(&handle.0) else {
            return;
        };
        let access = open.access;
        let view = open.file.view;
        drop(open);
        self.contents.forget_in(view, node.ino());
        self.closed(node, access);
    }

    /// Makes the file and its names durable.
    ///
    /// # Errors
    /// EIO if writing has ended or something could not be made durable, ENOSPC if there is no space
    /// for the commit.
    pub fn fsync(&self, node: NodeId, handle: Handle, _datasync: bool) -> Result<(), Errno> {
        if self.is_read_only() {
            return Ok(());
        }
        self.meta.check_writable().map_err(|_| Errno::EIO)?;
        let file = self.file(node, handle)?;
        self.contents.sync_file(&file)?;
        if planted(Bug::FsyncWithoutCommit) {
            return Ok(());
        }
        self.retry_after_reclaim(|| self.commit_now().map_err(|error| error.errno()))
    }

    /// Allocates, punches or zeroes a range (`fallocate(2)`).
    ///
    /// # Errors
    /// EINVAL for an empty range, EFBIG beyond the maximum size, EROFS, ENOSPC, or an error of
    /// contents or metadata.
    pub fn fallocate(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        len: u64,
        mode: Fallocate,
    ) -> Result<(), Errno> {
        self.check_change(node)?;
        let file = self.file(node, handle)?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let grows = !matches!(
            mode,
            Fallocate::PunchHole
                | Fallocate::ZeroRange { keep_size: true }
                | Fallocate::Allocate { keep_size: true }
        );
        if grows && end > FILE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let now = Timespec::now();
        let keep_size = match mode {
            Fallocate::PunchHole => {
                self.contents
                    .punch(&file, offset..end, FreedSpace::Released, now)?;
                true
            }
            Fallocate::ZeroRange { keep_size } => {
                self.retry_after_reclaim(|| {
                    self.contents.reserve(&file, whole_blocks(offset..end))
                })?;
                self.contents
                    .punch(&file, offset..end, FreedSpace::Reserved, now)?;
                keep_size
            }
            Fallocate::Allocate { keep_size } => {
                self.retry_after_reclaim(|| {
                    self.contents.reserve(&file, whole_blocks(offset..end))
                })?;
                keep_size
            }
        };
        if !keep_size {
            self.contents
                .extend(&file, end, &mut |record| record.mtime = now)?;
        }
        let _permit = self.meta.permit();
        let _inode = self.meta.lock_inode(node.ino());
        let mut batch = crate::meta::Batch::new();
        self.amend_inode(&mut batch, node.ino(), |record| {
            record.mtime = now;
            record.ctime = now;
        })?;
        self.meta.apply(batch)?;
        Ok(())
    }

    /// True if the kernel may hold dirty pages of the file: it is open for writing, or mapped after
    /// it was.
    pub fn may_be_dirty(&self, node: NodeId) -> bool {
        self.references.has_writers(node)
    }

    /// Copies within the volume; whole chunks share their objects. Returns the number of bytes
    /// copied.
    ///
    /// # Errors
    /// EINVAL for overlapping ranges of one file or for anything that is not a file, EISDIR for a
    /// directory, EFBIG, EROFS, ENOSPC, or an error of contents or metadata.
    pub fn copy_file_range(
        &self,
        from: NodeId,
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        self.check_change(to)?;
        let overlaps = from_offset < to_offset.saturating_add(len)
            && to_offset < from_offset.saturating_add(len);
        if from == to && overlaps {
            return Err(Errno::EINVAL);
        }
        let (source, target) = (self.regular(from)?, self.regular(to)?);
        let now = Timespec::now();
        let copied = self.retry_after_reclaim(|| {
            self.contents
                .copy(&source, from_offset, &target, to_offset, len, now)
        })?;
        self.contents.publish_synced(&target)?;
        Ok(copied)
    }

    fn regular(&self, node: NodeId) -> Result<Arc<File>, Errno> {
        let view = self.view(node)?;
        match self.inode(node)?.kind {
            FileKind::Regular => Ok(self.contents.file_in(view, node.ino())?),
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open_handle(&self, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        self.open_files
            .read()
            .get(&handle.0)
            .cloned()
            .ok_or(Errno::EBADF)
    }

    /// The file of a handle; or that of the node, if the kernel sends another handle or none.
    pub(super) fn file(&self, node: NodeId, handle: Handle) -> Result<Arc<File>, Errno> {
        match self.open_handle(handle) {
            Ok(open) if open.file.ino == node.ino() && open.file.view == self.view(node)? => {
                Ok(Arc::clone(&open.file))
            }
            _ => self.regular(node),
        }
    }
}

/// The kernel writes whole blocks of its cache, so a reservation must cover whole blocks.
fn whole_blocks(bytes: Range<u64>) -> Range<u64> {
    let block = u64::from(BLOCK_BYTES);
    let end = bytes.end.div_ceil(block).saturating_mul(block);
    bytes.start - bytes.start % block..end.min(FILE_BYTES_MAX).max(bytes.end)
}

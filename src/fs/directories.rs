//! Listing directories.
//!
//! An entry's position ([`crate::meta::keys`]) does not change when others are added or removed,
//! and no other entry of the directory has it. Offsets 0 and 1 are `.` and `..`; an entry at
//! position p has offset p + 2. All offsets are below 2^31, so they fit into an `off_t` of 32 bits.

use super::references::Access;
use super::types::{Attr, DirEntry, FileKind, Handle, NodeId, ViewsDirectory};
use super::{Filesystem, check_name, node_in};
use crate::errno::Errno;
use crate::meta::keys::{self, Table};
use crate::meta::records::DirentRecord;

/// Entries read at a time.
const SCAN_ENTRIES: usize = 128;
/// Offset of the first entry that is not `.` or `..`.
const FIRST_NAME: u64 = 2;

impl Filesystem {
    /// Opens a directory.
    ///
    /// # Errors
    /// ENOTDIR for anything else, ESTALE if the inode is gone, or an error of the metadata.
    pub fn open_dir(&self, node: NodeId) -> Result<Handle, Errno> {
        // The reference is counted before the view is looked up: deleting a view hides it first and
        // then looks for references.
        self.references.opened(node, Access::Read);
        let result = match self.inode(node) {
            Ok(record) if record.kind == FileKind::Directory => self.allocate_handle(),
            Ok(_) => Err(Errno::ENOTDIR),
            Err(error) => Err(error),
        };
        match result {
            Ok(handle) => drop(self.open_directories.lock().insert(handle.0, node)),
            Err(_) => self.closed(node, Access::Read),
        }
        result
    }

    /// Closes a directory.
    pub fn release_dir(&self, node: NodeId, handle: Handle) {
        if self.open_directories.lock().remove(&handle.0).is_some() {
            self.closed(node, Access::Read);
        }
    }

    /// Drops the reference of an open file or directory.
    pub(super) fn closed(&self, node: NodeId, access: Access) {
        if self.references.closed(node, access) {
            self.remove_or_defer(node.ino());
        }
    }

    /// Calls `emit` with the entries from `offset` on, until it returns false because it has no
    /// space.
    ///
    /// # Errors
    /// ENOTDIR for anything but a directory, ESTALE if it is gone, EIO for an undecodable record,
    /// or an error of the metadata.
    pub fn read_dir(
        &self,
        node: NodeId,
        _handle: Handle,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let directory = self.inode(node)?;
        if directory.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let view = self.view(node)?;
        // Directories that hold views have no record, and an inode number that no record can
        // contain.
        let parent = node_in(node.view(), directory.parent)?;
        let dots: [(&[u8], NodeId); 2] = [(b".", node), (b"..", parent)];
        for (at, (name, node)) in dots.into_iter().enumerate().skip(offset as usize) {
            let entry = DirEntry {
                node,
                kind: FileKind::Directory,
                next_offset: at as u64 + 1,
                name,
            };
            if !emit(&entry) {
                return Ok(());
            }
        }
        if let Some(directory) = ViewsDirectory::of(node) {
            self.list_views(directory, offset, emit);
            return Ok(());
        }
        let high = keys::after_ino(node.ino());
        let Ok(first) = u32::try_from(offset.saturating_sub(FIRST_NAME)) else {
            return Ok(());
        };
        let mut low = keys::dirent_from(node.ino(), first);
        loop {
            let rows = self
                .meta
                .scan(Table::Dirent, &low, &high, view, SCAN_ENTRIES)?;
            for (key, value) in &rows {
                let (position, name) = keys::dirent_parts(key).ok_or(Errno::EIO)?;
                let record = DirentRecord::decode(value).ok_or(Errno::EIO)?;
                check_name(name).map_err(|_| Errno::EIO)?;
                let entry = DirEntry {
                    node: node_in(node.view(), record.ino)?,
                    kind: record.kind,
                    next_offset: u64::from(position) + FIRST_NAME + 1,
                    name,
                };
                if !emit(&entry) {
                    return Ok(());
                }
            }
            match rows.into_iter().next_back() {
                Some((mut last, _)) => {
                    last.push(0xFF);
                    low = last;
                }
                None => return Ok(()),
            }
        }
    }

    /// Calls `emit` with entries and their attributes, until it returns false because it has no
    /// space. Every entry that it accepts counts as a lookup, except `.` and `..`.
    ///
    /// # Errors
    /// ENOTDIR for anything but a directory, ESTALE if it is gone, EIO for an undecodable or
    /// contradictory record, or an error of the metadata.
    pub fn read_dir_plus(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), Errno> {
        let mut failed = None;
        self.read_dir(node, handle, offset, &mut |entry| {
            let is_name = !matches!(entry.name, b"." | b"..") && !node.holds_views();
            let attr = if is_name {
                let record = DirentRecord {
                    ino: entry.node.ino(),
                    kind: entry.kind,
                };
                self.attr_of_entry(node, entry.name, record)
            } else {
                self.getattr(entry.node)
            };
            let attr = match attr {
                Ok(attr) => attr,
                // Removed since the names were read.
                Err(Errno::ESTALE | Errno::ENOENT) => return true,
                Err(error) => {
                    failed = Some(error);
                    return false;
                }
            };
            let counted = !matches!(entry.name, b"." | b"..");
            if counted {
                self.references.looked_up(entry.node);
            }
            let accepted = emit(entry, &attr);
            if counted && !accepted {
                self.forget(entry.node, 1);
            }
            accepted
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Makes the directory's names durable.
    ///
    /// # Errors
    /// EIO if writing has ended or the commit failed, ENOSPC if there is no space for it.
    pub fn fsync_dir(&self) -> Result<(), Errno> {
        if self.is_read_only() {
            return Ok(());
        }
        self.meta.check_writable().map_err(|_| Errno::EIO)?;
        self.retry_after_reclaim(|| self.commit_now().map_err(|error| error.errno()))
    }
}

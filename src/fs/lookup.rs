//! Looking up names, and attributes of inodes.

use super::types::{Attr, BLOCK_BYTES, FileKind, NodeId};
use super::{Filesystem, NAME_BYTES_MAX};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::View;
use crate::meta::records::InodeRecord;
use crate::object::{INLINE_BYTES, LiveAttr};
use crate::sealed::PAGE_BYTES;

impl Filesystem {
    /// Looks up a name, and counts one reference of the kernel to its inode.
    ///
    /// # Errors
    /// ENOENT if there is no such name, ENAMETOOLONG, ENOTDIR if `parent` is not a directory,
    /// ESTALE if it is gone, EIO for contradictory records, or an error of the metadata.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attr, Errno> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let view = self.view(parent)?;
        if let Some(node) = self.node_at_views(parent, name)? {
            return self.getattr(node);
        }
        let attr = match name {
            b"." => self.getattr(parent)?,
            b".." => self.attr_of_parent(parent)?,
            _ => match self.meta.dirent(parent.ino(), name, view)? {
                Some(entry) => self.attr_of_entry(parent, name, entry)?,
                None if self.inode(parent)?.kind != FileKind::Directory => {
                    return Err(Errno::ENOTDIR);
                }
                None => return Err(Errno::ENOENT),
            },
        };
        self.references.looked_up(attr.node);
        Ok(attr)
    }

    /// The kernel drops `count` references.
    pub fn forget(&self, node: NodeId, count: u64) {
        if self.references.forgotten(node, count) {
            self.remove_or_defer(node.ino());
        }
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// ESTALE if the inode is gone, or an error of the metadata.
    pub fn getattr(&self, node: NodeId) -> Result<Attr, Errno> {
        Ok(self.record_and_attr(node)?.1)
    }

    /// An inode's record and its attributes.
    pub(super) fn record_and_attr(&self, node: NodeId) -> Result<(InodeRecord, Attr), Errno> {
        // In this order: a file is dropped from memory only after it is published, so the record of
        // a file that is not in memory is complete.
        let live = self.live_attr(node);
        let record = self.inode(node)?;
        let attr = self.attr_with(node, &record, live);
        Ok((record, attr))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL for anything else, ESTALE if it is gone, or an error of the metadata.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let record = self.inode(node)?;
        if record.kind == FileKind::Symlink {
            self.accessed(node)?;
            Ok(record.target)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// The parent of a directory.
    pub(super) fn parent_of(&self, node: NodeId) -> Result<Ino, Errno> {
        let record = self.inode(node)?;
        if record.kind == FileKind::Directory {
            Ok(record.parent)
        } else {
            Err(Errno::ENOTDIR)
        }
    }

    /// The attributes of an inode, from its record and from the state of a live file that is not in
    /// it yet.
    pub(super) fn attr(&self, node: NodeId, record: &InodeRecord) -> Attr {
        self.attr_with(node, record, self.live_attr(node))
    }

    /// Distinguishes the files that the node's number has stood for. Ids of views are reused, and
    /// the kernel may still know files of the view that had the id before.
    fn node_generation(&self, node: NodeId) -> u64 {
        if node.is_live() {
            return self.references.generation(node);
        }
        let view = self.meta.view(node.view());
        // The kernel keeps 32 bits and compares them with the whole value.
        view.map_or(0, |View(generation)| generation.0 & u64::from(u32::MAX))
    }

    fn live_attr(&self, node: NodeId) -> Option<LiveAttr> {
        let live = node.is_live().then(|| self.contents.live(node.ino()));
        live.flatten()
    }

    fn attr_with(&self, node: NodeId, record: &InodeRecord, live: Option<LiveAttr>) -> Attr {
        let mut attr = Attr {
            node,
            generation: self.node_generation(node),
            size: record.size,
            blocks: 0,
            atime: record.atime,
            mtime: record.mtime,
            ctime: record.ctime,
            crtime: record.crtime,
            kind: record.kind,
            perm: record.perm,
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            rdev: record.rdev,
            blksize: BLOCK_BYTES,
        };
        let mut pages = record.pages;
        if record.kind == FileKind::Regular
            && let Some(live) = live
        {
            attr.size = live.size;
            pages = live.pages;
            if let Some(written) = live.written {
                attr.mtime = written;
                attr.ctime = attr.ctime.max(written);
            }
        }
        attr.blocks = match record.kind {
            FileKind::Directory => PAGE_UNITS,
            FileKind::Regular if pages > 0 => pages * PAGE_UNITS,
            FileKind::Regular => self.units_without_pages(node, attr.size),
            _ => 0,
        };
        attr
    }

    /// Allocated units of a file without pages. A small file is stored in its record. While a file
    /// is open for writing, the kernel may hold contents that it has not sent; that counts as one
    /// unit, since programs like `tar --sparse` treat a file without any unit as a hole.
    fn units_without_pages(&self, node: NodeId, size: u64) -> u64 {
        let unsent = u64::from(self.references.has_writers(node));
        let is_inline = || {
            let view = self.view(node);
            view.is_ok_and(|view| self.contents.is_inline(view, node.ino()))
        };
        let inline = size <= INLINE_BYTES || is_inline();
        if inline {
            unsent.max(size.min(INLINE_BYTES).div_ceil(UNIT_BYTES))
        } else {
            unsent
        }
    }
}

/// Size of the units in which allocation is counted (POSIX `st_blocks` on Linux).
const UNIT_BYTES: u64 = 512;
/// Number of such units in a sealed page.
const PAGE_UNITS: u64 = PAGE_BYTES as u64 / UNIT_BYTES;

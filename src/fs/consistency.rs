//! Handling of records that contradict each other, as those of a damaged volume or of a hostile
//! image can.
//!
//! A live filesystem that finds a contradiction accepts no more changes, since further records may
//! be wrong. The log names the inode, the caller gets EIO, and `check` reports the details. Kept
//! views do not change, so there the operation only fails.
//!
//! Names and inodes are read one after the other. A thread that holds neither a permit nor
//! `namespace` may see an older name and a newer inode, so a contradiction counts only if both are
//! held.

use super::types::{Attr, FileKind, NodeId};
use super::{Filesystem, node_in};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::View;
use crate::meta::records::{DirentRecord, InodeRecord};

/// The contradiction between a name in `parent` and the inode that it leads to, if any.
fn contradiction(parent: Ino, entry: DirentRecord, record: &InodeRecord) -> Option<&'static str> {
    let is_directory = record.kind == FileKind::Directory;
    if record.kind != entry.kind {
        Some("a name records another kind of file than its inode")
    } else if record.nlink == 0 {
        Some("a name leads to it, but its link count is 0")
    } else if is_directory && entry.ino == Ino::ROOT {
        Some("a name leads to the root directory")
    } else if is_directory && record.parent != parent {
        Some("a name leads to it from a directory other than its parent")
    } else {
        None
    }
}

impl Filesystem {
    /// Ends all writing, since the records of an inode contradict others.
    pub(super) fn inconsistent(&self, ino: Ino, what: &str) -> Errno {
        self.meta.log_inconsistent(ino, what);
        self.meta
            .latch(&format!("the metadata is damaged: inode {ino}: {what}"));
        Errno::EIO
    }

    /// The live inode that a name leads to. The caller holds a permit and `namespace`.
    pub(super) fn named_inode(
        &self,
        parent: Ino,
        entry: DirentRecord,
    ) -> Result<InodeRecord, Errno> {
        let Some(record) = self.meta.inode(entry.ino, View::LIVE)? else {
            return Err(self.inconsistent(entry.ino, "a name leads to it, but it does not exist"));
        };
        match contradiction(parent, entry, &record) {
            Some(what) => Err(self.inconsistent(entry.ino, what)),
            None => Ok(record),
        }
    }

    /// The attributes of the inode that a name leads to.
    pub(super) fn attr_of_entry(
        &self,
        parent: NodeId,
        name: &[u8],
        entry: DirentRecord,
    ) -> Result<Attr, Errno> {
        if let Some(attr) = self.attr_if_consistent(parent, entry)? {
            return Ok(attr);
        }
        if !parent.is_live() {
            // The view may have been deleted.
            self.view(parent)?;
            let what = "a name in a snapshot or image contradicts it";
            self.meta.log_inconsistent(entry.ino, what);
            return Err(Errno::EIO);
        }
        let _permit = self.meta.permit();
        let _namespace = self.namespace.lock();
        let entry = self.meta.dirent(parent.ino(), name, View::LIVE)?;
        let entry = entry.ok_or(Errno::ENOENT)?;
        self.named_inode(parent.ino(), entry)?;
        self.attr_if_consistent(parent, entry)?.ok_or(Errno::EIO)
    }

    /// `None` if name and inode do not match, perhaps because one of them changed since the other
    /// was read.
    fn attr_if_consistent(
        &self,
        parent: NodeId,
        entry: DirentRecord,
    ) -> Result<Option<Attr>, Errno> {
        let node = node_in(parent.view(), entry.ino)?;
        match self.record_and_attr(node) {
            Err(Errno::ESTALE) => Ok(None),
            Err(error) => Err(error),
            Ok((record, attr)) => {
                let consistent = contradiction(parent.ino(), entry, &record).is_none();
                Ok(consistent.then_some(attr))
            }
        }
    }

    /// The attributes of a directory's parent.
    pub(super) fn attr_of_parent(&self, node: NodeId) -> Result<Attr, Errno> {
        let above = node_in(node.view(), self.parent_of(node)?)?;
        match self.getattr(above) {
            Err(Errno::ESTALE) if node.is_live() => {}
            attr => return attr,
        }
        let _permit = self.meta.permit();
        let _namespace = self.namespace.lock();
        let record = self.inode(node)?;
        if record.nlink == 0 {
            // The directory was removed, and its parent may be removed too.
            return Err(Errno::ESTALE);
        }
        match self.meta.inode(record.parent, View::LIVE)? {
            Some(_) => self.getattr(node_in(node.view(), record.parent)?),
            None => Err(self.inconsistent(node.ino(), "its parent directory does not exist")),
        }
    }
}

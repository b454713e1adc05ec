//! What is done where records contradict each other, as those of a damaged volume or of a hostile
//! image can.
//!
//! A live filesystem that meets a contradiction takes no more changes: each of them would build on
//! records of which it cannot be known what else is wrong. The log names the inode, the caller gets
//! EIO, and `check` tells the rest. Kept views do not change, so there it is the error alone.
//!
//! Names and inodes are read one after the other. Whoever holds neither the right to change nor
//! `namespace` may see an older name and a newer inode: a contradiction counts only with both held.

use super::types::{Attr, FileKind, NodeId};
use super::{Filesystem, node_in};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::View;
use crate::meta::records::{DirentRecord, InodeRecord};

/// What contradicts, of a name in `parent` and the inode that it leads to.
fn contradiction(parent: Ino, entry: DirentRecord, record: &InodeRecord) -> Option<&'static str> {
    let is_directory = record.kind == FileKind::Directory;
    if record.kind != entry.kind {
        Some("a name says another kind of file than it is")
    } else if record.nlink == 0 {
        Some("a name leads to it and it counts none")
    } else if is_directory && entry.ino == Ino::ROOT {
        Some("a name leads to the root directory")
    } else if is_directory && record.parent != parent {
        Some("a name in another directory leads to it than the one that it says it is in")
    } else {
        None
    }
}

impl Filesystem {
    /// Ends writing, since the records of an inode contradict others.
    pub(super) fn inconsistent(&self, ino: Ino, what: &str) -> Errno {
        self.meta.log_inconsistent(ino, what);
        self.meta
            .latch(&format!("the metadata is damaged: inode {ino}: {what}"));
        Errno::EIO
    }

    /// The live inode that a name leads to. Called by one who holds a permit and `namespace`.
    pub(super) fn named_inode(
        &self,
        parent: Ino,
        entry: DirentRecord,
    ) -> Result<InodeRecord, Errno> {
        let Some(record) = self.meta.inode(entry.ino, View::LIVE)? else {
            return Err(self.inconsistent(entry.ino, "a name leads to it and it is not there"));
        };
        match contradiction(parent, entry, &record) {
            Some(what) => Err(self.inconsistent(entry.ino, what)),
            None => Ok(record),
        }
    }

    /// What `stat` shows of what a name leads to.
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
            // The view may be gone.
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

    /// `None` where name and inode do not belong together, perhaps because one of them changed
    /// since the other was read.
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

    /// What `stat` shows of the directory that holds a directory.
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
            // It was removed, and what held it may be gone too.
            return Err(Errno::ESTALE);
        }
        match self.meta.inode(record.parent, View::LIVE)? {
            Some(_) => self.getattr(node_in(node.view(), record.parent)?),
            None => Err(self.inconsistent(node.ino(), "the directory that holds it is not there")),
        }
    }
}

//! `.snapshots` and `.images`: directories of the live root that hold the kept views.
//!
//! They appear in no listing, have no record, and contain only views: creating a directory in one
//! takes a view, removing it deletes the view, renaming it renames the view. Their inode numbers
//! are above all that a volume allocates for files.
//!
//! [`SnapshotDir`] names the one for snapshots, or disables both. A file of the root with the name
//! of one is hidden as long as the name is used.

use super::error::ViewError;
use super::views::ViewChange;
use crate::errno::Errno;
use crate::fs::types::{
    Attr, Caller, DirEntry, DirentRef, FileKind, NodeId, RenameFlags, ViewsDirectory,
};
use crate::fs::{Filesystem, NAME_BYTES_MAX};
use crate::ids::{Ino, ViewId};
use crate::meta::View;
use crate::meta::records::{InodeRecord, ViewKind};

/// Difference between a view's position in the directory and its id. Ids start at 1, and positions
/// 0 and 1 are `.` and `..`.
const ID_TO_POSITION: u64 = 1;

/// Name of the directory of images in the root.
const IMAGES: &str = ".images";

/// Where kept views appear in the root directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotDir {
    /// Snapshots in a directory of this name, images in `.images`.
    Named(String),
    /// Nowhere: both names are free for files, and views are accessible by commands only.
    Off,
}

impl Default for SnapshotDir {
    fn default() -> Self {
        Self::Named(".snapshots".to_owned())
    }
}

impl SnapshotDir {
    /// Parses `off` or a name.
    ///
    /// # Errors
    /// Why the text is not a valid name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "off" => Ok(Self::Off),
            "" | "." | ".." => Err("expected a name, or off"),
            IMAGES => Err("that is the directory of images; expected another name"),
            _ if text.len() > NAME_BYTES_MAX => Err("expected a name of at most 255 bytes"),
            _ if text.contains('/') => Err("expected a name in the root, without a /"),
            _ if text.contains(char::is_control) => Err("expected a printable name"),
            name => Ok(Self::Named(name.to_owned())),
        }
    }

    /// Name in the root of the directory for views of that kind.
    fn name_of(&self, kind: ViewKind) -> Option<&str> {
        match (self, kind) {
            (Self::Off, _) => None,
            (Self::Named(name), ViewKind::Snapshot) => Some(name),
            (Self::Named(_), ViewKind::Image) => Some(IMAGES),
        }
    }
}

impl Filesystem {
    /// The directory that holds views and has that name, if any.
    fn views_directory(&self, parent: NodeId, name: &[u8]) -> Option<ViewsDirectory> {
        let has_name = |directory: &ViewsDirectory| {
            let own = self.options.snapshot_dir.name_of(directory.kind);
            own.is_some_and(|own| own.as_bytes() == name)
        };
        let mut all = ViewsDirectory::ALL.into_iter();
        all.find(|directory| parent == NodeId::ROOT && has_name(directory))
    }

    /// Fails with EEXIST for names that are in use although no listing shows them.
    pub(in crate::fs) fn check_free(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        match self.views_directory(parent, name) {
            Some(_) => Err(Errno::EEXIST),
            None => Ok(()),
        }
    }

    /// Fails with EBUSY for a directory that cannot be removed.
    pub(in crate::fs) fn check_removable(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        match self.views_directory(parent, name) {
            Some(_) => Err(Errno::EBUSY),
            None => Ok(()),
        }
    }

    /// Logs a warning for each file of the root that is hidden by a directory of views.
    pub fn warn_of_hidden(&self) {
        for directory in ViewsDirectory::ALL {
            let Some(name) = self.options.snapshot_dir.name_of(directory.kind) else {
                continue;
            };
            let entry = self.meta.dirent(Ino::ROOT, name.as_bytes(), View::LIVE);
            if matches!(entry, Ok(Some(_))) {
                tracing::warn!(
                    name,
                    "a file of the root has this name, and is out of reach while the directory of \
                     {}s has it: mount with -o snapshot_dir=off, or another name, to reach it",
                    directory.kind.noun()
                );
            }
        }
    }

    /// The node of a name that leads to, into or out of a directory that holds views. `None` for
    /// any other name.
    pub(in crate::fs) fn node_at_views(
        &self,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Option<NodeId>, Errno> {
        if let Some(directory) = self.views_directory(parent, name) {
            return Ok(Some(directory.node()));
        }
        if !parent.is_live() && parent.ino() == Ino::ROOT && name == b".." {
            let views = self.meta.views();
            let view = views.iter().find(|(id, _)| *id == parent.view());
            let (_, record) = view.ok_or(Errno::ESTALE)?;
            return Ok(Some(NodeId::of_views(record.kind)));
        }
        let Some(directory) = ViewsDirectory::of(parent) else {
            return Ok(None);
        };
        match name {
            b"." => Ok(Some(parent)),
            b".." => Ok(Some(NodeId::ROOT)),
            _ => {
                let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
                let view = self.meta.find_view(directory.kind, name);
                let (id, _) = view.ok_or(Errno::ENOENT)?;
                Ok(Some(NodeId::root_of(id)))
            }
        }
    }

    /// The inode of a directory that holds views. It belongs to the owner of the root: besides the
    /// superuser, only they may take and delete views.
    pub(in crate::fs) fn views_inode(
        &self,
        directory: ViewsDirectory,
    ) -> Result<InodeRecord, Errno> {
        let root = self.meta.inode(Ino::ROOT, View::LIVE)?;
        let root = root.ok_or(Errno::EIO)?;
        let (count, newest) = self.meta.count_views(directory.kind);
        let changed = newest.unwrap_or(root.crtime);
        Ok(InodeRecord {
            perm: 0o755,
            nlink: 2 + count,
            size: 0,
            pages: 0,
            atime: changed,
            mtime: changed,
            ctime: changed,
            parent: Ino::ROOT,
            ..root
        })
    }

    /// Calls `emit` with the views from a position on, until it returns false because it has no
    /// space. An entry's position follows from the view's id, so it does not change when others are
    /// added or removed.
    pub(in crate::fs) fn list_views(
        &self,
        directory: ViewsDirectory,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) {
        for (id, record) in self.meta.views() {
            let position = u64::from(id.0) + ID_TO_POSITION;
            if record.kind != directory.kind || position < offset {
                continue;
            }
            let entry = DirEntry {
                node: NodeId::root_of(id),
                kind: FileKind::Directory,
                next_offset: position + 1,
                name: record.name.as_bytes(),
            };
            if !emit(&entry) {
                return;
            }
        }
    }

    /// `mkdir` in a directory that holds views.
    pub(in crate::fs) fn mkdir_view(
        &self,
        caller: &Caller,
        directory: ViewsDirectory,
        name: &[u8],
    ) -> Result<Attr, Errno> {
        let owner = self.views_inode(directory)?.uid;
        let name = text(name)?;
        if ![0, owner].contains(&caller.uid) {
            self.audit_view(ViewChange::Create, directory.kind, name)
                .refused("only root and the owner of the root directory may");
            return Err(Errno::EPERM);
        }
        let view = self.create_view(directory.kind, name, None, "");
        let view = view.map_err(|error| error.errno())?;
        self.getattr(NodeId::root_of(ViewId(view.id)))
    }

    /// `rmdir` in a directory that holds views.
    pub(in crate::fs) fn rmdir_view(
        &self,
        directory: ViewsDirectory,
        name: &[u8],
    ) -> Result<(), Errno> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        self.delete_view(directory.kind, name)
            .map_err(|error| error.errno())
    }

    /// `rename` from, to or within directories that hold views; `None` for any other.
    pub(in crate::fs) fn rename_view_entry(
        &self,
        from: DirentRef<'_>,
        to: DirentRef<'_>,
        flags: RenameFlags,
    ) -> Option<Result<(), Errno>> {
        let removable = self.check_removable(from.parent, from.name);
        if let Err(error) = removable.and(self.check_removable(to.parent, to.name)) {
            return Some(Err(error));
        }
        let directories = (
            ViewsDirectory::of(from.parent),
            ViewsDirectory::of(to.parent),
        );
        let directory = match directories {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => one,
            _ => return Some(Err(Errno::EXDEV)),
        };
        Some(self.rename_view_in(directory, from.name, to.name, flags))
    }

    fn rename_view_in(
        &self,
        directory: ViewsDirectory,
        name: &[u8],
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        if flags.exchange || flags.whiteout {
            return Err(Errno::EINVAL);
        }
        let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        match self.rename_view(directory.kind, name, text(new_name)?) {
            // The existing view is a directory that is not empty.
            Err(ViewError::Exists { .. }) if !flags.no_replace => Err(Errno::ENOTEMPTY),
            result => result.map_err(|error| error.errno()),
        }
    }
}

fn text(name: &[u8]) -> Result<&str, Errno> {
    std::str::from_utf8(name).map_err(|_| Errno::EINVAL)
}

//! Creating and removing names.

use super::privileges::SETGID;
use super::types::{Attr, Caller, FileKind, Handle, NodeId, Timespec, ViewsDirectory};
use super::{Filesystem, LINKS_MAX, TARGET_BYTES_MAX, check_name, node_in};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::keys::Table;
use crate::meta::records::{DirentRecord, InodeRecord};
use crate::meta::{Batch, View};

/// The attributes of a new inode.
struct NewInode<'a> {
    kind: FileKind,
    perm: u16,
    rdev: u32,
    target: &'a [u8],
}

impl Filesystem {
    /// Creates a file, fifo, socket or device (`mknod(2)`).
    ///
    /// # Errors
    /// EEXIST if the name exists, EPERM for a directory, EINVAL for an unknown kind, EROFS, ENOSPC,
    /// or an error of the metadata.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Errno> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileKind::Regular,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            libc::S_IFDIR => return Err(Errno::EPERM),
            _ => return Err(Errno::EINVAL),
        };
        let new = NewInode {
            kind,
            perm: (mode & 0o7777) as u16,
            rdev,
            target: &[],
        };
        self.create_inode(caller, parent, name, &new)
    }

    /// Creates a directory; in a directory that holds views, takes a view.
    ///
    /// # Errors
    /// EEXIST if the name exists, EMLINK if the parent has too many subdirectories, EROFS, ENOSPC,
    /// or an error of the metadata.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr, Errno> {
        if let Some(directory) = ViewsDirectory::of(parent) {
            return self.mkdir_view(caller, directory, name);
        }
        let perm = (mode & 0o7777) as u16;
        let new = NewInode {
            kind: FileKind::Directory,
            perm,
            rdev: 0,
            target: &[],
        };
        self.create_inode(caller, parent, name, &new)
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// ENOENT for an empty target, ENAMETOOLONG for a long one, EEXIST if the name exists, EROFS,
    /// ENOSPC, or an error of the metadata.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Errno> {
        match target.len() {
            0 => return Err(Errno::ENOENT),
            len if len > TARGET_BYTES_MAX => return Err(Errno::ENAMETOOLONG),
            _ => {}
        }
        let new = NewInode {
            kind: FileKind::Symlink,
            perm: 0o777,
            rdev: 0,
            target,
        };
        self.create_inode(
            &Caller {
                umask: 0,
                ..*caller
            },
            parent,
            name,
            &new,
        )
    }

    /// Creates a file and opens it.
    ///
    /// # Errors
    /// Those of [`Self::mknod`] and [`Self::open_file`].
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, Handle), Errno> {
        let attr = self.mknod(caller, parent, name, (mode & 0o7777) | libc::S_IFREG, 0)?;
        let handle = self.open_file(caller, attr.node, flags & !libc::O_TRUNC)?;
        // It is open for writing now, which affects its allocated blocks.
        Ok((self.getattr(attr.node)?, handle))
    }

    fn create_inode(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        new: &NewInode<'_>,
    ) -> Result<Attr, Errno> {
        check_name(name)?;
        self.check_free(parent, name)?;
        self.retry_after_reclaim(|| self.create_inode_once(caller, parent, name, new))
    }

    fn create_inode_once(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        new: &NewInode<'_>,
    ) -> Result<Attr, Errno> {
        let _permit = self.begin_change(parent)?;
        let now = Timespec::now();
        let _namespace = self.namespace.lock();
        let _parent = self.meta.lock_inode(parent.ino());
        let mut directory = self.directory(parent)?;
        if self.meta.dirent(parent.ino(), name, View::LIVE)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let is_directory = new.kind == FileKind::Directory;
        if is_directory && directory.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK);
        }
        let ino = self.meta.allocate_ino()?;
        let node = node_in(parent.view(), ino)?;
        let mut batch = Batch::new();
        let perm = self.inherit(&mut batch, caller, parent.ino(), ino, new)?;
        let inherits_group = directory.perm & SETGID != 0;
        let record = InodeRecord {
            kind: new.kind,
            perm: if inherits_group && is_directory {
                perm | SETGID
            } else {
                perm
            },
            nlink: if is_directory { 2 } else { 1 },
            uid: caller.uid,
            gid: if inherits_group {
                directory.gid
            } else {
                caller.gid
            },
            rdev: new.rdev,
            size: new.target.len() as u64,
            pages: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            parent: if is_directory { parent.ino() } else { Ino(0) },
            target: new.target.to_vec(),
        };
        directory.nlink += u32::from(is_directory);
        self.meta.put_inode(&mut batch, ino, &record)?;
        self.meta.put_dirent(
            &mut batch,
            parent.ino(),
            name,
            Some(DirentRecord {
                ino,
                kind: new.kind,
            }),
        )?;
        self.touch_directory(&mut batch, parent.ino(), directory, now)?;
        batch.inodes += 1;
        let pages = i64::from(new.kind == FileKind::Regular);
        self.contents
            .check_space_for_records(batch.record_bytes(), pages)?;
        self.meta.apply(batch)?;
        self.references.looked_up(node);
        Ok(self.attr(node, &record))
    }

    /// The mode of a new inode, after the umask or the directory's default ACL.
    fn inherit(
        &self,
        batch: &mut Batch,
        caller: &Caller,
        parent: Ino,
        ino: Ino,
        new: &NewInode<'_>,
    ) -> Result<u16, Errno> {
        if new.kind == FileKind::Symlink {
            return Ok(new.perm);
        }
        match self.inherit_acl(batch, parent, ino, new.kind, new.perm)? {
            Some(perm) => Ok(perm),
            None => Ok(new.perm & !(caller.umask as u16 & 0o777)),
        }
    }

    /// Creates a further name for an inode.
    ///
    /// # Errors
    /// EEXIST if the name exists, EPERM for a directory, EMLINK at the maximum number of links,
    /// EXDEV between views, EROFS, ENOSPC, or an error of the metadata.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Attr, Errno> {
        check_name(name)?;
        self.check_free(parent, name)?;
        // As between filesystems.
        if node.is_live() != parent.is_live() {
            return Err(Errno::EXDEV);
        }
        self.check_change(node)?;
        self.retry_after_reclaim(|| self.link_once(node, parent, name))
    }

    fn link_once(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Attr, Errno> {
        let _permit = self.begin_change(parent)?;
        let now = Timespec::now();
        let _namespace = self.namespace.lock();
        let _inodes = self.meta.lock_inodes(&[parent.ino(), node.ino()]);
        let directory = self.directory(parent)?;
        let mut record = self.inode(node)?;
        if record.kind == FileKind::Directory {
            return Err(Errno::EPERM);
        }
        if record.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if record.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK);
        }
        if self.meta.dirent(parent.ino(), name, View::LIVE)?.is_some() {
            return Err(Errno::EEXIST);
        }
        record.nlink += 1;
        record.ctime = now;
        let mut batch = Batch::new();
        let entry = DirentRecord {
            ino: node.ino(),
            kind: record.kind,
        };
        self.meta
            .put_dirent(&mut batch, parent.ino(), name, Some(entry))?;
        self.meta.put_inode(&mut batch, node.ino(), &record)?;
        self.touch_directory(&mut batch, parent.ino(), directory, now)?;
        self.contents
            .check_space_for_records(batch.record_bytes(), 0)?;
        self.meta.apply(batch)?;
        self.references.looked_up(node);
        Ok(self.attr(node, &record))
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// ENOENT if there is no such name, EISDIR for a directory, EROFS, or an error of the metadata.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        self.check_removable(parent, name)?;
        let permit = self.begin_change(parent)?;
        let now = Timespec::now();
        let orphan = {
            let _namespace = self.namespace.lock();
            let entry = self.entry(parent, name)?;
            if entry.kind == FileKind::Directory {
                return Err(Errno::EISDIR);
            }
            let _inodes = self.meta.lock_inodes(&[parent.ino(), entry.ino]);
            let directory = self.directory(parent)?;
            let mut batch = Batch::new();
            self.meta.put_dirent(&mut batch, parent.ino(), name, None)?;
            self.touch_directory(&mut batch, parent.ino(), directory, now)?;
            let orphan = self.drop_link(&mut batch, entry, now)?;
            self.meta.apply(batch)?;
            orphan
        };
        drop(permit);
        self.after_unlink(orphan);
        Ok(())
    }

    /// Removes an empty directory; in a directory that holds views, deletes a view.
    ///
    /// # Errors
    /// ENOENT if there is no such name, ENOTDIR for anything else, ENOTEMPTY, EBUSY for a view in
    /// use, EROFS, or an error of the metadata.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        match name {
            b"." => return Err(Errno::EINVAL),
            b".." => return Err(Errno::ENOTEMPTY),
            _ => check_name(name)?,
        }
        self.check_removable(parent, name)?;
        if let Some(directory) = ViewsDirectory::of(parent) {
            return self.rmdir_view(directory, name);
        }
        let permit = self.begin_change(parent)?;
        let now = Timespec::now();
        let orphan = {
            let _namespace = self.namespace.lock();
            let entry = self.entry(parent, name)?;
            if entry.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            let _inodes = self.meta.lock_inodes(&[parent.ino(), entry.ino]);
            if !self.is_empty_directory(entry.ino)? {
                return Err(Errno::ENOTEMPTY);
            }
            let mut directory = self.directory(parent)?;
            directory.nlink = directory.nlink.saturating_sub(1);
            let mut batch = Batch::new();
            self.meta.put_dirent(&mut batch, parent.ino(), name, None)?;
            self.touch_directory(&mut batch, parent.ino(), directory, now)?;
            let orphan = self.drop_link(&mut batch, entry, now)?;
            self.meta.apply(batch)?;
            orphan
        };
        drop(permit);
        self.after_unlink(orphan);
        Ok(())
    }

    /// The directory's inode record. The directory must still have a name.
    pub(super) fn directory(&self, node: NodeId) -> Result<InodeRecord, Errno> {
        let record = self.inode(node)?;
        match record.kind {
            FileKind::Directory if record.nlink == 0 => Err(Errno::ENOENT),
            FileKind::Directory => Ok(record),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The entry of a name, which is checked against its inode. The caller holds a permit and
    /// `namespace`.
    pub(super) fn entry(&self, parent: NodeId, name: &[u8]) -> Result<DirentRecord, Errno> {
        match self.entry_if_exists(parent.ino(), name)? {
            Some(entry) => Ok(entry),
            None => self.directory(parent).and(Err(Errno::ENOENT)),
        }
    }

    /// The entry of a name if it exists, which is checked against its inode. The caller holds a
    /// permit and `namespace`.
    pub(super) fn entry_if_exists(
        &self,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<DirentRecord>, Errno> {
        let Some(entry) = self.meta.dirent(parent, name, View::LIVE)? else {
            return Ok(None);
        };
        self.named_inode(parent, entry)?;
        Ok(Some(entry))
    }

    pub(super) fn touch_directory(
        &self,
        batch: &mut Batch,
        ino: Ino,
        mut record: InodeRecord,
        now: Timespec,
    ) -> Result<(), Errno> {
        record.mtime = now;
        record.ctime = now;
        Ok(self.meta.put_inode(batch, ino, &record)?)
    }

    pub(super) fn is_empty_directory(&self, ino: Ino) -> Result<bool, Errno> {
        use crate::meta::keys;
        let (low, high) = (keys::number(ino.0), keys::after_ino(ino));
        Ok(self
            .meta
            .scan(Table::Dirent, &low, &high, View::LIVE, 1)?
            .is_empty())
    }

    /// Removes one link of an inode. Returns the inode if that was the last one, which makes it an
    /// orphan.
    pub(super) fn drop_link(
        &self,
        batch: &mut Batch,
        entry: DirentRecord,
        now: Timespec,
    ) -> Result<Option<Ino>, Errno> {
        let mut record = self.meta.inode_after(batch, entry.ino)?.ok_or(Errno::EIO)?;
        let last = entry.kind == FileKind::Directory || record.nlink <= 1;
        record.nlink = if last { 0 } else { record.nlink - 1 };
        record.ctime = now;
        self.meta.put_inode(batch, entry.ino, &record)?;
        if last {
            self.meta.put_orphan(batch, entry.ino);
        }
        Ok(last.then_some(entry.ino))
    }

    /// Removes an orphan that is not in use.
    pub(super) fn after_unlink(&self, orphan: Option<Ino>) {
        if let Some(ino) = orphan
            && self.references.orphaned(ino)
        {
            self.remove_or_defer(ino);
        }
    }
}

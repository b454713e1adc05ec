//! Renaming (`rename(2)`, `renameat2(2)`).

use super::types::{Caller, DirentRef, FileKind, RenameFlags, Timespec};
use super::{Filesystem, LINKS_MAX, check_name};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::meta::cycle::CycleDetector;
use crate::meta::records::{DirentRecord, InodeRecord};
use crate::meta::{Batch, View};
use crate::planted::{Bug, planted};

impl Filesystem {
    /// Renames `from` to `to`. In a directory that holds views, renames a view.
    ///
    /// # Errors
    /// ENOENT if there is no such name, EEXIST, ENOTEMPTY, EISDIR or ENOTDIR depending on what is
    /// replaced, EINVAL if a directory would be moved below itself or for contradictory flags,
    /// EXDEV between views, EROFS, or an error of the metadata.
    pub fn rename(
        &self,
        caller: &Caller,
        from: DirentRef<'_>,
        to: DirentRef<'_>,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        check_name(from.name)?;
        check_name(to.name)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Errno::EINVAL);
        }
        if let Some(done) = self.rename_view_entry(from, to, flags) {
            return done;
        }
        self.check_change(to.parent)?;
        let permit = self.begin_change(from.parent)?;
        let orphan = {
            let _namespace = self.namespace.lock();
            if flags.exchange {
                self.exchange(from, to)?
            } else {
                self.move_entry(caller, from, to, flags)?
            }
        };
        drop(permit);
        self.after_unlink(orphan);
        Ok(())
    }

    fn move_entry(
        &self,
        caller: &Caller,
        from: DirentRef<'_>,
        to: DirentRef<'_>,
        flags: RenameFlags,
    ) -> Result<Option<Ino>, Errno> {
        let now = Timespec::now();
        let moved = self.entry(from.parent, from.name)?;
        self.directory(to.parent)?;
        let replaced = self.entry_if_exists(to.parent.ino(), to.name)?;
        if flags.no_replace && replaced.is_some() {
            return Err(Errno::EEXIST);
        }
        if replaced.is_some_and(|entry| entry.ino == moved.ino) {
            return Ok(None);
        }
        if moved.kind == FileKind::Directory {
            self.check_no_loop(moved.ino, to.parent.ino())?;
        }
        let mut inos = vec![from.parent.ino(), to.parent.ino(), moved.ino];
        inos.extend(replaced.map(|entry| entry.ino));
        let _inodes = self.meta.lock_inodes(&inos);
        let mut batch = Batch::new();
        if let Some(entry) = replaced {
            self.check_replace(moved, entry)?;
        }
        self.move_links(&mut batch, from, to, moved, replaced, now)?;
        let orphan = match replaced {
            Some(entry) => self.drop_link(&mut batch, entry, now)?,
            None => None,
        };
        let whiteout = if flags.whiteout {
            Some(self.create_whiteout(&mut batch, caller, now)?)
        } else {
            None
        };
        self.meta
            .put_dirent(&mut batch, from.parent.ino(), from.name, whiteout)?;
        self.meta
            .put_dirent(&mut batch, to.parent.ino(), to.name, Some(moved))?;
        if replaced.is_some() {
            // Contents must be durable before the commit that moves the file over another one.
            if !planted(Bug::RenameUnordered) {
                self.contents.order_before_commit(moved.ino);
            }
            self.wake_background();
        }
        self.meta.apply(batch)?;
        Ok(orphan)
    }

    fn exchange(&self, from: DirentRef<'_>, to: DirentRef<'_>) -> Result<Option<Ino>, Errno> {
        let now = Timespec::now();
        let first = self.entry(from.parent, from.name)?;
        let second = self.entry(to.parent, to.name)?;
        for (entry, parent) in [(first, to.parent), (second, from.parent)] {
            if entry.kind == FileKind::Directory {
                self.check_no_loop(entry.ino, parent.ino())?;
            }
        }
        let inos = [from.parent.ino(), to.parent.ino(), first.ino, second.ino];
        let _inodes = self.meta.lock_inodes(&inos);
        let mut batch = Batch::new();
        self.move_links(&mut batch, from, to, first, None, now)?;
        self.move_links(&mut batch, to, from, second, None, now)?;
        self.meta
            .put_dirent(&mut batch, from.parent.ino(), from.name, Some(second))?;
        self.meta
            .put_dirent(&mut batch, to.parent.ino(), to.name, Some(first))?;
        self.meta.apply(batch)?;
        Ok(None)
    }

    /// Changes the inodes that a move affects: both directories and the moved inode.
    fn move_links(
        &self,
        batch: &mut Batch,
        from: DirentRef<'_>,
        to: DirentRef<'_>,
        moved: DirentRecord,
        replaced: Option<DirentRecord>,
        now: Timespec,
    ) -> Result<(), Errno> {
        let is_directory = moved.kind == FileKind::Directory;
        let moved_dirs = u32::from(is_directory);
        self.amend_inode(batch, from.parent.ino(), |record| {
            record.nlink = record.nlink.saturating_sub(moved_dirs);
            record.mtime = now;
            record.ctime = now;
        })?;
        let replaced_dirs =
            u32::from(replaced.is_some_and(|entry| entry.kind == FileKind::Directory));
        self.amend_inode(batch, to.parent.ino(), |record| {
            record.nlink = record
                .nlink
                .saturating_add(moved_dirs)
                .saturating_sub(replaced_dirs);
            record.mtime = now;
            record.ctime = now;
        })?;
        if is_directory
            && self
                .meta
                .inode_after(batch, to.parent.ino())?
                .is_some_and(|record| record.nlink > LINKS_MAX)
        {
            return Err(Errno::EMLINK);
        }
        self.amend_inode(batch, moved.ino, |record| {
            record.ctime = now;
            if is_directory {
                record.parent = to.parent.ino();
            }
        })
    }

    pub(super) fn amend_inode(
        &self,
        batch: &mut Batch,
        ino: Ino,
        change: impl FnOnce(&mut InodeRecord),
    ) -> Result<(), Errno> {
        let mut record = self.meta.inode_after(batch, ino)?.ok_or(Errno::ESTALE)?;
        change(&mut record);
        Ok(self.meta.put_inode(batch, ino, &record)?)
    }

    fn check_replace(&self, moved: DirentRecord, replaced: DirentRecord) -> Result<(), Errno> {
        match (
            moved.kind == FileKind::Directory,
            replaced.kind == FileKind::Directory,
        ) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.is_empty_directory(replaced.ino)? => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Fails if a directory would be moved below itself.
    fn check_no_loop(&self, moved: Ino, below: Ino) -> Result<(), Errno> {
        let mut cycle = CycleDetector::from(below);
        loop {
            let at = cycle.current();
            if at == moved {
                return Err(Errno::EINVAL);
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            let record = self.meta.inode(at, View::LIVE)?;
            let is_named = |record: &InodeRecord| {
                record.kind == FileKind::Directory && (record.nlink > 0 || at == below)
            };
            let Some(record) = record.filter(is_named) else {
                let what = "it contains directories but is not a directory with a name";
                return Err(self.inconsistent(at, what));
            };
            if !cycle.advance(record.parent) {
                let what = "the directories above it form a cycle without the root";
                return Err(self.inconsistent(at, what));
            }
        }
    }

    /// Creates a whiteout of overlayfs: a character device 0:0.
    fn create_whiteout(
        &self,
        batch: &mut Batch,
        caller: &Caller,
        now: Timespec,
    ) -> Result<DirentRecord, Errno> {
        let kind = FileKind::CharDevice;
        let record = InodeRecord {
            uid: caller.uid,
            gid: caller.gid,
            ..InodeRecord::new(kind, 0, now)
        };
        let ino = self.meta.allocate_ino()?;
        self.meta.put_inode(batch, ino, &record)?;
        batch.inodes += 1;
        Ok(DirentRecord { ino, kind })
    }
}

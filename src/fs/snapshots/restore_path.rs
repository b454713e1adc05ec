//! Restoring one path: the file or directory in the snapshot is copied, and the copy replaces the
//! one in the live view in one rename.
//!
//! The copy is made in a temporary directory without a name, an orphan, which the next mount
//! removes after a power cut. The copy has inodes of its own and shares the sealed objects
//! ([`crate::object`]). The replaced file or directory becomes an orphan too; it is removed with
//! everything below it when no program has it open.

use std::collections::{HashMap, HashSet};

use super::error::ViewError;
use crate::errno::Errno;
use crate::fs::types::{DirentRef, FileKind, NodeId, Timespec};
use crate::fs::{Filesystem, LINKS_MAX, check_name, live_node};
use crate::ids::Ino;
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, InodeRecord, ViewKind, ViewRecord};
use crate::meta::{Batch, MetaError, View};

/// Name of the copy while it is made.
const COPY_NAME: &[u8] = b"copy";
/// Entries of a directory that are read, or removed, at a time.
const ENTRIES_AT_A_TIME: usize = 128;

/// One inode to copy: its entry, and the target directory and name.
struct CopyTask {
    from: DirentRecord,
    parent: Ino,
    name: Vec<u8>,
}

/// State of a copy.
struct CopyState {
    view: View,
    now: Timespec,
    tasks: Vec<CopyTask>,
    /// Copies of files with several names, by the inode in the view.
    linked: HashMap<Ino, Ino>,
    /// Directories that were copied: none may have two names.
    directories: HashSet<Ino>,
}

impl Filesystem {
    /// Restores what a view contains at a path.
    pub(in crate::fs) fn restore_path(
        &self,
        record: &ViewRecord,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), ViewError> {
        let view = View(record.generation);
        let text = |parts: &[&[u8]]| String::from_utf8_lossy(&parts.join(&b'/')).into_owned();
        let missing = || ViewError::NoSuchPath {
            kind: ViewKind::Snapshot,
            name: record.name.clone(),
            path: text(&[parents, &[name]].concat()),
        };
        let directory = self.walk(view, parents)?.ok_or_else(missing)?;
        let from = self
            .meta
            .dirent(directory, name, view)?
            .ok_or_else(missing)?;
        let parent = self.walk(View::LIVE, parents)?;
        let parent = parent.ok_or_else(|| ViewError::NoDirectory {
            path: text(parents),
        })?;
        let temporary = self.create_unnamed_directory()?;
        let placed = self.copy_tree(view, from, temporary).and_then(|()| {
            self.contents.sync_all()?;
            self.put_in_place(temporary, live_node(parent)?, name)
        });
        if let Err(error) = self.remove_inode(temporary) {
            tracing::warn!(%error, "the next mount removes the temporary directory of a restore");
        }
        let replaced = placed.inspect_err(|_| self.remove_pending())?;
        self.after_unlink(replaced);
        // Removes what was below the replaced directory too.
        self.remove_pending();
        let committed = self.commit_with_reclaim();
        if let Some(cache) = self.cache() {
            let parent = live_node(parent)?;
            cache.forget(&[parent], &[DirentRef::new(parent, name)]);
        }
        Ok(committed?)
    }

    /// The directory at a path.
    fn walk(&self, view: View, parts: &[&[u8]]) -> Result<Option<Ino>, MetaError> {
        let mut at = Ino::ROOT;
        for part in parts {
            match self.meta.dirent(at, part, view)? {
                Some(entry) if entry.kind == FileKind::Directory => at = entry.ino,
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Creates a directory without a name.
    fn create_unnamed_directory(&self) -> Result<Ino, MetaError> {
        let _permit = self.meta.permit();
        let root = self.meta.inode(Ino::ROOT, View::LIVE)?;
        let root = root.ok_or(MetaError::Corrupt("inode"))?;
        let ino = self.meta.allocate_ino()?;
        let mut batch = Batch::new();
        let record = InodeRecord { nlink: 0, ..root };
        self.meta.put_inode(&mut batch, ino, &record)?;
        self.meta.put_orphan(&mut batch, ino);
        batch.inodes += 1;
        self.meta.apply(batch)?;
        Ok(ino)
    }

    fn copy_tree(&self, view: View, from: DirentRecord, temporary: Ino) -> Result<(), ViewError> {
        let first = CopyTask {
            from,
            parent: temporary,
            name: COPY_NAME.to_vec(),
        };
        let mut copy = CopyState {
            view,
            now: Timespec::now(),
            tasks: vec![first],
            linked: HashMap::new(),
            directories: HashSet::new(),
        };
        while let Some(task) = copy.tasks.pop() {
            self.copy_one(&mut copy, &task)?;
            self.relieve_pressure()?;
        }
        Ok(())
    }

    fn copy_one(&self, copy: &mut CopyState, task: &CopyTask) -> Result<(), ViewError> {
        let old = self.meta.inode(task.from.ino, copy.view)?;
        let old = old.filter(|old| old.kind == task.from.kind);
        let is_new = match &old {
            Some(old) if old.kind == FileKind::Directory => copy.directories.insert(task.from.ino),
            _ => true,
        };
        let Some(old) = old.filter(|_| is_new) else {
            let contradiction = "names in the snapshot contradict it";
            self.meta.log_inconsistent(task.from.ino, contradiction);
            return Err(MetaError::Corrupt("dirent").into());
        };
        if let Some(ino) = copy.linked.get(&task.from.ino).copied() {
            return Ok(self.add_link(ino, task)?);
        }
        let ino = self.meta.allocate_ino()?;
        self.make_copy(copy, task, ino, &old)?;
        match old.kind {
            FileKind::Directory => self.add_tasks(copy, task.from.ino, ino)?,
            FileKind::Regular => {
                if old.nlink > 1 {
                    copy.linked.insert(task.from.ino, ino);
                }
                self.copy_contents(copy, task.from.ino, ino, &old)?;
            }
            _ if old.nlink > 1 => drop(copy.linked.insert(task.from.ino, ino)),
            _ => {}
        }
        Ok(())
    }

    /// Adds a further name for an inode that has been copied.
    fn add_link(&self, ino: Ino, task: &CopyTask) -> Result<(), Errno> {
        let _permit = self.meta.permit();
        let mut batch = Batch::new();
        self.add_links(&mut batch, ino, 1)?;
        let entry = DirentRecord { ino, ..task.from };
        self.meta
            .put_dirent(&mut batch, task.parent, &task.name, Some(entry))?;
        self.contents
            .check_space_for_records(batch.record_bytes(), 0)?;
        self.meta.apply(batch)?;
        Ok(())
    }

    /// Raises the link count of an inode.
    fn add_links(&self, batch: &mut Batch, ino: Ino, added: u32) -> Result<(), Errno> {
        let mut record = self.meta.inode_after(batch, ino)?.ok_or(Errno::ESTALE)?;
        if record.nlink.saturating_add(added) > LINKS_MAX {
            return Err(Errno::EMLINK);
        }
        record.nlink += added;
        Ok(self.meta.put_inode(batch, ino, &record)?)
    }

    /// Copies the inode with its name and extended attributes, without contents.
    fn make_copy(
        &self,
        copy: &CopyState,
        task: &CopyTask,
        ino: Ino,
        old: &InodeRecord,
    ) -> Result<(), Errno> {
        let _permit = self.meta.permit();
        let is_directory = old.kind == FileKind::Directory;
        let is_file = old.kind == FileKind::Regular;
        let record = InodeRecord {
            nlink: if is_directory { 2 } else { 1 },
            size: if is_file { 0 } else { old.size },
            pages: 0,
            ctime: copy.now,
            parent: if is_directory { task.parent } else { Ino(0) },
            ..old.clone()
        };
        let mut batch = Batch::new();
        self.meta.put_inode(&mut batch, ino, &record)?;
        self.meta
            .copy_xattrs(&mut batch, task.from.ino, copy.view, ino)?;
        let entry = DirentRecord { ino, ..task.from };
        self.meta
            .put_dirent(&mut batch, task.parent, &task.name, Some(entry))?;
        if is_directory {
            // The temporary directory has no name and a link count of 0.
            let parent = self.meta.inode_after(&batch, task.parent)?;
            let parent = parent.ok_or(Errno::ESTALE)?;
            self.add_links(&mut batch, task.parent, u32::from(parent.nlink > 0))?;
        }
        batch.inodes += 1;
        self.contents
            .check_space_for_records(batch.record_bytes(), 0)?;
        self.meta.apply(batch)?;
        Ok(())
    }

    fn add_tasks(&self, copy: &mut CopyState, from: Ino, parent: Ino) -> Result<(), ViewError> {
        let mut low = keys::number(from.0);
        loop {
            let high = keys::after_ino(from);
            let rows = self
                .meta
                .scan(Table::Dirent, &low, &high, copy.view, ENTRIES_AT_A_TIME)?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            low.clone_from(last);
            low.push(0xFF);
            for (key, value) in &rows {
                let corrupt = MetaError::Corrupt("dirent");
                let parts = keys::dirent_parts(key).zip(DirentRecord::decode(value));
                let ((_, name), from) = parts.ok_or(corrupt)?;
                if check_name(name).is_err() {
                    return Err(MetaError::Corrupt("dirent").into());
                }
                copy.tasks.push(CopyTask {
                    from,
                    parent,
                    name: name.to_vec(),
                });
            }
        }
    }

    fn copy_contents(
        &self,
        copy: &CopyState,
        from: Ino,
        to: Ino,
        old: &InodeRecord,
    ) -> Result<(), ViewError> {
        let source = self.contents.file_in(copy.view, from)?;
        let target = self.contents.file(to)?;
        let mut done = 0;
        while done < old.size {
            let copied = self.retry_after_reclaim(|| {
                let left = old.size - done;
                self.contents
                    .copy(&source, done, &target, done, left, copy.now)
            })?;
            if copied == 0 {
                return Err(Errno::EIO.into());
            }
            done += copied;
        }
        self.contents.publish_synced(&target)?;
        let _permit = self.meta.permit();
        let _inode = self.meta.lock_inode(to);
        // Discard the time of writing, so that a later sync does not overwrite the restored one.
        let _ = self.contents.take_written(to);
        let mut batch = Batch::new();
        self.amend_inode(&mut batch, to, |record| record.mtime = old.mtime)?;
        self.meta.apply(batch)?;
        drop((source, target));
        self.contents.forget_in(copy.view, from);
        Ok(())
    }

    /// Gives the copy its name. Returns the inode that had that name, if it is an orphan now.
    fn put_in_place(
        &self,
        temporary: Ino,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Option<Ino>, ViewError> {
        let _permit = self.begin_change(parent)?;
        let now = Timespec::now();
        let _namespace = self.namespace.lock();
        let copy = self.entry_if_exists(temporary, COPY_NAME)?;
        let copy = copy.ok_or(MetaError::Corrupt("dirent"))?;
        let replaced = self.entry_if_exists(parent.ino(), name)?;
        let mut inos = vec![temporary, parent.ino(), copy.ino];
        inos.extend(replaced.map(|entry| entry.ino));
        let _inodes = self.meta.lock_inodes(&inos);
        // The directory may have lost its name meanwhile.
        let mut directory = self.directory(parent)?;
        let links_to_parent = |entry: DirentRecord| u32::from(entry.kind == FileKind::Directory);
        let (added, removed) = (links_to_parent(copy), replaced.map_or(0, links_to_parent));
        let nlink = directory.nlink.saturating_sub(removed);
        if added > removed && nlink >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        directory.nlink = nlink.saturating_add(added);
        let mut batch = Batch::new();
        self.meta
            .put_dirent(&mut batch, temporary, COPY_NAME, None)?;
        self.meta
            .put_dirent(&mut batch, parent.ino(), name, Some(copy))?;
        self.touch_directory(&mut batch, parent.ino(), directory, now)?;
        if copy.kind == FileKind::Directory {
            self.amend_inode(&mut batch, copy.ino, |record| record.parent = parent.ino())?;
        }
        let orphan = match replaced {
            Some(entry) => self.drop_link(&mut batch, entry, now)?,
            None => None,
        };
        self.meta.apply(batch)?;
        Ok(orphan)
    }

    /// Removes the entries of a directory without a name.
    pub(in crate::fs) fn empty_orphan(&self, ino: Ino) -> Result<(), Errno> {
        loop {
            let permit = self.meta.permit();
            let namespace = self.namespace.lock();
            match self.meta.inode(ino, View::LIVE)? {
                Some(record) if record.kind == FileKind::Directory && record.nlink == 0 => {}
                _ => return Ok(()),
            }
            let (low, high) = (keys::number(ino.0), keys::after_ino(ino));
            let rows = self
                .meta
                .scan(Table::Dirent, &low, &high, View::LIVE, ENTRIES_AT_A_TIME)?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut entries = Vec::with_capacity(rows.len());
            for (key, value) in &rows {
                let parts = keys::dirent_parts(key).zip(DirentRecord::decode(value));
                let ((position, name), entry) = parts.ok_or(Errno::EIO)?;
                let hash = self.meta.name_hash(name);
                if !(hash..hash + keys::PROBE_LIMIT).contains(&position) {
                    let what = "a name in it is not at the position where a lookup finds it";
                    return Err(self.inconsistent(ino, what));
                }
                self.named_inode(ino, entry)?;
                entries.push((name, entry));
            }
            let inos: Vec<Ino> = entries.iter().map(|(_, entry)| entry.ino).collect();
            let inodes = self.meta.lock_inodes(&[&inos[..], &[ino]].concat());
            let mut batch = Batch::new();
            let mut orphans = Vec::new();
            for (name, entry) in entries {
                self.meta.put_dirent(&mut batch, ino, name, None)?;
                orphans.extend(self.drop_link(&mut batch, entry, Timespec::now())?);
            }
            self.meta.apply(batch)?;
            drop((inodes, namespace, permit));
            for orphan in orphans {
                if self.references.orphaned(orphan) {
                    self.pending_removals.lock().push(orphan);
                }
            }
        }
    }
}

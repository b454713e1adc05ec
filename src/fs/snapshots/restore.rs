//! Restoring the live view, or one path of it, from a snapshot; and differences between snapshots.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::ViewError;
use crate::audit::Record;
use crate::fs::types::{DirentRef, FileKind, NodeId};
use crate::fs::{Filesystem, FsError};
use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, ViewKind};
use crate::meta::{MetaError, View};
use crate::snapshot::diff::{self, Change};
use crate::snapshot::restore::{self, Restored};

impl Filesystem {
    /// Calls `emit` with every difference between two snapshots, or between one and the live view
    /// (`to` is `None`), in the order of paths.
    ///
    /// # Errors
    /// There is no such snapshot, or the metadata cannot be read.
    pub fn diff_views(
        &self,
        from: &str,
        to: Option<&str>,
        emit: &mut dyn FnMut(Change),
    ) -> Result<(), ViewError> {
        let from = self.hold_view(ViewKind::Snapshot, from)?;
        let to = to
            .map(|to| self.hold_view(ViewKind::Snapshot, to))
            .transpose()?;
        if to.is_none()
            && let Ok(_change) = self.begin_view_change()
        {
            // Records contain a write only once it is durable.
            self.write_back();
            self.contents.sync_all()?;
        }
        let from = View(from.record.generation);
        let to = to
            .as_ref()
            .map_or(View::LIVE, |to| View(to.record.generation));
        diff::diff(&self.meta, from, to)?.into_iter().for_each(emit);
        Ok(())
    }

    /// Restores the live view, or with `path` only what is at that path, from a snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, path or target directory, the volume is read-only, or it is full;
    /// or the restore failed, and the next mount continues that of the whole view.
    pub fn restore(&self, snapshot: &str, path: Option<&Path>) -> Result<(), ViewError> {
        let restored = self.restore_unaudited(snapshot, path);
        let mut audited = Record::new("restore-snapshot")
            .volume(self.volume.header().volume_id())
            .with("name", snapshot);
        if let Some(path) = path {
            audited = audited.with_text("restored", path.display());
        }
        audited.outcome(&restored);
        restored
    }

    fn restore_unaudited(&self, snapshot: &str, path: Option<&Path>) -> Result<(), ViewError> {
        let _change = self.begin_view_change()?;
        let _restoring = self.restoring.lock();
        let held = self.hold_view(ViewKind::Snapshot, snapshot)?;
        let record = &held.record;
        let path = path.map_or(&[][..], |path| path.as_os_str().as_bytes());
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let parts: Vec<&[u8]> = parts
            .into_iter()
            .filter(|p| !matches!(*p, b"" | b"."))
            .collect();
        match parts.split_last() {
            None => self.restore_all(record.generation)?,
            Some((name, parents)) => self.restore_path(record, parents, name)?,
        }
        Ok(())
    }

    /// Restores the live view from a snapshot. Newer snapshots stay. An open file that is not in
    /// the snapshot remains usable without a name; an open file that changes may return EIO.
    /// Durable on return.
    fn restore_all(&self, target: Generation) -> Result<(), ViewError> {
        let _turn = self.viewing.lock();
        self.write_back();
        let restored = {
            let pause = self.sync_and_pause()?;
            let restored = self.restore_paused(target);
            drop(pause);
            restored.inspect_err(|error| {
                self.meta.latch(&format!(
                    "restoring a snapshot failed half-way: {error}; the next mount continues it"
                ));
            })?
        };
        let committed = self.commit_with_reclaim();
        for ino in &restored.orphans {
            self.after_unlink(Some(*ino));
        }
        // The live view is restored, whether the commit succeeded or not.
        self.invalidate_restored(restored)?;
        Ok(committed?)
    }

    /// Makes the kernel drop inodes and names that have changed from its cache.
    fn invalidate_restored(&self, restored: Restored) -> Result<(), ViewError> {
        let Some(cache) = self.cache() else {
            return Ok(());
        };
        let mut names = restored.names;
        let mut replaced = BTreeSet::new();
        if cache.trusts_cached_attrs() {
            for ino in &restored.inodes {
                let record = self.meta.inode(*ino, View::LIVE)?;
                let is_file = record
                    .is_some_and(|record| record.kind == FileKind::Regular && record.nlink > 0);
                if is_file && self.references.is_known(*ino) {
                    self.references.replaced(*ino);
                    replaced.insert(*ino);
                }
            }
            self.names_of(&replaced, &mut names)?;
        }
        let nodes: Vec<_> = restored
            .inodes
            .into_iter()
            .filter_map(NodeId::live)
            .collect();
        let names: Vec<_> = names
            .iter()
            .filter_map(|(parent, name)| Some(DirentRef::new(NodeId::live(*parent)?, name)))
            .collect();
        cache.forget(&nodes, &names);
        Ok(())
    }

    /// Adds the directories and names of these inodes. The record of a file does not say where it
    /// is, so all names are read.
    fn names_of(
        &self,
        inos: &BTreeSet<Ino>,
        names: &mut Vec<(Ino, Vec<u8>)>,
    ) -> Result<(), MetaError> {
        const ENTRIES_AT_A_TIME: usize = 1024;
        let mut low = Vec::new();
        while !inos.is_empty() {
            let rows = self.meta.scan(
                Table::Dirent,
                &low,
                &[0xFF; 9],
                View::LIVE,
                ENTRIES_AT_A_TIME,
            )?;
            for (key, value) in &rows {
                let entry = DirentRecord::decode(value).ok_or(MetaError::Corrupt("dirent"))?;
                if inos.contains(&entry.ino) {
                    let parts = keys::dirent_parts(key).zip(keys::ino_of(key));
                    let ((_, name), parent) = parts.ok_or(MetaError::Corrupt("dirent"))?;
                    names.push((parent, name.to_vec()));
                }
            }
            match rows.into_iter().next_back() {
                Some((last, _)) => low = last,
                None => break,
            }
            low.push(0xFF);
        }
        Ok(())
    }

    /// Restores the live view while changes are paused.
    fn restore_paused(&self, target: Generation) -> Result<Restored, FsError> {
        let restored = restore::restore(&self.meta, target, &|| self.commit_if_much())?;
        let named = restored.named.iter();
        named.for_each(|ino| self.references.named_again(*ino));
        let is_named = |ino: &Ino| restored.named.contains(ino);
        self.pending_removals.lock().retain(|ino| !is_named(ino));
        self.contents.reload(restored.inodes.iter().copied())?;
        Ok(restored)
    }

    /// Commits if much is pending. All contents are durable, so the commit waits for none.
    fn commit_if_much(&self) -> Result<(), MetaError> {
        if self.meta.pending_bytes() > self.pending_limit() {
            self.meta.commit(self.meta.newest_batch(), &|| true)?;
        }
        Ok(())
    }

    /// Continues a restore that was interrupted.
    pub(in crate::fs) fn finish_restore(&self) -> Result<(), FsError> {
        let target = self.meta.counters().restoring;
        if target == Generation(0) {
            return Ok(());
        }
        tracing::info!("continuing a restore from a snapshot");
        let pause = self.meta.exclusive_permit();
        let restored = self.restore_paused(target);
        drop(pause);
        restored?;
        self.commit_now()
    }
}

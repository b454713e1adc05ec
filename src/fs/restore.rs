//! Taking the live view, or one path of it, back to what a snapshot shows; and what differs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::types::NodeId;
use super::views::{ViewError, ViewKind};
use super::{Filesystem, FsError};
use crate::ids::{Generation, Ino};
use crate::meta::{MetaError, View};
use crate::snapshot::diff::{self, Change};
use crate::snapshot::restore::{self, Restored};

impl Filesystem {
    /// Calls `emit` with everything that differs between two snapshots, or between one and the live
    /// view (`to` is `None`), in the order of paths.
    pub fn diff_views(
        &self,
        from: &str,
        to: Option<&str>,
        emit: &mut dyn FnMut(Change),
    ) -> Result<(), ViewError> {
        let _turn = self.viewing.lock();
        let view = |name: &str| {
            let (_, record) = self.found_view(ViewKind::Snapshot, name)?;
            Ok::<_, ViewError>(View(record.generation))
        };
        let from = view(from)?;
        if to.is_none() && self.check_views_change().is_ok() {
            // The records know of a write once it is durable.
            self.write_back();
            self.contents.sync_all()?;
        }
        let to = to.map_or(Ok(View::LIVE), view)?;
        diff::diff(&self.meta, from, to)?.into_iter().for_each(emit);
        Ok(())
    }

    /// Takes the live view, or with `path` what is at that path in it, back to what a snapshot shows.
    pub fn restore(&self, snapshot: &str, path: Option<&Path>) -> Result<(), ViewError> {
        let _turn = self.viewing.lock();
        self.check_views_change()?;
        let (_, record) = self.found_view(ViewKind::Snapshot, snapshot)?;
        let path = path.map_or(&[][..], |path| path.as_os_str().as_bytes());
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let parts: Vec<&[u8]> = parts
            .into_iter()
            .filter(|p| !matches!(*p, b"" | b"."))
            .collect();
        match parts.split_last() {
            None => self.restore_all(record.generation)?,
            Some((name, parents)) => self.restore_path(&record, (parents, name))?,
        }
        let path = String::from_utf8_lossy(path);
        tracing::info!(target: "audit", action = "restore", snapshot, path = &*path, generation = record.generation.0);
        Ok(())
    }

    /// Takes the live view back to what a snapshot shows. Newer snapshots stay. Whoever has a file
    /// open goes on with it as it is then, or as one without a name. Durable when this returns.
    fn restore_all(&self, target: Generation) -> Result<(), ViewError> {
        self.write_back();
        let restored = {
            let pause = self.settle_contents()?;
            let restored = self.restore_paused(target);
            drop(pause);
            restored.inspect_err(|error| {
                self.meta.latch(&format!(
                    "taking the volume back to a snapshot failed half-way: {error}; the next mount \
                     goes on with it"
                ));
            })?
        };
        self.commit_now()?;
        for ino in &restored.orphans {
            self.after_drop(Some(*ino));
        }
        if let Some(cache) = self.cache() {
            let nodes: Vec<_> = restored
                .inodes
                .iter()
                .map(|ino| NodeId::live(*ino))
                .collect();
            let names = restored.names.into_iter();
            let names: Vec<_> = names.map(|(ino, name)| (NodeId::live(ino), name)).collect();
            cache.forget(&nodes, &names);
        }
        Ok(())
    }

    fn restore_paused(&self, target: Generation) -> Result<Restored, FsError> {
        let restored = restore::restore(&self.meta, target, &|| self.commit_if_much())?;
        let named = restored.named.iter();
        named.for_each(|ino| self.references.named_again(*ino));
        let is_named = |ino: &Ino| restored.named.contains(ino);
        self.doomed.lock().retain(|ino| !is_named(ino));
        self.contents.reload(restored.inodes.iter().copied())?;
        Ok(restored)
    }

    /// All contents are durable, so a commit waits for none.
    fn commit_if_much(&self) -> Result<(), MetaError> {
        if self.meta.pending_bytes() > self.options.pending_bytes {
            self.meta.commit(self.meta.newest_batch(), &|| true)?;
        }
        Ok(())
    }

    /// Goes on with a restore that was cut off.
    pub(super) fn finish_restore(&self) -> Result<(), FsError> {
        let target = self.meta.counters().restoring;
        if target == Generation(0) {
            return Ok(());
        }
        tracing::info!("going on with taking the volume back to a snapshot");
        let pause = self.meta.pause();
        let restored = self.restore_paused(target);
        drop(pause);
        restored?;
        self.commit_now()
    }
}

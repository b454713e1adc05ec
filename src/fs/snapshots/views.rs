//! Taking, deleting, renaming and listing views: snapshots and images.
//!
//! A view contains everything that any program had written when it was taken. Order of taking one:
//!
//! 1. The kernel sends its dirty pages.
//! 2. Contents are made durable in rounds while programs continue to write, until little is left.
//! 3. All changes are paused for the rest; the generation is raised and the view's row is added.
//! 4. That is committed; then the caller gets the answer.
//!
//! The view is one instant for all files, and a write in it that was synced never appears without
//! the writes before it.
//!
//! Order of deleting one: the view is hidden from lookups; a commit marks it as leaving; after that
//! the background thread drops the records and pages that only this view saw
//! ([`crate::snapshot::purge`]).

use std::time::Duration;

use parking_lot::RwLockReadGuard;

use super::error::{ReadOnlyBecause, ViewError, shut_down_error};
use crate::audit::Record;
use crate::fs::references::Access;
use crate::fs::types::NodeId;
use crate::fs::{Filesystem, FsError};
use crate::ids::{Generation, ViewId};
use crate::meta::ExclusivePermit;
use crate::meta::records::{Timespec, ViewKind, ViewRecord, ViewState};
use crate::sealed::PAGE_BYTES;
use crate::snapshot;
use crate::snapshot::usage::HeldAlone;

/// The longest name of a view, in bytes, as for a file.
pub const VIEW_NAME_BYTES_MAX: usize = crate::fs::NAME_BYTES_MAX;
/// The longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Maximum number of rounds in which contents are made durable while programs continue to write ...
const ROUNDS_MAX: u32 = 8;
/// ... which end when at most this number of pages is left.
const PAGES_LEFT: u64 = 256;
/// A fraction of the period of the kernel's clock.
const TICK_FRACTION: Duration = Duration::from_micros(250);

/// Properties of a view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewInfo {
    /// Its id.
    pub id: u16,
    /// Its kind.
    pub kind: ViewKind,
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created: Timespec,
    /// The newest generation that it sees.
    pub generation: u64,
    /// Bytes of sealed pages and records that it refers to.
    pub refers_bytes: u64,
    /// Bytes of them that no other view refers to: the space that deleting it would free.
    pub used_bytes: u64,
    /// Number of its inodes.
    pub inodes: u64,
    /// The snapshot that it was made from; empty for the live view.
    pub from: String,
    /// Its description.
    pub description: String,
}

impl ViewInfo {
    fn new(id: ViewId, record: &ViewRecord, held_alone: HeldAlone) -> Self {
        Self {
            id: id.0,
            kind: record.kind,
            name: record.name.clone(),
            created: record.created,
            generation: record.generation.0,
            refers_bytes: record.pages * PAGE_BYTES as u64 + record.record_bytes,
            used_bytes: held_alone.pages * PAGE_BYTES as u64 + held_alone.record_bytes,
            inodes: record.inodes,
            from: record.from.clone(),
            description: record.description.clone(),
        }
    }
}

/// A change of a view, for the audit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fs) enum ViewChange {
    Create,
    Delete,
    Rename,
}

/// A view that cannot be deleted while this value exists.
#[derive(Debug)]
pub(in crate::fs) struct HeldView<'a> {
    filesystem: &'a Filesystem,
    node: NodeId,
    pub(in crate::fs) record: ViewRecord,
}

impl Drop for HeldView<'_> {
    fn drop(&mut self) {
        self.filesystem.references.closed(self.node, Access::Read);
    }
}

impl Filesystem {
    /// Finds a view and holds it, as an open file in it would.
    pub(in crate::fs) fn hold_view(
        &self,
        kind: ViewKind,
        name: &str,
    ) -> Result<HeldView<'_>, ViewError> {
        let _turn = self.viewing.lock();
        let (id, record) = self.existing_view(kind, name)?;
        let node = NodeId::root_of(id);
        self.references.opened(node, Access::Read);
        Ok(HeldView {
            filesystem: self,
            node,
            record,
        })
    }

    /// Takes a view of the current state or, with `from`, of that snapshot. Durable on return.
    ///
    /// # Errors
    /// The name is not allowed or exists, there is no such snapshot, the volume has too many views,
    /// is read-only or full, or something could not be made durable.
    pub fn create_view(
        &self,
        kind: ViewKind,
        name: &str,
        from: Option<&str>,
        description: &str,
    ) -> Result<ViewInfo, ViewError> {
        let created = self.create_view_unaudited(kind, name, from, description);
        let mut audited = self.audit_view(ViewChange::Create, kind, name);
        if let Some(from) = from {
            audited = audited.with("from", from);
        }
        if let Ok(created) = &created {
            audited = audited.with("generation", created.generation);
        }
        audited.outcome(&created);
        created
    }

    fn create_view_unaudited(
        &self,
        kind: ViewKind,
        name: &str,
        from: Option<&str>,
        description: &str,
    ) -> Result<ViewInfo, ViewError> {
        check_name(name)?;
        if description.len() > DESCRIPTION_BYTES_MAX {
            return Err(bad_name(
                description,
                "a description has at most 4096 bytes",
            ));
        }
        let _change = self.begin_view_change()?;
        let _turn = self.viewing.lock();
        self.check_free_name(kind, name)?;
        let record = ViewRecord {
            kind,
            state: ViewState::Kept,
            generation: Generation(0),
            created: Timespec::now(),
            pages: 0,
            inodes: 0,
            record_bytes: 0,
            name: name.to_owned(),
            from: from.unwrap_or_default().to_owned(),
            description: description.to_owned(),
        };
        let added = match from {
            None => self.take_view(record)?,
            Some(from) => {
                let (_, source) = self.existing_view(ViewKind::Snapshot, from)?;
                let record = ViewRecord {
                    generation: source.generation,
                    pages: source.pages,
                    inodes: source.inodes,
                    record_bytes: source.record_bytes,
                    ..record
                };
                self.meta.add_view(&record)?.map(|id| (id, record))
            }
        };
        let (id, record) = added.ok_or(ViewError::TooMany)?;
        if let Err(error) = self.commit_with_reclaim() {
            // After an error the view must not be visible.
            self.meta.hide_view(id);
            if self.meta.write_leaving(id).is_ok() {
                let _pause = self.meta.exclusive_permit();
                self.meta.release_view(id);
            }
            return Err(error.into());
        }
        Ok(ViewInfo::new(id, &record, HeldAlone::default()))
    }

    fn take_view(&self, record: ViewRecord) -> Result<Option<(ViewId, ViewRecord)>, ViewError> {
        self.write_back();
        let pause = self.sync_and_pause()?;
        Ok(self.meta.take_view(&pause, record)?)
    }

    /// Makes the kernel send its dirty pages.
    pub(in crate::fs) fn write_back(&self) {
        if let Some(cache) = self.cache() {
            cache.write_back(&self.references.writers());
        }
    }

    /// Makes all contents durable, and pauses all changes until the result is dropped.
    pub(in crate::fs) fn sync_and_pause(&self) -> Result<ExclusivePermit<'_>, FsError> {
        for _ in 0..ROUNDS_MAX {
            self.contents.sync_all()?;
            if self.contents.unsynced_pages() <= PAGES_LEFT {
                break;
            }
        }
        let pause = self.meta.exclusive_permit();
        let paused = Timespec::now();
        self.contents.sync_paused(&pause)?;
        // The clock may advance in ticks. The next write must have another time than the last one,
        // or programs that compare times would miss the change.
        while Timespec::now() == paused {
            std::thread::sleep(TICK_FRACTION);
        }
        Ok(pause)
    }

    /// Deletes a view. The deletion is durable on return; space that only the view used is freed in
    /// the background.
    ///
    /// # Errors
    /// There is no such view, something in it is open, the volume is read-only, or the deletion
    /// could not be made durable.
    pub fn delete_view(&self, kind: ViewKind, name: &str) -> Result<(), ViewError> {
        let deleted = self.delete_view_unaudited(kind, name);
        self.audit_view(ViewChange::Delete, kind, name)
            .outcome(&deleted);
        deleted
    }

    fn delete_view_unaudited(&self, kind: ViewKind, name: &str) -> Result<(), ViewError> {
        let _change = self.begin_view_change()?;
        let _turn = self.viewing.lock();
        let (id, record) = self.existing_view(kind, name)?;
        self.meta.hide_view(id);
        if self.references.view_in_use(id) {
            self.meta.unhide_view(id);
            return Err(ViewError::Busy {
                kind,
                name: name.to_owned(),
            });
        }
        let marked = self.meta.write_leaving(id).map_err(FsError::from);
        if let Err(error) = marked.and_then(|()| self.commit_with_reclaim()) {
            // Undo. If that cannot be written any more, the next mount shows the view anyway.
            let _ = self.meta.put_view(id, &record);
            self.meta.unhide_view(id);
            return Err(error.into());
        }
        {
            // Changes that are being applied may still keep records for this view. The purge must
            // come after them.
            let _pause = self.meta.exclusive_permit();
            self.meta.release_view(id);
        }
        self.contents.forget_view(record.generation);
        self.wake_background();
        Ok(())
    }

    /// Renames a view. Durable on return.
    ///
    /// # Errors
    /// There is no such view, the new name is not allowed or exists, the volume is read-only, or
    /// the change could not be made durable.
    pub fn rename_view(&self, kind: ViewKind, name: &str, to: &str) -> Result<(), ViewError> {
        let renamed = self.rename_view_unaudited(kind, name, to);
        self.audit_view(ViewChange::Rename, kind, name)
            .with("to", to)
            .outcome(&renamed);
        renamed
    }

    /// The audit record of a change of a view.
    pub(in crate::fs) fn audit_view(
        &self,
        change: ViewChange,
        kind: ViewKind,
        name: &str,
    ) -> Record {
        let action = match (change, kind) {
            (ViewChange::Create, ViewKind::Snapshot) => "create-snapshot",
            (ViewChange::Create, ViewKind::Image) => "create-image",
            (ViewChange::Delete, ViewKind::Snapshot) => "delete-snapshot",
            (ViewChange::Delete, ViewKind::Image) => "delete-image",
            (ViewChange::Rename, ViewKind::Snapshot) => "rename-snapshot",
            (ViewChange::Rename, ViewKind::Image) => "rename-image",
        };
        Record::new(action)
            .volume(self.volume.header().volume_id())
            .with("name", name)
    }

    fn rename_view_unaudited(&self, kind: ViewKind, name: &str, to: &str) -> Result<(), ViewError> {
        check_name(to)?;
        let _change = self.begin_view_change()?;
        let _turn = self.viewing.lock();
        let (id, record) = self.existing_view(kind, name)?;
        if name == to {
            return Ok(());
        }
        self.check_free_name(kind, to)?;
        let renamed = ViewRecord {
            name: to.to_owned(),
            ..record.clone()
        };
        self.meta.put_view(id, &renamed)?;
        self.commit_with_reclaim().inspect_err(|_| {
            let _ = self.meta.put_view(id, &record);
        })?;
        Ok(())
    }

    /// Lists the views of a kind, oldest first.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn views(&self, kind: ViewKind) -> Result<Vec<ViewInfo>, ViewError> {
        let mut views = self.meta.views();
        views.retain(|(_, record)| record.kind == kind);
        views.sort_by_key(|(id, record)| (record.created, record.generation, *id));
        let held_alone = snapshot::usage::held_alone(&self.meta)?;
        let infos = views.iter().map(|(id, record)| {
            let held_alone = held_alone.get(&record.generation).copied();
            ViewInfo::new(*id, record, held_alone.unwrap_or_default())
        });
        Ok(infos.collect())
    }

    /// The id and record of an existing view.
    pub(in crate::fs) fn existing_view(
        &self,
        kind: ViewKind,
        name: &str,
    ) -> Result<(ViewId, ViewRecord), ViewError> {
        self.check_running().map_err(|_| shut_down_error())?;
        let view = self.meta.find_view(kind, name);
        view.ok_or_else(|| ViewError::NotFound {
            kind,
            name: name.to_owned(),
        })
    }

    fn check_free_name(&self, kind: ViewKind, name: &str) -> Result<(), ViewError> {
        match self.meta.find_view(kind, name) {
            Some(_) => Err(ViewError::Exists {
                kind,
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The permit for a change of views, or that uses views; see [`Self::begin_long_change`].
    pub(in crate::fs) fn begin_view_change(&self) -> Result<RwLockReadGuard<'_, ()>, ViewError> {
        self.check_running().map_err(|_| shut_down_error())?;
        self.begin_long_change()
            .map_err(|_| ViewError::ReadOnly(self.why_read_only()))
    }

    fn why_read_only(&self) -> ReadOnlyBecause {
        if !self.volume.copy_status().is_own() {
            ReadOnlyBecause::Copy
        } else if self.options.read_only {
            ReadOnlyBecause::Opened
        } else if self.meta.latched().is_some() {
            ReadOnlyBecause::Failed
        } else {
            ReadOnlyBecause::Remounted
        }
    }
}

/// Fails for a name that no snapshot or image can have.
///
/// # Errors
/// [`ViewError::BadName`].
pub fn check_name(name: &str) -> Result<(), ViewError> {
    match name {
        "" => Err(bad_name(name, "it is empty")),
        "." | ".." => Err(bad_name(name, "it has a special meaning")),
        _ if name.len() > VIEW_NAME_BYTES_MAX => Err(bad_name(name, "it is longer than 255 bytes")),
        _ if name.contains('/') => Err(bad_name(name, "it has a / in it")),
        // VOLUME@NAME names a view, and the directory of a volume may contain an @.
        _ if name.contains('@') => Err(bad_name(name, "it has an @ in it")),
        _ if name.contains(char::is_control) => {
            Err(bad_name(name, "it has a control character in it"))
        }
        _ => Ok(()),
    }
}

fn bad_name(name: &str, why: &'static str) -> ViewError {
    ViewError::BadName {
        name: name.to_owned(),
        why,
    }
}

//! Taking, dropping, renaming and listing views: snapshots and images.
//!
//! A view holds everything that any program had written when it was taken. Order: the kernel sends
//! what it holds back; contents are made durable in rounds, while writing goes on, until little is
//! left; everybody is kept out for as long as that little takes; the generation is raised and the
//! view's row added; the commit that says so; the answer. It is one instant for all files, and what
//! was fsynced after another write is never there without it.
//!
//! Dropping: the view is not found any more; the commit that says it is leaving; only then what it
//! alone sees may be written over and dropped, which the background thread does
//! ([`crate::snapshot::purge`]).

use std::time::Duration;

use parking_lot::RwLockReadGuard;

use super::types::NodeId;
use super::views_directory::now;
use super::{Filesystem, FsError};
use crate::audit::Record;
use crate::errno::Errno;
use crate::ids::{Generation, ViewId};
use crate::image::ImageError;
use crate::meta::records::{ViewRecord, ViewState};
use crate::meta::{MetaError, Pause};
use crate::object::ObjectError;
use crate::sealed::PAGE_BYTES;
use crate::snapshot;
use crate::snapshot::usage::HeldAlone;

pub use crate::meta::records::{Timespec, ViewKind};
pub use crate::snapshot::diff::{Change, ChangeKind};

/// The longest name of a view, in bytes, as that of a file.
pub const VIEW_NAME_BYTES_MAX: usize = super::NAME_BYTES_MAX;
/// The longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;
/// How often contents are made durable while writing goes on ...
const ROUNDS: u32 = 8;
/// ... unless so few pages were left by the last time.
const FEW_PAGES: u64 = 256;
/// Less than the time between two ticks of the kernel's clock.
const TICK_FRACTION: Duration = Duration::from_micros(250);

/// What can go wrong with a view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is none of that name.
    #[error("there is no {} {name:?}", .kind.noun())]
    NotFound {
        /// What was looked for.
        kind: ViewKind,
        /// By this name.
        name: String,
    },
    /// There is one of that name.
    #[error("there is {} {name:?} already", .kind.with_article())]
    Exists {
        /// What is there.
        kind: ViewKind,
        /// By this name.
        name: String,
    },
    /// It cannot be called that.
    #[error("{name:?} is no name for a snapshot or image: {why}")]
    BadName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file or directory in it is open.
    #[error("the {} {name:?} is in use: something in it is open", .kind.noun())]
    Busy {
        /// What is in use.
        kind: ViewKind,
        /// By this name.
        name: String,
    },
    /// There are as many as can be.
    #[error("the volume has as many snapshots and images as it can have")]
    TooMany,
    /// Nothing may change.
    #[error("the volume is read-only")]
    ReadOnly(ReadOnlyBecause),
    /// The path is not in the view.
    #[error("there is no {path:?} in the {} {name:?}", .kind.noun())]
    NoSuchPath {
        /// Where it was looked for.
        kind: ViewKind,
        /// By this name.
        name: String,
        /// What was looked for.
        path: String,
    },
    /// There is no place for what is to be restored.
    #[error("there is no directory {path:?} now to restore into")]
    NoDirectory {
        /// The directory that held it.
        path: String,
    },
    /// Nothing can be made from an image, or nothing imported.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The filesystem failed.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// Why nothing may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOnlyBecause {
    /// It is a copy of a volume, or may be one.
    Copy,
    /// It was opened to be read.
    Opened,
    /// It was opened for writing, and is read-only for now.
    Remounted,
    /// Writing has failed before.
    Failed,
    /// The kernel says so, and nothing more.
    Unknown,
}

impl ViewKind {
    /// What people call it.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }
}

impl ViewKind {
    const fn with_article(self) -> &'static str {
        match self {
            Self::Snapshot => "a snapshot",
            Self::Image => "an image",
        }
    }
}

impl ViewError {
    /// What a caller of the filesystem is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound { .. } | Self::NoSuchPath { .. } | Self::NoDirectory { .. } => {
                Errno::ENOENT
            }
            Self::Exists { .. } => Errno::EEXIST,
            Self::BadName { name, .. } if name.len() > VIEW_NAME_BYTES_MAX => Errno::ENAMETOOLONG,
            Self::BadName { .. } => Errno::EINVAL,
            Self::Busy { .. } => Errno::EBUSY,
            Self::TooMany => Errno::EMLINK,
            Self::ReadOnly(_) => Errno::EROFS,
            Self::Image(error) => error.errno(),
            Self::Fs(error) => error.errno(),
        }
    }
}

macro_rules! by_way_of_fs_error {
    ($($error:ty),*) => {
        $(impl From<$error> for ViewError {
            fn from(error: $error) -> Self {
                Self::Fs(error.into())
            }
        })*
    };
}
by_way_of_fs_error!(MetaError, ObjectError);

impl From<Errno> for ViewError {
    fn from(errno: Errno) -> Self {
        Self::Fs(errno.into())
    }
}

/// What is known of a view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewInfo {
    /// Its number.
    pub id: u16,
    /// What it is kept for.
    pub kind: ViewKind,
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created: Timespec,
    /// The newest generation that it sees.
    pub generation: u64,
    /// Bytes of sealed pages and of records that it sees.
    pub refers_bytes: u64,
    /// Bytes of them that nothing else sees: what deleting it gives back.
    pub used_bytes: u64,
    /// Inodes that it sees.
    pub inodes: u64,
    /// The snapshot that it was made from; empty for the live view.
    pub from: String,
    /// What people say of it.
    pub description: String,
}

impl ViewInfo {
    fn new(id: ViewId, record: &ViewRecord, alone: HeldAlone) -> Self {
        Self {
            id: id.0,
            kind: record.kind,
            name: record.name.clone(),
            created: record.created,
            generation: record.generation.0,
            refers_bytes: record.pages * PAGE_BYTES as u64 + record.record_bytes,
            used_bytes: alone.pages * PAGE_BYTES as u64 + alone.record_bytes,
            inodes: record.inodes,
            from: record.from.clone(),
            description: record.description.clone(),
        }
    }
}

/// What is done with a view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ViewChange {
    Create,
    Delete,
    Rename,
}

/// A view that cannot be deleted for as long as this is there.
#[derive(Debug)]
pub(super) struct HeldView<'a> {
    filesystem: &'a Filesystem,
    node: NodeId,
    pub(super) record: ViewRecord,
}

impl Drop for HeldView<'_> {
    fn drop(&mut self) {
        self.filesystem.references.closed(self.node, false);
    }
}

impl Filesystem {
    /// Finds a view and holds it, as one does who opens a file in it.
    pub(super) fn hold_view(&self, kind: ViewKind, name: &str) -> Result<HeldView<'_>, ViewError> {
        let _turn = self.viewing.lock();
        let (id, record) = self.found_view(kind, name)?;
        let node = NodeId::root_of(id);
        self.references.opened(node, false);
        Ok(HeldView {
            filesystem: self,
            node,
            record,
        })
    }

    /// Keeps a view of what is there now, or, with `from`, of what that snapshot shows. It is
    /// durable when this returns.
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
            created: now(),
            pages: 0,
            inodes: 0,
            record_bytes: 0,
            name: name.to_owned(),
            from: from.unwrap_or_default().to_owned(),
            description: description.to_owned(),
        };
        let made = match from {
            None => self.take_view(record)?,
            Some(from) => {
                let (_, source) = self.found_view(ViewKind::Snapshot, from)?;
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
        let (id, record) = made.ok_or(ViewError::TooMany)?;
        if let Err(error) = self.commit_with_room() {
            // Who is told that there is none finds none.
            self.meta.hide_view(id, true);
            if self.meta.write_leaving(id).is_ok() {
                let _pause = self.meta.pause();
                self.meta.release_view(id);
            }
            return Err(error.into());
        }
        Ok(ViewInfo::new(id, &record, HeldAlone::default()))
    }

    fn take_view(&self, record: ViewRecord) -> Result<Option<(ViewId, ViewRecord)>, ViewError> {
        self.write_back();
        let pause = self.settle_contents()?;
        Ok(self.meta.take_view(&pause, record)?)
    }

    /// Has the kernel send what it holds back.
    pub(super) fn write_back(&self) {
        if let Some(cache) = self.cache() {
            cache.write_back(&self.references.writers());
        }
    }

    /// Makes all contents durable and keeps everybody from changing anything from then on.
    pub(super) fn settle_contents(&self) -> Result<Pause<'_>, FsError> {
        for _ in 0..ROUNDS {
            self.contents.sync_all()?;
            if self.contents.unsynced_pages() <= FEW_PAGES {
                break;
            }
        }
        let pause = self.meta.pause();
        let paused = Timespec::now();
        self.contents.sync_paused(&pause)?;
        // Where files are stamped by the clock's tick, what is written next must have another time than
        // what was written last, or nobody who compares times would see that it changed.
        while Timespec::now() == paused {
            std::thread::sleep(TICK_FRACTION);
        }
        Ok(pause)
    }

    /// Drops a view. That it is gone is durable when this returns; what only it held goes in the
    /// background.
    pub fn delete_view(&self, kind: ViewKind, name: &str) -> Result<(), ViewError> {
        let deleted = self.delete_view_unaudited(kind, name);
        self.audit_view(ViewChange::Delete, kind, name)
            .outcome(&deleted);
        deleted
    }

    fn delete_view_unaudited(&self, kind: ViewKind, name: &str) -> Result<(), ViewError> {
        let _change = self.begin_view_change()?;
        let _turn = self.viewing.lock();
        let (id, record) = self.found_view(kind, name)?;
        self.meta.hide_view(id, true);
        if self.references.view_in_use(id) {
            self.meta.hide_view(id, false);
            return Err(ViewError::Busy {
                kind,
                name: name.to_owned(),
            });
        }
        let gone = self.meta.write_leaving(id).map_err(FsError::from);
        if let Err(error) = gone.and_then(|()| self.commit_with_room()) {
            // As it was; what cannot be written any more is not there after the next mount either.
            let _ = self.meta.put_view(id, &record);
            self.meta.hide_view(id, false);
            return Err(error.into());
        }
        {
            // What is about to be applied may keep something for this view alone. Whoever drops what
            // nobody needs comes after it.
            let _pause = self.meta.pause();
            self.meta.release_view(id);
        }
        self.contents.forget_view(record.generation);
        self.wake_background();
        Ok(())
    }

    /// Gives a view another name. Durable when this returns.
    pub fn rename_view(&self, kind: ViewKind, name: &str, to: &str) -> Result<(), ViewError> {
        let renamed = self.rename_view_unaudited(kind, name, to);
        self.audit_view(ViewChange::Rename, kind, name)
            .with("to", to)
            .outcome(&renamed);
        renamed
    }

    /// The record of what was done with a view.
    pub(super) fn audit_view(&self, change: ViewChange, kind: ViewKind, name: &str) -> Record {
        let action = match (change, kind) {
            (ViewChange::Create, ViewKind::Snapshot) => "create-snapshot",
            (ViewChange::Create, ViewKind::Image) => "create-image",
            (ViewChange::Delete, ViewKind::Snapshot) => "delete-snapshot",
            (ViewChange::Delete, ViewKind::Image) => "delete-image",
            (ViewChange::Rename, ViewKind::Snapshot) => "rename-snapshot",
            (ViewChange::Rename, ViewKind::Image) => "rename-image",
        };
        Record::new(action)
            .volume(self.volume.header.volume_id())
            .with("name", name)
    }

    fn rename_view_unaudited(&self, kind: ViewKind, name: &str, to: &str) -> Result<(), ViewError> {
        check_name(to)?;
        let _change = self.begin_view_change()?;
        let _turn = self.viewing.lock();
        let (id, record) = self.found_view(kind, name)?;
        if name == to {
            return Ok(());
        }
        self.check_free_name(kind, to)?;
        let renamed = ViewRecord {
            name: to.to_owned(),
            ..record.clone()
        };
        self.meta.put_view(id, &renamed)?;
        self.commit_with_room().inspect_err(|_| {
            let _ = self.meta.put_view(id, &record);
        })?;
        Ok(())
    }

    /// The views of that kind, oldest first.
    pub fn views(&self, kind: ViewKind) -> Result<Vec<ViewInfo>, ViewError> {
        let mut views = self.meta.views();
        views.retain(|(_, record)| record.kind == kind);
        views.sort_by_key(|(id, record)| (record.created, record.generation, *id));
        let used = snapshot::usage::held_alone(&self.meta)?;
        let infos = views.iter().map(|(id, record)| {
            let used = used.get(&record.generation).copied().unwrap_or_default();
            ViewInfo::new(*id, record, used)
        });
        Ok(infos.collect())
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

    /// The right to change views, or by way of them; see [`Self::begin_long_change`].
    pub(super) fn begin_view_change(&self) -> Result<RwLockReadGuard<'_, ()>, ViewError> {
        self.check_up()
            .map_err(|_| super::views_directory::down())?;
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

/// Refuses a name that no snapshot or image can be given.
///
/// # Errors
/// [`ViewError::BadName`].
pub fn check_name(name: &str) -> Result<(), ViewError> {
    match name {
        "" => Err(bad_name(name, "it is empty")),
        "." | ".." => Err(bad_name(name, "it has a meaning of its own")),
        _ if name.len() > VIEW_NAME_BYTES_MAX => Err(bad_name(name, "it is longer than 255 bytes")),
        _ if name.contains('/') => Err(bad_name(name, "it has a / in it")),
        // VOLUME@NAME names one, and the directory of a volume may have one in its name.
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

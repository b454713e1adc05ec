//! The views that are kept.
//!
//! Invariants:
//! - A view is kept in memory from the moment at which the generation is raised, and for as long as
//!   its durable row has the state [`ViewState::Kept`]. Records and pages that only this view sees
//!   are neither dropped nor overwritten before the commit that records its deletion.
//! - A view number is reused only after all other numbers have been used, so that the kernel never
//!   confuses two views.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{self, Table};
use super::permit::{ExclusivePermit, Permit};
use super::records::{Timespec, ViewKind, ViewRecord, ViewState};
use super::{Batch, Meta, MetaError, State, View};
use crate::ids::{Generation, ViewId};

/// Limit on the number of views. Some numbers are left over, so that none is reused at once.
const VIEWS_MAX: usize = 4_000;

/// The views in memory.
#[derive(Debug, Default)]
pub(super) struct Views {
    rows: BTreeMap<ViewId, ViewRecord>,
    /// Views that are being deleted: lookups no longer return them, but they are still kept.
    hidden: BTreeSet<ViewId>,
    /// Generations of the kept views.
    kept: BTreeSet<Generation>,
}

impl Views {
    /// Decodes the rows of the table.
    pub(super) fn from_rows(rows: Vec<keys::Row>) -> Option<Self> {
        let rows = rows.into_iter();
        let rows = rows.map(|(key, value)| keys::view_of(&key).zip(ViewRecord::decode(&value)));
        let mut this = Self {
            rows: rows.collect::<Option<_>>()?,
            ..Self::default()
        };
        this.update_kept();
        Some(this)
    }

    fn update_kept(&mut self) {
        let kept = self.rows.values().filter(|r| r.state == ViewState::Kept);
        self.kept = kept.map(|record| record.generation).collect();
    }

    /// True if a kept view has a generation in `from..below`.
    pub(super) fn keeps(&self, from: Generation, below: Generation) -> bool {
        from < below && self.kept.range(from..below).next().is_some()
    }

    /// True if a kept view has that generation.
    pub(super) fn is_kept(&self, generation: Generation) -> bool {
        self.kept.contains(&generation)
    }

    pub(super) fn newest(&self) -> Generation {
        self.kept.last().copied().unwrap_or_default()
    }

    /// The views that lookups return.
    fn visible(&self) -> impl Iterator<Item = (ViewId, &ViewRecord)> {
        let visible = self
            .rows
            .iter()
            .filter(|(id, record)| record.state == ViewState::Kept && !self.hidden.contains(id));
        visible.map(|(id, record)| (*id, record))
    }

    fn next_id(&self, after: ViewId) -> Option<ViewId> {
        let free = |id: &u16| *id != ViewId::LIVE.0 && !self.rows.contains_key(&ViewId(*id));
        let later = after.0.checked_add(1).map(|next| next..=ViewId::MAX.0);
        let again = 1..=after.0;
        later
            .into_iter()
            .flatten()
            .chain(again)
            .find(free)
            .map(ViewId)
    }
}

impl Meta {
    /// Takes a shared permit, which a thread holds while it makes changes.
    pub fn permit(&self) -> Permit<'_> {
        self.permits.shared()
    }

    /// Takes a shared permit, for a thread that holds locks which other holders of a permit may
    /// wait for.
    pub fn permit_holding_locks(&self) -> Permit<'_> {
        self.permits.shared_holding_locks()
    }

    /// Waits until nobody else makes changes, and keeps others from making any.
    pub fn exclusive_permit(&self) -> ExclusivePermit<'_> {
        self.permits.exclusive()
    }

    /// The live generation.
    pub fn generation(&self) -> Generation {
        self.state.read().counters.generation
    }

    /// Extents up to this generation must not be written in place, because a view or another volume
    /// may see them.
    pub fn newest_shared(&self) -> Generation {
        let frozen = self.state.read().counters.frozen;
        self.views.read().newest().max(frozen)
    }

    /// The views that lookups return, in the order of their numbers.
    pub fn views(&self) -> Vec<(ViewId, ViewRecord)> {
        let views = self.views.read();
        let visible = views.visible();
        visible.map(|(id, record)| (id, record.clone())).collect()
    }

    /// The number of visible views of that kind, and the time at which the newest was taken.
    pub fn count_views(&self, kind: ViewKind) -> (u32, Option<Timespec>) {
        let views = self.views.read();
        let of_kind = views.visible().filter(|(_, record)| record.kind == kind);
        of_kind.fold((0, None), |(count, newest), (_, record)| {
            (count + 1, newest.max(Some(record.created)))
        })
    }

    /// The view of that kind and name.
    pub fn find_view(&self, kind: ViewKind, name: &str) -> Option<(ViewId, ViewRecord)> {
        let views = self.views.read();
        let mut visible = views.visible();
        let view = visible.find(|(_, record)| record.kind == kind && record.name == name);
        view.map(|(id, record)| (id, record.clone()))
    }

    /// The view with that number, unless lookups no longer return it.
    pub fn view(&self, id: ViewId) -> Option<View> {
        let views = self.views.read();
        let record = views
            .rows
            .get(&id)
            .filter(|_| !views.hidden.contains(&id))?;
        (record.state == ViewState::Kept).then_some(View(record.generation))
    }

    /// Deleted views whose records may still exist.
    pub fn leaving_views(&self) -> Vec<(ViewId, Generation)> {
        let views = self.views.read();
        let leaving = views
            .rows
            .iter()
            .filter(|(_, r)| r.state == ViewState::Leaving);
        leaving.map(|(id, r)| (*id, r.generation)).collect()
    }

    /// Generations of the kept views, in order.
    pub fn kept_generations(&self) -> Vec<Generation> {
        self.views.read().kept.iter().copied().collect()
    }

    /// Takes a view of the current state. Everything must have been made durable since the permit
    /// was taken. The view is durable after the next commit.
    ///
    /// # Errors
    /// Errors of applying the change. `None` if the number of views or of generations is at its
    /// limit.
    pub fn take_view(
        &self,
        _permit: &ExclusivePermit<'_>,
        mut record: ViewRecord,
    ) -> Result<Option<(ViewId, ViewRecord)>, MetaError> {
        let mut views = self.views.write();
        let counters = self.counters();
        if counters.generation >= Generation::MAX {
            return Ok(None);
        }
        record.generation = counters.generation;
        record.pages = counters.used_pages;
        record.inodes = counters.inodes;
        record.record_bytes = counters.record_bytes;
        // Atomically: a commit between the two would keep a view that changes with the live one.
        let raise = |state: &mut State| {
            state.counters.generation.0 += 1;
            state.first_fresh = state.counters.next_ino;
        };
        let id = self.add_row(&mut views, &record, &raise)?;
        Ok(id.map(|id| (id, record)))
    }

    /// Keeps another view of the same generation as a kept one. `record` is that view's record with
    /// another name or kind.
    ///
    /// # Errors
    /// Errors of applying the change. `None` if the number of views is at its limit.
    pub fn add_view(&self, record: &ViewRecord) -> Result<Option<ViewId>, MetaError> {
        self.add_row(&mut self.views.write(), record, &|_| ())
    }

    fn add_row(
        &self,
        views: &mut Views,
        record: &ViewRecord,
        and: &dyn Fn(&mut State),
    ) -> Result<Option<ViewId>, MetaError> {
        if views.rows.len() >= VIEWS_MAX {
            return Ok(None);
        }
        let Some(id) = views.next_id(self.counters().newest_view) else {
            return Ok(None);
        };
        let mut batch = Batch::new();
        batch.change(Table::View, keys::view(id), Some(record.encode()));
        self.apply_and(batch, &|state| {
            state.counters.newest_view = id;
            and(state);
        })?;
        views.rows.insert(id, record.clone());
        views.update_kept();
        Ok(Some(id))
    }

    /// Replaces the record of a view. Its generation and state must stay the same.
    ///
    /// # Errors
    /// The errors of [`Meta::apply`].
    pub fn put_view(&self, id: ViewId, record: &ViewRecord) -> Result<(), MetaError> {
        let mut views = self.views.write();
        let mut batch = Batch::new();
        batch.change(Table::View, keys::view(id), Some(record.encode()));
        self.apply(batch)?;
        views.rows.insert(id, record.clone());
        Ok(())
    }

    /// Hides a view from lookups. It is still kept.
    pub fn hide_view(&self, id: ViewId) {
        self.views.write().hidden.insert(id);
    }

    /// Shows a hidden view to lookups again.
    pub fn unhide_view(&self, id: ViewId) {
        self.views.write().hidden.remove(&id);
    }

    /// Records that a hidden view has been deleted. It is kept until [`Self::release_view`].
    ///
    /// # Errors
    /// The errors of [`Meta::apply`].
    pub fn write_leaving(&self, id: ViewId) -> Result<(), MetaError> {
        let views = self.views.read();
        let Some(record) = views.rows.get(&id) else {
            return Ok(());
        };
        let record = ViewRecord {
            state: ViewState::Leaving,
            ..record.clone()
        };
        let mut batch = Batch::new();
        batch.frees = true;
        batch.change(Table::View, keys::view(id), Some(record.encode()));
        self.apply(batch)?;
        Ok(())
    }

    /// Stops keeping a view whose deletion is durable.
    pub fn release_view(&self, id: ViewId) {
        let mut views = self.views.write();
        views.hidden.remove(&id);
        if let Some(record) = views.rows.get_mut(&id) {
            record.state = ViewState::Leaving;
        }
        views.update_kept();
    }

    /// Removes the row of a deleted view whose records have been removed.
    pub fn remove_view(&self, batch: &mut Batch, id: ViewId) {
        batch.change(Table::View, keys::view(id), None);
    }

    /// Removes a view from memory, once the batch that removes its row is applied.
    pub fn forget_view(&self, id: ViewId) {
        self.views.write().rows.remove(&id);
    }

    /// Records that extents up to this generation, that of a kept view, are shared with another
    /// volume.
    pub fn freeze(&self, generation: Generation) {
        let state = &mut *self.state.write();
        // Later extents belong to this volume alone. If they were frozen, they could never be
        // written in place.
        let generation = generation.min(Generation(state.counters.generation.0 - 1));
        if state.counters.frozen < generation {
            state.counters.frozen = generation;
            state.applied += 1;
        }
    }

    /// Records the generation that a restore of the live view is returning to; 0 for none.
    pub fn set_restoring(&self, generation: Generation) {
        let state = &mut *self.state.write();
        if state.counters.restoring != generation {
            state.counters.restoring = generation;
            state.applied += 1;
        }
    }
}

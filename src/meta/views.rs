//! The views that are kept.
//!
//! Invariants:
//! - A view is kept in memory from the moment the generation is raised, and for as long as its row
//!   says so durably: what it alone sees is neither dropped nor written over before the commit
//!   that says it was deleted.
//! - A number is given again only when all others have been, so that the kernel never mixes two
//!   views up.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{self, Table};
use super::permit::{Pause, Permit};
use super::records::{Timespec, ViewKind, ViewRecord, ViewState};
use super::{Batch, Meta, MetaError, State, View};
use crate::ids::{Generation, ViewId};

/// The most views there can be at a time. Some numbers are left, so that none is used again at once.
const VIEWS_MAX: usize = 4_000;

/// What is known of the views.
#[derive(Debug, Default)]
pub(super) struct Views {
    rows: BTreeMap<ViewId, ViewRecord>,
    /// Being deleted: not to be found any more, but kept.
    hidden: BTreeSet<ViewId>,
    /// Generations of those that are kept.
    kept: BTreeSet<Generation>,
}

impl Views {
    /// Those of the rows of the table.
    pub(super) fn from_rows(rows: Vec<keys::Row>) -> Option<Self> {
        let rows = rows.into_iter();
        let rows = rows.map(|(key, value)| keys::view_of(&key).zip(ViewRecord::decode(&value)));
        let mut this = Self {
            rows: rows.collect::<Option<_>>()?,
            ..Self::default()
        };
        this.count();
        Some(this)
    }

    fn count(&mut self) {
        let kept = self.rows.values().filter(|r| r.state == ViewState::Kept);
        self.kept = kept.map(|record| record.generation).collect();
    }

    /// True when a kept view has a generation from `from` on and below `below`.
    pub(super) fn keeps(&self, from: Generation, below: Generation) -> bool {
        from < below && self.kept.range(from..below).next().is_some()
    }

    /// True when a kept view has that generation.
    pub(super) fn is_kept(&self, generation: Generation) -> bool {
        self.kept.contains(&generation)
    }

    pub(super) fn newest(&self) -> Generation {
        self.kept.last().copied().unwrap_or_default()
    }

    /// Those that can be found.
    fn seen(&self) -> impl Iterator<Item = (ViewId, &ViewRecord)> {
        let seen = self
            .rows
            .iter()
            .filter(|(id, record)| record.state == ViewState::Kept && !self.hidden.contains(id));
        seen.map(|(id, record)| (*id, record))
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
    /// The right to change something, to be held while it happens.
    pub fn permit(&self) -> Permit<'_> {
        self.permits.shared()
    }

    /// The same for one who holds locks that others may wait for who have a permit.
    pub fn permit_within(&self) -> Permit<'_> {
        self.permits.shared_within()
    }

    /// Waits until nobody changes anything, and keeps it so.
    pub fn pause(&self) -> Pause<'_> {
        self.permits.exclusive()
    }

    /// The live generation.
    pub fn generation(&self) -> Generation {
        self.state.read().counters.generation
    }

    /// An extent up to this generation must not be written in place: a view or another volume may
    /// see it.
    pub fn newest_shared(&self) -> Generation {
        let frozen = self.state.read().counters.frozen;
        self.views.read().newest().max(frozen)
    }

    /// The views that can be found, by their numbers.
    pub fn views(&self) -> Vec<(ViewId, ViewRecord)> {
        let views = self.views.read();
        let seen = views.seen();
        seen.map(|(id, record)| (id, record.clone())).collect()
    }

    /// How many views of that kind there are, and when the newest was taken.
    pub fn count_views(&self, kind: ViewKind) -> (u32, Option<Timespec>) {
        let views = self.views.read();
        let of_kind = views.seen().filter(|(_, record)| record.kind == kind);
        of_kind.fold((0, None), |(count, newest), (_, record)| {
            (count + 1, newest.max(Some(record.created)))
        })
    }

    /// The view of that kind and name.
    pub fn find_view(&self, kind: ViewKind, name: &str) -> Option<(ViewId, ViewRecord)> {
        let views = self.views.read();
        let mut seen = views.seen();
        let found = seen.find(|(_, record)| record.kind == kind && record.name == name);
        found.map(|(id, record)| (id, record.clone()))
    }

    /// What a view sees, if it can be found.
    pub fn view(&self, id: ViewId) -> Option<View> {
        let views = self.views.read();
        let record = views
            .rows
            .get(&id)
            .filter(|_| !views.hidden.contains(&id))?;
        (record.state == ViewState::Kept).then_some(View(record.generation))
    }

    /// Views that were deleted, whose records may still be there.
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

    /// Keeps what is visible now. Everything must have been made durable since `pause` began. The
    /// view is durable after the next commit.
    ///
    /// # Errors
    /// `None`: there are too many, or were.
    pub fn take_view(
        &self,
        _pause: &Pause<'_>,
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
        // In one step: a commit between the two would keep a view that changes with the live one.
        let raise = |state: &mut State| {
            state.counters.generation.0 += 1;
            state.first_fresh = state.counters.next_ino;
        };
        let id = self.add_row(&mut views, &record, &raise)?;
        Ok(id.map(|id| (id, record)))
    }

    /// Keeps once more what another kept view sees, whose record this is but for name and kind.
    ///
    /// # Errors
    /// `None`: there are too many.
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
        views.count();
        Ok(Some(id))
    }

    /// Changes what is said of a view; its generation and state stay.
    pub fn put_view(&self, id: ViewId, record: &ViewRecord) -> Result<(), MetaError> {
        let mut views = self.views.write();
        let mut batch = Batch::new();
        batch.change(Table::View, keys::view(id), Some(record.encode()));
        self.apply(batch)?;
        views.rows.insert(id, record.clone());
        Ok(())
    }

    /// Lets a view not be found any more, or again. It is kept all the same.
    pub fn hide_view(&self, id: ViewId, hidden: bool) {
        let mut views = self.views.write();
        if hidden {
            views.hidden.insert(id);
        } else {
            views.hidden.remove(&id);
        }
    }

    /// Writes down that a hidden view is deleted. It is kept until [`Self::release_view`].
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

    /// Stops keeping a view of which it is durable that it is deleted.
    pub fn release_view(&self, id: ViewId) {
        let mut views = self.views.write();
        views.hidden.remove(&id);
        if let Some(record) = views.rows.get_mut(&id) {
            record.state = ViewState::Leaving;
        }
        views.count();
    }

    /// Forgets a view of which nothing is left.
    pub fn remove_view(&self, batch: &mut Batch, id: ViewId) {
        batch.change(Table::View, keys::view(id), None);
    }

    /// The same in memory, once the batch is applied.
    pub fn forget_view(&self, id: ViewId) {
        self.views.write().rows.remove(&id);
    }

    /// Writes down that extents up to this generation, that of a kept view, are linked by another
    /// volume.
    pub fn freeze(&self, generation: Generation) {
        let state = &mut *self.state.write();
        // What is written from now on is nobody else's: frozen, it could never be written in place.
        let generation = generation.min(Generation(state.counters.generation.0 - 1));
        if state.counters.frozen < generation {
            state.counters.frozen = generation;
            state.applied += 1;
        }
    }

    /// Writes down which generation the live view is being taken back to; 0 for none.
    pub fn set_restoring(&self, generation: Generation) {
        let state = &mut *self.state.write();
        if state.counters.restoring != generation {
            state.counters.restoring = generation;
            state.applied += 1;
        }
    }
}

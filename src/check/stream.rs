//! Reads tables as streams of groups: all versions of one key at a time, with the views that see
//! them.

use std::ops::Range;
use std::sync::Arc;

use super::CheckError;
use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Row, Table, VersionedKey};
use crate::meta::records::TOMBSTONE;
use crate::meta::stored::Stored;

/// Rows read at a time.
const ROWS_AT_A_TIME: usize = 1024;
/// Bytes read at a time, not counting the last row.
const ROWS_BYTES: usize = 1 << 20;

/// Consecutive views by their numbers (see [`Views`]). An empty range means that no view is
/// concerned.
pub(super) type ViewRange = Range<usize>;

/// The views of a volume. They are numbered from 0: first the kept ones in the order of their
/// generations, then the live one.
#[derive(Clone, Debug, Default)]
pub(super) struct Views {
    /// Generations of the kept views.
    pub(super) kept: Vec<Generation>,
}

impl Views {
    /// Number of the live view.
    pub(super) fn live(&self) -> usize {
        self.kept.len()
    }

    /// The views that see a version of generation `from`, if the next version has the generation
    /// `next`.
    pub(super) fn that_see(&self, from: Generation, next: Option<Generation>) -> ViewRange {
        let first = |generation| self.kept.partition_point(|kept| *kept < generation);
        first(from)..next.map_or(self.live() + 1, first)
    }

    /// True if a kept view is older than the generation.
    pub(super) fn keeps_before(&self, generation: Generation) -> bool {
        self.kept.first().is_some_and(|oldest| *oldest < generation)
    }
}

/// A version of a record.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) generation: Generation,
    /// `None` if the key was removed.
    pub(super) value: Option<Vec<u8>>,
    /// The views that see it.
    pub(super) seen_by: ViewRange,
}

/// All versions of a key, oldest first.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) logical: Vec<u8>,
    pub(super) versions: Vec<Version>,
}

impl Group {
    /// Versions that are not deletions.
    pub(super) fn present(&self) -> impl Iterator<Item = (&Version, &[u8])> {
        self.versions
            .iter()
            .filter_map(|version| version.value.as_deref().map(|value| (version, value)))
    }

    /// Determines which views see each version.
    pub(super) fn set_seen_by(versions: &mut [Version], views: &Views) {
        let mut next = None;
        for version in versions.iter_mut().rev() {
            version.seen_by = views.that_see(version.generation, next);
            next = Some(version.generation);
        }
    }
}

/// Physical records of a table in the order of their keys.
pub(super) struct Rows {
    stored: Arc<Stored>,
    table: Table,
    low: Vec<u8>,
    /// Rows that have been read and not yet returned.
    ready: std::vec::IntoIter<Row>,
    done: bool,
}

impl Rows {
    pub(super) fn new(stored: &Arc<Stored>, table: Table, low: Vec<u8>) -> Self {
        Self {
            stored: Arc::clone(stored),
            table,
            low,
            ready: Vec::new().into_iter(),
            done: false,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Row>, CheckError> {
        if let Some(row) = self.ready.next() {
            return Ok(Some(row));
        }
        if self.done {
            return Ok(None);
        }
        let rows = self
            .stored
            .read_rows(self.table, &self.low, ROWS_AT_A_TIME, ROWS_BYTES);
        match rows.last() {
            Some((last, _)) => {
                self.low.clone_from(last);
                self.low.push(0);
            }
            None => self.done = true,
        }
        self.ready = rows.into_iter();
        Ok(self.ready.next())
    }
}

/// Groups of a versioned table, in the order of their keys.
pub(super) struct Groups<'a> {
    rows: Rows,
    views: &'a Views,
    /// The first row of the next group, once started.
    ahead: Option<Row>,
    started: bool,
    /// Number of malformed keys.
    pub(super) malformed: u64,
}

impl<'a> Groups<'a> {
    /// Streams groups from the logical key `low` on.
    pub(super) fn new(stored: &Arc<Stored>, views: &'a Views, table: Table, low: Vec<u8>) -> Self {
        Self {
            rows: Rows::new(stored, table, low),
            views,
            ahead: None,
            started: false,
            malformed: 0,
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, CheckError> {
        loop {
            match self.rows.next()? {
                Some((key, _)) if VersionedKey::decode(&key).is_none() => self.malformed += 1,
                other => return Ok(other),
            }
        }
    }

    /// The logical key of the next group, which stays the next one.
    pub(super) fn peek(&mut self) -> Result<Option<&[u8]>, CheckError> {
        if !self.started {
            self.started = true;
            self.ahead = self.next_row()?;
        }
        let ahead = self.ahead.as_ref();
        Ok(ahead.and_then(|(key, _)| VersionedKey::decode(key).map(|version| version.logical)))
    }

    /// The inode that the next group belongs to.
    pub(super) fn peek_ino(&mut self) -> Result<Option<Ino>, CheckError> {
        Ok(self
            .peek()?
            .map(|logical| keys::ino_of(logical).unwrap_or(Ino(0))))
    }

    pub(super) fn next(&mut self) -> Result<Option<Group>, CheckError> {
        let Some(logical) = self.peek()?.map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let mut versions: Vec<Version> = Vec::new();
        while let Some((key, value)) = self.ahead.take() {
            match VersionedKey::decode(&key) {
                Some(key) if key.logical == logical => {
                    versions.push(Version {
                        generation: key.generation,
                        value: (value != TOMBSTONE).then_some(value),
                        seen_by: 0..0,
                    });
                    self.ahead = self.next_row()?;
                }
                _ => {
                    self.ahead = Some((key, value));
                    break;
                }
            }
        }
        Group::set_seen_by(&mut versions, self.views);
        Ok(Some(Group { logical, versions }))
    }
}

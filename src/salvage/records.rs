//! The records of a volume, from all sources that can be read.
//!
//! The order of sources is: the newest commit of `meta`, earlier commits that `meta` still names,
//! then the checkpoints, newest first. A range of keys that one source cannot provide is taken from
//! those after it. If the first source is complete, no other is read.

use std::ops::Range;
use std::sync::Arc;

use crate::ids::{Generation, Ino};
use crate::layers::KeySet;
use crate::meta::checkpoint::{self, Checkpoint};
use crate::meta::keys::{self, Table, VersionedKey};
use crate::meta::raw::{Gap, RawTables, Visited};
use crate::meta::records::TOMBSTONE;
use crate::sealed::{MetaFile, SlotState};
use crate::store::{OpenMode, Store, StorePath};
use crate::volume::{META_NAME, NEXT_META_NAME, VerifiedHeader};

/// A source of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The newest commit of `meta`.
    Meta,
    /// An earlier commit of `meta`.
    EarlierCommit,
    /// A checkpoint.
    Checkpoint(Checkpoint),
}

struct Source {
    origin: Origin,
    tables: RawTables,
}

/// Completeness of the records in a range of keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Completeness {
    /// All records, as of the newest commit.
    Whole,
    /// Records of an earlier time.
    Older,
    /// Some records are missing.
    Missing,
}

/// A range of keys that the first source cannot provide.
#[derive(Debug)]
pub struct KeyRange {
    /// The damage of the first source.
    pub gap: Gap,
    /// Whether another source provides the range.
    pub state: Completeness,
}

/// The records of a volume.
pub struct Records {
    sources: Vec<Source>,
    /// Damaged ranges by table, in the order of keys.
    damaged_ranges: Vec<Vec<KeyRange>>,
    /// Why `meta` provides no records at all, if so.
    pub meta_lost: Option<String>,
    /// Whether one slot of page 0 does not open, which may have been the newer one.
    pub slot_lost: bool,
    /// State of both slots of page 0, if `meta` opens.
    pub slots: Option<[SlotState; 2]>,
    /// Checkpoints that do not open, each with the reason.
    pub checkpoints_refused: Vec<(String, String)>,
}

const OLDER_THAN_CHECKPOINT: &str =
    "it is older than a checkpoint beside it: an older copy was put back";

impl Records {
    /// Opens all sources, and reads every page of the first one.
    pub fn open(store: &dyn Store, active: &Arc<KeySet>, header: &VerifiedHeader) -> Self {
        let open = |name| {
            let file = store.open(&StorePath::new(name), OpenMode::Read);
            let file = file.map_err(|error| error.to_string())?;
            let opened = MetaFile::open(file, active, header.meta_crypto());
            opened.map_err(|error| error.to_string())
        };
        // While a new incarnation begins, `meta` has the second name; only one of the two opens.
        let meta = open(META_NAME).or_else(|error| open(NEXT_META_NAME).map_err(|_| error));
        let (mut slot_lost, mut slots) = (false, None);
        let (commits, meta_lost) = match meta {
            Err(error) => (Vec::new(), Some(error)),
            Ok(file) => {
                slot_lost = file.slots().iter().any(|slot| !slot.authentic);
                slots = Some(file.slots());
                match RawTables::all(&Arc::new(file)) {
                    none if none.is_empty() => {
                        (none, Some("no commit in it can be read".to_owned()))
                    }
                    commits => (commits, None),
                }
            }
        };
        let (checkpoints, refused) = checkpoint::list(store, active).unwrap_or_else(|error| {
            tracing::warn!(%error, "the checkpoints cannot be listed");
            Default::default()
        });
        let newest = checkpoints
            .first()
            .map(|(checkpoint, _)| checkpoint.sequence);
        let is_older = commits
            .first()
            .is_some_and(|commit| Some(commit.sequence()) < newest);
        let meta_lost = match is_older {
            true => Some(OLDER_THAN_CHECKPOINT.to_owned()),
            false => meta_lost,
        };
        let of_meta = commits.into_iter().enumerate().map(|(index, tables)| {
            let origin = if index == 0 {
                Origin::Meta
            } else {
                Origin::EarlierCommit
            };
            Source { origin, tables }
        });
        let of_checkpoints = checkpoints.into_iter().map(|(checkpoint, tables)| Source {
            origin: Origin::Checkpoint(checkpoint),
            tables,
        });
        let sources = match is_older {
            true => of_checkpoints.chain(of_meta).collect(),
            false => of_meta.chain(of_checkpoints).collect(),
        };
        let mut this = Self {
            sources,
            damaged_ranges: Vec::new(),
            meta_lost,
            slot_lost,
            slots,
            checkpoints_refused: refused
                .into_iter()
                .map(|(name, error)| (name.to_string(), error.to_string()))
                .collect(),
        };
        this.damaged_ranges = Table::ALL.map(|table| this.survey(table)).into();
        this
    }

    /// The first source; `None` if there is none.
    pub fn base(&self) -> Option<Origin> {
        self.sources.first().map(|source| source.origin)
    }

    /// The newest checkpoint that is used.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.sources.iter().find_map(|source| match source.origin {
            Origin::Checkpoint(checkpoint) => Some(checkpoint),
            _ => None,
        })
    }

    /// The ranges of a table that the first source cannot provide.
    pub fn damaged_ranges(&self, table: Table) -> &[KeyRange] {
        self.damaged_ranges
            .get(table.index())
            .map_or(&[], Vec::as_slice)
    }

    /// Completeness of all records.
    pub fn state(&self) -> Completeness {
        let ranges = self.damaged_ranges.iter().flatten();
        let least_complete = ranges.map(|damaged| damaged.state).max();
        let base = match self.base() {
            Some(Origin::Meta) => Completeness::Whole,
            Some(_) => Completeness::Older,
            None => Completeness::Missing,
        };
        base.max(least_complete.unwrap_or(Completeness::Whole))
    }

    /// Completeness of an inode's records in a table, not considering damage of all records.
    pub fn state_of(&self, table: Table, ino: Ino) -> Completeness {
        let (start, end) = (keys::number(ino.0), keys::after_ino(ino));
        let ranges = self.damaged_ranges(table);
        let from = ranges.partition_point(|damaged| {
            let through = damaged.gap.through.as_ref();
            through.is_some_and(|through| through[..] < start[..])
        });
        let touching = ranges[from..].iter().take_while(|damaged| {
            let after = damaged.gap.after.as_ref();
            after.is_none_or(|after| after[..] < end[..])
        });
        touching
            .map(|damaged| damaged.state)
            .max()
            .unwrap_or(Completeness::Whole)
    }

    /// Reads a whole table, and returns the ranges that the first source cannot provide.
    fn survey(&self, table: Table) -> Vec<KeyRange> {
        let all = Vec::new()..vec![0xFF; 9];
        let Some(first) = self.sources.first() else {
            return vec![KeyRange {
                gap: Gap::all("there is no metadata"),
                state: Completeness::Missing,
            }];
        };
        let mut ranges = Vec::new();
        first.tables.visit(table, &all, &mut |visited| {
            if let Visited::Gap(gap) = visited {
                let mut state = Completeness::Older;
                let in_gap = keys_in_gap(&all, gap);
                self.visit_from(1, table, &in_gap, &mut |_, _| true, &mut || {
                    state = Completeness::Missing;
                });
                ranges.push(KeyRange {
                    gap: gap.clone(),
                    state,
                });
            }
            true
        });
        ranges
    }

    /// Calls `visit` with every record of a table in a range of physical keys, in order, until it
    /// returns false. False in that case.
    pub fn visit(
        &self,
        table: Table,
        range: &Range<Vec<u8>>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> bool {
        self.visit_from(0, table, range, visit, &mut || {})
    }

    /// Reads from a source, and ranges that it cannot provide from those after it. Calls `missing`
    /// for a range that no source provides.
    fn visit_from(
        &self,
        source: usize,
        table: Table,
        range: &Range<Vec<u8>>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        missing: &mut dyn FnMut(),
    ) -> bool {
        let Some(first) = self.sources.get(source) else {
            missing();
            return true;
        };
        first
            .tables
            .visit(table, range, &mut |visited| match visited {
                Visited::Row(key, value) => visit(key, value),
                Visited::Gap(gap) => {
                    let range = keys_in_gap(range, gap);
                    self.visit_from(source + 1, table, &range, visit, missing)
                }
            })
    }

    /// Calls `visit` with the logical key and the value of every record of a versioned table that
    /// is visible in a generation, in order, until it returns false.
    pub fn each(
        &self,
        table: Table,
        range: &Range<Vec<u8>>,
        view: Generation,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        let mut newest: Option<(Vec<u8>, Vec<u8>)> = None;
        let mut emit = |record: Option<(Vec<u8>, Vec<u8>)>| match record {
            Some((logical, value)) if value != TOMBSTONE => visit(&logical, &value),
            _ => true,
        };
        let whole = self.visit(table, range, &mut |key, value| {
            let Some(VersionedKey {
                logical,
                generation,
            }) = VersionedKey::decode(key)
            else {
                return true;
            };
            if generation > view {
                return true;
            }
            match &mut newest {
                Some((last, older)) if last == logical => {
                    older.clear();
                    older.extend_from_slice(value);
                    true
                }
                other => emit(other.replace((logical.to_vec(), value.to_vec()))),
            }
        });
        if whole {
            emit(newest);
        }
    }

    /// The record of a logical key in a generation.
    pub fn get(&self, table: Table, logical: &[u8], view: Generation) -> Option<Vec<u8>> {
        let mut end = keys::versioned(logical, Generation(u64::MAX));
        end.push(0);
        let range = keys::versioned(logical, Generation(0))..end;
        let mut record = None;
        self.each(table, &range, view, &mut |_, value| {
            record = Some(value.to_vec());
            false
        });
        record
    }

    /// The row of an unversioned table.
    pub fn row(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let range = key.to_vec()..[key, &[0]].concat();
        let mut row = None;
        self.visit(table, &range, &mut |_, value| {
            row = Some(value.to_vec());
            false
        });
        row
    }
}

/// The keys of a range that lie in a gap.
fn keys_in_gap(range: &Range<Vec<u8>>, gap: &Gap) -> Range<Vec<u8>> {
    let after = |key: &Vec<u8>| [key.as_slice(), &[0]].concat();
    let start = gap.after.as_ref().map(after);
    let end = gap.through.as_ref().map(after);
    let start = start.map_or_else(|| range.start.clone(), |at| at.max(range.start.clone()));
    let end = end.map_or_else(|| range.end.clone(), |at| at.min(range.end.clone()));
    let end = end.max(start.clone());
    start..end
}

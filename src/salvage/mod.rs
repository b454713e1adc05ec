//! Taking out of a damaged volume what can be read of it.
//!
//! Layout of what is made:
//!
//! ```text
//! files/                        the live view
//! snapshots/NAME, images/NAME   kept views that were asked for
//! lost+found/inodes/<ino>       what no directory names, or whose directory is lost
//! lost+found/objects/<folder>-<name>   objects that no record names, when not all records are there
//! salvage-report.json           what was taken and what was lost
//! ```
//! Invariants: nothing of the volume is written ([`crate::volume::rescue()`]), and nothing outside of the
//! directory ([`out`]). A byte that is there came out of a page that opened under both layers, and is at
//! the place where the records say; every other one is zero and is in the report, unless it was a hole.
//! Memory is bounded by the number of directories and of files with several names: 8 bytes each, and
//! one bit for each inode.
//!
//! Order: the records are looked at from end to end ([`records`]); the trees; what they do not reach;
//! objects; the report.

mod contents;
mod objects;
pub mod out;
pub mod records;
pub mod report;
mod tree;

use std::io;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ids::Generation;
use crate::layers::KeyRing;
use crate::meta::View;
use crate::meta::keys::Table;
use crate::meta::page_set::PAYLOAD_BYTES;
use crate::meta::records::{Counters, Timespec, ViewKind, ViewRecord, ViewState};
use crate::store::Store;
use crate::sys::clock::is_set;
use crate::volume::Rescue;
use out::Out;
use records::{Origin, Records, State};
use report::{Counts, Loss, Report};

/// Name of the report.
pub const REPORT_NAME: &str = "salvage-report.json";
/// Damaged stretches that are listed one by one.
const LISTED: usize = 1000;

/// What to take.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Snapshots and images by name; none: the live view.
    pub views: Vec<String>,
    /// The live view, all snapshots and all images.
    pub all_views: bool,
}

/// Is told how far it is.
pub trait Progress {
    /// So many bytes are to be expected, where that is known.
    fn begin(&self, total_bytes: Option<u64>);
    /// So many were done.
    fn add(&self, bytes: u64);
}

/// Why nothing more could be taken.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// There is no such snapshot or image.
    #[error("there is no snapshot or image {0} in what can be read")]
    NoSuchView(String),
    /// The directory cannot be written.
    #[error("cannot write: {0}")]
    Out(#[from] io::Error),
}

/// How it went.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// How much there is of everything.
    pub counts: Counts,
    /// What was read, as in the report.
    pub source: Value,
}

/// What is read from.
#[derive(Clone, Copy)]
struct Source<'a> {
    store: &'a dyn Store,
    keys: &'a KeyRing,
    records: &'a Records,
    progress: &'a dyn Progress,
}

/// A view that is taken: where to, and what it sees.
struct Wanted {
    path: Vec<Vec<u8>>,
    /// Of what has no place in it.
    lost: Vec<u8>,
    view: Generation,
}

/// Takes out what can be read.
///
/// # Errors
/// Nothing more could be written. What is there by then is right; there is no whole report.
pub fn salvage(
    rescue: &Rescue,
    out: &Out,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Summary, SalvageError> {
    let store = &*rescue.store;
    let records = Records::open(store, rescue.keys.active(), &rescue.header);
    let views = views_of(&records);
    let wanted = wanted(&views, options)?;
    let mut known = describe(rescue, &records, &views);
    known["owners_set"] = out.privileged.into();
    let report = out::make_file(out.root(), REPORT_NAME.as_bytes())?;
    let mut report = Report::begin(report, &known)?;
    report_records(&records, &mut report)?;
    if let Err(older) = rescue.check_rollback(records.slots.as_ref()) {
        report.lose(&Loss {
            path: String::new(),
            what: "older",
            offset: None,
            length: None,
            reason: older.to_string(),
        })?;
    }
    let counters = records.row(Table::Counters, &[]);
    let counters = counters.and_then(|bytes| Counters::decode(&bytes));
    if counters
        .as_ref()
        .is_some_and(|counters| counters.restoring != Generation(0))
    {
        report.lose(&Loss {
            path: "files".to_owned(),
            what: "older",
            offset: None,
            length: None,
            reason: "it was being taken back to a snapshot: a part of it is as it was before"
                .to_owned(),
        })?;
    }
    progress.begin(counters.map(|counters| counters.used_pages.saturating_mul(PAYLOAD_BYTES)));
    let source = Source {
        store,
        keys: &rescue.keys,
        records: &records,
        progress,
    };
    for view in &wanted {
        tree::take(&source, out, view, &mut report)?;
    }
    // Where all records are there, what none names is what a mount would take away.
    if records.state() != State::Whole {
        objects::take(&source, out, &mut report)?;
    }
    let counts = report.end()?;
    out.sync_all()?;
    Ok(Summary {
        counts,
        source: known,
    })
}

fn views_of(records: &Records) -> Vec<ViewRecord> {
    let mut views = Vec::new();
    records.visit(
        Table::View,
        &(Vec::new()..vec![0xFF; 3]),
        &mut |_, value| {
            let kept = ViewRecord::decode(value).filter(|view| view.state == ViewState::Kept);
            views.extend(kept);
            true
        },
    );
    views
}

const fn directory_of(kind: ViewKind) -> &'static str {
    match kind {
        ViewKind::Snapshot => "snapshots",
        ViewKind::Image => "images",
    }
}

fn wanted(views: &[ViewRecord], options: &Options) -> Result<Vec<Wanted>, SalvageError> {
    let live = || Wanted {
        path: vec![b"files".to_vec()],
        lost: b"inodes".to_vec(),
        view: View::LIVE.0,
    };
    let kept = |view: &ViewRecord| {
        let directory = directory_of(view.kind);
        let name = match out::is_name(view.name.as_bytes()) {
            true => view.name.clone(),
            false => format!("generation-{}", view.generation),
        };
        Wanted {
            path: vec![directory.into(), name.into()],
            lost: format!("{directory}-{}", view.generation).into(),
            view: view.generation,
        }
    };
    if options.all_views {
        return Ok([live()].into_iter().chain(views.iter().map(kept)).collect());
    }
    if options.views.is_empty() {
        return Ok(vec![live()]);
    }
    let find = |name: &String| {
        let mut found = views.iter().filter(|view| view.name == *name).peekable();
        match found.peek() {
            None => Err(SalvageError::NoSuchView(name.clone())),
            Some(_) => Ok(found.map(kept).collect::<Vec<_>>()),
        }
    };
    let found: Result<Vec<_>, _> = options.views.iter().map(find).collect();
    Ok(found?.into_iter().flatten().collect())
}

fn checkpoint_json(checkpoint: &crate::meta::checkpoint::Checkpoint) -> Value {
    json!({
        "name": checkpoint.name.to_string(),
        "sequence": checkpoint.sequence.0,
        "created": checkpoint.created.secs,
    })
}

/// What is known before anything is taken.
fn describe(rescue: &Rescue, records: &Records, views: &[ViewRecord]) -> Value {
    let damage = Table::ALL.iter().flat_map(|table| {
        let stretches = records.stretches(*table).iter();
        stretches.map(|stretch| {
            json!({
                "table": table.name(),
                "page": stretch.gap.page,
                "reason": stretch.gap.reason,
                "filled": stretch.state == State::Older,
            })
        })
    });
    let (damage, more): (Vec<Value>, usize) = {
        let all: Vec<Value> = damage.take(LISTED).collect();
        let total: usize = Table::ALL
            .iter()
            .map(|table| records.stretches(*table).len())
            .sum();
        let more = total - all.len();
        (all, more)
    };
    let meta = match records.base() {
        Some(Origin::Meta) if damage.is_empty() && !records.slot_lost => "whole",
        Some(Origin::Meta) => "damaged",
        _ => "lost",
    };
    let refused = rescue.refused.iter();
    json!({
        "volume": rescue.header.volume_id().to_string(),
        "superblock": rescue.source.name(),
        "superblocks_refused": refused
            .map(|(source, error)| json!({"superblock": source.name(), "reason": error.to_string()}))
            .collect::<Vec<_>>(),
        "meta": meta,
        "meta_reason": records.meta_lost,
        "damage": damage,
        "damage_not_listed": more,
        "checkpoint": records.checkpoint().as_ref().map(checkpoint_json),
        "checkpoints_refused": records.checkpoints_refused.iter()
            .map(|(name, reason)| json!({"name": name, "reason": reason}))
            .collect::<Vec<_>>(),
        "views": views.iter().map(|view| json!({
            "kind": directory_of(view.kind),
            "name": view.name,
            "created": view.created.secs,
        })).collect::<Vec<_>>(),
    })
}

/// When something was made, for people.
fn in_words(time: Timespec) -> String {
    let shown = Timestamp::from_second(time.secs).ok();
    match shown.filter(|_| is_set(time.secs)) {
        Some(time) => format!("at {time}"),
        None => "at a time that is not known".to_owned(),
    }
}

/// What is wrong with the records as a whole.
fn report_records(records: &Records, report: &mut Report) -> io::Result<()> {
    let mut say = |what, reason: String| {
        report.lose(&Loss {
            path: String::new(),
            what,
            offset: None,
            length: None,
            reason,
        })
    };
    if let Some(reason) = &records.meta_lost {
        match records.checkpoint() {
            Some(checkpoint) => say(
                "older",
                format!(
                    "meta cannot be read ({reason}): everything is as it was when the checkpoint was \
                     made, {}",
                    in_words(checkpoint.created)
                ),
            )?,
            None => say(
                "records",
                format!("meta cannot be read ({reason}), and there is no checkpoint of it"),
            )?,
        }
    }
    if records.slot_lost {
        let reason =
            "one slot of page 0 of meta cannot be used: what was committed last may be missing";
        say("older", reason.to_owned())?;
    }
    if records.base().is_none() {
        return Ok(());
    }
    for table in Table::ALL {
        let missing = records.stretches(table).iter();
        for stretch in missing.filter(|stretch| stretch.state == State::Missing) {
            let gap = &stretch.gap;
            let page = gap
                .page
                .map_or_else(String::new, |page| format!("page {page} of "));
            let reason = format!(
                "records in table {}: {page}meta cannot be used ({}), and no checkpoint has them",
                table.name(),
                gap.reason
            );
            say("records", reason)?;
        }
    }
    Ok(())
}

//! Extracting what can be read from a damaged volume.
//!
//! Layout of the output:
//!
//! ```text
//! files/                        the live view
//! snapshots/NAME, images/NAME   kept views that were requested
//! lost+found/inodes/<ino>       inodes that no directory names, or whose directory is lost
//! lost+found/objects/<folder>-<name>   objects that no record names, if records are missing
//! salvage-report.json           the report of everything that was extracted or lost
//! ```
//!
//! Invariants: nothing is written to the volume ([`crate::volume::rescue()`]) or outside the output
//! directory ([`output`]). Every byte of the output came from a page that opened under both layers,
//! and is at the offset that the records give it. Every other byte is zero and is in the report,
//! unless it was a hole. Memory is bounded by the number of directories and of files with several
//! names: 8 bytes each, and one bit for each inode.
//!
//! Order: the records are read completely ([`records`]); the trees are extracted; then inodes that
//! no tree contains; then objects; then the report is finished.

mod contents;
mod objects;
pub mod output;
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
use output::OutputDir;
use records::{Completeness, Origin, Records};
use report::{Counts, Loss, Report};

/// Name of the report.
pub const REPORT_NAME: &str = "salvage-report.json";
/// Maximum number of damaged key ranges that are listed one by one.
const LISTED_MAX: usize = 1000;

/// What to extract.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Snapshots and images by name; the live view if empty.
    pub views: Vec<String>,
    /// Whether to extract the live view, all snapshots and all images.
    pub all_views: bool,
}

/// Receives the progress of an extraction.
pub trait Progress {
    /// The expected number of bytes, if known.
    fn begin(&self, total_bytes: Option<u64>);
    /// That many further bytes are done.
    fn add(&self, bytes: u64);
}

/// Why an extraction failed.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// There is no such snapshot or image.
    #[error("there is no snapshot or image {0} in what can be read")]
    NoSuchView(String),
    /// The output directory cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Result of an extraction.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// What was extracted and lost, in numbers.
    pub counts: Counts,
    /// The sources that were read, as in the report.
    pub source: Value,
}

/// The sources of an extraction.
#[derive(Clone, Copy)]
struct Source<'a> {
    store: &'a dyn Store,
    keys: &'a KeyRing,
    records: &'a Records,
    progress: &'a dyn Progress,
}

/// A view to extract.
struct WantedView {
    /// Directory of the output for it.
    path: Vec<Vec<u8>>,
    /// Directory below `lost+found` for inodes that no directory of the view names.
    lost: Vec<u8>,
    view: Generation,
}

/// Extracts what can be read.
///
/// # Errors
/// A requested view does not exist, or the output cannot be written. What was written by then is
/// correct, but the report is incomplete.
pub fn salvage(
    rescue: &Rescue,
    out: &OutputDir,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Summary, SalvageError> {
    let store = &*rescue.store;
    let records = Records::open(store, rescue.keys.active(), &rescue.header);
    let views = kept_views(&records);
    let wanted = wanted_views(&views, options)?;
    let mut sources = describe_sources(rescue, &records, &views);
    sources["owners_set"] = out.privileged.into();
    let report = output::create_file(out.root(), REPORT_NAME.as_bytes())?;
    let mut report = Report::begin(report, &sources)?;
    report_records(&records, &mut report)?;
    if let Err(older) = rescue.check_rollback(records.slots.as_ref()) {
        report.add_loss(&Loss {
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
        report.add_loss(&Loss {
            path: "files".to_owned(),
            what: "older",
            offset: None,
            length: None,
            reason: "a restore from a snapshot was under way: some files are as they were before"
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
        tree::extract_view(&source, out, view, &mut report)?;
    }
    // If no records are missing, objects that no record names are garbage.
    if records.state() != Completeness::Whole {
        objects::extract_unnamed(&source, out, &mut report)?;
    }
    let counts = report.end()?;
    out.sync_all()?;
    Ok(Summary {
        counts,
        source: sources,
    })
}

fn kept_views(records: &Records) -> Vec<ViewRecord> {
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

fn wanted_views(views: &[ViewRecord], options: &Options) -> Result<Vec<WantedView>, SalvageError> {
    let live = || WantedView {
        path: vec![b"files".to_vec()],
        lost: b"inodes".to_vec(),
        view: View::LIVE.0,
    };
    let kept = |view: &ViewRecord| {
        let directory = directory_of(view.kind);
        let name = match output::is_name(view.name.as_bytes()) {
            true => view.name.clone(),
            false => format!("generation-{}", view.generation),
        };
        WantedView {
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
        let mut named = views.iter().filter(|view| view.name == *name).peekable();
        match named.peek() {
            None => Err(SalvageError::NoSuchView(name.clone())),
            Some(_) => Ok(named.map(kept).collect::<Vec<_>>()),
        }
    };
    let views: Result<Vec<_>, _> = options.views.iter().map(find).collect();
    Ok(views?.into_iter().flatten().collect())
}

fn checkpoint_json(checkpoint: &crate::meta::checkpoint::Checkpoint) -> Value {
    json!({
        "name": checkpoint.name.to_string(),
        "sequence": checkpoint.sequence.0,
        "created": checkpoint.created.secs,
    })
}

/// Describes the sources, before anything is extracted.
fn describe_sources(rescue: &Rescue, records: &Records, views: &[ViewRecord]) -> Value {
    let damage = Table::ALL.iter().flat_map(|table| {
        let ranges = records.damaged_ranges(*table).iter();
        ranges.map(|damaged| {
            json!({
                "table": table.name(),
                "page": damaged.gap.page,
                "reason": damaged.gap.reason,
                "filled": damaged.state == Completeness::Older,
            })
        })
    });
    let damage: Vec<Value> = damage.take(LISTED_MAX).collect();
    let lengths = Table::ALL.map(|table| records.damaged_ranges(table).len());
    let not_listed = lengths.iter().sum::<usize>() - damage.len();
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
            .map(|(source, error)| {
                json!({"superblock": source.name(), "reason": error.to_string()})
            })
            .collect::<Vec<_>>(),
        "meta": meta,
        "meta_reason": records.meta_lost,
        "damage": damage,
        "damage_not_listed": not_listed,
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

/// A time as a part of a sentence.
fn in_words(time: Timespec) -> String {
    let shown = Timestamp::from_second(time.secs).ok();
    match shown.filter(|_| is_set(time.secs)) {
        Some(time) => format!("at {time}"),
        None => "at a time that is not known".to_owned(),
    }
}

/// Reports damage of the records as a whole.
fn report_records(records: &Records, report: &mut Report) -> io::Result<()> {
    let mut report_loss = |what, reason: String| {
        report.add_loss(&Loss {
            path: String::new(),
            what,
            offset: None,
            length: None,
            reason,
        })
    };
    if let Some(reason) = &records.meta_lost {
        match records.checkpoint() {
            Some(checkpoint) => report_loss(
                "older",
                format!(
                    "meta cannot be read ({reason}): everything is as it was when the checkpoint \
                     was made, {}",
                    in_words(checkpoint.created)
                ),
            )?,
            None => report_loss(
                "records",
                format!("meta cannot be read ({reason}), and there is no checkpoint of it"),
            )?,
        }
    }
    if records.slot_lost {
        let reason = "one slot of page 0 of meta cannot be used: the last commit may be missing";
        report_loss("older", reason.to_owned())?;
    }
    if records.base().is_none() {
        return Ok(());
    }
    for table in Table::ALL {
        let missing = records.damaged_ranges(table).iter();
        for damaged in missing.filter(|damaged| damaged.state == Completeness::Missing) {
            let gap = &damaged.gap;
            let page = gap
                .page
                .map_or_else(String::new, |page| format!("page {page} of "));
            let reason = format!(
                "records in table {}: {page}meta cannot be used ({}), and no checkpoint has them",
                table.name(),
                gap.reason
            );
            report_loss("records", reason)?;
        }
    }
    Ok(())
}

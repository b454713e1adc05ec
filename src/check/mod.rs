//! Checking a volume: all metadata is compared with itself, and every page that it names is read
//! and verified.
//!
//! | file | what it checks |
//! |---|---|
//! | `stream` | nothing: reads keys with all their versions, and which views see them |
//! | `names`, `inodes` | names, link counts, sizes, pages, attributes, in all views at once |
//! | `tree` | directories are below the root |
//! | `history` | unneeded versions, records of changes |
//! | `lists` | counters, kept views, orphans, garbage |
//! | `objects` | the objects that records name against those that exist |
//! | `contents` | pages of objects, on the disk |
//! | `checkpoints` | whether the checkpoints of the metadata could be used |
//! | `paths` | nothing: looks up the paths of findings |
//! | `repair`, `name_changes` | nothing: repairs what can be repaired without losing anything |
//!
//! The check reads one commit through its own access to the database ([`Stored`]), past every cache
//! and without writing a byte. A volume stays in use while it is checked: its newest commit is
//! checked, and contents of that commit that seem damaged are verified again before they are
//! reported, since their space may have been freed meanwhile ([`Live`]).
//!
//! Memory is bounded: 24 bytes for each name and 40 for each object up to
//! [`CheckOptions::memory_bytes`], beyond which the tables are read more than once; 32 bytes for
//! each version of a directory; and at most [`FINDINGS_MAX`] findings.

mod checkpoints;
mod contents;
mod history;
mod inodes;
mod lists;
mod name_changes;
mod names;
mod objects;
mod paths;
mod repair;
pub mod report;
mod stream;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::ids::{ChunkIndex, FolderNumber, Generation, Ino};
use crate::keys::KeyError;
use crate::meta::checkpoint;
use crate::meta::keys::Table;
use crate::meta::page_set::PageSet;
use crate::meta::records::{FileKind, ObjectName, PartId};
use crate::meta::stored::{Stored, verify_database};
use crate::meta::{MetaError, keys};
use crate::object::{Fault, ObjectError, Objects};
use crate::sealed::{MetaFile, SealedError};
use crate::store::read_only::ReadOnlyStore;
use crate::store::{OpenMode, Store, StorePath};
use crate::volume::{FreshVolume, META_NAME, Volume};
use lists::{Totals, ViewRows};
pub use repair::repair;
pub use report::{Finding, Kind, Report, Severity};
use stream::{Group, Version, ViewRange, Views};
use tree::Tree;

/// Maximum number of findings of one check that are reported one by one.
pub const FINDINGS_MAX: usize = 10_000;

/// Cache of the database in bytes, for inner pages of the tables.
const CACHE_BYTES: usize = 16 << 20;

/// Options of a check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Number of threads that verify contents: 0 for one per CPU, and at most four per CPU.
    pub jobs: usize,
    /// Whether contents are verified too, which takes as long as reading them.
    pub contents: bool,
    /// Memory for the names and objects that are compared, in bytes.
    pub memory_bytes: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            jobs: 0,
            contents: true,
            memory_bytes: 64 << 20,
        }
    }
}

impl CheckOptions {
    fn threads(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        match self.jobs {
            0 => cpus,
            jobs => jobs.min(4 * cpus),
        }
    }
}

/// Stages of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The metadata is read and compared.
    Metadata,
    /// Contents are verified.
    Contents,
}

/// Receives the progress of a check, and can cancel it.
pub trait CheckProgress: Sync {
    /// A stage begins; `total_bytes` is its size, if known.
    fn begin(&self, _stage: Stage, _total_bytes: Option<u64>) {}
    /// That many further bytes are done.
    fn advance(&self, _bytes: u64) {}
    /// True if the check is to be cancelled.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl CheckProgress for NoProgress {}

/// Why a check did not complete.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The check was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The metadata, although it was opened, cannot be read any more.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The contents cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] std::io::Error),
    /// The repairs are on disk, but the platform keystore could not record that.
    #[error("the repairs are on disk, but the platform keystore could not record that: {0}")]
    NotRemembered(#[source] KeyError),
    /// A bug in this program.
    #[error("a bug in this program")]
    Fault,
}

/// A volume that is in use while it is checked.
pub trait Live: Sync {
    /// The first folder of objects that this mount has created, or may have.
    fn first_folder(&self) -> FolderNumber;
    /// The newest commit.
    ///
    /// # Errors
    /// The metadata cannot be read.
    fn stored(&self) -> Result<Stored, MetaError>;
    /// Verifies pages again that seemed damaged. Returns the faults of those that should exist now.
    ///
    /// # Errors
    /// The metadata cannot be read.
    fn verify_again(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        id: PartId,
        pages: &PageSet,
    ) -> Result<Vec<Fault>, ObjectError>;
}

/// What a check reads.
pub struct Subject<'a> {
    /// The objects, read without using the open ones.
    pub objects: Objects,
    /// Whether the objects must exist.
    pub has_objects: bool,
    /// The volume, if it is in use.
    pub live: Option<&'a dyn Live>,
}

/// An action that would repair a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RepairAction {
    /// Sets the number of links.
    SetLinks {
        ino: Ino,
        nlink: u32,
        seen_by: ViewRange,
    },
    /// Sets the number of pages.
    SetPages {
        ino: Ino,
        pages: u64,
        seen_by: ViewRange,
    },
    /// Raises the size to cover the contents.
    RaiseSize {
        ino: Ino,
        at_least: u64,
        seen_by: ViewRange,
    },
    /// Sets the parent of a directory.
    SetParent {
        ino: Ino,
        parent: Ino,
        seen_by: ViewRange,
    },
    /// Gives the inode a name in `lost+found`.
    GiveName { ino: Ino },
    /// Removes all names that lead to the inode.
    RemoveNamesOf { ino: Ino, seen_by: ViewRange },
    /// Removes all names in an inode that is not a directory.
    RemoveNamesIn { ino: Ino, seen_by: ViewRange },
    /// Sets the kind that names record.
    SetKindInNames {
        ino: Ino,
        kind: FileKind,
        seen_by: ViewRange,
    },
    /// Removes all names of a directory but one.
    KeepOneName {
        ino: Ino,
        parent: Ino,
        seen_by: ViewRange,
    },
    /// Moves a directory out of a cycle, to `lost+found`.
    LeaveCycle { ino: Ino },
    /// Creates an inode for contents without one.
    CreateInode {
        ino: Ino,
        size: u64,
        seen_by: ViewRange,
    },
    /// Removes extended attributes.
    RemoveAttributes { ino: Ino, seen_by: ViewRange },
    /// Raises the number of the next inode to this one.
    RaiseNextInode(Ino),
    /// Raises the number of the next row of `garbage` to this one.
    RaiseNextGarbage(u64),
    /// Raises the live generation to this one.
    RaiseGeneration(Generation),
    /// Removes the inode from the orphans.
    ForgetOrphan(Ino),
    /// Sets the row of an unversioned table with this key, or removes it.
    SetRow(Table, Vec<u8>, Option<Vec<u8>>),
    /// Moves the name with this key to a position where a lookup finds it.
    MoveName(Vec<u8>),
    /// Removes the versions of a key that no view needs.
    PruneVersions(Table, Vec<u8>),
    /// Sets the volume's count of used pages.
    SetUsedPages(u64),
    /// Sets the volume's count of bytes of records.
    SetRecordBytes(u64),
    /// Sets the volume's count of inodes.
    SetInodes(u64),
    /// Unlinks an object.
    Unlink(ObjectName),
}

/// From what the paths of a finding are determined.
#[derive(Clone, Debug)]
enum PathHint {
    /// The finding has no paths.
    None,
    /// All names of the inode.
    Inode(Ino),
    /// One name.
    Entry { parent: Ino, name: Vec<u8> },
}

/// A finding whose paths have not been looked up yet.
#[derive(Debug)]
struct Pending {
    finding: Finding,
    path_hint: PathHint,
    seen_by: ViewRange,
    repair: Option<RepairAction>,
}

/// A check under way.
struct Run<'a> {
    stored: Arc<Stored>,
    /// Unreadable pages of commits that were read before.
    gaps: BTreeMap<Option<u64>, String>,
    subject: &'a Subject<'a>,
    options: &'a CheckOptions,
    progress: &'a dyn CheckProgress,
    views: Views,
    /// Path prefixes of kept views.
    prefixes: Vec<Vec<u8>>,
    /// True if views are being dropped.
    leaving: bool,
    /// True if a restore is under way, so that the live view is inconsistent.
    half_restored: bool,
    pending: Vec<Pending>,
    /// True if the last finding was not added to `pending`.
    last_omitted: bool,
    report: Report,
    totals: Totals,
    tree: Tree,
    orphans: Vec<Ino>,
    /// Orphans that exist in the live view.
    existing_orphans: BTreeSet<Ino>,
    /// Objects that wait to be removed, with the keys of their rows.
    garbage: BTreeMap<ObjectName, Vec<u8>>,
    /// Number of malformed keys.
    malformed: u64,
    last_position: Option<NamePosition>,
    undecodable_extents: bool,
    pages_to_verify: u64,
}

/// A position in a directory, and the views that see a name there.
#[derive(Debug)]
struct NamePosition {
    parent: Ino,
    position: u32,
    seen_by: Vec<ViewRange>,
}

/// Result of a check.
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) repairs: Vec<RepairAction>,
}

/// Checks a volume that is not in use. The caller has it open, without a filesystem on it. Nothing
/// is written.
///
/// # Errors
/// The check was cancelled, or the backing store failed. Damage of the volume is not an error.
pub fn check(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
) -> Result<Report, CheckError> {
    Ok(run_offline(volume, options, progress)?.report)
}

/// Compares the metadata of a volume that is being created from an image with itself and with the
/// existing objects. Contents are not read.
///
/// # Errors
/// The metadata or the store cannot be read. Inconsistencies are not an error.
pub fn compare(fresh: &FreshVolume) -> Result<Report, CheckError> {
    let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(Arc::clone(&fresh.store)));
    let file = store.open(&StorePath::new(META_NAME), OpenMode::Read)?;
    let file = MetaFile::open(file, fresh.keys.active(), fresh.meta_crypto);
    let file = file.map_err(MetaError::from)?;
    let objects = Objects::new(store, Arc::clone(&fresh.keys), 1);
    compare_with(file, objects, true)
}

/// Compares metadata with itself if its objects do not exist yet.
///
/// # Errors
/// The metadata or the store cannot be read. Inconsistencies are not an error.
pub fn compare_metadata(file: MetaFile, volume: &Volume) -> Result<Report, CheckError> {
    let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(Arc::clone(&volume.store)));
    let objects = Objects::new(store, Arc::clone(&volume.keys), 1);
    compare_with(file, objects, false)
}

fn compare_with(file: MetaFile, objects: Objects, has_objects: bool) -> Result<Report, CheckError> {
    let stored = Stored::open(&Arc::new(file))?;
    let subject = Subject {
        objects,
        has_objects,
        live: None,
    };
    let options = CheckOptions {
        contents: false,
        ..CheckOptions::default()
    };
    let report = Report::default();
    let outcome = run(Arc::new(stored), &subject, &options, &NoProgress, report)?;
    Ok(outcome.report)
}

pub(crate) fn run_offline(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
) -> Result<Outcome, CheckError> {
    let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(Arc::clone(&volume.store)));
    let opened = open_stored(volume, &*store, progress)?;
    let subject = Subject {
        objects: Objects::new(store, Arc::clone(&volume.keys), 1),
        has_objects: true,
        live: None,
    };
    match opened {
        (Some(stored), notes) => run(Arc::new(stored), &subject, options, progress, notes),
        (None, report) => Ok(Outcome {
            report,
            repairs: Vec::new(),
        }),
    }
}

/// Opens the metadata. The report says what is wrong with it as a whole; without metadata, why it
/// cannot be read.
fn open_stored(
    volume: &Volume,
    store: &dyn Store,
    progress: &dyn CheckProgress,
) -> Result<(Option<Stored>, Report), CheckError> {
    progress.begin(Stage::Metadata, None);
    let mut report = Report::default();
    let unreadable = |mut report: Report, error: &dyn std::fmt::Display, pages| {
        let finding = Finding::new(Kind::Metadata, error.to_string());
        report.findings.push(Finding { pages, ..finding });
        Ok((None, report))
    };
    let file = match store.open(&StorePath::new(META_NAME), OpenMode::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return unreadable(report, &"it does not exist", Vec::new());
        }
        other => other?,
    };
    report.bytes = file.len()?;
    let file = match MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()) {
        Err(SealedError::Io(error)) => return Err(error.into()),
        Err(error) => return unreadable(report, &error, std::iter::once(0..1).collect()),
        Ok(file) => Arc::new(file),
    };
    // A copy may be older than the keystore's record.
    if let Err(older) = volume.check_rollback(&file.slots())
        && !volume.is_copy()
    {
        report
            .findings
            .push(Finding::new(Kind::RolledBack, older.to_string()));
    }
    let newest = file.slots().iter().map(|slot| slot.sequence).max();
    // Reported with the checkpoints.
    let ahead = checkpoint::newest(store, volume.keys.active()).unwrap_or_default();
    let ahead = ahead.map(|(checkpoint, _)| checkpoint);
    if let Some(ahead) = ahead.filter(|it| Some(it.sequence) > newest) {
        let message = format!(
            "its metadata is of commit {}, and there is a checkpoint of commit {}",
            newest.unwrap_or_default().0,
            ahead.sequence.0
        );
        report
            .findings
            .push(Finding::new(Kind::RolledBack, message));
    }
    let stored = match Stored::open(&file) {
        Ok(stored) => stored,
        Err(error) => return unreadable(report, &error, Vec::new()),
    };
    check_slots(&file, stored.counters().clean, &mut report);
    let cancelled = Arc::new(AtomicBool::new(progress.cancelled()));
    match verify_database(&file, CACHE_BYTES, cancelled) {
        Ok(true) => {}
        Ok(false) if !stored.counters().clean => {}
        Ok(false) => {
            let message = "its record of free pages is wrong, and is rebuilt by the next recovery";
            report
                .findings
                .push(Finding::new(Kind::MetadataSpace, message));
        }
        Err(error) => {
            let message = format!("the database does not open: {error}");
            report.findings.push(Finding::new(Kind::Metadata, message));
        }
    }
    Ok((Some(stored), report))
}

fn check_slots(file: &MetaFile, is_clean: bool, report: &mut Report) {
    if !is_clean {
        let message = "the volume was not left clean: the next mount recovers it";
        report.findings.push(Finding::new(Kind::Unclean, message));
    }
    for (slot, name) in file.slots().iter().zip(["first", "second"]) {
        if !slot.authentic {
            let message = format!("the {name} slot of its page 0 does not open");
            let mut finding = Finding::new(Kind::MetadataSlot, message);
            if !is_clean {
                finding.severity = Severity::Note;
            }
            report.findings.push(finding);
        }
    }
}

/// Checks one commit. The findings are added to `report`.
pub(crate) fn run(
    stored: Arc<Stored>,
    subject: &Subject<'_>,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
    mut report: Report,
) -> Result<Outcome, CheckError> {
    let rows = ViewRows::read(&stored)?;
    let views = rows.views();
    let prefix = |generation: &Generation| {
        rows.kept
            .iter()
            .find(|view| view.record.generation == *generation)
            .map(lists::KeptView::prefix)
            .unwrap_or_default()
    };
    report.views = rows.kept.len() as u64;
    let counters = stored.counters().clone();
    let run = Run {
        stored,
        gaps: BTreeMap::new(),
        subject,
        options,
        progress,
        prefixes: views.kept.iter().map(prefix).collect(),
        totals: Totals::new(views.live() + 1),
        views,
        leaving: rows.leaving,
        half_restored: counters.restoring != Generation(0),
        pending: Vec::new(),
        last_omitted: false,
        report,
        tree: Tree::default(),
        orphans: Vec::new(),
        existing_orphans: BTreeSet::new(),
        garbage: BTreeMap::new(),
        malformed: 0,
        last_position: None,
        undecodable_extents: false,
        pages_to_verify: 0,
    };
    run.all(&rows, &counters)
}

impl Run<'_> {
    fn all(
        mut self,
        rows: &ViewRows,
        counters: &crate::meta::records::Counters,
    ) -> Result<Outcome, CheckError> {
        if self.half_restored {
            let message = "a restore from a snapshot is under way, which the next mount continues";
            let finding = Finding::new(Kind::HalfRestored, message);
            self.report(finding, PathHint::None, 0..0);
        }
        self.read_orphans()?;
        self.read_garbage()?;
        self.check_root()?;
        self.check_inodes()?;
        self.check_tree()?;
        self.check_orphan_rows();
        self.check_views(rows);
        self.check_counters(counters);
        self.check_changes()?;
        self.check_trims()?;
        if self.subject.has_objects {
            self.check_objects()?;
        }
        if self.malformed > 0 {
            let message = format!("{} keys are malformed", self.malformed);
            self.report(Finding::new(Kind::Record, message), PathHint::None, 0..0);
        }
        self.drop_unfounded_findings();
        if self.options.contents {
            self.check_contents()?;
            self.check_checkpoints()?;
        }
        self.find_paths()?;
        self.report_gaps();
        let mut repairs = Vec::new();
        for pending in self.pending {
            self.report.findings.push(pending.finding);
            repairs.extend(pending.repair);
        }
        Ok(Outcome {
            report: self.report,
            repairs,
        })
    }

    /// If rows could not be read, drops the findings that their absence may have caused.
    fn drop_unfounded_findings(&mut self) {
        if !self.stored.gaps().is_empty() {
            self.pending
                .retain(|pending| pending.finding.kind == Kind::Record);
            self.report.omitted = 0;
            self.report.omitted_faults = 0;
            let message =
                "some records cannot be read, so the others are not compared with each other";
            self.report(
                Finding::new(Kind::NotCompared, message),
                PathHint::None,
                0..0,
            );
        }
    }

    /// Reports unreadable pages of the metadata.
    fn report_gaps(&mut self) {
        self.gaps.append(&mut self.stored.gaps());
        for (page, reason) in std::mem::take(&mut self.gaps) {
            let pages = page.map(|page| page..page + 1).into_iter().collect();
            let finding = Finding::new(Kind::Metadata, reason);
            self.report.findings.push(Finding { pages, ..finding });
        }
    }

    fn live_only(&self) -> ViewRange {
        self.views.live()..self.views.live() + 1
    }

    fn check_cancelled(&self) -> Result<(), CheckError> {
        if self.progress.cancelled() {
            Err(CheckError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn name_hash(&self, name: &[u8]) -> u32 {
        keys::name_hash(&self.stored.counters().hash_key, name)
    }

    /// Adds a finding that concerns these views.
    fn report(&mut self, finding: Finding, path_hint: PathHint, seen_by: ViewRange) {
        self.last_omitted = true;
        // Only a part of the live view has been restored.
        let is_expected = self.half_restored && seen_by == self.live_only();
        if is_expected && finding.severity > Severity::Note {
            return;
        }
        if self.pending.len() >= FINDINGS_MAX {
            self.report.omitted += 1;
            self.report.omitted_faults += u64::from(finding.severity > Severity::Note);
            return;
        }
        self.last_omitted = false;
        self.pending.push(Pending {
            finding,
            path_hint,
            seen_by,
            repair: None,
        });
    }

    /// Sets the action that would repair the last finding.
    fn set_repair(&mut self, repair: Option<RepairAction>) {
        if let Some(last) = self.pending.last_mut().filter(|_| !self.last_omitted) {
            last.repair = repair;
        }
    }

    /// Reports a record of an inode that cannot be decoded.
    fn report_undecodable(&mut self, table: Table, group: &Group, version: &Version, ino: Ino) {
        self.undecodable_extents |= table == Table::Extent;
        let message = format!(
            "a record of the table {} and generation {} cannot be read (key {})",
            table.name(),
            version.generation,
            hex::encode(&group.logical)
        );
        let finding = Finding::new(Kind::Record, message).inode(ino);
        self.report(finding, PathHint::Inode(ino), version.seen_by.clone());
    }
}

//! Checking a volume: everything that its metadata say is compared with everything else that they
//! say, and every page that they name is read and verified.
//!
//! | file | what is compared |
//! |---|---|
//! | `stream` | nothing: tables as streams of keys with all their versions, and who sees which |
//! | `names`, `inodes` | names, link counts, sizes, pages, attributes, in all views at once |
//! | `tree` | directories are below the root |
//! | `history` | versions that nobody needs, notes of changes |
//! | `lists` | counters, kept views, orphans, garbage |
//! | `objects` | objects that are named with those that there are |
//! | `contents` | pages of objects, on the disk |
//! | `checkpoints` | nothing: whether the copies of the metadata could be used |
//! | `paths` | nothing: where what was found is |
//! | `repair` | nothing: mends what can be mended without losing anything |
//!
//! What is read is one commit, by a use of the database of its own ([`Stored`]): past every cache,
//! and without a byte being written. A volume in use goes on being used meanwhile. Its newest commit
//! is checked, and what of that commit's contents was given back since is looked at again before it
//! is told ([`Live`]).
//!
//! Memory is bounded: 24 bytes for each name and 40 for each object up to
//! [`CheckOptions::memory_bytes`], beyond which the tables are read more than once; 32 bytes for each
//! version of a directory; and what was found, up to [`FINDINGS_MAX`].

mod checkpoints;
mod contents;
mod history;
mod inodes;
mod lists;
mod names;
mod objects;
mod paths;
mod repair;
pub mod report;
mod stream;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
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
use stream::{Group, Version, Views};
use tree::Tree;

/// Most findings of one check that are told one by one.
pub const FINDINGS_MAX: usize = 10_000;

/// Cache of the database, in bytes: inner pages of the tables.
const CACHE_BYTES: usize = 16 << 20;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Threads that verify contents; 0 for as many as there are CPUs, and at most four for each.
    pub jobs: usize,
    /// Verify contents too, which takes as long as reading them.
    pub contents: bool,
    /// Memory for names and objects that are compared, in bytes.
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
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        match self.jobs {
            0 => all,
            jobs => jobs.min(4 * all),
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The metadata are read and compared.
    Metadata,
    /// Contents are verified.
    Contents,
}

/// Who is told how far it is.
pub trait CheckProgress: Sync {
    /// A stage begins, of so many bytes where that is known.
    fn begin(&self, _stage: Stage, _total_bytes: Option<u64>) {}
    /// So many bytes more are done.
    fn advance(&self, _bytes: u64) {}
    /// True when it is to end.
    fn cancelled(&self) -> bool {
        false
    }
}

/// For those who do not want to know.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl CheckProgress for Unwatched {}

/// Why a check did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It was told to end.
    #[error("cancelled")]
    Cancelled,
    /// The metadata could not be read any more, though they were opened.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The contents could not be looked at.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] std::io::Error),
    /// What was repaired is on disk, and the platform keystore does not know it.
    #[error("what was done is on disk, but the platform keystore could not be told of it: {0}")]
    NotRemembered(#[source] KeyError),
    /// This program is at fault.
    #[error("a fault of this program")]
    Fault,
}

/// A volume in use.
pub trait Live: Sync {
    /// The first folder of objects that this use has made, or may have.
    fn first_folder(&self) -> FolderNumber;
    /// The newest commit.
    ///
    /// # Errors
    /// The metadata could not be read.
    fn stored(&self) -> Result<Stored, MetaError>;
    /// Looks again at pages that seemed wrong: what of them should be there now, and is not.
    ///
    /// # Errors
    /// The metadata could not be read.
    fn verify_again(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        id: PartId,
        pages: &PageSet,
    ) -> Result<Vec<Fault>, ObjectError>;
}

/// What is checked.
pub struct Subject<'a> {
    /// The objects, past those that are open.
    pub objects: Objects,
    /// They are to be there.
    pub has_objects: bool,
    /// The volume in use, if it is.
    pub live: Option<&'a dyn Live>,
}

/// What would mend what was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mend {
    /// The number of links.
    Links {
        ino: u64,
        nlink: u32,
        seen: Range<usize>,
    },
    /// The number of pages.
    Pages {
        ino: u64,
        pages: u64,
        seen: Range<usize>,
    },
    /// The size that covers what there is.
    Size {
        ino: u64,
        at_least: u64,
        seen: Range<usize>,
    },
    /// The directory that a directory is in.
    Parent {
        ino: u64,
        parent: u64,
        seen: Range<usize>,
    },
    /// A name in `lost+found`.
    Name { ino: u64 },
    /// Names that lead to an inode go.
    NamesOf { ino: u64, seen: Range<usize> },
    /// Names in a directory that is none go.
    NamesIn { ino: u64, seen: Range<usize> },
    /// Names say this kind.
    KindOf {
        ino: u64,
        kind: FileKind,
        seen: Range<usize>,
    },
    /// All names of a directory but one go.
    OneName {
        ino: u64,
        parent: u64,
        seen: Range<usize>,
    },
    /// A directory leaves its circle.
    Detach { ino: u64 },
    /// An inode for contents that have none.
    Remake {
        ino: u64,
        size: u64,
        seen: Range<usize>,
    },
    /// Attributes go.
    AttributesOf { ino: u64, seen: Range<usize> },
    /// New inodes begin here at least.
    NextInode(u64),
    /// New rows of `garbage` begin here at least.
    NextGarbage(u64),
    /// The live generation is this one at least.
    Generation(Generation),
    /// An inode is not to be removed.
    ForgetOrphan(u64),
    /// A row of an unversioned table.
    Row(Table, Vec<u8>, Option<Vec<u8>>),
    /// A name goes where it is looked for.
    Rehash(Vec<u8>),
    /// Versions that nobody needs go.
    Prune(Table, Vec<u8>),
    /// What the volume counts.
    UsedPages(u64),
    /// Bytes that records take.
    RecordBytes(u64),
    /// The same.
    Inodes(u64),
    /// An object goes.
    Unlink(ObjectName),
}

/// Where to look for paths.
#[derive(Clone, Debug)]
enum Place {
    None,
    Inode(u64),
    Entry { parent: u64, name: Vec<u8> },
}

/// A finding whose paths are not known yet.
#[derive(Debug)]
struct Pending {
    finding: Finding,
    place: Place,
    seen: Range<usize>,
    mend: Option<Mend>,
}

/// A check under way.
struct Run<'a> {
    stored: Arc<Stored>,
    /// Of metadata that were read before.
    gaps: BTreeMap<Option<u64>, String>,
    subject: &'a Subject<'a>,
    options: &'a CheckOptions,
    progress: &'a dyn CheckProgress,
    views: Views,
    /// How paths in kept views begin.
    prefixes: Vec<Vec<u8>>,
    /// Views are being dropped.
    leaving: bool,
    /// What the live view says counts for nothing: it is being taken back.
    half_restored: bool,
    pending: Vec<Pending>,
    dropped: bool,
    report: Report,
    totals: Totals,
    tree: Tree,
    orphans: Vec<u64>,
    orphans_met: BTreeSet<u64>,
    garbage: BTreeMap<ObjectName, Vec<u8>>,
    /// Keys that are none.
    malformed: u64,
    /// The last place of a name that was met, by whom there is a name in it.
    last_place: Option<(u64, u32, Vec<Range<usize>>)>,
    undecodable_extents: bool,
    pages_to_verify: u64,
}

/// What a check came to.
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) mends: Vec<Mend>,
}

/// Checks a volume that nobody uses: who calls has it open and no filesystem on it. Nothing is
/// written.
///
/// # Errors
/// It was cancelled, or the backing store failed. What is wrong with the volume is no error.
pub fn check(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
) -> Result<Report, CheckError> {
    Ok(run_offline(volume, options, progress)?.report)
}

/// Compares the metadata of a volume that is being made, from elsewhere, with itself and with the
/// objects that are there. Contents are not read.
///
/// # Errors
/// The metadata or the store could not be read. What is wrong is no error.
pub fn compare(fresh: &FreshVolume) -> Result<Report, CheckError> {
    let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(Arc::clone(&fresh.store)));
    let file = store.open(&StorePath::new(META_NAME), OpenMode::Read)?;
    let file = MetaFile::open(file, fresh.keys.active(), fresh.meta_crypto);
    let file = file.map_err(MetaError::from)?;
    let objects = Objects::new(store, Arc::clone(&fresh.keys), 1);
    compare_with(file, objects, true)
}

/// Compares metadata whose objects are not there yet with itself.
///
/// # Errors
/// As of [`compare`].
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
    let outcome = run(Arc::new(stored), &subject, &options, &Unwatched, report)?;
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
            mends: Vec::new(),
        }),
    }
}

/// Opens the metadata; or says why they cannot be read.
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
            return unreadable(report, &"it is not there", Vec::new());
        }
        other => other?,
    };
    report.bytes = file.len()?;
    let file = match MetaFile::open(file, volume.keys.active(), volume.header.meta_crypto()) {
        Err(SealedError::Io(error)) => return Err(error.into()),
        Err(error) => return unreadable(report, &error, vec![Range { start: 0, end: 1 }]),
        Ok(file) => Arc::new(file),
    };
    // A copy is as old as it is.
    if let Err(older) = volume.check_rollback(&file.slots())
        && !volume.is_copy()
    {
        report
            .findings
            .push(Finding::new(Kind::RolledBack, older.to_string()));
    }
    let newest = file.slots().iter().map(|slot| slot.sequence).max();
    let ahead = checkpoint::newest(store, volume.keys.active())?;
    let ahead = ahead.map(|(checkpoint, _)| checkpoint);
    if let Some(ahead) = ahead.filter(|it| Some(it.sequence) > newest) {
        let (known, found) = (ahead.sequence.0, newest.unwrap_or_default().0);
        let message = format!(
            "its metadata are of commit {found}, and there is a checkpoint of commit {known}"
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
    match verify_database(file, CACHE_BYTES, cancelled) {
        Ok(true) => {}
        Ok(false) if !stored.counters().clean => {}
        Ok(false) => {
            let message = "its record of free pages is off, and is made anew by the next recovery";
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
            let message = format!("the {name} place of its page 0 does not open");
            let mut finding = Finding::new(Kind::MetadataSlot, message);
            if !is_clean {
                finding.severity = Severity::Note;
            }
            report.findings.push(finding);
        }
    }
}

/// Checks what was opened.
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
        let found = rows
            .kept
            .iter()
            .find(|view| view.record.generation == *generation);
        found.map(lists::KeptView::prefix).unwrap_or_default()
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
        dropped: false,
        report,
        tree: Tree::default(),
        orphans: Vec::new(),
        orphans_met: BTreeSet::new(),
        garbage: BTreeMap::new(),
        malformed: 0,
        last_place: None,
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
            let message = "it is being taken back to a snapshot, which the next mount goes on with";
            let finding = Finding::new(Kind::HalfRestored, message);
            self.found(finding, Place::None, 0..0);
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
            let message = format!("{} keys are not those of records", self.malformed);
            self.found(Finding::new(Kind::Record, message), Place::None, 0..0);
        }
        self.leave_out_what_is_guessed();
        if self.options.contents {
            self.check_contents()?;
            self.check_checkpoints()?;
        }
        self.find_paths()?;
        self.tell_gaps();
        let mut mends = Vec::new();
        for pending in self.pending {
            self.report.findings.push(pending.finding);
            mends.extend(pending.mend);
        }
        Ok(Outcome {
            report: self.report,
            mends,
        })
    }

    /// Where rows could not be read, what follows from their absence says nothing.
    fn leave_out_what_is_guessed(&mut self) {
        if !self.stored.gaps().is_empty() {
            self.pending
                .retain(|pending| pending.finding.kind == Kind::Record);
            self.report.omitted = 0;
            self.report.omitted_faults = 0;
            let message =
                "some records cannot be read: the others are not compared with each other";
            self.found(Finding::new(Kind::NotCompared, message), Place::None, 0..0);
        }
    }

    /// Pages of the metadata that were met and do not count.
    fn tell_gaps(&mut self) {
        self.gaps.append(&mut self.stored.gaps());
        for (page, reason) in std::mem::take(&mut self.gaps) {
            let pages = page.map(|page| page..page + 1).into_iter().collect();
            let finding = Finding::new(Kind::Metadata, reason);
            self.report.findings.push(Finding { pages, ..finding });
        }
    }

    fn live_only(&self) -> Range<usize> {
        self.views.live()..self.views.live() + 1
    }

    fn go_on(&self) -> Result<(), CheckError> {
        if self.progress.cancelled() {
            Err(CheckError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn name_hash(&self, name: &[u8]) -> u32 {
        keys::name_hash(&self.stored.counters().hash_key, name)
    }

    /// Takes note of something about what these views see.
    fn found(&mut self, finding: Finding, place: Place, seen: Range<usize>) {
        self.dropped = true;
        // Half of it is as it was and half as it will be.
        let of_half = self.half_restored && seen == self.live_only();
        if of_half && finding.severity > Severity::Note {
            return;
        }
        if self.pending.len() >= FINDINGS_MAX {
            self.report.omitted += 1;
            self.report.omitted_faults += u64::from(finding.severity > Severity::Note);
            return;
        }
        self.dropped = false;
        self.pending.push(Pending {
            finding,
            place,
            seen,
            mend: None,
        });
    }

    /// What would mend what was found last.
    fn mend(&mut self, mend: Option<Mend>) {
        if let Some(last) = self.pending.last_mut().filter(|_| !self.dropped) {
            last.mend = mend;
        }
    }

    /// A record that this version did not write, of an inode.
    fn undecodable(&mut self, table: Table, group: &Group, version: &Version, ino: Ino) {
        self.undecodable_extents |= table == Table::Extent;
        let message = format!(
            "a record of the table {} and generation {} cannot be read (key {})",
            table.name(),
            version.generation,
            hex::encode(&group.logical)
        );
        let finding = Finding::new(Kind::Record, message).inode(ino.0);
        self.found(finding, Place::Inode(ino.0), version.seen.clone());
    }
}

//! Mending what can be mended without losing anything.
//!
//! Each round checks the metadata, changes what the findings ask for, and commits that, all of it or
//! nothing; what follows from a change (how often something is linked, what is counted) is found by
//! the next round. A power cut leaves what the rounds before it made of the volume, or the next one
//! too. What is true when nothing more can be done is what counts as mended.
//!
//! Nothing is guessed: pages that do not open stay as they are, and records that cannot be read;
//! and while some of the metadata cannot be read, nothing is changed at all. What has lost its name
//! gets one in `lost+found`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::names::named;
use super::report::{Finding, Kind, Report};
use super::stream::{Group, Groups, Version, Views};
use super::{
    CheckError, CheckOptions, CheckProgress, Mend, Outcome, Subject, lists::ViewRows, run,
    run_offline,
};
use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Table, VersionedKey};
use crate::meta::records::{DirentRecord, FileKind, InodeRecord, ObjectName, TOMBSTONE, Timespec};
use crate::meta::repair::Corrections;
use crate::meta::stored::Stored;
use crate::meta::{Batch, Meta, View};
use crate::object::{Contents, Objects};
use crate::sealed::MetaFile;
use crate::store::{OpenMode, StorePath};
use crate::volume::{META_NAME, Volume};

/// Rounds after which it is given up: what is left then does not get less.
const ROUNDS: usize = 16;
/// The directory in the root for what has lost its name.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Memory for the objects that are open meanwhile.
const OPEN_OBJECTS: usize = 16;

/// Checks a volume that nobody uses, and mends what can be mended. Who calls has it open for
/// writing and no filesystem on it.
///
/// # Errors
/// As [`super::check`], or a change could not be made durable; those of earlier rounds are then.
pub fn repair(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
) -> Result<Report, CheckError> {
    let first = run_offline(volume, options, progress)?;
    let unsure = |finding: &Finding| {
        matches!(
            finding.kind,
            Kind::Metadata | Kind::RolledBack | Kind::HalfRestored
        )
    };
    if first.mends.is_empty() || first.report.findings.iter().any(unsure) {
        return Ok(first.report);
    }
    let mending = Mending::open(volume)?;
    let before = first.report;
    let mut mends = first.mends;
    let mut after = before.clone();
    for _ in 0..ROUNDS {
        if mends.is_empty() {
            break;
        }
        mending.round(&mends)?;
        let outcome = mending.check(options, progress)?;
        after = outcome.report;
        if outcome.mends == mends {
            break;
        }
        mends = outcome.mends;
    }
    mending.close()?;
    Ok(merged(before, after))
}

/// The first report, with what was found at the end.
fn merged(mut before: Report, after: Report) -> Report {
    let of_contents = |kind: Kind| {
        matches!(
            kind,
            Kind::ObjectMissing
                | Kind::ObjectShort
                | Kind::PageDamaged
                | Kind::KeySetMissing
                | Kind::Unreadable
                | Kind::Checkpoint
                | Kind::Metadata
                | Kind::MetadataSlot
                | Kind::MetadataSpace
                | Kind::Unclean
        )
    };
    let same = |one: &Finding, other: &Finding| {
        (one.kind, one.ino, one.object) == (other.kind, other.ino, other.object)
            && (one.ino.is_some() || one.object.is_some() || one.message == other.message)
    };
    for finding in &mut before.findings {
        let stays = after.findings.iter().any(|other| same(finding, other));
        finding.repaired = !stays && !of_contents(finding.kind);
    }
    let is_new = |finding: &Finding| !before.findings.iter().any(|other| same(finding, other));
    let new: Vec<Finding> = after.findings.into_iter().filter(is_new).collect();
    before.findings.extend(new);
    before.omitted = after.omitted;
    before.omitted_faults = after.omitted_faults;
    before.inodes = after.inodes;
    before.used_pages = after.used_pages;
    before.record_bytes = after.record_bytes;
    before.objects = after.objects;
    before
}

/// A volume that is being mended.
struct Mending<'a> {
    volume: &'a Volume,
    meta: Arc<Meta>,
    contents: Contents,
    was_clean: bool,
}

/// The directory that a name is in, its key, and who sees it.
type NameIn = (u64, Vec<u8>, Range<usize>);

/// What is to become of a name.
enum NameChange {
    Remove,
    Kind(FileKind),
}

impl<'a> Mending<'a> {
    fn open(volume: &'a Volume) -> Result<Self, CheckError> {
        let file = volume
            .store
            .open(&StorePath::new(META_NAME), OpenMode::ReadWrite)?;
        let file = MetaFile::open(file, volume.keys.active(), volume.header.meta_crypto());
        let meta = Arc::new(Meta::open_for_repair(
            file.map_err(std::io::Error::from)?,
            16 << 20,
        )?);
        let was_clean = meta.counters().clean;
        if !was_clean {
            // After the end of a process alone, what it wrote may be in the kernel's memory only.
            volume.store.sync_all()?;
        }
        let contents = Contents::new(
            Arc::clone(&meta),
            Arc::clone(&volume.store),
            Arc::clone(&volume.keys),
            OPEN_OBJECTS,
        );
        Ok(Self {
            volume,
            meta,
            contents,
            was_clean,
        })
    }

    fn commit(&self) -> Result<(), CheckError> {
        self.meta.commit(self.meta.newest_batch(), &|| true)?;
        Ok(())
    }

    fn remember(&self, clean: bool) -> Result<(), CheckError> {
        let (newest, tags) = self.meta.file().durable();
        self.volume
            .remember(newest, tags, clean)
            .map_err(CheckError::NotRemembered)
    }

    fn close(self) -> Result<(), CheckError> {
        self.contents.objects().sync_unlinked()?;
        self.meta.set_clean(self.was_clean);
        self.commit()?;
        self.meta.close()?;
        self.remember(self.was_clean)
    }

    fn check(
        &self,
        options: &CheckOptions,
        progress: &dyn CheckProgress,
    ) -> Result<Outcome, CheckError> {
        let options = CheckOptions {
            contents: false,
            ..*options
        };
        let subject = Subject {
            objects: Objects::new(
                Arc::clone(&self.volume.store),
                Arc::clone(&self.volume.keys),
                1,
            ),
            has_objects: true,
            live: None,
        };
        let stored = Arc::new(self.meta.stored()?);
        run(stored, &subject, &options, progress, Report::default())
    }

    /// Does what was asked for, in one commit.
    fn round(&self, mends: &[Mend]) -> Result<(), CheckError> {
        let stored = Arc::new(self.meta.stored()?);
        let views = ViewRows::read(&stored)?.views();
        // Numbers that are given out must be right before any is.
        let is_number = |mend: &&Mend| {
            matches!(
                mend,
                Mend::NextInode(_) | Mend::NextGarbage(_) | Mend::Generation(_)
            )
        };
        for mend in mends.iter().filter(is_number) {
            self.meta.correct(&correction(mend));
        }
        self.change_names(&stored, &views, mends)?;
        let mut unlink = Vec::new();
        for mend in mends {
            self.one(&views, mend, &mut unlink)?;
        }
        drop(stored);
        self.meta.set_clean(false);
        self.commit()?;
        if let Err(error) = self.remember(false) {
            // The end of it says so too, if it is so then.
            tracing::warn!(%error, "while the volume is repaired");
        }
        // Only what was not named before the commit either.
        for name in unlink {
            self.contents.objects().unlink(name)?;
        }
        self.contents.collect()?;
        self.commit()
    }

    fn one(
        &self,
        views: &Views,
        mend: &Mend,
        unlink: &mut Vec<ObjectName>,
    ) -> Result<(), CheckError> {
        let inode = |ino: &u64, seen: &Range<usize>, change: &dyn Fn(&mut InodeRecord)| {
            self.amend_inode(views, Ino(*ino), seen, change)
        };
        let mut batch = Batch::new();
        match mend {
            Mend::Links { ino, nlink, seen } => inode(ino, seen, &|inode| inode.nlink = *nlink)?,
            Mend::Pages { ino, pages, seen } => inode(ino, seen, &|inode| inode.pages = *pages)?,
            Mend::Parent { ino, parent, seen } => {
                inode(ino, seen, &|inode| inode.parent = Ino(*parent))?;
            }
            Mend::Size {
                ino,
                at_least,
                seen,
            } => inode(ino, seen, &|inode| inode.size = inode.size.max(*at_least))?,
            Mend::Name { ino } | Mend::Detach { ino } => self.give_name(Ino(*ino))?,
            Mend::Remake { ino, size, seen } if seen.contains(&views.live()) => {
                let record = lost(FileKind::Regular, *size);
                self.meta.put_inode(&mut batch, Ino(*ino), &record)?;
            }
            Mend::AttributesOf { ino, seen } => self.remove_attributes(views, *ino, seen)?,
            Mend::ForgetOrphan(ino) => self.meta.put_orphan(&mut batch, Ino(*ino), false),
            Mend::Row(table, key, value) => {
                let value = value.clone();
                self.meta.set_row(&mut batch, *table, key.clone(), value);
            }
            Mend::Prune(table, logical) => {
                self.meta.prune(&mut batch, *table, logical)?;
            }
            Mend::Rehash(logical) => self.rehash(&mut batch, logical)?,
            Mend::Unlink(name) => unlink.push(*name),
            Mend::UsedPages(_)
            | Mend::RecordBytes(_)
            | Mend::Inodes(_)
            | Mend::NextInode(_)
            | Mend::NextGarbage(_)
            | Mend::Generation(_) => {
                self.meta.correct(&correction(mend));
            }
            Mend::Remake { .. }
            | Mend::NamesOf { .. }
            | Mend::NamesIn { .. }
            | Mend::KindOf { .. }
            | Mend::OneName { .. } => {}
        }
        if !batch.is_empty() {
            self.meta.apply(batch)?;
        }
        Ok(())
    }

    /// The versions of a key with who sees them.
    fn versions(
        &self,
        views: &Views,
        table: Table,
        logical: &[u8],
    ) -> Result<Vec<Version>, CheckError> {
        let versions = self.meta.versions(table, logical)?.into_iter();
        let mut versions: Vec<Version> = versions
            .map(|(generation, value)| Version {
                generation,
                value: (value != TOMBSTONE).then_some(value),
                seen: 0..0,
            })
            .collect();
        Group::see(&mut versions, views);
        Ok(versions)
    }

    /// Changes what these views see of a key: a version that others see too gets a newer one on top,
    /// for the live view; for kept ones alone it stays as it is. `None` removes it.
    fn amend(
        &self,
        views: &Views,
        (table, logical): (Table, &[u8]),
        seen: &Range<usize>,
        change: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), CheckError> {
        let mut batch = Batch::new();
        let versions = self.versions(views, table, logical)?;
        let mut below = false;
        for version in &versions {
            let covered = below;
            below = version.value.is_some();
            let Some(value) = &version.value else {
                continue;
            };
            let within = !version.seen.is_empty()
                && seen.start <= version.seen.start
                && version.seen.end <= seen.end;
            let live = version.seen.contains(&views.live()) && seen.contains(&views.live());
            let changed = change(value);
            if within {
                let value = changed.or_else(|| covered.then(|| TOMBSTONE.to_vec()));
                let version = VersionedKey {
                    logical,
                    generation: version.generation,
                };
                self.meta.set_version(&mut batch, table, version, value);
            } else if live {
                self.meta.put_record(&mut batch, table, logical, changed)?;
            }
        }
        self.meta.apply(batch)?;
        Ok(())
    }

    fn amend_inode(
        &self,
        views: &Views,
        ino: Ino,
        seen: &Range<usize>,
        change: &dyn Fn(&mut InodeRecord),
    ) -> Result<(), CheckError> {
        let key = keys::inode(ino);
        self.amend(views, (Table::Inode, &key), seen, &|value| {
            let Some(mut record) = InodeRecord::decode(value) else {
                return Some(value.to_vec());
            };
            change(&mut record);
            Some(record.encode())
        })
    }

    /// Changes all names that lead where they should not, in one reading.
    fn change_names(
        &self,
        stored: &Arc<Stored>,
        views: &Views,
        mends: &[Mend],
    ) -> Result<(), CheckError> {
        let wanted = Wanted::of(mends, views);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut several: BTreeMap<u64, Vec<NameIn>> = BTreeMap::new();
        let mut groups = Groups::new(stored, views, Table::Dirent, Vec::new());
        while let Some(group) = groups.next()? {
            let Some(named) = named(&group.logical) else {
                continue;
            };
            for (version, value) in group.present() {
                let Some(entry) = DirentRecord::decode(value) else {
                    continue;
                };
                if wanted.one.contains_key(&entry.ino.0) {
                    let one = (named.parent, group.logical.clone(), version.seen.clone());
                    several.entry(entry.ino.0).or_default().push(one);
                }
                if let Some((seen, change)) = wanted.change_of(named.parent, entry.ino.0, version) {
                    self.change_name(views, &group.logical, &seen, &change)?;
                }
            }
        }
        for (ino, names) in several {
            let Some((parent, seen)) = wanted.one.get(&ino) else {
                continue;
            };
            let seen_names = names.iter().filter(|(_, _, by)| by.contains(&views.live()));
            let keep = seen_names
                .clone()
                .find(|(at, _, _)| at == parent)
                .or_else(|| seen_names.clone().next())
                .filter(|_| ino != Ino::ROOT.0)
                .map(|(_, logical, _)| logical.clone());
            for (_, logical, _) in seen_names.filter(|(_, l, _)| Some(l) != keep.as_ref()) {
                self.change_name(views, logical, seen, &NameChange::Remove)?;
            }
        }
        Ok(())
    }

    fn change_name(
        &self,
        views: &Views,
        logical: &[u8],
        seen: &Range<usize>,
        change: &NameChange,
    ) -> Result<(), CheckError> {
        self.amend(
            views,
            (Table::Dirent, logical),
            seen,
            &|value| match change {
                NameChange::Remove => None,
                NameChange::Kind(kind) => DirentRecord::decode(value).map(|entry| {
                    let kind = *kind;
                    DirentRecord { kind, ..entry }.encode()
                }),
            },
        )
    }

    /// Puts all versions of a name where it is looked for and no other name is, unless it is there too.
    fn rehash(&self, batch: &mut Batch, logical: &[u8]) -> Result<(), CheckError> {
        let Some(named) = named(logical) else {
            return Ok(());
        };
        let parent = Ino(named.parent);
        let hash = self.meta.name_hash(named.name);
        let mut free = None;
        for position in hash..hash + keys::PROBE_LIMIT {
            let right = keys::dirent(parent, position, named.name);
            if right != logical && !self.meta.versions(Table::Dirent, &right)?.is_empty() {
                return Ok(());
            }
            if free.is_none() && self.meta.is_position_free(parent, position)? {
                free = Some(right);
            }
        }
        let Some(right) = free else {
            return Ok(());
        };
        for (generation, value) in self.meta.versions(Table::Dirent, logical)? {
            for (logical, value) in [(&right[..], Some(value)), (logical, None)] {
                let version = VersionedKey {
                    logical,
                    generation,
                };
                self.meta.set_version(batch, Table::Dirent, version, value);
            }
        }
        Ok(())
    }

    fn remove_attributes(
        &self,
        views: &Views,
        ino: u64,
        seen: &Range<usize>,
    ) -> Result<(), CheckError> {
        for name in self.meta.xattr_names(Ino(ino), View::LIVE)? {
            let key = keys::xattr(Ino(ino), &name);
            self.amend(views, (Table::Xattr, &key), seen, &|_| None)?;
        }
        Ok(())
    }

    /// Gives an inode a name in `lost+found`.
    fn give_name(&self, ino: Ino) -> Result<(), CheckError> {
        let Some(mut record) = self.meta.inode(ino, View::LIVE)? else {
            return Ok(());
        };
        let Some(lost_and_found) = self.lost_and_found()? else {
            return Ok(());
        };
        let mut batch = Batch::new();
        if record.kind == FileKind::Directory {
            record.parent = lost_and_found;
            record.nlink = record.nlink.max(2);
        } else {
            record.nlink = record.nlink.max(1);
        }
        self.meta.put_inode(&mut batch, ino, &record)?;
        let entry = DirentRecord {
            ino,
            kind: record.kind,
        };
        let name = self.free_name(lost_and_found, &format!("#{}", ino.0))?;
        self.meta
            .put_dirent(&mut batch, lost_and_found, &name, Some(entry))?;
        self.meta.apply(batch)?;
        Ok(())
    }

    fn free_name(&self, directory: Ino, name: &str) -> Result<Vec<u8>, CheckError> {
        let mut free = name.to_owned();
        let mut number = 1;
        while self
            .meta
            .dirent(directory, free.as_bytes(), View::LIVE)?
            .is_some()
        {
            free = format!("{name}.{number}");
            number += 1;
        }
        Ok(free.into_bytes())
    }

    /// The directory for what has lost its name, made where there is none. `None` without a root.
    fn lost_and_found(&self) -> Result<Option<Ino>, CheckError> {
        let Some(root) = self.meta.inode(Ino::ROOT, View::LIVE)? else {
            return Ok(None);
        };
        if let Some(entry) = self.meta.dirent(Ino::ROOT, LOST_AND_FOUND, View::LIVE)?
            && let Some(found) = self.meta.inode(entry.ino, View::LIVE)?
            && found.kind == FileKind::Directory
        {
            return Ok(Some(entry.ino));
        }
        let name = self.free_name(Ino::ROOT, "lost+found")?;
        let ino = self.meta.allocate_ino()?;
        let mut batch = Batch::new();
        let record = InodeRecord {
            perm: 0o700,
            nlink: 2,
            parent: Ino::ROOT,
            ..lost(FileKind::Directory, 0)
        };
        self.meta.put_inode(&mut batch, ino, &record)?;
        let root = InodeRecord {
            nlink: root.nlink.saturating_add(1),
            ..root
        };
        self.meta.put_inode(&mut batch, Ino::ROOT, &root)?;
        let kind = FileKind::Directory;
        let entry = DirentRecord { ino, kind };
        self.meta
            .put_dirent(&mut batch, Ino::ROOT, &name, Some(entry))?;
        batch.inodes += 1;
        self.meta.apply(batch)?;
        Ok(Some(ino))
    }
}

/// An inode that was made for what was found, for root alone.
fn lost(kind: FileKind, size: u64) -> InodeRecord {
    InodeRecord {
        size,
        ..InodeRecord::new(kind, 0o600, Timespec::now())
    }
}

fn correction(mend: &Mend) -> Corrections {
    let mut to = Corrections::default();
    match mend {
        Mend::UsedPages(pages) => to.used_pages = Some(*pages),
        Mend::RecordBytes(bytes) => to.record_bytes = Some(*bytes),
        Mend::Inodes(inodes) => to.inodes = Some(*inodes),
        Mend::NextInode(ino) => to.next_ino = Some(Ino(*ino)),
        Mend::NextGarbage(number) => to.next_garbage = Some(*number),
        Mend::Generation(generation) => to.generation = Some(Generation(generation.0)),
        _ => {}
    }
    to
}

/// What is to become of names, by what they lead to and what they are in.
struct Wanted {
    of: BTreeMap<u64, Range<usize>>,
    within: BTreeMap<u64, Range<usize>>,
    kind: BTreeMap<u64, (FileKind, Range<usize>)>,
    /// Directories that keep one name, the one in that directory if there is one.
    one: BTreeMap<u64, (u64, Range<usize>)>,
}

impl Wanted {
    fn of(mends: &[Mend], views: &Views) -> Self {
        let mut this = Self {
            of: BTreeMap::new(),
            within: BTreeMap::new(),
            kind: BTreeMap::new(),
            one: BTreeMap::new(),
        };
        let live = views.live()..views.live() + 1;
        for mend in mends {
            match mend.clone() {
                Mend::NamesOf { ino, seen } => drop(this.of.insert(ino, seen)),
                Mend::Detach { ino } => drop(this.of.insert(ino, live.clone())),
                Mend::NamesIn { ino, seen } => drop(this.within.insert(ino, seen)),
                Mend::KindOf { ino, kind, seen } => drop(this.kind.insert(ino, (kind, seen))),
                Mend::OneName { ino, parent, seen } if seen.contains(&views.live()) => {
                    this.one.insert(ino, (parent, seen));
                }
                _ => {}
            }
        }
        this
    }

    fn is_empty(&self) -> bool {
        self.of.is_empty() && self.within.is_empty() && self.kind.is_empty() && self.one.is_empty()
    }

    fn change_of(
        &self,
        parent: u64,
        ino: u64,
        version: &Version,
    ) -> Option<(Range<usize>, NameChange)> {
        let meets = |seen: &Range<usize>| {
            seen.start.max(version.seen.start) < seen.end.min(version.seen.end)
        };
        let gone = self.of.get(&ino).filter(|seen| meets(seen));
        let gone = gone.or_else(|| self.within.get(&parent).filter(|seen| meets(seen)));
        if let Some(seen) = gone {
            return Some((seen.clone(), NameChange::Remove));
        }
        let (kind, seen) = self.kind.get(&ino).filter(|(_, seen)| meets(seen))?;
        Some((seen.clone(), NameChange::Kind(*kind)))
    }
}

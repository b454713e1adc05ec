//! Repairs what can be repaired without losing anything.
//!
//! Each round checks the metadata and commits the changes that the findings ask for, all or none.
//! The next round finds what follows from them (link counts, counters). After a power cut the
//! volume is as the completed rounds left it; the current round may be among them. A finding counts
//! as repaired if the last round no longer finds it.
//!
//! Nothing is guessed: pages that do not open and records that cannot be decoded stay as they are,
//! and while some of the metadata cannot be read, nothing is changed at all. An inode that has lost
//! its name gets one in `lost+found`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::name_changes::{NameChange, NameChanges};
use super::names::dirent_key;
use super::report::{Finding, Kind, Report};
use super::stream::{Group, Groups, Version, ViewRange, Views};
use super::{
    CheckError, CheckOptions, CheckProgress, Outcome, RepairAction, Subject, lists::ViewRows, run,
    run_offline,
};
use crate::ids::Ino;
use crate::meta::keys::{self, Table, VersionedKey};
use crate::meta::records::{DirentRecord, FileKind, InodeRecord, ObjectName, TOMBSTONE, Timespec};
use crate::meta::repair::Corrections;
use crate::meta::stored::Stored;
use crate::meta::{Batch, Meta, View};
use crate::object::{Contents, Objects};
use crate::sealed::MetaFile;
use crate::store::{OpenMode, StorePath};
use crate::volume::{META_NAME, Volume};

/// Maximum number of rounds. Findings that are left after them cannot be repaired.
const ROUNDS_MAX: usize = 16;
/// The directory in the root for inodes that have lost their name.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Maximum number of objects that are open at the same time.
const OPEN_OBJECTS_MAX: usize = 16;
/// Cache of the database in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// Checks a volume that is not in use, and repairs what can be repaired. The caller has it open for
/// writing, without a filesystem on it.
///
/// # Errors
/// The check was cancelled, the backing store failed, or a change could not be made durable.
/// Changes of earlier rounds are durable then.
pub fn repair(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
) -> Result<Report, CheckError> {
    let first = run_offline(volume, options, progress)?;
    let forbids_repair = |finding: &Finding| {
        matches!(
            finding.kind,
            Kind::Metadata | Kind::RolledBack | Kind::HalfRestored
        )
    };
    if first.repairs.is_empty() || first.report.findings.iter().any(forbids_repair) {
        return Ok(first.report);
    }
    let repairer = Repairer::open(volume)?;
    let before = first.report;
    let mut repairs = first.repairs;
    let mut after = before.clone();
    for _ in 0..ROUNDS_MAX {
        if repairs.is_empty() {
            break;
        }
        repairer.run_round(&repairs)?;
        let outcome = repairer.check(options, progress)?;
        after = outcome.report;
        if outcome.repairs == repairs {
            break;
        }
        repairs = outcome.repairs;
    }
    repairer.close()?;
    Ok(merged(before, after))
}

/// The first report, updated with the findings of the last one.
fn merged(mut before: Report, after: Report) -> Report {
    let is_never_repaired = |kind: Kind| {
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
        let persists = after.findings.iter().any(|other| same(finding, other));
        finding.repaired = !persists && !is_never_repaired(finding.kind);
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

/// A volume that is being repaired.
struct Repairer<'a> {
    volume: &'a Volume,
    meta: Arc<Meta>,
    contents: Contents,
    was_clean: bool,
}

/// A name that leads to a directory.
struct DirectoryName {
    /// The directory that contains the name.
    parent: Ino,
    /// The name's logical key.
    logical: Vec<u8>,
    seen_by: ViewRange,
}

impl<'a> Repairer<'a> {
    fn open(volume: &'a Volume) -> Result<Self, CheckError> {
        let file = volume
            .store
            .open(&StorePath::new(META_NAME), OpenMode::ReadWrite)?;
        let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto());
        let meta = Arc::new(Meta::open_for_repair(
            file.map_err(std::io::Error::from)?,
            CACHE_BYTES,
        )?);
        let was_clean = meta.counters().clean;
        if !was_clean {
            // If the process that wrote the volume died, its writes may be in the kernel's memory
            // only.
            volume.store.sync_all()?;
        }
        let contents = Contents::new(
            Arc::clone(&meta),
            Arc::clone(&volume.store),
            Arc::clone(&volume.keys),
            OPEN_OBJECTS_MAX,
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

    fn record_in_keystore(&self, clean: bool) -> Result<(), CheckError> {
        let durable = self.meta.file().durable();
        self.volume
            .remember(durable.sequence, durable.outer_tags, clean)
            .map_err(CheckError::NotRemembered)
    }

    fn close(self) -> Result<(), CheckError> {
        self.contents.objects().sync_unlinked()?;
        self.meta.set_clean(self.was_clean);
        self.commit()?;
        self.meta.close()?;
        self.record_in_keystore(self.was_clean)
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

    /// Carries out the actions, in one commit.
    fn run_round(&self, repairs: &[RepairAction]) -> Result<(), CheckError> {
        let stored = Arc::new(self.meta.stored()?);
        let views = ViewRows::read(&stored)?.views();
        // Counters that allocate numbers must be right before any number is allocated.
        let is_number = |repair: &&RepairAction| {
            matches!(
                repair,
                RepairAction::RaiseNextInode(_)
                    | RepairAction::RaiseNextGarbage(_)
                    | RepairAction::RaiseGeneration(_)
            )
        };
        for repair in repairs.iter().filter(is_number) {
            self.meta.correct(&corrections(repair));
        }
        self.change_names(&stored, &views, repairs)?;
        let mut unlink = Vec::new();
        for repair in repairs {
            self.apply_action(&views, repair, &mut unlink)?;
        }
        drop(stored);
        self.meta.set_clean(false);
        self.commit()?;
        if let Err(error) = self.record_in_keystore(false) {
            // If this persists, closing reports it too.
            tracing::warn!(%error, "the platform keystore does not know of a round of repairs");
        }
        // No record named these objects before this commit either.
        for name in unlink {
            self.contents.objects().unlink(name)?;
        }
        self.contents.collect()?;
        self.commit()
    }

    fn apply_action(
        &self,
        views: &Views,
        repair: &RepairAction,
        unlink: &mut Vec<ObjectName>,
    ) -> Result<(), CheckError> {
        let amend = |ino: &Ino, seen_by: &ViewRange, change: &dyn Fn(&mut InodeRecord)| {
            self.amend_inode(views, *ino, seen_by, change)
        };
        let mut batch = Batch::new();
        match repair {
            RepairAction::SetLinks {
                ino,
                nlink,
                seen_by,
            } => {
                amend(ino, seen_by, &|inode| inode.nlink = *nlink)?;
            }
            RepairAction::SetPages {
                ino,
                pages,
                seen_by,
            } => {
                amend(ino, seen_by, &|inode| inode.pages = *pages)?;
            }
            RepairAction::SetParent {
                ino,
                parent,
                seen_by,
            } => {
                amend(ino, seen_by, &|inode| inode.parent = *parent)?;
            }
            RepairAction::RaiseSize {
                ino,
                at_least,
                seen_by,
            } => amend(ino, seen_by, &|inode| {
                inode.size = inode.size.max(*at_least);
            })?,
            RepairAction::GiveName { ino } | RepairAction::LeaveCycle { ino } => {
                self.give_name(*ino)?;
            }
            RepairAction::CreateInode { ino, size, seen_by } if seen_by.contains(&views.live()) => {
                let record = recovered_inode(FileKind::Regular, *size);
                self.meta.put_inode(&mut batch, *ino, &record)?;
            }
            RepairAction::RemoveAttributes { ino, seen_by } => {
                self.remove_attributes(views, *ino, seen_by)?;
            }
            RepairAction::ForgetOrphan(ino) => self.meta.remove_orphan(&mut batch, *ino),
            RepairAction::SetRow(table, key, value) => {
                let value = value.clone();
                self.meta.set_row(&mut batch, *table, key.clone(), value);
            }
            RepairAction::PruneVersions(table, logical) => {
                self.meta.prune(&mut batch, *table, logical)?;
            }
            RepairAction::MoveName(logical) => self.move_name(&mut batch, logical)?,
            RepairAction::Unlink(name) => unlink.push(*name),
            RepairAction::SetUsedPages(_)
            | RepairAction::SetRecordBytes(_)
            | RepairAction::SetInodes(_)
            | RepairAction::RaiseNextInode(_)
            | RepairAction::RaiseNextGarbage(_)
            | RepairAction::RaiseGeneration(_) => {
                self.meta.correct(&corrections(repair));
            }
            RepairAction::CreateInode { .. }
            | RepairAction::RemoveNamesOf { .. }
            | RepairAction::RemoveNamesIn { .. }
            | RepairAction::SetKindInNames { .. }
            | RepairAction::KeepOneName { .. } => {}
        }
        if !batch.is_empty() {
            self.meta.apply(batch)?;
        }
        Ok(())
    }

    /// The versions of a key with the views that see them.
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
                seen_by: 0..0,
            })
            .collect();
        Group::set_seen_by(&mut versions, views);
        Ok(versions)
    }

    /// Changes the values of a key that these views see; `change` returns the new value, or `None`
    /// to remove it. A version that other views see too is not changed: if the live view is to be
    /// changed, it gets a newer version, and kept views keep theirs.
    fn amend(
        &self,
        views: &Views,
        table: Table,
        logical: &[u8],
        seen_by: &ViewRange,
        change: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), CheckError> {
        let mut batch = Batch::new();
        let versions = self.versions(views, table, logical)?;
        let mut is_present = false;
        for version in &versions {
            let was_present = is_present;
            is_present = version.value.is_some();
            let Some(value) = &version.value else {
                continue;
            };
            let only_these = !version.seen_by.is_empty()
                && seen_by.start <= version.seen_by.start
                && version.seen_by.end <= seen_by.end;
            let live = version.seen_by.contains(&views.live()) && seen_by.contains(&views.live());
            let changed = change(value);
            if only_these {
                let value = changed.or_else(|| was_present.then(|| TOMBSTONE.to_vec()));
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
        seen_by: &ViewRange,
        change: &dyn Fn(&mut InodeRecord),
    ) -> Result<(), CheckError> {
        let key = keys::inode(ino);
        self.amend(views, Table::Inode, &key, seen_by, &|value| {
            let Some(mut record) = InodeRecord::decode(value) else {
                return Some(value.to_vec());
            };
            change(&mut record);
            Some(record.encode())
        })
    }

    /// Changes all names that are affected, in one pass.
    fn change_names(
        &self,
        stored: &Arc<Stored>,
        views: &Views,
        repairs: &[RepairAction],
    ) -> Result<(), CheckError> {
        let wanted = NameChanges::of(repairs, views);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut several: BTreeMap<Ino, Vec<DirectoryName>> = BTreeMap::new();
        let mut groups = Groups::new(stored, views, Table::Dirent, Vec::new());
        while let Some(group) = groups.next()? {
            let Some(named) = dirent_key(&group.logical) else {
                continue;
            };
            for (version, value) in group.present() {
                let Some(entry) = DirentRecord::decode(value) else {
                    continue;
                };
                if wanted.one.contains_key(&entry.ino) {
                    several.entry(entry.ino).or_default().push(DirectoryName {
                        parent: named.parent,
                        logical: group.logical.clone(),
                        seen_by: version.seen_by.clone(),
                    });
                }
                if let Some((seen_by, change)) = wanted.change_of(named.parent, entry.ino, version)
                {
                    self.change_name(views, &group.logical, seen_by, change)?;
                }
            }
        }
        for (ino, names) in several {
            let Some((parent, seen_by)) = wanted.one.get(&ino) else {
                continue;
            };
            let live_names = names.iter().filter(|n| n.seen_by.contains(&views.live()));
            let kept = live_names
                .clone()
                .find(|name| name.parent == *parent)
                .or_else(|| live_names.clone().next())
                .filter(|_| ino != Ino::ROOT)
                .map(|name| &name.logical);
            for name in live_names.filter(|name| Some(&name.logical) != kept) {
                self.change_name(views, &name.logical, seen_by, NameChange::Remove)?;
            }
        }
        Ok(())
    }

    fn change_name(
        &self,
        views: &Views,
        logical: &[u8],
        seen_by: &ViewRange,
        change: NameChange,
    ) -> Result<(), CheckError> {
        self.amend(
            views,
            Table::Dirent,
            logical,
            seen_by,
            &|value| match change {
                NameChange::Remove => None,
                NameChange::SetKind(kind) => {
                    DirentRecord::decode(value).map(|entry| DirentRecord { kind, ..entry }.encode())
                }
            },
        )
    }

    /// Moves all versions of a name to a free position where a lookup finds it. Does nothing if the
    /// directory has the same name at such a position, too.
    fn move_name(&self, batch: &mut Batch, logical: &[u8]) -> Result<(), CheckError> {
        let Some(named) = dirent_key(logical) else {
            return Ok(());
        };
        let parent = named.parent;
        let hash = self.meta.name_hash(named.name);
        let mut free = None;
        for position in hash..hash + keys::PROBE_LIMIT {
            let candidate = keys::dirent(parent, position, named.name);
            if candidate != logical && !self.meta.versions(Table::Dirent, &candidate)?.is_empty() {
                return Ok(());
            }
            if free.is_none() && self.meta.is_position_free(parent, position)? {
                free = Some(candidate);
            }
        }
        let Some(free) = free else {
            return Ok(());
        };
        for (generation, value) in self.meta.versions(Table::Dirent, logical)? {
            for (logical, value) in [(&free[..], Some(value)), (logical, None)] {
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
        ino: Ino,
        seen_by: &ViewRange,
    ) -> Result<(), CheckError> {
        for name in self.meta.xattr_names(ino, View::LIVE)? {
            let key = keys::xattr(ino, &name);
            self.amend(views, Table::Xattr, &key, seen_by, &|_| None)?;
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

    /// The directory `lost+found`, created if it does not exist. `None` without a root.
    fn lost_and_found(&self) -> Result<Option<Ino>, CheckError> {
        let Some(root) = self.meta.inode(Ino::ROOT, View::LIVE)? else {
            return Ok(None);
        };
        if let Some(entry) = self.meta.dirent(Ino::ROOT, LOST_AND_FOUND, View::LIVE)?
            && let Some(inode) = self.meta.inode(entry.ino, View::LIVE)?
            && inode.kind == FileKind::Directory
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
            ..recovered_inode(FileKind::Directory, 0)
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

/// An inode for recovered contents, accessible to root only.
fn recovered_inode(kind: FileKind, size: u64) -> InodeRecord {
    InodeRecord {
        size,
        ..InodeRecord::new(kind, 0o600, Timespec::now())
    }
}

/// The counters that an action sets.
fn corrections(repair: &RepairAction) -> Corrections {
    let mut to = Corrections::default();
    match repair {
        RepairAction::SetUsedPages(pages) => to.used_pages = Some(*pages),
        RepairAction::SetRecordBytes(bytes) => to.record_bytes = Some(*bytes),
        RepairAction::SetInodes(inodes) => to.inodes = Some(*inodes),
        RepairAction::RaiseNextInode(ino) => to.next_ino = Some(*ino),
        RepairAction::RaiseNextGarbage(number) => to.next_garbage = Some(*number),
        RepairAction::RaiseGeneration(generation) => to.generation = Some(*generation),
        _ => {}
    }
    to
}

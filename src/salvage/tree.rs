//! Extracts the tree of a view: directories, files and their attributes.
//!
//! One directory is open at a time, and `..` leads back, since no directory of the output is moved.
//! Each directory is entered only once, so the extraction ends even if the records do not form a
//! tree. Until the end, a file with several names also has its inode's number as a name in a
//! temporary directory, from which its further names are linked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::contents::{FileCopy, minimum_size};
use super::output::{self, Attributes, OutputDir, Unset, is_fatal};
use super::records::Completeness;
use super::report::{Loss, Report};
use super::{Source, WantedView};
use crate::ids::{Generation, Ino};
use crate::meta::keys::{self, Table};
use crate::meta::records::{DirentRecord, FileKind, InodeRecord, Timespec, decode_xattr};

/// Entries of a directory that are read at a time.
const ENTRIES_AT_A_TIME: usize = 64;
/// Inodes that are read at a time.
const INODES_AT_A_TIME: usize = 256;
/// Maximum number of directories that are followed upwards from one without a name.
const CLIMB_MAX: usize = 4096;
/// Temporary directory of files with several names.
const STAGING: &[u8] = b".salvage-links";

/// A set of inodes, one bit each.
#[derive(Default)]
struct InoSet(HashMap<u64, u64>);

impl InoSet {
    /// Inserts an inode. True if it is new.
    fn insert(&mut self, ino: Ino) -> bool {
        let word = self.0.entry(ino.0 / 64).or_default();
        let bit = 1 << (ino.0 % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(&self, ino: Ino) -> bool {
        let word = self.0.get(&(ino.0 / 64));
        word.is_some_and(|word| word >> (ino.0 % 64) & 1 == 1)
    }
}

/// A directory that is being extracted.
struct Frame {
    ino: Ino,
    inode: InodeRecord,
    entries: VecDeque<(Vec<u8>, DirentRecord)>,
    /// The first key that has not been read; `None` at the end.
    next: Option<Vec<u8>>,
    /// Number of undecodable records of names that have not been reported.
    undecodable: u64,
    /// Length to which the path is truncated when the directory is finished.
    path_bytes: usize,
}

/// An inode to extract, with its record or a substitute for it.
struct Extraction {
    ino: Ino,
    inode: InodeRecord,
}

/// Chooses what to extract for an inode that no directory names.
type Choice<'c, W> = dyn FnMut(&W, Ino) -> Option<Extraction> + 'c;

struct Walk<'a, 'r> {
    source: &'a Source<'a>,
    out: &'a OutputDir,
    view: Generation,
    report: &'r mut Report,
    /// Inodes that have been extracted, or are being extracted.
    reached: InoSet,
    staging: OwnedFd,
    /// Extracted files with several names, and whether any part of them was lost.
    staged: HashMap<Ino, bool>,
    path: Vec<u8>,
}

/// Extracts a view and the inodes that no directory of it names.
pub(super) fn extract_view(
    source: &Source<'_>,
    out: &OutputDir,
    wanted: &WantedView,
    report: &mut Report,
) -> io::Result<()> {
    let mut walk = Walk {
        source,
        out,
        view: wanted.view,
        report,
        reached: InoSet::default(),
        staging: output::create_directory(out.root(), STAGING)?,
        staged: HashMap::new(),
        path: wanted.path.join(&b'/'),
    };
    let path: Vec<&[u8]> = wanted.path.iter().map(Vec::as_slice).collect();
    match out.directory(&path) {
        Ok(root) => walk.extract_tree(Ino::ROOT, None, root)?,
        Err(error) => walk.report_loss("file", error.to_string())?,
    }
    walk.extract_unreached(&wanted.lost)?;
    for ino in walk.staged.keys() {
        output::unlink(walk.staging.as_fd(), ino.to_string().as_bytes())?;
    }
    output::remove_directory(out.root(), STAGING)
}

/// True for an inode number that the volume may use, also for directories without a record.
fn is_ino(ino: Ino) -> bool {
    (1..1 << Ino::BITS).contains(&ino.0)
}

/// Substitute for the record of an inode of which only the kind is known.
fn unknown(kind: FileKind) -> InodeRecord {
    let perm = match kind {
        FileKind::Directory => 0o700,
        _ => 0o600,
    };
    InodeRecord::new(kind, perm, Timespec::now())
}

impl Walk<'_, '_> {
    fn report_loss(&mut self, what: &'static str, reason: String) -> io::Result<()> {
        self.report.add_loss(&Loss {
            path: String::from_utf8_lossy(&self.path).into_owned(),
            what,
            offset: None,
            length: None,
            reason,
        })
    }

    /// Reports something that could not be created. Fails only if nothing more can be written.
    fn report_failure(&mut self, error: io::Error) -> io::Result<()> {
        if is_fatal(&error) {
            return Err(error);
        }
        self.report_loss("file", error.to_string())
    }

    fn inode(&self, ino: Ino) -> Option<InodeRecord> {
        let records = self.source.records;
        let bytes = records.get(Table::Inode, &keys::inode(ino), self.view)?;
        InodeRecord::decode(&bytes)
    }

    fn xattrs(&self, ino: Ino) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut xattrs = Vec::new();
        let range = keys::number(ino.0)..keys::after_ino(ino);
        let records = self.source.records;
        records.each(Table::Xattr, &range, self.view, &mut |key, value| {
            let name_and_value = keys::xattr_name(key).zip(decode_xattr(value));
            xattrs.extend(name_and_value.map(|(name, value)| (name.to_vec(), value.to_vec())));
            true
        });
        xattrs
    }

    /// Number of undecodable records of extended attributes.
    fn undecodable_xattrs(&self, ino: Ino) -> usize {
        let mut undecodable = 0;
        let range = keys::number(ino.0)..keys::after_ino(ino);
        let records = self.source.records;
        records.each(Table::Xattr, &range, self.view, &mut |key, value| {
            let name_and_value = keys::xattr_name(key).zip(decode_xattr(value));
            undecodable += usize::from(name_and_value.is_none());
            true
        });
        undecodable
    }

    /// Reports which records of an inode are missing or older.
    fn report_state(&mut self, ino: Ino, kind: FileKind) -> io::Result<()> {
        let of_kind = match kind {
            FileKind::Regular => Some((Table::Extent, "contents", "where its contents are")),
            FileKind::Directory => Some((Table::Dirent, "names", "the names in it")),
            _ => None,
        };
        let xattrs = (Table::Xattr, "attributes", "its extended attributes");
        let mut older = self.source.records.state_of(Table::Inode, ino) == Completeness::Older;
        for (table, what, which) in of_kind.into_iter().chain([xattrs]) {
            match self.source.records.state_of(table, ino) {
                Completeness::Whole => {}
                Completeness::Older => older = true,
                Completeness::Missing => {
                    self.report_loss(what, format!("not all records of {which} can be read"))?;
                }
            }
        }
        for _ in 0..self.undecodable_xattrs(ino) {
            let reason = "the record of an extended attribute cannot be decoded".to_owned();
            self.report_loss("attributes", reason)?;
        }
        if older {
            let reason = "some of its records are as they were at an earlier time".to_owned();
            self.report_loss("older", reason)?;
        }
        Ok(())
    }

    fn report_unset(&mut self, unset: Vec<Unset>) -> io::Result<()> {
        for Unset { attribute, error } in unset {
            self.report_loss("unset", format!("{attribute}: {error}"))?;
        }
        Ok(())
    }

    /// Extracts everything below a directory into `at`. `inode` replaces a lost record.
    fn extract_tree(
        &mut self,
        ino: Ino,
        inode: Option<InodeRecord>,
        at: OwnedFd,
    ) -> io::Result<()> {
        let mut at = at;
        let mut stack = vec![self.enter(ino, inode)?];
        while let Some(frame) = stack.last_mut() {
            if let Some((name, entry)) = self.next_entry(frame) {
                let path_bytes = self.path.len();
                self.path.push(b'/');
                self.path.extend_from_slice(&name);
                let child = self.extract_entry(at.as_fd(), &name, entry, path_bytes)?;
                if let Some((child, frame)) = child {
                    at = child;
                    stack.push(frame);
                } else {
                    self.path.truncate(path_bytes);
                }
                continue;
            }
            let Some(frame) = stack.pop() else {
                break;
            };
            for _ in 0..frame.undecodable {
                self.report_loss("name", UNDECODABLE_NAME.to_owned())?;
            }
            // Before the mode is set, which may deny access.
            let parent = output::parent(at.as_fd())?;
            self.finish_directory(&frame, at.as_fd())?;
            self.path.truncate(frame.path_bytes);
            at = parent;
        }
        Ok(())
    }

    fn enter(&mut self, ino: Ino, inode: Option<InodeRecord>) -> io::Result<Frame> {
        self.reached.insert(ino);
        let inode = match inode.or_else(|| self.inode(ino)) {
            Some(inode) => inode,
            None => {
                self.report_loss("attributes", LOST_INODE.to_owned())?;
                unknown(FileKind::Directory)
            }
        };
        Ok(Frame {
            ino,
            inode,
            entries: VecDeque::new(),
            next: Some(keys::number(ino.0)),
            undecodable: 0,
            path_bytes: self.path.len(),
        })
    }

    fn next_entry(&self, frame: &mut Frame) -> Option<(Vec<u8>, DirentRecord)> {
        if frame.entries.is_empty() {
            let start = frame.next.take()?;
            let mut last = None;
            let range = start..keys::after_ino(frame.ino);
            let records = self.source.records;
            records.each(Table::Dirent, &range, self.view, &mut |key, value| {
                if let Some(((_, name), entry)) =
                    keys::dirent_parts(key).zip(DirentRecord::decode(value))
                {
                    frame.entries.push_back((name.to_vec(), entry));
                } else {
                    frame.undecodable += 1;
                }
                if frame.entries.len() < ENTRIES_AT_A_TIME {
                    return true;
                }
                last = Some(keys::versioned(key, Generation(u64::MAX)));
                false
            });
            frame.next = last.map(|mut key| {
                key.push(0);
                key
            });
        }
        frame.entries.pop_front()
    }

    fn finish_directory(&mut self, frame: &Frame, at: BorrowedFd<'_>) -> io::Result<()> {
        self.report.counts.directories += 1;
        let xattrs = self.xattrs(frame.ino);
        let attributes = Attributes {
            inode: &frame.inode,
            xattrs: &xattrs,
        };
        let unset = output::finish_open(at, &attributes, self.out.privileged);
        self.report_unset(unset)?;
        self.out.complete(at)?;
        self.report_state(frame.ino, FileKind::Directory)
    }

    /// Extracts the inode that an entry names. A directory is created, and returned to be filled.
    fn extract_entry(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        entry: DirentRecord,
        path_bytes: usize,
    ) -> io::Result<Option<(OwnedFd, Frame)>> {
        if !output::is_name(name) {
            self.report_loss(
                "name",
                "no file can have this name; see lost+found".to_owned(),
            )?;
            return Ok(None);
        }
        let ino = entry.ino;
        if !is_ino(ino) {
            self.report_loss("name", "its inode number is not valid".to_owned())?;
            return Ok(None);
        }
        let inode = match self.inode(ino) {
            Some(inode) => inode,
            None => {
                self.report_loss("attributes", LOST_INODE.to_owned())?;
                match entry.kind {
                    FileKind::Directory => unknown(FileKind::Directory),
                    FileKind::Regular => InodeRecord {
                        size: minimum_size(self.source, ino, self.view),
                        ..unknown(FileKind::Regular)
                    },
                    _ => return Ok(None),
                }
            }
        };
        if inode.kind != FileKind::Directory {
            self.extract_file(at, name, ino, &inode)?;
            return Ok(None);
        }
        if self.reached.contains(ino) {
            self.report_loss("name", "the directory has another name already".to_owned())?;
            return Ok(None);
        }
        match output::create_directory(at, name) {
            Ok(child) => {
                let frame = Frame {
                    path_bytes,
                    ..self.enter(ino, Some(inode))?
                };
                Ok(Some((child, frame)))
            }
            Err(error) => self.report_failure(error).map(|()| None),
        }
    }

    fn extract_file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        ino: Ino,
        inode: &InodeRecord,
    ) -> io::Result<()> {
        self.reached.insert(ino);
        let number = ino.to_string();
        if let Some(is_damaged) = self.staged.get(&ino).copied() {
            if let Err(error) = output::link(self.staging.as_fd(), number.as_bytes(), at, name) {
                return self.report_failure(error);
            }
            self.report.counts.links += 1;
            return match is_damaged {
                true => self.report_loss("contents", "lost; see another of its names".to_owned()),
                false => Ok(()),
            };
        }
        let before = self.report.counts;
        let extracted = match inode.kind {
            FileKind::Regular => self.extract_regular(at, name, ino, inode),
            _ => self.extract_special(at, name, ino, inode),
        };
        if let Err(error) = extracted {
            return self.report_failure(error);
        }
        let after = self.report.counts;
        if inode.nlink > 1 {
            match output::link(at, name, self.staging.as_fd(), number.as_bytes()) {
                Ok(()) => {
                    let is_damaged = (before.lost, before.older) != (after.lost, after.older);
                    self.staged.insert(ino, is_damaged);
                }
                Err(error) => self.report_loss("unset", format!("further names: {error}"))?,
            }
        }
        Ok(())
    }

    fn extract_regular(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        ino: Ino,
        inode: &InodeRecord,
    ) -> io::Result<()> {
        let file = output::create_file(at, name)?;
        let path = String::from_utf8_lossy(&self.path).into_owned();
        let copy = FileCopy {
            source: self.source,
            report: self.report,
            path: &path,
            to: &file,
            size: inode.size,
            pending: None,
        };
        copy.copy_all(ino, self.view)?;
        self.report.counts.files += 1;
        let xattrs = self.xattrs(ino);
        let attributes = Attributes {
            inode,
            xattrs: &xattrs,
        };
        let unset = output::finish_open(file.as_fd(), &attributes, self.out.privileged);
        self.report_unset(unset)?;
        self.out.complete(&file)?;
        self.report_state(ino, FileKind::Regular)
    }

    fn extract_special(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        ino: Ino,
        inode: &InodeRecord,
    ) -> io::Result<()> {
        let made = output::create_special(at, name, inode)?;
        match inode.kind {
            FileKind::Symlink => self.report.counts.symlinks += 1,
            _ => self.report.counts.special += 1,
        }
        let xattrs = self.xattrs(ino);
        let attributes = Attributes {
            inode,
            xattrs: &xattrs,
        };
        let unset = output::finish_special(made.as_fd(), &attributes, self.out.privileged);
        self.report_unset(unset)?;
        self.report_state(ino, inode.kind)
    }

    /// Extracts the inodes that no directory names, into `lost+found/DIRECTORY`. Directories are
    /// first, by their inodes and by their entries, so that the files in them keep their paths;
    /// then all other inodes; then contents without an inode.
    fn extract_unreached(&mut self, directory: &[u8]) -> io::Result<()> {
        self.extract_unreached_in(
            Table::Inode,
            directory,
            &mut |this, ino| match this.inode(ino) {
                Some(inode) if inode.kind == FileKind::Directory && inode.nlink > 0 => {
                    Some(this.topmost_unnamed(ino, inode))
                }
                _ => None,
            },
        )?;
        self.extract_unreached_in(Table::Dirent, directory, &mut |_, ino| {
            let inode = unknown(FileKind::Directory);
            Some(Extraction { ino, inode })
        })?;
        self.extract_unreached_in(Table::Inode, directory, &mut |this, ino| {
            // An inode without links was removed and only waited to be closed.
            let inode = this.inode(ino).filter(|inode| inode.nlink > 0);
            inode.map(|inode| Extraction { ino, inode })
        })?;
        self.extract_unreached_in(Table::Extent, directory, &mut |this, ino| {
            let is_removed = this.inode(ino).is_some();
            let size = minimum_size(this.source, ino, this.view);
            let inode = InodeRecord {
                size,
                ..unknown(FileKind::Regular)
            };
            (!is_removed).then_some(Extraction { ino, inode })
        })
    }

    /// The topmost directory without a name above a directory without one.
    fn topmost_unnamed(&self, ino: Ino, inode: InodeRecord) -> Extraction {
        let (mut top, mut record) = (ino, inode);
        for _ in 0..CLIMB_MAX {
            let parent = record.parent;
            let above = self.inode(parent).filter(|above| {
                above.kind == FileKind::Directory && parent != ino && !self.reached.contains(parent)
            });
            match above {
                Some(above) => (top, record) = (parent, above),
                None => break,
            }
        }
        Extraction {
            ino: top,
            inode: record,
        }
    }

    /// Extracts what `choose` returns for each inode of a table that has not been extracted.
    fn extract_unreached_in(
        &mut self,
        table: Table,
        directory: &[u8],
        choose: &mut Choice<'_, Self>,
    ) -> io::Result<()> {
        let mut next = Some(Vec::new());
        while let Some(start) = next.take() {
            let mut inos: Vec<Ino> = Vec::new();
            let range = start..vec![0xFF; 9];
            let (records, reached) = (self.source.records, &self.reached);
            records.each(table, &range, self.view, &mut |key, _| {
                let fits = |ino: &Ino| is_ino(*ino) && !reached.contains(*ino);
                let ino = keys::ino_of(key).filter(fits);
                if let Some(ino) = ino.filter(|ino| inos.last() != Some(ino)) {
                    inos.push(ino);
                }
                inos.len() < INODES_AT_A_TIME
            });
            if inos.len() == INODES_AT_A_TIME {
                next = inos.last().map(|ino| keys::after_ino(*ino));
            }
            for ino in inos {
                if self.reached.contains(ino) {
                    continue;
                }
                let Some(chosen) = choose(self, ino) else {
                    continue;
                };
                self.extract_without_name(directory, chosen)?;
                // The path from the chosen directory down to this inode may be lost too.
                if let Some(inode) = self.inode(ino).filter(|_| !self.reached.contains(ino)) {
                    self.extract_without_name(directory, Extraction { ino, inode })?;
                }
            }
        }
        Ok(())
    }

    fn extract_without_name(
        &mut self,
        directory: &[u8],
        Extraction { ino, inode }: Extraction,
    ) -> io::Result<()> {
        let path: [&[u8]; 2] = [b"lost+found", directory];
        let at = self.out.directory(&path)?;
        let name = ino.to_string();
        self.path = [path[0], path[1], name.as_bytes()].join(&b'/');
        self.report.counts.without_name += 1;
        self.report_loss("name", "no directory that can be read names it".to_owned())?;
        if inode.kind != FileKind::Directory {
            return self.extract_file(at.as_fd(), name.as_bytes(), ino, &inode);
        }
        match output::create_directory(at.as_fd(), name.as_bytes()) {
            Ok(at) => self.extract_tree(ino, Some(inode), at),
            Err(error) => self.report_failure(error),
        }
    }
}

const UNDECODABLE_NAME: &str = "the record of a name in it cannot be decoded";
const LOST_INODE: &str = "its inode cannot be read: owner, mode, times and length are not known";

//! The filesystem beside its model: every operation is applied to both.

use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::types::{
    DirentRef, Fallocate, FileKind, Handle, NodeId, RenameFlags, SeekWhence, SetAttr, SetTime,
    Timespec, WriteFlags, XattrMode,
};

use super::deployed::DeployedCopy;
use super::kept::{Copy, Kept, KeptOpen};
use super::model::{Inode, Model, Number};
use super::operation::{NAMES, Operation, Place, Target, XATTRS};
use super::{Mount, USER, pattern};

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Its inode.
    pub number: Number,
    /// Its handle.
    pub handle: Handle,
    /// The user who opened it.
    pub user: u8,
}

/// The filesystem beside its model.
pub struct World {
    /// The volume; `None` while it is closed.
    pub mount: Option<Mount>,
    /// The expected state.
    pub model: Model,
    /// Open files.
    pub open: Vec<Open>,
    /// Kept views.
    pub kept: Vec<Kept>,
    /// Open files of kept views.
    pub kept_open: Vec<KeptOpen>,
    /// The acting user; each user has open files of their own.
    pub user: u8,
    /// An operation of which it is not known whether it took effect.
    pub doubt: Option<Copy>,
    /// Volumes made from images.
    pub deployed: Vec<DeployedCopy>,
    /// No operation grows a file that is larger than this, in bytes.
    pub largest: usize,
}

fn node(number: Number) -> NodeId {
    NodeId(number)
}

impl World {
    /// Both, empty.
    pub fn new(mount: Mount, largest: usize) -> Self {
        Self {
            mount: Some(mount),
            model: Model::new(),
            open: Vec::new(),
            kept: Vec::new(),
            kept_open: Vec::new(),
            user: 0,
            doubt: None,
            deployed: Vec::new(),
            largest,
        }
    }

    /// The volume, which is open.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    fn directory(&self, choice: u8) -> Number {
        let all = self.model.directories();
        all[usize::from(choice) % all.len()]
    }

    /// An inode and a name, chosen among directories and [`NAMES`].
    pub fn place(&self, place: Place) -> (Number, &'static [u8]) {
        (
            self.directory(place.directory),
            NAMES[usize::from(place.name)],
        )
    }

    /// A regular file, chosen among open and named ones.
    pub fn file(&self, target: Target) -> Option<Number> {
        let mut all: Vec<Number> = self.open.iter().map(|open| open.number).collect();
        all.extend(self.model.files());
        let count = all.len();
        (count > 0).then(|| all[usize::from(target.0) % count])
    }

    /// The inodes of all open files.
    pub fn in_use(&self) -> Vec<Number> {
        self.open.iter().map(|open| open.number).collect()
    }

    /// A handle of the file: one that the user has open, or one opened for this purpose. A file
    /// without a name is open already, and then any user's handle is used.
    pub fn with<T>(&self, number: Number, action: impl FnOnce(Handle) -> T) -> T {
        let mut handles = self.open.iter().filter(|open| open.number == number);
        let nameless = self.model.inode(number).nlink == 0;
        if let Some(open) = handles.find(|open| open.user == self.user || nameless) {
            return action(open.handle);
        }
        let handle = match self.mount().fs.open_file(&USER, node(number), libc::O_RDWR) {
            Ok(handle) => handle,
            // After a power cut the next request reports that.
            Err(Errno::EIO | Errno::EROFS) => Handle(0),
            Err(error) => panic!("open: {error:?}"),
        };
        let result = action(handle);
        self.mount().fs.release(node(number), handle);
        result
    }

    /// Applies one operation to both. `Err` if the filesystem's answer differs from the model's;
    /// the model has been changed then.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), Mismatch> {
        let (actual, expected) = self.perform(operation);
        let in_use = self.in_use();
        self.model.forget_unused(&in_use);
        if actual == expected {
            Ok(())
        } else {
            Err(Mismatch { actual, expected })
        }
    }

    fn perform(&mut self, operation: &Operation) -> (Outcome, Outcome) {
        use Operation as O;
        match *operation {
            O::Create { at, perm, keep } => self.create(at, perm, keep),
            O::Mkdir(at) => self.make(at, FileKind::Directory),
            O::Symlink(at) => self.make(at, FileKind::Symlink),
            O::Fifo(at) => self.make(at, FileKind::Fifo),
            O::Link(file, at) => {
                let Some(number) = self.file(file) else {
                    return same();
                };
                let (dir, name) = self.place(at);
                let fs = &self.mount().fs;
                let actual = fs.link(node(number), node(dir), name);
                if actual.is_ok() {
                    fs.forget(node(number), 1);
                }
                (
                    of(actual.map(|_| ())),
                    of(self.model.link(number, dir, name)),
                )
            }
            O::Unlink(at) => {
                let (dir, name) = self.place(at);
                let actual = self.mount().fs.unlink(node(dir), name);
                (of(actual), of(self.model.unlink(dir, name)))
            }
            O::Rmdir(at) => {
                let (dir, name) = self.place(at);
                let actual = self.mount().fs.rmdir(node(dir), name);
                (of(actual), of(self.model.rmdir(dir, name)))
            }
            O::Rename(from, to, flags) => self.rename(from, to, flags),
            O::Open(file) => self.open(file),
            O::Close(choice) => {
                let own = (0..self.open.len()).filter(|at| self.open[*at].user == self.user);
                let own: Vec<usize> = own.collect();
                if !own.is_empty() {
                    let open = self.open.remove(own[usize::from(choice) % own.len()]);
                    let fs = &self.mount().fs;
                    let _ = fs.flush();
                    fs.release(node(open.number), open.handle);
                }
                same()
            }
            O::Chmod(at, perm) => self.setattr(
                at,
                SetAttr {
                    perm: Some(perm),
                    ..SetAttr::default()
                },
            ),
            O::SetTime(at, secs) => self.setattr(
                at,
                SetAttr {
                    mtime: Some(SetTime::At(Timespec { secs, nanos: 5 })),
                    ..SetAttr::default()
                },
            ),
            O::SetXattr {
                at,
                name,
                len,
                mode,
            } => self.set_xattr(at, name, len, mode),
            O::RemoveXattr { at, name } => {
                let (dir, entry) = self.place(at);
                let Ok(number) = self.model.entry(dir, entry) else {
                    return same();
                };
                let name = XATTRS[usize::from(name)];
                let actual = self.mount().fs.remove_xattr(node(number), name);
                (of(actual), of(self.model.remove_xattr(number, name)))
            }
            O::List(choice) => {
                let dir = self.directory(choice);
                let names = self.mount().names(node(dir));
                let expected = self.model.inode(dir).entries.keys();
                let expected = expected.map(|name| String::from_utf8_lossy(name).into_owned());
                (Outcome::Names(names), Outcome::Names(expected.collect()))
            }
            O::Commit => self.fsync_dir(super::ROOT),
            O::FsyncDir(choice) => self.fsync_dir(node(self.directory(choice))),
            O::Maintain => {
                let done = self
                    .mount()
                    .fs
                    .run_maintenance()
                    .map_err(|error| error.errno());
                (of(done), Outcome::Done)
            }
            O::Reopen => {
                self.reopen();
                same()
            }
            O::Kill => self.kill(),
            O::Keep(kind, title) => self.keep(kind, title),
            O::KeepAgain { from, title } => self.keep_again(from, title),
            O::Drop(kind, title) => self.drop_kept(kind, title),
            O::RenameKept(kind, title, to) => self.rename_kept(kind, title, to),
            O::Checkpoint => {
                let made = self.mount().fs.checkpoint_now();
                (of(made.map(|_| ()).map_err(|_| Errno::EIO)), Outcome::Done)
            }
            O::Deploy(title) => self.deploy(title),
            O::Purge => self.purge(),
            O::OpenKept(view, file) => self.open_kept(view, file),
            O::CloseKept(choice) => self.close_kept(choice),
            O::Restore(title) => self.restore(title),
            O::RestorePath(title, directory, entry) => self.restore_path(title, directory, entry),
            O::Diff(from, to) => self.diff(from, to),
            _ => self.on_file(operation),
        }
    }

    fn on_file(&mut self, operation: &Operation) -> (Outcome, Outcome) {
        use Operation as O;
        let (O::Write { file, .. }
        | O::Read { file, .. }
        | O::Truncate { file, .. }
        | O::Punch { file, .. }
        | O::Zero { file, .. }
        | O::Allocate { file, .. }
        | O::Copy { from: file, .. }
        | O::Append { file, .. }
        | O::Seek(file)
        | O::Fdatasync(file)
        | O::Fsync(file)) = *operation
        else {
            return same();
        };
        let Some(number) = self.file(file) else {
            return same();
        };
        match *operation {
            O::Write {
                offset, len, seed, ..
            } => self.write(number, offset as usize, len as usize, seed),
            O::Append { len, seed, .. } => {
                let end = self.model.inode(number).data.len();
                // It would grow without bound if it is never truncated.
                let offset = end.min(self.largest);
                self.write(number, offset, len as usize, seed)
            }
            O::Read { offset, len, .. } => self.read(number, offset as usize, len as usize),
            O::Truncate { size, .. } => {
                let actual = self.mount().truncate(node(number), u64::from(size));
                self.model.truncate(number, size as usize);
                (of(actual.map(|_| ())), Outcome::Done)
            }
            O::Punch { offset, len, .. } => {
                self.fallocate(number, offset, len, Fallocate::PunchHole)
            }
            O::Zero {
                offset, len, keep, ..
            } => self.fallocate(
                number,
                offset,
                len,
                Fallocate::ZeroRange { keep_size: keep },
            ),
            O::Allocate {
                offset, len, keep, ..
            } => self.fallocate(number, offset, len, Fallocate::Allocate { keep_size: keep }),
            O::Copy {
                to, at, to_at, len, ..
            } => self.copy(number, to, at, to_at, len),
            O::Seek(_) => self.seek(number),
            _ => {
                let datasync = matches!(operation, O::Fdatasync(_));
                let actual = self.with(number, |handle| {
                    self.mount().fs.fsync(node(number), handle, datasync)
                });
                (of(actual), Outcome::Done)
            }
        }
    }

    fn write(&mut self, number: Number, offset: usize, len: usize, seed: u8) -> (Outcome, Outcome) {
        let bytes = pattern(seed, offset as u64, len);
        let actual = self.with(number, |handle| {
            let fs = &self.mount().fs;
            fs.write(
                node(number),
                handle,
                offset as u64,
                &bytes,
                WriteFlags::default(),
            )
        });
        self.model.write(number, offset, &bytes);
        (of(actual.map(|_| ())), Outcome::Done)
    }

    fn fsync_dir(&self, directory: NodeId) -> (Outcome, Outcome) {
        let fs = &self.mount().fs;
        let done = fs.open_dir(directory).and_then(|handle| {
            let done = fs.fsync_dir();
            fs.release_dir(directory, handle);
            done
        });
        (of(done), Outcome::Done)
    }

    fn create(&mut self, at: Place, perm: u16, keep: bool) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let expected = self.model.may_make(dir, name);
        let fs = Arc::clone(&self.mount().fs);
        let actual = fs.create(&USER, node(dir), name, u32::from(perm), libc::O_RDWR);
        if let (Ok((attr, handle)), Ok(())) = (&actual, &expected) {
            let number = attr.node.0;
            let inode = Inode::new(FileKind::Regular, perm);
            self.model.make(dir, name, number, inode);
            fs.forget(attr.node, 1);
            if keep {
                let handle = *handle;
                let user = self.user;
                self.open.push(Open {
                    number,
                    handle,
                    user,
                });
            } else {
                fs.release(attr.node, *handle);
            }
        }
        (of(actual.map(|_| ())), of(expected))
    }

    fn make(&mut self, at: Place, kind: FileKind) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let expected = self.model.may_make(dir, name);
        let fs = &self.mount().fs;
        let parent = node(dir);
        let actual = match kind {
            FileKind::Directory => fs.mkdir(&USER, parent, name, 0o750),
            FileKind::Symlink => fs.symlink(&USER, parent, name, b"where/to"),
            _ => fs.mknod(&USER, parent, name, libc::S_IFIFO | 0o640, 0),
        };
        if let (Ok(attr), Ok(())) = (&actual, &expected) {
            let mut inode = Inode::new(
                kind,
                match kind {
                    FileKind::Directory => 0o750,
                    FileKind::Symlink => 0o777,
                    _ => 0o640,
                },
            );
            if kind == FileKind::Symlink {
                inode.target = b"where/to".to_vec();
            }
            fs.forget(attr.node, 1);
            self.model.make(dir, name, attr.node.0, inode);
        }
        (of(actual.map(|_| ())), of(expected))
    }

    fn rename(&mut self, from: Place, to: Place, flags: u8) -> (Outcome, Outcome) {
        let (from, to) = (self.place(from), self.place(to));
        let flags = RenameFlags {
            no_replace: flags == 0,
            exchange: flags == 1 || flags == 2,
            whiteout: false,
        };
        let fs = &self.mount().fs;
        let actual = fs.rename(
            &USER,
            DirentRef::new(node(from.0), from.1),
            DirentRef::new(node(to.0), to.1),
            flags,
        );
        (of(actual), of(self.model.rename(from, to, flags)))
    }

    fn open(&mut self, file: Target) -> (Outcome, Outcome) {
        const OPEN_MAX: usize = 6;
        let Some(number) = self.file(file).filter(|_| self.open.len() < OPEN_MAX) else {
            return same();
        };
        let actual = self.mount().fs.open_file(&USER, node(number), libc::O_RDWR);
        if let Ok(handle) = actual {
            let user = self.user;
            self.open.push(Open {
                number,
                handle,
                user,
            });
        }
        (of(actual.map(|_| ())), Outcome::Done)
    }

    fn setattr(&mut self, at: Place, changes: SetAttr) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let Ok(number) = self.model.entry(dir, name) else {
            return same();
        };
        let actual = self.mount().fs.setattr(&USER, node(number), &changes);
        let inode = self.model.inode_mut(number);
        inode.perm = changes.perm.unwrap_or(inode.perm);
        if let Some(SetTime::At(time)) = changes.mtime {
            inode.mtime = Some(time);
        }
        (of(actual.map(|_| ())), Outcome::Done)
    }

    fn set_xattr(&mut self, at: Place, name: u8, len: u16, mode: u8) -> (Outcome, Outcome) {
        let (dir, entry) = self.place(at);
        let Ok(number) = self.model.entry(dir, entry) else {
            return same();
        };
        let name = XATTRS[usize::from(name)];
        let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][usize::from(mode)];
        let value = pattern(7, u64::from(len), usize::from(len));
        let fs = &self.mount().fs;
        let actual = fs.set_xattr(&USER, node(number), name, &value, mode);
        (
            of(actual),
            of(self.model.set_xattr(number, name, &value, mode)),
        )
    }

    fn read(&self, number: Number, offset: usize, len: usize) -> (Outcome, Outcome) {
        let mut out = vec![0xEE; len];
        let actual = self.with(number, |handle| {
            self.mount()
                .fs
                .read(node(number), handle, offset as u64, &mut out)
        });
        let data = &self.model.inode(number).data;
        let start = offset.min(data.len());
        let expected = &data[start..(offset + len).min(data.len()).max(start)];
        match actual {
            Err(error) => (Outcome::Failed(error), Outcome::Done),
            Ok(read) => (first_difference(&out[..read], expected), Outcome::Done),
        }
    }

    fn fallocate(
        &mut self,
        number: Number,
        offset: u32,
        len: u32,
        mode: Fallocate,
    ) -> (Outcome, Outcome) {
        let keep = match mode {
            Fallocate::PunchHole => true,
            Fallocate::ZeroRange { keep_size } | Fallocate::Allocate { keep_size } => keep_size,
        };
        let actual = self.with(number, |handle| {
            let fs = &self.mount().fs;
            fs.fallocate(
                node(number),
                handle,
                u64::from(offset),
                u64::from(len),
                mode,
            )
        });
        if len == 0 {
            return (of(actual), Outcome::Failed(Errno::EINVAL));
        }
        let (start, len) = (offset as usize, len as usize);
        if !matches!(mode, Fallocate::Allocate { .. }) {
            self.model.zero(number, start, len);
        }
        if !keep {
            self.model.extend(number, start + len);
        }
        self.model.touch(number);
        (of(actual), Outcome::Done)
    }

    fn copy(
        &mut self,
        from: Number,
        to: Target,
        at: u32,
        to_at: u32,
        len: u32,
    ) -> (Outcome, Outcome) {
        let Some(to) = self.file(to) else {
            return same();
        };
        let fs = &self.mount().fs;
        let (start, target) = (at as usize, to_at as usize);
        let actual = fs.copy_file_range(
            node(from),
            u64::from(at),
            node(to),
            u64::from(to_at),
            u64::from(len),
        );
        let overlaps = start < target + len as usize && target < start + len as usize;
        if from == to && overlaps {
            return (of(actual.map(|_| ())), Outcome::Failed(Errno::EINVAL));
        }
        let data = Arc::clone(&self.model.inode(from).data);
        let start = start.min(data.len());
        let bytes = &data[start..(start + len as usize).min(data.len())];
        self.model.write(to, target, bytes);
        let actual = match actual {
            Ok(copied) if copied != bytes.len() as u64 => Outcome::Length(copied),
            other => of(other.map(|_| ())),
        };
        (actual, Outcome::Done)
    }

    /// The holes that are reported contain only zeros, and the ranges cover the file.
    fn seek(&self, number: Number) -> (Outcome, Outcome) {
        let fs = &self.mount().fs;
        if self.open.iter().any(|open| open.number == number) {
            return same();
        }
        let handle = match fs.open_file(&USER, node(number), libc::O_RDONLY) {
            Ok(handle) => handle,
            Err(error) => return (Outcome::Failed(error), Outcome::Done),
        };
        let data = &self.model.inode(number).data;
        let mut at = 0u64;
        let mut actual = Outcome::Done;
        while at < data.len() as u64 {
            let next = match fs.seek(node(number), handle, at, SeekWhence::Data) {
                Ok(next) => next,
                Err(Errno::ENXIO) => data.len() as u64,
                Err(error) => {
                    actual = Outcome::Failed(error);
                    break;
                }
            };
            if next < at
                || data[at as usize..next as usize]
                    .iter()
                    .any(|byte| *byte != 0)
            {
                actual = Outcome::Length(at);
                break;
            }
            if next == data.len() as u64 {
                break;
            }
            match fs.seek(node(number), handle, next, SeekWhence::Hole) {
                Ok(hole) if hole > next && hole <= data.len() as u64 => at = hole,
                Ok(hole) => {
                    actual = Outcome::Length(hole);
                    break;
                }
                Err(error) => {
                    actual = Outcome::Failed(error);
                    break;
                }
            }
        }
        fs.release(node(number), handle);
        (actual, Outcome::Done)
    }

    /// Closes all files and the filesystem, counts, and opens it again.
    pub fn reopen(&mut self) {
        self.end_of_life();
        if let Some(mount) = self.mount.take() {
            self.mount = Some(mount.reopen());
        }
    }

    fn end_of_life(&mut self) {
        self.open.clear();
        self.kept_open.clear();
        self.model.forget_unused(&[]);
    }

    fn kill(&mut self) -> (Outcome, Outcome) {
        let done = self.mount().fs.sync().map_err(|error| error.errno());
        if done.is_ok()
            && let Some(mount) = self.mount.take()
        {
            self.end_of_life();
            self.mount = Some(mount.kill());
        }
        (of(done), Outcome::Done)
    }
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It failed with that error.
    Failed(Errno),
    /// It returned names.
    Names(Vec<String>),
    /// It returned a length.
    Length(u64),
    /// Contents differ.
    Differs {
        /// The first byte that differs.
        at: usize,
        /// The actual bytes from there on.
        actual: Vec<u8>,
        /// The expected bytes from there on.
        expected: Vec<u8>,
    },
}

/// The filesystem and the model disagree.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The filesystem's outcome.
    pub actual: Outcome,
    /// The model's outcome.
    pub expected: Outcome,
}

/// The outcome of an operation that returns nothing.
pub fn of(result: Result<(), Errno>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

/// The outcomes of an operation that did not apply.
pub fn same() -> (Outcome, Outcome) {
    (Outcome::Done, Outcome::Done)
}

/// Compares contents.
pub fn first_difference(actual: &[u8], expected: &[u8]) -> Outcome {
    if actual == expected {
        return Outcome::Done;
    }
    let at = actual
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or(actual.len().min(expected.len()));
    let excerpt = |bytes: &[u8]| bytes[at..bytes.len().min(at + 8)].to_vec();
    Outcome::Differs {
        at,
        actual: excerpt(actual),
        expected: excerpt(expected),
    }
}

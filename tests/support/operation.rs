//! Random operations, done to the filesystem and to the model alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::types::{
    Attr, Fallocate, FileKind, Handle, NodeId, RenameFlags, SeekWhence, SetAttr, SetTime, Timespec,
    XattrMode,
};
use proptest::prelude::*;

use super::model::{self, Inode, Model, Number};
use super::{CHUNK, Mount, PAGE, USER, pattern};

/// Names are few, so that operations meet.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
const XATTRS: [&[u8]; 3] = [b"user.one", b"user.two", b"trusted.three"];

/// A directory and a name in it: the directory is chosen among those there are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    directory: u8,
    name: u8,
}

/// A file, chosen among open and named ones.
#[derive(Clone, Copy, Debug)]
pub struct Target(u8);

#[derive(Clone, Debug)]
pub enum Operation {
    Create {
        at: Place,
        perm: u16,
        keep: bool,
    },
    Mkdir(Place),
    Symlink(Place),
    Fifo(Place),
    Link(Target, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, u8),
    Open(Target),
    Close(u8),
    Write {
        file: Target,
        offset: u32,
        len: u32,
        seed: u8,
    },
    Read {
        file: Target,
        offset: u32,
        len: u32,
    },
    Truncate {
        file: Target,
        size: u32,
    },
    Punch {
        file: Target,
        offset: u32,
        len: u32,
    },
    Zero {
        file: Target,
        offset: u32,
        len: u32,
        keep: bool,
    },
    Allocate {
        file: Target,
        offset: u32,
        len: u32,
        keep: bool,
    },
    Copy {
        from: Target,
        to: Target,
        at: u32,
        to_at: u32,
        len: u32,
    },
    Chmod(Place, u16),
    SetTime(Place, i64),
    SetXattr {
        at: Place,
        name: u8,
        len: u16,
        mode: u8,
    },
    RemoveXattr {
        at: Place,
        name: u8,
    },
    List(u8),
    Seek(Target),
    Fsync(Target),
    Commit,
    Reopen,
}

fn place() -> impl Strategy<Value = Place> {
    (any::<u8>(), 0..NAMES.len() as u8).prop_map(|(directory, name)| Place { directory, name })
}

fn target() -> impl Strategy<Value = Target> {
    any::<u8>().prop_map(Target)
}

/// Offsets around the borders of pages, chunks and inline files, and others.
fn offset(largest: usize) -> impl Strategy<Value = u32> {
    let page = PAGE as u32;
    let chunk = CHUNK as u32;
    let near = prop_oneof![
        6 => 0..2_200u32,
        4 => (0..6u32, 0..5u32).prop_map(move |(n, d)| (n * page + d).saturating_sub(2)),
        3 => 0..40_000u32,
        1 => 0..400_000u32,
    ];
    prop_oneof![
        12 => near,
        2 => (1..3u32, 0..9_000u32).prop_map(move |(n, d)| n * chunk + d - 4_500),
        1 => (1..3u32, 0..3u32).prop_map(move |(n, d)| n * chunk + d - 1),
        1 => (0..3u32).prop_map(move |n| n * chunk),
    ]
    .prop_map(move |at| at.min(largest as u32))
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..3_000u32,
        4 => 0..30_000u32,
        2 => (1..4u32).prop_map(|n| n * PAGE as u32),
        1 => 0..200_000u32,
    ]
}

fn long_length() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => length(),
        1 => Just(CHUNK as u32),
        1 => 1_000_000..6_000_000u32,
        1 => Just(20_000_000u32),
    ]
}

/// One operation; no file grows beyond `largest` bytes and what a write adds to it.
pub fn operation(largest: usize) -> impl Strategy<Value = Operation> {
    use Operation as O;
    let at = move || offset(largest);
    prop_oneof![
        8 => (place(), 0..0o1000u16, any::<bool>())
            .prop_map(|(at, perm, keep)| O::Create { at, perm, keep }),
        3 => place().prop_map(O::Mkdir),
        1 => place().prop_map(O::Symlink),
        1 => place().prop_map(O::Fifo),
        3 => (target(), place()).prop_map(|(file, at)| O::Link(file, at)),
        4 => place().prop_map(O::Unlink),
        2 => place().prop_map(O::Rmdir),
        6 => (place(), place(), 0..10u8).prop_map(|(a, b, flags)| O::Rename(a, b, flags)),
        4 => target().prop_map(O::Open),
        4 => any::<u8>().prop_map(O::Close),
        24 => (target(), at(), length(), any::<u8>())
            .prop_map(|(file, offset, len, seed)| O::Write { file, offset, len, seed }),
        8 => (target(), at(), long_length())
            .prop_map(|(file, offset, len)| O::Read { file, offset, len }),
        10 => (target(), at()).prop_map(|(file, size)| O::Truncate { file, size }),
        6 => (target(), at(), long_length())
            .prop_map(|(file, offset, len)| O::Punch { file, offset, len }),
        3 => (target(), at(), length(), any::<bool>())
            .prop_map(|(file, offset, len, keep)| O::Zero { file, offset, len, keep }),
        2 => (target(), at(), length(), any::<bool>())
            .prop_map(|(file, offset, len, keep)| O::Allocate { file, offset, len, keep }),
        5 => (target(), target(), at(), at(), long_length())
            .prop_map(|(from, to, at, to_at, len)| O::Copy { from, to, at, to_at, len }),
        4 => (target(), target())
            .prop_map(|(from, to)| O::Copy { from, to, at: 0, to_at: 0, len: 20_000_000 }),
        3 => (place(), 0..0o1000u16).prop_map(|(at, perm)| O::Chmod(at, perm)),
        2 => (place(), -9_000_000_000..9_000_000_000i64).prop_map(|(at, time)| O::SetTime(at, time)),
        4 => (place(), 0..3u8, 0..600u16, 0..3u8)
            .prop_map(|(at, name, len, mode)| O::SetXattr { at, name, len, mode }),
        2 => (place(), 0..3u8).prop_map(|(at, name)| O::RemoveXattr { at, name }),
        3 => any::<u8>().prop_map(O::List),
        3 => target().prop_map(O::Seek),
        6 => target().prop_map(O::Fsync),
        2 => Just(O::Commit),
        1 => Just(O::Reopen),
    ]
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub number: Number,
    pub handle: Handle,
}

/// The filesystem beside its model.
pub struct World {
    pub mount: Option<Mount>,
    pub model: Model,
    pub open: Vec<Open>,
    pub largest: usize,
}

fn node(number: Number) -> NodeId {
    NodeId(number)
}

impl World {
    pub fn new(mount: Mount, largest: usize) -> Self {
        Self {
            mount: Some(mount),
            model: Model::new(),
            open: Vec::new(),
            largest,
        }
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    fn directory(&self, choice: u8) -> Number {
        let all = self.model.directories();
        all[usize::from(choice) % all.len()]
    }

    fn place(&self, place: Place) -> (Number, &'static [u8]) {
        (
            self.directory(place.directory),
            NAMES[usize::from(place.name)],
        )
    }

    pub fn file(&self, target: Target) -> Option<Number> {
        let mut all: Vec<Number> = self.open.iter().map(|open| open.number).collect();
        all.extend(self.model.files());
        let count = all.len();
        (count > 0).then(|| all[usize::from(target.0) % count])
    }

    pub fn in_use(&self) -> Vec<Number> {
        self.open.iter().map(|open| open.number).collect()
    }

    /// A handle of the file: one that is open, or one opened for the purpose.
    fn with<T>(&self, number: Number, action: impl FnOnce(Handle) -> T) -> T {
        if let Some(open) = self.open.iter().find(|open| open.number == number) {
            return action(open.handle);
        }
        let handle = match self.mount().fs.open_file(&USER, node(number), libc::O_RDWR) {
            Ok(handle) => handle,
            // The power is gone: whatever is asked next says so.
            Err(Errno::EIO | Errno::EROFS) => Handle(0),
            Err(error) => panic!("open: {error:?}"),
        };
        let result = action(handle);
        self.mount().fs.release(node(number), handle);
        result
    }

    /// Does one operation to both. `Err` where the filesystem answers what the model does not;
    /// the model then has done it.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), Mismatch> {
        let (found, expected) = self.perform(operation);
        let in_use = self.in_use();
        self.model.forget_unused(&in_use);
        if found == expected {
            Ok(())
        } else {
            Err(Mismatch { found, expected })
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
                let found = fs.link(node(number), node(dir), name);
                if found.is_ok() {
                    fs.forget(node(number), 1);
                }
                (
                    of(found.map(|_| ())),
                    of(self.model.link(number, dir, name)),
                )
            }
            O::Unlink(at) => {
                let (dir, name) = self.place(at);
                let found = self.mount().fs.unlink(node(dir), name);
                (of(found), of(self.model.unlink(dir, name)))
            }
            O::Rmdir(at) => {
                let (dir, name) = self.place(at);
                let found = self.mount().fs.rmdir(node(dir), name);
                (of(found), of(self.model.rmdir(dir, name)))
            }
            O::Rename(from, to, flags) => self.rename(from, to, flags),
            O::Open(file) => self.open(file),
            O::Close(choice) => {
                if !self.open.is_empty() {
                    let open = self.open.remove(usize::from(choice) % self.open.len());
                    let fs = &self.mount().fs;
                    let _ = fs.flush(node(open.number), open.handle);
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
                let found = self.mount().fs.remove_xattr(&USER, node(number), name);
                (of(found), of(self.model.remove_xattr(number, name)))
            }
            O::List(choice) => {
                let dir = self.directory(choice);
                let names = self.mount().names(node(dir));
                let expected = self.model.inode(dir).entries.keys();
                let expected = expected.map(|name| String::from_utf8_lossy(name).into_owned());
                (Outcome::Names(names), Outcome::Names(expected.collect()))
            }
            O::Commit => {
                let handle = self.mount().fs.open_dir(NodeId::ROOT);
                let done = handle.and_then(|handle| {
                    let fs = &self.mount().fs;
                    let done = fs.fsync_dir(NodeId::ROOT, handle, false);
                    fs.release_dir(NodeId::ROOT, handle);
                    done
                });
                (of(done), Outcome::Done)
            }
            O::Reopen => {
                self.reopen();
                same()
            }
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
        | O::Seek(file)
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
            } => {
                let bytes = pattern(seed, u64::from(offset), len as usize);
                let found = self.with(number, |handle| {
                    let fs = &self.mount().fs;
                    fs.write(
                        node(number),
                        handle,
                        u64::from(offset),
                        &bytes,
                        false,
                        false,
                    )
                });
                self.model.write(number, offset as usize, &bytes);
                (of(found.map(|_| ())), Outcome::Done)
            }
            O::Read { offset, len, .. } => self.read(number, offset as usize, len as usize),
            O::Truncate { size, .. } => {
                let found = self.mount().truncate(node(number), u64::from(size));
                self.model.truncate(number, size as usize);
                (of(found.map(|_| ())), Outcome::Done)
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
                let found = self.with(number, |handle| {
                    self.mount().fs.fsync(node(number), handle, false)
                });
                (of(found), Outcome::Done)
            }
        }
    }

    fn create(&mut self, at: Place, perm: u16, keep: bool) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let expected = self.model.may_make(dir, name);
        let fs = Arc::clone(&self.mount().fs);
        let found = fs.create(&USER, node(dir), name, u32::from(perm), libc::O_RDWR);
        if let (Ok((attr, handle)), Ok(())) = (&found, &expected) {
            let number = attr.node.0;
            let inode = Inode::new(FileKind::Regular, perm);
            self.model.make(dir, name, number, inode);
            fs.forget(attr.node, 1);
            if keep {
                let handle = *handle;
                self.open.push(Open { number, handle });
            } else {
                fs.release(attr.node, *handle);
            }
        }
        (of(found.map(|_| ())), of(expected))
    }

    fn make(&mut self, at: Place, kind: FileKind) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let expected = self.model.may_make(dir, name);
        let fs = &self.mount().fs;
        let parent = node(dir);
        let found = match kind {
            FileKind::Directory => fs.mkdir(&USER, parent, name, 0o750),
            FileKind::Symlink => fs.symlink(&USER, parent, name, b"where/to"),
            _ => fs.mknod(&USER, parent, name, libc::S_IFIFO | 0o640, 0),
        };
        if let (Ok(attr), Ok(())) = (&found, &expected) {
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
        (of(found.map(|_| ())), of(expected))
    }

    fn rename(&mut self, from: Place, to: Place, flags: u8) -> (Outcome, Outcome) {
        let (from, to) = (self.place(from), self.place(to));
        let flags = RenameFlags {
            no_replace: flags == 0,
            exchange: flags == 1 || flags == 2,
            whiteout: false,
        };
        let fs = &self.mount().fs;
        let found = fs.rename(&USER, node(from.0), from.1, node(to.0), to.1, flags);
        (of(found), of(self.model.rename(from, to, flags)))
    }

    fn open(&mut self, file: Target) -> (Outcome, Outcome) {
        const OPEN_MAX: usize = 6;
        let Some(number) = self.file(file).filter(|_| self.open.len() < OPEN_MAX) else {
            return same();
        };
        let found = self.mount().fs.open_file(&USER, node(number), libc::O_RDWR);
        if let Ok(handle) = found {
            self.open.push(Open { number, handle });
        }
        (of(found.map(|_| ())), Outcome::Done)
    }

    fn setattr(&mut self, at: Place, changes: SetAttr) -> (Outcome, Outcome) {
        let (dir, name) = self.place(at);
        let Ok(number) = self.model.entry(dir, name) else {
            return same();
        };
        let found = self.mount().fs.setattr(&USER, node(number), &changes);
        let inode = self.model.inode_mut(number);
        inode.perm = changes.perm.unwrap_or(inode.perm);
        if let Some(SetTime::At(time)) = changes.mtime {
            inode.mtime = Some(time);
        }
        (of(found.map(|_| ())), Outcome::Done)
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
        let found = fs.set_xattr(&USER, node(number), name, &value, mode);
        (
            of(found),
            of(self.model.set_xattr(number, name, &value, mode)),
        )
    }

    fn read(&self, number: Number, offset: usize, len: usize) -> (Outcome, Outcome) {
        let mut out = vec![0xEE; len];
        let found = self.with(number, |handle| {
            self.mount()
                .fs
                .read(node(number), handle, offset as u64, &mut out)
        });
        let data = &self.model.inode(number).data;
        let start = offset.min(data.len());
        let expected = &data[start..(offset + len).min(data.len()).max(start)];
        match found {
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
        let found = self.with(number, |handle| {
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
            return (of(found), Outcome::Failed(Errno::EINVAL));
        }
        let (start, len) = (offset as usize, len as usize);
        if !matches!(mode, Fallocate::Allocate { .. }) {
            self.model.zero(number, start, len);
            self.model.touch(number);
        }
        if !keep {
            self.model.extend(number, start + len);
            self.model.touch(number);
        }
        (of(found), Outcome::Done)
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
        let found = fs.copy_file_range(
            node(from),
            u64::from(at),
            node(to),
            u64::from(to_at),
            u64::from(len),
        );
        let overlaps = start < target + len as usize && target < start + len as usize;
        if from == to && overlaps {
            return (of(found.map(|_| ())), Outcome::Failed(Errno::EINVAL));
        }
        let data = Arc::clone(&self.model.inode(from).data);
        let start = start.min(data.len());
        let bytes = &data[start..(start + len as usize).min(data.len())];
        self.model.write(to, target, bytes);
        let found = match found {
            Ok(copied) if copied != bytes.len() as u64 => Outcome::Length(copied),
            other => of(other.map(|_| ())),
        };
        (found, Outcome::Done)
    }

    /// What is called a hole holds zeros only, and the stretches cover the file.
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
        let mut found = Outcome::Done;
        while at < data.len() as u64 {
            let next = match fs.seek(node(number), handle, at, SeekWhence::Data) {
                Ok(next) => next,
                Err(Errno::ENXIO) => data.len() as u64,
                Err(error) => {
                    found = Outcome::Failed(error);
                    break;
                }
            };
            if next < at
                || data[at as usize..next as usize]
                    .iter()
                    .any(|byte| *byte != 0)
            {
                found = Outcome::Length(at);
                break;
            }
            if next == data.len() as u64 {
                break;
            }
            match fs.seek(node(number), handle, next, SeekWhence::Hole) {
                Ok(hole) if hole > next && hole <= data.len() as u64 => at = hole,
                Ok(hole) => {
                    found = Outcome::Length(hole);
                    break;
                }
                Err(error) => {
                    found = Outcome::Failed(error);
                    break;
                }
            }
        }
        fs.release(node(number), handle);
        (found, Outcome::Done)
    }

    /// Closes all files and the filesystem, counts, and opens it again.
    pub fn reopen(&mut self) {
        self.open.clear();
        self.model.forget_unused(&[]);
        if let Some(mount) = self.mount.take() {
            self.mount = Some(mount.reopen());
        }
    }

    // ---- comparing everything ------------------------------------------------------------------

    /// Compares all that can be seen.
    pub fn compare(&self) {
        let mut used = 0;
        for (number, inode) in &self.model.inodes {
            let attr = self.mount().fs.getattr(node(*number));
            let attr = attr.unwrap_or_else(|error| panic!("getattr of {number}: {error:?}"));
            compare_attr(*number, &attr, inode);
            match inode.kind {
                FileKind::Regular => {
                    let found = self.with(*number, |handle| {
                        self.mount().contents_of(node(*number), handle)
                    });
                    let found = found.unwrap_or_else(|error| panic!("read {number}: {error:?}"));
                    let same = first_difference(&found, &inode.data);
                    assert_eq!(same, Outcome::Done, "contents of {number}");
                    // An inline file takes less than a page.
                    used += attr.blocks / 8;
                }
                FileKind::Directory => self.compare_names(*number, inode),
                FileKind::Symlink => {
                    let target = self.mount().fs.readlink(node(*number));
                    assert_eq!(target.as_ref(), Ok(&inode.target));
                }
                _ => {}
            }
            assert_eq!(xattrs(self.mount(), node(*number)), inode.xattrs);
        }
        assert_eq!(
            self.mount().fs.usage().used_bytes,
            used * 4096,
            "used bytes"
        );
    }

    fn compare_names(&self, number: Number, inode: &Inode) {
        if inode.nlink == 0 {
            return;
        }
        let names: Vec<String> = self.mount().names(node(number));
        let expected = inode.entries.keys();
        let expected = expected.map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(names, expected.collect::<Vec<_>>(), "names in {number}");
        for (name, child) in &inode.entries {
            let found = self.mount().lookup(node(number), name).expect("lookup");
            assert_eq!(found.node.0, *child);
        }
    }

    /// Takes what the filesystem holds for the model.
    pub fn adopt(&mut self) {
        self.open.clear();
        self.model = read_model(self.mount());
    }
}

/// The filesystem as a model.
pub fn read_model(mount: &Mount) -> Model {
    let mut model = Model::new();
    model.inodes.clear();
    let mut queue = vec![(model::ROOT, model::ROOT)];
    while let Some((number, parent)) = queue.pop() {
        let attr = mount.fs.getattr(node(number)).expect("getattr");
        let mut inode = Inode::new(attr.kind, attr.perm);
        (inode.uid, inode.gid, inode.nlink) = (attr.uid, attr.gid, attr.nlink);
        inode.xattrs = xattrs(mount, attr.node);
        match attr.kind {
            FileKind::Directory => {
                inode.parent = parent;
                for name in mount.names(attr.node) {
                    let child = mount.lookup(attr.node, name.as_bytes()).expect("lookup");
                    inode.entries.insert(name.into_bytes(), child.node.0);
                    queue.push((child.node.0, number));
                }
            }
            FileKind::Regular => inode.data = Arc::new(mount.contents(attr.node)),
            FileKind::Symlink => inode.target = mount.fs.readlink(attr.node).expect("readlink"),
            _ => {}
        }
        model.inodes.insert(number, inode);
    }
    model
}

fn xattrs(mount: &Mount, node: NodeId) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let list = mount.fs.list_xattr(node).expect("list of attributes");
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            (
                name.to_vec(),
                mount.fs.get_xattr(node, name).expect("attribute"),
            )
        })
        .collect()
}

fn compare_attr(number: Number, attr: &Attr, inode: &Inode) {
    let found = (attr.kind, attr.perm, attr.uid, attr.gid, attr.nlink);
    let expected = (inode.kind, inode.perm, inode.uid, inode.gid, inode.nlink);
    assert_eq!(found, expected, "attributes of {number}");
    if inode.kind == FileKind::Regular {
        assert_eq!(attr.size, inode.data.len() as u64, "size of {number}");
    }
    if let Some(time) = inode.mtime {
        assert_eq!(attr.mtime, time, "time of {number}");
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(Errno),
    Names(Vec<String>),
    Length(u64),
    Differs {
        at: usize,
        found: Vec<u8>,
        expected: Vec<u8>,
    },
}

/// The filesystem and the model disagree.
#[derive(Clone, Debug)]
pub struct Mismatch {
    pub found: Outcome,
    pub expected: Outcome,
}

fn of(result: Result<(), Errno>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

fn same() -> (Outcome, Outcome) {
    (Outcome::Done, Outcome::Done)
}

fn first_difference(found: &[u8], expected: &[u8]) -> Outcome {
    if found == expected {
        return Outcome::Done;
    }
    let at = found
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or(found.len().min(expected.len()));
    let excerpt = |bytes: &[u8]| bytes[at..bytes.len().min(at + 8)].to_vec();
    Outcome::Differs {
        at,
        found: excerpt(found),
        expected: excerpt(expected),
    }
}

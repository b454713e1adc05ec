//! The record of an inode, which leaves out fields that have their usual value.
//!
//! ```text
//! 1 | kind 1 | perm 2 | flags 2 | crtime 12 | uid 4 | gid 4 | nlink 4 | rdev 4 | size 4 or 8 |
//!     pages 4 or 8 | mtime 4 or 12 | ctime 4 or 12 | atime 4 or 12 | parent 8 | symlink target …
//!
//! flags  two bits for the form of each of size, pages, mtime, ctime and atime, from bit 0 on;
//!        then a bit each for uid, gid, nlink, rdev and parent, set if it is present; bit 15 is 0
//! ```
//! The form of a number is 0 (absent) if it is zero; otherwise 1 (4 bytes), or 2 (8 bytes) if it
//! does not fit. The form of a time is 0 (absent) if it equals its default: the birth time for
//! mtime and atime, mtime for ctime. It is 1 (its nanoseconds alone) if its seconds are those of
//! the birth time, and 2 (complete) otherwise. uid, rdev and parent are present if they are not
//! zero, gid if it differs from uid, nlink if it is not 1. So each record has exactly one encoding.
//!
//! `pages` counts the pages of its chunks that are sealed or reserved; `parent` is the directory
//! that holds a directory (0 for other files).

use super::{FileKind, PAGES_MAX, Reader, SIZE_MAX, Timespec, VALUE, Writer, kind_code, kind_of};
use crate::ids::Ino;

/// Bytes that a record is charged for in addition to the target of a symbolic link. The charge does
/// not depend on which fields are present, so a change of times never fails for lack of space.
const CHARGED_BYTES: usize = 92;

const ABSENT: u16 = 0;
const SHORT: u16 = 1;
const LONG: u16 = 2;
/// Mask of a field's form.
const FORM: u16 = 3;
/// Positions of the forms in the flags, in bits.
const SIZE: u32 = 0;
const PAGES: u32 = 2;
const MTIME: u32 = 4;
const CTIME: u32 = 6;
const ATIME: u32 = 8;
const HAS_UID: u16 = 1 << 10;
const HAS_GID: u16 = 1 << 11;
const HAS_NLINK: u16 = 1 << 12;
const HAS_RDEV: u16 = 1 << 13;
const HAS_PARENT: u16 = 1 << 14;
const UNUSED: u16 = 1 << 15;

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeRecord {
    /// Kind of file.
    pub kind: FileKind,
    /// `mode & 0o7777`.
    pub perm: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes that is durable.
    pub size: u64,
    /// Pages that are durably sealed or reserved.
    pub pages: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of contents.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// Birth.
    pub crtime: Timespec,
    /// The directory that holds this directory.
    pub parent: Ino,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

fn form_of_number(number: u64) -> u16 {
    match u32::try_from(number) {
        Ok(0) => ABSENT,
        Ok(_) => SHORT,
        Err(_) => LONG,
    }
}

fn form_of_time(time: Timespec, default: Timespec, birth: Timespec) -> u16 {
    match time {
        time if time == default => ABSENT,
        time if time.secs == birth.secs => SHORT,
        _ => LONG,
    }
}

impl Writer {
    fn number_as(&mut self, form: u16, number: u64) -> &mut Self {
        match form {
            ABSENT => self,
            SHORT => self.put(&(number as u32).to_le_bytes()),
            _ => self.put(&number.to_le_bytes()),
        }
    }

    fn time_as(&mut self, form: u16, time: Timespec) -> &mut Self {
        match form {
            ABSENT => self,
            SHORT => self.put(&time.nanos.to_le_bytes()),
            _ => self.time(time),
        }
    }

    fn number_if(&mut self, flag: u16, number: u32) -> &mut Self {
        match flag {
            0 => self,
            _ => self.put(&number.to_le_bytes()),
        }
    }
}

impl Reader<'_> {
    /// Reads a number of at most `most`, which must be in its only valid form.
    fn number_as(&mut self, form: u16, most: u64) -> Option<u64> {
        let number = match form {
            ABSENT => 0,
            SHORT => u64::from(self.u32()?),
            _ => self.u64()?,
        };
        (form == form_of_number(number) && number <= most).then_some(number)
    }

    fn time_as(&mut self, form: u16, default: Timespec, birth: Timespec) -> Option<Timespec> {
        let time = match form {
            ABSENT => default,
            SHORT => Timespec {
                secs: birth.secs,
                nanos: self.u32().filter(|nanos| *nanos < 1_000_000_000)?,
            },
            _ => self.time()?,
        };
        (form == form_of_time(time, default, birth)).then_some(time)
    }

    /// Reads a number that is present only if it is not `usual`.
    fn number_if(&mut self, flag: u16, usual: u32) -> Option<u32> {
        match flag {
            0 => Some(usual),
            _ => self.u32().filter(|number| *number != usual),
        }
    }
}

impl InodeRecord {
    /// An empty inode with one name, user and group 0, and all times set to `now`.
    pub const fn new(kind: FileKind, perm: u16, now: Timespec) -> Self {
        Self {
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            pages: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            parent: Ino(0),
            target: Vec::new(),
        }
    }

    fn flags(&self) -> u16 {
        let birth = self.crtime;
        let has = |flag: u16, is_present: bool| if is_present { flag } else { 0 };
        form_of_number(self.size) << SIZE
            | form_of_number(self.pages) << PAGES
            | form_of_time(self.mtime, birth, birth) << MTIME
            | form_of_time(self.ctime, self.mtime, birth) << CTIME
            | form_of_time(self.atime, birth, birth) << ATIME
            | has(HAS_UID, self.uid != 0)
            | has(HAS_GID, self.gid != self.uid)
            | has(HAS_NLINK, self.nlink != 1)
            | has(HAS_RDEV, self.rdev != 0)
            | has(HAS_PARENT, self.parent != Ino(0))
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let flags = self.flags();
        let form = |shift: u32| flags >> shift & FORM;
        let mut out = Writer::new(VALUE, 48 + self.target.len());
        out.put(&[kind_code(self.kind)])
            .put(&self.perm.to_le_bytes())
            .put(&flags.to_le_bytes())
            .time(self.crtime)
            .number_if(flags & HAS_UID, self.uid)
            .number_if(flags & HAS_GID, self.gid)
            .number_if(flags & HAS_NLINK, self.nlink)
            .number_if(flags & HAS_RDEV, self.rdev)
            .number_as(form(SIZE), self.size)
            .number_as(form(PAGES), self.pages)
            .time_as(form(MTIME), self.mtime)
            .time_as(form(CTIME), self.ctime)
            .time_as(form(ATIME), self.atime);
        if flags & HAS_PARENT != 0 {
            out.put(&self.parent.0.to_le_bytes());
        }
        out.put(&self.target);
        out.0
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes, VALUE)?;
        let kind = kind_of(input.u8()?)?;
        let perm = input.u16()?;
        let flags = input.u16().filter(|flags| flags & UNUSED == 0)?;
        let form = |shift: u32| flags >> shift & FORM;
        let crtime = input.time()?;
        let uid = input.number_if(flags & HAS_UID, 0)?;
        let gid = input.number_if(flags & HAS_GID, uid)?;
        let nlink = input.number_if(flags & HAS_NLINK, 1)?;
        let rdev = input.number_if(flags & HAS_RDEV, 0)?;
        let size = input.number_as(form(SIZE), SIZE_MAX)?;
        let pages = input.number_as(form(PAGES), PAGES_MAX)?;
        let mtime = input.time_as(form(MTIME), crtime, crtime)?;
        let ctime = input.time_as(form(CTIME), mtime, crtime)?;
        let atime = input.time_as(form(ATIME), crtime, crtime)?;
        let parent = match flags & HAS_PARENT {
            0 => Ino(0),
            _ => input.ino()?,
        };
        let target = input.rest().to_vec();
        let fits = perm <= 0o7777 && (kind == FileKind::Symlink || target.is_empty());
        fits.then_some(Self {
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            size,
            pages,
            atime,
            mtime,
            ctime,
            crtime,
            parent,
            target,
        })
    }
}

/// Bytes that an inode's encoded record is charged for.
pub(in crate::meta) fn charged_bytes(record: &[u8]) -> usize {
    InodeRecord::decode(record).map_or(record.len(), |record| CHARGED_BYTES + record.target.len())
}

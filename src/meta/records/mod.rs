//! Encodings of the metadata records.
//!
//! A record is a tag byte and fixed-width little-endian numbers. Tag 0 is a tombstone: the key had
//! a value in an older generation and has none any more. Tag 1 is a value in the format described
//! here. Times are seconds (8, signed) and nanoseconds (4).
//!
//! ```text
//! inode     1 | …                          ([`inode`])
//! dirent    1 | ino 8 | kind 1
//! xattr     1 | value …
//! extent    1 | flags 1 (1: shared, 2: reserved) | parts 1 | part … | page set, where reserved
//!   part    folder 8 | object id 16 | crypto id 16 | epoch 4 | page set ([`super::page_set`])
//! extent    2 | bytes …                    (a small file, whole)
//! garbage   1 | folder 8 | object id 16
//! view      1 | kind 1 (1: snapshot, 2: image) | state 1 (1: kept, 2: leaving) | generation 8 |
//!           created 12 | pages 8 | inodes 8 | record bytes 8 | length 2, name |
//!           length 2, from | description …
//! change    1
//! trim      1
//! counters  1 | clean 1 | generation 8 | frozen 8 | next ino 8 | folder 8 | garbage 8 |
//!           used pages 8 | inodes 8 | record bytes 8 | size limit 8 (0: none) |
//!           name hash key 16 | restoring 8 | newest view 2
//! ```
//! Decoders accept exactly what encoders write and return `None` for everything else.

mod inode;

pub use inode::InodeRecord;
pub(super) use inode::charged_bytes;

use super::page_set::PageSet;
use crate::ids::{CryptoId, Epoch, FolderNumber, Generation, Ino, ObjectId, ViewId};

/// The value of a key that was deleted in the live generation but exists in an older one.
pub const TOMBSTONE: &[u8] = &[0];
const VALUE: u8 = 1;
const INLINE: u8 = 2;
const FLAG_SHARED: u8 = 1;
const FLAG_RESERVED: u8 = 2;
/// Limit on the parts of a record; longer lists are flattened.
pub const PARTS_MAX: usize = 8;
// Counters stay within the following bounds, so that arithmetic on them cannot overflow. Decoders
// refuse larger values, and no counter is increased beyond its bound.
/// Limit on the bytes of a file: chunk numbers have 32 bits.
pub(crate) const SIZE_MAX: u64 = (1 << 54) - 1;
/// Limit on the pages of a file, and of the volume.
pub const PAGES_MAX: u64 = 1 << 48;
/// Limit on the inodes, each of which has a number.
pub(super) const INODES_MAX: u64 = Ino::END.0;
/// Limit on numbers in `garbage`, and on bytes of records.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// A point in time: seconds since 1970-01-01 UTC (negative before) and 0 to 999 999 999
/// nanoseconds, which always count forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timespec {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, counted forward from `secs`.
    pub nanos: u32,
}

impl Timespec {
    /// The current time by the clock that the kernel uses for file times, so that times set by the
    /// kernel and by this program are in order.
    pub fn now() -> Self {
        let now = crate::sys::clock::file_time();
        Self {
            secs: now.secs,
            nanos: now.nanos,
        }
    }
}

/// The kind of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "POSIX names them")]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// The target of a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirentRecord {
    /// The inode.
    pub ino: Ino,
    /// Its kind, so that listings need not read the inode.
    pub kind: FileKind,
}

/// Everything needed to open an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartId {
    /// Name of its file.
    pub name: ObjectName,
    /// Domain of its keys.
    pub crypto: CryptoId,
    /// Number of the key set that it is sealed under.
    pub epoch: Epoch,
}

/// One object of an extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The object.
    pub id: PartId,
    /// The pages that it holds for this extent.
    pub pages: PageSet,
}

/// One chunk of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExtentRecord {
    /// Sealed pages, newest part first.
    Parts {
        /// The objects are used elsewhere too and are never written in place again.
        shared: bool,
        /// Newest first.
        parts: Vec<Part>,
        /// Pages that the newest part does not hold but has space reserved for.
        reserved: PageSet,
    },
    /// The contents of a small file.
    Inline(Vec<u8>),
}

/// The purpose of a view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ViewKind {
    /// A snapshot.
    Snapshot,
    /// An image, from which volumes are made.
    Image,
}

/// The state of a view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ViewState {
    /// Everything that it sees is kept.
    Kept,
    /// It was deleted; records that only this view saw are removed in the background.
    Leaving,
}

/// A view that is kept, or that was deleted and is being removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewRecord {
    /// Its purpose.
    pub kind: ViewKind,
    /// Its state.
    pub state: ViewState,
    /// The newest generation that it sees.
    pub generation: Generation,
    /// When it was taken.
    pub created: Timespec,
    /// Pages of contents that it sees, including reserved ones.
    pub pages: u64,
    /// Inodes that it sees.
    pub inodes: u64,
    /// Bytes of the records that it sees ([`super::charge`]).
    pub record_bytes: u64,
    /// Its name, unique among the views of its kind.
    pub name: String,
    /// The snapshot that it was made from; empty if made from the live view.
    pub from: String,
    /// A description written by the user.
    pub description: String,
}

/// Name of an object's file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectName {
    /// Folder under `objects/`.
    pub folder: FolderNumber,
    /// Name within it.
    pub object: ObjectId,
}

/// The counters of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters {
    /// The last commit was made by a clean unmount.
    pub clean: bool,
    /// The live generation.
    pub generation: Generation,
    /// Extents up to this generation are shared with a volume that was deployed from an image.
    pub frozen: Generation,
    /// The next inode number.
    pub next_ino: Ino,
    /// The newest folder of objects.
    pub folder: FolderNumber,
    /// The next number in `garbage`.
    pub next_garbage: u64,
    /// Pages of contents that are durably sealed or reserved.
    pub used_pages: u64,
    /// Inodes.
    pub inodes: u64,
    /// Bytes of records ([`super::charge`]).
    pub record_bytes: u64,
    /// Size limit of the volume; 0 for none.
    pub limit_bytes: u64,
    /// Key of the name hash.
    pub hash_key: [u8; 16],
    /// The generation that a restore of the live view is returning to; 0 for none.
    pub restoring: Generation,
    /// Number of the most recently created view.
    pub newest_view: ViewId,
}

/// Writes the fields of a record one after the other.
struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u8, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(tag);
        Self(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Writes the length of a text and the text, shortened to 65 535 bytes.
    fn text(&mut self, text: &str) -> &mut Self {
        let bytes = &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))];
        self.put(&(bytes.len() as u16).to_le_bytes()).put(bytes)
    }

    fn time(&mut self, time: Timespec) -> &mut Self {
        self.put(&time.secs.to_le_bytes())
            .put(&time.nanos.to_le_bytes())
    }
}

/// Reads the fields of a record one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], tag: u8) -> Option<Self> {
        match bytes.split_first() {
            Some((first, rest)) if *first == tag => Some(Self(rest)),
            _ => None,
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn at_most(&mut self, most: u64) -> Option<u64> {
        self.u64().filter(|number| *number <= most)
    }

    /// Reads a valid inode number.
    fn ino(&mut self) -> Option<Ino> {
        self.u64().and_then(Ino::checked)
    }

    fn folder(&mut self) -> Option<FolderNumber> {
        self.u64()
            .map(FolderNumber)
            .filter(|folder| *folder < FolderNumber::END)
    }

    fn generation(&mut self) -> Option<Generation> {
        self.at_most(Generation::MAX.0).map(Generation)
    }

    fn time(&mut self) -> Option<Timespec> {
        let secs = i64::from_le_bytes(self.array()?);
        let nanos = self.u32()?;
        (nanos < 1_000_000_000).then_some(Timespec { secs, nanos })
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

const fn kind_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
        FileKind::Fifo => 4,
        FileKind::Socket => 5,
        FileKind::CharDevice => 6,
        FileKind::BlockDevice => 7,
    }
}

const fn kind_of(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::Fifo,
        5 => FileKind::Socket,
        6 => FileKind::CharDevice,
        7 => FileKind::BlockDevice,
        _ => return None,
    })
}

impl DirentRecord {
    /// The encoding.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Writer::new(VALUE, 10);
        out.put(&self.ino.0.to_le_bytes())
            .put(&[kind_code(self.kind)]);
        out.0
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes, VALUE)?;
        let record = Self {
            ino: input.ino()?,
            kind: kind_of(input.u8()?)?,
        };
        input.end()?;
        Some(record)
    }
}

/// Encoding of an extended attribute's value.
pub fn encode_xattr(value: &[u8]) -> Vec<u8> {
    let mut out = Writer::new(VALUE, 1 + value.len());
    out.put(value);
    out.0
}

/// An extended attribute's value.
pub fn decode_xattr(bytes: &[u8]) -> Option<&[u8]> {
    Reader::new(bytes, VALUE).map(Reader::rest)
}

/// True for the record of an extent that holds the contents itself.
pub(super) fn is_inline(extent: &[u8]) -> bool {
    extent.first() == Some(&INLINE)
}

impl ExtentRecord {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inline(bytes) => {
                let mut out = Writer::new(INLINE, 1 + bytes.len());
                out.put(bytes);
                out.0
            }
            Self::Parts {
                shared,
                parts,
                reserved,
            } => {
                let mut out = Writer::new(VALUE, 3 + parts.len() * 48);
                let reserves = !reserved.is_empty();
                let shared = if *shared { FLAG_SHARED } else { 0 };
                let flags = shared | if reserves { FLAG_RESERVED } else { 0 };
                out.put(&[flags, parts.len() as u8]);
                for part in parts {
                    out.put(&part.id.name.folder.0.to_le_bytes())
                        .put(&part.id.name.object.0)
                        .put(&part.id.crypto.0)
                        .put(&part.id.epoch.0.to_le_bytes());
                    part.pages.encode(&mut out.0);
                }
                if reserves {
                    reserved.encode(&mut out.0);
                }
                out.0
            }
        }
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some(input) = Reader::new(bytes, INLINE) {
            return Some(Self::Inline(input.rest().to_vec()));
        }
        let mut input = Reader::new(bytes, VALUE)?;
        let flags = input.u8()?;
        if flags & !(FLAG_SHARED | FLAG_RESERVED) != 0 {
            return None;
        }
        let count = usize::from(input.u8()?);
        if count > PARTS_MAX {
            return None;
        }
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            let folder = input.folder()?;
            let name = ObjectName {
                folder,
                object: ObjectId(input.array()?),
            };
            let id = PartId {
                name,
                crypto: CryptoId(input.array()?),
                epoch: Epoch(input.u32()?),
            };
            let (pages, rest) = PageSet::decode(input.0)?;
            input.0 = rest;
            parts.push(Part { id, pages });
        }
        let mut reserved = PageSet::new();
        if flags & FLAG_RESERVED != 0 {
            (reserved, input.0) = PageSet::decode(input.0)?;
            if reserved.is_empty() || parts.is_empty() {
                return None;
            }
        }
        input.end()?;
        Some(Self::Parts {
            shared: flags & FLAG_SHARED != 0,
            parts,
            reserved,
        })
    }

    /// The objects that it references.
    pub fn names(&self) -> Vec<ObjectName> {
        match self {
            Self::Parts { parts, .. } => parts.iter().map(|part| part.id.name).collect(),
            Self::Inline(_) => Vec::new(),
        }
    }

    /// Number of pages of the chunk that some part holds or that are reserved.
    pub fn pages(&self) -> u64 {
        match self {
            Self::Inline(_) => 0,
            Self::Parts {
                parts, reserved, ..
            } => u64::from(taken(parts, reserved).len()),
        }
    }
}

/// The pages that some part holds or that are reserved. A page that several parts hold counts once.
pub fn taken(parts: &[Part], reserved: &PageSet) -> PageSet {
    let mut pages = reserved.clone();
    parts.iter().for_each(|part| pages.union(&part.pages));
    pages
}

impl ObjectName {
    /// The encoding.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Writer::new(VALUE, 25);
        out.put(&self.folder.0.to_le_bytes()).put(&self.object.0);
        out.0
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes, VALUE)?;
        let name = Self {
            folder: input.folder()?,
            object: ObjectId(input.array()?),
        };
        input.end()?;
        Some(name)
    }
}

impl ViewRecord {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VALUE, 64);
        let kind = match self.kind {
            ViewKind::Snapshot => 1,
            ViewKind::Image => 2,
        };
        let state = match self.state {
            ViewState::Kept => 1,
            ViewState::Leaving => 2,
        };
        out.put(&[kind, state])
            .put(&self.generation.0.to_le_bytes())
            .time(self.created)
            .put(&self.pages.to_le_bytes())
            .put(&self.inodes.to_le_bytes())
            .put(&self.record_bytes.to_le_bytes())
            .text(&self.name)
            .text(&self.from)
            .put(self.description.as_bytes());
        out.0
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes, VALUE)?;
        Some(Self {
            kind: match input.u8()? {
                1 => ViewKind::Snapshot,
                2 => ViewKind::Image,
                _ => return None,
            },
            state: match input.u8()? {
                1 => ViewState::Kept,
                2 => ViewState::Leaving,
                _ => return None,
            },
            generation: input.generation()?,
            created: input.time()?,
            pages: input.at_most(PAGES_MAX)?,
            inodes: input.at_most(INODES_MAX)?,
            record_bytes: input.at_most(COUNT_MAX)?,
            name: input.text()?,
            from: input.text()?,
            description: String::from_utf8(input.rest().to_vec()).ok()?,
        })
    }
}

impl Counters {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VALUE, 100);
        out.put(&[u8::from(self.clean)])
            .put(&self.generation.0.to_le_bytes())
            .put(&self.frozen.0.to_le_bytes())
            .put(&self.next_ino.0.to_le_bytes())
            .put(&self.folder.0.to_le_bytes())
            .put(&self.next_garbage.to_le_bytes())
            .put(&self.used_pages.to_le_bytes())
            .put(&self.inodes.to_le_bytes())
            .put(&self.record_bytes.to_le_bytes())
            .put(&self.limit_bytes.to_le_bytes())
            .put(&self.hash_key)
            .put(&self.restoring.0.to_le_bytes())
            .put(&self.newest_view.0.to_le_bytes());
        out.0
    }

    /// Decodes a record; `None` if the bytes are not a valid encoding.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes, VALUE)?;
        let counters = Self {
            clean: match input.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            generation: input.generation()?,
            frozen: input.generation()?,
            // The first invalid number means that all are used up.
            next_ino: Ino(input.at_most(Ino::END.0)?),
            folder: input.folder()?,
            next_garbage: input.at_most(COUNT_MAX)?,
            used_pages: input.at_most(PAGES_MAX)?,
            inodes: input.at_most(INODES_MAX)?,
            record_bytes: input.at_most(COUNT_MAX)?,
            limit_bytes: input.u64()?,
            hash_key: input.array()?,
            restoring: input.generation()?,
            newest_view: ViewId(input.u16().filter(|id| *id <= ViewId::MAX.0)?),
        };
        input.end()?;
        Some(counters)
    }
}

#[cfg(test)]
mod tests;

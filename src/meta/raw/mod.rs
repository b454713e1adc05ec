//! Reads the tables from the pages of a sealed file without the database: to make checkpoints of a
//! file that is in use, and to salvage a damaged one.
//!
//! The layout is redb's (file format 3). Page 0 is a header with two commit slots. Each slot
//! references the root of a B-tree of table definitions, and each definition references the root of
//! a table.
//!
//! ```text
//! header     magic 9 | flags 1 (1: slot 1 is the newer) | 2 | page size 4 |
//!            region header pages 4 | region data pages 4 | ...; at 64 and 192: slot 0 and slot 1
//! slot       version 1 | has root 1 | 6 | root 32 | ... | checksum 16, of the 112 bytes before it
//! root       page number 8 | checksum 16 | length 8
//! page no.   index within the region, in pages of that order, 20 bits | region 20 | 19 | order 5
//! leaf       1 | 1 | pairs 2 | ends of keys 4 each | ends of values 4 each | keys | values
//! branch     2 | 1 | keys 2 | 4 | checksums 16 each | page numbers 8 each | ends of keys 4 each |
//!            keys
//! ```
//! Child i of a branch holds the keys above key i - 1, up to and including key i. Numbers are
//! little-endian; a checksum is XXH3 with 128 bits over the bytes in use.
//!
//! Invariants: a page is accepted only if it opens, has the checksum that its parent states, and
//! holds only keys in order within the bounds that its parent states. So an older page that was put
//! in its place is rejected, and whatever a file contains, each of its keys is visited once. A
//! rejected page is a [`Gap`] with the bounds of the missing keys.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::keys::Table;
use crate::ids::Sequence;
use crate::sealed::{META_PAYLOAD_BYTES, MetaFile};

pub(super) mod reachable;

const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const PAGE_BYTES: u64 = META_PAYLOAD_BYTES as u64;
const SLOT_BYTES: usize = 128;
const SLOTS_AT: usize = 64;
const SLOT_CHECKSUM_AT: usize = SLOT_BYTES - 16;
const SLOT_VERSION: u8 = 3;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// The type of a table that is no multimap.
const NORMAL: u8 = 3;
/// Largest accepted order: pages of 64 MiB, which is more than any row needs.
const ORDER_MAX: u8 = 14;
/// No tree is deeper than this: each branch has at least two children.
const DEPTH_MAX: usize = 48;
/// Number of cached pages: 8 MiB.
const CACHED_PAGES: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");

/// A range of keys that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The missing keys are above this one ...
    pub after: Option<Vec<u8>>,
    /// ... up to and including this one.
    pub through: Option<Vec<u8>>,
    /// The rejected page; `None` if its number is not known.
    pub page: Option<u64>,
    /// The reason.
    pub reason: String,
}

impl Gap {
    /// A gap that covers all keys.
    pub fn all(reason: &str) -> Self {
        Self {
            after: None,
            through: None,
            page: None,
            reason: reason.to_owned(),
        }
    }
}

/// An item visited while walking a table.
#[derive(Debug)]
pub enum Visited<'a> {
    /// A key and its value.
    Row(&'a [u8], &'a [u8]),
    /// A range that cannot be read.
    Gap(&'a Gap),
}

/// Root of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    page: u64,
    checksum: u128,
}

/// The keys below a page are above the first bound and at most the second.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds<'a> {
    after: Option<&'a [u8]>,
    through: Option<&'a [u8]>,
}

/// A child of a branch.
struct Child<'a> {
    root: Root,
    bounds: Bounds<'a>,
}

/// The root of a table, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TableRoot {
    Unknown,
    Empty,
    At(Root),
}

/// The layout of the regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Regions {
    header_pages: u64,
    data_pages: u64,
}

/// The tables as of one commit.
pub struct RawTables {
    file: Arc<MetaFile>,
    regions: Regions,
    /// The tree of table definitions.
    definitions: Root,
    tables: [TableRoot; Table::ALL.len()],
    sequence: Sequence,
    cache: Mutex<LruCache<u64, Arc<Node>>>,
}

impl std::fmt::Debug for RawTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawTables")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl RawTables {
    /// All commits that the file still references: the newest one that page 0 records, however much
    /// of it is left, and earlier ones of which any table is left. Pages of theirs may have been
    /// overwritten; such pages do not have the expected checksum and are rejected.
    pub fn all(file: &Arc<MetaFile>) -> Vec<Self> {
        let mut commits: Vec<Self> = Vec::new();
        for (sequence, page) in file.pages_0() {
            let Some(header) = Header::parse(&page) else {
                continue;
            };
            for root in header.roots.into_iter().flatten() {
                let tables = Self::at(file, header.regions, root, sequence);
                let is_same = |other: &Self| other.tables == tables.tables;
                if commits.is_empty() || (tables.knows_any() && !commits.iter().any(is_same)) {
                    commits.push(tables);
                }
            }
        }
        commits
    }

    /// The newest commit of a file. The caller makes sure that no commit is under way.
    pub(super) fn newest(file: &Arc<MetaFile>) -> Option<Self> {
        let mut page = vec![0; META_PAYLOAD_BYTES];
        file.read(0, &mut page).ok()?;
        Self::of_page_0(file, &page, file.sequence())
    }

    /// The newest commit that this page 0 references, which was sealed under this sequence.
    pub(super) fn of_page_0(file: &Arc<MetaFile>, page: &[u8], sequence: Sequence) -> Option<Self> {
        let header = Header::parse(page)?;
        Some(Self::at(file, header.regions, header.roots[0]?, sequence))
    }

    fn at(file: &Arc<MetaFile>, regions: Regions, root: Root, sequence: Sequence) -> Self {
        let mut this = Self {
            file: Arc::clone(file),
            regions,
            definitions: root,
            tables: [TableRoot::Empty; Table::ALL.len()],
            sequence,
            cache: Mutex::new(LruCache::new(CACHED_PAGES)),
        };
        let mut tables = this.tables;
        this.walk(root, &(Vec::new()..vec![0xFF; 9]), &mut |visited| {
            match visited {
                Visited::Row(name, definition) => {
                    let mut all = Table::ALL.iter();
                    if let Some(table) = all.find(|table| table.name().as_bytes() == name) {
                        tables[table.index()] = TableRoot::parse(definition);
                    }
                }
                Visited::Gap(_) => {
                    for table in &mut tables {
                        if *table == TableRoot::Empty {
                            *table = TableRoot::Unknown;
                        }
                    }
                }
            }
            true
        });
        this.tables = tables;
        this
    }

    fn knows_any(&self) -> bool {
        self.tables.iter().any(|table| *table != TableRoot::Unknown)
    }

    /// True if all tables except the counters are identical to those of the other commit: nothing
    /// was changed between the two.
    pub(super) fn has_rows_of(&self, other: &Self) -> bool {
        Table::ALL.iter().all(|table| {
            *table == Table::Counters || self.tables[table.index()] == other.tables[table.index()]
        })
    }

    /// The commit number that page 0 was sealed under.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Calls `visit` with the rows and gaps of a table in the key range, in order, until it returns
    /// false. Returns false in that case.
    pub fn visit(
        &self,
        table: Table,
        keys: &Range<Vec<u8>>,
        visit: &mut dyn FnMut(Visited<'_>) -> bool,
    ) -> bool {
        match self.tables[table.index()] {
            TableRoot::Empty => true,
            TableRoot::Unknown => visit(Visited::Gap(&Gap::all("the table was not found"))),
            TableRoot::At(root) => self.walk(root, keys, visit),
        }
    }

    fn walk(
        &self,
        root: Root,
        keys: &Range<Vec<u8>>,
        visit: &mut dyn FnMut(Visited<'_>) -> bool,
    ) -> bool {
        self.walk_below(root, Bounds::default(), keys, DEPTH_MAX, visit)
    }

    fn walk_below(
        &self,
        root: Root,
        bounds: Bounds<'_>,
        keys: &Range<Vec<u8>>,
        depth: usize,
        visit: &mut dyn FnMut(Visited<'_>) -> bool,
    ) -> bool {
        let gap = |reason: String| Gap {
            after: bounds.after.map(<[u8]>::to_vec),
            through: bounds.through.map(<[u8]>::to_vec),
            page: self.regions.offset(root.page).map(|at| at / PAGE_BYTES),
            reason,
        };
        let node = match self.node(root).and_then(|node| {
            let fits = depth > 0 && node.fits(bounds);
            fits.then_some(node)
                .ok_or_else(|| "its keys are out of their range".to_owned())
        }) {
            Ok(node) => node,
            Err(reason) => return visit(Visited::Gap(&gap(reason))),
        };
        if node.is_leaf {
            return node.rows().all(|(key, value)| {
                let wanted = key >= &keys.start[..] && key < &keys.end[..];
                !wanted || visit(Visited::Row(key, value))
            });
        }
        for child in node.children(bounds) {
            let Bounds { after, through } = child.bounds;
            if through.is_some_and(|through| through < &keys.start[..]) {
                continue;
            }
            if after.is_some_and(|after| after >= &keys.end[..]) {
                break;
            }
            if !self.walk_below(child.root, child.bounds, keys, depth - 1, visit) {
                return false;
            }
        }
        true
    }

    fn node(&self, root: Root) -> Result<Arc<Node>, String> {
        if let Some(node) = self.cache.lock().get(&root.page)
            && node.checksum == root.checksum
        {
            return Ok(Arc::clone(node));
        }
        let offset = self.regions.offset(root.page);
        let offset = offset.ok_or("there is no such page")?;
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let read = |at: u64, out: &mut [u8]| self.file.read(at, out).map_err(|e| e.to_string());
        read(offset, &mut bytes)?;
        for more in 1..(1u64 << order_of(root.page)) {
            // Page by page, so that a wrong number uses no more memory than the file has bytes.
            let start = bytes.len();
            bytes.resize(start + PAGE_BYTES as usize, 0);
            read(offset + more * PAGE_BYTES, &mut bytes[start..])?;
        }
        let node = Node::parse(bytes).ok_or("it is not a page of a table")?;
        if node.checksum != root.checksum {
            return Err("it is not the page that was written there last".to_owned());
        }
        let node = Arc::new(node);
        if order_of(root.page) == 0 {
            self.cache.lock().put(root.page, Arc::clone(&node));
        }
        Ok(node)
    }
}

const fn order_of(page: u64) -> u8 {
    (page >> 59) as u8
}

impl Regions {
    /// Offset of the page with this number in the flat file.
    fn offset(&self, page: u64) -> Option<u64> {
        let order = order_of(page);
        if order > ORDER_MAX {
            return None;
        }
        let index = page & (0xF_FFFF >> order);
        let region = (page >> 20) & 0xF_FFFF;
        let pages = region
            .checked_mul(self.header_pages + self.data_pages)?
            .checked_add(1 + self.header_pages)?
            .checked_add(index << order)?;
        pages.checked_mul(PAGE_BYTES)
    }
}

struct Header {
    regions: Regions,
    /// The root of the current slot, and of the other one.
    roots: [Option<Root>; 2],
}

impl Header {
    fn parse(page: &[u8]) -> Option<Self> {
        if !page.starts_with(MAGIC) || u64::from(number(page, 12)?) != PAGE_BYTES {
            return None;
        }
        let newer = usize::from(page.get(MAGIC.len())? & 1);
        let regions = Regions {
            header_pages: u64::from(number(page, 16)?),
            data_pages: u64::from(number(page, 20)?),
        };
        Some(Self {
            regions,
            roots: [newer, 1 - newer].map(|slot| root_of_slot(page, slot)),
        })
    }
}

fn root_of_slot(page: &[u8], slot: usize) -> Option<Root> {
    let start = SLOTS_AT + slot * SLOT_BYTES;
    let slot = page.get(start..start + SLOT_BYTES)?;
    let (bytes, checksum) = slot.split_at(SLOT_CHECKSUM_AT);
    let is_valid = xxh3_128(bytes) == u128::from_le_bytes(checksum.try_into().ok()?);
    (is_valid && bytes[0] == SLOT_VERSION && bytes[1] != 0)
        .then(|| Root::parse(&bytes[8..]))
        .flatten()
}

impl Root {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            page: u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
            checksum: u128::from_le_bytes(bytes.get(8..24)?.try_into().ok()?),
        })
    }
}

impl TableRoot {
    /// Parses a table's definition: type 1, length 8, has root 1, root 32, width of keys and of
    /// values (each 1 and 4), and more.
    fn parse(definition: &[u8]) -> Self {
        let any_width = |at: usize| definition.get(at) == Some(&0);
        if definition.first() != Some(&NORMAL) || !any_width(42) || !any_width(47) {
            return Self::Unknown;
        }
        match definition.get(9) {
            Some(0) => Self::Empty,
            Some(_) => Root::parse(&definition[10..]).map_or(Self::Unknown, Self::At),
            None => Self::Unknown,
        }
    }
}

/// A page of a tree, all of whose offsets lie within it.
struct Node {
    bytes: Vec<u8>,
    is_leaf: bool,
    /// Number of pairs of a leaf, or of keys of a branch.
    count: usize,
    checksum: u128,
}

impl Node {
    /// `None` if the bytes are no page of a tree.
    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let is_leaf = match *bytes.first()? {
            LEAF => true,
            BRANCH => false,
            _ => return None,
        };
        let count = u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?);
        let mut node = Self {
            bytes,
            is_leaf,
            count: usize::from(count),
            checksum: 0,
        };
        let end = node.checked_end()?;
        node.checksum = xxh3_128(node.bytes.get(..end)?);
        Some(node)
    }

    /// Offset of the table of ends.
    fn ends_at(&self) -> usize {
        if self.is_leaf {
            4
        } else {
            8 + 24 * (self.count + 1)
        }
    }

    /// Number of pieces, each of which has an entry in the table of ends: keys, and in a leaf
    /// values too.
    fn pieces(&self) -> usize {
        if self.is_leaf {
            2 * self.count
        } else {
            self.count
        }
    }

    /// The end of a piece, as the table states it.
    fn end(&self, index: usize) -> Option<usize> {
        number(&self.bytes, self.ends_at() + 4 * index).map(|end| end as usize)
    }

    /// The end of the last piece. `None` if there is no piece, or if the ends are not in order or
    /// beyond the page.
    fn checked_end(&self) -> Option<usize> {
        let mut at = self.ends_at() + 4 * self.pieces();
        for index in 0..self.pieces() {
            let end = self.end(index)?;
            if end < at {
                return None;
            }
            at = end;
        }
        (self.count > 0 && at <= self.bytes.len()).then_some(at)
    }

    /// The piece with that index in the table of ends.
    fn piece(&self, index: usize) -> &[u8] {
        let start = match index.checked_sub(1) {
            Some(before) => self.end(before),
            None => Some(self.ends_at() + 4 * self.pieces()),
        };
        let range = start.zip(self.end(index)).map(|(start, end)| start..end);
        range
            .and_then(|range| self.bytes.get(range))
            .unwrap_or_default()
    }

    fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.count).map(|index| (self.piece(index), self.piece(self.count + index)))
    }

    /// True if its keys are in order, above the first bound and at most the second.
    fn fits(&self, Bounds { after, through }: Bounds<'_>) -> bool {
        let mut before = after;
        let mut keys = (0..self.count).map(|index| self.piece(index));
        keys.all(|key| {
            let ascends = before.is_none_or(|before| before < key);
            before = Some(key);
            ascends && through.is_none_or(|through| key <= through)
        })
    }

    /// The children with the bounds of their keys.
    fn children<'a>(&'a self, bounds: Bounds<'a>) -> impl Iterator<Item = Child<'a>> {
        (0..=self.count).filter_map(move |index| {
            let low = match index.checked_sub(1) {
                Some(before) => Some(self.piece(before)),
                None => bounds.after,
            };
            let high = match index < self.count {
                true => Some(self.piece(index)),
                false => bounds.through,
            };
            let checksum = self.bytes.get(8 + 16 * index..)?.first_chunk::<16>()?;
            let pages = 8 + 16 * (self.count + 1);
            let page = self.bytes.get(pages + 8 * index..)?.first_chunk::<8>()?;
            let root = Root {
                page: u64::from_le_bytes(*page),
                checksum: u128::from_le_bytes(*checksum),
            };
            Some(Child {
                root,
                bounds: Bounds {
                    after: low,
                    through: high,
                },
            })
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;

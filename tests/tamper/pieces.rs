//! The contents of a volume, in pieces that can each be right, wrong or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::Filesystem;
use bilayer::fs::types::{Attr, FileKind};
use bilayer::ids::{ChunkIndex, Ino, ViewId};
use bilayer::meta::records::{ExtentRecord, ViewKind};
use bilayer::meta::{Meta, View};

use crate::support::{ADMIN, CHUNK, PAGE, ROOT};

/// Directory that the cases write to; it is not compared.
pub const SCRATCH: &str = "scratch";
/// The one snapshot.
pub const SNAPSHOT: &str = ".snapshots/one";

/// Pages at the start of a chunk that are pieces of their own; the others form one piece.
const SINGLE_PAGES: u32 = 8;
const CHUNK_PIECES: u32 = SINGLE_PAGES + 1;

/// A piece: a page of a file, or all pages of a chunk after the first ones; a file's attributes
/// (`path#`), an extended one (`path@name`), the target of a link (`path>`), the names in a
/// directory (`path/`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Piece {
    pub item: String,
    pub number: u32,
}

/// Pieces and their contents.
pub type Held = BTreeMap<Piece, Vec<u8>>;
/// Pieces and the outcomes of reading them.
pub type Readings = BTreeMap<Piece, Result<Vec<u8>, Errno>>;
/// The pieces for which a page of an object is read: path in the volume, page.
pub type Uses = BTreeMap<(String, u64), BTreeSet<Piece>>;

fn number_of_page(chunk: u32, page: u32) -> u32 {
    chunk * CHUNK_PIECES + page.min(SINGLE_PAGES)
}

/// Offset and length of a piece of a file.
fn range_of(number: u32) -> (u64, usize) {
    let (chunk, page) = (number / CHUNK_PIECES, (number % CHUNK_PIECES) as usize);
    let len = if page < SINGLE_PAGES as usize {
        PAGE
    } else {
        CHUNK - page * PAGE
    };
    (u64::from(chunk) * CHUNK as u64 + (page * PAGE) as u64, len)
}

fn walk(fs: &Filesystem, path: &str) -> Result<Attr, Errno> {
    let mut attr = fs.getattr(ROOT)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        attr = fs.lookup(attr.node, name.as_bytes())?;
    }
    Ok(attr)
}

fn names(fs: &Filesystem, path: &str) -> Result<Vec<String>, Errno> {
    let node = walk(fs, path)?.node;
    let mut names = Vec::new();
    let handle = fs.open_dir(node)?;
    let listed = fs.read_dir(node, handle, 2, &mut |entry| {
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        true
    });
    fs.release_dir(node, handle);
    listed?;
    names.sort();
    Ok(names)
}

fn attributes(attr: &Attr) -> Vec<u8> {
    let Attr {
        kind,
        perm,
        nlink,
        uid,
        gid,
        size,
        mtime,
        ctime,
        ..
    } = attr;
    format!("{kind:?} {perm:o} {nlink} {uid} {gid} {size} {mtime:?} {ctime:?}").into_bytes()
}

fn read(fs: &Filesystem, piece: &Piece) -> Result<Vec<u8>, Errno> {
    let item = &*piece.item;
    if let Some(path) = item.strip_suffix('#') {
        return Ok(attributes(&walk(fs, path)?));
    }
    if let Some(path) = item.strip_suffix('/') {
        return Ok(names(fs, path)?.join("\n").into_bytes());
    }
    if let Some(path) = item.strip_suffix('>') {
        return fs.readlink(walk(fs, path)?.node);
    }
    if let Some((path, name)) = item.split_once('@') {
        return fs.get_xattr(walk(fs, path)?.node, name.as_bytes());
    }
    let node = walk(fs, item)?.node;
    let handle = fs.open_file(&ADMIN, node, libc::O_RDONLY)?;
    let (offset, len) = range_of(piece.number);
    let mut bytes = vec![0xEE; len];
    let read = fs.read(node, handle, offset, &mut bytes);
    fs.release(node, handle);
    bytes.truncate(read?);
    Ok(bytes)
}

/// Reads these pieces.
pub fn look(fs: &Filesystem, held: &Held) -> Readings {
    let pieces = held.keys();
    pieces
        .map(|piece| (piece.clone(), read(fs, piece)))
        .collect()
}

/// All pieces of the volume, of the live view and of the snapshot if there is one.
pub fn survey(fs: &Filesystem) -> Held {
    let mut held = Held::new();
    add(fs, "", &mut held);
    if walk(fs, SNAPSHOT).is_ok() {
        add(fs, SNAPSHOT, &mut held);
    }
    held
}

fn add(fs: &Filesystem, path: &str, held: &mut Held) {
    let mut put = |item: String, number: u32| {
        let piece = Piece { item, number };
        let bytes = read(fs, &piece).expect("read");
        held.insert(piece, bytes);
    };
    let attr = walk(fs, path).expect("there");
    put(format!("{path}#"), 0);
    for name in fs
        .list_xattr(&ADMIN, attr.node)
        .expect("list")
        .split(|byte| *byte == 0)
    {
        if !name.is_empty() {
            put(format!("{path}@{}", String::from_utf8_lossy(name)), 0);
        }
    }
    match attr.kind {
        FileKind::Symlink => put(format!("{path}>"), 0),
        FileKind::Regular => {
            let last = attr.size.saturating_sub(1);
            let page = (last % CHUNK as u64) as usize / PAGE;
            let end = number_of_page((last / CHUNK as u64) as u32, page as u32);
            (0..=end).for_each(|number| put(path.to_owned(), number));
        }
        FileKind::Directory => {
            put(format!("{path}/"), 0);
            for name in names(fs, path).expect("list") {
                let below = format!("{path}{}{name}", if path.is_empty() { "" } else { "/" });
                if below != SCRATCH {
                    add(fs, &below, held);
                }
            }
        }
        _ => {}
    }
}

/// Inode and view of every item that is a file.
pub fn files_of(fs: &Filesystem, held: &Held) -> BTreeMap<String, (Ino, ViewId)> {
    let items: BTreeSet<&String> = held.keys().map(|piece| &piece.item).collect();
    let files = items
        .into_iter()
        .filter(|item| !item.ends_with(['#', '/', '>']));
    let files = files.filter(|item| !item.contains('@'));
    files
        .map(|item| {
            let node = walk(fs, item).expect("there").node;
            (item.clone(), (node.ino(), node.view()))
        })
        .collect()
}

/// The pages of objects from which the pieces of files are read, according to the records.
pub fn uses(meta: &Arc<Meta>, files: &BTreeMap<String, (Ino, ViewId)>, held: &Held) -> Uses {
    let snapshot = meta.find_view(ViewKind::Snapshot, "one");
    let mut uses = Uses::new();
    for (piece, _) in held
        .iter()
        .filter(|(piece, _)| files.contains_key(&piece.item))
    {
        let (ino, view) = files[&piece.item];
        let view = match &snapshot {
            Some((id, record)) if *id == view => View(record.generation),
            _ => View::LIVE,
        };
        let (chunk, first) = (piece.number / CHUNK_PIECES, piece.number % CHUNK_PIECES);
        let extent = meta.extent(ino, ChunkIndex(chunk), view).expect("extent");
        let Some((_, ExtentRecord::Parts { parts, .. })) = extent else {
            continue;
        };
        let pages = if first < SINGLE_PAGES {
            first..first + 1
        } else {
            first..1041
        };
        for page in pages {
            let Some(part) = parts.iter().find(|part| part.pages.contains(page)) else {
                continue;
            };
            let name = part.id.name;
            let path = format!("objects/{:08x}/{}", name.folder.0, name.object);
            uses.entry((path, u64::from(page)))
                .or_default()
                .insert(piece.clone());
        }
    }
    uses
}

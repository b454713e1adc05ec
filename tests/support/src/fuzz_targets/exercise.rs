//! Uses a filesystem with arbitrary records. Errors are expected; panics and hangs are not.

use std::collections::BTreeSet;

use bilayer::errno::Errno;
use bilayer::fs::Filesystem;
use bilayer::fs::snapshots::ViewKind;
use bilayer::fs::types::{
    DirentRef, Fallocate, FileKind, NodeId, RenameFlags, SeekWhence, SetAttr, WriteFlags, XattrMode,
};

use super::sample::{ROOT, ROOT_USER};

/// Maximum number of entries that are visited.
const ENTRIES_MAX: usize = 64;

/// Reads everything, changes everything, takes and deletes views, closes.
pub fn exercise(fs: &Filesystem) {
    let seen = look(fs);
    for (node, kind) in &seen {
        let _ = change(fs, *node, *kind);
    }
    let _ = views(fs);
    let _ = names(fs);
    let _ = fs.run_maintenance();
    let _ = fs.finish_purge();
    let _ = fs.sync();
    let _ = fs.statfs();
    let _ = look(fs);
    let _ = fs.close();
}

/// Walks the tree; a circle is not followed for ever.
fn look(fs: &Filesystem) -> Vec<(NodeId, FileKind)> {
    let mut seen = vec![(ROOT, FileKind::Directory)];
    let mut known = BTreeSet::from([ROOT.0]);
    let mut at = 0;
    while at < seen.len() && seen.len() < ENTRIES_MAX {
        let (node, kind) = seen[at];
        at += 1;
        let _ = inspect(fs, node, kind);
        if kind != FileKind::Directory {
            continue;
        }
        let Ok(handle) = fs.open_dir(node) else {
            continue;
        };
        let mut listed = 0;
        let _ = fs.read_dir_plus(node, handle, 0, &mut |_, _| {
            listed += 1;
            listed < ENTRIES_MAX
        });
        let mut names = Vec::new();
        let _ = fs.read_dir(node, handle, 2, &mut |entry| {
            names.push(entry.name.to_vec());
            names.len() < ENTRIES_MAX
        });
        fs.release_dir(node, handle);
        for name in names {
            if let Ok(attr) = fs.lookup(node, &name)
                && known.insert(attr.node.0)
            {
                seen.push((attr.node, attr.kind));
            }
        }
    }
    seen
}

fn inspect(fs: &Filesystem, node: NodeId, kind: FileKind) -> Result<(), Errno> {
    let attr = fs.getattr(node)?;
    if kind == FileKind::Symlink {
        let _ = fs.readlink(node);
    }
    if let Ok(names) = fs.list_xattr(&ROOT_USER, node) {
        for name in names.split(|byte| *byte == 0).take(ENTRIES_MAX) {
            let _ = fs.get_xattr(node, name);
        }
    }
    if kind != FileKind::Regular {
        return Ok(());
    }
    let handle = fs.open_file(&ROOT_USER, node, libc::O_RDONLY)?;
    let mut out = vec![0; 20_000];
    let middle = attr.size / 2;
    for offset in [
        0,
        middle,
        attr.size.saturating_sub(9_000),
        attr.size,
        1 << 40,
    ] {
        if let Ok(read) = fs.read(node, handle, offset, &mut out) {
            assert!(read as u64 <= attr.size.saturating_sub(offset).min(20_000));
        }
        for whence in [SeekWhence::Data, SeekWhence::Hole] {
            let _ = fs.seek(node, handle, offset, whence);
        }
    }
    fs.release(node, handle);
    Ok(())
}

fn change(fs: &Filesystem, node: NodeId, kind: FileKind) -> Result<(), Errno> {
    let _ = fs.set_xattr(&ROOT_USER, node, b"user.new", &[9; 300], XattrMode::Any);
    let _ = fs.remove_xattr(node, b"user.one");
    let chmod = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    fs.setattr(&ROOT_USER, node, &chmod)?;
    if kind != FileKind::Regular {
        return Ok(());
    }
    let size = fs.getattr(node)?.size;
    let handle = fs.open_file(&ROOT_USER, node, libc::O_RDWR)?;
    for (offset, len) in [(0, 10), (3_000, 6_000), (size, 5_000), (5 << 20, 100)] {
        let _ = fs.write(
            node,
            handle,
            offset,
            &vec![1; len],
            WriteFlags {
                kill_privileges: true,
                ..WriteFlags::default()
            },
        );
    }
    let _ = fs.fallocate(node, handle, 4_000, 9_000, Fallocate::PunchHole);
    let _ = fs.fallocate(
        node,
        handle,
        0,
        30_000,
        Fallocate::Allocate { keep_size: true },
    );
    let _ = fs.fsync(node, handle, false);
    if let Ok((copy, other)) = fs.create(&ROOT_USER, ROOT, b"copy", 0o644, libc::O_RDWR) {
        let _ = fs.copy_file_range(node, 0, copy.node, 0, 1 << 22);
        fs.release(copy.node, other);
    }
    let truncation = SetAttr {
        size: Some(4_100),
        ..SetAttr::default()
    };
    let _ = fs.setattr(&ROOT_USER, node, &truncation);
    fs.release(node, handle);
    Ok(())
}

fn views(fs: &Filesystem) -> Result<(), bilayer::fs::snapshots::ViewError> {
    for kind in [ViewKind::Snapshot, ViewKind::Image] {
        let _ = fs.views(kind);
        let _ = fs.create_view(kind, "fresh", None, "");
    }
    let _ = fs.diff_views("one", None, &mut |_| {});
    let _ = fs.diff_views("one", Some("fresh"), &mut |_| {});
    let _ = fs.restore("one", Some("dir".as_ref()));
    let _ = fs.restore("one", None);
    let _ = fs.create_view(ViewKind::Image, "again", Some("one"), "");
    let _ = fs.rename_view(ViewKind::Snapshot, "fresh", "other");
    for (kind, name) in [(ViewKind::Snapshot, "one"), (ViewKind::Image, "two")] {
        fs.delete_view(kind, name)?;
    }
    Ok(())
}

fn names(fs: &Filesystem) -> Result<(), Errno> {
    let none = RenameFlags::default();
    let _ = fs.rename(
        &ROOT_USER,
        DirentRef::new(ROOT, b"small"),
        DirentRef::new(ROOT, b"dir"),
        none,
    );
    let _ = fs.rename(
        &ROOT_USER,
        DirentRef::new(ROOT, b"small"),
        DirentRef::new(ROOT, b"smaller"),
        none,
    );
    let dir = fs.mkdir(&ROOT_USER, ROOT, b"made", 0o755)?;
    let _ = fs.rename(
        &ROOT_USER,
        DirentRef::new(ROOT, b"dir"),
        DirentRef::new(dir.node, b"dir"),
        none,
    );
    let _ = fs.rmdir(ROOT, b"made");
    let dir_attr = fs.lookup(dir.node, b"dir")?;
    let _ = fs.unlink(dir_attr.node, b"large");
    let _ = fs.unlink(dir_attr.node, b"link");
    let _ = fs.rmdir(dir.node, b"dir");
    Ok(())
}

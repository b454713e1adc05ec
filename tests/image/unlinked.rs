//! An inode without a name when an image is made is not part of the image, and neither is anything
//! below it.

use super::*;
use bilayer::fs::types::{Handle, WriteFlags};

/// Restores `dir` from a snapshot while it is open: the replaced directory stays, with all its
/// entries, as a directory without a name.
fn replace_open_directory(fs: &Filesystem) -> (NodeId, Handle) {
    let dir = fs.mkdir(&ADMIN, ROOT, b"dir", 0o755).unwrap();
    let sub = fs.mkdir(&ADMIN, dir.node, b"sub", 0o755).unwrap();
    for name in [&b"file"[..], b"linked"] {
        let created = fs.create(&ADMIN, sub.node, name, 0o644, libc::O_RDWR);
        let (attr, handle) = created.unwrap();
        fs.write(
            attr.node,
            handle,
            0,
            &pattern(5, 0, 10_000),
            WriteFlags::default(),
        )
        .unwrap();
        fs.release(attr.node, handle);
    }
    let linked = fs.lookup(sub.node, b"linked").unwrap();
    fs.link(linked.node, ROOT, b"outside").unwrap();
    fs.create_view(ViewKind::Snapshot, "one", None, "").unwrap();
    let handle = fs.open_dir(dir.node).unwrap();
    fs.restore("one", Some("dir".as_ref())).unwrap();
    (dir.node, handle)
}

#[test]
fn a_tree_without_a_name_is_left_out() {
    let disk = Disk::new();
    disk.create("source", None);
    let fs = disk.open("source");
    let (node, handle) = replace_open_directory(&fs);
    make_image(&fs, "copy");
    fs.deploy_image("copy", disk.at("copy"), &disk.options(), &NoProgress)
        .unwrap();
    fs.release_dir(node, handle);
    fs.close().unwrap();
    // It has no faults, link counts and counters included.
    let counts = disk.audit("copy");
    assert_eq!(counts.inodes, 6);
    disk.with("copy", |fs| {
        let outside = fs.lookup(ROOT, b"outside").unwrap();
        assert_eq!(outside.nlink, 1);
        let sub = find(fs, "dir/sub");
        assert_eq!(fs.lookup(sub, b"linked").unwrap().nlink, 1);
    });
}

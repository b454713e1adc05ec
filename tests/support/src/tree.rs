//! A tree with everything that copies often get wrong.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use crate::real::noise;

/// Lengths around every boundary of the format: half a page, a payload (4032), a chunk (4 MiB).
pub const LENGTHS: [usize; 13] = [
    0, 1, 2047, 2048, 2049, 4031, 4032, 4033, 4095, 4096, 4_194_303, 4_194_304, 4_194_305,
];

/// A line of text in many files of the tree.
pub const LINE: &str = "It is a truth universally acknowledged, says file number";

/// Creates the tree; its root must not exist.
pub fn make(root: &Path) {
    fs::create_dir(root).unwrap();
    for len in LENGTHS.into_iter().chain([5 * 1024 * 1024 + 1]) {
        fs::write(root.join(format!("length-{len}")), noise(len as u64, len)).unwrap();
    }
    texts(&root.join("texts"));
    odd_names(&root.join("odd names"));
    links(&root.join("links"));
    sparse(&root.join("sparse"));
    attributes(&root.join("attributes"));
}

fn texts(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for number in 0..100 {
        let line = format!("{LINE} {number}\n");
        let name = format!("a-name-nobody-would-guess-{number}");
        fs::write(dir.join(name), line.repeat(1 + number * 7)).unwrap();
    }
}

fn odd_names(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let names: [&[u8]; 10] = [
        b" ",
        b"-rf",
        b"new\nline",
        b"\xff\xfe\x80 not UTF-8",
        b"\x01\x1b[1m",
        "\u{e9} and e\u{301}".as_bytes(),
        b"...",
        b"*?[a]'\"$`\\",
        &[b'n'; 255],
        b"trailing ",
    ];
    for (number, name) in names.into_iter().enumerate() {
        fs::write(dir.join(OsStr::from_bytes(name)), [number as u8]).unwrap();
    }
    fs::create_dir(dir.join(OsStr::from_bytes(b"dir\xc3\x28"))).unwrap();
}

fn links(dir: &Path) {
    fs::create_dir(dir).unwrap();
    symlink("../texts", dir.join("to a directory")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    symlink("t/".repeat(150), dir.join("of 300 bytes")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\n"), dir.join("odd")).unwrap();
    fs::write(dir.join("first"), "one file of three names").unwrap();
    fs::hard_link(dir.join("first"), dir.join("second")).unwrap();
    fs::create_dir(dir.join("deeper")).unwrap();
    fs::hard_link(dir.join("first"), dir.join("deeper/third")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, mode, 0).unwrap();
}

fn sparse(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.write_all(b"start").unwrap();
    file.write_all_at(b"in the middle", 9_000_001).unwrap();
    file.seek(SeekFrom::Start(20_000_000)).unwrap();
    file.write_all(b"near the end").unwrap();
    file.set_len(30_000_000).unwrap();
}

/// `user::rw-,user:1:rwx,group::r--,mask::rwx,other::---` in the kernel's encoding: version 2, then
/// (tag, permissions, id) in little endian.
fn access_acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let nobody = u32::MAX;
    for (tag, permissions, id) in [
        (0x01u16, 6u16, nobody),
        (0x02, 7, 1),
        (0x04, 4, nobody),
        (0x10, 7, nobody),
        (0x20, 0, nobody),
    ] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn attributes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| {
        setxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|error| panic!("{} {name}: {error}", path.display()));
    };
    let file = dir.join("with attributes");
    fs::write(&file, "x").unwrap();
    set(&file, "user.comment", b"an attribute's value");
    set(&file, "user.empty", b"");
    set(&file, "user.large", &noise(9, 2000));
    set(dir, "user.of.a.directory", b"too");
    let file = dir.join("with an ACL");
    fs::write(&file, "x").unwrap();
    set(&file, "system.posix_acl_access", &access_acl());
    let inheriting = dir.join("with a default ACL");
    fs::create_dir(&inheriting).unwrap();
    set(&inheriting, "system.posix_acl_default", &access_acl());
    for (name, mode) in [("setgid", 0o2775), ("sticky", 0o1777), ("closed", 0o000)] {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let owned = dir.join("of another user, setuid");
    fs::write(&owned, "x").unwrap();
    std::os::unix::fs::chown(&owned, Some(12_345), Some(54_321)).unwrap();
    fs::set_permissions(&owned, PermissionsExt::from_mode(0o4711)).unwrap();
    for (name, seconds) in [("old", 0u64), ("newer", 4_000_000_000)] {
        let file = File::create(dir.join(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds, 123_456_789);
        file.set_modified(time).unwrap();
    }
}

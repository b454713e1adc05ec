//! `/run/mount/utab`: what mount(8) and umount(8) remember of a mount besides what the kernel lists.
//!
//! umount(8) of an absolute path asks the kernel for the type of the filesystem, is told `fuse`,
//! and would unmount by itself without waiting for anything. Where a mount has a line here it
//! looks further and finds `umount.bilayer`, which comes back when everything is on disk. The line
//! is made with the mount and goes with it; it is no harm if one is missing or is left behind.
//!
//! Format and lock are those of libmount: one line a mount, fields `NAME=value` with blanks,
//! tabs, newlines and backslashes in octal; `utab.lock` is locked by flock(2) while a new file is
//! put in its place.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::identity::effective_user;

const DIRECTORY: &str = "/run/mount";
/// Names the helper that umount(8) is to call.
const OPTIONS: &[u8] = b"OPTS=uhelper=bilayer";
/// How long somebody else may have the file locked.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes the line of a mount that root has made.
pub(super) fn add(volume: &Path, dir: &Path) {
    if effective_user() != 0 {
        return;
    }
    let mut line = field(b"SRC=", volume);
    line.push(b' ');
    line.extend(field(b"TARGET=", dir));
    line.extend_from_slice(b" ROOT=/ ");
    line.extend_from_slice(OPTIONS);
    told(rewrite(Path::new(DIRECTORY), volume, Some(&line)));
}

/// Takes away the lines of that volume's mounts, wherever they were moved to.
pub(super) fn remove(volume: &Path) {
    if effective_user() == 0 {
        told(rewrite(Path::new(DIRECTORY), volume, None));
    }
}

fn told(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "/run/mount/utab stays as it is: umount(8) may not wait");
    }
}

fn field(name: &[u8], path: &Path) -> Vec<u8> {
    let mut field = name.to_vec();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => field.extend(format!("\\{byte:03o}").into_bytes()),
            plain => field.push(plain),
        }
    }
    field
}

/// Every user may lock what everybody may read, and keep it so: a mount does not hang on that.
fn lock_soon(lock: &File) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

/// Puts the file anew without the volume's lines, and with this one if there is one.
fn rewrite(directory: &Path, volume: &Path, line: Option<&[u8]>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut lock = OpenOptions::new();
    let lock = lock.read(true).append(true).create(true);
    let lock = lock.open(directory.join("utab.lock"))?;
    lock_soon(&lock)?;
    let path = directory.join("utab");
    let found = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result?,
    };
    let source = field(b"SRC=", volume);
    let is_ours = |line: &&[u8]| {
        let has = |wanted: &[u8]| {
            line.split(|&byte| byte == b' ')
                .any(|field| field == wanted)
        };
        has(&source) && (has(OPTIONS) || line.ends_with(b"uhelper=bilayer"))
    };
    let lines = found.split(|&byte| byte == b'\n');
    let kept: Vec<&[u8]> = lines
        .filter(|line| !line.is_empty() && !is_ours(line))
        .chain(line)
        .collect();
    let new = directory.join("utab.bilayer");
    let mut file = File::create(&new)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    for line in kept {
        file.write_all(line)?;
        file.write_all(b"\n")?;
    }
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_and_go_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let utab = || fs::read_to_string(dir.path().join("utab")).unwrap();
        let other = "SRC=/dev/sdb TARGET=/media ROOT=/ OPTS=user=me\n";
        fs::write(dir.path().join("utab"), other).unwrap();
        let volume = Path::new("/srv/a b\\c");
        let mut line = field(b"SRC=", volume);
        line.extend_from_slice(b" TARGET=/mnt ROOT=/ OPTS=uhelper=bilayer");
        for _ in 0..2 {
            rewrite(dir.path(), volume, Some(&line)).unwrap();
            let ours = "SRC=/srv/a\\040b\\134c TARGET=/mnt ROOT=/ OPTS=uhelper=bilayer\n";
            assert_eq!(utab(), format!("{other}{ours}"));
        }
        rewrite(dir.path(), Path::new("/srv/a"), None).unwrap();
        assert_eq!(utab().lines().count(), 2);
        rewrite(dir.path(), volume, None).unwrap();
        assert_eq!(utab(), other);
        rewrite(&dir.path().join("new"), volume, None).unwrap();
    }

    #[test]
    fn a_lock_that_is_kept_holds_nobody_up_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("utab.lock")).unwrap();
        lock.lock().unwrap();
        let error = rewrite(dir.path(), Path::new("/srv/a"), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        rewrite(dir.path(), Path::new("/srv/a"), None).unwrap();
    }
}

//! `/run/mount/utab`: mount(8) and umount(8) record here what the kernel does not list of a mount.
//!
//! umount(8) of an absolute path asks the kernel for the type of the filesystem, gets `fuse`,
//! and would unmount by itself without waiting. If a mount has a line here, umount(8) calls
//! `umount.bilayer`, which returns when everything is on disk. The line is added with the mount and
//! removed with it; a missing or stale line does no harm.
//!
//! Format and lock are those of libmount: one line a mount, fields `NAME=value` with blanks,
//! tabs, newlines and backslashes in octal; `utab.lock` is locked by flock(2) while a new file is
//! put in its place.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::identity::effective_user;
use crate::sys::mountinfo::device_name;

const DIRECTORY: &str = "/run/mount";
/// The field that names the helper for umount(8).
const OPTIONS: &[u8] = b"OPTS=uhelper=bilayer";
/// Prefix of the option that identifies the mount of a line.
const MARK: &[u8] = b"x-bilayer.mount=";
/// How long another process may hold the lock of the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// A mount of root. Its line is identified by the daemon's process and the device number. The
/// kernel reuses the device number as soon as the mount is removed, but the process number only
/// after the daemon has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The volume's directory, as the mount shows it.
    pub(crate) volume: PathBuf,
    /// Where it was mounted.
    pub(crate) dir: PathBuf,
    /// Device number of the mount.
    pub(crate) device: u64,
    /// The daemon.
    pub(crate) process: u32,
}

/// The change to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edit {
    Add,
    Remove,
}

impl Entry {
    /// Adds its line.
    pub(crate) fn add(&self) {
        if effective_user() == 0 {
            log_failure(rewrite(Path::new(DIRECTORY), self, Edit::Add));
        }
    }

    /// Removes its lines, wherever the mount was moved to.
    pub(crate) fn remove(&self) {
        if effective_user() == 0 {
            log_failure(rewrite(Path::new(DIRECTORY), self, Edit::Remove));
        }
    }

    /// The option that identifies the mount; options that begin with `x-` are comments.
    fn mark(&self) -> Vec<u8> {
        let name = format!("{}-{}", device_name(self.device), self.process);
        [MARK, name.as_bytes()].concat()
    }

    fn line(&self) -> Vec<u8> {
        let fields = [
            field(b"SRC=", &self.volume),
            field(b"TARGET=", &self.dir),
            b"ROOT=/".to_vec(),
            [OPTIONS, b",", &self.mark()].concat(),
        ];
        fields.join(&b' ')
    }

    /// True if an edit replaces or removes this line. That is the entry's own line, and any line of
    /// the same volume and directory that mount(8) added. Adding an entry also replaces such a line
    /// of another daemon, which was killed. Removing one does not: a new mount may already have it.
    fn replaces(&self, line: &[u8], edit: Edit) -> bool {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let options = fields.iter().find_map(|field| field.strip_prefix(b"OPTS="));
        let options = options.unwrap_or_default().split(|&byte| byte == b',');
        let has_option = |wanted: &[u8]| options.clone().any(|option| option == wanted);
        let is_marked = options.clone().any(|option| option.starts_with(MARK));
        let has_field = |wanted: Vec<u8>| fields.contains(&&wanted[..]);
        has_option(&self.mark())
            || ((edit == Edit::Add || !is_marked)
                && has_option(b"uhelper=bilayer")
                && has_field(field(b"SRC=", &self.volume))
                && has_field(field(b"TARGET=", &self.dir)))
    }
}

fn log_failure(result: io::Result<()>) {
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

/// Locks the file. Every user who can read it can hold its lock for ever, and a mount must not wait
/// for that.
fn lock_with_timeout(lock: &File) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

/// Writes the file again without the entry's lines, and with a new line if the entry is added.
fn rewrite(directory: &Path, entry: &Entry, edit: Edit) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut lock = OpenOptions::new();
    let lock = lock.read(true).append(true).create(true);
    let lock = lock.open(directory.join("utab.lock"))?;
    lock_with_timeout(&lock)?;
    let path = directory.join("utab");
    let old = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result?,
    };
    let own = (edit == Edit::Add).then(|| entry.line());
    let lines = old.split(|&byte| byte == b'\n');
    let kept: Vec<&[u8]> = lines
        .filter(|line| !line.is_empty() && !entry.replaces(line, edit))
        .chain(own.as_deref())
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

    fn entry(volume: &str, dir: &str, minor: u32) -> Entry {
        Entry {
            volume: volume.into(),
            dir: dir.into(),
            device: libc::makedev(0, minor),
            process: 7,
        }
    }

    #[test]
    fn lines_are_added_and_removed_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let utab = || fs::read_to_string(dir.path().join("utab")).unwrap();
        let other = "SRC=/dev/sdb TARGET=/media ROOT=/ OPTS=user=me\n";
        fs::write(dir.path().join("utab"), other).unwrap();
        let one = entry("/srv/a b\\c", "/mnt", 50);
        for _ in 0..2 {
            rewrite(dir.path(), &one, Edit::Add).unwrap();
            let ours = "SRC=/srv/a\\040b\\134c TARGET=/mnt ROOT=/ \
                        OPTS=uhelper=bilayer,x-bilayer.mount=0:50-7\n";
            assert_eq!(utab(), format!("{other}{ours}"));
        }
        // Another mount, whose device number is that of the mount that was removed.
        let second = Entry {
            process: 8,
            ..entry("/srv/a b\\c", "/mnt2", 50)
        };
        rewrite(dir.path(), &second, Edit::Add).unwrap();
        rewrite(dir.path(), &one, Edit::Remove).unwrap();
        assert!(utab().contains("TARGET=/mnt2 ") && !utab().contains("TARGET=/mnt "));
        rewrite(dir.path(), &second, Edit::Remove).unwrap();
        assert_eq!(utab(), other);
        // A new mount on the same directory, while the first is still being closed.
        let third = Entry {
            process: 9,
            ..one.clone()
        };
        rewrite(dir.path(), &one, Edit::Add).unwrap();
        rewrite(dir.path(), &third, Edit::Add).unwrap();
        assert_eq!(utab().matches("TARGET=/mnt ").count(), 1);
        rewrite(dir.path(), &one, Edit::Remove).unwrap();
        assert!(utab().contains("0:50-9"), "{}", utab());
        rewrite(dir.path(), &third, Edit::Remove).unwrap();
        assert_eq!(utab(), other);
        rewrite(&dir.path().join("new"), &one, Edit::Remove).unwrap();
    }

    #[test]
    fn lines_of_mount_and_of_moved_mounts_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "SRC=/v TARGET=/m ROOT=/ OPTS=x-gvfs-show,uhelper=bilayer\n\
                     SRC=/v TARGET=/moved ROOT=/ OPTS=uhelper=bilayer,x-bilayer.mount=0:50-7\n\
                     SRC=/v TARGET=/other ROOT=/ OPTS=uhelper=bilayer,x-bilayer.mount=0:50-77\n";
        fs::write(dir.path().join("utab"), lines).unwrap();
        rewrite(dir.path(), &entry("/v", "/m", 50), Edit::Remove).unwrap();
        let left = fs::read_to_string(dir.path().join("utab")).unwrap();
        assert_eq!(left.lines().count(), 1);
        assert!(left.contains("/other"), "{left}");
    }

    #[test]
    fn waiting_for_a_held_lock_ends() {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("utab.lock")).unwrap();
        lock.lock().unwrap();
        let one = entry("/srv/a", "/mnt", 50);
        let error = rewrite(dir.path(), &one, Edit::Remove).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        rewrite(dir.path(), &one, Edit::Remove).unwrap();
    }
}

//! Opens this program's files in directories where other users may have created files and links.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::identity::effective_user;

/// Limit on the symbolic links in one path, as in the kernel.
const LINKS_MAX: usize = 40;
const LOOK_UP: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// True if only root and this user decide what a path leads to: its directory belongs to them and
/// is not writable for others, and nobody else can replace it.
pub(crate) fn is_controlled_by_us(path: &Path) -> bool {
    Parent::of(path).is_ok_and(|parent| parent.is_controlled_by_us)
}

/// A part of a path that users other than root and this one can change or replace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Exposed {
    /// A directory on the path, or what the path leads to.
    pub(crate) path: PathBuf,
    /// `belongs to user 1000`.
    pub(crate) why: String,
}

/// The first part of a path that others can change or replace: a directory that leads to it, or the
/// file or directory itself. `None` if only root and this user decide what is there.
///
/// # Errors
/// When the path leads nowhere, or cannot be looked up.
pub(crate) fn find_exposed(path: &Path) -> io::Result<Option<Exposed>> {
    let mut parent = Parent::of(path)?;
    for _ in 0..LINKS_MAX {
        if parent.exposed.is_some() {
            return Ok(parent.exposed);
        }
        let flags = LOOK_UP | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&parent.dir, &parent.name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        // Every link has the mode 777.
        if !is_link || !is_trusted(stat.st_uid) {
            let path = parent.path.join(&parent.name);
            return Ok(exposed_by(&stat).map(|why| Exposed { path, why }));
        }
        parent = parent.of_target()?;
    }
    Err(Errno::LOOP.into())
}

/// How others can change a file or directory.
fn exposed_by(stat: &Stat) -> Option<String> {
    if !is_trusted(stat.st_uid) {
        return Some(format!("belongs to user {}", stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    (mode & 0o022 != 0).then(|| format!("is writable for other users (mode {mode:04o})"))
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == effective_user()
}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.into())
}

/// The directory of a path's last name, held open. The checks below apply to this very directory,
/// in which the name is then opened, even if directories are renamed in between.
struct Parent {
    dir: OwnedFd,
    name: OsString,
    /// The path of the directory, without links.
    path: PathBuf,
    /// The first directory of the path in which others can replace entries of root and this user.
    exposed: Option<Exposed>,
    /// Only root and this user decide what the path leads to, even if nothing is there yet.
    is_controlled_by_us: bool,
}

impl Parent {
    fn of(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, "/", LOOK_UP | OFlags::DIRECTORY, Mode::empty())?;
        Self::walk(root, PathBuf::from("/"), None, &std::path::absolute(path)?)
    }

    /// The parent of the target of the name, which is a symbolic link.
    fn of_target(self) -> io::Result<Self> {
        let target = rustix::fs::readlinkat(&self.dir, &self.name, Vec::new())?;
        let target = OsString::from_vec(target.into_bytes());
        Self::walk(self.dir, self.path, self.exposed, Path::new(&target))
    }

    /// Follows a path name by name, because each directory on it determines where the path leads.
    fn walk(
        mut dir: OwnedFd,
        mut at: PathBuf,
        mut exposed: Option<Exposed>,
        path: &Path,
    ) -> io::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let mut steps = Vec::new();
        push_steps(&mut steps, path.parent().unwrap_or(Path::new("")));
        let mut links = 0;
        while let Some(step) = steps.pop() {
            let stat = rustix::fs::fstat(&dir)?;
            exposed = exposed.or_else(|| exposed_directory(&at, &stat));
            match enter(&dir, &step)? {
                Step::Directory(next) => {
                    dir = next;
                    // The path has no links, so its end is what `..` removes.
                    match step == ".." {
                        true => drop(at.pop()),
                        false => at.push(&step),
                    }
                }
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    push_steps(&mut steps, Path::new(&target));
                }
            }
        }
        let parent = rustix::fs::fstat(&dir)?;
        let exposed = exposed.or_else(|| exposed_directory(&at, &parent));
        let is_controlled_by_us = exposed.is_none() && parent.st_mode & 0o022 == 0;
        let name = name.to_owned();
        Ok(Self {
            dir,
            name,
            path: at,
            exposed,
            is_controlled_by_us,
        })
    }

    fn open(&self, flags: OFlags) -> rustix::io::Result<File> {
        let flags = flags | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &self.name, flags, Mode::from_raw_mode(0o600))?;
        Ok(File::from(file))
    }
}

fn exposed_directory(path: &Path, stat: &Stat) -> Option<Exposed> {
    if is_trusted_directory(stat) {
        return None;
    }
    let path = path.to_owned();
    exposed_by(stat).map(|why| Exposed { path, why })
}

enum Step {
    Directory(OwnedFd),
    Link(OsString),
}

/// Looks up one name. Tried as a directory first, which triggers an automounter.
fn enter(dir: &OwnedFd, name: &OsStr) -> io::Result<Step> {
    let flags = LOOK_UP | OFlags::NOFOLLOW;
    match rustix::fs::openat(dir, name, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        directory => return Ok(Step::Directory(directory?)),
    }
    let link = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&link)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    if !is_trusted(stat.st_uid) {
        let owner = stat.st_uid;
        return Err(refused(format!(
            "a symbolic link in its path belongs to user {owner}"
        )));
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(Step::Link(OsString::from_vec(target.into_bytes())))
}

/// Pushes the names of a path on the stack of names to look up; the first name is popped first.
fn push_steps(steps: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev();
    let names = names.filter(|name| *name != Component::CurDir);
    steps.extend(names.map(|name| name.as_os_str().to_owned()));
}

/// True if others cannot replace entries of root and this user in a directory. That holds in a
/// sticky directory too, where entries added by others belong to them.
fn is_trusted_directory(dir: &Stat) -> bool {
    let is_sticky = dir.st_mode & libc::S_ISVTX != 0;
    is_trusted(dir.st_uid) && (dir.st_mode & 0o022 == 0 || is_sticky)
}

/// Opens an existing pipe (which waits for its reader) or device for writing. A link that others
/// may have created is not followed, and the file must belong to root or this user.
///
/// # Errors
/// When open(2) fails; permission denied for a link or a file that others may have created.
pub(crate) fn open_to_write(path: &Path) -> io::Result<File> {
    let parent = Parent::of(path)?;
    let links = match parent.is_controlled_by_us {
        // Left to the kernel: links in `/proc/self/fd` lead where no path does.
        true => OFlags::empty(),
        false => OFlags::NOFOLLOW,
    };
    let file = match parent.open(OFlags::WRONLY | links) {
        Err(Errno::LOOP) => Err(refused(LINK_OF_OTHERS)),
        result => result.map_err(io::Error::from),
    }?;
    check_owner(&file)?;
    Ok(file)
}

/// Opens a plain file for reading and appending, or creates it with mode 0600. No link is followed,
/// and a pipe does not block.
///
/// # Errors
/// When open(2) fails; permission denied for a file that others may have created, for a symbolic
/// link, for anything but a plain file, and for a file with a second name that others may have
/// given it.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    open_plain(&Parent::of(path)?, OFlags::RDWR).map_err(link_refused)
}

/// Opens an existing plain file for reading. No link is followed, and a pipe does not block.
///
/// # Errors
/// As for [`open_to_append`], and when there is no such file.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    let parent = Parent::of(path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = parent.open(flags).map_err(io::Error::from);
    let file = file.map_err(link_refused)?;
    if !file.metadata()?.is_file() {
        return Err(refused(NOT_PLAIN));
    }
    check_owner(&file)?;
    Ok(file)
}

fn link_refused(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ELOOP) => refused("it is a symbolic link"),
        _ => error,
    }
}

/// Opens a plain file for appending, or creates it with mode 0600. A symbolic link to the file is
/// followed if only root and this user can have created it.
///
/// # Errors
/// When open(2) fails; permission denied for a file or a link that others may have created, for
/// anything but a plain file, and for a file with a second name that others may have given it.
pub(crate) fn open_link_to_append(path: &Path) -> io::Result<File> {
    let mut parent = Parent::of(path)?;
    for _ in 0..LINKS_MAX {
        match open_plain(&parent, OFlags::WRONLY) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                if !parent.is_controlled_by_us {
                    return Err(refused(LINK_OF_OTHERS));
                }
                parent = parent.of_target()?;
            }
            result => return result,
        }
    }
    Err(Errno::LOOP.into())
}

const LINK_OF_OTHERS: &str = "it is a symbolic link in a directory that other users can write to";
const NOT_PLAIN: &str = "it is no plain file";

fn open_plain(parent: &Parent, access: OFlags) -> io::Result<File> {
    let append = access | OFlags::APPEND;
    let file =
        parent.open(append | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY);
    let file = match file {
        // A pipe that nobody reads, or a socket.
        Err(Errno::NXIO) => Err(refused(NOT_PLAIN)),
        result => result.map_err(io::Error::from),
    }?;
    let metadata = file.metadata()?;
    // `/dev/null` accepts everything; a terminal or a pipe would make its writer wait.
    if !metadata.is_file() && !is_null_device(&metadata) {
        return Err(refused(NOT_PLAIN));
    }
    check_owner(&file)?;
    if metadata.nlink() > 1 && !parent.is_controlled_by_us {
        return Err(refused(
            "it has other names, and other users can write to its directory",
        ));
    }
    rustix::fs::fcntl_setfl(&file, append)?;
    Ok(file)
}

/// Memory device 3 of null(4).
fn is_null_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3)
}

fn check_owner(file: &File) -> io::Result<()> {
    let owner = file.metadata()?.uid();
    match is_trusted(owner) {
        true => Ok(()),
        false => Err(refused(format!("it belongs to user {owner}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::RenameFlags;

    fn share(dir: &Path, mode: u32) {
        std::fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
    }

    fn make_pipe(path: &Path) {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
    }

    #[test]
    fn links_and_files_of_other_users_are_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (prize, link) = (dir.path().join("prize"), dir.path().join("link"));
        std::fs::write(&prize, "kept").unwrap();
        symlink("prize", &link).unwrap();
        let opens = [open_to_write, open_link_to_append];
        for open in opens {
            assert!(is_controlled_by_us(&link) && open(&link).is_ok());
        }
        share(dir.path(), 0o1777);
        assert!(!is_controlled_by_us(&link));
        for open in opens {
            let error = open(&link).unwrap_err();
            assert!(error.to_string().contains("symbolic link"), "{error}");
            assert!(open(&prize).is_ok());
        }
        if effective_user() == 0 {
            chown(&prize, Some(4711), None).unwrap();
            for open in [open_to_write, open_link_to_append, open_to_append] {
                let error = open(&prize).unwrap_err();
                assert!(error.to_string().contains("4711"), "{error}");
            }
        }
        open_to_write(Path::new("/dev/null")).unwrap();
        open_link_to_append(Path::new("/dev/null")).unwrap();
        assert!(open_link_to_append(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn only_a_plain_file_of_one_name_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let opened = open_to_append(&file).unwrap();
        assert_eq!(opened.metadata().unwrap().mode() & 0o7777, 0o600);
        let flags = rustix::fs::fcntl_getfl(&opened).unwrap();
        assert!(flags.contains(OFlags::APPEND) && !flags.contains(OFlags::NONBLOCK));
        let refused = |open: fn(&Path) -> io::Result<File>, name: &str| {
            let error = open(&dir.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            error.to_string()
        };
        symlink(&file, dir.path().join("link")).unwrap();
        assert!(refused(open_to_append, "link").contains("symbolic link"));
        make_pipe(&dir.path().join("pipe"));
        std::fs::hard_link(&file, dir.path().join("second")).unwrap();
        for open in [open_to_append, open_link_to_append] {
            open(&file).unwrap();
            assert!(open(Path::new("/dev/zero")).is_err());
            assert!(refused(open, "pipe").contains("no plain file"));
        }
        share(dir.path(), 0o1777);
        for open in [open_to_append, open_link_to_append] {
            assert!(refused(open, "second").contains("other names"));
        }
    }

    #[test]
    fn own_links_are_followed_and_checked_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("inner")).unwrap();
        symlink("inner", path("to-inner")).unwrap();
        symlink("to-inner/../second", path("first")).unwrap();
        symlink(path("inner/log"), path("second")).unwrap();
        open_link_to_append(&path("first")).unwrap();
        assert!(path("inner/log").is_file());
        symlink("loop", path("loop")).unwrap();
        for name in ["loop", "loop/log"] {
            let error = open_link_to_append(&path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{error}");
        }
        // The target is in a directory that others write to, and has a second name.
        std::fs::hard_link(path("inner/log"), path("again")).unwrap();
        share(&path("inner"), 0o777);
        assert!(open_link_to_append(&path("first")).is_err());
    }

    #[test]
    fn a_writable_parent_directory_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("outer/inner");
        std::fs::create_dir_all(&inner).unwrap();
        let file = inner.join("file");
        assert!(is_controlled_by_us(&file));
        share(dir.path(), 0o1777);
        assert!(is_controlled_by_us(&file));
        share(dir.path(), 0o777);
        assert!(!is_controlled_by_us(&file));
        share(dir.path(), 0o700);
        if effective_user() == 0 {
            symlink(&inner, dir.path().join("link")).unwrap();
            let by_link = dir.path().join("link/file");
            open_to_append(&by_link).unwrap();
            std::os::unix::fs::lchown(dir.path().join("link"), Some(4711), None).unwrap();
            let error = open_to_append(&by_link).unwrap_err();
            assert!(error.to_string().contains("4711"), "{error}");
            chown(dir.path().join("outer"), Some(4711), None).unwrap();
            assert!(!is_controlled_by_us(&file));
        }
    }

    #[test]
    fn what_others_can_change_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let inner = root.join("outer/inner");
        std::fs::create_dir_all(&inner).unwrap();
        let file = inner.join("file");
        std::fs::write(&file, "").unwrap();
        share(&file, 0o755);
        symlink("outer/inner/../inner/file", root.join("link")).unwrap();
        let exposed = || {
            let found = ["outer/inner/file", "link"].map(|name| find_exposed(&root.join(name)));
            let [direct, by_link] = found.map(Result::unwrap);
            assert_eq!(direct, by_link);
            direct.map(|exposed| (exposed.path, exposed.why))
        };
        assert_eq!(exposed(), None);
        assert_eq!(find_exposed(&inner).unwrap(), None);
        for (path, mode) in [
            (&file, 0o775),
            (&inner, 0o777),
            (&root.join("outer"), 0o720),
        ] {
            share(path, mode);
            let why = format!("is writable for other users (mode {mode:04o})");
            assert_eq!(exposed(), Some((path.clone(), why)));
            share(path, 0o755);
        }
        if effective_user() == 0 {
            chown(&file, Some(4711), None).unwrap();
            assert_eq!(exposed(), Some((file, "belongs to user 4711".to_owned())));
        }
        assert!(find_exposed(&root.join("missing")).is_err());
        symlink("loop", root.join("loop")).unwrap();
        assert!(find_exposed(&root.join("loop")).is_err());
    }

    /// Another user repeatedly exchanges their directory and a link to one of ours.
    #[test]
    fn a_directory_that_is_exchanged_meanwhile_leads_to_no_file_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["ours", "shared", "shared/theirs"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        share(&path("shared"), 0o777);
        share(&path("shared/theirs"), 0o777);
        std::fs::write(path("prize"), "kept").unwrap();
        symlink(path("prize"), path("shared/theirs/log")).unwrap();
        symlink(path("ours"), path("shared/link")).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (path("shared/theirs"), path("shared/link"));
                while !is_over.load(Ordering::Relaxed) {
                    let both = RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &one, CWD, &two, both).unwrap();
                }
            });
            for _ in 0..5000 {
                if let Ok(mut file) = open_link_to_append(&path("shared/theirs/log")) {
                    io::Write::write_all(&mut file, b"line").unwrap();
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(std::fs::read(path("prize")).unwrap(), b"kept");
    }
}

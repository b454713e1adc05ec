//! Files of this program's own in directories where somebody else may have put something.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::identity::effective_user;

/// Whether nobody but root and this user decides what a name leads to: the directory that it is in is
/// theirs, and no others write to it.
pub fn is_ours(path: &Path) -> bool {
    let parent = std::path::absolute(path).ok();
    let parent = parent.as_deref().and_then(Path::parent);
    parent
        .and_then(|parent| std::fs::metadata(parent).ok())
        .is_some_and(|found| is_trusted(found.uid()) && found.mode() & 0o022 == 0)
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == effective_user()
}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.into())
}

/// Opens what is written to where it lies. A link that others may have put there is not followed,
/// and what is there has to be root's or this user's.
///
/// # Errors
/// What the operating system refuses; permission denied for what others may have put there.
pub fn open_to_write(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = if is_ours(path) { 0 } else { libc::O_NOFOLLOW };
    let link = "it is a symbolic link in a directory that others write to";
    open_checked(path, options.custom_flags(flags), link)
}

/// Opens a plain file to append to, or creates it with mode 0600. No link is followed, and a pipe
/// does not block.
///
/// # Errors
/// As [`open_to_write`]; permission denied also for a symbolic link of the user's own, for what is
/// no plain file, and for a file with a second name that others may have given it.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = open_checked(path, &mut options, "it is a symbolic link")?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refused("it is no plain file"));
    }
    if metadata.nlink() > 1 && !is_ours(path) {
        return Err(refused(
            "it has other names, and others write to its directory",
        ));
    }
    Ok(file)
}

fn open_checked(path: &Path, options: &mut OpenOptions, link: &str) -> io::Result<File> {
    let file = options
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => refused(link),
            _ => error,
        })?;
    let owner = file.metadata()?.uid();
    if is_trusted(owner) {
        Ok(file)
    } else {
        Err(refused(format!("it belongs to user {owner}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn share(dir: &Path) {
        std::fs::set_permissions(dir, Permissions::from_mode(0o1777)).unwrap();
    }

    #[test]
    fn links_and_files_of_others_are_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (prize, link) = (dir.path().join("prize"), dir.path().join("link"));
        std::fs::write(&prize, "kept").unwrap();
        symlink(&prize, &link).unwrap();
        let open = |path: &Path| open_to_write(path, OpenOptions::new().append(true).create(true));
        assert!(is_ours(&link) && open(&link).is_ok());
        share(dir.path());
        assert!(!is_ours(&link));
        let error = open(&link).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(open(&prize).is_ok() && open(&dir.path().join("new")).is_ok());
        if effective_user() == 0 {
            std::os::unix::fs::chown(&prize, Some(4711), None).unwrap();
            for error in [open(&prize), open_to_append(&prize)].map(Result::unwrap_err) {
                assert!(error.to_string().contains("4711"), "{error}");
            }
        }
        open_to_write(Path::new("/dev/null"), OpenOptions::new().write(true)).unwrap();
    }

    #[test]
    fn only_a_plain_file_of_one_name_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let mode = open_to_append(&file).unwrap().metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let refused = |name: &str| {
            let error = open_to_append(&dir.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            error.to_string()
        };
        symlink(&file, dir.path().join("link")).unwrap();
        assert!(refused("link").contains("symbolic link"));
        assert!(open_to_append(Path::new("/dev/null")).is_err());
        std::fs::hard_link(&file, dir.path().join("second")).unwrap();
        open_to_append(&file).unwrap();
        share(dir.path());
        assert!(refused("second").contains("other names"));
    }
}

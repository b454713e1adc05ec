//! Paths as people write them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::CliError;
use crate::keys::keystore::ENVIRONMENT;
use crate::sys::identity::effective_user;

/// Absolute, against the working directory; nothing of it need exist.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|error| CliError::io(format_args!("cannot find {}", path.display()), &error))
}

/// Absolute and without symbolic links, as `/proc/self/mountinfo` has it, also for a mount point
/// whose filesystem does not answer any more: then only its parent is looked at.
pub(super) fn without_links(path: &Path) -> PathBuf {
    if let Ok(found) = std::fs::canonicalize(path) {
        return found;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    match (
        absolute.parent().map(std::fs::canonicalize),
        absolute.file_name(),
    ) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

/// The absolute paths that a path may have been meant as where links are in it: as it is written,
/// and with a link as its last part alone.
pub(super) fn as_named(path: &Path) -> Vec<PathBuf> {
    let Ok(written) = std::path::absolute(path) else {
        return Vec::new();
    };
    // Without a slash at the end.
    let written: PathBuf = written.components().collect();
    let in_parent = written.parent().zip(written.file_name());
    let in_parent =
        in_parent.and_then(|(parent, name)| Some(std::fs::canonicalize(parent).ok()?.join(name)));
    let mut named: Vec<PathBuf> = in_parent.into_iter().chain([written]).collect();
    named.dedup();
    named
}

/// A keystore that the mount covers could not be written while the volume is mounted.
pub(super) fn refuse_to_cover(keystore: &Path, dir: &Path) -> Result<(), CliError> {
    match std::fs::canonicalize(keystore) {
        Ok(keystore) if keystore.starts_with(dir) => Err(CliError::usage(format!(
            "cannot mount on {}: the platform keystore {} is inside it",
            dir.display(),
            keystore.display()
        ))
        .with_hint(format!(
            "keep it elsewhere: --platform-keystore DIR or {ENVIRONMENT}=DIR"
        ))),
        _ => Ok(()),
    }
}

/// Whether nobody but root and this user decides what a name leads to: the directory that it is in is
/// theirs, and no others write to it.
pub(super) fn is_ours(path: &Path) -> bool {
    let parent = std::path::absolute(path).ok();
    let parent = parent.as_deref().and_then(Path::parent);
    parent
        .and_then(|parent| std::fs::metadata(parent).ok())
        .is_some_and(|found| is_trusted(found.uid()) && found.mode() & 0o022 == 0)
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == effective_user()
}

/// Opens what is written to where it lies. A link that others may have put there is not followed,
/// and what is there has to be root's or this user's.
pub(super) fn open_to_write(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    if !is_ours(path) {
        options.custom_flags(libc::O_NOFOLLOW);
    }
    let file = options
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => {
                refused("it is a symbolic link in a directory that others write to".to_owned())
            }
            _ => error,
        })?;
    let owner = file.metadata()?.uid();
    if is_trusted(owner) {
        Ok(file)
    } else {
        Err(refused(format!("it belongs to user {owner}")))
    }
}

/// The working directory, against which relative paths in options are meant.
pub(super) fn working_directory() -> Result<PathBuf, CliError> {
    std::env::current_dir()
        .map_err(|error| CliError::io("cannot find the working directory", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_as_far_as_there_is_something() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(without_links(&real.join("link")), real);
        assert_eq!(without_links(&real.join("link/gone")), real.join("gone"));
        assert_eq!(
            without_links(Path::new("/no/such/place")),
            Path::new("/no/such/place")
        );
    }

    #[test]
    fn paths_as_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (link, inner) = (real.join("link"), real.join("link/inner"));
        std::fs::create_dir(real.join("dir")).unwrap();
        std::os::unix::fs::symlink("dir", &link).unwrap();
        std::os::unix::fs::symlink("/", &inner).unwrap();
        assert_eq!(as_named(&link.join(".")), [link.as_path()]);
        assert_eq!(as_named(&inner), [real.join("dir/inner"), inner]);
        assert_eq!(as_named(Path::new("/")), [Path::new("/")]);
    }

    /// As that of a user whose home directory is the mount point.
    #[test]
    fn a_keystore_is_not_covered() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let keystore = home.join(".local/platform");
        refuse_to_cover(&keystore, &home).expect("none is there");
        std::fs::create_dir_all(&keystore).unwrap();
        let refused = refuse_to_cover(&keystore, &home).unwrap_err();
        assert!(refused.message.contains("keystore"), "{}", refused.message);
        refuse_to_cover(&keystore, &home.join("mnt")).expect("beside it");
    }

    #[test]
    fn links_and_files_of_others_are_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (prize, link) = (dir.path().join("prize"), dir.path().join("link"));
        std::fs::write(&prize, "kept").unwrap();
        std::os::unix::fs::symlink(&prize, &link).unwrap();
        let open = |path: &Path| open_to_write(path, OpenOptions::new().append(true).create(true));
        assert!(is_ours(&link) && open(&link).is_ok());
        let shared = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(dir.path(), shared).unwrap();
        assert!(!is_ours(&link));
        let error = open(&link).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(open(&prize).is_ok() && open(&dir.path().join("new")).is_ok());
        if effective_user() == 0 {
            std::os::unix::fs::chown(&prize, Some(4711), None).unwrap();
            let error = open(&prize).unwrap_err();
            assert!(error.to_string().contains("4711"), "{error}");
        }
        open_to_write(Path::new("/dev/null"), OpenOptions::new().write(true)).unwrap();
    }
}

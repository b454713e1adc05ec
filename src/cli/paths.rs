//! Paths as people write them.

use std::path::{Path, PathBuf};

use super::error::CliError;
use crate::keys::keystore::ENVIRONMENT;

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
}

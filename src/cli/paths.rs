//! Paths as people write them.

use std::path::{Path, PathBuf};

use super::error::CliError;

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
}

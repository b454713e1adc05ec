//! Paths of the command line.

use std::path::{Path, PathBuf};

use crate::diagnostics::UserError;
use crate::keys::keystore::ENVIRONMENT;

/// The absolute path, relative to the working directory. It need not exist.
///
/// # Errors
/// The working directory is not known, or the path is empty.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, UserError> {
    std::path::absolute(path)
        .map_err(|error| UserError::io(format_args!("cannot find {}", path.display()), &error))
}

/// The absolute path without symbolic links, as `/proc/self/mountinfo` has it. If the path cannot
/// be resolved (it does not exist, or is a mount point whose filesystem does not answer), only its
/// parent is.
pub(crate) fn without_links(path: &Path) -> PathBuf {
    if let Ok(resolved) = std::fs::canonicalize(path) {
        return resolved;
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

/// The absolute spellings of a path with symbolic links: as written, and with its parent resolved.
pub(crate) fn possible_paths(path: &Path) -> Vec<PathBuf> {
    let Ok(absolute) = std::path::absolute(path) else {
        return Vec::new();
    };
    // Without a trailing slash.
    let absolute: PathBuf = absolute.components().collect();
    let in_parent = absolute.parent().zip(absolute.file_name());
    let in_parent =
        in_parent.and_then(|(parent, name)| Some(std::fs::canonicalize(parent).ok()?.join(name)));
    let mut spellings: Vec<PathBuf> = in_parent.into_iter().chain([absolute]).collect();
    spellings.dedup();
    spellings
}

/// A file that the daemon writes while the volume is mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DaemonFile {
    Keystore,
    Log,
    Audit,
}

/// Refuses to mount on `dir` if the mount would cover a file of the daemon: the daemon could then
/// reach the file only through its own mount, or not at all.
///
/// # Errors
/// A usage error that names the file and the option that moves it.
pub(crate) fn refuse_covered(
    daemon_file: DaemonFile,
    path: &Path,
    dir: &Path,
) -> Result<(), UserError> {
    if !leads_through(path, dir) {
        return Ok(());
    }
    let (what, elsewhere) = match daemon_file {
        DaemonFile::Keystore => (
            "platform keystore",
            format!("--platform-keystore DIR or {ENVIRONMENT}=DIR"),
        ),
        DaemonFile::Log => ("log file", "-o log_file=FILE".to_owned()),
        DaemonFile::Audit => ("file of the audit", "-o audit_log=FILE".to_owned()),
    };
    Err(UserError::usage(format!(
        "cannot mount on {}: the {what} {} is inside it, or its path leads through it",
        dir.display(),
        path.display()
    ))
    .with_hint(format!("keep it elsewhere: {elsewhere}")))
}

/// Whether a path passes through a directory, even if a symbolic link in it leads out again. The
/// path need not exist.
fn leads_through(path: &Path, dir: &Path) -> bool {
    /// The kernel's own limit.
    const LINKS_MAX: usize = 40;
    let steps_of = |path: &Path| {
        let steps = path.components().rev();
        steps.map(|step| step.as_os_str().to_owned()).collect()
    };
    let mut steps: Vec<_> = std::path::absolute(path)
        .as_deref()
        .map_or_else(|_| Vec::new(), steps_of);
    let (mut reached, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = steps.pop() {
        match step == ".." {
            true => drop(reached.pop()),
            false => reached.push(&step),
        }
        if reached.starts_with(dir) {
            return true;
        }
        if links < LINKS_MAX
            && let Ok(target) = std::fs::read_link(&reached)
        {
            links += 1;
            reached.pop();
            steps.extend(steps_of(&target));
        }
    }
    false
}

/// The working directory, where relative paths of options start.
///
/// # Errors
/// The working directory was removed or may not be read.
pub(crate) fn working_directory() -> Result<PathBuf, UserError> {
    std::env::current_dir()
        .map_err(|error| UserError::io("cannot find the working directory", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_as_far_as_the_path_exists() {
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
    fn a_path_with_links_has_several_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (link, inner) = (real.join("link"), real.join("link/inner"));
        std::fs::create_dir(real.join("dir")).unwrap();
        std::os::unix::fs::symlink("dir", &link).unwrap();
        std::os::unix::fs::symlink("/", &inner).unwrap();
        assert_eq!(possible_paths(&link.join(".")), [link.as_path()]);
        assert_eq!(possible_paths(&inner), [real.join("dir/inner"), inner]);
        assert_eq!(possible_paths(Path::new("/")), [Path::new("/")]);
    }

    /// As if a user mounted on their home directory.
    #[test]
    fn a_mount_that_covers_the_keystore_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let keystore = home.join(".local/platform");
        let check = |path: &Path, dir: &Path| refuse_covered(DaemonFile::Keystore, path, dir);
        let refused = check(&keystore, &home).unwrap_err();
        assert!(refused.message.contains("keystore"), "{}", refused.message);
        std::fs::create_dir_all(&keystore).unwrap();
        check(&keystore, &home).unwrap_err();
        check(&keystore, &home.join("mnt")).expect("beside it");
    }

    #[test]
    fn paths_that_lead_through_the_mount_are_covered() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (mnt, there) = (top.join("mnt"), top.join("there"));
        std::fs::create_dir(&mnt).unwrap();
        std::fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink("../there", mnt.join("out")).unwrap();
        std::os::unix::fs::symlink("mnt/out", top.join("by-mnt")).unwrap();
        std::os::unix::fs::symlink("../mnt/../mnt/log", there.join("log")).unwrap();
        std::os::unix::fs::symlink("loop", top.join("loop")).unwrap();
        for path in ["mnt", "mnt/log", "mnt/out/log", "by-mnt", "there/log"] {
            assert!(leads_through(&top.join(path), &mnt), "{path}");
            refuse_covered(DaemonFile::Audit, &top.join(path), &mnt).unwrap_err();
        }
        for path in [
            "there",
            "there/../audit",
            "mnt2/log",
            "loop/log",
            "none/log",
        ] {
            assert!(!leads_through(&top.join(path), &mnt), "{path}");
        }
    }
}

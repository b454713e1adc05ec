//! Paths as people write them.

use std::path::{Path, PathBuf};

use crate::diagnostics::UserError;
use crate::keys::keystore::ENVIRONMENT;

/// Absolute, against the working directory; nothing of it need exist.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, UserError> {
    std::path::absolute(path)
        .map_err(|error| UserError::io(format_args!("cannot find {}", path.display()), &error))
}

/// Absolute and without symbolic links, as `/proc/self/mountinfo` has it, also for a mount point
/// whose filesystem does not answer any more: then only its parent is looked at.
pub(crate) fn without_links(path: &Path) -> PathBuf {
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
pub(crate) fn as_named(path: &Path) -> Vec<PathBuf> {
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

/// What is written to while a volume is mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Written {
    Keystore,
    Log,
    Audit,
}

/// What the mount covers could not be written while the volume is mounted; or only through the
/// mount, by the process that is to answer for it.
pub(crate) fn refuse_to_cover(written: Written, path: &Path, dir: &Path) -> Result<(), UserError> {
    if !leads_through(path, dir) {
        return Ok(());
    }
    let (what, elsewhere) = match written {
        Written::Keystore => (
            "platform keystore",
            format!("--platform-keystore DIR or {ENVIRONMENT}=DIR"),
        ),
        Written::Log => ("log file", "-o log_file=FILE".to_owned()),
        Written::Audit => ("file of the audit", "-o audit_log=FILE".to_owned()),
    };
    Err(UserError::usage(format!(
        "cannot mount on {}: the {what} {} is inside it, or its path leads through it",
        dir.display(),
        path.display()
    ))
    .with_hint(format!("keep it elsewhere: {elsewhere}")))
}

/// Whether the way to a file passes through a directory, also where a symbolic link in there leads
/// out of it again. Nothing of the path need exist.
fn leads_through(path: &Path, dir: &Path) -> bool {
    /// As many as the kernel follows.
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

/// The working directory, against which relative paths in options are meant.
pub(crate) fn working_directory() -> Result<PathBuf, UserError> {
    std::env::current_dir()
        .map_err(|error| UserError::io("cannot find the working directory", &error))
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
        let check = |path: &Path, dir: &Path| refuse_to_cover(Written::Keystore, path, dir);
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
            refuse_to_cover(Written::Audit, &top.join(path), &mnt).unwrap_err();
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

//! The two directories of a mount: created where that is asked for, resolved, and checked.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::create::{NewVolume, create};
use super::mount_request::MountRequest;
use crate::audit;
use crate::control::mount_state::{self, MountState};
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::paths::{DaemonFile, possible_paths, refuse_covered, without_links};
use crate::diagnostics::UserError;
use crate::volume::{self, HEADER_NAME};

/// The two directories of a mount, without symbolic links.
#[derive(Debug)]
pub(super) struct MountDirectories {
    /// The volume's directory.
    pub(super) volume: PathBuf,
    /// Where it is mounted.
    pub(super) dir: PathBuf,
}

impl MountDirectories {
    /// The beginning of the error message of a mount that fails.
    pub(super) fn doing(&self) -> String {
        format!(
            "cannot mount {} on {}",
            self.volume.display(),
            self.dir.display()
        )
    }
}

/// Creates the volume and the mount point if `--create` asks for it, resolves both paths, and
/// refuses unusable pairs.
///
/// # Errors
/// The volume cannot be created; a path is missing or no directory; a mount at the mount point is
/// dead or does not answer; one path is inside the other; or the mount would cover a file that the
/// daemon writes.
pub(super) fn prepare_directories(request: &MountRequest) -> Result<MountDirectories, UserError> {
    if request.create {
        create_missing(request)?;
    }
    let find = |path: &Path| {
        std::fs::canonicalize(path)
            .map_err(|error| UserError::io(format_args!("cannot find {}", path.display()), &error))
    };
    let volume = find(&request.volume).map_err(|error| {
        error.with_hint("make a volume first: bilayer create VOLUME (or mount with --create)")
    })?;
    let doing = || format!("cannot mount on {}", request.dir.display());
    match mount_state::mount_and_state(&request.dir) {
        Some((mount, MountState::Dead)) => {
            return Err(mount_state::dead_mount_error(&doing(), &mount));
        }
        Some((_, MountState::Silent)) => return Err(refusal(doing(), &[Obstacle::Silent])),
        _ => {}
    }
    let dir = find(&request.dir)
        .map_err(|error| error.with_hint(format!("make it: mkdir {}", request.dir.display())))?;
    let refused =
        |error: &io::Error| UserError::io(format_args!("cannot mount on {}", dir.display()), error);
    match std::fs::metadata(&dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(refused(&io::ErrorKind::NotADirectory.into())),
        Err(error) => return Err(refused(&error)),
    }
    if dir.starts_with(&volume) || volume.starts_with(&dir) {
        return Err(UserError::usage(format!(
            "cannot mount {} on {}: one is inside the other",
            volume.display(),
            dir.display()
        ))
        .with_hint("mount on an empty directory elsewhere"));
    }
    let daemon_files = [
        (DaemonFile::Keystore, Some(request.keystore.clone())),
        (DaemonFile::Log, request.options.log_file.clone()),
        (DaemonFile::Audit, audit::file()),
    ];
    for (file, path) in daemon_files {
        path.map_or(Ok(()), |path| refuse_covered(file, &path, &dir))?;
    }
    Ok(MountDirectories { volume, dir })
}

fn create_missing(request: &MountRequest) -> Result<(), UserError> {
    if !request.volume.join(HEADER_NAME).exists() {
        let doing = || format!("cannot make {}", request.volume.display());
        let path = without_links(&request.volume);
        let spellings = possible_paths(&request.volume);
        volume::refuse_vanished(&request.keystore, &path, &spellings)
            .map_err(|error| UserError::volume(doing(), &error))?;
        create(&NewVolume {
            path: request.volume.clone(),
            customer_key: request.options.customer_key.clone(),
            size_bytes: None,
            keystore: request.keystore.clone(),
            passphrase: request.passphrase(),
        })?;
    }
    match DirBuilder::new().mode(0o755).create(&request.dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(UserError::io(
            format_args!("cannot make {}", request.dir.display()),
            &error,
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mount_request::tests::request;
    use super::*;
    use crate::diagnostics::ExitCode;

    #[test]
    fn unusable_paths_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let (volume, dir) = (top.path().join("vol"), top.path().join("mnt"));
        for path in [
            &volume,
            &dir,
            &volume.join("in"),
            &top.path().join("volume"),
        ] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(top.path().join("file"), b"").unwrap();
        let code = |dir: &Path| {
            prepare_directories(&request(&volume, dir))
                .unwrap_err()
                .code
        };
        assert_eq!(code(&volume), ExitCode::Usage);
        assert_eq!(code(&volume.join("in")), ExitCode::Usage);
        assert_eq!(code(top.path()), ExitCode::Usage);
        assert_eq!(code(&top.path().join("file")), ExitCode::NotFound);
        assert_eq!(code(&top.path().join("gone")), ExitCode::NotFound);
        prepare_directories(&request(&volume, &dir)).unwrap();
        // A name with the same beginning is another directory.
        prepare_directories(&request(&volume, &top.path().join("volume"))).unwrap();
        let gone = prepare_directories(&request(&top.path().join("gone"), &dir)).unwrap_err();
        assert!(gone.hint.unwrap().contains("bilayer create"));
    }
}

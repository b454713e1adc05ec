//! The keystore's files: names, strict reading, writing that is atomic and durable.
//!
//! Order of writes: a file is written under a temporary name that starts with a dot, synced and
//! renamed; then the directory is synced.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{damaged, not_found_is_none};
use crate::ids::VolumeId;
use crate::keys::encoding::{hex_array, strict};
use crate::keys::error::{KeyError, while_doing, while_writing};
use crate::sys::files::{self, Access};

/// Directory of the keystore's own versions.
const VERSIONS: &str = "versions";
/// Directory of the versions of adopted keystores, in a directory each.
const ADOPTED: &str = "adopted";
/// Directory with an empty file for each version that an export was made for.
const EXPORTS: &str = "exports";
/// Directory of the volumes' records.
pub(super) const VOLUMES: &str = "volumes";
/// File with the keystore's id.
pub(super) const IDENTITY: &str = "keystore.json";

/// Length limit of a keystore's file, in bytes.
const MAX_FILE_BYTES: usize = 64 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: String,
    version: u32,
    #[serde(with = "hex_array")]
    id: [u8; 16],
}

const IDENTITY_FORMAT: &str = "bilayer-platform-keystore";
/// The highest number of a version: its file name has eight digits.
pub(super) const VERSION_NUMBER_MAX: u32 = 99_999_999;

/// The keystore's id; `None` if there is no keystore.
pub(super) fn read_identity(directory: &Path) -> Result<Option<[u8; 16]>, KeyError> {
    let path = directory.join(IDENTITY);
    let Some(text) = read_file(&path)? else {
        return Ok(None);
    };
    let file: IdentityFile = serde_json::from_slice(&text)
        .map_err(|error| damaged(&path, &format!("cannot be read ({error})")))?;
    check_format(&path, &file.format, IDENTITY_FORMAT, file.version)?;
    Ok(Some(file.id))
}

/// Draws an id and writes it. If another process was first, its id is returned.
pub(super) fn create_identity(directory: &Path) -> Result<[u8; 16], KeyError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| KeyError::random(io::Error::other(e.to_string())))?;
    write_identity(directory, id)?;
    let path = directory.join(IDENTITY);
    read_identity(directory)?.ok_or_else(|| damaged(&path, "vanished"))
}

/// Writes the id unless there is one.
pub(super) fn write_identity(directory: &Path, id: [u8; 16]) -> Result<(), KeyError> {
    let path = directory.join(IDENTITY);
    let file = IdentityFile {
        format: IDENTITY_FORMAT.to_owned(),
        version: 1,
        id,
    };
    let text = serde_json::to_vec(&file)
        .map_err(|error| damaged(&path, &format!("cannot be written ({error})")))?;
    write_file(&path, &text, Replace::Never).map(|_| ())
}

/// The directory of the keystore's own versions.
pub(super) fn own_versions(directory: &Path) -> PathBuf {
    directory.join(VERSIONS)
}

/// The directory of the versions of an adopted keystore.
pub(super) fn adopted_versions(directory: &Path, id: [u8; 16]) -> PathBuf {
    directory.join(ADOPTED).join(hex::encode(id))
}

/// The ids of the adopted keystores.
pub(super) fn adopted_keystores(directory: &Path) -> Result<Vec<[u8; 16]>, KeyError> {
    let path = directory.join(ADOPTED);
    let id_of = |name: &String| {
        let id = strict(name).and_then(|id| id.try_into().ok());
        id.ok_or_else(|| damaged(&path.join(name), "does not belong there"))
    };
    names(&path)?.iter().map(id_of).collect()
}

/// Marks a version as needed by an export.
pub(super) fn mark_exported(directory: &Path, number: u32) -> Result<(), KeyError> {
    let folder = directory.join(EXPORTS);
    let path = folder.join(format!("{number:08}"));
    if path.exists() {
        return Ok(());
    }
    make_directory(&folder)?;
    write_file(&path, b"", Replace::Never).map(|_| ())
}

/// True if an export was made for the version.
pub(super) fn is_exported(directory: &Path, number: u32) -> bool {
    let path = directory.join(EXPORTS).join(format!("{number:08}"));
    // A name that cannot be looked up counts as a mark.
    !matches!(path.try_exists(), Ok(false))
}

/// The numbers of the existing versions. Names that start with a dot belong to interrupted writes.
pub(super) fn version_numbers(folder: &Path) -> Result<Vec<u32>, KeyError> {
    let mut numbers = Vec::new();
    for name in names(folder)? {
        let number = name
            .strip_suffix(".json")
            .filter(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .filter(|number| is_version_number(*number));
        match number {
            Some(number) => numbers.push(number),
            None => return Err(damaged(&folder.join(name), "does not belong there")),
        }
    }
    Ok(numbers)
}

/// True for a number that the name of a version's file can have.
pub(super) const fn is_version_number(number: u32) -> bool {
    1 <= number && number <= VERSION_NUMBER_MAX
}

/// True if there is a record of any volume.
pub(super) fn has_records(directory: &Path) -> Result<bool, KeyError> {
    let names = names(&directory.join(VOLUMES))?;
    Ok(names.iter().any(|name| name.ends_with(".json")))
}

/// The file of a version.
pub(super) fn version_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.json"))
}

/// Keeps the file of a version that is about to be replaced: a key that cannot be read now may be
/// readable later. The name begins with a dot, so nothing uses it.
pub(super) fn keep_replaced(folder: &Path, number: u32) -> Result<(), KeyError> {
    let path = version_path(folder, number);
    let kept = folder.join(format!(".{number:08}.json.replaced"));
    match std::fs::hard_link(&path, &kept) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(while_writing("cannot keep", &path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a version durably.
pub(super) fn remove_version(folder: &Path, number: u32) -> Result<(), KeyError> {
    let path = version_path(folder, number);
    let removed = std::fs::remove_file(&path).and_then(|()| File::open(folder)?.sync_all());
    removed.map_err(while_writing("cannot remove", &path))
}

/// Refuses a file of another kind or of a newer version.
pub(super) fn check_format(
    path: &Path,
    format: &str,
    expected: &str,
    version: u32,
) -> Result<(), KeyError> {
    if format != expected {
        return Err(damaged(path, "is of another kind"));
    }
    if version != 1 {
        return Err(damaged(
            path,
            &format!("has format {version}; this version reads 1"),
        ));
    }
    Ok(())
}

/// Whether a file may be replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    Never,
    Always,
}

/// Writes a file atomically and durably with mode 0600. False if it exists and may not be replaced.
pub(super) fn write_file(path: &Path, text: &[u8], replace: Replace) -> Result<bool, KeyError> {
    let failed = while_writing("cannot write", path);
    write_inner(path, text, replace).map_err(failed)
}

fn write_inner(path: &Path, text: &[u8], replace: Replace) -> io::Result<bool> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut aside = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)?;
    aside.write_all(text)?;
    aside.as_file().sync_all()?;
    let written = match replace {
        Replace::Always => aside.persist(path).map_err(|e| e.error).map(|_| true),
        Replace::Never => match aside.persist_noclobber(path) {
            Ok(_) => Ok(true),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e.error),
        },
    }?;
    File::open(directory)?.sync_all()?;
    Ok(written)
}

/// Reads a plain file of at most [`MAX_FILE_BYTES`]; `None` if it does not exist.
pub(super) fn read_file(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let opened = open_plain(path);
    let Some(file) = not_found_is_none(opened).map_err(while_doing("cannot read", path))? else {
        return Ok(None);
    };
    let metadata = file.metadata().map_err(while_doing("cannot read", path))?;
    if !metadata.is_file() {
        return Err(damaged(path, "is no plain file"));
    }
    let len = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if len > MAX_FILE_BYTES {
        return Err(damaged(path, "is too long"));
    }
    // Allocated at full size: a growing buffer leaves copies of keys behind.
    let mut text = Zeroizing::new(Vec::with_capacity(len + 2));
    file.take(len as u64 + 1)
        .read_to_end(&mut text)
        .map_err(while_doing("cannot read", path))?;
    if text.len() > len {
        return Err(damaged(path, "grew while it was read"));
    }
    Ok(Some(text))
}

/// Opens a file of the keystore: no link is followed, a pipe does not block.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let directory = files::open_directory(directory)?;
    files::open_file_at(
        &directory,
        name.ok_or(io::ErrorKind::InvalidInput)?,
        Access::Read,
    )
}

/// Opens a file of the keystore's directory that is only locked, and creates it if missing.
pub(super) fn open_or_make(directory: &Path, name: &str) -> io::Result<File> {
    let directory = files::open_directory(directory)?;
    loop {
        match files::open_file_at(&directory, name, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match files::open_file_at(&directory, name, Access::CreateNew) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }
}

/// Creates a directory and its parents, each durably with mode 0700. An existing directory is
/// unchanged.
pub(super) fn make_directory(path: &Path) -> Result<(), KeyError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    if !parent.is_dir() {
        make_directory(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(while_writing("cannot make directory", path)(error))
        }
        _ => File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(while_doing("cannot sync directory", parent)),
    }
}

/// The volumes that have a record.
pub(super) fn remembered_volumes(directory: &Path) -> Result<Vec<VolumeId>, KeyError> {
    let names = names(&directory.join(VOLUMES))?;
    Ok(names
        .iter()
        .filter_map(|name| VolumeId::from_hex(name.strip_suffix(".json")?))
        .collect())
}

/// Names in a directory, without those that start with a dot.
fn names(path: &Path) -> Result<Vec<String>, KeyError> {
    let failed = |error| KeyError::io("cannot list", path, error);
    let Some(entries) = not_found_is_none(std::fs::read_dir(path)).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

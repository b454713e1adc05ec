//! The spare copy of the superblock, for a volume whose `volume.json` cannot be read. It has the
//! same bytes, including the MAC, and is in the directory of the checkpoints. Only salvage reads
//! it, and only if it authenticates.

use std::io;

use super::header::{MAX_HEADER_BYTES, UnverifiedHeader, VerifiedHeader};
use super::header_path;
use crate::ids::CryptoId;
use crate::layers::KeyRing;
use crate::store::{EntryKind, OpenMode, Store, StorePath};

/// The directory of the spare copy.
const DIRECTORY: &str = "checkpoints";

/// The path of the spare copy.
pub fn spare_path() -> StorePath {
    StorePath::new("checkpoints/volume.json")
}

/// Makes the spare copy equal to `volume.json`, provided that `volume.json` is still what `own` was
/// read from: a damaged superblock never replaces a good spare. Durable on return.
///
/// # Errors
/// When the store fails. The older copy is then unchanged.
pub fn keep(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) -> io::Result<()> {
    let header = read(store, &header_path())?;
    let verified = UnverifiedHeader::parse(&header).and_then(|header| header.verify(keys));
    if !verified.is_ok_and(|verified| verified == *own) {
        tracing::error!(
            "volume.json is not what it was when the volume was opened: its spare copy stays"
        );
        return Ok(());
    }
    // A spare that cannot be read is written again.
    if read(store, &spare_path()).is_ok_and(|spare| spare == header) {
        return Ok(());
    }
    match store.create_dir(&StorePath::new(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => {
            made?;
            store.sync_dir(&StorePath::root())?;
        }
    }
    let aside = StorePath::new("checkpoints/volume.json.new");
    match store.unlink(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = store.open(&aside, OpenMode::CreateNew)?;
    file.write_at(&header, 0)?;
    file.sync()?;
    store.rename(&aside, &spare_path())?;
    store.sync_dir(&StorePath::new(DIRECTORY))
}

/// Replaces what belongs to the previous superblock after another one has taken its place. The
/// checkpoints are removed first: they are sealed under the previous active key set and can no
/// longer be opened. Then the spare copy becomes the new superblock. Durable on return.
///
/// # Errors
/// When the store fails. The next use that may write repeats it.
pub(super) fn replace(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) -> io::Result<()> {
    discard_checkpoints(store)?;
    keep(store, keys, own)
}

/// Finishes an interrupted [`replace`], which left a spare copy of another incarnation, or an
/// interrupted re-wrap, which left one with other wraps. A failure does not prevent the use of the
/// volume.
pub(super) fn settle(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) {
    let Some(spare) = claims(store) else {
        return;
    };
    // Unverified is good enough: an attacker who can write the spare can remove the checkpoints
    // directly.
    let spare = spare.claims();
    if (spare.volume_id(), spare.incarnation()) != (own.volume_id(), own.incarnation()) {
        if let Err(error) = replace(store, keys, own) {
            tracing::warn!(%error, "checkpoints of a former incarnation could not be removed");
        }
    } else if spare.header_sequence() != own.header_sequence()
        && let Err(error) = keep(store, keys, own)
    {
        tracing::warn!(%error, "the spare copy of volume.json is an older one");
    }
}

/// The spare copy, not verified; `None` if there is none that can be parsed.
pub(super) fn claims(store: &dyn Store) -> Option<UnverifiedHeader> {
    let bytes = read(store, &spare_path()).ok()?;
    UnverifiedHeader::parse(&bytes).ok()
}

fn discard_checkpoints(store: &dyn Store) -> io::Result<()> {
    let entries = match store.list(&StorePath::new(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for (name, kind) in entries {
        let id = name.strip_suffix(".new").unwrap_or(&name);
        if kind == EntryKind::File && CryptoId::from_hex(id).is_some() {
            store.unlink(&StorePath::new(&format!("{DIRECTORY}/{name}")))?;
        }
    }
    store.sync_dir(&StorePath::new(DIRECTORY))
}

/// The bytes of a superblock, at most one more than the largest allowed.
pub(super) fn read(store: &dyn Store, path: &StorePath) -> io::Result<Vec<u8>> {
    let file = store.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; MAX_HEADER_BYTES + 1];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

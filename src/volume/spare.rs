//! The spare copy of the superblock, for the day on which `volume.json` cannot be read: the same
//! bytes, its MAC included, in the directory of the checkpoints. It is looked at only by those who
//! take out what is left of a damaged volume, and only when it authenticates.

use std::io;

use super::header::{MAX_HEADER_BYTES, UnverifiedHeader, VerifiedHeader};
use super::header_path;
use crate::ids::CryptoId;
use crate::layers::KeyRing;
use crate::store::{EntryKind, OpenMode, Store, StorePath};

/// The directory that it is in.
const DIRECTORY: &str = "checkpoints";

/// Where it is.
pub fn spare_path() -> StorePath {
    StorePath::new("checkpoints/volume.json")
}

/// Makes the spare copy what `volume.json` is, if that is still what `own` was read from: a damaged
/// one never takes the place of a good spare. Durable on return.
///
/// # Errors
/// Those of the store. An older copy is still there then.
pub fn keep(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) -> io::Result<()> {
    let header = read(store, &header_path())?;
    let found = UnverifiedHeader::parse(&header).and_then(|header| header.verify(keys));
    if !found.is_ok_and(|found| found == *own) {
        tracing::error!(
            "volume.json is not what it was when the volume was opened: its spare copy stays"
        );
        return Ok(());
    }
    // One that cannot be read is made anew.
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

/// Replaces what belongs to the superblock of before when another one has taken its place: the
/// checkpoints go first, which are sealed under the key set that was active then and open for nobody
/// any more, then the spare copy becomes the new superblock. Durable on return.
///
/// # Errors
/// Those of the store. The next use that may write does it again.
pub(super) fn replace(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) -> io::Result<()> {
    discard_checkpoints(store)?;
    keep(store, keys, own)
}

/// Finishes [`replace`] where a cut came in between: the spare copy is still of another incarnation.
/// That it cannot be finished is no reason not to use the volume.
pub(super) fn settle(store: &dyn Store, keys: &KeyRing, own: &VerifiedHeader) {
    let spare = read(store, &spare_path()).ok();
    let spare = spare.and_then(|bytes| UnverifiedHeader::parse(&bytes).ok());
    // Not verified: whoever can write it can remove the checkpoints without it.
    let is_former = spare.is_some_and(|spare| {
        let claims = spare.claims();
        (claims.volume_id(), claims.incarnation()) != (own.volume_id(), own.incarnation())
    });
    if is_former && let Err(error) = replace(store, keys, own) {
        tracing::warn!(%error, "checkpoints of a former incarnation could not be removed");
    }
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

/// The bytes of a superblock, one more than it may have at most.
pub(super) fn read(store: &dyn Store, path: &StorePath) -> io::Result<Vec<u8>> {
    let file = store.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; MAX_HEADER_BYTES + 1];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

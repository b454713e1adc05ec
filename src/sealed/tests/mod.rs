//! Tests of sealed files, by topic, over a file in memory that a test can damage.

mod contents;
mod database;
mod golden;
mod one_layer;
mod slots;
mod tamper;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::ids::{CryptoId, Epoch, KeySetId, Sequence};
use crate::layers::{CustomerDek, InfrastructureDek, KeySet};
use crate::store::{EntryInfo, EntryKind, StoreFile};

pub(super) const CRYPTO: CryptoId = CryptoId([0xC0; 16]);

/// A file in memory: the bytes that were written, and those that were synced.
#[derive(Debug, Default)]
pub(super) struct DamageableFile {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    write_calls: usize,
    failing_reads: usize,
    failing_syncs: usize,
    /// Of the next write, only this many bytes arrive before the power fails.
    torn_at: Option<usize>,
}

impl DamageableFile {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state.lock().bytes.clone()
    }

    /// What a power cut leaves.
    pub(super) fn synced(&self) -> Vec<u8> {
        self.state.lock().synced.clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.state.lock().bytes);
    }

    pub(super) fn write_calls(&self) -> usize {
        self.state.lock().write_calls
    }

    pub(super) fn fail_reads(&self, times: usize) {
        self.state.lock().failing_reads = times;
    }

    pub(super) fn fail_syncs(&self, times: usize) {
        self.state.lock().failing_syncs = times;
    }

    pub(super) fn tear_next_write(&self, at: usize) {
        self.state.lock().torn_at = Some(at);
    }

    /// Loses everything that was not synced.
    pub(super) fn lose_unsynced(&self) {
        let mut state = self.state.lock();
        state.bytes = state.synced.clone();
    }
}

impl StoreFile for DamageableFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err(io::Error::from_raw_os_error(Errno::EIO.code()));
        }
        let from = state.bytes.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.write_calls += 1;
        let torn_at = state.torn_at.take();
        let bytes = &bytes[..torn_at.unwrap_or(bytes.len())];
        let end = offset as usize + bytes.len();
        if state.bytes.len() < end {
            state.bytes.resize(end, 0);
        }
        state.bytes[offset as usize..end].copy_from_slice(bytes);
        match torn_at {
            None => Ok(()),
            Some(_) => Err(io::Error::from_raw_os_error(Errno::EIO.code())),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().bytes.len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.state.lock().bytes.resize(len_bytes as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let end = ((offset + len_bytes) as usize).min(state.bytes.len());
        if let Some(hole) = state.bytes.get_mut(offset as usize..end) {
            hole.fill(0);
        }
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(Errno::EIO.code()));
        }
        state.synced = state.bytes.clone();
        Ok(())
    }

    fn info(&self) -> io::Result<EntryInfo> {
        let len_bytes = self.len()?;
        Ok(EntryInfo {
            kind: EntryKind::File,
            len_bytes,
            links: 1,
            number: 1,
            allocated_bytes: len_bytes,
        })
    }
}

/// A key set whose bytes repeat these numbers.
pub(super) fn key_set(customer: u8, infrastructure: u8, id: u8, epoch: u32) -> KeySet {
    KeySet {
        id: KeySetId([id; 16]),
        epoch: Epoch(epoch),
        customer: CustomerDek::from_bytes(&[customer; 64]).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(&[infrastructure; 32]).unwrap(),
    }
}

pub(super) fn keys() -> Arc<KeySet> {
    Arc::new(key_set(1, 2, 3, 1))
}

pub(super) fn contents(file: &Arc<DamageableFile>) -> ContentsFile {
    ContentsFile::new(Arc::clone(file) as Arc<dyn StoreFile>, &keys(), CRYPTO)
}

/// Bytes that differ from page to page and from offset to offset.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((i * 31 + i / 251 + seed * 97) % 251) as u8)
        .collect()
}

pub(super) fn write(object: &ContentsFile, offset: u64, data: &[u8]) -> Result<(), SealedError> {
    let guard = object.lock_exclusive(ContentsFile::pages(offset, data.len())?);
    object.write_at(&guard, offset, data, Sequence(5), &mut |page, old| {
        let whole = object.read_at(&guard, page.0 * PAYLOAD_BYTES as u64, old);
        match whole {
            Err(SealedError::ShortRead { .. }) => {
                old.fill(0);
                Ok(())
            }
            other => other,
        }
    })
}

pub(super) fn read(object: &ContentsFile, offset: u64, len: usize) -> Result<Vec<u8>, SealedError> {
    let mut out = vec![0; len];
    let guard = object.lock_shared(ContentsFile::pages(offset, len)?);
    object.read_at(&guard, offset, &mut out)?;
    Ok(out)
}

/// Page and layer of an authentication error.
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, SealedError>) -> (u64, Refusal) {
    match result {
        Err(SealedError::Authentication { page, layer }) => (page.0, layer),
        other => panic!("not refused: {other:?}"),
    }
}

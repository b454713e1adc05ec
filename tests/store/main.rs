//! The backing store: one set of rules for all implementations, then the rules for each of them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod adopt;
mod conformance;
mod directory;
mod faulty;
mod memory;
mod sync;

use std::sync::Arc;

use bilayer::store::{OpenMode, Store, StoreFile, StorePath};

fn path(text: &str) -> StorePath {
    StorePath::new(text)
}

fn create(store: &dyn Store, name: &str, bytes: &[u8]) -> Arc<dyn StoreFile> {
    let file = store.open(&path(name), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

/// All bytes, or `None` if there is no such file.
fn contents(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    let file = store.open(&path(name), OpenMode::Read).ok()?;
    let len = usize::try_from(file.len().unwrap()).unwrap();
    let mut bytes = vec![0xEE; len];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
    Some(bytes)
}

fn names(store: &dyn Store, dir: &StorePath) -> Vec<String> {
    let mut names: Vec<String> = store.list(dir).unwrap().into_iter().map(|e| e.0).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_errno<T>(result: std::io::Result<T>, expected: bilayer::errno::Errno) {
    let error = result.err().expect("an error");
    assert_eq!(error.raw_os_error(), Some(expected.code()), "{error}");
}

//! Records of the metadata and their keys: decoders accept exactly what encoders write.

use bilayer::meta::keys::{self, VersionedKey};
use bilayer::meta::page_set::PageSet;
use bilayer::meta::records::{
    Counters, DirentRecord, ExtentRecord, InodeRecord, ObjectName, ViewRecord, decode_xattr,
    encode_xattr,
};

/// The first byte chooses the record.
pub fn target(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    let again = match kind % 9 {
        0 => InodeRecord::decode(bytes).map(|record| record.encode()),
        1 => DirentRecord::decode(bytes).map(DirentRecord::encode),
        2 => ExtentRecord::decode(bytes).map(|record| {
            assert!(record.names().len() <= bilayer::meta::records::PARTS_MAX);
            assert!(record.pages() <= u64::from(bilayer::meta::page_set::CHUNK_PAGES));
            record.encode()
        }),
        3 => ObjectName::decode(bytes).map(ObjectName::encode),
        4 => ViewRecord::decode(bytes).map(|record| record.encode()),
        5 => Counters::decode(bytes).map(|record| record.encode()),
        6 => decode_xattr(bytes).map(encode_xattr),
        7 => page_set(bytes),
        _ => key(bytes),
    };
    if let Some(again) = again {
        assert_eq!(again, bytes);
    }
}

fn page_set(bytes: &[u8]) -> Option<Vec<u8>> {
    let (set, rest) = PageSet::decode(bytes)?;
    let mut pages = 0;
    let mut end = 0;
    for run in set.runs() {
        assert!(run.start < run.end && (run.start > end || end == 0));
        assert!(run.clone().all(|page| set.contains(page)));
        (pages, end) = (pages + run.len() as u32, run.end);
    }
    assert_eq!((pages, end), (set.len(), set.end()));
    let mut again = Vec::new();
    set.encode(&mut again);
    again.extend_from_slice(rest);
    Some(again)
}

/// Keys are split into their parts and encoded again.
fn key(bytes: &[u8]) -> Option<Vec<u8>> {
    let _ = keys::ino_of(bytes);
    if let Some((generation, table, logical)) = keys::change_parts(bytes) {
        assert_eq!(keys::change(generation, table, logical), bytes);
    }
    if let Some(view) = keys::view_of(bytes) {
        assert_eq!(keys::view(view), bytes);
    }
    if let Some(number) = keys::number_of(bytes) {
        assert_eq!(keys::number(number), bytes);
    }
    let VersionedKey {
        logical,
        generation,
    } = VersionedKey::decode(bytes)?;
    if let Some((ino, chunk)) = keys::extent_parts(logical) {
        assert_eq!(keys::extent(ino, chunk), logical);
    }
    if let (Some((hash, name)), Some(ino)) = (keys::dirent_parts(logical), keys::ino_of(logical)) {
        assert_eq!(keys::dirent(ino, hash, name), logical);
    }
    if let (Some(name), Some(ino)) = (keys::xattr_name(logical), keys::ino_of(logical)) {
        assert_eq!(keys::xattr(ino, name), logical);
    }
    Some(keys::versioned(logical, generation))
}

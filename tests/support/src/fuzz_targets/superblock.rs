//! The superblock before it is authenticated.

use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, HEADER_NAME, OpenOptions, UnverifiedHeader};

use super::sample;

/// The bytes are all of `volume.json`.
pub fn target(data: &[u8]) {
    let sample = sample::platform();
    if let Ok(header) = UnverifiedHeader::parse(data) {
        assert_eq!(header.to_json()["verified"], false);
        let claimed = header.claims().key_sets().len();
        assert!((1..=volume::header::MAX_KEY_SETS).contains(&claimed));
        let verified = header.verify(&sample.keys);
        assert!(
            verified.is_err() || data == sample.header,
            "a forged header"
        );
    }
    let store = sample.store.snapshot();
    let path = StorePath::new(HEADER_NAME);
    let file = store.open(&path, OpenMode::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    file.write_at(data, 0).unwrap();
    let options = OpenOptions {
        keystore: sample.keystore(),
        ..OpenOptions::default()
    };
    let opened = volume::open(std::sync::Arc::new(store), &options);
    assert!(opened.is_err() || data == sample.header, "a forged volume");
}

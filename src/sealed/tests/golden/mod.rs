//! One page of each geometry, sealed under fixed keys and a fixed nonce, as committed bytes: every
//! build, whichever implementations it has, must make and open exactly these.
//!
//! The bytes were not made by this code. They were made by a program that uses OpenSSL and a
//! POLYVAL of its own, and was written from the tables in `layers::derivation`, `layers::customer`
//! and `sealed::page`.

use super::geometry::{Geometry, Slot};
use super::keys::FileKeys;
use super::page::{PageContext, Plain, Received};
use super::*;

const CONTENTS: &str = include_str!("contents-page.hex");
const META: &str = include_str!("meta-page-0-slot-b.hex");

fn check(geometry: Geometry, slot: Slot, page: u64, committed: &str) {
    let keys = FileKeys::new(keys(), CRYPTO);
    let context = PageContext {
        key_set: KeySetId([3; 16]),
        crypto: CRYPTO,
        page: PageIndex(page),
        slot,
        epoch: Epoch(1),
        sequence: Sequence(0x0102_0304_0506_0708),
    };
    let plain = pattern(geometry.payload_bytes(), 21);
    let segment = keys.of_page(context.page).expect("keys");
    let mut bytes = vec![0; geometry.page_bytes()];
    Plain::from_elsewhere(&mut bytes, &plain)
        .seal_customer(&segment, &context)
        .and_then(|sealed| sealed.seal_infrastructure(&segment, &[0x4E; 12]))
        .expect("seals");
    let lines: String = committed.split_whitespace().collect();
    assert!(hex::encode(&bytes) == lines, "now: {}", hex::encode(&bytes));

    let opened = Received::parse(&mut bytes)
        .and_then(|page| page.open_infrastructure(&segment, CRYPTO, context.page, slot))
        .and_then(|page| page.open_customer(&segment))
        .expect("opens");
    assert_eq!(opened, &plain[..]);
}

#[test]
fn a_contents_page_in_the_second_segment_has_the_committed_bytes() {
    check(Geometry::Contents, Slot::A, 2049, CONTENTS);
}

#[test]
fn page_0_of_meta_in_slot_b_has_the_committed_bytes() {
    check(Geometry::Meta, Slot::B, 0, META);
}

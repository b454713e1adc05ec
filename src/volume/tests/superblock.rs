//! The superblock against those who can write to it.

use proptest::prelude::*;

use super::*;
use crate::volume::header::{MAX_HEADER_BYTES, UnverifiedHeader};

fn volume(customer: bool) -> (Keys, Arc<dyn Store>, Vec<u8>) {
    let keys = Keys::new();
    let store = memory();
    keys.create(&store, customer.then(|| keys.private()));
    let bytes = read(&*store, &header_path());
    (keys, store, bytes)
}

fn every_bit_counts(customer: bool) {
    let (keys, store, good) = volume(customer);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        write(&*store, &header_path(), &bytes);
        let error = keys.open(&store, None).expect_err(&format!("bit {bit}"));
        let expected = [
            ErrorKind::HeaderInvalid,
            ErrorKind::Tampered,
            ErrorKind::NewerFormat,
            ErrorKind::WrongKey,
            ErrorKind::KeyUnavailable,
            ErrorKind::KeystoreMissing,
        ];
        assert!(expected.contains(&error.kind()), "bit {bit}: {error:?}");
    }
    for len in 0..good.len() {
        write(&*store, &header_path(), &good[..len]);
        assert_eq!(
            kind_of(keys.open(&store, None)),
            ErrorKind::HeaderInvalid,
            "{len} bytes"
        );
    }
    write(&*store, &header_path(), &good);
    keys.open(&store, None).expect("as it was");
}

#[test]
fn every_bit_of_a_platform_managed_superblock_counts() {
    every_bit_counts(false);
}

#[test]
fn every_bit_of_a_customer_managed_superblock_counts() {
    every_bit_counts(true);
}

#[test]
fn the_line_and_its_mac_are_all_there_is() {
    let (keys, store, good) = volume(false);
    let text = String::from_utf8(good).expect("text");
    let (line, mac) = text.trim_end().split_once('\n').expect("two lines");
    for bad in [
        format!("{line}\n{mac}"),
        format!("{line}\n{mac}\n\n"),
        format!("{line}\n\n{mac}\n"),
        format!("{line}\r\n{mac}\n"),
        format!("{line}\n{}\n", mac.to_uppercase()),
        format!("{line}\n{mac}00\n"),
        format!("\n{line}\n{mac}\n"),
        format!("{line}\n{}\n", "0".repeat(64)),
        // Another spelling of the same JSON is not what was authenticated.
        format!("{}\n{mac}\n", line.replacen(',', ", ", 1)),
    ] {
        write(&*store, &header_path(), bad.as_bytes());
        assert!(keys.open(&store, None).is_err(), "{bad:?}");
    }
}

/// Parses `line` with some MAC: what a hostile superblock can reach without keys.
fn parse(line: &str) -> Result<UnverifiedHeader, VolumeError> {
    UnverifiedHeader::parse(format!("{line}\n{}\n", "0".repeat(64)).as_bytes())
}

fn good_line(customer: bool) -> String {
    let (_, _, bytes) = volume(customer);
    let text = String::from_utf8(bytes).expect("text");
    text.lines().next().expect("line").to_owned()
}

#[test]
fn a_newer_format_is_recognised_whatever_else_it_has() {
    let error = parse(r#"{"format":"bilayer","version":2,"quantum":[{}]}"#).expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::NewerFormat);
    let text = error.to_string();
    assert!(
        text.contains("format 2") && text.contains("reads 1"),
        "{text}"
    );
    assert_eq!(error.hint().as_deref(), Some("upgrade bilayer"));
    let line = good_line(false).replace("\"features\":[]", "\"features\":[\"tag-tree\"]");
    let error = parse(&line).expect_err("feature");
    assert_eq!(error.kind(), ErrorKind::NewerFormat);
    assert!(error.to_string().contains("tag-tree"), "{error}");
}

#[test]
fn strict_about_fields_and_numbers() {
    let good = good_line(false);
    parse(&good).expect("as it was");
    let set_start = good.find("\"key_sets\":[").expect("key sets") + 12;
    let set_end = good.find("],\"provenance\"").expect("end");
    let set = &good[set_start..set_end];
    let epochs = |epochs: &[u32]| -> String {
        let newest = epochs.iter().max().copied();
        let sets: Vec<String> = epochs
            .iter()
            .map(|epoch| {
                let state = if Some(*epoch) == newest {
                    "active"
                } else {
                    "read-only"
                };
                let id = format!("{epoch:032x}");
                let set = set.replace("\"epoch\":1", &format!("\"epoch\":{epoch}"));
                let id_at = set.find("\"id\":\"").expect("id") + 6;
                format!("{}{id}{}", &set[..id_at], &set[id_at + 32..]).replace("active", state)
            })
            .collect();
        format!(
            "{}{}{}",
            &good[..set_start],
            sets.join(","),
            &good[set_end..]
        )
    };
    parse(&epochs(&[1, 2, 9])).expect("several sets");
    let many: Vec<u32> = (1..=65).collect();
    parse(&epochs(&many[..64])).expect("64 sets");
    let bad = [
        good.replacen('{', "{\"version\":1,", 1),
        good.replacen('{', "{\"extra\":null,", 1),
        good.replacen("\"epoch\":1", "\"epoch\":1,\"epoch\":1", 1),
        good.replacen("\"epoch\":1", "\"epoch\":0", 1),
        good.replacen("\"epoch\":1", "\"epoch\":4294967296", 1),
        good.replacen("\"epoch\":1", "\"epoch\":-1", 1),
        good.replacen("\"epoch\":1", "\"epoch\":1.0", 1),
        good.replacen("\"epoch\":1", &format!("\"epoch\":{}", "9".repeat(400)), 1),
        good.replacen("\"sequence\":1", "\"sequence\":0", 1),
        good.replacen("\"sequence\":1", "\"sequence\":18446744073709551615", 1),
        good.replacen("\"version\":1", "\"version\":0", 1),
        good.replacen("\"version\":1", "\"version\":\"1\"", 1),
        good.replacen("bilayer", "bilayers", 1),
        good.replacen("platform-managed", "platform-and-customer", 1),
        good.replacen("platform-managed", "none", 1),
        good.replacen("\"active\"", "\"read-only\"", 1),
        good.replacen("\"provenance\":null", "\"provenance\":{}", 1),
        good.replace(set, ""),
        good.replace(set, &format!("{set},{set}")),
        epochs(&[1, 1]),
        epochs(&many),
        format!("{good}{good}"),
        "[".repeat(100_000),
        String::new(),
        "null".to_owned(),
        format!("{good}{}", " ".repeat(MAX_HEADER_BYTES)),
    ];
    for line in bad {
        let error = parse(&line).expect_err(&format!("{line:.300}"));
        assert_eq!(error.kind(), ErrorKind::HeaderInvalid, "{error}");
    }
}

#[test]
fn what_a_header_says_of_providers_is_a_hint_only() {
    let (keys, store, good) = volume(true);
    let text = String::from_utf8(good).expect("text");
    let marker = keys.at().join("was-run");
    let own = keys.private().to_string();
    let hostile = format!("exec:touch {}", marker.display());
    assert!(text.contains(&own));
    write(
        &*store,
        &header_path(),
        text.replace(&own, &hostile).as_bytes(),
    );
    let shown = inspect(&*store).expect("it parses");
    let slot = shown.claims().slots().iter().next().expect("a slot");
    assert_eq!(slot.provider, hostile);
    let json = shown.to_json();
    assert_eq!(json["verified"], false);
    assert_eq!(json["claims"]["key_mode"], "platform-and-customer");
    // The record's key is used; the MAC tells.
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::Tampered);
    // Without a record the hint is printed and not followed.
    let id = shown.claims().volume_id();
    std::fs::remove_file(keys.at().join(format!("platform/volumes/{id}.json"))).expect("forget");
    let error = keys.open(&store, None).expect_err("no key named");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    assert!(error.hint().is_some_and(|hint| hint.contains("unverified")));
    assert!(!marker.exists());
    // Control characters would reach the terminal of whoever inspects.
    let escape = text.replace(&own, "file:/\\u001b[2J");
    write(&*store, &header_path(), escape.as_bytes());
    assert!(inspect(&*store).is_err());
}

#[test]
fn wraps_do_not_change_places() {
    let (keys, store, good) = volume(false);
    let text = String::from_utf8(good).expect("text");
    let parsed = UnverifiedHeader::parse(text.as_bytes()).expect("parse");
    let set = &parsed.claims().key_sets()[0];
    let customer = hex::encode(&set.customer[0].ciphertext);
    let infrastructure = hex::encode(&set.infrastructure[0].ciphertext);
    // One DEK passed off as the other.
    let swapped = text
        .replace(&customer, "@")
        .replace(&infrastructure, &customer)
        .replace('@', &infrastructure);
    write(&*store, &header_path(), swapped.as_bytes());
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::Tampered);
    // The wraps of another volume of the same keystore.
    let other = memory();
    keys.create(&other, None);
    let theirs = inspect(&*other).expect("inspect");
    let theirs = hex::encode(&theirs.claims().key_sets()[0].infrastructure[0].ciphertext);
    write(
        &*store,
        &header_path(),
        text.replace(&infrastructure, &theirs).as_bytes(),
    );
    assert_eq!(kind_of(keys.open(&store, None)), ErrorKind::Tampered);
    // The whole superblock of another volume: a whole volume, then, and its own id.
    write(&*store, &header_path(), &read(&*other, &header_path()));
    assert_ne!(
        keys.open(&store, None).expect("open").header().volume_id(),
        parsed.claims().volume_id()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_parser_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = UnverifiedHeader::parse(&bytes);
    }

    #[test]
    fn the_parser_takes_any_mutation(
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..12,
        ),
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = GOOD.get_or_init(|| volume(true).2).clone();
        for (index, byte, action) in edits {
            let at = index.index(bytes.len());
            match action {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => {
                    bytes.remove(at);
                }
                // Structure where there was none.
                _ => bytes[at] = b"{}[]\",:\\0"[usize::from(byte) % 9],
            }
        }
        if let Ok(header) = UnverifiedHeader::parse(&bytes) {
            prop_assert!(header.claims().key_sets().len() <= 64);
            let _ = header.to_json();
        }
    }
}

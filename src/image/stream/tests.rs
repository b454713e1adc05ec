//! Streams: a reader accepts a written stream, and refuses every other one.

use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::ids::{CryptoId, Epoch, ExportId, FolderNumber, KeySetId, ObjectId, VolumeId};
use crate::keys::customer::file::tests::test_key;
use crate::keys::transport::{Argon2idCost, TransportMethod};
use crate::keys::{WrapAlgorithm, WrappingKey};
use crate::layers::{CustomerDek, ExportKeys, InfrastructureDek, KeySet};
use crate::meta::records::ObjectName;
use crate::volume::KeyMode;

fn set(number: u8) -> KeySet {
    KeySet {
        id: KeySetId([number; 16]),
        epoch: Epoch(u32::from(number)),
        customer: CustomerDek::from_bytes(&[number; 64]).expect("memory"),
        infrastructure: InfrastructureDek::from_bytes(&[number; 32]).expect("memory"),
    }
}

fn keys() -> ExportKeys {
    ExportKeys::derive(ExportId([7; 16]), &set(1)).expect("keys")
}

fn header() -> ExportHeader {
    ExportHeader {
        features: Vec::new(),
        export: ExportId([7; 16]),
        key_mode: KeyMode::PlatformManaged,
        transport: TransportMethod::Passphrase {
            argon2id: Argon2idCost::DEFAULT,
            salt: [9; 16],
        },
        customer_key: None,
        meta: CryptoId([8; 16]),
        key_set: TransportedKeySet {
            id: KeySetId([1; 16]),
            epoch: Epoch(1),
            customer: vec![1; 137],
            infrastructure: vec![1; 105],
        },
        provenance: ExportProvenance {
            volume: VolumeId([6; 16]),
            image: "golden".to_owned(),
            created: 1_700_000_000,
        },
        counts: Counts {
            meta_strides: 2,
            objects: 2,
            pages: 3,
        },
    }
}

fn name(number: u8) -> ObjectName {
    ObjectName {
        folder: FolderNumber(u64::from(number)),
        object: ObjectId([number; 16]),
    }
}

/// Objects of the sample, with how many pages each has.
const OBJECTS: [(u8, u32); 2] = [(4, 1), (5, 2)];

fn sample() -> Vec<u8> {
    let mut bytes = Vec::new();
    let keys = keys();
    let mut stream = StreamWriter::begin(&mut bytes, &header(), &keys).expect("begin");
    let strides = stream.meta().expect("meta");
    stream
        .put(&vec![1; strides as usize * META_STRIDE_BYTES])
        .expect("strides");
    for (number, pages) in OBJECTS {
        stream.object(name(number), pages).expect("object");
        let page = vec![number; pages as usize * crate::sealed::PAGE_BYTES];
        stream.put(&page).expect("pages");
    }
    let len = stream.end().expect("end");
    assert_eq!(len, bytes.len() as u64);
    bytes
}

/// Reads a stream as an import does.
fn read(bytes: &mut dyn Read) -> Result<(), StreamError> {
    let (mut stream, unverified) = StreamReader::begin(bytes)?;
    let header = unverified.verify(&keys())?;
    stream.meta(&header.counts)?;
    let mut buffer = vec![0; 2 * META_STRIDE_BYTES];
    stream.fill(&mut buffer, "its metadata")?;
    for (number, pages) in OBJECTS {
        stream.object(name(number), pages)?;
        stream.fill(&mut buffer[..pages as usize * 4096], "an object")?;
    }
    stream.end(&header.counts, &keys())
}

#[test]
fn a_written_stream_can_be_read() {
    let bytes = sample();
    assert!(read(&mut &*bytes).is_ok());
    let start = b"bilayer-export 2\n{\"features\":[],\"export\":\"07070707";
    assert!(bytes.starts_with(start));
    let (_, unverified) = StreamReader::begin(&mut &*bytes)
        .map_err(|e| e.to_string())
        .expect("parse");
    assert_eq!(unverified.claims(), &header());
}

/// A pipe may return a stream in pieces.
#[test]
fn pieces_of_any_size_are_the_same_stream() {
    struct Trickle<'a>(&'a [u8], usize);
    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 % 7 + 1;
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    assert!(read(&mut Trickle(&sample(), 0)).is_ok());
}

#[test]
fn every_bit_counts() {
    let bytes = sample();
    // Every byte of what is not sealed, and some of what is.
    let sealed = 2 * META_STRIDE_BYTES;
    let header_end = bytes.len() - (1 + 24 + 32) - 3 * 4096 - 2 * 29 - sealed - 9;
    let every: Vec<usize> = (0..header_end + 9)
        .chain((header_end + 9..bytes.len()).step_by(61))
        .chain(header_end + 9 + sealed..header_end + 9 + sealed + 29)
        .chain(bytes.len() - 57..bytes.len())
        .collect();
    for at in every {
        for bit in 0..8 {
            let mut forged = bytes.clone();
            forged[at] ^= 1 << bit;
            assert!(read(&mut &*forged).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_end_but_the_right_one_is_refused() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let refused = read(&mut &bytes[..len]).expect_err("truncated");
        let expected = matches!(
            refused,
            StreamError::Truncated { .. } | StreamError::NotAnExport
        );
        assert!(expected, "{len}: {refused:?}");
        assert!(refused.hint().is_some());
    }
    for more in [&b"\0"[..], b"\n", &bytes] {
        let longer = [&*bytes, more].concat();
        assert!(matches!(read(&mut &*longer), Err(StreamError::Trailing)));
    }
}

#[test]
fn sections_stay_in_their_order() {
    let bytes = sample();
    let end = bytes.len() - 57;
    let second = end - 29 - 2 * 4096;
    let first = second - 29 - 4096;
    let metadata = first - 2 * META_STRIDE_BYTES - 9;
    let parts = [
        &bytes[..metadata],
        &bytes[metadata..first],
        &bytes[first..second],
        &bytes[second..end],
        &bytes[end..],
    ];
    let with = |order: &[usize]| -> Vec<u8> {
        order
            .iter()
            .flat_map(|&part| parts[part])
            .copied()
            .collect()
    };
    assert_eq!(with(&[0, 1, 2, 3, 4]), bytes);
    for order in [
        &[0, 1, 3, 2, 4][..],
        &[0, 1, 2, 2, 3, 4],
        &[0, 1, 2, 4],
        &[0, 1, 4],
        &[0, 2, 3, 4],
        &[0, 1, 1, 2, 3, 4],
        &[0, 4],
    ] {
        let refused = read(&mut &*with(order)).expect_err("another order");
        assert!(
            matches!(refused, StreamError::OutOfOrder { .. }),
            "{order:?}: {refused:?}"
        );
    }
}

/// The header's rules, each by a header that breaks it and is authentic otherwise.
fn rsa_public_key() -> Vec<u8> {
    let key = test_key().to_public_key();
    let key = WrappingKey::new(key, WrapAlgorithm::RsaOaepSha256).expect("key");
    key.spki().to_vec()
}

#[test]
fn headers_that_break_a_rule_are_not_written() {
    let broken = |change: &dyn Fn(&mut ExportHeader)| {
        let mut header = header();
        change(&mut header);
        StreamWriter::begin(&mut Vec::new(), &header, &keys()).is_err()
    };
    assert!(!broken(&|_| ()));
    let changes: [&dyn Fn(&mut ExportHeader); 11] = [
        &|header| header.features.push("more".to_owned()),
        &|header| header.key_mode = KeyMode::PlatformAndCustomer,
        &|header| {
            header.customer_key = Some(CustomerKeyClaim {
                provider: "file:/k".to_owned(),
                version: None,
                algorithm: WrapAlgorithm::RsaOaepSha256,
                public_key: rsa_public_key(),
            });
        },
        &|header| header.key_set.epoch = Epoch(u32::MAX),
        &|header| header.key_set.customer.clear(),
        &|header| header.key_set.infrastructure = vec![1; 513],
        &|header| header.provenance.image = "a\nb".to_owned(),
        &|header| header.provenance.image = "a".repeat(256),
        &|header| header.counts.pages = u64::MAX,
        &|header| header.counts.meta_strides = 1,
        &|header| {
            header.transport = TransportMethod::Keystore {
                keystore: "nothing".to_owned(),
                key_version: 1,
            };
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(broken(change), "change {index}");
    }
}

#[test]
fn headers_are_read_strictly() {
    let text = serde_json::to_string(&header()).expect("text");
    let parse = |text: &str| UnverifiedExport::parse(text.as_bytes(), [0; 32]);
    assert!(parse(&text).is_ok());
    for (from, to) in [
        ("{\"features\"", "{\"more\":1,\"features\""),
        ("{\"features\":[],", "{"),
        ("\"features\":[]", "\"features\":[],\"features\":[]"),
        ("\"features\":[]", "\"features\":[\"zstd\"]"),
        ("\"epoch\":1", "\"epoch\":0"),
        ("\"epoch\":1", "\"epoch\":1,\"epoch\":1"),
        ("\"epoch\":1", "\"epoch\":-1"),
        ("\"epoch\":1", "\"epoch\":4294967296"),
        ("\"epoch\":1", "\"epoch\":1,\"state\":\"read-only\""),
        ("\"key_set\":{", "\"key_set\":{},\"key_set\":{"),
        ("\"pages\":3", "\"pages\":3.5"),
        ("\"pages\":3", "\"pages\":3,\"bytes\":3"),
        ("\"image\":\"golden\"", "\"image\":\"\\u0007\""),
        ("platform-managed", "unmanaged"),
        ("\"memory_kib\":65536", "\"memory_kib\":4294967295"),
        ("0707", "0A07"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let refused = parse(&changed).expect_err(to);
        assert!(
            matches!(
                refused.kind(),
                ErrorKind::HeaderInvalid | ErrorKind::NewerFormat
            ),
            "{to}: {refused:?}"
        );
    }
}

#[test]
fn versions_are_distinguished() {
    let of = |first: &str| {
        let text = [first.as_bytes(), &sample()[17..]].concat();
        read(&mut &*text).expect_err("another version")
    };
    assert!(matches!(
        of("bilayer-export 3\n"),
        StreamError::NewerFormat { format: 3, .. }
    ));
    // Its streams contained key sets of a volume.
    let older = of("bilayer-export 1\n");
    assert!(matches!(older, StreamError::OlderFormat { format: 1, .. }));
    assert!(older.hint().is_some_and(|hint| hint.contains("again")));
    for first in [
        "bilayer-export 0\n",
        "bilayer-export 02\n",
        "bilayer-export +2\n",
        "bilayer-export 2 \n",
        "bilayer-export\n",
        "bilayer 1\n",
        "\n",
        "",
    ] {
        assert!(matches!(of(first), StreamError::NotAnExport), "{first:?}");
    }
}

/// Returns a start and then one byte forever, and counts the bytes that are read.
struct Endless<'a> {
    start: &'a [u8],
    byte: u8,
    read_bytes: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.start.len().min(buffer.len());
        let (now, later) = self.start.split_at(count);
        buffer[..count].copy_from_slice(now);
        buffer[count..].fill(self.byte);
        self.start = later;
        self.read_bytes += buffer.len();
        Ok(buffer.len())
    }
}

#[test]
fn a_header_without_end_is_not_read_to_it() {
    let line = serde_json::to_vec(&header()).expect("text");
    for start in [
        &b""[..],
        b"bilayer-export ",
        b"bilayer-export 2\n",
        b"bilayer-export 2\n{\"features\":[",
        &[b"bilayer-export 2\n", &*line, b"\n"].concat(),
    ] {
        let mut endless = Endless {
            start,
            byte: b'0',
            read_bytes: 0,
        };
        let refused = read(&mut endless).expect_err("endless");
        assert!(
            matches!(
                refused.kind(),
                ErrorKind::HeaderInvalid | ErrorKind::NewerFormat
            ),
            "{refused:?}"
        );
        assert!(
            endless.read_bytes <= MAX_HEADER_BYTES + (128 << 10),
            "{}",
            endless.read_bytes
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&mut &*bytes).is_err());
        let behind = [b"bilayer-export 2\n", &*bytes].concat();
        prop_assert!(read(&mut &*behind).is_err());
    }

    /// A header with bytes removed or replaced neither panics nor verifies.
    #[test]
    fn changed_headers_are_an_error(
        at in 0usize..1400,
        len in 0usize..60,
        put in proptest::collection::vec(prop_oneof![
            any::<u8>(), Just(b'"'), Just(b'{'), Just(b'['), Just(b'\n'), Just(b'9'),
        ], 0..40),
    ) {
        let bytes = sample();
        let (at, end) = (at.min(bytes.len()), (at + len).min(bytes.len()));
        let changed = [&bytes[..at], &*put, &bytes[end..]].concat();
        prop_assume!(changed != bytes);
        prop_assert!(read(&mut &*changed).is_err());
    }
}

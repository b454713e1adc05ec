//! Streams that were modified, shortened, mixed and reordered: each is refused, and nothing is left
//! of it.

use super::export::{export_from, import_options, import_to, refused};
use super::*;
use bilayer::image::stream::StreamError;
use bilayer::image::{Transport, import};
use bilayer::keys::ErrorKind;
use bilayer::store::memory::MemoryStore;

/// Offsets at which the sections of a stream begin.
pub(super) struct Borders {
    metadata: usize,
    /// Objects, each with its announcement.
    objects: Vec<usize>,
    end: usize,
}

impl Borders {
    pub(super) fn of(stream: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(stream[at..at + 8].try_into().unwrap());
        let lines = stream
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n');
        let (third, _) = lines.clone().nth(2).unwrap();
        let metadata = third + 1;
        assert_eq!(stream[metadata], b'M');
        let mut at = metadata + 9 + number(metadata + 1) as usize * 4608;
        let mut objects = Vec::new();
        while stream[at] == b'O' {
            objects.push(at);
            let pages = u32::from_le_bytes(stream[at + 25..at + 29].try_into().unwrap());
            at += 29 + pages as usize * 4096;
        }
        assert_eq!((stream[at], at + 57), (b'E', stream.len()));
        Self {
            metadata,
            objects,
            end: at,
        }
    }

    pub(super) fn strides(&self) -> std::ops::Range<usize> {
        self.metadata + 9..*self.objects.first().unwrap_or(&self.end)
    }
}

/// A stream with a few small objects, and where it was created.
fn small() -> (Disk, Vec<u8>) {
    let disk = Disk::new();
    disk.create("source", None);
    disk.with("source", |fs| {
        put(fs, ROOT, "inline", &[(0, &pattern(1, 0, 700))]);
        put(fs, ROOT, "one", &[(0, &pattern(1, 0, 2 * PAGE))]);
        put(fs, ROOT, "two", &[(0, &pattern(2, 0, 2 * PAGE))]);
        put(fs, ROOT, "three", &[(PAGE, &pattern(3, 0, PAGE))]);
    });
    let (stream, _) = export_from(&disk, "source", Transport::Keystore).unwrap();
    (disk, stream)
}

#[test]
fn every_change_is_refused_and_nothing_is_left() {
    let (disk, stream) = small();
    let borders = Borders::of(&stream);
    assert_eq!(borders.objects.len(), 3);
    let options = import_options(&disk);
    let strides = borders.strides();
    let mut places: Vec<usize> = (0..borders.metadata).step_by(97).collect();
    places.extend(borders.metadata..strides.start);
    places.extend(strides.clone().step_by(strides.len() / 40 + 1));
    // Padding between pages, which no page's tag covers.
    places.push(strides.start + 4608 - 10);
    for &object in &borders.objects {
        places.extend((object..object + 29).step_by(5));
        places.extend((object + 29..object + 29 + 4096).step_by(701));
    }
    places.extend((borders.end..stream.len()).step_by(3));
    for at in places {
        let mut forged = stream.clone();
        forged[at] ^= 1 << (at % 8);
        let error = refused(&disk, &forged, &options);
        let damaged = matches!(
            error.kind(),
            ErrorKind::Tampered
                | ErrorKind::HeaderInvalid
                | ErrorKind::NewerFormat
                | ErrorKind::WrongKey
                | ErrorKind::KeystoreMissing
        );
        assert!(damaged, "byte {at}: {error:?}");
    }
    import_to(&disk, "copy", &stream, &options).unwrap();
    assert_eq!(disk.tree("copy"), disk.tree("source"));
}

#[test]
fn every_end_but_the_right_one_is_refused() {
    let (disk, stream) = small();
    let borders = Borders::of(&stream);
    let options = import_options(&disk);
    let mut ends = vec![0, 5, 17, 100, borders.metadata - 65, borders.metadata - 1];
    ends.extend([
        borders.metadata,
        borders.metadata + 1,
        borders.strides().start,
    ]);
    ends.extend([borders.strides().start + 4608, borders.strides().end - 1]);
    for &object in &borders.objects {
        ends.extend([object, object + 1, object + 29, object + 29 + 4095]);
    }
    ends.extend([
        borders.end,
        borders.end + 1,
        stream.len() - 32,
        stream.len() - 1,
    ]);
    for end in ends {
        let error = refused(&disk, &stream[..end], &options);
        let is_end = matches!(
            error,
            ImageError::Stream(StreamError::Truncated { .. } | StreamError::NotAnExport)
        );
        assert!(is_end, "{end}: {error:?}");
    }
    for more in [&b"\0"[..], &stream] {
        let error = refused(&disk, &[&*stream, more].concat(), &options);
        assert!(
            matches!(error, ImageError::Stream(StreamError::Trailing)),
            "{error:?}"
        );
    }
}

/// Objects of the same length are exchanged: their names reveal it, and without them their pages
/// do.
#[test]
fn objects_and_pages_stay_where_they_are() {
    let (disk, stream) = small();
    let borders = Borders::of(&stream);
    let options = import_options(&disk);
    let [one, two, three] = borders.objects[..] else {
        panic!("three objects");
    };
    let (first, second) = (&stream[one..two], &stream[two..three]);
    let of = |parts: &[&[u8]]| parts.concat();
    let (before, after) = (&stream[..one], &stream[three..]);
    assert_eq!(of(&[before, first, second, after]), stream);
    for changed in [
        of(&[before, second, first, after]),
        of(&[before, first, first, second, after]),
        of(&[before, first, first, after]),
        of(&[before, first, after]),
        of(&[before, first, second, &stream[borders.end..]]),
    ] {
        let error = refused(&disk, &changed, &options);
        assert!(
            matches!(error, ImageError::Stream(StreamError::OutOfOrder { .. })),
            "{error:?}"
        );
    }
    let (page, next) = (&first[29..29 + 4096], &first[29 + 4096..]);
    for changed in [
        of(&[before, &first[..29], &second[29..], second, after]),
        of(&[before, &first[..29], next, page, second, after]),
        of(&[before, &first[..29], page, page, second, after]),
        of(&[before, &first[..29], page, &[0; 4096], second, after]),
    ] {
        let error = refused(&disk, &changed, &options);
        assert!(matches!(error, ImageError::Page { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Tampered);
    }
}

/// Two exports of one image have nothing in common: parts of one are refused in the other.
#[test]
fn parts_of_two_exports_do_not_mix() {
    let (disk, stream) = small();
    let (other, _) = export_from(&disk, "source", Transport::Keystore).unwrap();
    let options = import_options(&disk);
    let (a, b) = (Borders::of(&stream), Borders::of(&other));
    let mixtures = [
        [&stream[..a.metadata], &other[b.metadata..]].concat(),
        [&stream[..a.strides().end], &other[b.strides().end..]].concat(),
        [&stream[..a.end], &other[b.end..]].concat(),
    ];
    for mixture in mixtures {
        let error = refused(&disk, &mixture, &options);
        assert_eq!(error.kind(), ErrorKind::Tampered, "{error:?}");
    }
    // Not even with the names of the other.
    let (one, other) = (
        &mut stream[..a.end].to_vec(),
        &other[b.objects[0] + 29..b.objects[0] + 29 + 4096],
    );
    one[a.objects[0] + 29..a.objects[0] + 29 + 4096].copy_from_slice(other);
    let mixture = [one, &stream[a.end..]].concat();
    let error = refused(&disk, &mixture, &options);
    assert!(matches!(error, ImageError::Page { .. }), "{error:?}");
}

#[test]
fn an_occupied_directory_is_refused_and_unchanged() {
    let (disk, stream) = small();
    let before = disk.tree("source");
    let error = import_to(&disk, "source", &stream, &import_options(&disk)).unwrap_err();
    assert!(
        matches!(error, ImageError::Volume(VolumeError::Occupied(_))),
        "{error:?}"
    );
    assert_eq!(disk.tree("source"), before);
    let full: Arc<dyn Store> = Arc::new(MemoryStore::with_capacity_bytes(100 << 10));
    let error = import(
        &mut &*stream,
        Arc::clone(&full),
        &import_options(&disk),
        &NoProgress,
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(full.list(&StorePath::root()).unwrap(), []);
}

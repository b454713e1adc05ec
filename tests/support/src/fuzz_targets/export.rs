//! Exported images: unauthenticated headers, and modified streams.

use std::cell::OnceCell;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::fs::Filesystem;
use bilayer::image::stream::StreamReader;
use bilayer::image::{ExportOptions, ImportOptions, NoProgress, import};
use bilayer::keys::PassphraseSource;
use bilayer::keys::transport::TransportMethod;
use bilayer::store::memory::MemoryStore;

use super::{hostile, sample};

/// A change of a stream.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    Flip {
        at: u32,
        by: u8,
    },
    Insert {
        at: u32,
        bytes: &'a [u8],
    },
    Remove {
        at: u32,
        len: u16,
    },
    Truncate(u32),
    /// A position in the header, which ends first.
    Header {
        at: u16,
        bytes: &'a [u8],
    },
}

/// Memory of Argon2id that a case may request, in KiB.
const MOST_WORK_KIB: u64 = 1024;

thread_local! {
    static EXPORTED: OnceCell<Rc<Vec<u8>>> = const { OnceCell::new() };
}

fn exported() -> Rc<Vec<u8>> {
    let make = || {
        let sample = hostile::sample();
        let volume = sample.open(&sample.store.snapshot()).unwrap();
        let fs = Filesystem::open(volume, sample::options()).unwrap();
        let mut stream = Vec::new();
        let made = fs.export_image("two", &ExportOptions::default(), &mut stream, &NoProgress);
        made.unwrap();
        fs.close().unwrap();
        Rc::new(stream)
    };
    EXPORTED.with(|kept| Rc::clone(kept.get_or_init(make)))
}

/// The first byte says whether the others are the stream, or describe changes of a valid one.
pub fn target(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let sound = exported();
    if kind & 1 == 1 {
        receive(rest, &sound);
        return;
    }
    let mut stream = (*sound).clone();
    // A short or odd end means fewer changes.
    let _ = mutate(&mut stream, rest);
    receive(&stream, &sound);
}

fn mutate(stream: &mut Vec<u8>, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    while !input.is_empty() && !stream.is_empty() {
        let len = stream.len();
        let place = |at: u32| at as usize % len;
        match Change::arbitrary(&mut input)? {
            Change::Flip { at, by } => stream[place(at)] ^= by,
            Change::Insert { at, bytes } => {
                stream.splice(place(at)..place(at), bytes.iter().copied());
            }
            Change::Remove { at, len: count } => {
                let end = (place(at) + usize::from(count)).min(len);
                stream.drain(place(at)..end);
            }
            Change::Truncate(at) => stream.truncate(place(at)),
            Change::Header { at, bytes } => {
                let at = usize::from(at) % 1500 % len;
                let end = (at + bytes.len()).min(len);
                stream[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
    }
    Ok(())
}

fn receive(stream: &[u8], sound: &[u8]) {
    let mut input = stream;
    let Ok((_, unverified)) = StreamReader::begin(&mut input) else {
        return;
    };
    let bearable = match &unverified.claims().transport {
        TransportMethod::Keystore { .. } => true,
        TransportMethod::Passphrase { argon2id, .. } => {
            u64::from(argon2id.memory_kib) * u64::from(argon2id.passes) <= MOST_WORK_KIB
        }
    };
    if !bearable {
        return;
    }
    let sample = hostile::sample();
    let passphrase = sample.beside("passphrase");
    fs::write(&passphrase, "a passphrase\n").unwrap();
    let options = ImportOptions {
        keystore: sample.keystore(),
        export_passphrase: PassphraseSource::File(passphrase),
        ..ImportOptions::default()
    };
    let target = MemoryStore::new();
    let imported = import(&mut &*stream, Arc::new(target), &options, &NoProgress);
    assert_eq!(imported.is_ok(), stream == sound, "{:?}", imported.err());
}

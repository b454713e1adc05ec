//! Streams as section 11 of `docs/FORMAT.md` describes them, opened by a second implementation
//! (`open_export.py`), which gets only the contents of the database inside `meta`.

use super::*;
use bilayer::image::{ExportOptions, ImportOptions, NoProgress, Source, Transport, export, import};
use bilayer::keys::PassphraseSource;
use bilayer::meta::records::Timespec;
use bilayer::store::memory::MemoryStore;

const PASSPHRASE: &str = "correct horse";

/// The interpreter, or `None`, after a message, if it cannot compute Argon2id.
fn python_with_argon2() -> Option<String> {
    let python = python()?;
    let probe = Command::new(&python)
        .args([
            "-c",
            "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as A\n\
             A(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=8).derive(b'x')",
        ])
        .stderr(Stdio::null())
        .status();
    if probe.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let missing = "an export under a passphrase needs the package `cryptography` 44 or newer over \
                   OpenSSL 3.2 or newer";
    assert!(
        std::env::var_os("BILAYER_TESTS_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{missing}"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED: {missing}");
    None
}

/// Exports an image of a closed volume.
fn export_all(fixture: &Fixture, transport: Transport) -> Vec<u8> {
    let volume = fixture.open();
    let meta = open_meta(&volume);
    let source = Source {
        volume: &volume,
        meta: &meta,
        view: View(meta.counters().generation),
        image: "golden",
    };
    let made = Timespec {
        secs: 1_700_000_000,
        nanos: 0,
    };
    let options = ExportOptions {
        transport,
        ..ExportOptions::default()
    };
    let mut stream = Vec::new();
    export(&source, made, &options, &mut stream, &NoProgress).unwrap();
    meta.close().unwrap();
    stream
}

fn open_meta(volume: &volume::Volume) -> Meta {
    let file = volume
        .store
        .open(&StorePath::new(META_NAME), OpenMode::ReadWrite)
        .unwrap();
    let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto()).unwrap();
    Meta::open(file, 4 << 20).unwrap()
}

/// The parts that a stream's metadata names, in order: an import keeps them.
fn parts_in(fixture: &Fixture, stream: &[u8], from: PassphraseSource) -> Vec<Value> {
    let target: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let options = ImportOptions {
        customer_key: fixture.uri(),
        export_passphrase: from,
        keystore: fixture.keystore_path(),
        ..ImportOptions::default()
    };
    import(&mut &*stream, Arc::clone(&target), &options, &NoProgress).unwrap();
    let options = OpenOptions {
        customer_key: fixture.uri(),
        keystore: fixture.keystore_path(),
        ..OpenOptions::default()
    };
    let meta = open_meta(&volume::open(target, &options).unwrap());
    let rows = meta
        .scan(Table::Extent, &[], &[0xFF; 9], View::LIVE, usize::MAX)
        .unwrap();
    let listed = rows.iter().flat_map(|(_, value)| match parts(value) {
        Value::Array(parts) => parts,
        other => panic!("{other}"),
    });
    let listed = listed.collect();
    meta.close().unwrap();
    listed
}

fn check(python: &str, customer_managed: bool, transport: Transport, kind: &str) {
    let fixture = Fixture::create(customer_managed);
    fixture.fill();
    let from = match &transport {
        Transport::Keystore => PassphraseSource::None,
        Transport::Passphrase(from) => from.clone(),
    };
    let stream = export_all(&fixture, transport);
    let parts = parts_in(&fixture, &stream, from);
    let path = fixture.directory.path().join("stream");
    std::fs::write(&path, &stream).unwrap();
    let request = json!({
        "stream": path,
        "keystore": fixture.keystore_path(),
        "passphrase": PASSPHRASE,
        "customer_key": fixture.customer_key,
        "parts": parts,
    });
    let open = || run_program("open_export.py", python, "open", &request);
    let answer = open().unwrap();
    assert_eq!(answer["transport"], kind);
    assert_eq!(
        answer["provenance"],
        json!({
            "volume": fixture.open().header().volume_id().to_string(),
            "image": "golden",
            "created": 1_700_000_000,
        })
    );
    assert_eq!(
        answer["meta"]["begins_with"],
        hex::encode(b"redb\x1a\x0a\xa9\x0d\x0a")
    );
    assert!(answer["meta"]["pages_opened"].as_u64().unwrap() > 0);
    assert!(answer["objects"].as_u64().unwrap() >= 4);
    assert!(answer["pages_opened"].as_u64().unwrap() > 1000);

    // A check that cannot fail proves nothing.
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = stream.clone();
        change(&mut changed);
        std::fs::write(&path, changed).unwrap();
        open().expect_err("changed")
    };
    let created = stream
        .windows(11)
        .position(|window| window == b"\"created\":1")
        .unwrap();
    let refusal = refused(&|stream| stream[created + 10] = b'2');
    assert!(refusal.contains("MAC of the header"), "{refusal}");
    let refusal = refused(&|stream| {
        let last_page = stream.len() - 57 - 1;
        stream[last_page] ^= 1;
    });
    assert!(refusal.contains("outer tag"), "{refusal}");
    let refusal = refused(&|stream| *stream.last_mut().unwrap() ^= 1);
    assert!(refusal.contains("MAC of the end"), "{refusal}");
    let refusal = refused(&|stream| stream.push(0));
    assert!(refusal.contains("follows the end"), "{refusal}");
}

#[test]
fn an_export_for_a_keystore_is_opened_from_the_document_alone() {
    let Some(python) = python() else {
        return;
    };
    for customer_managed in [false, true] {
        check(&python, customer_managed, Transport::Keystore, "keystore");
    }
}

#[test]
fn an_export_under_a_passphrase_is_opened_from_the_document_alone() {
    let Some(python) = python_with_argon2() else {
        return;
    };
    for customer_managed in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        std::fs::write(&path, format!("{PASSPHRASE}\n")).unwrap();
        let transport = Transport::Passphrase(PassphraseSource::File(path));
        check(&python, customer_managed, transport, "passphrase");
    }
}

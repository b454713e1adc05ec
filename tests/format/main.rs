//! The format as `docs/FORMAT.md` describes it: volumes made by the library are opened by a second
//! implementation, a Python program written from that document alone (`open_volume.py`).
//!
//! The program cannot read the database inside `meta`, so the test reads the extents through the
//! library and passes them on. Everything else, from the superblock's MAC to the last page, the
//! program reads by itself.
//!
//! Needs python3 with the package `cryptography`. Without them the tests say so and pass, unless
//! `BILAYER_TESTS_REQUIRE_ALL=1`. `BILAYER_TESTS_PYTHON` names another interpreter.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod export;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bilayer::fs::types::{Caller, NodeId, Owner, WriteFlags};
use bilayer::fs::{Filesystem, FilesystemOptions};
use bilayer::ids::{Epoch, IncarnationId, Ino, KeySetId, Sequence, VolumeId};
use bilayer::keys::KeyUri;
use bilayer::keys::customer::file;
use bilayer::layers::{
    ActiveSet, CustomerDek, InfrastructureDek, KeySet, Succession, VerificationKey, fingerprint,
    header_mac,
};
use bilayer::meta::checkpoint;
use bilayer::meta::keys::{Table, extent_parts};
use bilayer::meta::page_set::CHUNK_PAGES;
use bilayer::meta::records::ExtentRecord;
use bilayer::meta::{Meta, View};
use bilayer::sealed::MetaFile;
use bilayer::store::directory::DirectoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, CreateOptions, META_NAME, OpenOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const FORMAT: &str = include_str!("../../docs/FORMAT.md");
const CONTENTS_PAGE: &str = include_str!("../../src/sealed/tests/golden/contents-page.hex");
const META_PAGE: &str = include_str!("../../src/sealed/tests/golden/meta-page-0-slot-b.hex");
const ROOT: NodeId = NodeId(1);
const CALLER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    umask: 0,
};

// ---- the second implementation ------------------------------------------------------------------

/// The interpreter; `None`, after a message, if there is none.
fn python() -> Option<String> {
    let python = std::env::var("BILAYER_TESTS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python)
        .args([
            "-c",
            "from cryptography.hazmat.primitives.ciphers import modes; modes.XTS",
        ])
        .stderr(Stdio::null())
        .status();
    if probe.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let missing = "the second implementation of the format needs python3 with the package \
                   `cryptography`: install both (python3 -m pip install cryptography) or name an \
                   interpreter that has it in BILAYER_TESTS_PYTHON";
    assert!(
        std::env::var_os("BILAYER_TESTS_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{missing}"
    );
    // Not by a macro: the test harness would capture it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {missing}");
    None
}

fn run(python: &str, command: &str, request: &Value) -> Result<Value, String> {
    run_program("open_volume.py", python, command, request)
}

fn run_program(
    program: &str,
    python: &str,
    command: &str,
    request: &Value,
) -> Result<Value, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format");
    let program = directory.join(program);
    let mut child = Command::new(python)
        .arg(program)
        .arg(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ended early prints the reason on standard error.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(request.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

// ---- volumes ------------------------------------------------------------------------------------

/// A volume in a directory of its own.
struct Fixture {
    directory: tempfile::TempDir,
    customer_key: Option<PathBuf>,
}

impl Fixture {
    fn create(customer_managed: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let customer_key = customer_managed.then(|| {
            let path = directory.path().join("customer.pem");
            file::generate(&path, 2048, None).unwrap();
            path
        });
        let this = Self {
            directory,
            customer_key,
        };
        let store: Arc<dyn Store> =
            Arc::new(DirectoryStore::open_or_create(&this.volume_path()).unwrap());
        let options = CreateOptions {
            customer_key: this.uri(),
            keystore: this.keystore_path(),
            ..CreateOptions::default()
        };
        volume::create_empty(store, &options, &mut |fresh| {
            Filesystem::format(
                fresh,
                Owner {
                    uid: 1000,
                    gid: 1000,
                },
            )
            .map_err(Into::into)
        })
        .unwrap();
        this
    }

    fn volume_path(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    fn keystore_path(&self) -> PathBuf {
        self.directory.path().join("platform")
    }

    fn uri(&self) -> Option<KeyUri> {
        let path = self.customer_key.as_deref()?;
        Some(KeyUri::from_file(path).unwrap())
    }

    fn open(&self) -> volume::Volume {
        let store = Arc::new(DirectoryStore::open(&self.volume_path()).unwrap());
        let options = OpenOptions {
            customer_key: self.uri(),
            keystore: self.keystore_path(),
            ..OpenOptions::default()
        };
        volume::open(store, &options).unwrap()
    }

    /// Writes files of several shapes and closes the volume cleanly. Returns the contents.
    fn fill(&self) -> BTreeMap<Ino, Vec<u8>> {
        let filesystem = Filesystem::open(self.open(), FilesystemOptions::default()).unwrap();
        let mut files = BTreeMap::new();
        for shape in shapes() {
            let Shape {
                name,
                mut contents,
                holes,
            } = shape;
            let (attr, handle) = filesystem
                .create(&CALLER, ROOT, name.as_bytes(), 0o644, libc::O_RDWR)
                .unwrap();
            for data in runs(contents.len(), &holes) {
                filesystem
                    .write(
                        attr.node,
                        handle,
                        data.start as u64,
                        &contents[data],
                        WriteFlags::default(),
                    )
                    .unwrap();
            }
            for hole in holes {
                contents[hole].fill(0);
            }
            filesystem.fsync(attr.node, handle, false).unwrap();
            // Part of a page in place: the page is read, changed and sealed again.
            filesystem
                .write(
                    attr.node,
                    handle,
                    1000,
                    b"overwritten",
                    WriteFlags::default(),
                )
                .unwrap();
            contents[1000..1011].copy_from_slice(b"overwritten");
            filesystem.release(attr.node, handle);
            files.insert(attr.node.ino(), contents);
        }
        filesystem.checkpoint_now().unwrap();
        filesystem.close().unwrap();
        files
    }

    /// The chunks of the files according to the metadata, as passed to the second implementation.
    fn request(&self, files: &BTreeMap<Ino, Vec<u8>>) -> Value {
        let volume = self.open();
        let meta_file = volume
            .store
            .open(&StorePath::new(META_NAME), OpenMode::ReadWrite)
            .unwrap();
        let meta_file = MetaFile::open(
            meta_file,
            volume.keys.active(),
            volume.header().meta_crypto(),
        )
        .unwrap();
        let meta = Meta::open(meta_file, 4 << 20).unwrap();
        let mut requests = Vec::new();
        for (ino, contents) in files {
            let size = meta.inode(*ino, View::LIVE).unwrap().unwrap().size;
            assert_eq!(size, contents.len() as u64);
            let mut chunks = serde_json::Map::new();
            let rows = meta
                .scan(
                    Table::Extent,
                    &ino.0.to_be_bytes(),
                    &(ino.0 + 1).to_be_bytes(),
                    View::LIVE,
                    usize::MAX,
                )
                .unwrap();
            for (key, value) in rows {
                let (_, chunk) = extent_parts(&key).unwrap();
                chunks.insert(chunk.to_string(), parts(&value));
            }
            requests.push(json!({ "size": size, "chunks": chunks }));
        }
        meta.close().unwrap();
        json!({
            "volume": self.volume_path(),
            "keystore": self.keystore_path(),
            "customer_key": self.customer_key,
            "files": requests,
        })
    }
}

/// The ranges between holes.
fn runs(len: usize, holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(holes.iter().map(|hole| hole.end));
    let ends = holes.iter().map(|hole| hole.start).chain([len]);
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// A file to write.
struct Shape {
    name: &'static str,
    contents: Vec<u8>,
    /// Never written, so it reads as zeros.
    holes: Vec<Range<usize>>,
}

fn shapes() -> [Shape; 3] {
    let bytes = |len: usize, seed: usize| -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 253 + seed) as u8).collect()
    };
    let shape = |name, len, hole: Option<Range<usize>>| Shape {
        name,
        contents: bytes(len, name.len()),
        holes: hole.into_iter().collect(),
    };
    [
        shape("just-an-object", 2049, None),
        shape("two-chunks", (4 << 20) + 5000, None),
        shape("with-a-hole", 200_000, Some(10_000..150_001)),
    ]
}

fn parts(record: &[u8]) -> Value {
    let Some(ExtentRecord::Parts { parts, .. }) = ExtentRecord::decode(record) else {
        panic!("a file of more than 2048 bytes has objects");
    };
    parts
        .iter()
        .map(|part| {
            let pages: Vec<u32> = (0..CHUNK_PAGES)
                .filter(|page| part.pages.contains(*page))
                .collect();
            json!({
                "folder": part.id.name.folder.0,
                "object": part.id.name.object.to_string(),
                "crypto": part.id.crypto.to_string(),
                "epoch": part.id.epoch.0,
                "pages": pages,
            })
        })
        .collect()
}

fn check(customer_managed: bool) {
    let Some(python) = python() else {
        return;
    };
    let fixture = Fixture::create(customer_managed);
    let files = fixture.fill();
    let request = fixture.request(&files);
    let fingerprint = fixture.open().fingerprint().unwrap();

    let answer = run(&python, "open", &request).unwrap();
    assert_eq!(answer["fingerprint"], fingerprint);
    assert_eq!(
        answer["meta"]["begins_with"],
        hex::encode(b"redb\x1a\x0a\xa9\x0d\x0a")
    );
    assert_eq!(answer["meta"]["authentic_slots"], 2);
    assert!(answer["meta"]["pages_opened"].as_u64().unwrap() > 0);
    let volume = fixture.open();
    let newest = checkpoint::newest(&*volume.store, volume.keys.active()).unwrap();
    let (newest, _) = newest.unwrap();
    let created = json!([newest.created.secs, newest.created.nanos]);
    assert_eq!(
        answer["checkpoints"],
        json!([{ "sequence": newest.sequence.0, "created": created }])
    );
    drop(volume);
    for (opened, contents) in answer["files"]
        .as_array()
        .unwrap()
        .iter()
        .zip(files.values())
    {
        assert_eq!(opened["sha256"], hex::encode(Sha256::digest(contents)));
        assert!(opened["pages_opened"].as_u64().unwrap() > 0);
    }
    assert_eq!(answer["files"].as_array().unwrap().len(), files.len());
    refuses_what_was_changed(&python, &fixture, &request);
}

/// A check that cannot fail proves nothing: one bit of each file is flipped and flipped back.
fn refuses_what_was_changed(python: &str, fixture: &Fixture, request: &Value) {
    let part = &request["files"][0]["chunks"]["0"][0];
    let object = format!(
        "objects/{:08x}/{}",
        part["folder"].as_u64().unwrap(),
        part["object"].as_str().unwrap()
    );
    let header = std::fs::read(fixture.volume_path().join("volume.json")).unwrap();
    let digit = b"\"sequence\":1".to_vec();
    let digit_at = header
        .windows(digit.len())
        .position(|w| w == digit)
        .unwrap()
        + 11;
    for (name, at, expected) in [
        (object.as_str(), 4095, "outer tag"),
        // '1' becomes '0': still a superblock, but not the authenticated one.
        ("volume.json", digit_at, "MAC of the superblock"),
    ] {
        let path = fixture.volume_path().join(name);
        let flip = || {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        };
        flip();
        let refusal = run(python, "open", request).expect_err(name);
        assert!(refusal.contains(expected), "{name}: {refusal}");
        flip();
    }
    run(python, "open", request).expect("as it was");
}

#[test]
fn customer_managed_volume_is_opened_from_the_document_alone() {
    check(true);
}

#[test]
fn platform_managed_volume_is_opened_from_the_document_alone() {
    check(false);
}

// ---- the vectors of the document ----------------------------------------------------------------

fn digits(text: &str) -> String {
    text.split_whitespace().collect()
}

/// The value that section 10 gives under a name: the words that follow it, up to an empty line.
fn in_document(name: &str) -> String {
    let start = FORMAT
        .find(&format!("\n{name}:"))
        .unwrap_or_else(|| panic!("FORMAT.md has no vector {name}"));
    let rest = &FORMAT[start + name.len() + 2..];
    digits(
        rest.split("\n\n")
            .next()
            .unwrap()
            .split("```")
            .next()
            .unwrap(),
    )
}

/// The MAC of the statement in the document: another set follows `set`.
fn succession_of(set: &KeySet) -> [u8; 32] {
    let next = KeySet {
        id: KeySetId([9; 16]),
        epoch: Epoch(2),
        customer: CustomerDek::from_bytes(&[10; 64]).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(&[11; 32]).unwrap(),
    };
    let active = |set: &KeySet, incarnation| ActiveSet {
        key_set: set.id,
        epoch: set.epoch,
        incarnation: IncarnationId([incarnation; 16]),
    };
    let succession = Succession {
        volume: VolumeId([5; 16]),
        before: active(set, 6),
        commit: Sequence(7),
        after: active(&next, 8),
    };
    let key = |set| VerificationKey::of(set).unwrap();
    succession.mac(&key(set), &key(&next)).unwrap()
}

#[test]
fn vectors_of_the_document_are_the_library_s() {
    let set = KeySet {
        id: KeySetId([3; 16]),
        epoch: Epoch(1),
        customer: CustomerDek::from_bytes(&[1; 64]).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(&[2; 32]).unwrap(),
    };
    let mac = header_mac(&[&set], br#"{"format":"bilayer"}"#).unwrap();
    assert_eq!(in_document("header-mac"), hex::encode(mac));
    let key = VerificationKey::of(&set).unwrap();
    assert_eq!(in_document("verification-key"), hex::encode(key.expose()));
    assert_eq!(
        in_document("succession-mac"),
        hex::encode(succession_of(&set))
    );
    assert_eq!(in_document("fingerprint"), fingerprint(&set).unwrap());
    for (name, page) in [("contents-page", CONTENTS_PAGE), ("meta-page", META_PAGE)] {
        let bytes = hex::decode(digits(page)).unwrap();
        assert_eq!(
            in_document(&format!("{name}-header")),
            hex::encode(&bytes[..64])
        );
        assert_eq!(
            in_document(&format!("{name}-sha256")),
            hex::encode(Sha256::digest(&bytes))
        );
    }
}

#[test]
fn vectors_of_the_document_are_the_second_implementation_s() {
    let Some(python) = python() else {
        return;
    };
    let vectors = run(&python, "vectors", &Value::Null).unwrap();
    for (name, value) in vectors.as_object().unwrap() {
        let expected = match name.as_str() {
            "contents-page" => digits(CONTENTS_PAGE),
            "meta-page" => digits(META_PAGE),
            _ => in_document(name),
        };
        assert_eq!(value, &expected, "{name}");
    }
}

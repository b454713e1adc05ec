//! Entries that are not plain files, unexpected names, and superblocks with false claims.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bilayer::store::Store;
use bilayer::store::directory::DirectoryStore;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::case::{Case, Edit, Stale, attempt, run};
use crate::matrix::PLAIN;
use crate::table::{Outcome, Table};
use crate::victim::{self, Keystore, State};

/// A copy of the victim in a directory, beside a file that must not be touched.
struct Scene {
    dir: tempfile::TempDir,
}

const OUTSIDE: &[u8] = b"not to be touched";

impl Scene {
    fn new(state: &State) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a directory");
        fs::create_dir(dir.path().join("outside")).expect("make");
        fs::write(dir.path().join("outside/file"), OUTSIDE).expect("write");
        let scene = Self { dir };
        let store = DirectoryStore::open_or_create(&scene.volume()).expect("store");
        victim::restore(&store, &state.files);
        scene
    }

    fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside/file")
    }

    /// Opens it as a case of the table; nothing outside may change.
    fn attack(
        self,
        table: &mut Table,
        keystore: &Arc<Keystore>,
        state: &State,
        case: &Case,
    ) -> Outcome {
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&self.volume()).expect("open"));
        let (outcome, what) = attempt(&PLAIN, state, keystore, store, case, true);
        table.add(&case.of, case.change, outcome, &what);
        assert_eq!(fs::read(self.outside()).expect("read"), OUTSIDE, "{what}");
        let beside = fs::read_dir(self.dir.path().join("outside")).expect("list");
        assert_eq!(beside.count(), 1, "{what}: something was made outside");
        let above = fs::read_dir(self.dir.path()).expect("list");
        assert_eq!(above.count(), 2, "{what}: something was made beside");
        outcome
    }
}

fn case(of: &str, change: &'static str, name: &str) -> Case {
    Case {
        of: of.to_owned(),
        change,
        what: name.to_owned(),
        edits: Vec::new(),
        stale: Stale::Nothing,
        names: vec![name.to_owned()],
    }
}

/// What replaces a file.
const UNEXPECTED: [&str; 8] = [
    "symbolic link",
    "dangling link",
    "link to itself",
    "pipe",
    "socket",
    "directory",
    "device",
    "huge and empty",
];

fn replace(path: &Path, by: &str, outside: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).expect("remove"),
        Ok(_) => fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
    let mode = Mode::RUSR | Mode::WUSR;
    match by {
        "symbolic link" => symlink(outside, path).expect("symlink"),
        "dangling link" => symlink(outside.with_file_name("nobody"), path).expect("symlink"),
        "link to itself" => symlink(path, path).expect("symlink"),
        "directory" => fs::create_dir(path).expect("mkdir"),
        // Its path may be too long to be bound: then there is no such case.
        "socket" => drop(UnixListener::bind(path)),
        "device" => {
            let zero = makedev(1, 5);
            if mknodat(CWD, path, FileType::CharacterDevice, mode, zero).is_err() {
                symlink("/dev/zero", path).expect("symlink");
            }
        }
        "huge and empty" => fs::File::create(path)
            .and_then(|file| file.set_len(1 << 40))
            .expect("sparse"),
        _ => mknodat(CWD, path, FileType::Fifo, mode, 0).expect("mkfifo"),
    }
}

#[test]
fn unexpected_things_in_place_of_files() {
    let state = &PLAIN.closed;
    let keystore = Arc::new(PLAIN.keystore.copy());
    let mut table = Table::default();
    let object = state.files.keys().find(|path| path.starts_with("objects"));
    let object = object.expect("an object").clone();
    let folder = Path::new(&object).parent().expect("folder");
    let folder = folder.to_str().expect("text").to_owned();
    let (mut refused, mut errors) = (0, 0);
    let names = [
        ("volume.json", "volume.json"),
        ("meta", "meta"),
        ("lock", "lock"),
        ("volume.json.new", "volume.json.new"),
        ("meta.new", "meta.new"),
        ("lock.new", "lock.new"),
        ("objects", "objects"),
        ("a folder of objects", &folder),
        ("an object", &object),
    ];
    for by in UNEXPECTED {
        for (of, name) in names {
            let scene = Scene::new(state);
            replace(&scene.volume().join(name), by, &scene.outside());
            let outcome = scene.attack(&mut table, &keystore, state, &case(of, by, name));
            match name {
                "volume.json" | "meta" => refused += u64::from(outcome == Outcome::Refused),
                _ if name == object => errors += u64::from(outcome == Outcome::Error),
                _ => {}
            }
        }
    }
    table.finish("Strange things in the place of files");
    let many = UNEXPECTED.len() as u64;
    assert_eq!((refused, errors), (2 * many, many));
}

#[test]
fn unexpected_names_are_harmless() {
    let keystore = Arc::new(PLAIN.keystore.copy());
    let mut table = Table::default();
    let id = "0123456789abcdef0123456789abcdef";
    let names = [
        "objects/zzzz",
        "objects/00000001/short",
        "objects/00000001/..hidden",
        "objects/ffffffffffffffff/x",
        "objects/fffffffffffe/x",
        "objects/0000000A/x",
        &format!("objects/00000001/{id}"),
        &format!("objects/00000077/{id}"),
        &format!("checkpoints/{id}"),
        "extra",
    ];
    for name in names {
        for by in ["symbolic link", "directory", "huge and empty", "pipe"] {
            // After an unclean stop, the folders are searched for unnamed objects.
            for state in [&PLAIN.closed, &PLAIN.killed] {
                let scene = Scene::new(state);
                let path = scene.volume().join(name);
                fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
                replace(&path, by, &scene.outside());
                let case = case("a name that nobody gave", by, name);
                let outcome = scene.attack(&mut table, &keystore, state, &case);
                assert_eq!(outcome, Outcome::Right, "{by} as {name}");
            }
        }
    }
    table.finish("Names that nobody gave");
}

#[test]
fn files_that_have_other_names_outside() {
    let state = &PLAIN.closed;
    let keystore = Arc::new(PLAIN.keystore.copy());
    let mut table = Table::default();
    for name in ["lock", "meta", "volume.json"] {
        let scene = Scene::new(state);
        let beside = scene.dir.path().join("outside/file");
        let before = fs::read(scene.volume().join(name)).expect("read");
        fs::remove_file(&beside).expect("remove");
        fs::hard_link(scene.volume().join(name), &beside).expect("link");
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&scene.volume()).expect("open"));
        let case = case(name, "shared with a copy", name);
        let (outcome, _) = attempt(&PLAIN, state, &keystore, store, &case, true);
        assert_eq!(outcome, Outcome::Right, "{name}");
        assert_eq!(fs::read(&beside).expect("read"), before, "{name} stays");
    }
    // Holes whose copying would take hours.
    for name in ["lock", "meta", "volume.json"] {
        let scene = Scene::new(state);
        let path = scene.volume().join(name);
        replace(&path, "huge and empty", &scene.outside());
        fs::hard_link(&path, scene.volume().join("copy")).expect("link");
        let case = case(name, "huge and shared", name);
        let outcome = scene.attack(&mut table, &keystore, state, &case);
        assert_eq!(outcome, Outcome::Refused, "{name}");
    }
    // A lock that is another file's hard link: it is replaced by a copy, not written.
    let scene = Scene::new(state);
    fs::remove_file(scene.volume().join("lock")).expect("remove");
    fs::hard_link(scene.outside(), scene.volume().join("lock")).expect("link");
    let case = case("lock", "somebody else's file", "lock");
    assert_eq!(
        scene.attack(&mut table, &keystore, state, &case),
        Outcome::Right
    );
    table.finish("Files with other names");
}

#[test]
fn claims_of_a_superblock() {
    let text = String::from_utf8(PLAIN.closed.files["volume.json"].clone()).expect("text");
    let (line, mac) = text.split_once('\n').expect("two lines");
    let changes: Vec<String> = vec![
        String::new(),
        "\n".to_owned(),
        "{".repeat(200_000),
        "[".repeat(200_000) + "\n" + mac,
        line.replace("\"features\":[]", "\"features\":[\"x\"]") + "\n" + mac,
        line.replace("\"version\":1", "\"version\":2") + "\n" + mac,
        line.replace("\"version\":1", "\"version\":1,\"version\":1") + "\n" + mac,
        line.replace("\"epoch\":1", "\"epoch\":0") + "\n" + mac,
        line.replace("\"epoch\":1", "\"epoch\":4294967295") + "\n" + mac,
        line.replace("\"sequence\":1", "\"sequence\":2") + "\n" + mac,
        line.replace("\"sequence\":1", "\"sequence\":18446744073709551615") + "\n" + mac,
        line.replace("platform-managed", "platform-and-customer") + "\n" + mac,
        line.replace("platform:", "exec:/bin/sh -c id;") + "\n" + mac,
        line.replace("platform", "file:///dev/zero") + "\n" + mac,
        line.replace('{', " {") + "\n" + mac,
        line.to_owned() + "\n" + &mac.to_uppercase(),
        line.to_owned() + "\n" + mac + "x",
        line.to_owned() + "\n" + mac.trim_end(),
        line.to_owned() + "\n" + &"0".repeat(64) + "\n",
        line.to_owned() + "\n" + &"\u{e9}".repeat(32) + "\n",
        text.clone() + &" ".repeat(300_000),
    ];
    let many = changes.len() as u64;
    let cases = changes.into_iter().enumerate().map(|(number, change)| {
        let (path, bytes) = ("volume.json".to_owned(), change.into_bytes());
        Case {
            edits: vec![Edit::Whole { path, bytes }],
            ..case("volume.json", "claims", &format!("claim {number}"))
        }
    });
    let table = run(&PLAIN, |victim| &victim.closed, cases.collect());
    table.finish("What a superblock claims");
    assert_eq!(table.count("volume.json", "claims", Outcome::Refused), many);
}

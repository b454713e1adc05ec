//! Things that are no plain files, names that nobody gave, superblocks that claim things.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bilayer::store::Store;
use bilayer::store::directory::DirectoryStore;

use crate::victim::{self, Outcome, Victim, keystore};

/// A copy of the victim in a directory, beside a file that must not be touched.
struct Scene {
    dir: tempfile::TempDir,
}

const OUTSIDE: &[u8] = b"not to be touched";

impl Scene {
    fn new(victim: &Victim) -> Self {
        Self::with(&victim.files)
    }

    fn with(files: &victim::Files) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a directory");
        fs::create_dir(dir.path().join("outside")).expect("make");
        fs::write(dir.path().join("outside/file"), OUTSIDE).expect("write");
        let scene = Self { dir };
        let store = DirectoryStore::open_or_create(&scene.volume()).expect("store");
        victim::restore(&store, files);
        scene
    }

    fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside/file")
    }

    /// Opens it; nothing outside may have changed.
    fn attack(self, what: &str, victim: &Victim) -> Outcome {
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&self.volume()).expect("open"));
        let keystore = victim.keystore.path();
        let outcome = victim::attack(what, &store, keystore, &victim.stored, None);
        eprintln!("{what:48} {outcome:?}");
        assert_eq!(fs::read(self.outside()).expect("read"), OUTSIDE, "{what}");
        let beside = fs::read_dir(self.dir.path().join("outside")).expect("list");
        assert_eq!(beside.count(), 1, "{what}: something was made outside");
        let above = fs::read_dir(self.dir.path()).expect("list");
        assert_eq!(above.count(), 2, "{what}: something was made beside");
        outcome
    }
}

/// What to put in the place of a file.
const STRANGE: [&str; 6] = ["symlink", "dangling", "fifo", "directory", "device", "huge"];

fn replace(path: &Path, by: &str, outside: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).expect("remove"),
        Ok(_) => fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
    match by {
        "symlink" => symlink(outside, path).expect("symlink"),
        "dangling" => symlink(outside.with_file_name("nobody"), path).expect("symlink"),
        "directory" => fs::create_dir(path).expect("mkdir"),
        "device" => symlink("/dev/zero", path).expect("symlink"),
        "huge" => fs::File::create(path)
            .and_then(|file| file.set_len(1 << 40))
            .expect("sparse"),
        _ => {
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.expect("mkfifo").success());
        }
    }
}

#[test]
fn strange_things_in_the_place_of_files() {
    let victim = Victim::new(keystore());
    let object = victim.files.keys().find(|path| path.starts_with("objects"));
    let object = object.expect("an object").clone();
    let folder = Path::new(&object).parent().expect("folder");
    let folder = folder.to_str().expect("text").to_owned();
    for by in STRANGE {
        for name in [
            "volume.json",
            "meta",
            "lock",
            "volume.json.new",
            "meta.new",
            "lock.new",
            "objects",
            &folder,
            &object,
        ] {
            let scene = Scene::new(&victim);
            replace(&scene.volume().join(name), by, &scene.outside());
            let outcome = scene.attack(&format!("{by} for {name}"), &victim);
            if ["volume.json", "meta"].contains(&name) {
                assert_eq!(outcome, Outcome::Refused, "{by} for {name}");
            }
            if name == object {
                assert_eq!(outcome, Outcome::PartlyRefused, "{by} for {name}");
            }
        }
    }
}

#[test]
fn names_that_nobody_gave() {
    let victim = Victim::new(keystore());
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
        "extra",
    ];
    for name in names {
        let kinds = ["symlink", "directory", "huge", "fifo"];
        // Left unclean, the folders are searched for what nothing names.
        let states = [&victim.files, &victim.killed];
        for (by, files) in kinds.iter().flat_map(|by| states.map(|files| (*by, files))) {
            let scene = Scene::with(files);
            let path = scene.volume().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            replace(&path, by, &scene.outside());
            let outcome = scene.attack(&format!("{by} as {name}"), &victim);
            assert_eq!(outcome, Outcome::Whole, "{by} as {name}");
        }
    }
}

#[test]
fn files_that_have_other_names_outside() {
    let victim = Victim::new(keystore());
    for name in ["lock", "meta", "volume.json"] {
        let scene = Scene::new(&victim);
        let beside = scene.dir.path().join("outside/file");
        let before = fs::read(scene.volume().join(name)).expect("read");
        fs::remove_file(&beside).expect("remove");
        fs::hard_link(scene.volume().join(name), &beside).expect("link");
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&scene.volume()).expect("open"));
        let outcome = victim::attack(name, &store, victim.keystore.path(), &victim.stored, None);
        assert_eq!(outcome, Outcome::Whole, "{name}");
        assert_eq!(fs::read(&beside).expect("read"), before, "{name} stays");
    }
    // Holes that would be copied for hours.
    for name in ["lock", "meta", "volume.json"] {
        let scene = Scene::new(&victim);
        let path = scene.volume().join(name);
        replace(&path, "huge", &scene.outside());
        fs::hard_link(&path, scene.volume().join("copy")).expect("link");
        let outcome = scene.attack(&format!("huge and shared {name}"), &victim);
        assert_eq!(outcome, Outcome::Refused, "{name}");
    }
    // A lock that is somebody else's file: taken apart, not written.
    let scene = Scene::new(&victim);
    fs::remove_file(scene.volume().join("lock")).expect("remove");
    fs::hard_link(scene.outside(), scene.volume().join("lock")).expect("link");
    assert_eq!(scene.attack("foreign lock", &victim), Outcome::Whole);
}

#[test]
fn claims_of_a_superblock() {
    let victim = Victim::new(keystore());
    let text = String::from_utf8(victim.files["volume.json"].clone()).expect("text");
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
    for (number, change) in changes.into_iter().enumerate() {
        let mut files = victim.files.clone();
        let shown: String = change.chars().take(60).collect();
        files.insert("volume.json".to_owned(), change.into_bytes());
        let outcome = victim.attack(&format!("claim {number}"), &files, false);
        assert_eq!(outcome, Outcome::Refused, "{number}: {shown}");
    }
    // Every byte of it.
    for at in 0..text.len() {
        let mut files = victim.files.clone();
        files.get_mut("volume.json").expect("there")[at] ^= 1;
        let outcome = victim.attack(&format!("byte {at}"), &files, false);
        assert_eq!(outcome, Outcome::Refused, "byte {at}");
    }
}

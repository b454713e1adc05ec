//! Files of the platform keystore: identity, key version, record of a volume.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bilayer::ids::VolumeId;
use bilayer::keys::PlatformKeystore;

use super::sample;

const VOLUME: VolumeId = VolumeId([0x11; 16]);

const FILES: [&str; 3] = [
    "keystore.json",
    "versions/00000001.json",
    "volumes/11111111111111111111111111111111.json",
];

/// A valid keystore.
const GOOD: [&str; 3] = [
    r#"{"format":"bilayer-platform-keystore","version":1,"id":"22222222222222222222222222222222"}"#,
    concat!(
        r#"{"format":"bilayer-platform-key","version":1,"#,
        r#""keystore":"22222222222222222222222222222222","number":1,"#,
        r#""infrastructure":"3333333333333333333333333333333333333333333333333333333333333333","#,
        r#""customer":"4444444444444444444444444444444444444444444444444444444444444444"}"#
    ),
    "",
];

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let dir = sample::directory();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        for part in ["versions", "volumes"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        let scene = Self(dir);
        (0..FILES.len()).for_each(|which| scene.put(which, GOOD[which].as_bytes()));
        scene
    }

    fn put(&self, which: usize, bytes: &[u8]) {
        let path = self.0.path().join(FILES[which]);
        if bytes.is_empty() {
            let _ = fs::remove_file(path);
        } else {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

thread_local! {
    static SCENE: RefCell<Scene> = RefCell::new(Scene::new());
}

/// The first byte chooses the file, the others are its contents.
pub fn target(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    let which = usize::from(*which) % FILES.len();
    SCENE.with_borrow(|scene| {
        scene.put(which, bytes);
        examine(scene.0.path());
        scene.put(which, GOOD[which].as_bytes());
    });
}

fn examine(directory: &Path) {
    let Ok(keystore) = PlatformKeystore::open(directory) else {
        return;
    };
    assert_eq!(keystore.id().len(), 32);
    assert_eq!(keystore.current_version(), 1);
    let Ok(Some(record)) = keystore.record(VOLUME) else {
        return;
    };
    // A record that can be read is written so that it reads back identically.
    keystore.update_record(VOLUME, &record).unwrap();
    assert_eq!(keystore.record(VOLUME).unwrap(), Some(record));
}

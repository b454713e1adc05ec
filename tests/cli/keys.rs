//! `bilayer key`: slots of a volume, mounted and not.

use crate::real::{Outcome, Place, wait_until};
use crate::{Victim, fails};

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

/// The slots as `key list` shows them.
fn slots(place: &Place, path: &str) -> Vec<Value> {
    let list: Value =
        serde_json::from_str(&place.run(&format!("key list {path} --json")).done().stdout)
            .expect("JSON");
    list["slots"].as_array().expect("slots").clone()
}

fn numbers(place: &Place, path: &str) -> Vec<u64> {
    let slots = slots(place, path);
    slots
        .iter()
        .map(|slot| slot["number"].as_u64().unwrap())
        .collect()
}

fn done(place: &Place, words: &str) -> Outcome {
    place.run(words).done()
}

/// Writes a file that only its owner may read.
fn write_private(place: &Place, name: &str, text: &str) {
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600);
    std::io::Write::write_all(&mut file.open(place.path(name)).unwrap(), text.as_bytes()).unwrap();
}

#[test]
fn slots_are_added_listed_and_removed() {
    for mounted in [false, true] {
        let test = if mounted {
            "keys-mounted"
        } else {
            "keys-slots"
        };
        let Some(victim) = Victim::new(test, true) else {
            return;
        };
        let place = &victim.place;
        done(place, "keygen second.pem --bits 2048");
        let mount = mounted.then(|| place.mount("vol", "mnt", ""));
        let path = if mounted { "mnt" } else { "vol" };
        let added = done(
            place,
            &format!("key add {path} --customer-key file:second.pem --label spare"),
        );
        assert!(added.stdout.starts_with("slot 2 of "), "{}", added.stdout);
        assert_eq!(numbers(place, path), [1, 2]);
        assert_eq!(slots(place, path)[1]["label"], "spare");
        let again = format!("key add {path} --customer-key file:second.pem");
        fails(&place.run(&again), 1, "in slot 2 already");
        done(place, &format!("key test {path}"));
        fails(
            &place.run(&format!("key test {path} 2")),
            1,
            "the key of slot 2 was not named",
        );
        done(
            place,
            &format!("key test {path} 2 --customer-key file:second.pem"),
        );
        fails(&place.run(&format!("key test {path} 3")), 1, "no slot 3");
        if let Some(mount) = mount {
            mount.unmount();
        }
        let with_second = place.mount("vol", "mnt", "customer_key=file:second.pem");
        with_second.unmount();
        // The first is removed by the consent of the second.
        done(place, "key remove vol 1 --unlock-with file:second.pem");
        fails(
            &place.run("mount vol mnt -o customer_key=file:key.pem"),
            32,
            "is not the one this volume was made with",
        );
        fails(
            &place.run("key remove vol 2 --unlock-with file:second.pem"),
            1,
            "the last slot",
        );
        done(place, "key set vol file:second.pem");
        victim.is_unharmed();
    }
}

#[test]
fn nobody_adds_a_key_without_a_key() {
    let Some(victim) = Victim::new("keys-consent", true) else {
        return;
    };
    let place = &victim.place;
    done(place, "keygen mine.pem --bits 2048");
    let mount = place.mount("vol", "mnt", "");
    // The daemon has the volume open, and the asker is the same user. The key is elsewhere.
    fs::rename(place.path("key.pem"), place.path("elsewhere.pem")).unwrap();
    for words in [
        "key add mnt --customer-key file:mine.pem",
        "key rotate mnt --to file:mine.pem",
        "key add mnt --recovery",
        "key remove mnt 1",
    ] {
        fails(&place.run(words), 4, "key.pem");
    }
    let words = "key add mnt --customer-key file:mine.pem --unlock-with file:mine.pem";
    fails(
        &place.run(words),
        4,
        "is not the one this volume was made with",
    );
    assert_eq!(numbers(place, "mnt"), [1]);
    fs::rename(place.path("elsewhere.pem"), place.path("key.pem")).unwrap();
    mount.unmount();
    // A platform-managed volume has no slots.
    done(place, "create plain");
    fails(
        &place.run("key add plain --customer-key file:mine.pem"),
        1,
        "platform-managed",
    );
    victim.is_unharmed();
}

#[test]
fn a_key_is_rotated_while_somebody_writes() {
    let Some(victim) = Victim::new("keys-rotate", true) else {
        return;
    };
    let place = &victim.place;
    done(place, "keygen new.pem --bits 3072");
    let mount = place.mount("vol", "mnt", "");
    let (stop, file) = (AtomicBool::new(false), mount.path("written"));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0u64;
            let mut open = fs::File::create(&file).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::io::Write::write_all(&mut open, &rounds.to_le_bytes()).unwrap();
                open.sync_data().unwrap();
                rounds += 1;
            }
            rounds
        });
        let rotated = done(place, "key rotate mnt --to file:new.pem");
        assert!(
            rotated.stdout.contains("rotated to version"),
            "{}",
            rotated.stdout
        );
        let again = done(place, "key rotate mnt");
        assert!(
            again.stdout.contains("the newest version"),
            "{}",
            again.stdout
        );
        stop.store(true, Ordering::Relaxed);
        let rounds = writer.join().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), 8 * rounds);
        assert!(rounds > 0);
    });
    let status = done(place, "status mnt --json").stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["header"]["slots"][0]["keys"][0]["bits"], 3072);
    mount.unmount();
    // Wherever the superblock is stored, the old key no longer opens it.
    let spare = fs::read_to_string(place.path("vol/checkpoints/volume.json")).unwrap();
    assert_eq!(
        spare,
        fs::read_to_string(place.path("vol/volume.json")).unwrap()
    );
    fails(
        &place.run("mount vol mnt -o customer_key=file:key.pem"),
        32,
        "is not the one this volume was made with",
    );
    // The new one is remembered.
    victim.is_unharmed();
}

#[test]
fn a_recovery_code_opens_the_volume_whatever_happened_since() {
    let Some(victim) = Victim::new("keys-recovery", true) else {
        return;
    };
    let place = &victim.place;
    let printed = done(place, "key add vol --recovery").stdout;
    assert!(printed.starts_with("BILAY ER1"), "{printed}");
    write_private(place, "code", &printed);
    done(place, "key add vol --recovery --shares 2/3 --out share");
    let share = |n: u32| fs::read_to_string(place.path(&format!("share.{n}"))).unwrap();
    write_private(
        place,
        "two",
        &format!("{} {}", share(3).trim(), share(1).trim()),
    );
    write_private(place, "one", &share(2));
    assert_eq!(numbers(place, "vol"), [1, 2, 3]);
    fails(
        &place.run("key add vol --recovery --out share.1"),
        3,
        "exists",
    );
    // No share stays of a code that opens nothing.
    write_private(place, "half.2", "in the way");
    let half = place.run("key add vol --recovery --shares 2/3 --out half");
    fails(&half, 3, "exists");
    assert!(!place.path("half.1").exists());
    let label = "x".repeat(129);
    let refused = place.run(&format!(
        "key add vol --recovery --out none --label {label}"
    ));
    fails(&refused, 1, "label");
    assert!(!place.path("none").exists());
    let unread = format!(
        "{} key add vol --recovery > /dev/full",
        crate::real::BILAYER
    );
    let mut unread = crate::real::command("sh", ["-c", &*unread]);
    place.environment(&mut unread);
    assert_eq!(
        crate::real::run(unread.current_dir(place.path("."))).code,
        6
    );
    assert_eq!(numbers(place, "vol"), [1, 2, 3]);
    let words = "key set vol recovery: --passphrase-file code";
    fails(&place.run(words), 1, "for one time");
    let opens = |path: &str, more: &str| {
        for code in ["code", "two"] {
            let options = format!("customer_key=recovery:,passphrase_file={code}{more}");
            let mounted = place.mount(path, "mnt", &options);
            assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
            mounted.unmount();
        }
    };
    opens("vol", "");
    fails(
        &place.run("mount vol mnt -o customer_key=recovery:,passphrase_file=one"),
        32,
        "2 different shares are needed",
    );
    // After a rotation, for which the code consents, since the key is lost.
    fs::remove_file(place.path("key.pem")).unwrap();
    done(place, "keygen new.pem --bits 2048");
    let consent = "--unlock-with recovery: --passphrase-file code";
    done(
        place,
        &format!("key rotate vol --slot 1 --to file:new.pem {consent}"),
    );
    opens("vol", "");
    victim.is_unharmed();
    // A copy that became a volume of its own, and an older state that was accepted.
    let before = place.path("before");
    real_copy(&place.path("vol"), &before);
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("later"), "later").unwrap();
    mounted.unmount();
    real_copy(&place.path("vol"), &place.path("twin"));
    let twin = "customer_key=recovery:,passphrase_file=two";
    let mounted = place.run(&format!("mount twin mnt --new-identity -o {twin}"));
    mounted.done();
    place.run("unmount mnt").done();
    opens("twin", "");
    fs::remove_dir_all(place.path("vol")).unwrap();
    real_copy(&before, &place.path("vol"));
    fs::remove_dir_all(&before).unwrap();
    place
        .run("mount vol mnt --accept-restored -o customer_key=recovery:,passphrase_file=code")
        .done();
    place.run("unmount mnt").done();
    opens("vol", "");
    victim.is_unharmed();
}

fn real_copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

/// What opens the volume: each of customer key, platform keystore and volume's directory alone, and
/// each two of them.
#[test]
fn a_volume_needs_its_key_its_keystore_and_itself() {
    let Some(victim) = Victim::new("keys-custody", true) else {
        return;
    };
    let place = &victim.place;
    let volume = fs::read_dir(place.path("vol")).unwrap().count();
    assert!(volume > 3);
    // The volume alone, and with the customer key: another machine's keystore.
    done(place, "keygen other.pem --bits 2048");
    done(place, "create unrelated --platform-keystore elsewhere");
    let mount = "mount vol mnt --platform-keystore elsewhere -o customer_key=file";
    fails(&place.run(&format!("{mount}:other.pem")), 32, "keystore");
    fails(&place.run(&format!("{mount}:key.pem")), 32, "keystore");
    // The volume with the keystore: no customer key, or another one.
    fs::rename(place.path("key.pem"), place.path("away.pem")).unwrap();
    fails(&place.run("mount vol mnt"), 32, "key.pem");
    let mount = "mount vol mnt -o customer_key=file:other.pem";
    fails(
        &place.run(mount),
        32,
        "is not the one this volume was made with",
    );
    fs::rename(place.path("away.pem"), place.path("key.pem")).unwrap();
    // Nothing without the volume's own superblock, whatever keys there are.
    fs::rename(place.path("vol/volume.json"), place.path("superblock")).unwrap();
    fails(&place.run("mount vol mnt"), 32, "volume.json");
    fs::rename(place.path("superblock"), place.path("vol/volume.json")).unwrap();
    // Nothing of the contents or names is in the directory, in whatever file.
    for entry in walk(&place.path("vol")) {
        let bytes = fs::read(&entry).unwrap();
        let found = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!found(b"as it was"), "{}", entry.display());
    }
    victim.is_unharmed();
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

#[test]
fn a_mount_follows_its_key_to_new_versions() {
    let Some(place) = Place::new("keys-follow", Duration::from_secs(100)) else {
        return;
    };
    let newest = |path: &str| slots(&place, path)[0]["keys"][0]["version"].clone();
    place.dir("keys");
    done(&place, "keygen keys/vault.v1.pem --bits 2048");
    let mount = place.fresh("--customer-key file:keys/vault", "key_check=1");
    fs::write(mount.path("file"), "as it was").unwrap();
    assert_eq!(newest("mnt"), "1");
    done(&place, "keygen keys/vault.v2.pem --bits 2048");
    assert!(wait_until(Duration::from_secs(30), || newest("mnt") == "2"));
    assert!(wait_until(Duration::from_secs(30), || {
        slots(&place, "mnt")[0]["keys"].as_array().unwrap().len() == 1
    }));
    // The version that was replaced does not come back when the new one is away.
    fs::rename(place.path("keys/vault.v2.pem"), place.path("keys/away")).unwrap();
    let check = || place.status(&place.path("mnt"))["key_check"]["error"].clone();
    assert!(wait_until(Duration::from_secs(30), || check().is_string()));
    assert_eq!(newest("mnt"), "2");
    fs::rename(place.path("keys/away"), place.path("keys/vault.v2.pem")).unwrap();
    assert!(wait_until(Duration::from_secs(30), || check().is_null()));
    // A failure is reported, and passes when its cause does.
    fs::write(place.path("keys/vault.v2.disabled"), "").unwrap();
    fs::write(place.path("keys/vault.v1.disabled"), "").unwrap();
    assert!(wait_until(Duration::from_secs(30), || check().is_string()));
    fs::remove_file(place.path("keys/vault.v2.disabled")).unwrap();
    assert!(wait_until(Duration::from_secs(30), || check().is_null()));
    mount.unmount();
    // The first version is disabled, and opens nothing any more.
    let mount = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"as it was");
    mount.unmount();
    // A new version is taken at the next mount too.
    done(&place, "keygen keys/vault.v7.pem --bits 2048");
    let mount = place.mount("vol", "mnt", "");
    assert!(wait_until(Duration::from_secs(30), || newest("mnt") == "7"));
    mount.unmount();
}

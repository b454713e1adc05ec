//! Failures of the commands, each with its message and exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::real::{Place, command, run};
use crate::{Victim, fails};

#[test]
fn keys_that_are_missing_or_wrong() {
    let Some(victim) = Victim::new("cli-keys", true) else {
        return;
    };
    let place = &victim.place;
    place.run("keygen other.pem --bits 2048").done();
    fs::write(place.path("noise.pem"), "no key at all\n").unwrap();
    fs::create_dir(place.path("dir.pem")).unwrap();
    let small = command("openssl", ["genrsa", "-out", "small.pem", "1024"])
        .current_dir(place.path(""))
        .output();
    for (words, code, says) in [
        (
            "file:other.pem",
            32,
            "is not the one this volume was made with",
        ),
        ("file:gone.pem", 32, "No such file"),
        ("file:noise.pem", 1, "noise.pem"),
        ("file:dir.pem", 32, "dir.pem"),
    ] {
        let mount = format!("mount vol mnt -o customer_key={words}");
        victim.refuses(&mount, code, says);
        // Making a volume fails before anything is created.
        if !words.contains("other") {
            let create = place.run(&format!("create new --customer-key {words}"));
            assert!([1, 4].contains(&create.code), "{}", create.stderr);
            fails(&create, create.code, says);
            assert!(!place.path("new").exists(), "{words}");
        }
    }
    // A directory that existed before is left as it was, its mode too.
    let there = place.dir("there");
    fs::set_permissions(&there, PermissionsExt::from_mode(0o755)).unwrap();
    fails(
        &place.run("create there --customer-key file:gone.pem"),
        4,
        "No such file",
    );
    let mode = fs::metadata(&there).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    for words in [
        "exec:true",
        "https://example.org/key",
        "key.pem",
        "file:",
        "file:key.pem?pin=1",
    ] {
        victim.refuses(
            &format!("mount vol mnt -o customer_key={words}"),
            1,
            "customer key",
        );
        fails(
            &place.run(&format!("create new --customer-key {words}")),
            1,
            "customer key",
        );
    }
    if crate::real::need(
        small.is_ok_and(|made| made.status.success()),
        "cli-keys",
        "openssl is missing; install it",
    ) {
        let refused = place.run("create new --customer-key file:small.pem");
        assert!([1, 4].contains(&refused.code), "{}", refused.stderr);
        fails(&refused, refused.code, "1024");
        assert!(!place.path("new").exists());
    }
    // The key that the keystore remembers is missing: the error names it, and it works again when
    // it is back.
    fs::rename(place.path("key.pem"), place.path("elsewhere.pem")).unwrap();
    victim.refuses("mount vol mnt", 32, "key.pem");
    victim.refuses("mount vol mnt -o customer_key=file:key.pem", 32, "key.pem");
    fs::rename(place.path("elsewhere.pem"), place.path("key.pem")).unwrap();
    victim.refuses(
        "mount vol mnt -o fingerprint=0011-2233-4455-6677-8899-aabb-ccdd-eeff",
        32,
        "fingerprint",
    );
    victim.is_unharmed();
}

#[test]
fn keys_are_made_once() {
    let Some(place) = Place::new("cli-keygen", Duration::from_secs(60)) else {
        return;
    };
    place.run("keygen key.pem --bits 2048").done();
    let key = fs::read(place.path("key.pem")).unwrap();
    let mode = fs::metadata(place.path("key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    fails(
        &place.run("keygen key.pem --bits 2048"),
        3,
        "the file exists",
    );
    std::os::unix::fs::symlink("nowhere", place.path("link.pem")).unwrap();
    fails(
        &place.run("keygen link.pem --bits 2048"),
        3,
        "the file exists",
    );
    assert_eq!(fs::read(place.path("key.pem")).unwrap(), key);
    assert!(!place.path("nowhere").exists());
    for bits in ["1024", "0", "2047", "8192"] {
        fails(
            &place.run(&format!("keygen new.pem --bits {bits}")),
            1,
            bits,
        );
        assert!(!place.path("new.pem").exists());
    }
    fails(
        &place.run("keygen gone/new.pem --bits 2048"),
        6,
        "gone/new.pem",
    );
}

#[test]
fn unusable_paths() {
    let Some(victim) = Victim::new("cli-places", false) else {
        return;
    };
    let place = &victim.place;
    for dir in ["empty", "full", "mnt"] {
        place.dir(dir);
    }
    fs::write(place.path("full/file"), "x").unwrap();
    fs::write(place.path("plain"), "x").unwrap();
    for (words, code, says) in [
        ("mount empty mnt", 32, "no bilayer volume"),
        ("mount full mnt", 32, "no bilayer volume"),
        ("mount gone mnt", 32, "cannot find"),
        ("mount plain mnt", 32, "plain"),
        ("mount vol gone", 32, "cannot find"),
        ("mount vol plain", 32, "cannot mount on"),
        ("mount vol vol", 1, "inside the other"),
        ("mount vol vol/objects", 1, "inside the other"),
        ("mount vol mnt -o blah", 1, "blah"),
        ("mount vol mnt -o workers=0", 1, "workers"),
        ("mount vol mnt -o commit=x", 1, "commit"),
        ("mount vol mnt -o log_file=gone/log", 32, "gone/log"),
        (
            "mount vol mnt -o remount,ro",
            32,
            "nothing of bilayer is there",
        ),
        ("create vol", 1, "a volume already"),
        ("create full", 1, "file"),
        ("create plain", 6, "plain"),
        ("create new --size much", 1, "--size"),
        ("create gone/new", 2, "gone/new"),
        ("unmount mnt", 2, "nothing of bilayer"),
        ("unmount gone", 2, "nothing of bilayer"),
        ("unmount /proc", 2, "not of bilayer"),
        ("status empty", 2, "no bilayer volume"),
        ("status gone", 2, "cannot find"),
        ("inspect full", 2, "no bilayer volume"),
        ("inspect plain", 2, "plain"),
    ] {
        victim.refuses(words, code, says);
    }
    assert!(!place.path("new").exists());
    assert_eq!(fs::read_dir(place.path("empty")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(place.path("full")).unwrap().count(), 1);
    victim.is_unharmed();
}

#[test]
fn keystores_that_are_missing_or_foreign() {
    let Some(victim) = Victim::new("cli-keystores", false) else {
        return;
    };
    let place = &victim.place;
    place.dir("empty");
    place.run("create other --platform-keystore foreign").done();
    for (keystore, says) in [("gone", "gone"), ("empty", "empty"), ("foreign", "key")] {
        // Without a keystore the audit must be written elsewhere, or report that it is not.
        let words = format!("mount vol mnt --platform-keystore {keystore} --audit-log audit");
        victim.refuses(&words, 32, says);
        assert!(keystore == "foreign" || !place.path(keystore).join("keys").exists());
        let option = format!("mount vol mnt -o platform_keystore={keystore},audit_log=audit");
        victim.refuses(&option, 32, says);
        // `status` says why it does not know more.
        let status = place.run(&format!("status vol --json --platform-keystore {keystore}"));
        let status: serde_json::Value = serde_json::from_str(&status.done().stdout).unwrap();
        assert_eq!(status["verified"], false);
        assert!(status["not_verified_because"].is_string());
    }
    assert!(
        !place.path("gone").exists(),
        "mounting must not make a keystore"
    );
    fails(
        &place.run("create vol/keystore-inside --platform-keystore vol --audit-log audit"),
        1,
        "vol",
    );
    victim.is_unharmed();
}

#[test]
fn a_volume_is_mounted_once() {
    let Some(victim) = Victim::new("cli-twice", false) else {
        return;
    };
    let place = &victim.place;
    let mounted = place.mount("vol", "mnt", "");
    place.dir("second");
    for options in ["", "-o ro"] {
        fails(
            &place.run(&format!("mount vol second {options}")),
            32,
            "in use",
        );
    }
    fails(&place.run("create vol"), 1, "a volume already");
    // A copy that shares its files has the lock of the original.
    run(command("cp", ["-al", "vol", "twin"]).current_dir(place.path(""))).silent();
    run(command("cp", ["-a", "keystore", "elsewhere"]).current_dir(place.path(""))).silent();
    fails(&place.run("mount twin second"), 32, "in use");
    // The lock file can be removed, the lock cannot.
    fs::remove_file(place.path("vol/lock")).unwrap();
    fails(&place.run("mount vol second"), 32, "in use");
    let held = fs::File::open(mounted.path("file")).unwrap();
    fails(&place.run("unmount mnt"), 3, "in use");
    drop(held);
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"as it was");
    mounted.unmount();
    fails(&place.run("unmount mnt"), 2, "nothing of bilayer");
    // Another machine with the keystore's records can distinguish the copy from the volume.
    fails(
        &place.run("mount twin second -o platform_keystore=elsewhere"),
        32,
        "a copy of the volume in",
    );
    place
        .run("mount twin second --new-identity -o platform_keystore=elsewhere")
        .done();
    let twin = place.mounted(&place.path("second"));
    fs::write(twin.path("file"), "of the twin").unwrap();
    victim.is_unharmed();
    twin.unmount();
}

#[test]
fn a_full_disk_at_create_leaves_nothing() {
    let Some(place) = Place::new("cli-full", Duration::from_secs(60)) else {
        return;
    };
    let disk = place.dir("disk");
    run(command("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk)).silent();
    let refused = place.run("create disk/vol");
    fails(&refused, 6, "No space left");
    assert!(
        refused.stderr.contains("hint: make space"),
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0);
    run(command("mount", ["-o", "remount,size=64m"]).arg(&disk)).silent();
    let mounted = {
        place.run("create disk/vol").done();
        place.mount("disk/vol", "mnt", "")
    };
    fs::write(mounted.path("file"), "x").unwrap();
    mounted.unmount();
}

#[test]
fn every_command_shows_an_example() {
    let Some(place) = Place::new("cli-help", Duration::from_secs(60)) else {
        return;
    };
    let help = place.run("--help").done().stdout;
    for (code, meaning) in [
        (1, "usage"),
        (2, "no such volume"),
        (3, "in use"),
        (4, "key"),
        (5, "damaged"),
        (6, "the operating system"),
    ] {
        assert!(help.contains(&format!("{code} {meaning}")), "{help}");
    }
    let commands = help.split("Commands:").nth(1).unwrap();
    let commands = commands.lines().skip(1).take_while(|line| !line.is_empty());
    let mut seen = 0;
    for line in commands.filter(|line| line.starts_with("  ") && !line.starts_with("    ")) {
        let name = line.split_whitespace().next().unwrap();
        if name == "help" {
            continue;
        }
        for flag in ["--help", "-h"] {
            let text = place.run(&format!("{name} {flag}")).done().stdout;
            assert!(text.contains("Example"), "{name} {flag}: {text}");
            assert!(
                text.contains(&format!("bilayer {name}")),
                "{name} {flag}: {text}"
            );
        }
        seen += 1;
    }
    assert!(seen >= 6, "{help}");
    let unknown = place.run("frobnicate");
    assert_eq!((unknown.code, unknown.stdout.as_str()), (1, ""));
    assert_eq!(place.run("").code, 1);
    assert!(place.run("--version").done().stdout.starts_with("bilayer "));
}

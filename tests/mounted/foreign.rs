//! A volume that came from elsewhere, by mount(8) and from fstab: `nosuid,nodev` unless `trusted`
//! is given, since mount(8) passes on neither `suid` nor `dev`.

use std::fs;

use crate::machine::Machine;

#[test]
fn mount_and_fstab_keep_it_without_set_id_programs_and_devices() {
    let Some(machine) = Machine::new("foreign") else {
        return;
    };
    let place = &machine.place;
    place.run("create vol").done();
    place.run("image create vol base").done();
    fs::write(place.path("pass"), "between us\n").unwrap();
    place
        .run("image export vol base stream --transport-passphrase-file pass")
        .done();
    place
        .run("image import stream copy --transport-passphrase-file pass")
        .done();
    for dir in ["mnt", "mnt2"] {
        place.dir(dir);
    }
    let options = |dir: &str| {
        let text = machine.output(&format!("findmnt -n -o OPTIONS {}", machine.path(dir)));
        let words: Vec<String> = text.trim().split(',').map(str::to_owned).collect();
        ["nosuid", "nodev"].map(|word| words.contains(&word.to_owned()))
    };
    for (words, restrained) in [
        ("defaults", [true, true]),
        ("suid,dev", [true, true]),
        ("trusted", [false, false]),
        ("trusted,nodev", [false, true]),
    ] {
        machine.run(&format!("mount -t bilayer copy mnt -o {words}"));
        machine.daemon();
        assert_eq!(options("mnt"), restrained, "{words}");
        machine.run("umount mnt");
    }
    machine.run("mount -t bilayer copy mnt");
    machine.daemon();
    for words in ["remount,ro", "remount,rw", "remount,suid,dev"] {
        machine.run(&format!("mount mnt -o {words}"));
        assert_eq!(options("mnt"), [true, true], "{words}");
    }
    // mount(8) repeats the kernel's options, unless the opposite is given.
    machine.run("mount mnt -o remount,trusted,suid,dev");
    assert_eq!(options("mnt"), [false, false]);
    machine.run("umount mnt");
    let keystore = machine.path("keystore");
    machine.fstab(&format!(
        "{} {} bilayer defaults,platform_keystore={keystore} 0 0\n\
         {} {} bilayer platform_keystore={keystore} 0 0\n",
        machine.path("copy"),
        machine.path("mnt"),
        machine.path("vol"),
        machine.path("mnt2"),
    ));
    machine.run("mount -a");
    for dir in ["mnt", "mnt2"] {
        machine.daemon_of(dir);
    }
    assert_eq!(options("mnt"), [true, true]);
    assert_eq!(options("mnt2"), [false, false], "one's own");
    machine.run("umount mnt");
    machine.run("umount mnt2");
}

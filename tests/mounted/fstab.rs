//! Lines of /etc/fstab, with the words that others act on.

use std::fs;

use crate::machine::Machine;
use crate::real::is_alive;

const TEST: &str = "fstab";

#[test]
fn lines_with_options_of_others() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    place.run("keygen key.pem --bits 2048").done();
    place.run("create one --customer-key file:key.pem").done();
    for volume in ["two", "three", "with space"] {
        crate::real::run(&mut place.bilayer(["create", volume])).done();
    }
    for dir in ["mnt1", "mnt2", "mnt 3", "never"] {
        place.dir(dir);
    }
    let path = |name: &str| machine.path(name);
    let (keystore, key) = (path("keystore"), path("key.pem"));
    let escaped = |name: &str| path(name).replace(' ', "\\040");
    machine.fstab(&format!(
        "# a comment\n\
         {} {} bilayer defaults,nofail,_netdev,x-systemd.automount,x-systemd.requires=a.service,\
         x-systemd.device-timeout=5,comment=mine,customer_key=file:{key},\
         platform_keystore={keystore} 0 2\n\
         {}\t{}\tfuse.bilayer\trw,users,nouser,auto,noatime,uhelper=bilayer,X-mount.mkdir,\
         snapshot_dir=off\t0\t0\n\
         {} {} bilayer ro,noauto,group,owner 0 0\n\
         {} {} bilayer user,noauto,exec 0 0\n",
        path("one"),
        path("mnt1"),
        path("two"),
        path("mnt2"),
        escaped("with space"),
        escaped("mnt 3"),
        path("three"),
        path("never"),
    ));
    machine.run("mount -a");
    let dirs: Vec<String> = machine
        .mounted()
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    assert_eq!(dirs, [path("mnt1"), path("mnt2")], "noauto is left out");
    let daemons = [machine.daemon_of("mnt1"), machine.daemon_of("mnt2")];
    let options = |dir: &str| machine.output(&format!("findmnt -n -o OPTIONS {}", path(dir)));
    assert!(options("mnt2").contains("noatime"));
    let hidden = |dir: &str| machine.see(&format!("{dir}/.snapshots")).exists();
    assert_eq!((hidden("mnt1"), hidden("mnt2")), (true, false));
    for word in [
        "x-systemd",
        "_netdev",
        "nofail",
        "comment",
        "users",
        "uhelper",
        "customer_key",
    ] {
        assert!(
            !fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(word)
        );
        let shown = machine.output("cat /proc/mounts");
        let ours = shown.lines().filter(|line| line.contains("fuse.bilayer"));
        assert!(ours.into_iter().all(|line| !line.contains(word)), "{word}");
    }
    // What is there already is left alone.
    machine.run("mount -a");
    fs::write(machine.see("mnt1/file"), "one").unwrap();
    fs::write(machine.see("mnt2/file"), "two").unwrap();
    assert_eq!(
        [machine.daemon_of("mnt1"), machine.daemon_of("mnt2")],
        daemons
    );

    // By either word of the line, and with the line's options behind a remount.
    machine.run(&format!("mount {}", path("never")));
    let daemon = machine.daemon_of("never");
    assert!(options("never").contains("nosuid,nodev") && !options("never").contains("noexec"));
    assert!(!options("mnt1").contains("nosuid") && !options("mnt1").contains("nodev"));
    machine.run(&format!("umount {}", path("never")));
    assert!(!is_alive(daemon));
    machine.run(&format!("mount {}", path("three")));
    machine.daemon_of("never");
    machine.run(&format!("mount -o remount,ro {}", path("mnt1")));
    assert!(fs::write(machine.see("mnt1/file"), "x").is_err());
    machine.run(&format!("mount -o remount,rw {}", path("mnt1")));
    fs::write(machine.see("mnt1/file"), "x").unwrap();

    machine.run("umount -a -t fuse.bilayer");
    assert!(machine.mounted().is_empty());
    assert!(daemons.into_iter().all(|daemon| !is_alive(daemon)));
}

#[test]
fn a_line_of_another_file_and_one_that_fails() {
    let Some(machine) = Machine::new(TEST) else {
        return;
    };
    let place = &machine.place;
    place.run("create vol").done();
    place.dir("mnt");
    place.dir("mnt2");
    let (vol, mnt) = (machine.path("vol"), machine.path("mnt"));
    let line = format!("{vol} {mnt} bilayer noauto,nofail 0 0\n");
    fs::write(place.path("other"), line).unwrap();
    machine.run(&format!("mount --fstab other {mnt}"));
    let daemon = machine.daemon();
    machine.run("umount mnt");
    assert!(!is_alive(daemon));
    machine.run(&format!("mount -T other {vol} -o ro"));
    machine.daemon();
    // A mount that holds no right to write does not get it by a remount.
    machine.refused(
        "mount -o remount,rw mnt",
        32,
        "the volume was opened read-only",
    );
    assert!(fs::write(machine.see("mnt/file"), "x").is_err());
    machine.run("umount mnt");

    // One line that fails does not keep the next one from being mounted.
    machine.fstab(&format!(
        "{} {} bilayer defaults 0 0\n{vol} {mnt} bilayer defaults 0 0\n",
        machine.path("nowhere"),
        machine.path("mnt2"),
    ));
    let outcome = machine.end_of("mount -a");
    assert_eq!(outcome.code, 64, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("bilayer: cannot find "),
        "{}",
        outcome.stderr
    );
    machine.daemon();
    machine.run("umount -a -t fuse.bilayer");
}

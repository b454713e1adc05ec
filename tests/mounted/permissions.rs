//! Root's mount, used by several users: what the kernel and the filesystem permit to whom.

use crate::machine::Machine;
use crate::real::{is_alive, run};

const TEST: &str = "permissions";

const ROOT: &str = "";
const ANN: &str = "setpriv --reuid 4001 --regid 4001 --groups 4001,4100 --";
const BOB: &str = "setpriv --reuid 4002 --regid 4002 --groups 4002 --";
/// With a group that no list of the user's groups contains.
const BOB_IN_GROUP: &str = "setpriv --reuid 4002 --regid 4002 --groups 4100 --";
const ANN_AS_ROOT: &str =
    "setpriv --reuid 4001 --regid 4001 --clear-groups -- unshare --user --map-root-user";
const ELSEWHERE: &str = "unshare --pid --fork";

/// A user, a script, and its output: nothing, a text, or (with a !) why it is refused.
const TABLE: [(&str, &str, &str); 26] = [
    (
        ROOT,
        "mkdir -m 1777 open; mkdir -m 700 private; mkdir -m 2775 group",
        "",
    ),
    (
        ROOT,
        "chgrp 4100 group; chmod g+s group; umask 022; echo root > readable",
        "",
    ),
    (
        ANN,
        "umask 027; echo ann > open/ann; [ $(stat -c %u:%g:%a open/ann) = 4001:4001:640 ]",
        "",
    ),
    (
        ANN,
        "umask 077; mkdir open/dir; [ $(stat -c %u:%g:%a open/dir) = 4001:4001:700 ]",
        "",
    ),
    (
        ANN,
        "umask 002; echo us > group/ann; [ $(stat -c %u:%g:%a group/ann) = 4001:4100:664 ]",
        "",
    ),
    (
        ANN,
        "umask 022; mkdir group/dir; [ $(stat -c %g:%a group/dir) = 4100:2755 ]",
        "",
    ),
    (
        ANN,
        "chgrp 4100 open/ann; chmod 660 open/ann; cat readable",
        "root",
    ),
    (ANN, "chgrp 4002 open/ann", "!Operation not permitted"),
    (ANN, "chown 4002 open/ann", "!Operation not permitted"),
    (ANN, "ls private", "!Permission denied"),
    (ANN, "echo x >> readable", "!Permission denied"),
    (BOB, "cat open/ann", "!Permission denied"),
    (BOB, "rm -f open/ann", "!Operation not permitted"),
    (BOB, "mv open/ann open/bob", "!Operation not permitted"),
    (BOB, "chmod 777 open/ann", "!Operation not permitted"),
    (BOB, "chmod 666 readable", "!Operation not permitted"),
    (BOB, "touch group/bob", "!Permission denied"),
    (BOB, "ls open/dir", "!Permission denied"),
    (
        BOB,
        "echo b > open/b; ln open/b open/b2; rm open/b2; mv open/b open/bob",
        "",
    ),
    (BOB_IN_GROUP, "echo too >> group/ann; cat open/ann", "ann"),
    // A change of the group clears set-id bits.
    (
        ANN,
        "cp /bin/true open/x; chmod 6755 open/x; [ $(stat -c %a open/x) = 6755 ]",
        "",
    ),
    (ANN, "chgrp 4100 open/x; [ $(stat -c %a open/x) = 755 ]", ""),
    // Callers in other namespaces have the rights that they have outside.
    (
        ANN_AS_ROOT,
        "echo x > open/mapped; [ $(stat -c %u:%g open/mapped) = 0:0 ]",
        "",
    ),
    (ROOT, "[ $(stat -c %u:%g open/mapped) = 4001:4001 ]", ""),
    (ANN_AS_ROOT, "chown 0 readable", "!not permitted"),
    (ELSEWHERE, "echo pid > open/pid; cat open/pid", "pid"),
];

#[test]
fn permissions_of_users_and_groups() {
    let Some(machine) = Machine::open_to_users(TEST) else {
        return;
    };
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let mnt = machine.path("mnt");
    for (who, script, says) in TABLE {
        let mut command = machine.command(&format!("{who} sh -e -c"));
        let outcome = run(command.arg(format!("cd {mnt}; {script}")));
        let output = format!("{}{}", outcome.stdout, outcome.stderr);
        let (refused, says) = match says.strip_prefix('!') {
            Some(why) => (true, why),
            None => (false, says),
        };
        assert_eq!(outcome.code != 0, refused, "{who} {script}: {output}");
        assert!(output.contains(says), "{who} {script}: {output}");
        assert!(
            !says.is_empty() || output.is_empty(),
            "{who} {script}: {output}"
        );
    }
    machine.run("umount mnt");
    assert!(!is_alive(daemon));
}

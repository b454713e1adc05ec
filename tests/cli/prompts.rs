//! Questions on a terminal: a program types the answers on a terminal of its own.

use crate::Victim;
use crate::real::{BILAYER, Outcome, Place, command, have, need, run, wait_until};

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Types each answer when its question appears. A shell runs the command, and afterwards prints its
/// exit code and the state of the terminal.
const TYPIST: &str = r"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp('sh', ['sh', '-c', 'trap : INT; ' + sys.argv[1] + '; echo ended $?; stty -a'])
steps = list(zip(sys.argv[2::2], sys.argv[3::2]))
seen, since = '', 0
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    seen += part.decode(errors='replace')
    while steps and steps[0][0] in seen[since:]:
        since += seen[since:].index(steps[0][0]) + len(steps[0][0])
        os.write(terminal, steps.pop(0)[1].encode())
os.waitpid(pid, 0)
sys.stdout.write(seen.replace('\r\n', '\n'))
";

const RIGHT: &str = "open sesame";

fn write_secret(place: &Place, name: &str, text: &str) {
    let mut file = fs::OpenOptions::new();
    let file = file.create_new(true).write(true).mode(0o600);
    let mut file = file.open(place.path(name)).unwrap();
    writeln!(file, "{text}").unwrap();
}

fn run_typing(place: &Place, words: &str, steps: &[(&str, &str)]) -> Outcome {
    run_in_shell_typing(place, &format!("{BILAYER} {words}"), steps)
}

fn run_in_shell_typing(place: &Place, script: &str, steps: &[(&str, &str)]) -> Outcome {
    let mut typist = command("python3", ["-c", TYPIST, script]);
    for (question, answer) in steps {
        typist.args([question, answer]);
    }
    place.environment(&mut typist);
    run(&mut typist).done()
}

/// The terminal echoes input, and keys send signals, as before.
#[track_caller]
fn terminal_is_restored(outcome: &Outcome, ended: i32) {
    let text = &outcome.stdout;
    let after = text.split(&format!("ended {ended}\n")).nth(1);
    let after = after.unwrap_or_else(|| panic!("not ended with {ended}: {text}"));
    let words: Vec<&str> = after.split([' ', '\n', ';']).collect();
    for word in ["echo", "isig", "icanon"] {
        assert!(words.contains(&word), "{word}: {text}");
    }
    assert!(after.contains("susp = ^Z"), "{text}");
    assert!(!text.contains(RIGHT), "the passphrase is shown: {text}");
}

fn encrypted(test: &'static str) -> Option<Victim> {
    let place = Place::new(test, Duration::from_secs(100))?;
    if !need(have("python3"), test, "python3 is missing; install it") {
        return None;
    }
    write_secret(&place, "right", RIGHT);
    place
        .run("keygen key.pem --bits 2048 --passphrase-file right")
        .done();
    let mounted = place.fresh(
        "--customer-key file:key.pem --passphrase-file right",
        "passphrase_file=right",
    );
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    Some(Victim { place })
}

#[test]
fn a_signal_at_the_prompt_leaves_the_terminal_unchanged() {
    let Some(victim) = encrypted("cli-prompt-end") else {
        return;
    };
    let place = &victim.place;
    let asked = "key.pem: ";
    for words in [
        "mount vol mnt",
        "mount --foreground vol mnt",
        "snapshot list vol",
        "create new --customer-key file:key.pem",
    ] {
        let outcome = run_typing(place, words, &[(asked, "half\x03")]);
        terminal_is_restored(&outcome, 130);
        assert!(!outcome.stdout.contains("hint"), "{}", outcome.stdout);
        assert!(!crate::real::is_mount_point(&place.path("mnt")), "{words}");
    }
    assert!(!place.path("new").exists());
    // Not sent by a key, and only to the process that waits for the daemon.
    let words = format!("timeout --foreground 1 {BILAYER} mount vol mnt");
    let outcome = run_in_shell_typing(place, &words, &[]);
    terminal_is_restored(&outcome, 124);
    // A suspended command would leave the terminal without echo.
    let outcome = run_typing(place, "snapshot list vol", &[(asked, "\x1a\x03")]);
    terminal_is_restored(&outcome, 130);
}

#[test]
fn a_wrong_passphrase_is_asked_for_again() {
    let Some(victim) = encrypted("cli-prompt-tries") else {
        return;
    };
    let place = &victim.place;
    let (asked, again) = ("Passphrase of", "Wrong passphrase. Passphrase of");
    let wrong = "wrong\n";
    let outcome = run_typing(
        place,
        "mount vol mnt",
        &[(asked, wrong), (again, wrong), (again, "open sesame\n")],
    );
    terminal_is_restored(&outcome, 0);
    place.mounted(&place.path("mnt")).unmount();
    let outcome = run_typing(
        place,
        "mount vol mnt",
        &[(asked, wrong), (again, wrong), (again, wrong)],
    );
    terminal_is_restored(&outcome, 32);
    let said = "the passphrase does not open the key";
    assert!(outcome.stdout.contains(said), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.matches(asked).count(), 3);
    // A file has the same contents each time.
    write_secret(place, "wrong", "wrong");
    let refused = place.run("mount vol mnt -o passphrase_file=wrong");
    crate::fails(&refused, 32, said);
}

#[test]
fn the_passphrase_of_an_export_is_asked_for() {
    let test = "cli-prompt-export";
    let Some(victim) = Victim::new(test, false) else {
        return;
    };
    if !need(have("python3"), test, "python3 is missing; install it") {
        return;
    }
    let place = &victim.place;
    place.run("image create vol base").done();
    write_secret(place, "right", RIGHT);
    place
        .run("image export vol base out --transport-passphrase-file right")
        .done();
    let (asked, again) = ("Passphrase of the export: ", "Wrong passphrase.");
    let words = "image import out new";
    let outcome = run_typing(place, words, &[(asked, "half\x03")]);
    terminal_is_restored(&outcome, 130);
    assert!(!place.path("new").exists());
    let outcome = run_typing(
        place,
        words,
        &[(asked, "wrong\n"), (again, "open sesame\n")],
    );
    terminal_is_restored(&outcome, 0);
    assert!(wait_until(Duration::from_secs(1), || place
        .path("new/volume.json")
        .exists()));
}

#[test]
fn the_new_passphrase_of_a_key_is_asked_for_twice() {
    let Some(victim) = encrypted("cli-prompt-passwd") else {
        return;
    };
    let place = &victim.place;
    let (old, new, again) = ("Passphrase of", "New passphrase of", "key.pem, again: ");
    let answers = [
        (old, "open sesame\n"),
        (new, "abra\n"),
        (again, "cadabra\n"),
        (new, "abra\n"),
        (again, "abra\n"),
    ];
    let outcome = run_typing(place, "key passwd key.pem", &answers);
    terminal_is_restored(&outcome, 0);
    assert!(!outcome.stdout.contains("abra"), "{}", outcome.stdout);
    write_secret(place, "new", "abra");
    place.run("mount vol mnt -o passphrase_file=new").done();
    place.mounted(&place.path("mnt")).unmount();
    let refused = place.run("mount vol mnt -o passphrase_file=right");
    crate::fails(&refused, 32, "the passphrase does not open the key");
    // Ctrl-C at the second question leaves the key as it was.
    let answers = [(old, "abra\n"), (new, "other\n"), (again, "\x03")];
    let outcome = run_typing(place, "key passwd key.pem", &answers);
    terminal_is_restored(&outcome, 130);
    place.run("mount vol mnt -o passphrase_file=new").done();
    place.mounted(&place.path("mnt")).unmount();
}

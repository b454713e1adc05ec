//! A command that is interrupted leaves nothing behind, and ends by the very signal.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::Victim;
use crate::real::{BILAYER, Place, command, pid_of, wait_until};

/// Large enough to be interrupted in the middle of every command.
const FILE_BYTES: usize = 96 << 20;
const LIMIT: Duration = Duration::from_secs(20);

fn start(place: &Place, words: &str) -> Child {
    let mut command = place.bilayer(words.split_whitespace());
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// Sends the signal once `begun` returns true, and waits for the end by it.
#[track_caller]
fn end(mut child: Child, signal: Signal, mut begun: impl FnMut() -> bool) {
    let begun = wait_until(LIMIT, || begun() || child.try_wait().unwrap().is_some());
    assert!(begun);
    assert_eq!(child.try_wait().unwrap(), None, "done before it was ended");
    kill_process(pid_of(&child), signal).unwrap();
    let ended = wait_until(LIMIT, || child.try_wait().unwrap().is_some());
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    assert!(ended, "it does not end");
    assert_eq!(status.signal(), Some(signal.as_raw()), "{status:?}");
}

fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn with_image(test: &'static str) -> Option<Victim> {
    let victim = Victim::new(test, false)?;
    let place = &victim.place;
    let mounted = place.mount("vol", "mnt", "");
    let bytes: Vec<u8> = (0..FILE_BYTES as u32 / 4)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(mounted.path("large"), bytes).unwrap();
    place.run("image create mnt base").done();
    mounted.unmount();
    Some(victim)
}

#[test]
fn an_export_leaves_no_file() {
    let Some(victim) = with_image("cli-interrupt-export") else {
        return;
    };
    let place = &victim.place;
    let before = names(place);
    let begun = || names(place).iter().any(|name| name.starts_with(".bilayer"));
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        end(start(place, "image export vol base out"), signal, begun);
        assert_eq!(names(place), before);
    }
    // From a daemon.
    let mounted = place.mount("vol", "mnt", "");
    end(
        start(place, "image export mnt base out"),
        Signal::INT,
        begun,
    );
    assert_eq!(names(place), before);
    mounted.unmount();
    victim.is_unharmed();
}

#[test]
fn a_new_volume_is_complete_or_absent() {
    let Some(victim) = with_image("cli-interrupt-new") else {
        return;
    };
    let place = &victim.place;
    place.run("keygen key.pem --bits 2048").done();
    place.run("image export vol base out").done();
    let before = names(place);
    let begun = || place.path("new/objects/00").exists() || place.path("new/meta").exists();
    for words in [
        "image import out new",
        "image deploy vol base new --customer-key file:key.pem",
    ] {
        for signal in [Signal::INT, Signal::TERM] {
            end(start(place, words), signal, begun);
            // The command may have finished before the signal arrived.
            if place.path("new/volume.json").exists() {
                fs::remove_dir_all(place.path("new")).unwrap();
            }
            assert_eq!(names(place), before, "{words}");
        }
    }
    // The daemon has to notice, and may have finished by then.
    let mounted = place.mount("vol", "mnt", "");
    let words = "image deploy mnt base new --customer-key file:key.pem";
    end(start(place, words), Signal::INT, begun);
    let whole = || place.path("new/volume.json").exists();
    let settled = wait_until(LIMIT, || names(place) == before || whole());
    assert!(settled, "{:?}", names(place));
    mounted.unmount();
    if whole() {
        fs::remove_dir_all(place.path("new")).unwrap();
    }
    // The input does not arrive.
    let script = format!("{{ head -c 2000000 out; sleep 100; }} | {BILAYER} image import - new");
    let mut shell = command("setsid", ["sh", "-c", &script]);
    place.environment(&mut shell);
    let mut shell = shell
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(wait_until(LIMIT, begun));
    let session = pid_of(&shell);
    let importing = child_of(shell.id());
    kill_process(importing, Signal::TERM).unwrap();
    let gone = wait_until(LIMIT, || names(place) == before);
    let _ = rustix::process::kill_process_group(session, Signal::KILL);
    let _ = shell.wait();
    assert!(gone, "{:?}", names(place));
    victim.is_unharmed();
}

/// The only child of a shell that is this program.
fn child_of(shell: u32) -> rustix::process::Pid {
    let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    let ours = children.split_whitespace().find(|pid| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program == std::path::Path::new(&BILAYER)
    });
    let pid = ours.unwrap_or_else(|| panic!("none of {children}"));
    rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap()
}

#[test]
fn an_interrupted_keygen_leaves_no_key() {
    let Some(place) = Place::new("cli-interrupt-keygen", Duration::from_secs(60)) else {
        return;
    };
    let before = names(&place);
    // A larger key takes longer, by chance: it may have been made.
    let mut child = start(&place, "keygen key.pem --bits 4096");
    std::thread::sleep(Duration::from_millis(150));
    let _ = kill_process(pid_of(&child), Signal::INT);
    if child.wait().unwrap().signal().is_some() {
        assert_eq!(names(&place), before);
    }
}

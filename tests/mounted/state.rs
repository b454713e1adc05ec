//! The health of the volume, which commands print first: with a daemon that is dead, stopped or has
//! met damage, and with a mount namespace that keeps the mount.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::Machine;
use crate::real::{BILAYER, is_alive, noise, wait_until};

const DEAD: &str = "daemon dead (umount and mount again)";

fn machine(test: &'static str) -> Option<Machine> {
    let machine = Machine::new(test)?;
    machine.place.run("create vol").done();
    machine.place.dir("mnt");
    Some(machine)
}

/// A process that has its working directory in the mount.
fn process_inside(machine: &Machine) -> Child {
    let script = format!("cd {} && exec sleep 100", machine.path("mnt"));
    let mut shell = machine.command("sh -c");
    let child = shell.arg(script).stdout(Stdio::null()).spawn().unwrap();
    let inside = |pid: u32| fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let is_inside = || inside(child.id()).ends_with("mnt");
    assert!(wait_until(Duration::from_secs(20), is_inside));
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn status(machine: &Machine, place: &str) -> (Value, String) {
    let json = machine.output(&format!("{BILAYER} status --json {place}"));
    let text = machine.output(&format!("{BILAYER} status {place}"));
    (serde_json::from_str(&json).unwrap(), text)
}

#[test]
fn a_dead_daemon_with_a_mount_in_use() {
    let Some(machine) = machine("dead") else {
        return;
    };
    let again = format!(
        "bilayer unmount {mnt} && bilayer mount {vol} {mnt}",
        mnt = machine.path("mnt"),
        vol = machine.path("vol")
    );
    for unmount in [
        &format!("{BILAYER} unmount mnt"),
        &format!("{BILAYER} unmount vol"),
        "umount mnt",
    ] {
        machine.run("mount -t bilayer vol mnt");
        let daemon = machine.daemon();
        machine.run("touch mnt/file");
        machine.run("sync mnt/file");
        let (healthy, text) = status(&machine, "mnt");
        assert_eq!(
            (&healthy["health"], &healthy["next"]),
            (&"ok".into(), &Value::Null)
        );
        assert!(text.starts_with("health             ok\nvolume "), "{text}");
        let inside = process_inside(&machine);
        machine.run(&format!("kill -KILL {daemon}"));
        assert!(wait_until(Duration::from_secs(20), || !is_alive(daemon)));

        for (words, code) in [
            ("check mnt", 8),
            ("snapshot list mnt", 6),
            ("snapshot list mnt/other", 6),
            ("snapshot create mnt s", 6),
            ("image list mnt", 6),
            ("mount vol mnt", 2),
            ("mount vol mnt -o remount,ro", 32),
        ] {
            let outcome = machine.end_of(&format!("{BILAYER} {words}"));
            assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(DEAD), "{words}: {}", outcome.stderr);
            let hint = format!("hint: {again}\n");
            assert!(
                outcome.stderr.ends_with(&hint),
                "{words}: {}",
                outcome.stderr
            );
        }
        for place in ["mnt", "vol"] {
            let (report, text) = status(&machine, place);
            assert_eq!(report["health"], DEAD, "{place}");
            assert_eq!(report["next"], again, "{place}");
            assert_eq!(report["volume"], machine.path("vol"), "{place}");
            assert!(
                text.starts_with(&format!("health             {DEAD}\n")),
                "{text}"
            );
        }
        let outcome = machine.end_of(unmount).done();
        assert!(
            outcome.stderr.contains("is detached: its daemon is dead"),
            "{}",
            outcome.stderr
        );
        assert!(machine.mounted().is_empty());
        machine.run("mount -t bilayer vol mnt");
        machine.daemon();
        assert!(machine.see("mnt/file").exists());
        machine.run("umount mnt");
        end(inside);
    }
}

#[test]
fn another_mount_namespace_is_named() {
    let Some(machine) = machine("elsewhere") else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    let mut container = machine.command("unshare --mount --propagation private -- sleep 100");
    let container = container.spawn().unwrap();
    let name = format!("/proc/{}/comm", container.id());
    let is_there = || fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n");
    assert!(wait_until(Duration::from_secs(20), is_there));
    let outcome = machine.end_of("umount mnt").done();
    let holder = format!("process {} (sleep)", container.id());
    assert!(outcome.stderr.contains(&holder), "{}", outcome.stderr);
    let (report, text) = status(&machine, "vol");
    assert_eq!(report["health"], "ok");
    let held_by = report["held_by"].as_array().unwrap();
    assert!(held_by.contains(&container.id().into()), "{report}");
    assert!(text.contains(&holder), "{text}");
    end(container);
    assert!(wait_until(Duration::from_secs(20), || !is_alive(daemon)));
}

#[test]
fn waiting_for_a_stopped_daemon_ends() {
    let Some(machine) = machine("stopped") else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    machine.run(&format!("kill -STOP {daemon}"));
    for (words, code) in [
        ("status mnt", 6),
        ("status vol", 0),
        ("check mnt", 8),
        ("snapshot list mnt", 6),
        ("snapshot create vol s", 3),
        ("mount vol mnt", 2),
        ("mount vol mnt -o remount,ro", 32),
        ("unmount mnt", 6),
    ] {
        let begin = Instant::now();
        let outcome = machine.end_of(&format!("{BILAYER} {words}"));
        assert_eq!(outcome.code, code, "{words}: {}", outcome.stderr);
        let said = outcome.stdout + &outcome.stderr;
        assert!(said.contains("does not answer"), "{words}: {said}");
        assert!(
            outcome.stderr.starts_with("bilayer: waiting for a "),
            "{words}: {said}"
        );
        assert!(begin.elapsed() < Duration::from_secs(30), "{words}");
    }
    machine.run(&format!("kill -CONT {daemon}"));
    machine.run("umount mnt");
}

#[test]
fn a_daemon_that_stops_during_a_request() {
    let Some(machine) = machine("stopped-in-request") else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    let daemon = machine.daemon();
    fs::write(machine.see("mnt/file"), noise(1, 20_000_000)).unwrap();
    machine.output(&format!("{BILAYER} image create mnt base"));
    fs::write(machine.place.path("pass"), "between us\n").unwrap();
    let words = "image export mnt base - --transport-passphrase-file pass";
    let mut export = machine.command(&format!("{BILAYER} {words}"));
    let export = export.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = export.spawn().unwrap();
    // The daemon continues only as far as its output is read.
    let mut first = [0; 1000];
    let stream = export.stdout.as_mut().unwrap();
    stream.read_exact(&mut first).unwrap();
    machine.run(&format!("kill -STOP {daemon}"));
    let output = export.wait_with_output().unwrap();
    machine.run(&format!("kill -CONT {daemon}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(
        said.contains("bilayer: waiting for the daemon, process ")
            && said.contains("does not answer"),
        "{said}"
    );
    // A daemon that continues is healthy.
    machine.run(&format!("{BILAYER} check mnt --quiet"));
    machine.run("umount mnt");
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files_in(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn status_reports_damage_that_was_read() {
    let Some(machine) = machine("damage") else {
        return;
    };
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    fs::write(machine.see("mnt/file"), noise(1, 300_000)).unwrap();
    machine.run("umount mnt");
    let objects = files_in(&machine.place.path("vol/objects"));
    let largest = objects
        .iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let object = fs::File::options()
        .write(true)
        .open(largest.unwrap())
        .unwrap();
    object.write_all_at(&[7; 64], 20_000).unwrap();
    machine.run("mount -t bilayer vol mnt");
    machine.daemon();
    assert_eq!(status(&machine, "mnt").0["health"], "ok");
    assert!(fs::read(machine.see("mnt/file")).is_err());
    let (report, text) = status(&machine, "mnt");
    assert_eq!(report["health"], "damaged: run check");
    assert_eq!(
        report["next"],
        format!("bilayer check {}", machine.path("vol"))
    );
    assert!(
        text.starts_with("health             damaged: run check\nto do "),
        "{text}"
    );
    machine.run("umount mnt");
}

//! The system's log, with a socket that is removed and created again.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::namespace::Namespace;
use crate::real::{Place, command, is_alive, run, wait_until};
use crate::{LIMIT, of_action};

/// A directory of devices with those that a daemon needs, and a log socket outside of it.
const DEVICES: &str = "mkdir \"$0\"; mount -t tmpfs none \"$0\"; cd \"$0\"; \
                       for device in fuse null zero random urandom tty; do \
                       touch $device; mount --bind /dev/$device $device; done; \
                       ln -s /proc/self/fd fd; ln -s \"$1\" log; mount --rbind \"$0\" /dev";

struct SystemLog(UnixDatagram);

impl SystemLog {
    /// Creates the socket again.
    fn start(path: &Path) -> Self {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self(socket)
    }

    /// Reads until a line contains `text`. Returns all lines.
    #[track_caller]
    fn read_until(&self, text: &str) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut bytes = vec![0; 1 << 16];
        while !lines.last().is_some_and(|line| line.contains(text)) {
            let len = self.0.recv(&mut bytes);
            let len = len.unwrap_or_else(|error| panic!("no {text}: {error}: {lines:#?}"));
            lines.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
        }
        lines
    }
}

#[test]
fn a_recreated_socket_is_found_again() {
    let test = "audit-syslog";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    let Some(namespace) = Namespace::new(&place, test) else {
        return;
    };
    place.run("create vol").done();
    place.dir("mnt");
    let path = place.path("socket");
    let mut devices = command("sh", ["-ec", DEVICES]);
    devices.arg(place.path("dev")).arg(&path);
    run(&mut namespace.inside(&devices)).silent();
    let log = SystemLog::start(&path);
    let words = ["mount", "vol", "mnt", "-o", "audit_log=syslog"];
    run(&mut namespace.inside(&place.bilayer(words))).done();
    let lines = log.read_until("\"action\":\"mount\"");
    // Facility `auth`, and the program's name.
    assert!(
        lines.iter().all(|line| line.starts_with("<37>bilayer[")),
        "{lines:#?}"
    );
    let status = place.status(&place.path("vol"));
    let pid = status["daemon"]["pid"].as_i64().unwrap() as i32;
    place.take_charge(pid);
    let snapshot = |name: &str| drop(place.run(&format!("snapshot create vol {name}")).done());
    snapshot("one");
    log.read_until("\"name\":\"one\"");
    drop(log);
    let log = SystemLog::start(&path);
    snapshot("two");
    let lines = log.read_until("\"name\":\"two\"");
    assert_eq!(lines.len(), 1, "nothing was lost: {lines:#?}");
    drop(log);
    fs::remove_file(&path).unwrap();
    snapshot("three");
    snapshot("four");
    let log = SystemLog::start(&path);
    snapshot("five");
    let lines = log.read_until("\"name\":\"five\"");
    assert!(
        lines[0].contains("did not take before this one: 2"),
        "{lines:#?}"
    );
    // Records that it did not accept are in the platform keystore's directory.
    let kept = of_action(&place, "create-snapshot");
    let names: Vec<_> = kept.iter().map(|record| record["name"].as_str()).collect();
    assert_eq!(names, [Some("three"), Some("four")]);
    // The log itself has a connection of its own, which has lost as many lines.
    let end = rustix::process::Pid::from_raw(pid).unwrap();
    kill_process(end, Signal::TERM).unwrap();
    let lines = log.read_until("everything is on disk");
    let of_log = lines.iter().filter(|line| line.starts_with("<3"));
    assert!(of_log.count() > 1, "{lines:#?}");
    assert!(wait_until(LIMIT, || !is_alive(pid)));
}

//! The remembered path is on a filesystem whose daemon does not answer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fails;
use crate::real::{Mounted, Place, command, have, need, run};

const LIMIT: Duration = Duration::from_secs(200);
/// Time limit of one command, including its attempt to look at a remembered path.
const SOON: Duration = Duration::from_secs(15);

fn sh(place: &Place, script: &str) {
    run(command("sh", ["-ec", script]).current_dir(place.path(""))).done();
}

/// Answers `FUSE_INIT` and `FUSE_GETATTR` of the root (Linux `include/uapi/linux/fuse.h`).
const MUTE: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"mute", sys.argv[1].encode(), b"fuse", 0, data) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
while True:
    request = os.read(device, 1 << 20)
    _, opcode, unique, _ = struct.unpack_from("<IIQQ", request)
    if opcode == 26:
        body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 16, 0, 0)
    elif opcode == 3:
        attr = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 512, 0)
        body = struct.pack("<QII", 3600, 0, 0) + attr
    else:
        continue
    os.write(device, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
"#;

/// A stopped daemon, until this is dropped.
struct Still(Pid);

impl Still {
    fn new(mounted: &Mounted<'_>) -> Self {
        let pid = Pid::from_raw(mounted.pid).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[track_caller]
fn soon<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = run();
    let took = begin.elapsed();
    assert!(took < SOON, "{what}: {took:?}");
    result
}

/// A FUSE filesystem whose daemon reads every request and answers only those that a mount needs.
struct Mute {
    daemon: Child,
    dir: PathBuf,
}

impl Mute {
    fn mount(dir: &Path) -> Self {
        let mut python = command("python3", ["-c", MUTE]);
        let mut daemon = python.arg(dir).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let stdout = daemon.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        let dir = dir.to_owned();
        let this = Self { daemon, dir };
        assert_eq!(said, "mounted\n");
        this
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Processes that wait for it get errors then.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        run(command("umount", ["-i", "-l"]).arg(&self.dir));
    }
}

/// The process that asked and got no answer exists as long as that filesystem does.
#[test]
fn a_probe_that_is_left_behind_has_no_key() {
    const TEST: &str = "identity-left-behind";
    let Some(place) = Place::new(TEST, LIMIT) else {
        return;
    };
    if !need(have("python3"), TEST, "python3 is missing") {
        return;
    }
    place.dir("disk");
    place.run("keygen key.pem --bits 2048").done();
    place
        .run("create disk/vol --customer-key file:key.pem")
        .done();
    place.mount("disk/vol", "mnt", "").unmount();
    sh(&place, "cp -a disk/vol cp");
    let pem = fs::read_to_string(place.path("key.pem")).unwrap();
    let key = rsa::RsaPrivateKey::from_pkcs8_pem(&pem).unwrap();
    let secrets: Vec<Vec<u8>> = key
        .primes()
        .iter()
        .chain([key.d()])
        .map(|number| number.to_bytes_le()[8..40].to_vec())
        .collect();
    let _mute = Mute::mount(&place.path("disk"));
    let copy = place.mount("cp", "mnt", "ro");
    let left = children(copy.pid);
    assert_eq!(left.len(), 1, "one asks for ever");
    for pid in left {
        let memory = memory_of(pid);
        assert!(memory.len() > 1 << 20);
        for secret in &secrets {
            let has_secret = memory.windows(secret.len()).any(|bytes| bytes == secret);
            assert!(!has_secret, "the customer's key is in process {pid}");
        }
    }
    copy.unmount();
}

fn children(parent: i32) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap();
    let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has_parent = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line == format!("PPid:\t{parent}"))
    };
    numbers.filter(has_parent).collect()
}

/// All memory to which a process could write.
fn memory_of(pid: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [range.0, range.1].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            all.extend(bytes);
        }
    }
    all
}

/// Nothing can kill a thread that waits for such a daemon, and a process with such a thread does
/// not end.
#[test]
fn commands_end_while_a_daemon_has_taken_the_request() {
    const TEST: &str = "identity-mute";
    let Some(place) = Place::new(TEST, LIMIT) else {
        return;
    };
    if !need(have("python3"), TEST, "python3 is missing") {
        return;
    }
    place.dir("disk");
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    sh(&place, "cp -a disk/vol cp");
    {
        let _mute = Mute::mount(&place.path("disk"));
        let status = soon("status", || place.status(&place.path("cp")));
        assert_eq!(status["not_verified_because"], Value::Null, "{status}");
        soon("check", || place.run("check cp").done());
        let copy = soon("mount -o ro", || place.mount("cp", "mnt", "ro"));
        assert_eq!(fs::read(copy.path("file")).unwrap(), b"as it was");
        soon("unmount", || copy.unmount());
        let refused = soon("mount", || place.run("mount cp mnt"));
        fails(&refused, 32, "that place cannot be seen now");
    }
    fails(&place.run("mount cp mnt"), 32, "is a copy of");
    place.mount("disk/vol", "mnt", "").unmount();
}

#[test]
fn a_copy_is_looked_at_while_the_original_does_not_answer() {
    let Some(place) = Place::new("identity-silent", LIMIT) else {
        return;
    };
    place.run("create outer").done();
    let disk = place.mount("outer", "disk", "");
    place.run("create disk/vol").done();
    let mounted = place.mount("disk/vol", "mnt", "");
    fs::write(mounted.path("file"), "as it was").unwrap();
    mounted.unmount();
    sh(&place, "cp -a disk/vol cp; sync -f disk");
    place.dir("other");
    {
        let _still = Still::new(&disk);
        let copy = soon("mount -o ro", || place.mount("cp", "mnt", "ro"));
        assert_eq!(fs::read(copy.path("file")).unwrap(), b"as it was");
        soon("unmount", || copy.unmount());
        soon("check", || place.run("check cp").done());
        let status = soon("status", || place.status(&place.path("cp")));
        assert_eq!(status["not_verified_because"], Value::Null, "{status}");
        let refused = soon("mount", || place.run("mount cp other"));
        fails(&refused, 32, "that place cannot be seen now");
        // It becomes a volume of its own without a look at the original's files.
        soon("new identity", || {
            place.run("mount cp other --new-identity").done()
        });
        place.mounted(&place.path("other")).unmount();
    }
    sh(&place, "cp -a disk/vol second");
    fails(&place.run("mount second mnt"), 32, "is a copy of");
    place.mount("disk/vol", "mnt", "").unmount();
    disk.unmount();
}

//! A full volume, as seen by programs that continue writing without a sync.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::control::{OPTIONS, place};
use crate::real::{Mounted, command, noise, run, write_synced};

/// The limit of the volume.
const LIMIT: u64 = 50 << 20;
/// How much more may be accepted before a write(2) is refused.
const BOUND: u64 = 64 << 20;
const MIB: usize = 1 << 20;

fn errno(error: &std::io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// Writes until that is refused. Returns the number of bytes accepted.
fn write_on(file: &mut File, piece: &[u8], pause: Duration) -> u64 {
    let mut taken = 0;
    loop {
        match file.write(piece) {
            Ok(len) => taken += len as u64,
            Err(error) => {
                assert_eq!(errno(&error), Some(Errno::NOSPC), "{error}");
                return taken;
            }
        }
        assert!(taken <= LIMIT + BOUND, "a full disk is not reported");
        std::thread::sleep(pause);
    }
}

fn fill(mounted: &Mounted<'_>) {
    let mut number = 0;
    while write_synced(&mounted.path(&format!("fill{number}")), &noise(1, MIB)).is_ok() {
        number += 1;
        assert!(number <= 60, "the limit is not kept");
    }
}

#[test]
fn a_write_to_a_full_volume_is_refused() {
    let Some(place) = place("full-write") else {
        return;
    };
    let mounted = place.fresh("--size 50M", OPTIONS);
    let path = mounted.path("file");
    for pause in [Duration::ZERO, Duration::from_millis(5)] {
        let mut file = File::create(&path).unwrap();
        let taken = write_on(&mut file, &noise(1, MIB), pause);
        assert!(taken > LIMIT * 9 / 10, "{taken}");
        // A later fsync reports the data that was accepted and lost. Reads, stat and seeks still
        // work.
        let synced = file.sync_all().err();
        let reported = synced.map_or(Some(Errno::NOSPC), |error| errno(&error));
        assert_eq!(reported, Some(Errno::NOSPC));
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut bytes = vec![0; MIB];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise(1, MIB));
        let len = reader.metadata().unwrap().len();
        assert_eq!(reader.read_at(&mut bytes, len).unwrap(), 0);
        rustix::fs::seek(&reader, rustix::fs::SeekFrom::End(0)).unwrap();
        drop(file);
        // Existing data may be overwritten, if not at once.
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = reader.write_all_at(&noise(2, MIB), 0) {
            assert_eq!(errno(&error), Some(Errno::NOSPC));
            assert!(Instant::now() < end, "overwriting is refused");
            std::thread::sleep(Duration::from_millis(100));
        }
        reader.sync_data().ok();
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise(2, MIB));
        drop(reader);
        // When there is space again, the next write is accepted.
        fs::remove_file(&path).unwrap();
        write_synced(&mounted.path("other"), &noise(3, 8 * MIB)).unwrap();
        fs::remove_file(mounted.path("other")).unwrap();
    }
    mounted.unmount();
}

/// A file that has been open for long and whose write was refused can be written when others free
/// space.
#[test]
fn a_refused_log_can_be_written_when_there_is_space() {
    let Some(place) = place("full-log") else {
        return;
    };
    let mounted = place.fresh("--size 50M", OPTIONS);
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(mounted.path("log"))
        .unwrap();
    log.write_all(&noise(1, 5000)).unwrap();
    fill(&mounted);
    let taken = write_on(&mut log, &noise(1, 128 << 10), Duration::from_millis(20));
    assert!(taken <= BOUND, "{taken}");
    fs::remove_file(mounted.path("fill0")).unwrap();
    fs::remove_file(mounted.path("fill1")).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while log.write_all(&noise(1, 1000)).is_err() {
        assert!(Instant::now() < end, "writes are still refused");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(log);
    mounted.unmount();
}

/// Programs end with an error, and have not written far beyond the end.
#[test]
fn programs_get_an_error() {
    let Some(place) = place("full-programs") else {
        return;
    };
    let source = place.dir("source");
    fs::write(source.join("large"), noise(1, 200 * MIB)).unwrap();
    for (words, script) in [
        ("dd", "dd if=/dev/zero of=$M/out bs=1M"),
        ("dd, in small pieces", "dd if=/dev/zero of=$M/out bs=4k"),
        ("cat and bash", "cat large > $M/out"),
        (
            "bash alone",
            "while printf '%01000d\\n' {1..100}; do :; done > $M/out; exit 1",
        ),
        (
            "bash, many files",
            "for n in {1..400}; do printf '%01048576d' 1 > $M/$n || exit 1; done",
        ),
        (
            "bash, one file again and again",
            "printf '%052000000d' 1 > $M/large || exit 1\n\
             for n in {1..400}; do printf '%01048576d' 1 > $M/again || exit 1; done",
        ),
        ("cp", "cp large $M/out"),
        ("tar", "tar -cf - large | tar -C $M -xf -"),
        ("rsync", "rsync large $M/out"),
    ] {
        let mounted = place.fresh("--size 50M", OPTIONS);
        let before = Instant::now();
        let mut bash = command("bash", ["-c", script]);
        bash.env("M", mounted.dir()).current_dir(&source);
        let outcome = run(&mut bash);
        assert_ne!(outcome.code, 0, "{words}: {}", outcome.stderr);
        let said = outcome.stderr.to_lowercase();
        assert!(said.contains("no space left"), "{words}: {said}");
        assert!(before.elapsed() < Duration::from_secs(50), "{words}");
        for name in ["out", "large"] {
            let len = fs::metadata(mounted.path(name)).map_or(0, |metadata| metadata.len());
            assert!(len <= LIMIT + BOUND, "{words}: {len}");
        }
        mounted.unmount();
        fs::remove_dir_all(place.path("vol")).unwrap();
    }
}

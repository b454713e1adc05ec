//! Intact volumes: no findings, and nothing is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bilayer::check::{self, CheckOptions, NoProgress, Severity};
use bilayer::fs::FilesystemOptions;
use bilayer::fs::snapshots::ViewKind;

use crate::support::{CHUNK, Mount, ROOT, audit, open_volume, pattern, quiet};
use crate::{Closed, OPTIONS};

#[test]
fn a_fresh_volume_and_one_in_use_have_no_findings() {
    let mount = Mount::new();
    let report = mount.fs.check(&OPTIONS, &NoProgress).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.inodes, 1);
    let closed = Closed::of(mount);
    assert_eq!(closed.check().findings, []);
}

#[test]
fn snapshots_images_and_everything_between_have_no_findings() {
    let mount = Mount::new();
    let dir = mount.mkdir(ROOT, "dir");
    for round in 0..6u8 {
        let name = format!("file-{}", round % 3);
        mount.file(
            dir,
            &name,
            &pattern(round, 0, 50_000 + 3000 * usize::from(round)),
        );
        mount.mkdir(dir, &format!("sub-{round}"));
        let kind = [ViewKind::Snapshot, ViewKind::Image][usize::from(round % 2)];
        mount
            .fs
            .create_view(kind, &format!("v{round}"), None, "")
            .unwrap();
        let node = mount.at(&format!("dir/{name}"));
        mount.truncate(node, 10_000).unwrap();
        mount.fs.unlink(dir, name.as_bytes()).unwrap();
        if round >= 2 {
            let old = round - 2;
            let kind = [ViewKind::Snapshot, ViewKind::Image][usize::from(old % 2)];
            mount.fs.delete_view(kind, &format!("v{old}")).unwrap();
        }
        assert_eq!(mount.fs.check(&OPTIONS, &NoProgress).unwrap().findings, []);
    }
    mount.fs.finish_purge().unwrap();
    let closed = Closed::of(mount);
    let report = closed.check();
    assert_eq!(report.findings, []);
    assert_eq!(report.views, 2);
    assert!(report.pages > 0 && report.contents_checked);
}

#[test]
fn after_a_kill_there_are_only_notes_and_checking_writes_nothing() {
    let mount = Mount::new();
    let (kept, handle) = mount.create(ROOT, "kept");
    mount.put(kept, handle, 0, &crate::large());
    mount.fs.fsync(kept, handle, false).unwrap();
    mount.fs.release(kept, handle);
    let (_, _open) = mount.create(ROOT, "gone");
    mount.file(ROOT, "lost", &crate::large());
    let (store, keystore) = (mount.store.clone(), mount.keystore.clone());
    store.restart_process();
    let _ = mount.fs.close();
    drop(mount);
    let closed = Closed { store, keystore };
    let files = || {
        let meta = closed.open("meta");
        let mut bytes = vec![0; meta.len().unwrap() as usize];
        meta.read_at(&mut bytes, 0).unwrap();
        (bytes, audit::objects(&closed.store))
    };
    let before = files();
    let report = closed.check();
    let worst = report.findings.iter().map(|f| f.severity).max();
    assert_eq!(worst, Some(Severity::Note), "{:?}", report.findings);
    assert!(report.is_clean());
    assert!(files() == before, "nothing was written");
    let mount = closed.mount();
    assert_eq!(mount.contents(mount.at("kept")), crate::large());
    mount.finish();
}

/// The contents change all the time: they are overwritten in place, truncated, punched, unlinked,
/// shared with snapshots and released, copied by hard links, merged.
#[test]
fn nothing_is_found_in_a_volume_that_is_written_to() {
    let options = FilesystemOptions {
        commit_interval: Duration::from_millis(5),
        ..quiet()
    };
    let mount = Mount::with(None, options);
    let stop = AtomicBool::new(false);
    for number in 0..4 {
        mount.mkdir(ROOT, &format!("d{number}"));
    }
    mount.file(mount.at("d3"), "still", &crate::large());
    std::thread::scope(|scope| {
        for number in 0..3u8 {
            let (mount, stop) = (&mount, &stop);
            scope.spawn(move || {
                let dir = mount.at(&format!("d{number}"));
                let mut round = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    let name = format!("f{}", round % 5);
                    let node = match mount.lookup(dir, name.as_bytes()) {
                        Ok(attr) => attr.node,
                        Err(_) => mount.file(dir, &name, &pattern(number, 0, 100_000)),
                    };
                    let handle = mount.open_rw(node);
                    let at = round * 7919 % 90_000;
                    mount.put(node, handle, at, &pattern(number, at, 9_000));
                    if round.is_multiple_of(3) {
                        mount.fs.fsync(node, handle, false).unwrap();
                    }
                    mount.fs.release(node, handle);
                    match round % 11 {
                        3 => drop(mount.truncate(node, at).unwrap()),
                        5 => mount.fs.unlink(dir, name.as_bytes()).unwrap(),
                        7 => drop(mount.truncate(node, CHUNK as u64 + at).unwrap()),
                        _ => {}
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                let name = format!("s{round}");
                mount
                    .fs
                    .create_view(ViewKind::Snapshot, &name, None, "")
                    .unwrap();
                if round % 4 == 1 {
                    let path = std::path::Path::new("d3/still");
                    let _ = mount.fs.restore(&name, Some(path));
                }
                if round > 2 {
                    let old = format!("s{}", round - 3);
                    mount.fs.delete_view(ViewKind::Snapshot, &old).unwrap();
                }
                round += 1;
                mount.fs.run_maintenance().unwrap();
            }
        });
        for _ in 0..40 {
            let report = mount.fs.check(&OPTIONS, &NoProgress);
            let clean = matches!(&report, Ok(report) if report.findings.is_empty());
            if !clean {
                stop.store(true, Ordering::SeqCst);
            }
            assert!(clean, "{report:#?}");
        }
        stop.store(true, Ordering::SeqCst);
    });
    mount.fs.finish_purge().unwrap();
    mount.finish();
}

#[test]
fn the_memory_limit_does_not_change_the_findings() {
    let mount = Mount::new();
    for number in 0..400 {
        let dir = mount.mkdir(ROOT, &format!("d{number}"));
        mount.file(dir, "file", &pattern(1, 0, 3000));
    }
    mount
        .fs
        .create_view(ViewKind::Snapshot, "one", None, "")
        .unwrap();
    for number in 0..200 {
        let dir = mount.at(&format!("d{number}"));
        mount.fs.unlink(dir, b"file").unwrap();
        mount
            .fs
            .rmdir(ROOT, format!("d{number}").as_bytes())
            .unwrap();
    }
    let closed = Closed::of(mount);
    let volume = open_volume(&closed.store, closed.path(), true);
    let reports = [64, 4096, 64 << 20].map(|memory_bytes| {
        let options = CheckOptions {
            memory_bytes,
            ..OPTIONS
        };
        check::check(&volume, &options, &NoProgress).unwrap()
    });
    assert_eq!(reports[0].findings, []);
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[1], reports[2]);
    assert_eq!((reports[0].inodes, reports[0].objects), (401, 400));
}

//! Where snapshots and images are in a mount: `-o snapshot_dir=`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::real::{Place, command, run};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_directory_of_snapshots_has_another_name_or_none() {
    let Some(place) = Place::new("snapshot-dir", Duration::from_secs(100)) else {
        return;
    };
    let mounted = place.fresh("", "snapshot_dir=.zeit");
    fs::write(mounted.path("file"), "before").unwrap();
    fs::create_dir(mounted.path(".zeit/monday")).unwrap();
    place.run("image create mnt base").done();
    for seen in [".zeit/monday/file", ".images/base/file"] {
        assert_eq!(fs::read(mounted.path(seen)).unwrap(), b"before");
    }
    assert_eq!(names(mounted.dir()), ["file"]);
    let taken = fs::create_dir(mounted.path(".zeit")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    // An ordinary directory.
    fs::create_dir_all(mounted.path(".snapshots/1")).unwrap();
    fs::write(mounted.path(".snapshots/1/old"), "of another filesystem").unwrap();
    let list = place.run("snapshot list mnt").done().stdout;
    assert_eq!(list.lines().count(), 2, "{list}");
    // A remount does not change it.
    place
        .run("mount vol mnt -o remount,ro,snapshot_dir=off")
        .done();
    assert!(mounted.path(".zeit/monday/file").exists());
    place.run("mount vol mnt -o remount,rw").done();
    mounted.unmount();

    // A file of that name cannot be reached, and the log says so.
    let warned = place.run("mount vol mnt").done().stderr;
    assert!(warned.contains("snapshot_dir=off"), "{warned}");
    let mounted = place.mounted(&place.path("mnt"));
    assert_eq!(names(&mounted.path(".snapshots")), ["monday"]);
    let busy = fs::rename(mounted.path(".snapshots"), mounted.path("x")).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "snapshot_dir=off");
    assert_eq!(names(&mounted.path(".snapshots")), ["1"]);
    for absent in [".images", ".zeit"] {
        let error = fs::metadata(mounted.path(absent)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{absent}");
    }
    // A tree that contains both names is copied completely in both directions.
    let tree = place.dir("tree");
    fs::create_dir_all(tree.join(".snapshots/2")).unwrap();
    fs::create_dir_all(tree.join(".images/3")).unwrap();
    fs::write(tree.join(".snapshots/2/f"), "x").unwrap();
    run(command("cp", ["-a"]).arg(tree.join(".")).arg(mounted.dir())).silent();
    let copied = place.path("copied");
    run(command("cp", ["-a"]).arg(mounted.dir()).arg(&copied)).silent();
    assert_eq!(names(&copied.join(".snapshots")), ["1", "2"]);
    assert_eq!(names(&copied.join(".images")), ["3"]);
    fs::rename(mounted.path(".snapshots"), mounted.path("theirs")).unwrap();
    fs::remove_dir_all(mounted.path(".images")).unwrap();
    // Commands still reach the snapshots.
    fs::write(mounted.path("file"), "after").unwrap();
    place.run("snapshot restore mnt monday --path file").done();
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"before");
    place.run("status mnt@base").done();
    mounted.unmount();

    // Without the option a tree that contains the name takes snapshots.
    let mounted = place.mount("vol", "mnt", "");
    let copy = run(command("cp", ["-a"]).arg(tree.join(".")).arg(mounted.dir()));
    assert!(copy.stderr.contains("Read-only"), "{}", copy.stderr);
    assert_eq!(names(&mounted.path(".snapshots")), ["2", "monday"]);
    mounted.unmount();
    for wrong in ["", ".", "a/b", ".images"] {
        let refused = place.run(&format!("mount vol mnt -o snapshot_dir={wrong}"));
        assert_eq!(refused.code, 1, "{wrong}");
        assert!(
            refused.stderr.contains("snapshot_dir"),
            "{}",
            refused.stderr
        );
    }
}

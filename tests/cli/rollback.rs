//! A restored backup, as the user who restored it sees it.

use std::fs;
use std::time::Duration;

use crate::fails;
use crate::real::{Place, command, run};

#[test]
fn an_older_copy_is_refused_until_it_is_accepted() {
    let Some(place) = Place::new("cli-restored", Duration::from_secs(120)) else {
        return;
    };
    place.run("create vol").done();
    // Restored into the same directory, so that no additional line says that the directory is
    // another one.
    let copy = |from: &str, to: &str| {
        let script = "mkdir -p $1; find $1 -mindepth 1 -delete; cp -a $0/. $1";
        let mut shell = command("sh", ["-ec", script, from, to]);
        run(shell.current_dir(place.path(""))).silent();
    };
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "of then").unwrap();
    mounted.unmount();
    copy("vol", "backup");
    let mounted = place.mount("vol", "mnt", "");
    fs::write(mounted.path("file"), "of now").unwrap();
    mounted.unmount();
    copy("vol", "newest");
    copy("backup", "vol");

    for mount in ["mount vol mnt", "mount vol mnt -o ro"] {
        let refused = place.run(mount);
        fails(&refused, 32, "not the newest state that this machine knows");
        assert!(refused.stderr.contains("--accept-restored"));
    }
    fails(&place.run("snapshot list vol"), 5, "older copy");
    // Not an option that fstab could have.
    fails(
        &place.run("mount vol mnt -o accept_restored"),
        1,
        "accept_restored",
    );
    // Read-only, which changes nothing.
    let header = fs::read(place.path("vol/volume.json")).unwrap();
    place.run("mount vol mnt --accept-restored -o ro").done();
    let mounted = place.mounted(&place.path("mnt"));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"of then");
    mounted.unmount();
    assert_eq!(fs::read(place.path("vol/volume.json")).unwrap(), header);
    fails(&place.run("mount vol mnt"), 32, "not the newest state");

    place.run("mount vol mnt --accept-restored").done();
    let mounted = place.mounted(&place.path("mnt"));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"of then");
    fs::write(mounted.path("file"), "goes on").unwrap();
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"goes on");
    mounted.unmount();
    for other in ["newest", "backup"] {
        copy(other, "vol");
        fails(&place.run("mount vol mnt"), 32, "incarnation");
    }
}

//! Deployments on real filesystems: which objects are linked, reflinked, or copied.

use std::path::{Path, PathBuf};

use super::*;
use crate::real::{command, have, need, run};
use bilayer::fs::types::Owner;
use bilayer::store::directory::DirectoryStore;

/// Mounts of a test, unmounted on drop.
#[derive(Default)]
struct Mounts(Vec<PathBuf>);

impl Mounts {
    /// Mounts with these arguments of mount(8). Returns the reason if that fails.
    fn add(&mut self, options: &[&str], from: &Path, dir: &Path) -> Result<(), String> {
        std::fs::create_dir_all(dir).unwrap();
        let mounted = run(command("mount", options).arg(from).arg(dir));
        if mounted.code != 0 {
            return Err(mounted.stderr.trim().to_owned());
        }
        self.0.push(dir.to_owned());
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            let _ = std::process::Command::new("umount").arg(dir).status();
        }
    }
}

fn at(dir: &Path) -> Arc<dyn Store> {
    Arc::new(DirectoryStore::open_or_create(dir).unwrap())
}

fn open_at(dir: &Path, keystore: &Path) -> Volume {
    let options = OpenOptions {
        keystore: keystore.to_owned(),
        ..OpenOptions::default()
    };
    volume::open(at(dir), &options).unwrap()
}

fn tree_at(dir: &Path, keystore: &Path) -> Tree {
    let fs = Filesystem::open(open_at(dir, keystore), quiet()).unwrap();
    let contents = tree(&fs);
    fs.close().unwrap();
    contents
}

/// Creates a volume with an image "golden". Returns its contents.
fn make_source(dir: &Path, keystore: &Path) -> Tree {
    let options = CreateOptions {
        keystore: keystore.to_owned(),
        ..CreateOptions::default()
    };
    volume::create_empty(at(dir), &options, &mut |fresh| {
        Filesystem::format(fresh, Owner::ROOT).map_err(Into::into)
    })
    .unwrap();
    let fs = Filesystem::open(open_at(dir, keystore), quiet()).unwrap();
    fill(&fs, 1);
    make_image(&fs, "golden");
    fs.close().unwrap();
    drop(fs);
    tree_at(dir, keystore)
}

fn deploy_golden(from: &Path, to: &Path, keystore: &Path) -> Deployed {
    let volume = open_at(from, keystore);
    let meta = open_meta(&volume).unwrap();
    let (_, image) = meta.find_view(ViewKind::Image, "golden").unwrap();
    meta.freeze(image.generation);
    meta.commit(meta.newest_batch(), &|| true).unwrap();
    let source = Source {
        volume: &volume,
        meta: &meta,
        view: View(image.generation),
        image: "golden",
    };
    let options = DeployOptions {
        keystore: keystore.to_owned(),
        ..DeployOptions::default()
    };
    let made = deploy(&source, at(to), &options, &NoProgress).unwrap();
    meta.close().unwrap();
    made
}

#[test]
fn links_then_reflinks_then_copies() {
    let test = "links_then_reflinks_then_copies";
    let missing = "mkfs.xfs is missing; install xfsprogs";
    if !need(have("mkfs.xfs"), test, missing) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let image = std::fs::File::create(path("image")).unwrap();
    image.set_len(512 << 20).unwrap();
    run(command("mkfs.xfs", ["-q"]).arg(path("image"))).done();
    let mut mounts = Mounts::default();
    let (disk, bound) = (path("disk"), path("bound"));
    let mounted = mounts
        .add(&["-o", "loop"], &path("image"), &disk)
        .and_then(|()| mounts.add(&["--bind"], &disk, &bound));
    if let Err(why) = mounted {
        need(false, test, &format!("xfs cannot be mounted: {why}"));
        return;
    }
    let keystore = path("platform");
    let (source, other) = (disk.join("source"), path("elsewhere"));
    let expected = make_source(&source, &keystore);
    // On the same mount; on another mount of the same filesystem, which permits no link; on another
    // filesystem.
    let linked = deploy_golden(&source, &disk.join("linked"), &keystore);
    assert_eq!(linked.linked, linked.objects);
    let reflinked = deploy_golden(&source, &bound.join("reflinked"), &keystore);
    assert_eq!(reflinked.reflinked, linked.objects);
    let copied = deploy_golden(&source, &other, &keystore);
    assert_eq!(copied.copied, linked.objects);
    let copies = [disk.join("linked"), disk.join("reflinked"), other];
    for copy in &copies {
        assert_eq!(tree_at(copy, &keystore), expected);
        let fs = Filesystem::open(open_at(copy, &keystore), quiet()).unwrap();
        let noise = pattern(9, 0, 3 * PAGE);
        put(&fs, find(&fs, "dir"), "large", &[(PAGE, &noise)]);
        put(&fs, ROOT, "second", &[(0, &noise)]);
        fs.close().unwrap();
        drop(fs);
        assert_ne!(tree_at(copy, &keystore), expected);
    }
    assert_eq!(tree_at(&source, &keystore), expected);
    support::audit::audit_volume(&open_at(&copies[1], &keystore));
}

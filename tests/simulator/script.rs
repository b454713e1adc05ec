//! A scripted scenario with every kind of operation. Every step is durable when it returns.
//!
//! So after a crash the views are those before or after the interrupted step, each of them intact;
//! everything that this step does not touch is unchanged; and an atomic step has happened
//! completely or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use bilayer::errno::Errno;
use bilayer::fs::FsError;
use bilayer::fs::snapshots::{ViewError, ViewKind};
use bilayer::fs::types::{
    DirentRef, Fallocate, FileKind, Handle, NodeId, RenameFlags, WriteFlags, XattrMode,
};
use bilayer::image::{DeployOptions, NoProgress};
use bilayer::store::{Store, StorePath};

use crate::support::{Mount, PAGE, ROOT, USER, directory_of, pattern};

/// Length of the large file, in bytes.
const LARGE: u64 = 1_200_000;

/// The directory to which the image is deployed.
pub const COPY: &str = "copy";

/// Files with their bytes, directories without, by path.
pub type Tree = BTreeMap<String, Option<Vec<u8>>>;

type Answer = Result<(), Errno>;

/// One step of the script.
pub struct Step {
    pub what: &'static str,
    /// Paths that may be in any state between the two when the step is interrupted; empty if the
    /// step is atomic.
    touches: &'static [&'static str],
    pub act: fn(&Script) -> Answer,
}

/// All paths: the step creates the first files.
const ALL: &[&str] = &["*"];

/// The step that deploys.
pub const DEPLOYMENT: &str = "a volume of the image";

/// The mount on which the steps run.
pub struct Script(pub Mount);

pub const STEPS: &[Step] = &[
    step("directories and files", ALL, |s| {
        s.mkdir("d")?;
        // Long enough to be linked when it is copied, and mostly a hole.
        s.write("d/large", 0, &pattern(1, 0, 30_000))?;
        s.write("d/large", LARGE - 30_000, &pattern(1, 0, 30_000))?;
        s.write("small", 0, b"few bytes")?;
        s.write("gone", 0, &pattern(2, 0, 20_000))
    }),
    step("a snapshot", &[], |s| s.keep("one")),
    step("writing over", &["d/large"], |s| {
        s.write("d/large", 5_000, &pattern(3, 0, 3 * PAGE))?;
        s.write("d/large", LARGE - 100, &pattern(3, 0, 200))
    }),
    step("a small file", &["small"], |s| s.write("small", 4, b"more")),
    step("attributes", &[], |s| {
        let node = s.at("small")?;
        let any = XattrMode::Any;
        s.0.fs
            .set_xattr(&USER, node, b"user.one", &pattern(9, 0, 300), any)?;
        s.fsync_dir()
    }),
    step("another link", &["small too"], |s| {
        s.0.fs.link(s.at("small")?, ROOT, b"small too")?;
        s.fsync_dir()
    }),
    step("a removal", &["gone"], |s| {
        s.0.fs.unlink(ROOT, b"gone")?;
        s.sync()
    }),
    step("one file over another", &["new"], |s| {
        s.put("new", 0, &pattern(7, 0, 9_000))?;
        s.rename("new", "small too")?;
        s.fsync_dir()
    }),
    step("a clone", &["clone"], |s| {
        s.write("clone", 0, b"")?;
        let (from, to) = (s.at("d/large")?, s.at("clone")?);
        // An error that stops the copy half-way is reported by the next call.
        let mut done = 0;
        while done < LARGE {
            done += s.0.fs.copy_file_range(from, done, to, done, LARGE - done)?;
        }
        s.sync()
    }),
    step("writing to what was cloned", &["d/large"], |s| {
        s.write("d/large", 2_000, &pattern(8, 0, 9_000))
    }),
    step("another snapshot", &[], |s| s.keep("two")),
    step("a truncation", &["d/large"], |s| {
        s.0.truncate(s.at("d/large")?, 30_000)?;
        s.sync()
    }),
    step("emptying and rewriting", &["clone"], |s| {
        s.0.truncate(s.at("clone")?, 0)?;
        s.write("clone", 0, &pattern(4, 0, 40_000))
    }),
    step("a hole", &["clone"], |s| {
        s.change("clone", |fs, node, handle| {
            fs.fallocate(node, handle, 5_000, 20_000, Fallocate::PunchHole)
        })
    }),
    step("a reservation", &["clone"], |s| {
        s.change("clone", |fs, node, handle| {
            let mode = Fallocate::Allocate { keep_size: false };
            fs.fallocate(node, handle, 0, 60_000, mode)
        })
    }),
    step("an image of the snapshot", &[], |s| {
        s.image("image", Some("one"))
    }),
    step(DEPLOYMENT, &[], |s| s.deploy("image")),
    step("a checkpoint", &[], |s| {
        let made = s.0.fs.checkpoint_now();
        made.map(|_| ()).map_err(|_| Errno::EIO)
    }),
    step("deleting the older snapshot", &[], |s| {
        s.drop(ViewKind::Snapshot, "one")
    }),
    step("purging the older snapshot", &[], Script::purge),
    step("more writing", &["d/large"], |s| {
        s.write("d/large", 20_000, &pattern(4, 0, 40_000))
    }),
    step("a tick of the timer", &[], Script::run_maintenance),
    step("another name", &[], |s| {
        let renamed = s.0.fs.rename_view(ViewKind::Snapshot, "two", "three");
        renamed.map_err(|error| error.errno())
    }),
    step("restoring the whole volume", &[], |s| {
        s.restore("three", None)
    }),
    step("moving", &["small", "d/moved"], |s| {
        s.rename("small", "d/moved")?;
        s.sync()
    }),
    step("writing after that", &["d/large"], |s| {
        s.write("d/large", 9_000, &pattern(5, 0, 9_000))
    }),
    step("restoring one file", &[], |s| {
        s.restore("three", Some("d/large"))
    }),
    step("restoring a directory", &[], |s| {
        s.restore("three", Some("d"))
    }),
    step("an image of now", &[], |s| s.image("now", None)),
    step("deleting the image", &[], |s| {
        s.drop(ViewKind::Image, "image")
    }),
    step("purging the image", &[], Script::purge),
    step("the last writing", &["d/large"], |s| {
        s.write("d/large", 0, &pattern(6, 0, 50_000))
    }),
    step("deleting the last snapshot", &[], |s| {
        s.drop(ViewKind::Snapshot, "three")
    }),
    step("purging the last snapshot", &[], Script::purge),
    step("deleting the last image", &[], |s| {
        s.drop(ViewKind::Image, "now")
    }),
    step("purging everything", &[], Script::purge),
];

const fn step(
    what: &'static str,
    touches: &'static [&'static str],
    act: fn(&Script) -> Answer,
) -> Step {
    Step { what, touches, act }
}

fn of_view(error: &ViewError) -> Errno {
    error.errno()
}

fn of_fs(error: &FsError) -> Errno {
    error.errno()
}

impl Script {
    fn lookup(&self, parent: NodeId, name: &str) -> Result<NodeId, Errno> {
        self.0.lookup(parent, name.as_bytes()).map(|attr| attr.node)
    }

    fn at(&self, path: &str) -> Result<NodeId, Errno> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        parts.try_fold(ROOT, |node, name| self.lookup(node, name))
    }

    /// The directory and the name of a path.
    fn place<'a>(&self, path: &'a str) -> Result<(NodeId, &'a str), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.at(parent)?, name))
    }

    fn sync(&self) -> Answer {
        self.0.fs.sync().map_err(|error| of_fs(&error))
    }

    fn run_maintenance(&self) -> Answer {
        self.0.fs.run_maintenance().map_err(|error| of_fs(&error))
    }

    fn fsync_dir(&self) -> Answer {
        let handle = self.0.fs.open_dir(ROOT)?;
        let done = self.0.fs.fsync_dir();
        self.0.fs.release_dir(ROOT, handle);
        done
    }

    fn mkdir(&self, name: &str) -> Answer {
        let made = self.0.fs.mkdir(&USER, ROOT, name.as_bytes(), 0o755)?;
        self.0.fs.forget(made.node, 1);
        self.sync()
    }

    fn rename(&self, from: &str, to: &str) -> Answer {
        let (from, to) = (self.place(from)?, self.place(to)?);
        let (name, new_name) = (from.1.as_bytes(), to.1.as_bytes());
        let flags = RenameFlags::default();
        self.0.fs.rename(
            &USER,
            DirentRef::new(from.0, name),
            DirentRef::new(to.0, new_name),
            flags,
        )
    }

    /// Does something with an open file, which is created if missing.
    fn open<T>(
        &self,
        path: &str,
        action: impl FnOnce(NodeId, Handle) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let fs = &self.0.fs;
        let (parent, name) = self.place(path)?;
        let (node, handle) = match self.lookup(parent, name) {
            Ok(node) => (node, fs.open_file(&USER, node, libc::O_RDWR)?),
            Err(Errno::ENOENT) => {
                let made = fs.create(&USER, parent, name.as_bytes(), 0o644, libc::O_RDWR)?;
                fs.forget(made.0.node, 1);
                (made.0.node, made.1)
            }
            Err(error) => return Err(error),
        };
        let done = action(node, handle);
        fs.release(node, handle);
        done
    }

    /// Writes, durably.
    pub fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Answer {
        self.open(path, |node, handle| {
            self.0
                .fs
                .write(node, handle, offset, bytes, WriteFlags::default())?;
            self.0.fs.fsync(node, handle, true)
        })
    }

    /// Writes.
    fn put(&self, path: &str, offset: u64, bytes: &[u8]) -> Answer {
        self.open(path, |node, handle| {
            let written = self
                .0
                .fs
                .write(node, handle, offset, bytes, WriteFlags::default());
            written.map(|_| ())
        })
    }

    fn change(
        &self,
        path: &str,
        action: impl FnOnce(&bilayer::fs::Filesystem, NodeId, Handle) -> Answer,
    ) -> Answer {
        self.open(path, |node, handle| {
            action(&self.0.fs, node, handle)?;
            self.0.fs.fsync(node, handle, false)
        })?;
        self.sync()
    }

    fn keep(&self, name: &str) -> Answer {
        let made = self.0.fs.create_view(ViewKind::Snapshot, name, None, "");
        made.map(|_| ()).map_err(|error| of_view(&error))
    }

    fn image(&self, name: &str, from: Option<&str>) -> Answer {
        let fs = &self.0.fs;
        let made = fs.create_view(ViewKind::Image, name, from, "of many");
        made.map(|_| ()).map_err(|error| of_view(&error))
    }

    /// Creates a volume from an image, and replaces the remains of an earlier attempt.
    pub fn deploy(&self, image: &str) -> Answer {
        let (store, at) = (&self.0.store, StorePath::new(COPY));
        let made = store.create_dir(&at);
        let made = made.and_then(|()| store.sync_dir(&StorePath::root()));
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|error| Errno::from_backing(&error))?,
        }
        let options = DeployOptions {
            keystore: self.0.keystore.path().join("platform"),
            ..DeployOptions::default()
        };
        let fs = &self.0.fs;
        let deployed = fs.deploy_image(image, directory_of(store, &at), &options, &NoProgress);
        deployed.map(|_| ()).map_err(|error| of_view(&error))
    }

    fn drop(&self, kind: ViewKind, name: &str) -> Answer {
        let gone = self.0.fs.delete_view(kind, name);
        gone.map_err(|error| of_view(&error))
    }

    fn restore(&self, name: &str, path: Option<&str>) -> Answer {
        let done = self.0.fs.restore(name, path.map(Path::new));
        done.map_err(|error| of_view(&error))
    }

    fn purge(&self) -> Answer {
        self.0.fs.finish_purge().map_err(|error| of_fs(&error))
    }
}

/// The state after a step.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub live: Tree,
    pub views: BTreeMap<String, Tree>,
}

impl State {
    pub fn of(mount: &Mount) -> Self {
        let mut views = BTreeMap::new();
        for (kind, directory) in [
            (ViewKind::Snapshot, ".snapshots"),
            (ViewKind::Image, ".images"),
        ] {
            for view in mount.fs.views(kind).unwrap() {
                let path = format!("{directory}/{}", view.name);
                let tree = tree(mount, mount.at(&path));
                views.insert(path, tree);
            }
        }
        Self {
            live: tree(mount, ROOT),
            views,
        }
    }

    /// Names of the files in a state, for messages.
    fn names(&self) -> String {
        let sizes = |tree: &Tree| -> Vec<String> {
            let each = tree.iter();
            each.map(|(path, bytes)| format!("{path} {:?}", bytes.as_ref().map(Vec::len)))
                .collect()
        };
        let views = self.views.iter();
        let views: Vec<_> = views.map(|(name, tree)| (name, sizes(tree))).collect();
        format!("{:?} {views:?}", sizes(&self.live))
    }
}

pub fn tree(mount: &Mount, top: NodeId) -> Tree {
    let mut tree = Tree::new();
    let mut queue = vec![(top, String::new())];
    while let Some((node, path)) = queue.pop() {
        for name in mount.names(node) {
            let attr = mount.lookup(node, name.as_bytes()).unwrap();
            let path = format!("{path}/{name}").trim_start_matches('/').to_owned();
            if attr.kind == FileKind::Directory {
                queue.push((attr.node, path.clone()));
                tree.insert(path, None);
            } else {
                tree.insert(path, Some(mount.contents(attr.node)));
            }
        }
    }
    tree
}

/// Compares with the states before and after the interrupted step.
pub fn check(what: &str, step: &Step, actual: &State, (before, after): (&State, &State)) {
    let describe = || {
        let (actual, before, after) = (actual.names(), before.names(), after.names());
        format!("{what}: actual {actual}\nbefore {before}\nafter {after}")
    };
    let views = [&before.views, &after.views].contains(&&actual.views);
    assert!(views, "views: {}", describe());
    if step.touches == ALL {
        return;
    }
    let others = |tree: &Tree| {
        let mut tree = tree.clone();
        tree.retain(|path, _| !step.touches.contains(&path.as_str()));
        tree
    };
    let live = others(&actual.live);
    let same = [&before.live, &after.live].map(others).contains(&live);
    assert!(same, "neither the one nor the other: {}", describe());
}

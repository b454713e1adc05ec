//! A scripted life of snapshots and images, with the end at every call of the store.
//!
//! Every step is durable when it returns. So after the end the views are those before or after the
//! step that it met, each of them whole; everything that this step does not touch is as it was; and a
//! restore has happened or not. When all views have gone, nothing is left of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bilayer::errno::Errno;
use bilayer::fs::FsError;
use bilayer::fs::types::{FileKind, NodeId, RenameFlags};
use bilayer::fs::views::{ViewError, ViewKind};

use crate::support::{Mount, PAGE, ROOT, USER, pattern, quiet};

/// Length of the large file, in bytes.
const LARGE: u64 = 1_200_000;

/// Files with their bytes, directories without, by path.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

type Answer = Result<(), Errno>;

/// One step of the script.
struct Step {
    what: &'static str,
    /// The one file that may be anything between its two states when the step is cut off; empty where
    /// the whole step happens or does not.
    touches: &'static str,
    act: fn(&Script) -> Answer,
}

/// What the steps are done to.
struct Script(Mount);

const STEPS: &[Step] = &[
    step("directories and files", "*", |s| {
        s.mkdir("d")?;
        // Long enough to be linked when it is copied, and mostly a hole.
        s.write("d/large", 0, &pattern(1, 0, 30_000))?;
        s.write("d/large", LARGE - 30_000, &pattern(1, 0, 30_000))?;
        s.write("small", 0, b"few bytes")?;
        s.write("gone", 0, &pattern(2, 0, 20_000))
    }),
    step("a snapshot", "", |s| s.keep("one")),
    step("writing over", "d/large", |s| {
        s.write("d/large", 5_000, &pattern(3, 0, 3 * PAGE))?;
        s.write("d/large", LARGE - 100, &pattern(3, 0, 200))
    }),
    step("a small file", "small", |s| s.write("small", 4, b"more")),
    step("a removal", "gone", |s| {
        s.0.fs.unlink(ROOT, b"gone")?;
        s.sync()
    }),
    step("another snapshot", "", |s| s.keep("two")),
    step("cutting off", "d/large", |s| {
        s.0.truncate(s.at("d/large")?, 30_000)?;
        s.sync()
    }),
    step("an image of the snapshot", "", |s| {
        s.image("image", Some("one"))
    }),
    step("the older snapshot goes", "", |s| {
        s.drop(ViewKind::Snapshot, "one")
    }),
    step("what it held", "", Script::purge),
    step("writing on", "d/large", |s| {
        s.write("d/large", 20_000, &pattern(4, 0, 40_000))
    }),
    step("another name", "", |s| {
        let renamed = s.0.fs.rename_view(ViewKind::Snapshot, "two", "three");
        renamed.map_err(|error| error.errno())
    }),
    step("all goes back", "", |s| s.restore("three", None)),
    step("moving", "*", |s| {
        let flags = RenameFlags::default();
        s.0.fs
            .rename(&USER, ROOT, b"small", s.at("d")?, b"moved", flags)?;
        s.sync()
    }),
    step("writing after that", "d/large", |s| {
        s.write("d/large", 9_000, &pattern(5, 0, 9_000))
    }),
    step("one file goes back", "", |s| {
        s.restore("three", Some("d/large"))
    }),
    step("a directory goes back", "", |s| {
        s.restore("three", Some("d"))
    }),
    step("an image of now", "", |s| s.image("now", None)),
    step("the image goes", "", |s| s.drop(ViewKind::Image, "image")),
    step("what the image held", "", Script::purge),
    step("the last writing", "d/large", |s| {
        s.write("d/large", 0, &pattern(6, 0, 50_000))
    }),
    step("the last snapshot goes", "", |s| {
        s.drop(ViewKind::Snapshot, "three")
    }),
    step("what that held", "", Script::purge),
    step("the last image goes", "", |s| {
        s.drop(ViewKind::Image, "now")
    }),
    step("what all held", "", Script::purge),
];

const fn step(what: &'static str, touches: &'static str, act: fn(&Script) -> Answer) -> Step {
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

    fn sync(&self) -> Answer {
        self.0.fs.sync().map_err(|error| of_fs(&error))
    }

    fn mkdir(&self, name: &str) -> Answer {
        let made = self.0.fs.mkdir(&USER, ROOT, name.as_bytes(), 0o755)?;
        self.0.fs.forget(made.node, 1);
        self.sync()
    }

    /// Writes, and makes the file first where it is not there.
    fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Answer {
        let fs = &self.0.fs;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.at(parent)?;
        let (node, handle) = match self.lookup(parent, name) {
            Ok(node) => (node, fs.open_file(&USER, node, libc::O_RDWR)?),
            Err(Errno::ENOENT) => {
                let made = fs.create(&USER, parent, name.as_bytes(), 0o644, libc::O_RDWR)?;
                fs.forget(made.0.node, 1);
                (made.0.node, made.1)
            }
            Err(error) => return Err(error),
        };
        let done = fs.write(node, handle, offset, bytes, false, false);
        let done = done.and_then(|_| fs.fsync(node, handle, false));
        fs.release(node, handle);
        done
    }

    fn keep(&self, name: &str) -> Answer {
        let made = self.0.fs.create_view(ViewKind::Snapshot, name, None, "");
        made.map(|_| ()).map_err(|error| of_view(&error))
    }

    fn image(&self, name: &str, from: Option<&str>) -> Answer {
        let made = self
            .0
            .fs
            .create_view(ViewKind::Image, name, from, "of many");
        made.map(|_| ()).map_err(|error| of_view(&error))
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

/// What there is after a step.
#[derive(Clone, PartialEq, Eq)]
struct State {
    live: Tree,
    views: BTreeMap<String, Tree>,
}

impl State {
    fn of(mount: &Mount) -> Self {
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

    /// Names of what there is, for messages.
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

fn tree(mount: &Mount, top: NodeId) -> Tree {
    let mut found = Tree::new();
    let mut queue = vec![(top, String::new())];
    while let Some((node, path)) = queue.pop() {
        for name in mount.names(node) {
            let attr = mount.lookup(node, name.as_bytes()).unwrap();
            let path = format!("{path}/{name}").trim_start_matches('/').to_owned();
            if attr.kind == FileKind::Directory {
                queue.push((attr.node, path.clone()));
                found.insert(path, None);
            } else {
                found.insert(path, Some(mount.contents(attr.node)));
            }
        }
    }
    found
}

/// The state that must be found after the end in the step between the two.
fn check(what: &str, step: &Step, found: &State, (before, after): (&State, &State)) {
    let told = || {
        let (found, before, after) = (found.names(), before.names(), after.names());
        format!("{what}: found {found}\nbefore {before}\nafter {after}")
    };
    let views = [&before.views, &after.views].contains(&&found.views);
    assert!(views, "views: {}", told());
    match step.touches {
        "" => {
            let live = [&before.live, &after.live].contains(&&found.live);
            assert!(live, "neither the one nor the other: {}", told());
        }
        "*" => {}
        touched => {
            let others = |tree: &Tree| {
                let mut tree = tree.clone();
                tree.remove(touched);
                tree
            };
            let same = others(&found.live) == others(&before.live);
            assert!(same, "what was not touched: {}", told());
        }
    }
}

/// All states of a life without an end.
fn states() -> Vec<State> {
    let script = Script(Mount::with(None, quiet()));
    let mut states = vec![State::of(&script.0)];
    for step in STEPS {
        let done = (step.act)(&script);
        assert_eq!(done, Ok(()), "{}", step.what);
        states.push(State::of(&script.0));
    }
    script.0.finish();
    states
}

/// A life that ends at a call, and what comes after it. False when it ended by itself before.
fn live(call: u64, states: &[State]) -> bool {
    let script = Script(Mount::with(None, quiet()));
    let store = script.0.store.clone();
    store.cut_at_call(store.calls() + call);
    let failed = STEPS.iter().position(|step| {
        let done = (step.act)(&script);
        assert!(done.is_ok() || store.is_cut(), "{}: {done:?}", step.what);
        done.is_err()
    });
    let Some(at) = failed else {
        // What the background does after the last step is cut off now and then.
        return store.is_cut();
    };
    let step = &STEPS[at];
    let what = format!("call {call}, in {:?}", step.what);
    let mount = after(call, script.0);
    let found = State::of(&mount);
    check(&what, step, &found, (&states[at], &states[at + 1]));
    let mount = mount.reopen();
    assert!(State::of(&mount) == found, "{what}: once more");
    for kind in [ViewKind::Snapshot, ViewKind::Image] {
        for view in mount.fs.views(kind).unwrap() {
            mount.fs.delete_view(kind, &view.name).unwrap();
        }
    }
    mount.fs.finish_purge().unwrap();
    assert!(tree(&mount, ROOT) == found.live, "{what}: after all views");
    mount.finish();
    true
}

fn after(call: u64, mount: Mount) -> Mount {
    if call.is_multiple_of(3) {
        return mount.kill();
    }
    let survivor = mount.store.power_cut(call);
    let _ = mount.fs.close();
    let (keystore, options) = (Arc::clone(&mount.keystore), mount.options.clone());
    drop(mount);
    Mount::open(survivor, keystore, options).unwrap_or_else(|error| panic!("call {call}: {error}"))
}

/// Lives at a time.
const LANES: u64 = 2;

#[test]
fn the_end_at_every_call() {
    let states = states();
    let lane = |first: u64| {
        let states = &states;
        move || {
            let mut call = first;
            while live(call, states) {
                call += LANES;
            }
            call
        }
    };
    let calls = std::thread::scope(|scope| {
        let lanes: Vec<_> = (1..=LANES).map(|first| scope.spawn(lane(first))).collect();
        let ends = lanes.into_iter().map(|lane| lane.join().unwrap());
        ends.min().unwrap()
    });
    eprintln!("{calls} calls");
    assert!(calls > 200, "the script does something");
}

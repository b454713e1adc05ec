//! git: many small files, hard links, renames over existing files, packs read by mmap.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::real::{Place, wait_until};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, bash, equipped, script};

/// Without the configuration of the user and the system.
const SETUP: &str = "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
    export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org
    export GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
    clean() { [ -z \"$(git -C \"$1\" status --porcelain)\" ]; }
    whole() { git -C \"$1\" fsck --full --strict --no-dangling; }
";

const HISTORY: &str = "git init -q -b main repository; cd repository
    for commit in $(seq 12); do
        mkdir -p dir$((commit % 5))/deeper
        for n in $(seq 30); do
            seq $commit $((commit * n)) > dir$((commit % 5))/deeper/file-$commit-$n
        done
        echo $commit >> everywhere
        git add .; git commit -q -m \"number $commit\"
    done
    git checkout -q -b side HEAD~4
    git mv dir1/deeper/file-1-7 moved; echo side >> side; chmod +x side; ln -s side link; git add .
    git commit -q -m side
    git checkout -q main; git merge -q --no-edit side
    git tag -a -m one v1; cd ..
    clean repository; whole repository";

const CLONES: &str = "git clone -q repository linked
    # A local clone's objects are hard links.
    object=$(cd repository; find .git/objects/?? -type f -print -quit)
    [ $(stat -c %h repository/$object) = 2 ]
    git clone -q --no-local repository copied
    git clone -q --bare --no-local repository bare.git
    for clone in linked copied; do
        clean $clone; whole $clone
        diff -r --exclude=.git repository $clone
    done
    git -C repository gc -q --aggressive --prune=now
    whole repository; whole linked
    git -C linked repack -q -a -d -f; git -C linked prune; whole linked
    # Back and forth between branches, and a second working tree.
    for branch in side main v1~6 side main; do
        git -C repository checkout -q $branch; clean repository
    done
    git -C repository worktree add -q ../worktree side
    clean worktree; echo more >> worktree/side; git -C worktree commit -q -a -m more
    git -C worktree push -q ../bare.git side
    git -C copied fetch -q ../bare.git side; git -C copied merge -q --no-edit FETCH_HEAD
    grep -q more copied/side; whole bare.git
    git -C repository stash list; echo changed >> repository/everywhere
    git -C repository stash -q; clean repository; git -C repository stash pop -q
    git -C repository checkout -q everywhere";

/// No file has to be read again: the index has the inode numbers and the times to the nanosecond.
const AFTER: &str = "for tree in repository linked copied worktree; do
        git -C $tree diff-files --quiet
        clean $tree; whole $tree
    done
    [ $(git -C repository rev-list --count main) = 14 ]
    git -C repository worktree remove worktree; [ ! -e worktree ]
    rm -r repository linked copied bare.git; [ -z \"$(ls)\" ]";

#[test]
fn git_keeps_a_history() {
    let test = "git";
    if !equipped(test, &[("git", "git"), ("diff", "diffutils")]) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    for text in [HISTORY, CLONES] {
        script(&place, mounted.dir(), &format!("{SETUP}{text}"));
    }
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    script(&place, mounted.dir(), &format!("{SETUP}{AFTER}"));
    mounted.unmount();
}

/// Commits until it fails, and prints each commit.
const COMMITS: &str = "[ -d durable ] || git init -q -b main durable; cd durable
    git config core.fsync all; git config gc.auto 0
    for n in $(seq 1000); do
        { date +%N; seq $n; } > file-$((n % 20)); git add .; git commit -q -m $n
        git rev-parse HEAD >> ../../said
    done";

/// git syncs its files and no directories: the last file that it synced has everything before it,
/// and only the last rename of the reference may be missing.
const WHOLE: &str = "cd durable
    whole .
    head -n -1 ../../said | while read -r commit; do git merge-base --is-ancestor $commit main; done
    rm -f .git/*.lock .git/refs/heads/*.lock
    git reset -q --hard; git diff --quiet HEAD";

#[test]
fn commits_survive_a_killed_daemon() {
    let test = "git-daemon";
    if !equipped(test, &[("git", "git")]) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mut mounted = place.fresh("", "");
    for round in 1..=3 {
        let said = place.path("said");
        fs::write(&said, "").unwrap();
        let mut commits = bash(&place, mounted.dir(), &format!("{SETUP}{COMMITS}"));
        commits.stdout(Stdio::null()).stderr(Stdio::null());
        let mut commits = commits.spawn().unwrap();
        let enough = || fs::read_to_string(&said).unwrap().lines().count() >= 5 * round;
        let began = wait_until(SCRIPT_LIMIT, enough);
        std::thread::sleep(Duration::from_millis(10 * round as u64));
        mounted.kill();
        assert!(!commits.wait().unwrap().success());
        mounted.take_away();
        assert!(began, "git does not commit");
        mounted = place.mount("vol", "mnt", "");
        script(&place, mounted.dir(), &format!("{SETUP}{WHOLE}"));
    }
    mounted.unmount();
}

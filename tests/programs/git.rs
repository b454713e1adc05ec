//! git: many small files, hard links, renames over what is there, packs read by mmap.

use crate::real::Place;
use crate::script::{TEST_LIMIT, equipped, script};

/// Nothing of the user's or the system's configuration has a say.
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

/// Nothing has to be read again: the index has the inode numbers and the times to the nanosecond.
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

//! Small tools: move, find, du, locks, watches.

use crate::real::Place;
use crate::script::{TEST_LIMIT, equipped, script};

const MOVES: &str = "mkdir -p ../disk/tree/a/b; cd ../disk/tree
    for n in $(seq 100); do seq $n > a/b/$n; done
    ln a/b/1 a/linked; ln -s b/2 a/symbolic; mkfifo a/fifo; touch -d 1999-12-31 a/b/3
    list() { find . -printf '%p %y %m %U %G %n %s %T@ %l\\n' | grep -v ' d ' | sort; }
    list > ../before
    # From one filesystem to another by copying, within one by renaming, and back.
    mv ../tree \"$OLDPWD/moved\"; cd \"$OLDPWD\"
    inode=$(stat -c %i moved/a/b/1); mv moved renamed; [ $(stat -c %i renamed/a/b/1) = $inode ]
    (cd renamed; list | diff ../../disk/before -)
    mv renamed ../disk/tree; (cd ../disk/tree; list | diff ../before -)
    [ -z \"$(ls -A)\" ]";

const COUNTS: &str = "mkdir -p counted/{a,b,c}/{1,2,3}; cd counted
    for dir in */*; do head -c 100000 /dev/urandom > $dir/file; done
    [ $(find . -type f | wc -l) = 9 ]; [ $(find . -type d | wc -l) = 13 ]
    # Not only the types of names: find(1) also relies on link counts and -xdev.
    [ $(find . -xdev -mindepth 2 -maxdepth 2 -type d -links 2 | wc -l) = 9 ]
    # 900 kB and the directories; a file with several names counts once.
    kilobytes() { du -sk --apparent-size . | cut -f1; }
    before=$(kilobytes); [ $before -ge 878 ]; [ $before -lt 1000 ]
    ln a/1/file again; [ $(kilobytes) = $before ]
    [ $(du -sk . | cut -f1) -ge 878 ]
    touch -d '1 day ago' a/1/file; [ $(find . -type f -mtime 0 | wc -l) = 8 ]
    touch marker; touch -r marker same; [ -z \"$(find same -newer marker)\" ]
    find . -name file -delete; [ $(find . -type f | wc -l) = 3 ]
    seq 100000 > numbers; sort -R numbers | sort -n -S 200k -T . | cmp - numbers
    split -l 7 -a 4 numbers part-; cat part-* | cmp - numbers; rm part-*
    df -P . | tail -1 | grep -q /mnt$; stat -f . > /dev/null";

const HOLES: &str = "head -c 3000000 /dev/urandom > random
    { cat random; head -c 20000000 /dev/zero; cat random; } > full
    used() { du -k $1 | cut -f1; }
    [ $(used full) -gt 25000 ]
    cp --sparse=always full sparse; cp -a sparse copied; cp --reflink=auto sparse linked
    dd if=full of=written bs=64k conv=sparse,notrunc status=none; truncate -s 26000000 written
    dd if=full of=past bs=1M oflag=direct iflag=direct status=none
    for file in sparse copied linked written past; do cmp full $file; done
    for file in sparse copied written; do [ $(used $file) -lt 7000 ]; done
    fallocate --dig-holes full; cmp full sparse; [ $(used full) -lt 7000 ]
    fallocate --punch-hole --offset 1000 --length 2998000 sparse
    [ $(tail -c +1001 sparse | head -c 2998000 | tr -d '\\0' | wc -c) = 0 ]
    cmp -n 1000 sparse full; cmp -i 2999000 sparse full; [ $(used sparse) -lt 4000 ]
    fallocate --length 1M allocated; [ $(stat -c %s allocated) = 1048576 ]
    fallocate --keep-size --length 2M allocated; [ $(stat -c %s allocated) = 1048576 ]
    cmp allocated <(head -c 1048576 /dev/zero)
    shred --size=100000 random; not cmp -s -n 100000 random full";

const LOCKS: &str = "exec 3> locked; flock -n 3
    code=0; flock -n locked true || code=$?; [ $code = 1 ]
    flock -u 3; flock -n locked true
    flock -s 3; flock -n -s locked true
    code=0; flock -n -x locked true || code=$?; [ $code = 1 ]
    exec 3>&-
    echo 0 > sum
    for n in $(seq 4); do
        (for m in $(seq 10); do
            flock locked bash -c 'echo $(($(cat sum) + 1)) > sum'
        done) &
    done
    wait; [ $(cat sum) = 40 ]";

const WATCHES: &str = "mkdir watched; touch seen
    inotifywait -q -m -e create,modify,delete,moved_to,attrib --format '%e %f' watched \
    > seen 2> started &
    watcher=$!
    trap 'kill $watcher' EXIT
    # It is watching once it sees something.
    until grep -q CREATE seen; do touch watched/first; rm watched/first; sleep 0.05; done
    echo x > watched/a; chmod 600 watched/a; mv watched/a watched/b; rm watched/b
    until grep -q 'DELETE b' seen; do sleep 0.05; done
    grep -q 'CREATE a' seen; grep -q 'MODIFY a' seen; grep -q 'ATTRIB a' seen
    grep -q 'MOVED_TO b' seen
    # tail follows the data that another process appends.
    echo first > growing
    timeout 60 tail -n +1 -f growing > followed &
    follower=$!
    trap 'kill $watcher $follower' EXIT
    for n in $(seq 5); do echo $n >> growing; sleep 0.02; done
    until grep -qx 5 followed; do sleep 0.05; done
    [ $(cat followed | tr '\\n' ' ' | tr -d ' ') = first12345 ]";

fn tool(test: &'static str, programs: &[(&str, &str)], text: &str) {
    if !equipped(test, programs) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    script(&place, mounted.dir(), text);
    mounted.unmount();
}

#[test]
fn mv_from_one_filesystem_to_another() {
    tool("mv", &[("find", "findutils"), ("diff", "diffutils")], MOVES);
}

#[test]
fn find_du_sort_and_split() {
    tool(
        "find",
        &[("find", "findutils"), ("sort", "coreutils")],
        COUNTS,
    );
}

#[test]
fn holes_are_kept_made_and_filled() {
    tool(
        "holes",
        &[("fallocate", "util-linux"), ("cmp", "diffutils")],
        HOLES,
    );
}

#[test]
fn flock_excludes() {
    tool("flock", &[("flock", "util-linux")], LOCKS);
}

#[test]
fn inotify_sees_changes() {
    tool("inotify", &[("inotifywait", "inotify-tools")], WATCHES);
}

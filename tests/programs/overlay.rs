//! overlayfs over the mount, as container engines use it.
//!
//! The upper layer needs rename with whiteouts, extended attributes of its own and file types in
//! directory entries, which the mount has. It does not have O_TMPFILE: the kernel logs that and
//! copies files up through the working directory instead.
//!
//! One thing is lost with an upper layer here, as with any FUSE filesystem that clears set-user-id
//! bits and capabilities itself (`FUSE_HANDLE_KILLPRIV_V2`): overlayfs copies a file up by setting
//! its mode and then its owner. It does so within the kernel and without the intention to clear
//! anything, but the request for the owner arrives here as that of any chown(2), which clears them.
//! Files created in the overlay keep theirs.

use std::fs;
use std::process::Command;

use crate::real::{Place, need};
use crate::script::{TEST_LIMIT, equipped, script};

const LOWER: &str = "mkdir -p lower/dir/deep lower/gone lower/empty
    for n in $(seq 50); do echo $n > lower/dir/$n; done
    echo below > lower/file; ln lower/file lower/another; ln -s file lower/link
    setfattr -n user.of.below -v value lower/file
    chown 1:2 lower/dir/1; chmod 755 lower/dir/2; touch -d 2001-02-03 lower/dir/3
    truncate -s 10M lower/large; echo end >> lower/large
    mkfifo lower/fifo; echo x > lower/gone/x\n";

const WORK: &str = "cd merged
    echo above >> file; [ \"$(cat file)\" = $'below\\nabove' ]
    [ $(getfattr --only-values -n user.of.below file) = value ]
    touch -c dir/1 dir/2 dir/3; chmod o+w dir/1
    [ $(stat -c %u:%g dir/1) = 1:2 ]; [ $(stat -c %a dir/2) = 755 ]
    rm dir/4; not stat dir/4 2> /dev/null; rm -r gone; [ $(ls dir | wc -l) = 50 ]
    # A directory that is created again does not show the lower one's entries.
    mkdir gone; [ -z \"$(ls gone)\" ]
    # Names exchanged and moved over each other, with everything below them.
    mv dir/5 dir/6; [ $(cat dir/6) = 5 ]; mv dir/deep moved; rmdir empty
    mv -T moved dir/deep; echo new > dir/deep/new
    echo 1 >> large; [ $(stat -c %s large) = 10485766 ]
    rm link; mkdir link; echo x > link/x
    ln file third; [ $(stat -c %h third) -ge 2 ]
    exec 3> removed; rm removed; echo still there >&3; exec 3>&-
    flock file true; mkfifo another-fifo; cp -a dir copied; diff -r dir copied
    tar -cf all.tar dir; mkdir untarred; tar -xf all.tar -C untarred; diff -r dir untarred/dir";

const SEEN: &str = "cd merged
    [ \"$(cat file)\" = $'below\\nabove' ]; [ $(cat dir/6) = 5 ]; [ ! -e dir/4 ]
    [ ! -e dir/5 ]; [ -z \"$(ls gone)\" ]; [ $(cat link/x) = x ]; [ ! -e empty ]
    [ $(cat dir/deep/new) = new ]; diff -r dir copied; [ $(tail -n 1 large) = 1 ]
    rm -r copied untarred all.tar dir; [ ! -e dir ]";

fn mounting(lower: &str, upper: &str) -> String {
    format!(
        "mount -t overlay overlay \
         -o lowerdir={lower},upperdir={upper}/up,workdir={upper}/work merged\n"
    )
}

fn kernel_has_overlay() -> bool {
    let has =
        || fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("overlay\n"));
    // It may be a module that is loaded by the first mount.
    has() || Command::new("modprobe").arg("overlay").output().is_ok() && has()
}

/// The layers of an overlay on the mount or on the disk.
fn layers(test: &'static str, lower: &str, upper: &str) {
    let programs = [
        ("setfattr", "attr"),
        ("flock", "util-linux"),
        ("diff", "diffutils"),
    ];
    if !equipped(test, &programs)
        || !need(kernel_has_overlay(), test, "no overlayfs: modprobe overlay")
    {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "suid");
    let root = place.path("");
    place.dir("merged");
    let in_upper = |name: &str| place.path(upper).join(name);
    for name in ["up", "work"] {
        fs::create_dir_all(in_upper(name)).unwrap();
    }
    let in_lower = place.path(lower);
    fs::create_dir_all(&in_lower).unwrap();
    script(&place, &in_lower, LOWER);
    let lower = format!("{lower}/lower");
    let before = script(&place, &root, &format!("ls -lRn {lower}")).stdout;
    script(&place, &root, &(mounting(&lower, upper) + WORK));
    script(&place, &root, "umount merged");
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "suid");
    script(&place, &root, &(mounting(&lower, upper) + SEEN));
    script(&place, &root, "umount merged");
    // Removed files are whiteouts in the upper layer; the lower layer is unchanged.
    let text =
        format!("[ \"$(stat -c '%F %t:%T' {upper}/up/dir)\" = 'character special file 0:0' ]");
    script(&place, &root, &text);
    let after = script(&place, &root, &format!("ls -lRn {lower}")).stdout;
    assert_eq!(before, after);
    mounted.unmount();
}

#[test]
fn upper_layer_on_the_mount() {
    layers("overlay-upper", "disk", "mnt");
}

#[test]
fn lower_layer_on_the_mount() {
    layers("overlay-lower", "mnt", "disk");
}

#[test]
fn both_layers_on_the_mount() {
    layers("overlay-both", "mnt", "mnt");
}

//! Disks on the mount: a loop device on a file, with ext4 in it, and a volume inside a volume.

use std::path::Path;

use crate::real::{Place, need};
use crate::script::{TEST_LIMIT, equipped, script};
use crate::trees;

/// The last unmount frees the device. The second device bypasses the page cache.
const MAKE: &str = "truncate -s 64M mnt/image
    mkfs.ext4 -q -F mnt/image
    mount -o loop mnt/image inner
    cp -a /usr/include/linux inner/copy
    for n in $(seq 100); do echo $n > inner/file-$n; done
    sync -f inner
    fstrim inner
    rm inner/file-*
    umount inner
    e2fsck -f -n mnt/image
    device=$(losetup --find --show --direct-io=on mnt/image)
    trap 'losetup --detach $device' EXIT
    mount $device inner
    cp -a /usr/include/linux inner/another
    umount inner
    e2fsck -f -n $device";

const LOOK: &str = "e2fsck -f -n mnt/image
    mount -o loop mnt/image inner
    diff -r /usr/include/linux inner/copy
    diff -r /usr/include/linux inner/another
    [ ! -e inner/file-1 ]
    umount inner
    # Parts of the image that are not used are holes here.
    [ $(du -k mnt/image | cut -f1) -lt $((64 * 1024)) ]";

#[test]
fn an_image_with_a_filesystem_of_its_own() {
    let test = "loop";
    let programs = [("mkfs.ext4", "e2fsprogs"), ("losetup", "util-linux")];
    let loop_devices = Path::new("/dev/loop-control").exists();
    if !equipped(test, &programs)
        || !need(loop_devices, test, "no loop devices: modprobe loop")
        || !need(
            Path::new("/usr/include/linux").exists(),
            test,
            "no headers to copy; install linux-libc-dev",
        )
    {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let root = place.path("");
    place.dir("inner");
    script(&place, &root, MAKE);
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    script(&place, &root, LOOK);
    mounted.unmount();
}

#[test]
fn a_volume_in_a_volume() {
    let test = "nested";
    if !equipped(test, &[("rsync", "rsync")]) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let source = place.path("source");
    trees::make(&source);
    let outer = place.fresh("", "");
    place.run("create mnt/vol").done();
    let copy = "rsync -aHAX --modify-window=-1 --inplace source/ inner/there";
    let inner = place.mount("mnt/vol", "inner", "dev,suid");
    script(&place, &place.path(""), copy);
    trees::assert_same(&place, &source, &inner.path("there"));
    inner.unmount();
    outer.unmount();
    let outer = place.mount("vol", "mnt", "");
    let inner = place.mount("mnt/vol", "inner", "dev,suid");
    trees::assert_same(&place, &source, &inner.path("there"));
    inner.unmount();
    outer.unmount();
}

//! Images of disks on the mount: a loop device on a file, with ext4 in it.

use crate::real::Place;
use crate::script::{TEST_LIMIT, equipped, script};

/// The device goes by itself with the last mount of it.
const MAKE: &str = "truncate -s 64M mnt/image
    mkfs.ext4 -q -F mnt/image
    mount -o loop mnt/image inner
    cp -a /usr/include/linux inner/copy
    for n in $(seq 100); do echo $n > inner/file-$n; done
    sync -f inner
    fstrim inner
    rm inner/file-*
    umount inner
    e2fsck -f -n mnt/image";

const LOOK: &str = "e2fsck -f -n mnt/image
    mount -o loop mnt/image inner
    diff -r /usr/include/linux inner/copy
    [ ! -e inner/file-1 ]
    umount inner
    # What the image does not use is holes here.
    [ $(du -k mnt/image | cut -f1) -lt $((64 * 1024)) ]";

#[test]
fn an_image_with_a_filesystem_of_its_own() {
    let test = "loop";
    let programs = [("mkfs.ext4", "e2fsprogs"), ("losetup", "util-linux")];
    if !equipped(test, &programs) {
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

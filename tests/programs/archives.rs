//! Archives: tar with all attributes and holes, Debian's packages, zip.

use crate::real::Place;
use crate::script::{TEST_LIMIT, equipped, script};
use crate::trees;

#[test]
fn tar_out_of_the_mount_and_into_it() {
    let test = "tar";
    if !equipped(
        test,
        &[("tar", "tar"), ("rsync", "rsync"), ("gzip", "gzip")],
    ) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let source = place.path("source");
    trees::make(&source);
    // tar has no entries for sockets, nor for further names of files that are not regular.
    for name in ["socket", "null again", "fifo again"] {
        std::fs::remove_file(source.join("special").join(name)).unwrap();
    }
    let mounted = place.fresh("", "dev,suid");
    let mut all = "all() { tar --format=posix --xattrs --xattrs-include='*' --acls --sparse \
                   --numeric-owner \"$@\"; }\n"
        .to_owned();
    let functions = all.clone();
    all += "all -C ../source -cf ../archive.tar .
            mkdir one two three
            all -C one -xpf ../archive.tar
            # Out of the mount into an archive on it, and through a pipe.
            all -C one -cf archive.tar .
            all -C two -xpf archive.tar
            all -C two --hole-detection=raw -czf - . | all -C three -xpzf -";
    script(&place, mounted.dir(), &all);
    for name in ["one", "two", "three"] {
        trees::assert_same(&place, &source, &mounted.path(name));
    }
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "dev,suid");
    trees::assert_same(&place, &source, &mounted.path("three"));
    // The sparse file of 30 MB takes a few pages, here and in the archive; tar finds no difference.
    let last = functions
        + "for file in one/sparse two/sparse three/sparse; do
               [ $(stat -c %s $file) = 30000000 ]; [ $(du -k $file | cut -f1) -lt 200 ]
           done
           [ $(stat -c %s archive.tar) -lt 30000000 ]
           all -C three --compare -f archive.tar";
    script(&place, mounted.dir(), &last);
    mounted.unmount();
}

#[test]
fn packages_and_zip_files_are_unpacked() {
    let test = "packages";
    let programs = [
        ("dpkg-deb", "dpkg"),
        ("unzip", "unzip"),
        ("python3", "python3"),
    ];
    if !equipped(test, &programs) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let text = "mkdir -p package/DEBIAN package/usr/bin package/usr/share/doc/example
        printf '%s\n' 'Package: example' 'Version: 1' 'Architecture: all' \
            'Maintainer: Nobody <nobody@example.org>' 'Description: nothing' \
            > package/DEBIAN/control
        printf '#!/bin/sh\necho it runs\n' > package/usr/bin/example
        chmod 4755 package/usr/bin/example
        ln -s ../../../bin/example package/usr/share/doc/example/link
        for n in $(seq 200); do echo $n > package/usr/share/doc/example/$n; done
        dpkg-deb --root-owner-group --build package example.deb
        dpkg-deb --extract example.deb extracted
        diff -r --no-dereference --exclude=DEBIAN package extracted
        [ \"$(extracted/usr/bin/example)\" = 'it runs' ]
        [ $(stat -c %a extracted/usr/bin/example) = 4755 ]
        (cd extracted; python3 -m zipfile -c ../example.zip usr)
        mkdir unzipped; cd unzipped; unzip -q ../example.zip
        cmp usr/share/doc/example/200 ../extracted/usr/share/doc/example/200
        [ $(find . -type f | wc -l) = 202 ]
        cd ..; sed -i 's/Version: 1/Version: 2/' package/DEBIAN/control
        echo changed > package/usr/share/doc/example/200
        dpkg-deb --root-owner-group --build package example-2.deb
        # Installed, upgraded to another version, and removed, in a root of its own.
        mkdir -p root/var/lib/dpkg/{info,updates,triggers}; touch root/var/lib/dpkg/status
        for file in example.deb example-2.deb; do
            dpkg --root=$PWD/root --log=/dev/null --install $file
            diff -r --no-dereference extracted/usr/bin root/usr/bin
        done
        [ $(cat root/usr/share/doc/example/200) = changed ]
        dpkg --root=$PWD/root --log=/dev/null --purge example
        [ ! -e root/usr ]";
    script(&place, mounted.dir(), text);
    mounted.unmount();
}

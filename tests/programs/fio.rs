//! fio writes at random and verifies what it reads: through the page cache, past it, and by mmap.

use crate::real::Place;
use crate::script::{TEST_LIMIT, equipped, script};

/// Each block contains its own checksum and position.
const COMMON: &str = "fio --directory=. --size=4m --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --fallocate=none --output-format=terse --randrepeat=1 --thread";

#[test]
fn fio_reads_what_it_wrote() {
    let test = "fio";
    if !equipped(test, &[("fio", "fio")]) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let jobs = [
        "--name=direct --direct=1 --ioengine=psync --rw=randwrite --bs=4k --numjobs=2",
        "--name=mapped --ioengine=mmap --rw=randwrite --bs=4k --numjobs=2",
        "--name=mixed --ioengine=psync --rw=randrw --bsrange=512-64k --bs_unaligned=1",
        "--name=vectors --ioengine=libaio --iodepth=8 --rw=randwrite --bs=8k --direct=1",
        "--name=synced --ioengine=psync --rw=randwrite --bs=16k --size=1m --fsync=8",
    ];
    for job in jobs {
        script(&place, mounted.dir(), &format!("{COMMON} {job}"));
    }
    mounted.unmount();
    // The data of the last run is verified by itself, from the disk.
    let mounted = place.mount("vol", "mnt", "");
    for job in &jobs[..2] {
        script(
            &place,
            mounted.dir(),
            &format!("{COMMON} {job} --verify_only"),
        );
    }
    mounted.unmount();
}

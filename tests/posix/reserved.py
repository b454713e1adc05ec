"""Space that fallocate reserved, on a volume or a disk that others fill. The second argument is a file
outside the mount with which to fill the disk, or nothing."""

MIB = 1 << 20
LENGTH = 20 * MIB
ballast = sys.argv[2] if len(sys.argv) > 2 else None


def fill(path, piece):
    """Writes until the disk is full; ENOSPC is no error."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(fd, os.urandom(piece))
            os.fsync(fd)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    finally:
        result(os.close, fd)


fd = os.open("reserved", os.O_CREAT | os.O_RDWR)
sparse = os.open("sparse", os.O_CREAT | os.O_RDWR)
os.ftruncate(sparse, LENGTH)
before = os.statvfs(".")
fallocate(fd, 0, 0, LENGTH)
fallocate(sparse, KEEP_SIZE, 3 * MIB, 2 * MIB)
os.fsync(fd)
os.fsync(sparse)
after = os.statvfs(".")
taken = (before.f_bfree - after.f_bfree) * after.f_frsize
assert 22 * MIB <= taken < 26 * MIB, taken
assert abs(os.fstat(fd).st_blocks * 512 - LENGTH) < LENGTH // 40, os.fstat(fd).st_blocks
fill("filler", MIB)
if ballast:
    fill(ballast, MIB)
fill("filler2", 4096)
say("full", result(fallocate, fd, 0, LENGTH, 10 * MIB), os.statvfs(".").f_bavail < 300)

# Through write, with a sync after each piece, out of order and overlapping.
body = bytearray(LENGTH)
pieces = [(number * 7_919_777 % LENGTH, 1 + number * 104_729 % (MIB // 2)) for number in range(60)]
for number, (offset, length) in enumerate(pieces):
    length = min(length, LENGTH - offset)
    data = bytes([number + 1]) * length
    assert os.pwrite(fd, data, offset) == length
    os.fsync(fd)
    body[offset:offset + length] = data
assert os.pread(fd, LENGTH, 0) == body
# All of it through a mapping.
with mmap.mmap(fd, LENGTH) as memory:
    for offset in range(0, LENGTH, 4096):
        memory[offset:offset + 8] = b"mapped%02d" % (offset % 97)
        body[offset:offset + 8] = b"mapped%02d" % (offset % 97)
    memory.flush()
os.fsync(fd)
# Overwriting, and a reservation in the middle of a hole.
for offset in range(0, LENGTH, MIB):
    os.pwrite(fd, b"O" * MIB, offset)
    os.fdatasync(fd)
    body[offset:offset + MIB] = b"O" * MIB
os.pwrite(sparse, b"p" * (2 * MIB), 3 * MIB)
os.fsync(sparse)
direct = os.open("reserved", os.O_WRONLY | os.O_DIRECT)
aligned = mmap.mmap(-1, MIB)
aligned[:] = b"D" * MIB
os.pwrite(direct, aligned, 5 * MIB)
body[5 * MIB:6 * MIB] = b"D" * MIB
os.fsync(direct)
os.close(direct)
assert read("reserved") == body
assert os.pread(sparse, 2 * MIB, 3 * MIB) == b"p" * (2 * MIB)
say("written", result(lambda: (os.pwrite(sparse, b"x" * MIB, 10 * MIB), os.fsync(sparse)) and None))
# Names can be removed on a full volume, and their space comes back.
result(os.close, sparse)
if ballast:
    os.unlink(ballast)
os.unlink("filler")
os.unlink("filler2")
os.close(fd)
fd = os.open(".", os.O_RDONLY)
os.fsync(fd)
for turn in range(100):
    if abs(os.statvfs(".").f_bfree - after.f_bfree) * after.f_frsize < 6 * MIB:
        break
    time.sleep(0.1)
say("back", abs(os.statvfs(".").f_bfree - after.f_bfree) * after.f_frsize < 6 * MIB)
fd = os.open("again", os.O_CREAT | os.O_WRONLY)
os.write(fd, os.urandom(5 * MIB))
os.fsync(fd)
say("and is used")

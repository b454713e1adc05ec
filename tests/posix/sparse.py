PAGE = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
TIB = 1 << 40


def seek(fd, offset, whence):
    return result(os.lseek, fd, offset, whence)


say("# 16 TiB")
fd = os.open("huge", os.O_RDWR | os.O_CREAT)
END = 16 * TIB - 4096 * 2
say(os.pwrite(fd, b"the end", END), os.fstat(fd).st_size, 0 < os.fstat(fd).st_blocks <= 16)
say(os.pread(fd, 10, END), os.pread(fd, 5, 5 * TIB), seek(fd, 0, os.SEEK_DATA) in range(END - 8192, END + 1))
os.fsync(fd)
say(os.pread(fd, 10, END), os.fstat(fd).st_blocks <= 16)
say(os.ftruncate(fd, 15 * TIB), os.fstat(fd).st_size, seek(fd, 0, os.SEEK_DATA))
say(os.ftruncate(fd, END + 7), os.pread(fd, 10, END), seek(fd, 10 * TIB, os.SEEK_HOLE))
say(os.ftruncate(fd, 5 * TIB))
os.close(fd)
say(os.stat("huge").st_blocks)

say("# what is data and what is a hole")
fd = os.open("holes", os.O_RDWR | os.O_CREAT)
say(seek(fd, 0, os.SEEK_DATA), seek(fd, 0, os.SEEK_HOLE))
os.ftruncate(fd, 40 << 20)
say(seek(fd, 0, os.SEEK_DATA), seek(fd, 0, os.SEEK_HOLE), seek(fd, 40 << 20, os.SEEK_HOLE), seek(fd, (40 << 20) - 1, os.SEEK_HOLE))
# Multiples of both page sizes, 4096 on ext4 and 4032 on the mount.
unit = 4096 * 63
for at in (10, 20, 40, 90):
    os.pwrite(fd, b"d" * unit, at * unit)
runs, at = [], 0
while True:
    start = seek(fd, at, os.SEEK_DATA)
    if isinstance(start, str):
        runs.append(start)
        break
    at = seek(fd, start, os.SEEK_HOLE)
    runs.append((start, at))
covered = [((start + 4096) // unit, -((4096 - end) // unit)) for start, end in runs[:-1]]
say(covered, runs[-1], all(a >= s * unit - 4096 and b <= e * unit + 4096 for (a, b), (s, e) in zip(runs[:-1], covered)))
say((seek(fd, 15 * unit, os.SEEK_DATA) + 4096) // unit, seek(fd, 20 * unit + 5, os.SEEK_DATA) == 20 * unit + 5, seek(fd, 11 * unit + 9000, os.SEEK_HOLE) == 11 * unit + 9000)
say(seek(fd, -1, os.SEEK_DATA), seek(fd, 1 << 50, os.SEEK_HOLE))
os.fsync(fd)


def blocks():
    os.fsync(fd)
    return os.fstat(fd).st_blocks * 512


def near(bytes_, expected):
    """True if the allocation differs by at most two pages for each of the four ranges, and 2 % for
    the headers of pages."""
    return abs(bytes_ - expected) <= expected // 50 + 8 * 4096


say(near(blocks(), 4 * unit))
say(result(fallocate, fd, PUNCH | KEEP_SIZE, 20 * unit, unit), near(blocks(), 3 * unit), os.fstat(fd).st_size == 40 << 20)
say(os.pread(fd, 4, 20 * unit), os.pread(fd, 2, 40 * unit - 1))
say(result(fallocate, fd, PUNCH | KEEP_SIZE, 40 * unit + 100, 1000), os.pread(fd, 1200, 40 * unit) == b"d" * 100 + bytes(1000) + b"d" * 100)
say(os.ftruncate(fd, 30 * unit), near(blocks(), unit), os.ftruncate(fd, 10 * unit + 5), near(blocks(), 0))
say(os.ftruncate(fd, 12 * unit), os.pread(fd, 10, 10 * unit), seek(fd, 10 * unit + 4096 * 2, os.SEEK_DATA))
os.close(fd)

say("# fallocate")
SIZE = 3_000_000
fd = os.open("a", os.O_RDWR | os.O_CREAT)


def shape():
    found = os.fstat(fd)
    os.fsync(fd)
    full = near(os.fstat(fd).st_blocks * 512, SIZE)
    return found.st_size, "all" if full else "part" if found.st_blocks > 16 else "none"


say(result(fallocate, fd, KEEP_SIZE, 0, SIZE), shape(), seek(fd, 0, os.SEEK_DATA))
say(result(fallocate, fd, 0, 0, SIZE), shape(), seek(fd, 0, os.SEEK_DATA), seek(fd, 0, os.SEEK_HOLE), os.pread(fd, 3, 1_000_000))
say(os.pwrite(fd, b"d" * 8192, 500_000), shape(), seek(fd, 0, os.SEEK_DATA) in range(490_000, 500_001))
say(result(fallocate, fd, 0, 400_000, 300_000), shape(), os.pread(fd, 10, 500_000))
say(result(fallocate, fd, ZERO, 500_100, 4000), shape(), os.pread(fd, 4200, 500_000) == b"d" * 100 + bytes(4000) + b"d" * 100)
say(result(fallocate, fd, PUNCH | KEEP_SIZE, 0, SIZE), shape())
say(result(fallocate, fd, ZERO, 0, SIZE), shape(), os.pread(fd, 5, 500_000))
say(result(os.ftruncate, fd, 0), shape())
say(result(fallocate, fd, ZERO | KEEP_SIZE, 0, SIZE), shape())
say("truncated to its size, what is behind it goes:", result(os.ftruncate, fd, 0), shape())
say(result(fallocate, fd, KEEP_SIZE, 0, SIZE), result(os.ftruncate, fd, 100), shape()[0], os.fstat(fd).st_blocks <= 16)
for words, flags in (
    ("punch without keep-size", PUNCH), ("unshare", UNSHARE),
    ("punch and zero", PUNCH | ZERO | KEEP_SIZE), ("unknown", 0x200),
):
    say(words, result(fallocate, fd, flags, 1 << 20, 1 << 20))
os.ftruncate(fd, 4 << 20)
say("collapse", result(fallocate, fd, COLLAPSE, 1 << 20, 1 << 20))
say("insert", result(fallocate, fd, INSERT, 1 << 20, 1 << 20))
os.ftruncate(fd, 100)
say(result(fallocate, fd, 0, 0, 0), result(fallocate, fd, 0, -1, 5), result(fallocate, fd, 0, 0, -5), result(fallocate, fd, 0, (1 << 63) - 10, 20))
os.close(fd)
fd = os.open("a", os.O_RDONLY)
say(result(fallocate, fd, 0, 0, 10))
os.close(fd)
os.mkdir("d")
fd = os.open("d", os.O_RDONLY)
say(result(fallocate, fd, 0, 0, 10))
os.close(fd)
os.mkfifo("p")
fd = os.open("p", os.O_RDWR)
say(result(fallocate, fd, 0, 0, 10))
os.close(fd)
say(result(os.posix_fallocate, os.open("b", os.O_RDWR | os.O_CREAT), 0, 100_000), os.stat("b").st_size)
for name in ("a", "b"):
    say(name, "times", changes(name, lambda: fallocate(os.open(name, os.O_RDWR), KEEP_SIZE, 0, 200_000)))
    say(name, "times", changes(name, lambda: fallocate(os.open(name, os.O_RDWR), PUNCH | KEEP_SIZE, 0, 200_000)))

say("# limits")
fd = os.open("limit", os.O_RDWR | os.O_CREAT)
say(result(os.pwrite, fd, b"x", (1 << 63) - 1), result(os.ftruncate, fd, (1 << 63) - 1))
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
say(os.pwrite(fd, b"x" * 100, 9_950), result(os.pwrite, fd, b"x", 10_000), result(os.ftruncate, fd, 10_001), os.fstat(fd).st_size)
say(result(fallocate, fd, 0, 0, 10_001), os.fstat(fd).st_size)

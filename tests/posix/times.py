BILLION = 1_000_000_000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimensat(path, atime, mtime, flags=0):
    pair = (ctypes.c_int64 * 4)(*atime, *mtime)
    return checked(libc.utimensat(AT_FDCWD, os.fsencode(path), pair, flags))


def shown(path):
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


make("f", b"x" * 5000)
say("# what is set is what is read")
# ext4 has 1901-12-13 to 2446-05-10, a mount has more.
SECONDS = [0, 1, -1, -2, -86_400 * 365, 1 - (1 << 31), (1 << 31) - 1, 1 << 31, 1 << 32, 10_000_000_000, 15_032_385_534]
for second in SECONDS + [int(word) for word in sys.argv[2:]]:
    for nanos in (0, 1, 500_000_000, 999_999_999):
        utimensat("f", (second, nanos), (second, BILLION - 1 - nanos))
        say(second, nanos, *shown("f"), shown("f") == (second * BILLION + nanos, second * BILLION + BILLION - 1 - nanos))
os.symlink("f", "l")
utimensat("l", (-2, 500_000_000), (5, 6), 0x100)
say(shown("l"))
os.mkdir("d")
utimensat("d", (7, 8), (-2, 1))
say(shown("d"))

say("# now and as it is")
utimensat("f", (5, 5), (6, 6))
say(changes("f", lambda: utimensat("f", (0, UTIME_NOW), (0, UTIME_OMIT))), shown("f")[1])
utimensat("f", (5, 5), (6, 6))
say(changes("f", lambda: utimensat("f", (0, UTIME_OMIT), (0, UTIME_NOW))), shown("f")[0])
say(changes("f", lambda: utimensat("f", (0, UTIME_OMIT), (0, UTIME_OMIT))))
utimensat("f", (0, UTIME_NOW), (0, UTIME_NOW))
say(abs(shown("f")[0] - time.time_ns()) < 60 * BILLION, abs(shown("f")[0] - shown("f")[1]) < BILLION)
say(result(utimensat, "f", (0, BILLION), (0, 0)), result(utimensat, "f", (0, -1), (0, 0)))
os.chmod("f", 0o666)
say(as_user(4000, 4000, lambda: utimensat("f", (0, UTIME_NOW), (0, UTIME_NOW))))
say(as_user(4000, 4000, lambda: utimensat("f", (1, 1), (1, 1))), as_user(4000, 4000, lambda: utimensat("f", (0, UTIME_OMIT), (0, UTIME_NOW))))
os.chmod("f", 0o644)
say(as_user(4000, 4000, lambda: utimensat("f", (0, UTIME_NOW), (0, UTIME_NOW))))

say("# who moves which time")


def opened(path, flags, function):
    fd = os.open(path, flags)
    try:
        return function(fd)
    finally:
        os.close(fd)


def both(path):
    """Sets old times, so that a read updates the access time."""
    utimensat(path, (1000, 0), (2000, 0))


make("f", b"x" * 5000)
os.mkdir("d/sub")
for words, path, function in (
    ("chmod", "f", lambda: os.chmod("f", 0o600)),
    ("chmod to the same", "f", lambda: os.chmod("f", 0o600)),
    ("chown", "f", lambda: os.chown("f", 1, 1)),
    ("chown to nobody new", "f", lambda: os.chown("f", -1, -1)),
    ("set attribute", "f", lambda: os.setxattr("f", "user.a", b"1")),
    ("read attribute", "f", lambda: os.getxattr("f", "user.a") and None),
    ("remove attribute", "f", lambda: os.removexattr("f", "user.a")),
    ("set list", "f", lambda: subprocess.run(["setfacl", "-m", "u:7:r", "f"], check=True) and None),
    ("remove list", "f", lambda: subprocess.run(["setfacl", "-b", "f"], check=True) and None),
    ("link", "f", lambda: os.link("f", "f2")),
    ("rename", "f2", lambda: os.rename("f2", "f3") or os.rename("f3", "f2")),
    ("unlink", "f", lambda: os.unlink("f2")),
    ("write", "f", lambda: opened("f", os.O_WRONLY, lambda fd: os.write(fd, b"y")) and None),
    ("write nothing", "f", lambda: opened("f", os.O_WRONLY, lambda fd: os.write(fd, b"")) or None),
    ("truncate", "f", lambda: os.truncate("f", 4000)),
    ("truncate to the same", "f", lambda: os.truncate("f", 4000)),
    ("ftruncate to the same", "f", lambda: opened("f", os.O_WRONLY, lambda fd: os.ftruncate(fd, 4000))),
    ("open and truncate", "f", lambda: opened("f", os.O_WRONLY | os.O_TRUNC, lambda fd: None)),
    ("open and truncate what is empty", "f", lambda: opened("f", os.O_WRONLY | os.O_TRUNC, lambda fd: None)),
    ("open", "f", lambda: opened("f", os.O_RDWR, lambda fd: None)),
    ("read nothing", "f", lambda: opened("f", os.O_RDONLY, lambda fd: os.read(fd, 5)) and None),
    ("stat", "f", lambda: os.stat("f") and None),
    ("list", "d", lambda: os.listdir("d") and None),
    ("look up", "d", lambda: os.stat("d/sub") and None),
    ("create in", "d", lambda: make("d/x")),
    ("write in", "d", lambda: opened("d/x", os.O_WRONLY, lambda fd: os.write(fd, b"x")) and None),
    ("unlink in", "d", lambda: os.unlink("d/x")),
    ("mkdir in", "d", lambda: os.mkdir("d/y")),
    ("rmdir in", "d", lambda: os.rmdir("d/y")),
    ("rename in", "d", lambda: os.rename("d/sub", "d/sub2")),
    ("symlink in", "d", lambda: os.symlink("x", "d/l")),
    ("fail in", "d", lambda: result(os.mkdir, "d/sub2") and None),
    ("follow", "l", lambda: os.readlink("l") and None),
):
    both(path) if path in ("f", "d") else None
    say(words, changes(path, function))

say("# through a mapping")
make("m", b"x" * 20_000)
fd = os.open("m", os.O_RDWR)
memory = mmap.mmap(fd, 20_000)
say(changes("m", lambda: memory.__setitem__(slice(0, 3), b"abc") or memory.flush()))
say(changes("m", lambda: memory.flush()))
memory.close()
os.close(fd)

say("# reading")


def cold(path):
    """Reads uncached data: the kernel does not tell a mount about reads of cached data."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    read(path)


make("r", b"x" * 100)
both("r")
say("older than the last change", changes("r", lambda: cold("r")))
say("newer", changes("r", lambda: cold("r")))
utimensat("r", (0, UTIME_OMIT), (0, UTIME_NOW))
say("after a change", changes("r", lambda: cold("r")))
both("r")
say("without", changes("r", lambda: opened("r", os.O_RDONLY | os.O_NOATIME, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED) or os.read(fd, 5)) and None))
both("r")
read("r")
both("r")
say("from memory", changes("r", lambda: read("r") and None))
both("r")
say("the same descriptor, twice", changes("r", lambda: opened("r", os.O_RDONLY, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED) or os.pread(fd, 5, 0) and os.pread(fd, 5, 0)) and None))


def mapped():
    fd = os.open("r", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    with open("r", "rb") as file, mmap.mmap(file.fileno(), 100, prot=mmap.PROT_READ) as memory:
        memory[5]


both("r")
say("mapped", changes("r", mapped))
say("a time set is not moved by what was written before:")
fd = os.open("w", os.O_RDWR | os.O_CREAT)
os.write(fd, b"x" * 10_000)
utimensat("w", (1, 2), (3, 4))
say(shown("w"))
os.fsync(fd)
say(shown("w"))
os.close(fd)
say(shown("w"), os.stat("w").st_ctime_ns > 5 * BILLION)
birth = subprocess.run(["stat", "-c", "%W", "w"], capture_output=True, text=True).stdout
say("birth", abs(int(birth) - time.time()) < 600)

# Every call that sets a time, between two stamps of a file on another filesystem, while another
# process stamps files there without pause. The time must not be before the first stamp nor after
# the second.
REFERENCE = sys.argv[2] + "/reference"
ROUNDS = 200

make(REFERENCE)
noise = os.fork()
if noise == 0:
    make(REFERENCE + ".noise")
    while os.getppid() != 1:
        os.utime(REFERENCE + ".noise")
        os.stat(REFERENCE + ".noise")


def reference():
    os.utime(REFERENCE)
    return os.stat(REFERENCE).st_ctime_ns


def opened(path, flags, function):
    fd = os.open(path, flags, 0o644)
    try:
        return function(fd)
    finally:
        os.close(fd)


def mapped(fd):
    with mmap.mmap(fd, 4096) as memory:
        memory[0:3] = b"abc"
        memory.flush()


def copied(fd):
    return opened("source", os.O_RDONLY, lambda source: os.copy_file_range(source, fd, 4096))


# Preparation of a call, the call, and the times that it updates (m: of contents, c: of the inode).
nothing = lambda: None
CALLS = (
    ("create", nothing, lambda: opened("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, lambda fd: None), ("new:mc", ".:mc")),
    ("mkdir", nothing, lambda: os.mkdir("new"), ("new:mc", ".:mc")),
    ("symlink", nothing, lambda: os.symlink("x", "new"), ("new:mc", ".:mc")),
    ("mknod", nothing, lambda: os.mknod("new", stat.S_IFIFO | 0o644), ("new:mc", ".:mc")),
    ("link", nothing, lambda: os.link("f", "new"), ("f:c", ".:mc")),
    ("rename", lambda: make("old"), lambda: os.rename("old", "new"), ("new:c", ".:mc")),
    ("rename over", lambda: make("old") or make("new"), lambda: os.rename("old", "new"), ("new:c", ".:mc")),
    ("rename into", lambda: make("old"), lambda: os.rename("old", "d/new"), ("d/new:c", ".:mc", "d:mc")),
    ("exchange", lambda: make("new"), lambda: renameat2("new", "f", EXCHANGE), ("new:c", "f:c", ".:mc")),
    ("unlink", lambda: make("new"), lambda: os.unlink("new"), (".:mc",)),
    ("unlink one of two", lambda: os.link("f", "new"), lambda: os.unlink("new"), ("f:c", ".:mc")),
    ("rmdir", lambda: os.mkdir("new"), lambda: os.rmdir("new"), (".:mc",)),
    ("open and truncate", lambda: make("new", b"x"), lambda: opened("new", os.O_WRONLY | os.O_TRUNC, lambda fd: None), ("new:mc",)),
    ("truncate", lambda: make("new", b"x"), lambda: os.truncate("new", 0), ("new:mc",)),
    ("make longer", lambda: make("new", b"x"), lambda: os.truncate("new", 100_000), ("new:mc",)),
    ("write", nothing, lambda: opened("f", os.O_WRONLY, lambda fd: os.write(fd, b"y")), ("f:mc",)),
    ("write and sync", nothing, lambda: opened("f", os.O_WRONLY, lambda fd: os.write(fd, b"y") and os.fsync(fd)), ("f:mc",)),
    ("write synchronously", nothing, lambda: opened("f", os.O_WRONLY | os.O_SYNC, lambda fd: os.write(fd, b"y")), ("f:mc",)),
    ("write directly", nothing, lambda: opened("f", os.O_WRONLY | os.O_DIRECT, lambda fd: os.write(fd, mmap.mmap(-1, 4096))), ("f:mc",)),
    ("append", nothing, lambda: opened("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"y")), ("f:mc",)),
    ("write through a mapping", nothing, lambda: opened("source", os.O_RDWR, mapped), ("source:mc",)),
    ("copy a range", nothing, lambda: opened("f", os.O_WRONLY, copied), ("f:mc",)),
    ("allocate", lambda: make("new"), lambda: opened("new", os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 8192)), ("new:mc",)),
    ("punch", lambda: make("new", b"x" * 9000), lambda: opened("new", os.O_WRONLY, lambda fd: fallocate(fd, PUNCH | KEEP_SIZE, 0, 8192)), ("new:mc",)),
    ("chmod", nothing, lambda: os.chmod("f", 0o600), ("f:c",)),
    ("chmod of a directory", nothing, lambda: os.chmod("d", 0o700), ("d:c",)),
    ("chown", nothing, lambda: os.chown("f", 1, 1), ("f:c",)),
    ("utime", nothing, lambda: os.utime("f"), ("f:mc",)),
    ("utime of a directory", nothing, lambda: os.utime("d"), ("d:mc",)),
    ("utime of a link", nothing, lambda: os.utime("l", follow_symlinks=False), ("l:mc",)),
    ("utime that is given", nothing, lambda: os.utime("f", (1, 1)), ("f:c",)),
    ("set attribute", lambda: result(os.removexattr, "f", "user.a"), lambda: os.setxattr("f", "user.a", b"1"), ("f:c",)),
    ("remove attribute", lambda: os.setxattr("f", "user.a", b"1"), lambda: os.removexattr("f", "user.a"), ("f:c",)),
)

make("f", b"x" * 5000)
make("source", b"x" * 9000)
os.symlink("f", "l")
os.mkdir("d")
try:
    for words, before, call, moved in CALLS:
        early = late = 0
        for _ in range(ROUNDS):
            for left in ("new", "d/new"):
                if os.path.isdir(left):
                    os.rmdir(left)
                elif os.path.lexists(left):
                    os.unlink(left)
            before()
            first = reference()
            call()
            second = None
            for path, fields in (what.split(":") for what in moved):
                found = os.lstat(path)
                second = second or reference()
                for field in fields:
                    time_ns = found.st_mtime_ns if field == "m" else found.st_ctime_ns
                    early += time_ns < first
                    late += time_ns > second
        say(words, "early", early, "late", late)
finally:
    os.kill(noise, signal.SIGKILL)
    os.waitpid(noise, 0)
say("in order")

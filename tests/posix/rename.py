def tree():
    for name in os.listdir("."):
        shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)
    make("file", b"file")
    make("other", b"other")
    os.symlink("file", "link")
    os.mkdir("empty")
    os.makedirs("full/deep/deeper")
    make("full/inside", b"inside")


def listing():
    found = []
    for top, dirs, files in os.walk("."):
        dirs.sort()
        for name in dirs + files:
            path = os.path.join(top, name)
            status = os.lstat(path)
            what = read(path).decode() if stat.S_ISREG(status.st_mode) else kind(path)
            found.append(f"{path}={what},{status.st_nlink}")
    return " ".join(sorted(found)), os.stat(".").st_nlink


pairs = [
    ("file", "new"), ("file", "other"), ("file", "empty"), ("file", "full"), ("empty", "file"),
    ("empty", "full"), ("full", "empty"), ("full", "full/deep"), ("full", "full/deep/deeper/x"),
    ("full", "full/new"), ("full/deep", "full"), ("full/deep/deeper", "empty"), ("full/inside", "file"),
    ("none", "file"), ("file", "file"), ("link", "file"), ("file", "link"), ("empty", "link"),
    ("full/deep", "full/new"), ("full/deep/deeper", "full/new"), ("file", "none/x"), ("file/x", "y"),
    ("file", "other/x"), ("full/.", "x"), ("full/..", "x"), (".", "x"), ("full/deep", "full/deep"),
    ("empty/", "new/"), ("file", "new/"), ("file/", "new"), ("n" * 256, "x"), ("file", "n" * 256),
]
for flags in (0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | WHITEOUT, NOREPLACE | EXCHANGE, EXCHANGE | WHITEOUT, 8):
    say("# flags", flags)
    for old, new in pairs:
        tree()
        say(old[:20], new[:20], result(renameat2, old, new, flags), *listing())

say("# a whiteout")
tree()
say(result(renameat2, "file", "full/inside", WHITEOUT), kind("file"), mode("file"), os.lstat("file").st_rdev)
say(read("full/inside"), result(os.open, "file", os.O_RDONLY))
say("by another user", as_user(4000, 4000, lambda: renameat2("other", "x", WHITEOUT)))
os.mkdir("own")
os.chown("own", 4000, 4000)
say(as_user(4000, 4000, lambda: make("own/f") or renameat2("own/f", "own/g", WHITEOUT)))
say(sorted(os.listdir("own")))

say("# over an open file")
tree()
fd = os.open("other", os.O_RDWR)
os.rename("file", "other")
say(os.fstat(fd).st_nlink, os.pread(fd, 10, 0), os.pwrite(fd, b"still", 0), os.pread(fd, 10, 0), read("other"))
os.close(fd)
fd = os.open("empty", os.O_RDONLY)
os.rename("full/deep/deeper", "empty")
say(os.fstat(fd).st_nlink, os.listdir(fd), result(os.mkdir, "x", dir_fd=fd))
os.close(fd)

say("# two names of one file")
tree()
os.link("file", "again")
say(result(os.rename, "file", "again"), *listing())
say(result(renameat2, "file", "again", NOREPLACE), result(renameat2, "file", "again", EXCHANGE), *listing())

say("# sticky directories")
tree()
os.mkdir("tmp")
os.chmod("tmp", 0o1777)
for owner in (4000, 4001):
    path = f"tmp/of{owner}"
    make(path)
    os.chown(path, owner, owner)
os.mkdir("tmp/d")
os.chown("tmp/d", 4001, 4001)
say(as_user(4000, 4000, lambda: os.rename("tmp/of4001", "tmp/x")))
say(as_user(4000, 4000, lambda: os.rename("tmp/of4000", "tmp/of4001")))
say(as_user(4000, 4000, lambda: renameat2("tmp/of4000", "tmp/of4001", EXCHANGE)))
say(as_user(4000, 4000, lambda: os.unlink("tmp/of4001")), as_user(4000, 4000, lambda: os.rmdir("tmp/d")))
say(as_user(4000, 4000, lambda: os.rename("tmp/of4000", "tmp/y")), sorted(os.listdir("tmp")))
say(as_user(4001, 4001, lambda: os.rename("tmp/d", "tmp/e")), sorted(os.listdir("tmp")))

say("# a directory that is not its owner's to write changes no parent")
tree()
os.mkdir("theirs")
os.chmod("theirs", 0o777)
os.mkdir("theirs/sub")
say(as_user(4000, 4000, lambda: os.mkdir("theirs/own") or os.rename("theirs/own", "theirs/sub/own")))
say(as_user(4000, 4000, lambda: os.rename("theirs/sub", "theirs/moved")))

say("# times")
tree()
os.mkdir("to")
say(changes([".", "to", "file"], lambda: os.rename("file", "new")), changes("new", lambda: None))
say(changes([".", "to", "new"], lambda: os.rename("new", "to/new")))
tree()
os.mkdir("to")
for name in ("file", "empty"):
    inner = f"to/{name}"
    fd = os.open(name, os.O_RDONLY)
    before = os.fstat(fd)
    changed = changes([".", "to"], lambda: os.rename(name, inner))
    after = os.fstat(fd)
    os.close(fd)
    say(name, changed, before.st_mtime_ns == after.st_mtime_ns, before.st_ctime_ns < after.st_ctime_ns)
make("to/target")
fd = os.open("to/target", os.O_RDONLY)
before = os.fstat(fd).st_ctime_ns
say(changes([".", "to"], lambda: os.rename("other", "to/target")), before < os.fstat(fd).st_ctime_ns)
os.close(fd)
tree()
fds = [os.open(name, os.O_RDONLY) for name in ("file", "full/deep")]
before = [os.fstat(fd) for fd in fds]
say(changes([".", "full"], lambda: renameat2("file", "full/deep", EXCHANGE)), *listing())
after = [os.fstat(fd) for fd in fds]
say([a.st_mtime_ns == b.st_mtime_ns and a.st_ctime_ns < b.st_ctime_ns for a, b in zip(before, after)])
say(changes([".", "link"], lambda: renameat2("link", "none", EXCHANGE)))
say(changes([".", "other"], lambda: renameat2("other", "link", NOREPLACE)))
say(os.stat("full/..").st_ino == os.stat(".").st_ino, os.stat("file").st_nlink)

AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = 0x1000, 0x400


def linkat(fd, old, new, flags):
    return checked(libc.linkat(fd, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def nlink(path):
    return os.lstat(path).st_nlink


say("# across directories")
os.makedirs("a/b")
os.mkdir("c")
make("a/f", b"one file")
os.link("a/f", "a/b/g")
os.link("a/b/g", "c/h")
say(nlink("a/f"), nlink("c/h"), os.stat("a/f").st_ino == os.stat("c/h").st_ino, read("c/h"))
os.unlink("a/f")
say(nlink("c/h"), read("a/b/g"))
say(result(os.link, "c", "d"), result(os.link, "c/h", "a/b/g"), result(os.link, "none", "x"))
say(result(os.link, "c/h", "a/b/g/x"), result(os.link, "c/h", "n" * 256))
os.symlink("c/h", "s")
os.link("s", "t", follow_symlinks=False)
say(kind("t"), nlink("s"), os.readlink("t"))
os.mkfifo("p")
os.link("p", "q")
say(kind("q"), nlink("p"))
say("times", changes([".", "c", "c/h"], lambda: os.link("c/h", "i")))
say("times", changes([".", "c", "c/h"], lambda: os.unlink("i")))

say("# by descriptor")
fd = os.open("c/h", os.O_RDWR)
say(result(linkat, fd, "", "byfd", AT_EMPTY_PATH), nlink("c/h"))
say(result(linkat, AT_FDCWD, f"/proc/self/fd/{fd}", "byproc", AT_SYMLINK_FOLLOW), nlink("c/h"))
os.close(fd)
make("gone", b"x")
fd = os.open("gone", os.O_RDWR)
os.unlink("gone")
say(result(linkat, fd, "", "back", AT_EMPTY_PATH), os.path.exists("back"))
say(result(linkat, AT_FDCWD, f"/proc/self/fd/{fd}", "back", AT_SYMLINK_FOLLOW), os.path.exists("back"))
say(os.fstat(fd).st_nlink)
os.close(fd)

say("# a file without a name")
fd = result(os.open, ".", os.O_TMPFILE | os.O_RDWR, 0o600)
say("O_TMPFILE", fd if isinstance(fd, str) else "opened")

say("# as many as there can be")
make("first")
made = 1
while True:
    came = result(os.link, "first", f"c/{made}")
    if came:
        break
    made += 1
say(came, made, nlink("first"))
os.unlink("c/1")
say(result(os.link, "first", "c/1"), result(os.link, "first", "c/x"), nlink("first"))
shutil.rmtree("c")
say(nlink("first"))

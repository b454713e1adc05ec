CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE

say("# create, replace, remove, list")
make("f")
say(result(os.setxattr, "f", "user.a", b"1", REPLACE))
say(result(os.setxattr, "f", "user.a", b"1", CREATE))
say(result(os.setxattr, "f", "user.a", b"2", CREATE))
say(result(os.setxattr, "f", "user.a", b"2", REPLACE))
say(result(os.setxattr, "f", "user.a", b"2", CREATE | REPLACE))
say(result(os.setxattr, "f", "user.empty", b""))
say(result(os.setxattr, "f", "user.\xe9\n", b"\x00\xff"))
say(result(os.setxattr, "f", "trusted.t", b"t"))
say(result(os.setxattr, "f", "security.s", b"s"))
say(sorted(os.listxattr("f")))
say([os.getxattr("f", name) for name in sorted(os.listxattr("f"))])
say(result(os.removexattr, "f", "user.a"), result(os.removexattr, "f", "user.a"))
say(result(os.getxattr, "f", "user.a"))

say("# names")
for name in ("user.", "user", "", "other.x", "system.x", "user." + "n" * 250, "user." + "n" * 251):
    say(repr(name[:12]), len(name), result(os.setxattr, "f", name, b"v"), result(os.getxattr, "f", name))

say("# sizes")


def get(name, size):
    buffer = ctypes.create_string_buffer(max(size, 1))
    return checked(libc.getxattr(b"f", name, buffer, ctypes.c_size_t(size)))


def listed(size):
    buffer = ctypes.create_string_buffer(max(size, 1))
    return checked(libc.listxattr(b"f", buffer, ctypes.c_size_t(size)))


for size in (1, 1000, 4000, 65535, 65536, 65537):
    value = bytes(number % 251 for number in range(size))
    came = result(os.setxattr, "f", "user.large", value)
    say(size, came, came is None and os.getxattr("f", "user.large") == value)
say(get(b"user.large", 0), result(get, b"user.large", 65535), get(b"user.large", 65536))
say(result(get, b"user.large", 1 << 20))
os.removexattr("f", "user.large")
whole = listed(0)
say(whole, result(listed, whole - 1), listed(whole), listed(whole + 1))

say("# kinds of files")
os.mkdir("d")
os.symlink("f", "l")
os.mkfifo("p")
os.mknod("c", 0o644 | stat.S_IFCHR, os.makedev(1, 3))
socket.socket(socket.AF_UNIX).bind("s")
for path in ("d", "l", "p", "c", "s"):
    for name in ("user.x", "trusted.x", "security.x"):
        say(path, name, result(os.setxattr, path, name, b"v", follow_symlinks=False))
    say(path, sorted(os.listxattr(path, follow_symlinks=False)))
    say(path, result(os.getxattr, path, "user.x", follow_symlinks=False))
    say(path, result(os.removexattr, path, "user.x", follow_symlinks=False))

say("# other users")
os.chmod("f", 0o644)
say(as_user(4000, 4000, lambda: os.setxattr("f", "user.b", b"")))
say(as_user(4000, 4000, lambda: os.getxattr("f", "user.empty")))
say(as_user(4000, 4000, lambda: os.setxattr("f", "trusted.b", b"")))
say(as_user(4000, 4000, lambda: os.getxattr("f", "trusted.t")))
say(as_user(4000, 4000, lambda: os.setxattr("f", "security.b", b"")))
say(as_user(4000, 4000, lambda: sorted(os.listxattr("f"))))
os.mkdir("sticky")
os.chmod("sticky", 0o1777)
say("not the owner of a sticky directory", as_user(4000, 4000, lambda: os.setxattr("sticky", "user.b", b"")))
os.chmod("f", 0o600)
say(as_user(4000, 4000, lambda: os.getxattr("f", "user.empty")))

say("# capabilities and set-id bits go when a file changes")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


make("source", b"12345", 0o644)


def privileged(path):
    if os.path.exists(path):
        os.unlink(path)
    make(path, b"#!/bin/sh\n", 0o777)
    os.chmod(path, 0o6777)
    os.setxattr(path, "security.capability", CAPABILITY)


def left(path):
    return mode(path), "security.capability" in os.listxattr(path)


def write(path, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    os.write(fd, b"x")
    os.close(fd)


def mapped(path):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4) as memory:
        memory[0:1] = b"y"
        memory.flush()
    os.close(fd)


def allocated(path):
    fd = os.open(path, os.O_WRONLY)
    fallocate(fd, 0, 0, 10000)
    os.close(fd)


def copied(path):
    fd = os.open(path, os.O_WRONLY)
    assert os.copy_file_range(os.open("source", os.O_RDONLY), fd, 5, 0, 0) == 5
    os.close(fd)


def truncated_open(path):
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 2)
    os.close(fd)


for what, change in (
    ("read", read),
    ("write", write),
    ("append", lambda path: write(path, os.O_WRONLY | os.O_APPEND)),
    ("direct", lambda path: write(path, os.O_WRONLY | os.O_SYNC)),
    ("map", mapped),
    ("truncate", lambda path: os.truncate(path, 3)),
    ("ftruncate", truncated_open),
    ("same length", lambda path: os.truncate(path, 10)),
    ("open and truncate", lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))),
    ("allocate", allocated),
    ("copy", copied),
    ("chown", lambda path: os.chown(path, 4000, 4000)),
    ("chown to nobody new", lambda path: os.chown(path, -1, -1)),
    ("chmod", lambda path: os.chmod(path, 0o6755)),
    ("touch", lambda path: os.utime(path)),
    ("link", lambda path: os.link(path, path + "2") or os.unlink(path + "2")),
    ("rename", lambda path: os.rename(path, path + "2") or os.rename(path + "2", path)),
):
    for user in (0, 4000):
        privileged("p1")
        if user and what in ("chown", "chown to nobody new", "chmod"):
            continue
        came = as_user(user, user, lambda: change("p1") and None)
        say(what, user, came, *left("p1"))
os.chmod("p1", 0o2707)
os.truncate("p1", 1)
say("set-group-id without execution", mode("p1"))
os.mkdir("setgid")
os.chmod("setgid", 0o6755)
os.chown("setgid", 4000, 4000)
say("a directory keeps them", mode("setgid"))

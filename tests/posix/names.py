say("# lengths of names")
for name in (b"n" * 255, b"n" * 256, "\u00e9".encode() * 127, b"\xff" * 255, b"", b"\xff" * 256):
    for words, function in (
        ("create", lambda: os.close(os.open(name, os.O_CREAT | os.O_WRONLY))), ("stat", lambda: os.lstat(name) and None),
        ("link", lambda: os.link(name, name[:-1])), ("rename", lambda: os.rename(name, name)), ("unlink", lambda: os.unlink(name)),
        ("mkdir", lambda: os.mkdir(name)), ("rmdir", lambda: os.rmdir(name)), ("symlink", lambda: os.symlink(b"x", name)),
        ("readlink", lambda: os.readlink(name)), ("unlink", lambda: os.unlink(name)), ("fifo", lambda: os.mkfifo(name)),
        ("xattr", lambda: os.setxattr(name, "trusted.x", b"")),
    ):
        say(len(name), name[:1], words, result(function))
say(sorted(os.listdir(b".")) == sorted([b"n" * 254, b"n" * 255, "\u00e9".encode() * 127, ("\u00e9".encode() * 127)[:-1], b"\xff" * 254, b"\xff" * 255]))
for name in os.listdir(b"."):
    os.unlink(name)

say("# any bytes but two")
odd = [bytes([byte]) * 3 for byte in range(1, 256) if byte != ord("/")] + [b" ", b"...", b"a\nb", b"\xc3\x28", "\u00e9".encode(), "e\u0301".encode(), b"A", b"a", b".hidden"]
for number, name in enumerate(odd):
    make(name, b"%d" % number)
say(len(odd), sorted(os.listdir(b".")) == sorted(odd), all(read(name) == b"%d" % number for number, name in enumerate(odd)))
os.rename(b"a", b"\x01\x02")
say(os.path.exists(b"A"), os.path.exists(b"a"))
for name in os.listdir(b"."):
    os.unlink(name)

say("# targets of symbolic links")
for length in (1, 59, 60, 61, 1000, 4094, 4095, 4096, 5000):
    target = b"t" * length
    came = result(os.symlink, target, b"l")
    say(length, came, came is None and os.readlink(b"l") == target, came is None and os.lstat(b"l").st_size)
    if came is None:
        say(result(os.stat, b"l"))
        os.unlink(b"l")
say(result(os.symlink, b"", b"l"))
os.symlink(b"\xff\n/../x", b"l")
say(os.readlink(b"l"), result(os.readlink, b"."), result(os.chmod, b"l", 0o600))
os.mkdir("d")
os.symlink("d", "s")
say(result(os.rmdir, "s"), result(os.unlink, "d"), result(os.rmdir, "d/."), result(os.rmdir, "d/.."), result(os.mkdir, "s/x"), result(os.rmdir, "s/x"))
for number in range(41):
    os.symlink(f"c{number + 1}", f"c{number}")
make("c41")
say(result(os.stat, "c0"), result(os.stat, "c1") == "ELOOP", result(os.stat, "c2") == "ELOOP")

say("# long paths")
os.mkdir("deep")
depth, fd = 0, os.open("deep", os.O_RDONLY)
while depth < 30:
    os.mkdir("p" * 200, dir_fd=fd)
    inner = os.open("p" * 200, os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    fd, depth = inner, depth + 1
make_in = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
os.write(make_in, b"reached")
os.close(make_in)
path = "deep" + ("/" + "p" * 200) * 30 + "/bottom"
say(len(path), result(os.stat, path))
fits = "deep" + ("/" + "p" * 200) * 20
say(len(fits), os.path.isdir(fits), len(fits + "/" * (4095 - len(fits))), os.path.isdir(fits + "/" * (4095 - len(fits))), result(os.stat, fits + "/" * (4096 - len(fits))))
back = os.open("/".join([".."] * 31), os.O_RDONLY, dir_fd=fd)
say(os.fstat(back).st_ino == os.stat(".").st_ino)
os.close(back)
os.close(fd)
say(subprocess.run(["rm", "-r", "deep"]).returncode)

say("# the set-group-id bit of directories, and masks")
os.mkdir("g")
os.chown("g", 0, 7000)
os.chmod("g", 0o2777)
make("g/f", b"", 0o666)
os.mkdir("g/d", 0o755)
os.mkfifo("g/p")
os.symlink("x", "g/l")
os.mkdir("g/d/e")
for name in ("g/f", "g/d", "g/p", "g/l", "g/d/e"):
    say(name, mode(name), os.lstat(name).st_gid)
say(as_user(4000, 4000, lambda: make("g/theirs", b"", 0o2775) or os.stat("g/theirs").st_gid), mode("g/theirs"))
say(as_user(4000, 4000, lambda: make("g/member", b"", 0o2775), groups=[7000]), mode("g/member"))
say(as_user(4000, 4000, lambda: os.chmod("g/theirs", 0o2775)), mode("g/theirs"))
say(as_user(4000, 4000, lambda: os.mkdir("g/dir")), mode("g/dir"), os.stat("g/dir").st_gid, os.stat("g/dir").st_uid)
for mask in (0, 0o77, 0o777):
    os.umask(mask)
    make(f"u{mask}", b"", 0o6777)
    os.mkdir(f"v{mask}", 0o1777)
    os.mkfifo(f"w{mask}", 0o666)
    say(mask, mode(f"u{mask}"), mode(f"v{mask}"), mode(f"w{mask}"))

def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip().replace("\n", " ") if done.returncode == 0 else f"fails {done.returncode}"


def acl(path):
    return run("getfacl", "-cpn", path)


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
ID = 0xFFFFFFFF


def encode(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


say("# an access list and the mode are one")
make("f", b"x", 0o640)
say(acl("f"))
say(run("setfacl", "-m", "u:4000:rwx,g:5000:r", "f"), mode("f"), acl("f"))
for bits in (0o600, 0o664, 0o4755, 0o000, 0o770):
    os.chmod("f", bits)
    say(oct(bits), mode("f"), acl("f"))
say(run("setfacl", "-m", "m::r", "f"), mode("f"), acl("f"))
say(run("setfacl", "-x", "u:4000", "f"), mode("f"), acl("f"))
say(run("setfacl", "-b", "f"), mode("f"), acl("f"))
say(result(os.getxattr, "f", ACCESS))

say("# who may what")
make("shared", b"text", 0o600)
say(as_user(4000, 4000, lambda: read("shared")))
run("setfacl", "-m", "u:4000:r,g:5000:rw", "shared")
say(as_user(4000, 4000, lambda: read("shared")))
say(as_user(4000, 4000, lambda: os.open("shared", os.O_WRONLY)))
say(as_user(4001, 4001, lambda: read("shared")))
say(as_user(4001, 4001, lambda: os.close(os.open("shared", os.O_RDWR)), groups=[5000]))
os.chmod("shared", 0o600)
say("masked", as_user(4000, 4000, lambda: read("shared")))
say("a stranger sets", as_user(4000, 4000, lambda: os.setxattr("shared", ACCESS, encode((1, 7, ID), (4, 7, ID), (32, 7, ID)))))
say("a stranger removes", as_user(4000, 4000, lambda: os.removexattr("shared", ACCESS)))

say("# default lists")
os.mkdir("d")
say(run("setfacl", "-d", "-m", "u::rwx,u:4000:rwx,g::rx,o::-", "d"), mode("d"), acl("d"))
for mask in (0o000, 0o022, 0o077, 0o777):
    os.umask(mask)
    name = f"d/f{mask:o}"
    make(name, b"", 0o666)
    say(oct(mask), mode(name), acl(name))
    os.mkdir(f"{name}.d", 0o777)
    say(oct(mask), mode(f"{name}.d"), acl(f"{name}.d"))
    os.mkfifo(f"{name}.p", 0o640)
    say(oct(mask), mode(f"{name}.p"), acl(f"{name}.p"))
    os.mknod(f"{name}.n", 0o604 | stat.S_IFREG)
    say(oct(mask), mode(f"{name}.n"), acl(f"{name}.n"))
    os.symlink("x", f"{name}.l")
    say(oct(mask), kind(f"{name}.l"), mode(f"{name}.l"))
os.umask(0o022)
os.mkdir("d/f0.d/below")
say("two levels", acl("d/f0.d/below"))
say(run("setfacl", "-k", "d"), acl("d"))
make("d/plain", b"", 0o666)
say(mode("d/plain"), acl("d/plain"))
os.mkdir("minimal")
say(run("setfacl", "-d", "-m", "u::rwx,g::rx,o::-", "minimal"))
os.umask(0)
make("minimal/f", b"", 0o666)
say(mode("minimal/f"), acl("minimal/f"), result(os.getxattr, "minimal/f", ACCESS))
os.umask(0o022)

say("# what is refused")
minimal = encode((1, 7, ID), (4, 5, ID), (32, 5, ID))
make("plain", b"", 0o644)
os.symlink("plain", "link")
os.mkfifo("fifo")
say(result(os.setxattr, "plain", DEFAULT, minimal))
say(result(os.setxattr, "fifo", DEFAULT, minimal))
say(result(os.setxattr, "fifo", ACCESS, minimal), mode("fifo"))
say(result(os.setxattr, "link", ACCESS, minimal, follow_symlinks=False))
say(result(os.getxattr, "link", ACCESS, follow_symlinks=False))
say(result(os.removexattr, "plain", DEFAULT))
say(result(os.removexattr, "plain", ACCESS))
say(result(os.getxattr, "plain", DEFAULT))
for bad in (
    b"",
    b"\x02\0\0",
    struct.pack("<I", 1) + minimal[4:],
    minimal[:-1],
    encode((1, 7, ID), (4, 5, ID)),
    encode((1, 7, ID), (2, 7, 4000), (4, 5, ID), (32, 5, ID)),
    encode((1, 9, ID), (4, 5, ID), (32, 5, ID)),
    encode((4, 5, ID), (1, 7, ID), (32, 5, ID)),
    encode((1, 7, ID), (4, 5, ID), (0x40, 5, ID), (32, 5, ID)),
):
    say(bad.hex(), result(os.setxattr, "plain", ACCESS, bad), mode("plain"))

say("# the set-group-id bit goes with a list set by somebody outside the group")
for groups in ([], [6000]):
    make("grouped", b"", 0o755)
    os.chown("grouped", 4000, 6000)
    os.chmod("grouped", 0o2755)
    say(as_user(4000, 4000, lambda: os.setxattr("grouped", ACCESS, minimal), groups), mode("grouped"))
    os.unlink("grouped")

say("# listed, and gone with the file")
make("listed", b"")
run("setfacl", "-m", "u:1:r", "listed")
say(sorted(os.listxattr("listed")))
os.mkdir("listed.d")
run("setfacl", "-d", "-m", "u:1:r", "listed.d")
say(sorted(os.listxattr("listed.d")))
say(run("cp", "-a", "listed", "copied"), acl("copied"))

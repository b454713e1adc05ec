# Which processes keep set-id bits and file capabilities through which calls: by capability, not by
# name.
CLONE_NEWUSER = 0x10000000
CAP_FSETID, CAP_SYS_ADMIN = 4, 21
PR_SET_KEEPCAPS, PR_SET_DUMPABLE = 8, 4
EVERYTHING = (1 << 38) - 1
ACCESS = "system.posix_acl_access"
ID = 0xFFFFFFFF
FILE_CAPS = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_capabilities(bits):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    checked(libc.capset(header, data))


def capabilities():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff"))
    return int(line.split()[1], 16)


def become(user, group, groups, namespace, fsetid):
    """Turns this process into that persona; a namespace is None, "own" or "wide"."""
    # Capabilities of a new namespace are gained, and so cannot be kept from before.
    os.setgroups(groups)
    if namespace == "wide":
        # Root of it is mapped to root, and all others of the first 100000.
        source, sink = os.pipe()
        ready, go = os.pipe()
        parent = os.getpid()
        writer = os.fork()
        if writer == 0:
            os.read(ready, 1)
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{parent}/{name}", "w") as file:
                    file.write("0 0 100000")
            os.write(sink, b"x")
            os._exit(0)
        checked(libc.unshare(CLONE_NEWUSER))
        os.write(go, b"x")
        os.read(source, 1)
        os.waitpid(writer, 0)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    else:
        checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        checked(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
        if namespace == "own":
            checked(libc.unshare(CLONE_NEWUSER))
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    has_all = user == 0 or namespace
    wanted = capabilities() if has_all else 0
    wanted &= ~(1 << CAP_FSETID)
    if fsetid:
        wanted |= 1 << CAP_FSETID
    set_capabilities(wanted)


def opened(path, flags, function):
    fd = os.open(path, flags)
    try:
        return function(fd)
    finally:
        os.close(fd)


def store(fd):
    memory = mmap.mmap(fd, 4096)
    memory[0:1] = b"m"
    memory.close()


def copy_range(path):
    return opened("source", os.O_RDONLY, lambda source: opened(path, os.O_WRONLY, lambda to: os.copy_file_range(source, to, 100)))


def same_mode(path):
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))


def preserve(path):
    done = subprocess.run(["cp", "--preserve=mode", path, f"{path}.copy"], capture_output=True)
    return done.returncode


def change_owner(user, group):
    return lambda path: os.chown(path, user, group)


WRITE = os.O_WRONLY
OPERATIONS = {
    "write": lambda path: opened(path, WRITE, lambda fd: os.write(fd, b"w")),
    "write nothing": lambda path: opened(path, WRITE, lambda fd: os.write(fd, b"")),
    "append": lambda path: opened(path, WRITE | os.O_APPEND, lambda fd: os.write(fd, b"w")),
    "store": lambda path: opened(path, os.O_RDWR, store),
    "ftruncate": lambda path: opened(path, WRITE, lambda fd: os.ftruncate(fd, 10)),
    "ftruncate to the same": lambda path: opened(path, WRITE, lambda fd: os.ftruncate(fd, 5000)),
    "truncate": lambda path: os.truncate(path, 9000),
    "O_TRUNC": lambda path: opened(path, WRITE | os.O_TRUNC, lambda fd: 0),
    "fallocate": lambda path: opened(path, WRITE, lambda fd: fallocate(fd, 0, 0, 20000)),
    "punch": lambda path: opened(path, WRITE, lambda fd: fallocate(fd, PUNCH | KEEP_SIZE, 0, 4096)),
    "copy_file_range": copy_range,
    "chown to the same": change_owner(-1, -1),
    "chown to the own group": lambda path: os.chown(path, -1, os.getgid()),
    "chmod": same_mode,
    "utime": lambda path: os.utime(path, (1, 1)),
    "minimal list": lambda path: os.setxattr(path, ACCESS, acl((1, 7, ID), (4, 7, ID), (32, 7, ID))),
    "list": lambda path: os.setxattr(path, ACCESS, acl((1, 6, ID), (4, 6, ID), (8, 6, 0 if os.getuid() == 0 else 4000), (16, 6, ID), (32, 6, ID))),
    "no list": lambda path: os.removexattr(path, ACCESS),
    "cp": preserve,
}
MODES = (0o4777, 0o2777, 0o2666, 0o6666, 0o6777, 0o777)
# Name, user, group, other groups, user namespace.
PERSONAS = (
    ("root", 0, 0, [], None),
    ("root of the group", 0, 0, [6000], None),
    ("user", 4000, 4000, [], None),
    ("user of the group", 4000, 4000, [6000], None),
    ("root in a namespace of its own", 0, 0, [], "own"),
    ("user in a namespace of its own", 4000, 4000, [], "own"),
    ("user of the group in a namespace of its own", 4000, 4000, [6000], "own"),
    ("root in a wide namespace", 0, 0, [], "wide"),
    ("user in a wide namespace", 4000, 4000, [], "wide"),
)


def described(path):
    caps = "caps" if "security.capability" in os.listxattr(path) else "-"
    return f"{mode(path)} {caps}"


def exercise(persona, owner, group, fsetid):
    name, user, own_group, groups, namespace = persona
    paths = []
    os.mkdir("dir", 0o777)
    os.chmod("dir", 0o777)
    make("dir/source", b"s" * 5000, 0o644)
    for number, bits in enumerate(MODES):
        for operation in OPERATIONS:
            path = f"dir/{number} {operation}"
            make(path, b"x" * 5000)
            os.chown(path, owner, group)
            os.chmod(path, bits)
            if bits & 0o010:
                os.setxattr(path, "security.capability", FILE_CAPS)
            paths.append((path, operation, bits))
    os.mkdir("dir/grouped")
    os.chown("dir/grouped", owner, group)
    os.chmod("dir/grouped", 0o2777)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        os.chdir("dir")
        os.umask(0)
        try:
            become(user, own_group, groups, namespace, fsetid)
            for path, operation, bits in paths:
                came = result(OPERATIONS[operation], os.path.basename(path))
                os.write(sink, f"{came}\n".encode())
            came = [
                result(lambda: os.close(os.open("grouped/a", os.O_CREAT | os.O_WRONLY, 0o2775))),
                result(lambda: os.close(os.open("grouped/b", os.O_CREAT | os.O_WRONLY, 0o2664))),
                result(os.mkdir, "grouped/c", 0o2775),
                result(os.mknod, "grouped/d", 0o2775 | stat.S_IFREG),
                result(same_mode, "grouped"),
                result(os.setxattr, "grouped", ACCESS, acl((1, 7, ID), (4, 7, ID), (32, 7, ID))),
            ]
            os.write(sink, f"{came}\n".encode())
        except BaseException as error:
            os.write(sink, f"failed: {error!r}\n".encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answers:
        lines = answers.read().splitlines()
    os.waitpid(child, 0)
    for (path, operation, bits), came in zip(paths, lines):
        copied = f"{path}.copy"
        copy = described(copied) if os.path.exists(copied) else ""
        left = described(path)
        if (operation, came) == ("chown to the same", "EPERM"):
            # On FUSE the kernel removes capabilities before it checks whether the owner may change.
            left = mode(path)
        say(oct(bits), operation, came, left, copy)
    say(lines[-1], *(f"{name} {mode(f'dir/grouped/{name}')}" for name in sorted(os.listdir("dir/grouped"))), mode("dir/grouped"))
    shutil.rmtree("dir")


for persona in PERSONAS:
    for owner in sorted({0, persona[1]}):
        for group in sorted({persona[2], 6000}):
            for fsetid in (False, True):
                say(f"# {persona[0]}, {'with' if fsetid else 'without'} CAP_FSETID, file of {owner}:{group}")
                exercise(persona, owner, group, fsetid)

say("# who sees trusted attributes")
make("trusted", b"")
os.setxattr("trusted", "trusted.x", b"y")
for admin in (False, True):
    def names():
        set_capabilities(1 << CAP_SYS_ADMIN if admin else 0)
        return sorted(os.listxattr("trusted"))

    def as_user_names():
        return names()

    checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    say("root", admin, in_child(names))
    say("user", admin, as_user(4000, 4000, as_user_names))

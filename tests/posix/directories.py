ENTRIES = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000

say("# links and the names that lead up")
os.makedirs("a/b/c")
os.mkdir("a/d")
say([os.stat(path).st_nlink for path in ("a", "a/b", "a/b/c", "a/d")])
os.rename("a/b", "a/d/b")
say([os.stat(path).st_nlink for path in ("a", "a/d", "a/d/b")])


def dot_entries(path):
    """Inode numbers of `.` and `..` as the listing has them."""
    class Entry(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16), ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Entry)
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
    found = {}
    while entry := libc.readdir(stream):
        found[entry.contents.name] = entry.contents.ino
    libc.closedir(stream)
    return found


found = dot_entries("a/d/b")
say(found[b"."] == os.stat("a/d/b").st_ino, found[b".."] == os.stat("a/d").st_ino, found[b"c"] == os.stat("a/d/b/c").st_ino, os.stat("a/d/b/..").st_ino == os.stat("a/d").st_ino)

say("# what a listing says is what stat says")
os.mkdir("kinds")
make("kinds/f")
os.mkdir("kinds/d")
os.symlink("f", "kinds/l")
os.mkfifo("kinds/p")
os.mknod("kinds/c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
os.link("kinds/f", "kinds/f2")
with os.scandir("kinds") as entries:
    for entry in sorted(entries, key=lambda entry: entry.name):
        same = entry.inode() == os.lstat(entry.path).st_ino
        say(entry.name, same, entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False), entry.is_symlink())

say("# many entries")
os.mkdir("many")
names = [f"entry-{number}" for number in range(ENTRIES)]
for number, name in enumerate(names):
    os.close(os.open(f"many/{name}", os.O_CREAT | os.O_WRONLY)) if number % 100 else os.mkdir(f"many/{name}")
say(sorted(os.listdir("many")) == sorted(names), os.stat("many").st_nlink)

say("# every name that is there throughout is seen once, whatever else changes")


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16), ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.closedir, libc.rewinddir):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
stream = libc.opendir(b"many")
seen, positions, turn = [], {}, 0
keep = set(names[::2])
doomed = [name for name in names if name not in keep]
while entry := libc.readdir(stream):
    name = entry.contents.name.decode()
    seen.append(name)
    turn += 1
    if turn % 3 == 0 and doomed:
        gone = doomed.pop()
        os.rmdir(f"many/{gone}") if os.path.isdir(f"many/{gone}") else os.unlink(f"many/{gone}")
        make(f"many/new-{turn}")
    if turn % 50 == 0:
        # Moved away and back again.
        here = libc.telldir(stream)
        positions[here] = True
        libc.rewinddir(stream)
        libc.readdir(stream)
        libc.seekdir(stream, here)
stayed = [name for name in seen if name in keep]
say(len(stayed) == len(keep), set(stayed) == keep, len(seen) == len(set(seen)), len(positions) == turn // 50)
libc.rewinddir(stream)
whole = []
while entry := libc.readdir(stream):
    whole.append(entry.contents.name.decode())
say(sorted(whole) == sorted(os.listdir("many") + [".", ".."]))
libc.closedir(stream)

say("# positions lead where they led")
stream = libc.opendir(b"many")
order, cookies = [], []
while True:
    cookies.append(libc.telldir(stream))
    entry = libc.readdir(stream)
    if not entry:
        break
    order.append(entry.contents.name)
wrong = 0
for index in range(0, len(order), max(1, len(order) // 60)):
    libc.seekdir(stream, cookies[index])
    wrong += libc.readdir(stream).contents.name != order[index]
say(wrong, len(set(cookies)) == len(cookies))
libc.closedir(stream)
say(subprocess.run(["rm", "-r", "many"]).returncode, result(os.rmdir, "kinds"), result(os.rmdir, "a/d/b/c"), result(os.rmdir, "kinds/f"))
say(os.stat("a/d/b").st_nlink)

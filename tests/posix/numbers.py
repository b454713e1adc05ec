# Numbers that the filesystem shows, beside the limits of programs: a signed off_t of 32 bits, a
# floating-point number of 64, an unsigned number of 32.
class Entry(ctypes.Structure):
    _fields_ = [("inode", ctypes.c_uint64), ("offset", ctypes.c_int64), ("length", ctypes.c_uint16), ("kind", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir64.restype = ctypes.POINTER(Entry)
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = libc.readdir64.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def listed(path):
    """Names, inode numbers and offsets of a directory's entries."""
    stream = libc.opendir(os.fsencode(path))
    found = []
    while entry := libc.readdir64(stream):
        entry = entry.contents
        found.append((entry.name, entry.inode, entry.offset, libc.telldir(stream)))
    # A seek to the offset of an entry continues with the one after it.
    for at in range(0, len(found), 97):
        libc.seekdir(stream, found[at][3])
        entry = libc.readdir64(stream)
        assert (entry.contents.name if entry else None) == (found[at + 1][0] if at + 1 < len(found) else None)
    libc.closedir(stream)
    return found


def statx_inode(path):
    buffer = ctypes.create_string_buffer(256)
    checked(libc.statx(AT_FDCWD, os.fsencode(path), 0x100, 0xfff, buffer))
    return struct.unpack_from("<Q", buffer, 0x20)[0]


def numbers(words, directory):
    entries = listed(directory)
    offsets = [offset for _, _, offset, _ in entries]
    inodes = [inode for name, inode, _, _ in entries if name not in (b".", b"..")]
    paths = [os.path.join(directory, os.fsdecode(name)) for name, *_ in entries if name not in (b".", b"..")]
    say(words, "entries", len(entries))
    say(words, "d_off fits into 31 bits", all(0 <= offset < 1 << 31 for offset in offsets))
    say(words, "telldir fits into 31 bits", all(0 <= offset < 1 << 31 for *_, offset in entries))
    # The last entry's offset is the end of the directory, and may be any number.
    say(words, "d_off rises", offsets[:-1] == sorted(set(offsets[:-1])))
    say(words, "d_ino fits into 53 bits", all(0 < inode < 1 << 53 for inode in inodes))
    say(words, "st_ino fits into 53 bits", all(0 < os.lstat(path).st_ino < 1 << 53 for path in paths))
    say(words, "stx_ino fits into 53 bits", all(0 < statx_inode(path) < 1 << 53 for path in paths))
    say(words, "d_ino is st_ino", inodes == [os.lstat(path).st_ino for path in paths])
    say(words, "stx_ino is st_ino", all(statx_inode(path) == os.lstat(path).st_ino for path in paths))


os.mkdir("d")
for number in range(2000):
    make(f"d/name {number}")
os.mkdir("d/directory")
os.symlink("x", "d/link")
os.mkfifo("d/pipe")
numbers("a directory", "d")
before = dict((name, offset) for name, _, offset, _ in listed("d")[:-1])
for number in range(0, 2000, 2):
    os.unlink(f"d/name {number}")
for number in range(3000):
    make(f"d/new {number}")
after = dict((name, offset) for name, _, offset, _ in listed("d")[:-1])
# An entry has the offset of the one before it, so the test compares the order.
kept = [name for name in before if name in after]
say("order stays", kept == [name for name in after if name in before], len(kept) > 900)
space, files = os.statvfs("d"), ctypes.create_string_buffer(120)
say("f_files", 0 < space.f_files < 1 << 32, 0 < space.f_ffree < 1 << 32, 0 < space.f_favail < 1 << 32)
checked(libc.statfs64(b"d", files))
say("statfs64", *(0 < number < 1 << 32 for number in struct.unpack_from("<QQ", files, 40)))

kept_by = sys.argv[2:]
if kept_by:
    top = os.path.dirname(os.getcwd())
    within = os.path.basename(os.getcwd())
    for number in range(40):
        os.mkdir(f"{top}/.snapshots/{number}")
    os.mkdir(f"{top}/.images/image")
    numbers("a snapshot", f"{top}/.snapshots/39/{within}/d")
    numbers("an image", f"{top}/.images/image/{within}/d")
    numbers("the snapshots", f"{top}/.snapshots")
    numbers("a snapshot's root", f"{top}/.snapshots/39")
    for number in range(40):
        os.rmdir(f"{top}/.snapshots/{number}")
    os.rmdir(f"{top}/.images/image")

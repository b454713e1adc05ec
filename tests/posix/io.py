say("# appending from several processes: every record whole, none lost")
RECORDS, WRITERS = 400, 4


def appends(writer):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(RECORDS):
        line = b"%d %04d " % (writer, number) + bytes([97 + writer]) * (number * 37 % 3000) + b"\n"
        assert os.write(fd, line) == len(line)
    os.close(fd)


children = []
for writer in range(WRITERS):
    child = os.fork()
    if child == 0:
        appends(writer)
        os._exit(0)
    children.append(child)
say(sorted(os.waitpid(child, 0)[1] for child in children))
found = {writer: [] for writer in range(WRITERS)}
for line in read("log").splitlines():
    writer, number, rest = line.split(b" ", 2)
    writer, number = int(writer), int(number)
    assert rest == bytes([97 + writer]) * (number * 37 % 3000), line[:20]
    found[writer].append(number)
say(all(numbers == list(range(RECORDS)) for numbers in found.values()), os.stat("log").st_size)
fd = os.open("log", os.O_RDWR | os.O_APPEND)
os.truncate("log", 10)
say(os.pwrite(fd, b"at the end", 0), os.stat("log").st_size, os.lseek(fd, 0, os.SEEK_CUR))
os.close(fd)

say("# truncation at opening")
make("t", b"x" * 100_000)
fd = os.open("t", os.O_RDONLY)
os.close(os.open("t", os.O_WRONLY | os.O_TRUNC))
say(os.fstat(fd).st_size, os.read(fd, 10), os.stat("t").st_blocks)
os.close(fd)
make("t", b"x" * 100)
os.close(os.open("t", os.O_RDONLY | os.O_TRUNC))
say(os.stat("t").st_size)
os.chmod("t", 0o444)
say(as_user(4000, 4000, lambda: os.open("t", os.O_WRONLY | os.O_TRUNC)))

say("# flags of open")
os.symlink("t", "l")
os.symlink("none", "dangling")
os.symlink("loop", "loop")
os.mkdir("d")
for name in ("t", "l", "dangling", "loop", "d", "none", "t/x", "d/", "t/"):
    for words, flags in (
        ("RDONLY", os.O_RDONLY), ("WRONLY", os.O_WRONLY), ("EXCL", os.O_RDWR | os.O_CREAT | os.O_EXCL),
        ("NOFOLLOW", os.O_RDONLY | os.O_NOFOLLOW), ("DIRECTORY", os.O_RDONLY | os.O_DIRECTORY),
        ("PATH", os.O_PATH), ("PATH+NOFOLLOW", os.O_PATH | os.O_NOFOLLOW), ("NOATIME", os.O_RDONLY | os.O_NOATIME),
    ):
        fd = result(os.open, name, flags)
        say(name, words, fd if isinstance(fd, str) else oct(stat.S_IFMT(os.fstat(fd).st_mode)))
        if not isinstance(fd, str):
            os.close(fd)
            if words == "EXCL":
                os.unlink(name)
fd = os.open("t", os.O_PATH)
say(result(os.read, fd, 1), result(os.fchmod, fd, 0o600), result(os.fstat, fd).st_size, result(os.getxattr, fd, "user.x"))
os.close(fd)
say(result(os.open, "none", os.O_CREAT | os.O_DIRECTORY | os.O_RDWR), os.path.exists("none"))

say("# direct beside buffered")
BLOCK = 4096
buffer = mmap.mmap(-1, 16 * BLOCK)
fd = result(os.open, "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
other = os.open("direct", os.O_RDWR)
buffer[:] = bytes(number // BLOCK + 65 for number in range(16 * BLOCK))
say(os.pwritev(fd, [buffer], 0), os.stat("direct").st_size, os.pread(other, 3, 5 * BLOCK - 1))
say(os.pwrite(other, b"buffered", 3 * BLOCK - 4), os.preadv(fd, [buffer], 0), buffer[3 * BLOCK - 4:3 * BLOCK + 5])
buffer[:BLOCK] = b"z" * BLOCK
view = memoryview(buffer)[:BLOCK]
say(os.pwritev(fd, [view], 7 * BLOCK), os.pread(other, 2, 7 * BLOCK - 1), os.pread(other, 2, 8 * BLOCK - 1))
memory = mmap.mmap(other, 16 * BLOCK)
say(memory[7 * BLOCK - 1:7 * BLOCK + 2])
memory[100:108] = b"mappings"
say(os.preadv(fd, [view], 0), buffer[98:110])
say(os.pwritev(fd, [view], 16 * BLOCK), os.stat("direct").st_size, result(os.preadv, fd, [view], 17 * BLOCK))
os.ftruncate(fd, 17 * BLOCK - 100)
say(os.preadv(fd, [view], 16 * BLOCK))
memory.close()
os.close(fd)
os.close(other)

say("# shared and private mappings in two processes")
make("m", bytes(20_000))
fd = os.open("m", os.O_RDWR)
shared = mmap.mmap(fd, 20_000)
private = mmap.mmap(fd, 20_000, mmap.MAP_PRIVATE)


def other_process():
    own = os.open("m", os.O_RDWR)
    mine = mmap.mmap(own, 20_000)
    mine[4_030:4_040] = b"from other"
    mine[0:4] = b"over"
    os.pwrite(own, b"by a write", 12_000)
    return mine[10:13]


shared[10:13] = b"abc"
private[100:104] = b"mine"
say(in_child(other_process), shared[4_030:4_040], shared[0:4], shared[12_000:12_010])
say(private[100:104], os.pread(fd, 4, 100), private[12_000:12_010])
shared[16_000:16_004] = b"late"
say(os.pread(os.open("m", os.O_RDONLY), 4, 16_000))
shared.flush()
shared.close()
os.ftruncate(fd, 5_000)
say(read("m")[4_030:4_040], len(read("m")))
os.ftruncate(fd, 20_000)
say(read("m")[5_000:] == bytes(15_000))
readonly = mmap.mmap(fd, 5_000, prot=mmap.PROT_READ)
say(os.pwrite(fd, b"seen", 50), readonly[50:54])
os.close(fd)
# Behind the end of a mapped file whose length is no multiple of the page size there are zeros, and
# bytes written there never appear in the file.
make("tail", b"x" * 100)
fd = os.open("tail", os.O_RDWR)
memory = mmap.mmap(fd, 100)
raw = (ctypes.c_char * 100).from_buffer(memory)
address = ctypes.addressof(raw)
say(ctypes.string_at(address + 100, 8))
ctypes.memmove(address + 100, b"hidden", 6)
memory.flush()
os.ftruncate(fd, 200)
say(os.pread(fd, 200, 0) == b"x" * 100 + bytes(100))
os.close(fd)


def beyond():
    make("short", b"x" * 10)
    fd = os.open("short", os.O_RDWR)
    memory = mmap.mmap(fd, 10)
    os.ftruncate(fd, 0)
    memory[0:1]


child = os.fork()
if child == 0:
    beyond()
    os._exit(0)
say("a mapping of what is gone:", os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGBUS)

say("# synchronous writes, and the offset")
for name, flag in (("O_SYNC", os.O_SYNC), ("O_DSYNC", os.O_DSYNC)):
    fd = os.open("s", os.O_RDWR | os.O_CREAT | flag)
    say(name, os.write(fd, b"0123456789"), os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 4, 3), bool(fcntl.fcntl(fd, fcntl.F_GETFL) & flag))
    os.close(fd)
fd = os.open("s", os.O_RDWR)
say(os.lseek(fd, -3, os.SEEK_END), os.read(fd, 10), os.lseek(fd, 100, os.SEEK_SET), os.read(fd, 1), os.write(fd, b"x"))
say(result(os.lseek, fd, -1, os.SEEK_SET), os.stat("s").st_size, read("s")[10:100] == bytes(90))
say(os.writev(fd, [b"a", b"bc", b""]), os.write(fd, b""), os.stat("s").st_size)
say(result(os.fsync, fd), result(os.fdatasync, fd), result(os.sync))
os.close(fd)
fd = os.open("d", os.O_RDONLY)
say(result(os.fsync, fd), result(os.fdatasync, fd), result(os.read, fd, 1), result(os.ftruncate, fd, 0))
os.close(fd)
say(result(os.truncate, "d", 0), result(os.truncate, "s", -1), result(os.truncate, "none", 0))

say("# copies by the kernel")
make("from", bytes(range(256)) * 20_000)
a, b = os.open("from", os.O_RDONLY), os.open("to", os.O_RDWR | os.O_CREAT)
say(os.copy_file_range(a, b, 5_000_000, 100, 7), os.stat("to").st_size, os.pread(b, 300, 0)[7:] == read("from")[100:393])
say(os.sendfile(b, a, 0, 1000), result(os.copy_file_range, a, a, 100, 0, 50), os.copy_file_range(a, b, 10, 6_000_000, 0))
os.close(a)
os.close(b)

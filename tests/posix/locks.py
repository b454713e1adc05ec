"""Locks between processes: each attempt runs in a process of its own."""
import_lock = struct.Struct("hhqqi4x")
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38


def lock(kind, start=0, length=0):
    return import_lock.pack(kind, os.SEEK_SET, start, length, 0)


def fresh(function):
    def body():
        fd = os.open("f", os.O_RDWR)
        came = function(fd)
        return "got it" if came is None else came
    return in_child(body)


def try_flock(kind):
    return fresh(lambda fd: fcntl.flock(fd, kind | fcntl.LOCK_NB))


def try_posix(kind, start=0, length=0):
    return fresh(lambda fd: fcntl.fcntl(fd, fcntl.F_SETLK, lock(kind, start, length)) and None)


def try_ofd(kind, start=0, length=0):
    return fresh(lambda fd: fcntl.fcntl(fd, OFD_SETLK, lock(kind, start, length)) and None)


def who(start=0, length=0):
    def ask(fd):
        found = import_lock.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, lock(fcntl.F_WRLCK, start, length)))
        return found[0], found[2], found[3], found[4] == os.getppid()
    return fresh(ask)


EX, SH, UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN
WR, RD, FREE = fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK
make("f", b"x" * 1000)

say("# flock")
fd = os.open("f", os.O_RDWR)
fcntl.flock(fd, EX)
say(try_flock(EX), try_flock(SH))
fcntl.flock(fd, SH)
say(try_flock(EX), try_flock(SH))
fcntl.flock(fd, UN)
say(try_flock(EX))
fcntl.flock(fd, EX)
twin = os.dup(fd)
os.close(fd)
say("held by a copy", try_flock(EX))
os.close(twin)
say(try_flock(EX))
fd = os.open("f", os.O_RDONLY)
say("read only", result(fcntl.flock, fd, EX))
os.close(fd)

say("# POSIX record locks")
fd = os.open("f", os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLK, lock(WR, 100, 100))
say(try_posix(WR, 150, 1), try_posix(RD, 199, 1), try_posix(WR, 200, 10), try_posix(WR, 0, 100), try_posix(WR))
say(who(0, 0), who(0, 100))
fcntl.fcntl(fd, fcntl.F_SETLK, lock(FREE, 140, 20))
say(try_posix(WR, 140, 20), try_posix(WR, 139, 2), who(130, 100))
fcntl.fcntl(fd, fcntl.F_SETLK, lock(RD, 0, 0))
say(try_posix(RD, 0, 0), try_posix(WR, 5000, 1))
say("independent of flock", try_flock(EX))
os.close(os.open("f", os.O_RDONLY))
say("gone with any close of the file", try_posix(WR))
os.close(fd)

say("# locks of open file descriptions")
fd = os.open("f", os.O_RDWR)
fcntl.fcntl(fd, OFD_SETLK, lock(WR, 10, 10))
other = os.open("f", os.O_RDWR)
say(result(fcntl.fcntl, other, OFD_SETLK, lock(WR, 15, 1)), try_ofd(RD, 19, 1), try_posix(WR, 12, 1), try_ofd(WR, 20, 1) == "EAGAIN")
os.close(other)
say("not gone with another close", try_posix(WR, 12, 1))
os.close(fd)
say(try_posix(WR, 12, 1))

say("# waiting")
fd = os.open("f", os.O_RDWR)
for name, take, give in (
    ("flock", lambda fd: fcntl.flock(fd, EX), lambda: fcntl.flock(fd, UN)),
    ("posix", lambda fd: fcntl.fcntl(fd, fcntl.F_SETLKW, lock(WR)), lambda: fcntl.fcntl(fd, fcntl.F_SETLK, lock(FREE))),
    ("ofd", lambda fd: fcntl.fcntl(fd, OFD_SETLKW, lock(WR)), lambda: fcntl.fcntl(fd, OFD_SETLK, lock(FREE))),
):
    take(fd)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        own = os.open("f", os.O_RDWR)
        os.write(sink, b"waits ")
        take(own)
        os.write(sink, b"has it ")
        os._exit(0)
    output = os.read(source, 100)
    time.sleep(0.2)
    os.write(sink, b"given ")
    give()
    os.waitpid(child, 0)
    say(name, (output + os.read(source, 100)).decode())
    os.close(source)
    os.close(sink)

say("# two that wait for one another")
fcntl.fcntl(fd, fcntl.F_SETLK, lock(WR, 0, 1))
source, sink = os.pipe()
child = os.fork()
if child == 0:
    fcntl.fcntl(fd, fcntl.F_SETLK, lock(WR, 1, 1))
    os.write(sink, b"x")
    fcntl.fcntl(fd, fcntl.F_SETLKW, lock(WR, 0, 1))
    os._exit(0)
os.read(source, 1)
time.sleep(0.2)
say(result(fcntl.fcntl, fd, fcntl.F_SETLKW, lock(WR, 1, 1)))
fcntl.fcntl(fd, fcntl.F_SETLK, lock(FREE))
say(os.waitpid(child, 0)[1])
os.close(fd)

say("# a holder that dies")
child = os.fork()
if child == 0:
    own = os.open("f", os.O_RDWR)
    fcntl.fcntl(own, fcntl.F_SETLK, lock(WR))
    fcntl.flock(own, EX)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
say(try_posix(WR), try_flock(EX))

say("# leases")
fd = os.open("f", os.O_RDONLY)
say(result(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
say(result(fcntl.fcntl, fd, fcntl.F_GETLEASE))

"""Functions that the scripts share. A script works in an empty directory and prints a line for each
result. ext4 and a mount must give the same lines, so no line contains a time, an inode number or
anything else that differs between two runs."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time

os.chdir(sys.argv[1])
os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)


def say(*words):
    print(*words, flush=True)


def result(function, *arguments, **named):
    """Returns the result of a call, or the name of its error."""
    try:
        return function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]


def checked(value):
    """Returns the result of a function of libc, or the name of its error."""
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value


AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def renameat2(old, new, flags):
    return checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64


def fallocate(fd, mode, offset, length):
    offset, length = ctypes.c_int64(offset), ctypes.c_int64(length)
    return checked(libc.fallocate64(fd, mode, offset, length))


def make(path, contents=b"", mode=0o644):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    os.write(fd, contents)
    os.close(fd)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mode(path):
    return oct(stat.S_IMODE(os.lstat(path).st_mode))


def kind(path):
    return oct(stat.S_IFMT(os.lstat(path).st_mode))


def as_user(user, group, function, groups=()):
    """Calls the function in a process of that user. Returns its result, or the name of its error."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        os.setgroups(list(groups))
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        text = str(result(function))
        os.write(sink, text.encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return text


def in_child(function):
    """Calls the function in a process of this user. Returns its result, or the name of its error."""
    return as_user(os.getuid(), os.getgid(), function)


TIMES = ("atime", "mtime", "ctime")


def times(path):
    found = os.lstat(path)
    return [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]


def changes(paths, function):
    """Returns the result of the call, and the times of the paths that it changes."""
    paths = [paths] if isinstance(paths, str) else paths
    before = [times(path) for path in paths]
    # Longer than the coarse clock that filesystems take their times from.
    time.sleep(0.02)
    came = result(function)
    words = [came] if isinstance(came, str) and came in errno.errorcode.values() else []
    for path, old in zip(paths, before):
        if os.path.lexists(path):
            moved = [name for name, a, b in zip(TIMES, old, times(path)) if a != b]
            words.append(f"{path}:{'+'.join(moved) or 'none'}")
    return " ".join(words)

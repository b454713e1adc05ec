"""An ordinary user who impersonates the daemon of a volume: with a mount by fusermount3 whose source
is any text, and with sockets under the names at which commands look for a daemon.

    impostor.py DIR FSNAME VICTIM PROOF OWN LOG

DIR     where to mount
FSNAME  the source that the mount shows
VICTIM  the directory of the impersonated daemon's volume, whose device and inode name the socket
PROOF   the descriptors sent as proof: none, own (the lock of the directory OWN, which this process
        holds), theirs (the files of VICTIM that can be opened), mixed (this process's lock, the
        victim's directory), trap (a directory of a mount that does not answer any more); or silent
        (neither the socket nor the mount ever answers)
OWN     a directory of this user's
LOG     a file with a line for each request

Prints `ready` once everything is set up. Ends with its standard input.
"""
import fcntl
import json
import os
import socket
import struct
import sys
import threading

DIR, FSNAME, VICTIM, PROOF, OWN, LOG = sys.argv[1:7]
log_lock = threading.Lock()
trapped = []


def log(line):
    with log_lock, open(LOG, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def mount():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.set_inheritable(True)
    options = f"rw,default_permissions,allow_other,subtype=bilayer,fsname={FSNAME}"
    pid = os.fork()
    if pid == 0:
        os.environ["_FUSE_COMMFD"] = str(theirs.fileno())
        os.execvp("fusermount3", ["fusermount3", "-o", options, "--", DIR])
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    return descriptors[0]


LOOKUP, GETATTR, MKDIR, OPEN, STATFS, INIT, OPENDIR = 1, 3, 9, 14, 17, 26, 27


def attributes(ino):
    times = struct.pack("<QQQIII", 0, 0, 0, 0, 0, 0)
    rest = struct.pack("<IIIIIII", 0o40777, 2, os.getuid(), os.getgid(), 0, 4096, 0)
    return struct.pack("<QQQ", ino, 0, 0) + times + rest


def serve_mount(device):
    number = 1
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError:
            return
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        error, body = 0, b""
        if opcode == INIT:
            flags = (7, 31, 65536, 0, 12, 10, 65536)
            body = struct.pack("<IIIIHHI", *flags) + bytes(40)
        elif PROOF == "silent" or trapped:
            continue
        elif opcode == GETATTR:
            body = struct.pack("<QII", 0, 0, 0) + attributes(1)
        elif opcode in (LOOKUP, MKDIR):
            if opcode == MKDIR:
                log("mkdir in the mount")
            number += 1
            body = struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attributes(number)
        elif opcode in (OPEN, OPENDIR):
            body = bytes(16)
        else:
            error = -38
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
        except OSError:
            pass


def device_number():
    """The device number of the mount, without a call that the mount would have to answer."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[4] == DIR:
                return os.makedev(*map(int, fields[2].split(":")))
    return 0


def prepare():
    """The descriptors to send as proof, open from now on."""
    if PROOF in ("none", "silent", "trap"):
        return []
    held = os.open(os.path.join(OWN, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    if PROOF == "own":
        return [held, os.open(OWN, os.O_RDONLY)]
    victim = os.open(VICTIM, os.O_RDONLY)
    if PROOF == "theirs":
        # Its mode may have been loose once.
        held = os.open(os.path.join(VICTIM, "lock"), os.O_RDONLY)
    return [held, victim]


VIEW = {
    "kind": "snapshot", "name": "IMPOSTOR", "created": None, "generation": 1, "used_bytes": 0,
    "refers_bytes": 0, "inodes": 1, "from": None, "description": "",
}
CHECKED = {
    "inodes": 1, "snapshots": 0, "objects": 0, "pages": 0, "bytes": 0, "omitted": 0,
    "omitted_faults": 0,
}
REPORT = {
    "volume": FSNAME, "verified": True, "not_verified_because": None, "view": None, "mounts": [],
    "daemon": {"pid": 1, "version": "0", "read_only": False},
    "header": {
        "format": 1, "features": [], "volume_id": "0" * 32, "incarnation": "0" * 32, "sequence": 1,
        "key_mode": "IMPOSTOR", "slots": [], "key_sets": [], "provenance": None, "foreign": False,
    },
    "fingerprint": "IMPOSTOR", "platform_keystore": None, "record": None, "layers": [],
    "usage": None, "snapshots": None, "images": None,
}


def line(body):
    return json.dumps({"version": 1, "body": body}).encode() + b"\n"


def answer(request):
    if request == "ping":
        return line("alive")
    if request == "status":
        return line({"status": REPORT})
    if request == "wait":
        # Reports that everything is on disk when nothing is.
        return line("waiting") + line({"closed": {"is_on_disk": True, "error": None}})
    if isinstance(request, str) or "operation" not in request:
        return line({"done": "nothing"})
    verb = request["operation"]["verb"]
    before, outcome = b"", "nothing"
    if verb == "create":
        outcome = {"created": VIEW}
    elif verb == "list":
        before = line({"view": VIEW})
    elif verb == "check":
        outcome = {"checked": CHECKED}
    elif verb == "export":
        before = line({"bytes": 8}) + b"IMPOSTOR"
        outcome = {"exported": {"export": "0" * 32, "objects": 0, "bytes": 8}}
    return before + line({"done": outcome})


def serve_peer(peer):
    with peer, peer.makefile("r", encoding="utf-8") as lines:
        for text in lines:
            request = json.loads(text)["body"]
            log(request if isinstance(request, str) else json.dumps(request))
            if PROOF == "silent":
                continue
            if request == "prove":
                claim = {
                    "mount": device_number(), "volume": None, "exclusive": True,
                    "closing": False, "error": None,
                }
                socket.send_fds(peer, [line({"proof": claim})], trapped * 2 or handed)
            else:
                peer.sendall(answer(request))


def listen(path):
    server = socket.socket(socket.AF_UNIX)
    if os.path.exists(path):
        os.unlink(path)
    server.bind(path)
    server.listen()
    while True:
        peer, _ = server.accept()
        threading.Thread(target=serve_peer, args=(peer,), daemon=True).start()


def spawn(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()


handed = prepare()
# Directories in which the daemon is looked up: this user's own and, if it can be created, the
# victim's.
found = os.stat(VICTIM)
names = [f"{found.st_dev:x}-{found.st_ino:x}.sock"]
if FSNAME:
    device = mount()
    spawn(serve_mount, device)
    number = device_number()
    if PROOF == "trap":
        trapped.append(os.open(DIR, os.O_RDONLY))
    names.append(f"mount-{os.major(number)}-{os.minor(number)}.sock")
for user in {os.getuid(), found.st_uid}:
    directory = f"/tmp/bilayer-{user}"
    try:
        os.mkdir(directory, 0o700)
        # The impersonated user may enter.
        os.chmod(directory, 0o700 if user == os.getuid() else 0o777)
    except FileExistsError:
        pass
    for name in names:
        spawn(listen, os.path.join(directory, name))
while not all(os.path.exists(f"/tmp/bilayer-{os.getuid()}/{name}") for name in names):
    pass
print("ready", flush=True)
sys.stdin.read()

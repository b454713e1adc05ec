//! Hints for failed system calls. The message before the hint names the path.

use std::io::{self, ErrorKind};

const MISSING_PATH: &str =
    "a part of the path is missing, or is no directory; see which: namei -l PATH";
const PERMISSION: &str =
    "see whose it is and who may: namei -l PATH; then try as its owner or as root";
const DAEMON: &str = "see whether the daemon lives: bilayer status VOLUME; and what its log says";
const DEVICE: &str = "a disk or the connection to it has failed; see the kernel's log: dmesg";
const SPACE: &str =
    "make space on that filesystem, then try again; see what it has: df -h and df -i";
const UNSUPPORTED: &str = "that filesystem or this kernel cannot do it; choose another place";
const READ_ONLY: &str = "that filesystem is read-only; see which one it is: findmnt -T PATH";
const EXISTS: &str = "choose another name, or see what is there: ls -ld PATH";
const DIRECTORY: &str = "that is a directory; name a file";
const IN_USE: &str = "see who uses it: fuser -vm PATH";
const TRY_LATER: &str = "try again in a moment; if it stays so, see the limits: ulimit -a";
const MEMORY: &str = "free some memory, or see the limit on it: ulimit -v";

/// The hint for an error; `None` if there is no step to take.
pub(crate) fn hint(error: &io::Error) -> Option<&'static str> {
    error
        .raw_os_error()
        .and_then(of_number)
        .or_else(|| of_kind(error.kind()))
}

fn of_number(number: i32) -> Option<&'static str> {
    Some(match number {
        libc::EPERM => PERMISSION,
        libc::ELOOP => "its symbolic links lead in a circle; see: namei -l PATH",
        libc::ENAMETOOLONG => "choose a shorter name",
        libc::EFBIG => "no file may be that large there; see the limit of this session: ulimit -f",
        libc::EMFILE => "let this session have more files open: ulimit -n",
        libc::ENFILE => "let the machine have more files open: sysctl fs.file-max",
        libc::ENOTCONN => {
            "the daemon of a mount there is dead: bilayer unmount DIR && bilayer mount VOLUME DIR"
        }
        libc::EIO | libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM | libc::EREMOTEIO => DEVICE,
        libc::ENOSYS | libc::EOPNOTSUPP => UNSUPPORTED,
        _ => return None,
    })
}

fn of_kind(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::NotFound | ErrorKind::NotADirectory => MISSING_PATH,
        ErrorKind::PermissionDenied => PERMISSION,
        ErrorKind::AlreadyExists => EXISTS,
        ErrorKind::DirectoryNotEmpty => "choose a directory that is empty, or not there yet",
        ErrorKind::IsADirectory => DIRECTORY,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => SPACE,
        ErrorKind::ReadOnlyFilesystem => READ_ONLY,
        ErrorKind::ResourceBusy | ErrorKind::ExecutableFileBusy => IN_USE,
        ErrorKind::WouldBlock => TRY_LATER,
        ErrorKind::OutOfMemory => MEMORY,
        ErrorKind::StaleNetworkFileHandle => "the server lost it; mount that filesystem again",
        ErrorKind::Unsupported => UNSUPPORTED,
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::TimedOut => DAEMON,
        _ => return None,
    })
}

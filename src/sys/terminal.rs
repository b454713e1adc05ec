//! The terminal of this process, and prompts for secrets on it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use zeroize::Zeroizing;

use super::interrupt::{self, Watch};

/// True if this process has a controlling terminal.
pub(crate) fn has_terminal() -> bool {
    File::options().read(true).open("/dev/tty").is_ok()
}

/// Asks for a secret on the controlling terminal without echo, and returns the line without its
/// end, truncated to `longest_bytes` + 1 bytes. The terminal is restored on return, also after a
/// signal, which is an error and does not end the process.
///
/// # Errors
/// When there is no terminal, the input ends without a line, or a signal has arrived.
pub(crate) fn ask_secret(question: &str, longest_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    // Created before the terminal is changed, and dropped after it is restored: `Silent` restores
    // it when dropped, and then drops its fields.
    let watch = Watch::begin();
    let silent = Silent::of(&terminal, watch)?;
    terminal.write_all(question.as_bytes())?;
    let line = read_line(&mut terminal, longest_bytes);
    // A signal that arrived with the line has only been noted so far.
    let line = match interrupt::arrived() {
        Some(_) => Err(interrupt::interrupted()),
        None => line,
    };
    if line.is_err() {
        // The newline that the user did not type.
        let _ = terminal.write_all(b"\n");
    }
    drop(silent);
    line
}

fn read_line(terminal: &mut File, longest_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Allocated at full size: a growing buffer leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(longest_bytes + 1));
    let mut part = Zeroizing::new([0; 256]);
    loop {
        interrupt::wait_readable(terminal.as_fd())?;
        let count = match terminal.read(&mut *part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let typed = &part[..count];
        let end = typed.iter().position(|byte| *byte == b'\n');
        let kept = &typed[..end.unwrap_or(count)];
        let space = line.capacity() - line.len();
        line.extend_from_slice(&kept[..kept.len().min(space)]);
        match (end, count) {
            (Some(_), _) => return Ok(line),
            (None, 0) if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            (None, 0) => return Ok(line),
            (None, _) => {}
        }
    }
}

/// A terminal without echo, until this is dropped.
struct Silent {
    before: libc::termios,
    terminal: File,
    _watch: Watch,
}

impl Silent {
    fn of(terminal: &File, watch: Watch) -> io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let mut before = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: an open descriptor, and a pointer to memory of the right type, for which all
        // zeroes are a value.
        let before = unsafe {
            if libc::tcgetattr(terminal.as_raw_fd(), before.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            before.assume_init()
        };
        let silent = Self {
            before,
            terminal,
            _watch: watch,
        };
        let mut without = before;
        without.c_lflag &= !libc::ECHO;
        without.c_lflag |= libc::ECHONL | libc::ICANON | libc::ISIG;
        // A suspended process would leave the terminal in this state.
        without.c_cc[libc::VSUSP] = libc::_POSIX_VDISABLE;
        silent.set(&without)?;
        Ok(silent)
    }

    fn set(&self, attributes: &libc::termios) -> io::Result<()> {
        let terminal = self.terminal.as_raw_fd();
        // SAFETY: an open descriptor and a live value.
        match unsafe { libc::tcsetattr(terminal, libc::TCSADRAIN, attributes) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // This fails only if the terminal no longer exists.
        let _ = self.set(&self.before);
    }
}

//! The terminal of this process, and a secret that is asked for on it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use zeroize::Zeroizing;

use super::interrupt::{self, Watch};

/// Whether this process has a controlling terminal.
pub fn has_terminal() -> bool {
    File::options().read(true).open("/dev/tty").is_ok()
}

/// Asks on the controlling terminal, which shows nothing of what is typed, and gives the line
/// without its end, of which no more than `longest_bytes` and one more are kept. The terminal is as
/// it was when this returns, whatever it returns: a signal is an error, and no end.
///
/// # Errors
/// When there is no terminal, what was typed has an end without a line, or a signal has come.
pub fn ask_secret(question: &str, longest_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    // Before anything is changed, and let go after it was put right: fields go in their order.
    let watch = Watch::begin();
    let silent = Silent::of(&terminal, watch)?;
    terminal.write_all(question.as_bytes())?;
    let line = read_line(&mut terminal, longest_bytes);
    // One that came with the line is noted, and nobody else looks.
    let line = match interrupt::arrived() {
        Some(_) => Err(interrupt::interrupted()),
        None => line,
    };
    if line.is_err() {
        // The end of the line that nobody has typed.
        let _ = terminal.write_all(b"\n");
    }
    drop(silent);
    line
}

fn read_line(terminal: &mut File, longest_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Of full size at once: a growing buffer leaves copies behind.
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

/// A terminal without echo, until it is dropped.
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
        // Suspended it would leave the terminal as it is now.
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
        // Nothing else can be done for a terminal that is gone.
        let _ = self.set(&self.before);
    }
}

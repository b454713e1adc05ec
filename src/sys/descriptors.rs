//! Passes open descriptors to another process over a Unix socket (`SCM_RIGHTS`, unix(7)).
//!
//! The open file description itself is passed: its locks are held until both sides have closed it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Limit on the descriptors of one message.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

const RIGHTS_BYTES: usize = DESCRIPTORS_MAX * size_of::<RawFd>();

/// Buffer for one control message with that many descriptors; larger than CMSG_SPACE requires.
#[repr(C, align(8))]
struct Control([u8; 64]);

const _: () = assert!(size_of::<Control>() >= RIGHTS_BYTES + 32);

/// Sends bytes and, with the first of them, the descriptors, which stay open here. Returns the
/// number of bytes sent.
///
/// # Errors
/// `InvalidInput` for no bytes or too many descriptors, and failures of sendmsg(2).
pub(crate) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_MAX || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights_bytes = (raw.len() * size_of::<RawFd>()) as libc::c_uint;
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: plain arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(rights_bytes) } as _;
        // SAFETY: the control buffer is aligned and is large enough for CMSG_SPACE of so many
        // descriptors (checked above and at compile time), so its first header and the data after
        // it are within it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(rights_bytes) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, descriptor) in raw.iter().enumerate() {
                data.add(at).write_unaligned(*descriptor);
            }
        }
    }
    loop {
        // SAFETY: `message` points to live buffers of the lengths it gives.
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// The number of bytes in the buffer; 0 if the other end has closed the connection.
    pub(crate) len_bytes: usize,
    /// The descriptors that came with the bytes. They are close-on-exec.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Waits for bytes, which are written to the beginning of `bytes`.
///
/// # Errors
/// `InvalidData` if there are more descriptors than a message may have, which are closed, and
/// failures of recvmsg(2).
pub(crate) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    let len_bytes = loop {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        // SAFETY: `message` points to live buffers of the lengths it gives.
        let received =
            unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(len_bytes) = usize::try_from(received) {
            break len_bytes;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let descriptors = take_descriptors(&message);
    if message.msg_flags & libc::MSG_CTRUNC != 0 || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Received {
        len_bytes,
        descriptors,
    })
}

/// Waits for one message that carries a descriptor.
///
/// # Errors
/// `UnexpectedEof` if the other end closes without sending one, `InvalidData` if the message has
/// none.
pub(crate) fn receive_one(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut received = receive(stream, &mut [0])?;
    match (received.len_bytes, received.descriptors.pop()) {
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (_, descriptor) => descriptor.ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// Takes every descriptor of a received message, so that none is left open.
fn take_descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut taken = Vec::new();
    // SAFETY: the kernel filled in msg_control and msg_controllen; CMSG_FIRSTHDR and CMSG_NXTHDR
    // yield null or a header within them, whose length says how many whole descriptors follow. The
    // kernel has just made each of them, and nobody else owns it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let is_rights =
                (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS;
            let data_bytes =
                ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let count = if is_rights {
                data_bytes / size_of::<RawFd>()
            } else {
                0
            };
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for at in 0..count {
                taken.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_come_with_the_first_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"shared").unwrap();
        let pair = [file.as_fd(), ours.as_fd()];
        assert_eq!(send(&ours, b"a line\n", &pair).unwrap(), 7);
        let mut bytes = [0; 64];
        let mut received = receive(&theirs, &mut bytes).unwrap();
        assert_eq!(&bytes[..received.len_bytes], b"a line\n");
        assert_eq!(received.descriptors.len(), 2);
        let mut same = File::from(received.descriptors.remove(0));
        // Both share the position of the one description.
        file.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared");
        assert_eq!(send(&ours, b"x", &[]).unwrap(), 1);
        let second = receive(&theirs, &mut bytes).unwrap();
        assert!(second.len_bytes == 1 && second.descriptors.is_empty());
        drop(ours);
        drop(received);
        assert_eq!(receive(&theirs, &mut bytes).unwrap().len_bytes, 0);
    }

    #[test]
    fn a_lock_is_shared_until_both_have_closed_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = File::create(&path).unwrap();
        held.try_lock().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, b"x", &[held.as_fd()]).unwrap();
        let received = receive(&theirs, &mut [0]).unwrap();
        let again = || File::open(&path).unwrap().try_lock();
        drop(held);
        again().unwrap_err();
        drop(received);
        again().unwrap();
    }

    #[test]
    fn too_many_are_refused_and_none_is_left_open() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let many = [ours.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(&ours, b"x", &many).is_err());
        assert!(send(&ours, b"", &[]).is_err());
        send(&ours, b"x", &many[..DESCRIPTORS_MAX]).unwrap();
        let received = receive(&theirs, &mut [0]).unwrap();
        assert_eq!(received.descriptors.len(), DESCRIPTORS_MAX);
    }
}

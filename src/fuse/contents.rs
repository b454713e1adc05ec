//! Requests on contents that take more than one call of the filesystem.

use std::sync::Arc;

use fuser::{INodeNo, ReplyLseek, ReplyWrite, Request};

use super::convert;
use super::dispatch::Dispatch;
use super::notify::Notices;
use super::replies::{Refuse, answer};
use super::requester::{Requester, Unprivileged};
use super::workers::Lane;
use super::write_refusals::WriteRefusals;
use crate::errno::Errno;
use crate::fs::types::{Handle, NodeId, WriteFlags};

/// Maximum bytes copied by one `copy_file_range` request: the reply has 32 bits, and a request that
/// takes seconds cannot be interrupted. A multiple of the filesystem's 4 MiB chunks.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// A WRITE request without its bytes.
pub(super) struct WriteRequest {
    pub(super) ino: INodeNo,
    pub(super) handle: Handle,
    pub(super) offset: u64,
    pub(super) flags: WriteFlags,
}

/// A LSEEK request.
pub(super) struct SeekRequest {
    pub(super) ino: INodeNo,
    pub(super) handle: Handle,
    pub(super) offset: i64,
    pub(super) whence: i32,
}

/// A COPY_FILE_RANGE request.
pub(super) struct CopyRequest {
    pub(super) from: NodeId,
    pub(super) from_offset: u64,
    pub(super) to: NodeId,
    pub(super) to_offset: u64,
    pub(super) len: u64,
}

/// Serves WRITE.
pub(super) fn write(
    dispatch: &Dispatch,
    request: &Request,
    write: WriteRequest,
    data: &[u8],
    refusals: &Arc<WriteRefusals>,
    reply: ReplyWrite,
) {
    let data: Box<[u8]> = data.into();
    let len = data.len();
    let refusals = Arc::clone(refusals);
    let WriteRequest {
        ino,
        handle,
        offset,
        flags,
    } = write;
    let cached = flags.cached;
    let unprivileged = flags
        .kill_privileges
        .then(|| Unprivileged(Requester::of(request)));
    dispatch.contents("write", request, len, len, move |fs| {
        let node = NodeId(ino.0);
        let killed = unprivileged.map(|requester| fs.kill_privileges(&requester, node));
        let written = killed.unwrap_or(Ok(())).and_then(|()| {
            // Removed above, with the rights of the requester.
            let flags = WriteFlags {
                kill_privileges: false,
                ..flags
            };
            fs.write(node, handle, offset, &data, flags)
        });
        if cached {
            refusals.record_result(fs, ino, len, written);
        }
        answer(reply, written, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX));
        });
        if cached {
            refusals.invalidate_if_refused(ino);
        }
    });
}

/// Serves LSEEK to data or a hole.
pub(super) fn seek(
    dispatch: &Dispatch,
    request: &Request,
    seek: SeekRequest,
    notices: &Arc<Notices>,
    reply: ReplyLseek,
) {
    let notices = Arc::clone(notices);
    let SeekRequest {
        ino,
        handle,
        offset,
        whence,
    } = seek;
    dispatch.submit("lseek", request, Lane::Lengthy, 0, move |fs| {
        let Some(whence) = convert::seek_whence(whence) else {
            return reply.refuse(Errno::EINVAL);
        };
        let node = NodeId(ino.0);
        // Dirty pages in the kernel would look like a hole, and `cp` would lose them.
        if fs.may_be_dirty(node) {
            notices.write_back(ino);
        }
        // POSIX and lseek(2): an offset outside of the file, on either side, is ENXIO.
        let result = u64::try_from(offset)
            .map_err(|_| Errno::ENXIO)
            .and_then(|offset| fs.seek(node, handle, offset, whence))
            .and_then(|offset| i64::try_from(offset).map_err(|_| Errno::EOVERFLOW));
        answer(reply, result, |reply, offset| reply.offset(offset));
    });
}

/// Serves COPY_FILE_RANGE.
pub(super) fn copy(dispatch: &Dispatch, request: &Request, copy: CopyRequest, reply: ReplyWrite) {
    let requester = Requester::of(request);
    dispatch.submit("copy_file_range", request, Lane::Lengthy, 0, move |fs| {
        let CopyRequest {
            from,
            from_offset,
            to,
            to_offset,
            len,
        } = copy;
        let len = len.min(COPY_BYTES_MAX);
        let copied = fs
            .kill_privileges(&requester, to)
            .and_then(|()| fs.copy_file_range(from, from_offset, to, to_offset, len));
        answer(reply, copied, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX));
        });
    });
}

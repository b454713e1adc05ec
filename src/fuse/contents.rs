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
use crate::fs::types::{Handle, NodeId};

/// Maximum bytes copied by one `copy_file_range` request: the reply has 32 bits, and a request that
/// takes seconds cannot be interrupted. A multiple of the filesystem's 4 MiB chunks.
const COPY_BYTES: u64 = 1 << 30;

/// Serves WRITE.
pub(super) fn write(
    dispatch: &Dispatch,
    request: &Request,
    (ino, handle, offset): (INodeNo, Handle, u64),
    data: &[u8],
    (kill, cached): (bool, bool),
    refusals: &Arc<WriteRefusals>,
    reply: ReplyWrite,
) {
    let data: Box<[u8]> = data.into();
    let len = data.len();
    let refusals = Arc::clone(refusals);
    let unprivileged = kill.then(|| Unprivileged(Requester::of(request)));
    dispatch.contents("write", request, (len, len), move |fs| {
        let node = NodeId(ino.0);
        let killed = unprivileged.map(|requester| fs.kill_privileges(&requester, node));
        let written = killed
            .unwrap_or(Ok(()))
            .and_then(|()| fs.write(node, handle, offset, &data, false, cached));
        if cached {
            refusals.record_result(ino, len, written);
        }
        answer(reply, written, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX));
        });
        if cached {
            refusals.invalidate_if_refused(ino);
            refusals.limits.written(len, fs);
        }
    });
}

/// Serves LSEEK to data or a hole.
pub(super) fn seek(
    dispatch: &Dispatch,
    request: &Request,
    (ino, handle, offset, whence): (INodeNo, Handle, i64, i32),
    notices: &Arc<Notices>,
    reply: ReplyLseek,
) {
    let notices = Arc::clone(notices);
    dispatch.submit("lseek", request, (Lane::Lengthy, 0), move |fs| {
        let Some(whence) = convert::seek_whence(whence) else {
            return reply.refuse(Errno::EINVAL);
        };
        let node = NodeId(ino.0);
        // Dirty pages in the kernel would look like a hole, and `cp` would lose them.
        if fs.may_be_dirty(node) {
            notices.write_back(ino);
        }
        // POSIX and lseek(2): an offset outside of the file, on either side, is ENXIO.
        let found = u64::try_from(offset)
            .map_err(|_| Errno::ENXIO)
            .and_then(|offset| fs.seek(node, handle, offset, whence))
            .and_then(|found| i64::try_from(found).map_err(|_| Errno::EOVERFLOW));
        answer(reply, found, |reply, found| reply.offset(found));
    });
}

/// Serves COPY_FILE_RANGE.
pub(super) fn copy(
    dispatch: &Dispatch,
    request: &Request,
    (from, to, len): ((NodeId, u64), (NodeId, u64), u64),
    reply: ReplyWrite,
) {
    let requester = Requester::of(request);
    dispatch.submit("copy_file_range", request, (Lane::Lengthy, 0), move |fs| {
        let len = len.min(COPY_BYTES);
        let copied = fs
            .kill_privileges(&requester, to.0)
            .and_then(|()| fs.copy_file_range(from.0, from.1, to.0, to.1, len));
        answer(reply, copied, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX));
        });
    });
}

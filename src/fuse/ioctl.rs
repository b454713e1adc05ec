//! The one `ioctl` that is known.

use fuser::{ReplyIoctl, Request};

use super::dispatch::Dispatch;
use super::replies::Refuse;
use crate::errno::Errno;
use crate::sys::identity::effective_user;

/// `_IOR('X', 125, __u32)` of `linux/fs.h` and XFS. The kernel does not hand on the number behind it,
/// how much to make durable first, since the command's name says that it is read: nothing is.
const FS_IOC_SHUTDOWN: u32 = 0x8004_587d;

/// Stops the filesystem, for root and for whoever runs it.
pub(super) fn obey(dispatch: &Dispatch, request: &Request, command: u32, reply: ReplyIoctl) {
    if command != FS_IOC_SHUTDOWN {
        return reply.refuse(Errno::ENOTTY);
    }
    if ![0, effective_user()].contains(&request.uid()) {
        return reply.refuse(Errno::EPERM);
    }
    dispatch.inline("shutdown", request, |fs| {
        fs.shut_down();
        reply.ioctl(0, &[]);
    });
}

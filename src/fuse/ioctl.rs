//! The one `ioctl` that is known.

use fuser::{ReplyIoctl, Request};

use super::asker;
use super::dispatch::Dispatch;
use super::replies::Refuse;
use super::workers::Lane;
use crate::audit::{self, Record, Requester};
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
    let asker = asker::for_audit(request);
    if ![0, effective_user()].contains(&request.uid()) {
        write_down(dispatch, request, asker, false);
        return reply.refuse(Errno::EPERM);
    }
    dispatch.inline("shutdown", request, |fs| {
        fs.shut_down();
        reply.ioctl(0, &[]);
    });
    write_down(dispatch, request, asker, true);
}

/// By a worker: the reading thread waits for no other filesystem.
fn write_down(dispatch: &Dispatch, request: &Request, asker: Requester, done: bool) {
    let lane = (Lane::Lengthy, 0);
    dispatch.hand_over("audit of the shutdown", request, lane, move |fs| {
        let _asked = audit::requested_by(asker);
        let record = Record::new("shut-down").volume(fs.volume().header.volume_id());
        match done {
            true => record.done(),
            false => record.refused("only root and whoever runs the daemon may"),
        }
    });
}

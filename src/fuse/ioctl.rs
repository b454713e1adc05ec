//! The one supported `ioctl`.

use fuser::{ReplyIoctl, Request};

use super::dispatch::Dispatch;
use super::replies::Refuse;
use super::requester::for_audit;
use super::workers::Lane;
use crate::audit::{self, Record, Requester};
use crate::errno::Errno;
use crate::sys::identity::effective_user;

/// `_IOR('X', 125, __u32)` of `linux/fs.h` and XFS. The argument says how much to make durable
/// first, but the kernel does not pass it on, since the command is declared as one that returns
/// data. Nothing is made durable.
const FS_IOC_SHUTDOWN: u32 = 0x8004_587d;

/// Shuts the filesystem down, for root and for the user that runs the daemon.
pub(super) fn handle_ioctl(
    dispatch: &Dispatch,
    request: &Request,
    command: u32,
    reply: ReplyIoctl,
) {
    if command != FS_IOC_SHUTDOWN {
        return reply.refuse(Errno::ENOTTY);
    }
    let requester = for_audit(request);
    if ![0, effective_user()].contains(&request.uid()) {
        audit_shutdown(dispatch, request, requester, false);
        return reply.refuse(Errno::EPERM);
    }
    dispatch.inline("shutdown", request, |fs| {
        fs.shut_down();
        reply.ioctl(0, &[]);
    });
    audit_shutdown(dispatch, request, requester, true);
}

/// Writes the audit record on a worker, since the reading thread must not wait for other
/// filesystems.
fn audit_shutdown(dispatch: &Dispatch, request: &Request, requester: Requester, done: bool) {
    dispatch.submit(
        "audit of the shutdown",
        request,
        Lane::Lengthy,
        0,
        move |fs| {
            let _scope = audit::requested_by(requester);
            let record = Record::new("shut-down").volume(fs.volume().header().volume_id());
            match done {
                true => record.done(),
                false => record.refused("only root and the user that runs the daemon may"),
            }
        },
    );
}

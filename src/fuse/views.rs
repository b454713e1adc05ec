//! Taking, dropping and renaming views through the mount. It makes contents durable and commits, so workers do
//! it; and the kernel is asked to send what it holds back, which the reading thread must take in
//! meanwhile. So that thread must not wait for its turn among those who change views either.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{ReplyEmpty, ReplyEntry, Request};

use super::asker;
use super::dispatch::Dispatch;
use super::replies::{answer, send_entry, send_ok};
use super::workers::Lane;
use crate::audit;
use crate::fs::types::{Caller, NodeId, RenameFlags};

/// `mkdir` in a directory that holds views.
pub(super) fn make(
    dispatch: &Dispatch,
    request: &Request,
    (caller, parent, name): (Caller, NodeId, &OsStr),
    reply: ReplyEntry,
) {
    let (name, asker) = (name.as_bytes().to_vec(), asker::for_audit(request));
    dispatch.hand_over("mkdir", request, (Lane::Lengthy, 0), move |fs| {
        let _asked = audit::requested_by(asker);
        answer(reply, fs.mkdir(&caller, parent, &name, 0), send_entry);
    });
}

/// `rmdir` in such a directory.
pub(super) fn remove(
    dispatch: &Dispatch,
    request: &Request,
    (parent, name): (NodeId, &OsStr),
    reply: ReplyEmpty,
) {
    let (name, asker) = (name.as_bytes().to_vec(), asker::for_audit(request));
    dispatch.hand_over("rmdir", request, (Lane::Lengthy, 0), move |fs| {
        let _asked = audit::requested_by(asker);
        answer(reply, fs.rmdir(parent, &name), send_ok);
    });
}

/// `rename` out of such a directory: within it, or refused.
pub(super) fn rename(
    dispatch: &Dispatch,
    request: &Request,
    caller: Caller,
    (from, to, flags): ((NodeId, &OsStr), (NodeId, &OsStr), RenameFlags),
    reply: ReplyEmpty,
) {
    let (name, new_name) = (from.1.as_bytes().to_vec(), to.1.as_bytes().to_vec());
    let asker = asker::for_audit(request);
    dispatch.hand_over("rename", request, (Lane::Lengthy, 0), move |fs| {
        let _asked = audit::requested_by(asker);
        let done = fs.rename(&caller, from.0, &name, to.0, &new_name, flags);
        answer(reply, done, send_ok);
    });
}

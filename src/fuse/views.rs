//! Taking, deleting and renaming views through the mount.
//!
//! These operations make contents durable and commit, so workers serve them. The kernel also sends
//! its dirty pages, which the reading thread must receive meanwhile; so that thread must not wait
//! for other changes of views either.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{ReplyEmpty, ReplyEntry, Request};

use super::dispatch::Dispatch;
use super::replies::{answer, send_entry, send_ok};
use super::requester::for_audit;
use super::workers::Lane;
use crate::audit;
use crate::fs::types::{Caller, DirentRef, NodeId, RenameFlags};

/// Serves `mkdir` in a directory that holds views.
pub(super) fn create(
    dispatch: &Dispatch,
    request: &Request,
    caller: Caller,
    parent: NodeId,
    name: &OsStr,
    reply: ReplyEntry,
) {
    let (name, requester) = (name.as_bytes().to_vec(), for_audit(request));
    dispatch.submit("mkdir", request, Lane::Lengthy, 0, move |fs| {
        let _scope = audit::requested_by(requester);
        answer(reply, fs.mkdir(&caller, parent, &name, 0), send_entry);
    });
}

/// Serves `rmdir` in a directory that holds views.
pub(super) fn remove(
    dispatch: &Dispatch,
    request: &Request,
    parent: NodeId,
    name: &OsStr,
    reply: ReplyEmpty,
) {
    let (name, requester) = (name.as_bytes().to_vec(), for_audit(request));
    dispatch.submit("rmdir", request, Lane::Lengthy, 0, move |fs| {
        let _scope = audit::requested_by(requester);
        answer(reply, fs.rmdir(parent, &name), send_ok);
    });
}

/// Serves `rename` from a directory that holds views: within it, or refused.
pub(super) fn rename(
    dispatch: &Dispatch,
    request: &Request,
    caller: Caller,
    from: DirentRef<'_>,
    to: DirentRef<'_>,
    flags: RenameFlags,
    reply: ReplyEmpty,
) {
    let (parent, name) = (from.parent, from.name.to_vec());
    let (new_parent, new_name) = (to.parent, to.name.to_vec());
    let requester = for_audit(request);
    dispatch.submit("rename", request, Lane::Lengthy, 0, move |fs| {
        let _scope = audit::requested_by(requester);
        let from = DirentRef::new(parent, &name);
        let to = DirentRef::new(new_parent, &new_name);
        let done = fs.rename(&caller, from, to, flags);
        answer(reply, done, send_ok);
    });
}

//! Taking, deleting and renaming views through the mount.
//!
//! This makes contents durable and commits, so workers do it. The kernel is also asked to send its
//! dirty pages, which the reading thread must receive meanwhile; so that thread must not wait for
//! other changes of views either.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{ReplyEmpty, ReplyEntry, Request};

use super::dispatch::Dispatch;
use super::replies::{answer, send_entry, send_ok};
use super::requester;
use super::workers::Lane;
use crate::audit;
use crate::fs::types::{Caller, DirentRef, NodeId, RenameFlags};

/// Serves `mkdir` in a directory that holds views.
pub(super) fn make(
    dispatch: &Dispatch,
    request: &Request,
    caller: Caller,
    parent: NodeId,
    name: &OsStr,
    reply: ReplyEntry,
) {
    let (name, asker) = (name.as_bytes().to_vec(), requester::for_audit(request));
    dispatch.submit("mkdir", request, Lane::Lengthy, 0, move |fs| {
        let _asked = audit::requested_by(asker);
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
    let (name, asker) = (name.as_bytes().to_vec(), requester::for_audit(request));
    dispatch.submit("rmdir", request, Lane::Lengthy, 0, move |fs| {
        let _asked = audit::requested_by(asker);
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
    let asker = requester::for_audit(request);
    dispatch.submit("rename", request, Lane::Lengthy, 0, move |fs| {
        let _asked = audit::requested_by(asker);
        let from = DirentRef::new(parent, &name);
        let to = DirentRef::new(new_parent, &new_name);
        let done = fs.rename(&caller, from, to, flags);
        answer(reply, done, send_ok);
    });
}

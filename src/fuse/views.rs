//! Taking and dropping views through the mount. It makes contents durable and commits, so workers do
//! it; and the kernel is asked to send what it holds back, which the reading thread must take in
//! meanwhile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{ReplyEmpty, ReplyEntry, Request};

use super::dispatch::Dispatch;
use super::replies::{answer, send_entry, send_ok};
use super::workers::Lane;
use crate::fs::types::{Caller, NodeId};

/// `mkdir` in a directory that holds views.
pub(super) fn make(
    dispatch: &Dispatch,
    request: &Request,
    (caller, parent, name): (Caller, NodeId, &OsStr),
    reply: ReplyEntry,
) {
    let name = name.as_bytes().to_vec();
    dispatch.hand_over("mkdir", request, (Lane::Lengthy, 0), move |fs| {
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
    let name = name.as_bytes().to_vec();
    dispatch.hand_over("rmdir", request, (Lane::Lengthy, 0), move |fs| {
        answer(reply, fs.rmdir(parent, &name), send_ok);
    });
}

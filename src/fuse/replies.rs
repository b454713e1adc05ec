//! Answers: from the filesystem's results to fuser's replies.

use std::time::Duration;

use fuser::{
    Generation, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::convert;
use crate::errno::Errno;
use crate::fs::types::{Attr, NodeId};

/// How long the kernel may keep what it was told.
pub(super) const REMEMBER: Duration = Duration::from_secs(24 * 60 * 60);
/// What is asked for anew every time.
const NOT_AT_ALL: Duration = Duration::ZERO;

/// How long the kernel may keep what it is told of a node. Views come and go also by other ways than
/// through the mount.
pub(super) fn remember(node: NodeId) -> Duration {
    if node.is_of_views() {
        NOT_AT_ALL
    } else {
        REMEMBER
    }
}

/// How long it may keep that a directory has no such name.
pub(super) fn remember_absence(parent: NodeId) -> Duration {
    if parent.holds_views() {
        NOT_AT_ALL
    } else {
        REMEMBER
    }
}

fn fuser_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

/// Replies that can carry an error.
pub(super) trait Refuse {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(fuser_errno(errno));
            }
        })*
    };
}
refuse!(
    ReplyAttr,
    ReplyBmap,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyPoll,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Answers with the error, or with what `accept` makes of the result.
pub(super) fn answer<R: Refuse, T>(reply: R, result: Result<T, Errno>, accept: impl FnOnce(R, T)) {
    match result {
        Ok(value) => accept(reply, value),
        Err(errno) => reply.refuse(errno),
    }
}

/// A name and what it stands for.
pub(super) fn send_entry(reply: ReplyEntry, attr: Attr) {
    reply.entry(
        &remember(attr.node),
        &convert::file_attr(&attr),
        Generation(attr.generation),
    );
}

/// Attributes.
pub(super) fn send_attr(reply: ReplyAttr, attr: Attr) {
    reply.attr(&remember(attr.node), &convert::file_attr(&attr));
}

/// Done.
pub(super) fn send_ok(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// The two-step way in which Linux asks for extended attributes: first the size, then the bytes.
pub(super) fn send_sized(reply: ReplyXattr, size: u32, bytes: &[u8]) {
    match u32::try_from(bytes.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(bytes),
        _ => reply.refuse(Errno::ERANGE),
    }
}

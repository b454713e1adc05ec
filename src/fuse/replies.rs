//! Replies: converts the filesystem's results to fuser's replies.

use std::time::Duration;

use fuser::{
    Generation, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::convert;
use crate::errno::Errno;
use crate::fs::types::{Attr, NodeId};

/// How long the kernel may cache a reply.
pub(super) const CACHE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// For replies that are not cached.
const NO_CACHE: Duration = Duration::ZERO;

/// How long the kernel may cache a reply about a node. Views also change without a request through
/// the mount.
pub(super) fn cache_ttl(node: NodeId) -> Duration {
    if node.is_of_views() {
        NO_CACHE
    } else {
        CACHE_TTL
    }
}

/// How long the kernel may cache that a directory has no such name.
pub(super) fn absence_cache_ttl(parent: NodeId) -> Duration {
    if parent.holds_views() {
        NO_CACHE
    } else {
        CACHE_TTL
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

/// Replies with the error, or passes the result to `accept`.
pub(super) fn answer<R: Refuse, T>(reply: R, result: Result<T, Errno>, accept: impl FnOnce(R, T)) {
    match result {
        Ok(value) => accept(reply, value),
        Err(errno) => reply.refuse(errno),
    }
}

/// Replies with an entry.
pub(super) fn send_entry(reply: ReplyEntry, attr: Attr) {
    reply.entry(
        &cache_ttl(attr.node),
        &convert::file_attr(&attr),
        Generation(attr.generation),
    );
}

/// Replies with attributes.
pub(super) fn send_attr(reply: ReplyAttr, attr: Attr) {
    reply.attr(&cache_ttl(attr.node), &convert::file_attr(&attr));
}

/// Replies with success.
pub(super) fn send_ok(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Replies with extended attributes. Linux asks in two steps: first for the size, then for the
/// bytes.
pub(super) fn send_sized(reply: ReplyXattr, size: u32, bytes: &[u8]) {
    match u32::try_from(bytes.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(bytes),
        _ => reply.refuse(Errno::ERANGE),
    }
}

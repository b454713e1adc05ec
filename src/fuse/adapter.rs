//! Implements `fuser::Filesystem` on [`crate::fs::Filesystem`]: it translates and contains no
//! semantics.
//!
//! - A reply is sent when the work is done and not before: that a write is unanswered is the only
//!   reason for the kernel to hold back a later truncate or fsync.
//! - Nothing else writes the volume, so the kernel may cache names, their absence, attributes,
//!   listings and contents without limit ([`CACHE_TTL`]). It drops by itself what changes through
//!   the mount.
//! - The kernel checks permissions (`default_permissions`, which POSIX ACLs imply).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};

use super::capabilities::{self, AdapterOptions};
use super::contents::{self, CopyRequest, SeekRequest, WriteRequest};
use super::convert::{self, SetAttrRequest};
use super::dispatch::Dispatch;
use super::ioctl;
use super::notify::Notices;
use super::replies::{
    CACHE_TTL, Refuse, absence_cache_ttl, answer, cache_ttl, send_attr, send_entry, send_ok,
    send_sized,
};
use super::requester::Requester;
use super::views;
use super::workers::{Lane, with_scratch};
use super::write_refusals::WriteRefusals;
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::{DirentRef, Handle, NodeId, WriteFlags};

/// Largest READ and WRITE, in bytes.
const REQUEST_BYTES: u32 = 1 << 20;

/// The FUSE adapter.
pub(super) struct Adapter {
    dispatch: Dispatch,
    options: AdapterOptions,
    notices: Arc<Notices>,
    refusals: Arc<WriteRefusals>,
    /// The kernel leaves the umask to the filesystem, so that a directory's default ACL can replace
    /// it.
    applies_umask: bool,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0)
}

impl Adapter {
    pub(super) fn new(
        dispatch: Dispatch,
        options: AdapterOptions,
        notices: Arc<Notices>,
        refusals: Arc<WriteRefusals>,
    ) -> Self {
        Self {
            dispatch,
            options,
            notices,
            refusals,
            applies_umask: false,
        }
    }

    fn umask(&self, umask: u32) -> u32 {
        if self.applies_umask { umask } else { 0 }
    }

    /// Makes the kernel drop its attributes if the access time was updated, which it does not know.
    fn note_access(&self, ino: INodeNo, updated: Result<bool, Errno>) {
        match updated {
            Ok(true) => self.notices.forget_attributes(ino),
            Ok(false) => {}
            Err(errno) => tracing::debug!(ino = ino.0, ?errno, "the access time was not updated"),
        }
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.applies_umask = capabilities::negotiate(config, self.options, REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.dispatch.inline("lookup", request, |fs| {
            match fs.lookup(node(parent), name.as_bytes()) {
                Err(Errno::ENOENT) => {
                    let time = absence_cache_ttl(node(parent));
                    reply.entry(&time, &convert::absent(), Generation(0));
                }
                result => {
                    answer(reply, result, send_entry);
                    if let Ok(attr) = result {
                        self.refusals.invalidate_if_refused(INodeNo(attr.node.0));
                    }
                }
            }
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        self.refusals.clear(node(ino));
        self.dispatch
            .inline("forget", request, |fs| fs.forget(node(ino), count));
    }

    /// With writeback, the kernel passes a file handle only when it is about to accept a write.
    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.dispatch.inline("getattr", request, |fs| {
            let refusal = fh.and_then(|_| self.refusals.refusal(fs, node(ino)));
            answer(
                reply,
                refusal.map_or_else(|| fs.getattr(node(ino)), Err),
                send_attr,
            );
            self.refusals.invalidate_if_refused(ino);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let requester = Requester::of(request);
        let requested = SetAttrRequest {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
        };
        let changes = requested.to_changes(self.options.writeback);
        let refusals = Arc::clone(&self.refusals);
        let body = move |fs: &Filesystem| {
            let changed = fs.setattr(&requester, node(ino), &changes);
            if size == Some(0) && changed.is_ok() {
                refusals.note_empty(fs, node(ino));
            }
            answer(reply, changed, send_attr);
            refusals.invalidate_if_refused(ino);
        };
        if size.is_some() {
            self.dispatch
                .submit("truncate", request, Lane::Lengthy, 0, body);
        } else {
            self.dispatch.inline("setattr", request, body);
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.dispatch.inline("readlink", request, |fs| {
            answer(reply, fs.readlink(node(ino)), |reply, target| {
                reply.data(&target);
            });
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = convert::caller(request, self.umask(umask));
        self.dispatch.inline("mknod", request, |fs| {
            let created = fs.mknod(&caller, node(parent), name.as_bytes(), mode, rdev);
            answer(reply, created, send_entry);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = convert::caller(request, self.umask(umask));
        if node(parent).holds_views() {
            return views::create(&self.dispatch, request, caller, node(parent), name, reply);
        }
        self.dispatch.inline("mkdir", request, |fs| {
            let created = fs.mkdir(&caller, node(parent), name.as_bytes(), mode);
            answer(reply, created, send_entry);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.dispatch.inline("unlink", request, |fs| {
            answer(reply, fs.unlink(node(parent), name.as_bytes()), send_ok);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if node(parent).holds_views() {
            return views::remove(&self.dispatch, request, node(parent), name, reply);
        }
        self.dispatch.inline("rmdir", request, |fs| {
            answer(reply, fs.rmdir(node(parent), name.as_bytes()), send_ok);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let caller = convert::caller(request, 0);
        self.dispatch.inline("symlink", request, |fs| {
            let target = target.as_os_str().as_bytes();
            answer(
                reply,
                fs.symlink(&caller, node(parent), name.as_bytes(), target),
                send_entry,
            );
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let caller = convert::caller(request, 0);
        let Some(flags) = convert::rename_flags(flags) else {
            return reply.refuse(Errno::EINVAL);
        };
        let from = DirentRef::new(node(parent), name.as_bytes());
        let to = DirentRef::new(node(new_parent), new_name.as_bytes());
        if from.parent.holds_views() {
            return views::rename(&self.dispatch, request, caller, from, to, flags, reply);
        }
        self.dispatch.inline("rename", request, |fs| {
            answer(reply, fs.rename(&caller, from, to, flags), send_ok);
        });
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.dispatch.inline("link", request, |fs| {
            answer(
                reply,
                fs.link(node(ino), node(new_parent), new_name.as_bytes()),
                send_entry,
            );
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = convert::caller(request, 0);
        self.dispatch.inline("open", request, |fs| {
            let opened = fs.open_file(&caller, node(ino), flags.0);
            answer(reply, opened, |reply, opened| {
                reply.opened(FileHandle(opened.0), FopenFlags::FOPEN_KEEP_CACHE);
            });
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = convert::caller(request, self.umask(umask));
        self.dispatch.inline("create", request, |fs| {
            let created = fs.create(&caller, node(parent), name.as_bytes(), mode, flags);
            answer(reply, created, |reply, (attr, opened)| {
                // Before the kernel accepts a write, it asks for attributes that it has not cached.
                let must_ask = self.refusals.note_empty(fs, attr.node);
                let time = if must_ask { Duration::ZERO } else { CACHE_TTL };
                let (attr, opened) = (convert::file_attr(&attr), FileHandle(opened.0));
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&time, &attr, Generation(0), opened, flags);
            });
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(REQUEST_BYTES) as usize;
        self.dispatch.contents("read", request, size, 0, move |fs| {
            with_scratch(size, |buffer| {
                match fs.read(node(ino), handle(fh), offset, buffer) {
                    Ok(len) => reply.data(&buffer[..len.min(size)]),
                    Err(errno) => reply.refuse(errno),
                }
            });
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Without writeback the kernel maintains no times, not even of writes through a mapping.
        let from_cache = write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE);
        let write = WriteRequest {
            ino,
            handle: handle(fh),
            offset,
            flags: WriteFlags {
                kill_privileges: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID),
                cached: self.options.writeback && from_cache,
            },
        };
        contents::write(&self.dispatch, request, write, data, &self.refusals, reply);
    }

    /// Inline: it reports errors of earlier writes and waits for nothing, and every close of a file
    /// waits for it.
    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.dispatch.inline("flush", request, |fs| {
            self.note_access(ino, fs.closing(node(ino), handle(fh)));
            answer(reply, fs.flush(), send_ok);
        });
    }

    /// Inline: one arrives with every closed file, and waking a worker costs more than the work
    /// (measured: a fifth of the time of all creates).
    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.dispatch.inline("release", request, |fs| {
            fs.release(node(ino), handle(fh));
            reply.ok();
        });
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.dispatch
            .submit("fsync", request, Lane::Lengthy, 0, move |fs| {
                answer(reply, fs.fsync(node(ino), handle(fh), datasync), send_ok);
            });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.dispatch.inline("opendir", request, |fs| {
            let opened = fs.open_dir(node(ino));
            if opened.is_ok() {
                self.note_access(ino, fs.accessed(node(ino)));
            }
            answer(reply, opened, |reply, opened| {
                let mut flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                if node(ino).holds_views() {
                    flags = FopenFlags::empty();
                }
                reply.opened(FileHandle(opened.0), flags);
            });
        });
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.dispatch.inline("readdir", request, |fs| {
            let result = fs.read_dir(node(ino), handle(fh), offset, &mut |entry| {
                let (ino, name) = (INodeNo(entry.node.0), OsStr::from_bytes(entry.name));
                !reply.add(ino, entry.next_offset, convert::file_type(entry.kind), name)
            });
            answer(reply, result, |reply, ()| reply.ok());
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.dispatch.inline("readdirplus", request, |fs| {
            let result = fs.read_dir_plus(node(ino), handle(fh), offset, &mut |entry, attr| {
                let (ino, name) = (INodeNo(entry.node.0), OsStr::from_bytes(entry.name));
                let (time, generation) = (cache_ttl(entry.node), Generation(attr.generation));
                let attr = convert::file_attr(attr);
                !reply.add(ino, entry.next_offset, name, &time, &attr, generation)
            });
            answer(reply, result, |reply, ()| reply.ok());
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dispatch.inline("releasedir", request, |fs| {
            fs.release_dir(node(ino), handle(fh));
            reply.ok();
        });
    }

    fn fsyncdir(&self, request: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.dispatch
            .submit("fsyncdir", request, Lane::Lengthy, 0, move |fs| {
                answer(reply, fs.fsync_dir(), send_ok);
            });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.dispatch.inline("statfs", request, |fs| {
            answer(reply, fs.statfs(), |reply, stat| {
                reply.statfs(
                    stat.blocks,
                    stat.blocks_free,
                    stat.blocks_available,
                    stat.inodes,
                    stat.inodes_free,
                    stat.block_bytes,
                    stat.name_max,
                    stat.block_bytes,
                );
            });
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        // fuser does not support FUSE_SETXATTR_ACL_KILL_SGID.
        let requester = Requester::of(request);
        self.dispatch.inline("setxattr", request, |fs| {
            let Some(mode) = convert::xattr_mode(flags) else {
                return reply.refuse(Errno::EINVAL);
            };
            let done = fs.set_xattr(&requester, node(ino), name.as_bytes(), value, mode);
            answer(reply, done, send_ok);
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.dispatch.inline("getxattr", request, |fs| {
            answer(
                reply,
                fs.get_xattr(node(ino), name.as_bytes()),
                |reply, value| {
                    send_sized(reply, size, &value);
                },
            );
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let requester = Requester::of(request);
        self.dispatch.inline("listxattr", request, |fs| {
            answer(
                reply,
                fs.list_xattr(&requester, node(ino)),
                |reply, names| {
                    send_sized(reply, size, &names);
                },
            );
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.dispatch.inline("removexattr", request, |fs| {
            answer(reply, fs.remove_xattr(node(ino), name.as_bytes()), send_ok);
        });
    }

    /// The kernel checks access by itself. After this reply it sends no further request.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.refuse(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        ioctl::handle_ioctl(&self.dispatch, request, command, reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::fallocate_mode(mode) else {
            return reply.refuse(Errno::ENOTSUP);
        };
        let requester = Requester::of(request);
        self.dispatch
            .submit("fallocate", request, Lane::Lengthy, 0, move |fs| {
                let done = fs
                    .kill_privileges(&requester, node(ino))
                    .and_then(|()| fs.fallocate(node(ino), handle(fh), offset, length, mode));
                answer(reply, done, send_ok);
            });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = SeekRequest {
            ino,
            handle: handle(fh),
            offset,
            whence,
        };
        contents::seek(&self.dispatch, request, seek, &self.notices, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if flags.bits() != 0 {
            return reply.refuse(Errno::EINVAL);
        }
        let copy = CopyRequest {
            from: node(from),
            from_offset,
            to: node(to),
            to_offset,
            len,
        };
        contents::copy(&self.dispatch, request, copy, reply);
    }
}

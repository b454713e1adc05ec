//! `fuser::Filesystem` for [`crate::fs::Filesystem`]: translates and owns no semantics.
//!
//! - All handlers are called by the one reading thread. What may take long goes to the workers
//!   together with its reply; everything else is answered inline.
//! - A reply is sent when the work is done and not before: the kernel orders truncate and fsync
//!   behind unanswered writes, and only so.
//! - A panic answers EIO and is logged; the mount goes on ([`run_guarded`]).
//! - Nobody else writes the volume, so the kernel may remember names, their absence, attributes,
//!   listings and contents for as long as it likes ([`REMEMBER`]); what changes through the mount
//!   it forgets by itself.
//! - Who may do what is checked by the kernel (`default_permissions`, which POSIX ACLs imply).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::convert;
use super::follow::{Follower, ThisMachine};
use super::workers::{Lane, Workers, run_guarded, with_scratch};
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::{Attr, Handle, NodeId, SetAttr};

/// How long the kernel may keep what it was told.
const REMEMBER: Duration = Duration::from_secs(24 * 60 * 60);
/// Largest READ and WRITE, in bytes.
const REQUEST_BYTES: u32 = 1 << 20;
/// Largest listing of extended attributes that Linux passes on (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65_536;
/// Largest `copy_file_range` done by one request: the reply has 32 bits, and a request that takes
/// seconds cannot be interrupted. A multiple of the filesystem's 4 MiB chunks.
const COPY_BYTES: u64 = 1 << 30;
/// READs and WRITEs up to this many bytes may be done inline: two sealed pages cost less than
/// waking a worker.
const INLINE_BYTES: usize = 8 << 10;
/// An inline READ or WRITE slower than this met the disk ...
const INLINE_SLOW: Duration = Duration::from_micros(300);
/// ... and so many after it go to the workers.
const INLINE_PENALTY: u32 = 64;

/// What the kernel is asked for, one by one; what it does not offer is done without.
const CAPABILITIES: [InitFlags; 11] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_WRITEBACK_CACHE,
];

/// How a session is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AdapterOptions {
    pub(super) writeback: bool,
    pub(super) follow_caller: bool,
    pub(super) max_background: u16,
}

/// See the module's first lines.
pub(super) struct Adapter {
    filesystem: Arc<Filesystem>,
    workers: Arc<Workers>,
    options: AdapterOptions,
    /// The kernel leaves the umask to us, so that a directory's default ACL can take its place.
    applies_umask: bool,
    follower: Option<Mutex<Follower<ThisMachine>>>,
    inline_penalty: Mutex<u32>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn fuser_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0)
}

/// Replies that can carry an error.
trait Refuse {
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
fn answer<R: Refuse, T>(reply: R, result: Result<T, Errno>, accept: impl FnOnce(R, T)) {
    match result {
        Ok(value) => accept(reply, value),
        Err(errno) => reply.refuse(errno),
    }
}

fn send_entry(reply: ReplyEntry, attr: Attr) {
    reply.entry(&REMEMBER, &convert::file_attr(&attr), Generation(0));
}

fn send_attr(reply: ReplyAttr, attr: Attr) {
    reply.attr(&REMEMBER, &convert::file_attr(&attr));
}

fn send_ok(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// The two-step way in which Linux asks for extended attributes: first the size, then the bytes.
fn send_sized(reply: ReplyXattr, size: u32, bytes: &[u8]) {
    match u32::try_from(bytes.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(bytes),
        _ => reply.refuse(Errno::ERANGE),
    }
}

impl Adapter {
    pub(super) fn new(
        filesystem: Arc<Filesystem>,
        workers: Arc<Workers>,
        options: AdapterOptions,
    ) -> Self {
        let follower = if options.follow_caller {
            ThisMachine::with_a_choice()
        } else {
            None
        };
        Self {
            filesystem,
            workers,
            options,
            applies_umask: false,
            follower: follower.map(|machine| Mutex::new(Follower::new(machine))),
            inline_penalty: Mutex::new(0),
        }
    }

    /// Answers a request on the reading thread.
    fn inline(&self, what: &str, request: &Request, body: impl FnOnce(&Filesystem)) {
        self.follow(request);
        run_guarded(what, || body(&self.filesystem));
    }

    /// Has a request answered by a worker. `bytes` is what the body holds in memory.
    fn hand_over(
        &self,
        what: &'static str,
        request: &Request,
        (lane, bytes): (Lane, usize),
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        self.follow(request);
        let filesystem = Arc::clone(&self.filesystem);
        run_guarded(what, || {
            self.workers.submit(lane, bytes, move || body(&filesystem))
        });
    }

    fn follow(&self, request: &Request) {
        if let Some(follower) = &self.follower {
            follower.lock().request_from(request.pid());
        }
    }

    fn umask(&self, umask: u32) -> u32 {
        if self.applies_umask { umask } else { 0 }
    }

    /// Whether a READ or WRITE of this size is done inline now: small, nobody at work beside it
    /// (then a worker on another CPU is the better choice), and none of the last ones was slow.
    fn inline_now(&self, bytes: usize) -> bool {
        if bytes > INLINE_BYTES {
            return false;
        }
        let mut penalty = self.inline_penalty.lock();
        if *penalty > 0 {
            *penalty -= 1;
            return false;
        }
        self.workers.at_rest()
    }

    /// Does contents work inline or hands it over.
    fn contents(
        &self,
        what: &'static str,
        request: &Request,
        (bytes, held_bytes): (usize, usize),
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        if self.inline_now(bytes) {
            let start = Instant::now();
            self.inline(what, request, body);
            if start.elapsed() > INLINE_SLOW {
                *self.inline_penalty.lock() = INLINE_PENALTY;
            }
        } else {
            self.hand_over(what, request, (Lane::Contents, held_bytes), body);
        }
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if capability == InitFlags::FUSE_WRITEBACK_CACHE && !self.options.writeback {
                continue;
            }
            if config.add_capabilities(capability).is_err() {
                tracing::info!(?capability, "not offered by this kernel; done without");
            } else if capability == InitFlags::FUSE_DONT_MASK {
                self.applies_umask = true;
            }
        }
        let background = self.options.max_background.max(1);
        // The setters refuse only values out of range, and then name the nearest good one.
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        let _ = config.set_max_background(background);
        let _ = config.set_congestion_threshold(background / 4 * 3 + 1);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.inline("lookup", request, |fs| {
            match fs.lookup(node(parent), name.as_bytes()) {
                Err(Errno::ENOENT) => reply.entry(&REMEMBER, &convert::absent(), Generation(0)),
                result => answer(reply, result, send_entry),
            }
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        self.inline("forget", request, |fs| fs.forget(node(ino), count));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.inline("getattr", request, |fs| {
            answer(reply, fs.getattr(node(ino)), send_attr)
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
        let caller = convert::caller(request, 0);
        // fuser does not pass FATTR_KILL_SUIDGID on, so it is told from what comes with it:
        // changes of owner (a chown to the same owner has no field at all), and truncation by
        // somebody without CAP_FSETID.
        let chown = uid.is_some()
            || gid.is_some()
            || (mode.is_none() && size.is_none() && atime.is_none() && mtime.is_none());
        let changes = SetAttr {
            perm: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::timespec_from_kernel),
            kill_privileges: chown || (size.is_some() && caller.uid != 0),
        };
        let body = move |fs: &Filesystem| {
            answer(reply, fs.setattr(&caller, node(ino), &changes), send_attr);
        };
        if size.is_some() {
            self.hand_over("truncate", request, (Lane::Lengthy, 0), body);
        } else {
            self.inline("setattr", request, body);
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.inline("readlink", request, |fs| {
            answer(reply, fs.readlink(node(ino)), |reply, target| {
                reply.data(&target)
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
        self.inline("mknod", request, |fs| {
            let made = fs.mknod(&caller, node(parent), name.as_bytes(), mode, rdev);
            answer(reply, made, send_entry);
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
        self.inline("mkdir", request, |fs| {
            let made = fs.mkdir(&caller, node(parent), name.as_bytes(), mode);
            answer(reply, made, send_entry);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.inline("unlink", request, |fs| {
            answer(reply, fs.unlink(node(parent), name.as_bytes()), send_ok);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.inline("rmdir", request, |fs| {
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
        self.inline("symlink", request, |fs| {
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
        self.inline("rename", request, |fs| {
            let Some(flags) = convert::rename_flags(flags) else {
                return reply.refuse(Errno::EINVAL);
            };
            let (name, new_name) = (name.as_bytes(), new_name.as_bytes());
            let done = fs.rename(
                &caller,
                node(parent),
                name,
                node(new_parent),
                new_name,
                flags,
            );
            answer(reply, done, send_ok);
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
        self.inline("link", request, |fs| {
            answer(
                reply,
                fs.link(node(ino), node(new_parent), new_name.as_bytes()),
                send_entry,
            );
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = convert::caller(request, 0);
        let body = move |fs: &Filesystem| {
            answer(
                reply,
                fs.open_file(&caller, node(ino), flags.0),
                |reply, opened| {
                    reply.opened(FileHandle(opened.0), FopenFlags::FOPEN_KEEP_CACHE);
                },
            );
        };
        if flags.0 & libc::O_TRUNC == 0 {
            self.inline("open", request, body);
        } else {
            self.hand_over("open", request, (Lane::Lengthy, 0), body);
        }
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
        self.inline("create", request, |fs| {
            let made = fs.create(&caller, node(parent), name.as_bytes(), mode, flags);
            answer(reply, made, |reply, (attr, opened)| {
                let (attr, opened) = (convert::file_attr(&attr), FileHandle(opened.0));
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&REMEMBER, &attr, Generation(0), opened, flags);
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
        self.contents("read", request, (size, 0), move |fs| {
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
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let data: Box<[u8]> = data.into();
        let len = data.len();
        self.contents("write", request, (len, len), move |fs| {
            let written = fs.write(node(ino), handle(fh), offset, &data, kill, cached);
            answer(reply, written, |reply, len| {
                reply.written(u32::try_from(len).unwrap_or(u32::MAX));
            });
        });
    }

    /// Inline: it hands over errors of earlier writes and waits for nothing, and every close of a
    /// file waits for it.
    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.inline("flush", request, |fs| {
            answer(reply, fs.flush(node(ino), handle(fh)), send_ok);
        });
    }

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
        self.hand_over("release", request, (Lane::Lengthy, 0), move |fs| {
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
        self.hand_over("fsync", request, (Lane::Lengthy, 0), move |fs| {
            answer(reply, fs.fsync(node(ino), handle(fh), datasync), send_ok);
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.inline("opendir", request, |fs| {
            answer(reply, fs.open_dir(node(ino)), |reply, opened| {
                let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
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
        self.inline("readdir", request, |fs| {
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
        self.inline("readdirplus", request, |fs| {
            let result = fs.read_dir_plus(node(ino), handle(fh), offset, &mut |entry, attr| {
                let (ino, name) = (INodeNo(entry.node.0), OsStr::from_bytes(entry.name));
                let attr = convert::file_attr(attr);
                !reply.add(
                    ino,
                    entry.next_offset,
                    name,
                    &REMEMBER,
                    &attr,
                    Generation(0),
                )
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
        self.inline("releasedir", request, |fs| {
            fs.release_dir(node(ino), handle(fh));
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.hand_over("fsyncdir", request, (Lane::Lengthy, 0), move |fs| {
            answer(
                reply,
                fs.fsync_dir(node(ino), handle(fh), datasync),
                send_ok,
            );
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.inline("statfs", request, |fs| {
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
        let caller = convert::caller(request, 0);
        self.inline("setxattr", request, |fs| {
            let Some(mode) = convert::xattr_mode(flags) else {
                return reply.refuse(Errno::EINVAL);
            };
            let done = fs.set_xattr(&caller, node(ino), name.as_bytes(), value, mode);
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
        self.inline("getxattr", request, |fs| {
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
        self.inline("listxattr", request, |fs| match fs.list_xattr(node(ino)) {
            Ok(names) if names.len() > XATTR_LIST_MAX => reply.refuse(Errno::E2BIG),
            result => answer(reply, result, |reply, names| {
                send_sized(reply, size, &names)
            }),
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = convert::caller(request, 0);
        self.inline("removexattr", request, |fs| {
            answer(
                reply,
                fs.remove_xattr(&caller, node(ino), name.as_bytes()),
                send_ok,
            );
        });
    }

    /// The kernel checks by itself; this tells it not to ask again.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.refuse(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.refuse(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.refuse(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.refuse(Errno::ENOSYS);
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
        self.hand_over("fallocate", request, (Lane::Lengthy, 0), move |fs| {
            let done = fs.fallocate(node(ino), handle(fh), offset, length, mode);
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
        self.inline("lseek", request, |fs| {
            let Some(whence) = convert::seek_whence(whence) else {
                return reply.refuse(Errno::EINVAL);
            };
            // POSIX and lseek(2): beyond the file, on either side, is ENXIO.
            let found = u64::try_from(offset)
                .map_err(|_| Errno::ENXIO)
                .and_then(|offset| fs.seek(node(ino), handle(fh), offset, whence))
                .and_then(|found| i64::try_from(found).map_err(|_| Errno::EOVERFLOW));
            answer(reply, found, |reply, found| reply.offset(found));
        });
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
        self.hand_over("copy_file_range", request, (Lane::Lengthy, 0), move |fs| {
            let len = len.min(COPY_BYTES);
            let copied = fs.copy_file_range(node(from), from_offset, node(to), to_offset, len);
            answer(reply, copied, |reply, len| {
                reply.written(u32::try_from(len).unwrap_or(u32::MAX));
            });
        });
    }
}

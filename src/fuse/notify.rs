//! Notifications to the kernel: to send its dirty pages, and to drop attributes.
//!
//! The kernel keeps dirty pages of files that are open for writing or mapped. Invalidating an inode
//! writes them back first, and the call returns when the WRITEs have been answered. So the reading
//! thread must not make it, and a worker must be free for WRITE.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::mountpoint::Mounted;
use crate::fs::KernelCache;
use crate::fs::types::{DirentRef, NodeId};

/// A request to write an inode back.
#[derive(Debug)]
struct WriteBackRequest {
    ino: INodeNo,
    /// Reports completion.
    done: SyncSender<()>,
}

/// A request to make the kernel drop the attributes of an inode.
#[derive(Debug)]
struct ForgetRequest {
    ino: INodeNo,
    /// Reports completion, if the requester waits for it.
    done: Option<SyncSender<()>>,
}

/// Notifications to the kernel.
#[derive(Debug, Default)]
pub(super) struct Notices(OnceLock<Channels>);

#[derive(Debug)]
struct Channels {
    notifier: Notifier,
    write_backs: SyncSender<WriteBackRequest>,
    forgets: Sender<ForgetRequest>,
    mounted: Mounted,
    writeback: bool,
}

impl Notices {
    /// Starts the threads; they end with this object.
    pub(super) fn start(
        &self,
        notifier: Notifier,
        mounted: Mounted,
        writeback: bool,
    ) -> io::Result<()> {
        let (write_backs, inbox) = sync_channel::<WriteBackRequest>(64);
        std::thread::Builder::new()
            .name("notifier".to_owned())
            .spawn({
                let notifier = notifier.clone();
                move || serve(&inbox, &notifier)
            })?;
        // A separate thread: if the kernel drops the inode in this call, it waits for WRITEs.
        let (forgets, to_forget) = channel::<ForgetRequest>();
        std::thread::Builder::new()
            .name("forgetter".to_owned())
            .spawn({
                let notifier = notifier.clone();
                move || {
                    for ForgetRequest { ino, done } in to_forget {
                        forget_attributes(&notifier, ino);
                        if let Some(done) = done {
                            // The caller may have stopped waiting.
                            let _ = done.try_send(());
                        }
                    }
                }
            })?;
        // Started once, before the first request.
        let _ = self.0.set(Channels {
            notifier,
            write_backs,
            forgets,
            mounted,
            writeback,
        });
        Ok(())
    }

    /// Returns when the kernel has written back all pages of the inode that were dirty at the call.
    pub(super) fn write_back(&self, ino: INodeNo) {
        let Some(channels) = self.0.get() else { return };
        let (done, wait) = sync_channel(1);
        if channels
            .write_backs
            .send(WriteBackRequest { ino, done })
            .is_ok()
        {
            let _ = wait.recv();
        }
    }

    /// Makes the kernel drop the attributes of an inode that a process is opening at this moment.
    /// The kernel does not release such an inode and waits for nothing, so the reading thread may
    /// call this.
    pub(super) fn forget_attributes(&self, ino: INodeNo) {
        if let Some(channels) = self.0.get() {
            forget_attributes(&channels.notifier, ino);
        }
    }

    /// Makes the kernel drop the attributes of any inode soon, without waiting.
    pub(super) fn forget_attributes_soon(&self, ino: INodeNo) {
        if let Some(channels) = self.0.get() {
            // This fails if the mount, and so its cache, does not exist any more.
            let _ = channels.forgets.send(ForgetRequest { ino, done: None });
        }
    }

    /// Makes the kernel drop the attributes of any inode, and waits at most that long for it. A
    /// thread that serves a request may call this, although the kernel may be waiting for that
    /// request in this very call.
    pub(super) fn forget_attributes_within(&self, ino: INodeNo, time: Duration) {
        if let Some(channels) = self.0.get() {
            let (done, wait) = sync_channel(1);
            let done = Some(done);
            if channels.forgets.send(ForgetRequest { ino, done }).is_ok() {
                let _ = wait.recv_timeout(time);
            }
        }
    }
}

impl KernelCache for Notices {
    fn write_back(&self, nodes: &[NodeId]) {
        // If only single inodes were invalidated, the kernel would send single pages, and no times.
        let sent = self.0.get().map(|channels| channels.mounted.send_all());
        if let Some(Err(error)) = sent {
            tracing::debug!(%error, "the kernel sends its dirty pages file by file");
        }
        for node in nodes {
            Self::write_back(self, INodeNo(node.0));
        }
    }

    /// With writeback the kernel has the newest size and times of files while it has the inode
    /// (`fuse_get_cache_mask` of Linux).
    fn trusts_cached_attrs(&self) -> bool {
        self.0.get().is_some_and(|channels| channels.writeback)
    }

    /// Must not be called by a thread that serves requests: the kernel waits for those.
    fn forget(&self, nodes: &[NodeId], names: &[DirentRef<'_>]) {
        let Some(channels) = self.0.get() else { return };
        for entry in names {
            let name = OsStr::from_bytes(entry.name);
            // An error means that the kernel does not have it.
            let _ = channels.notifier.inval_entry(INodeNo(entry.parent.0), name);
        }
        for node in nodes {
            let _ = channels.notifier.inval_inode(INodeNo(node.0), 0, 0);
        }
    }
}

fn forget_attributes(notifier: &Notifier, ino: INodeNo) {
    if let Err(error) = notifier.inval_inode(ino, -1, 0) {
        tracing::debug!(ino = ino.0, %error, "attributes not dropped");
    }
}

fn serve(inbox: &Receiver<WriteBackRequest>, notifier: &Notifier) {
    while let Ok(WriteBackRequest { ino, done }) = inbox.recv() {
        if let Err(error) = notifier.inval_inode(ino, 0, 0) {
            tracing::debug!(ino = ino.0, %error, "nothing to write back");
        }
        let _ = done.send(());
    }
}

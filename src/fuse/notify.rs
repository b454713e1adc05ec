//! Telling the kernel: to send what it holds back, to forget attributes.
//!
//! The kernel keeps dirty pages of files that are open for writing or mapped. Invalidating an
//! inode writes them back first, and the call returns when the WRITEs have been answered: that is
//! why it must not be made by the reading thread, and why a worker must be free for WRITE.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::mountpoint::Mounted;
use crate::fs::KernelCache;
use crate::fs::types::NodeId;

/// An inode to write back, and where to say that it is done.
type Wish = (INodeNo, SyncSender<()>);

/// An inode whose attributes the kernel is to forget, and where to say that it has, if anywhere.
type Forgotten = (INodeNo, Option<SyncSender<()>>);

/// What the kernel can be told.
#[derive(Debug, Default)]
pub(super) struct Notices(OnceLock<Channels>);

#[derive(Debug)]
struct Channels {
    notifier: Notifier,
    wishes: SyncSender<Wish>,
    forgotten: Sender<Forgotten>,
    mounted: Mounted,
    writeback: bool,
}

impl Notices {
    /// Starts the thread; it ends with this object.
    pub(super) fn start(
        &self,
        notifier: Notifier,
        mounted: Mounted,
        writeback: bool,
    ) -> io::Result<()> {
        let (wishes, inbox) = sync_channel::<Wish>(64);
        std::thread::Builder::new()
            .name("notifier".to_owned())
            .spawn({
                let notifier = notifier.clone();
                move || serve(&inbox, &notifier)
            })?;
        // One of its own: where the kernel lets go of an inode in this call, it waits for WRITEs.
        let (forgotten, to_forget) = channel::<Forgotten>();
        std::thread::Builder::new()
            .name("forgetter".to_owned())
            .spawn({
                let notifier = notifier.clone();
                move || {
                    for (ino, done) in to_forget {
                        forget_attributes(&notifier, ino);
                        if let Some(done) = done {
                            // Nobody waits any more.
                            let _ = done.try_send(());
                        }
                    }
                }
            })?;
        // Started once, before the first request.
        let _ = self.0.set(Channels {
            notifier,
            wishes,
            forgotten,
            mounted,
            writeback,
        });
        Ok(())
    }

    /// Returns when the kernel holds no dirty page of the inode that it held at the call.
    pub(super) fn write_back(&self, ino: INodeNo) {
        let Some(channels) = self.0.get() else { return };
        let (done, wait) = sync_channel(1);
        if channels.wishes.send((ino, done)).is_ok() {
            let _ = wait.recv();
        }
    }

    /// Has the kernel ask for the attributes of an inode again. For one that somebody opens at this
    /// moment: such an inode is not about to go, the kernel waits for nothing, and so the reading
    /// thread may call this.
    pub(super) fn forget_attributes(&self, ino: INodeNo) {
        if let Some(channels) = self.0.get() {
            forget_attributes(&channels.notifier, ino);
        }
    }

    /// The same soon, for any inode; whoever calls waits for nothing.
    pub(super) fn forget_attributes_soon(&self, ino: INodeNo) {
        if let Some(channels) = self.0.get() {
            // It fails where the mount is gone, and with it what was to be forgotten.
            let _ = channels.forgotten.send((ino, None));
        }
    }

    /// The same, and waits so long at most until it is done: a thread that serves a request may,
    /// for which the kernel may be waiting in that very call.
    pub(super) fn forget_attributes_within(&self, ino: INodeNo, time: Duration) {
        if let Some(channels) = self.0.get() {
            let (done, wait) = sync_channel(1);
            if channels.forgotten.send((ino, Some(done))).is_ok() {
                let _ = wait.recv_timeout(time);
            }
        }
    }
}

impl KernelCache for Notices {
    fn write_back(&self, nodes: &[NodeId]) {
        // Inode by inode, the kernel would send page by page, and no times.
        let sent = self.0.get().map(|channels| channels.mounted.send_all());
        if let Some(Err(error)) = sent {
            tracing::debug!(%error, "the kernel sends what it holds back file by file");
        }
        for node in nodes {
            Self::write_back(self, INodeNo(node.0));
        }
    }

    /// With writeback the kernel has the newest size and times of files, while it has the inode
    /// (`fuse_get_cache_mask` of Linux).
    fn believes_itself(&self) -> bool {
        self.0.get().is_some_and(|channels| channels.writeback)
    }

    /// Not to be called by a thread that serves requests: the kernel waits for those.
    fn forget(&self, nodes: &[NodeId], names: &[(NodeId, Vec<u8>)]) {
        let Some(channels) = self.0.get() else { return };
        for (directory, name) in names {
            let name = OsStr::from_bytes(name);
            // What the kernel does not know, it need not forget.
            let _ = channels.notifier.inval_entry(INodeNo(directory.0), name);
        }
        for node in nodes {
            let _ = channels.notifier.inval_inode(INodeNo(node.0), 0, 0);
        }
    }
}

fn forget_attributes(notifier: &Notifier, ino: INodeNo) {
    if let Err(error) = notifier.inval_inode(ino, -1, 0) {
        tracing::debug!(ino = ino.0, %error, "attributes not forgotten");
    }
}

fn serve(inbox: &Receiver<Wish>, notifier: &Notifier) {
    while let Ok((ino, done)) = inbox.recv() {
        if let Err(error) = notifier.inval_inode(ino, 0, 0) {
            tracing::debug!(ino = ino.0, %error, "nothing to write back");
        }
        let _ = done.send(());
    }
}

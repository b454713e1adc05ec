//! Asking the kernel to send what it holds back, from a thread that serves no request.
//!
//! The kernel keeps dirty pages of files that are open for writing or mapped. Invalidating an
//! inode writes them back first, and the call returns when the WRITEs have been answered: that is
//! why it must not be made by the reading thread, and why a worker must be free for WRITE.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

/// An inode to write back, and where to say that it is done.
type Wish = (INodeNo, SyncSender<()>);

/// Writes back what the kernel holds of an inode.
#[derive(Debug, Default)]
pub(super) struct WriteBack(OnceLock<SyncSender<Wish>>);

impl WriteBack {
    /// Starts the thread; it ends with this object.
    pub(super) fn start(&self, notifier: Notifier) -> io::Result<()> {
        let (wishes, inbox) = sync_channel::<Wish>(64);
        std::thread::Builder::new()
            .name("notifier".to_owned())
            .spawn(move || serve(&inbox, &notifier))?;
        // Started once, before the first request.
        let _ = self.0.set(wishes);
        Ok(())
    }

    /// Returns when the kernel holds no dirty page of the inode that it held at the call.
    pub(super) fn wait_for(&self, ino: INodeNo) {
        let Some(wishes) = self.0.get() else { return };
        let (done, wait) = sync_channel(1);
        if wishes.send((ino, done)).is_ok() {
            let _ = wait.recv();
        }
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

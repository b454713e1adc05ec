//! When changes become durable: on fsync, by time, and under memory pressure.
//!
//! A commit contains every change applied before it. Files whose contents must be durable first
//! (renamed over others, or truncated and written again) are synced before the commit's contents
//! are fixed.

use super::{Filesystem, FsError};
use crate::audit;
use crate::errno::Errno;
use crate::meta::Batch;
use crate::planted::{Bug, planted};

/// How often a commit syncs ordered files while changes may add further ones. After that it keeps
/// changes out.
const ORDERED_ROUNDS: u32 = 4;

impl Filesystem {
    /// Commits every change applied so far. Many callers share one commit.
    pub(super) fn commit_now(&self) -> Result<(), FsError> {
        self.add_audit_head();
        let through = self.meta.newest_batch();
        for _ in 0..ORDERED_ROUNDS {
            self.contents.sync_ordered()?;
            if self
                .meta
                .commit(through, &|| self.contents.none_ordered())?
            {
                return Ok(());
            }
        }
        let _permit = self.meta.permit();
        let _namespace = self.namespace.lock();
        loop {
            self.contents.sync_ordered()?;
            if self
                .meta
                .commit(through, &|| self.contents.none_ordered())?
            {
                return Ok(());
            }
        }
    }

    /// Adds the head of the audit to a commit that is about to be made, if the head is new. So the
    /// volume knows how far the audit went when it was changed.
    fn add_audit_head(&self) {
        let head = audit::head();
        if head.is_none() || !self.meta.is_changed() {
            return;
        }
        let mut committed = self.noted_audit_head.lock();
        if let Some(head) = head.filter(|_| *committed != head) {
            let mut batch = Batch::new();
            self.meta.put_audit_head(&mut batch, head.encode());
            // The filesystem is being closed, or was ended by an error.
            if let Err(error) = self.meta.apply(batch) {
                tracing::debug!(%error, "the volume does not note the head of the audit");
                return;
            }
            *committed = Some(head);
        }
    }

    /// The head of the audit that the volume's metadata has; `None` if it has none.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn audit_head(&self) -> Result<Option<audit::Head>, FsError> {
        let head = self.meta.audit_head()?;
        Ok(head.and_then(|head| audit::Head::decode(&head)))
    }

    /// Makes everything durable, contents included, and frees the space of what was removed.
    pub(super) fn sync_everything(&self) -> Result<(), FsError> {
        self.contents.sync_all()?;
        if planted(Bug::UnlinkBeforeCommit) || planted(Bug::PunchBeforeCommit) {
            self.contents.collect()?;
        }
        self.commit_now()?;
        // Even if an fsync has committed already: this writes only what is new to the keystore.
        self.record_in_keystore(false);
        self.contents.collect()?;
        Ok(())
    }

    /// Makes everything durable that was changed before (`sync(2)`).
    ///
    /// # Errors
    /// Not everything could be made durable.
    pub fn sync(&self) -> Result<(), FsError> {
        if self.is_read_only() {
            return Ok(());
        }
        self.sync_everything()
    }

    /// Starts a commit if much is pending, and waits for it if twice as much is. Changes of the
    /// metadata are pending, and written files and objects that wait for their sync.
    pub(super) fn relieve_pressure(&self) -> Result<(), Errno> {
        let pending = self.meta.pending_bytes();
        let files = self.contents.recent_bytes();
        let limit = self.pending_limit();
        let limit_to_wait = limit.saturating_mul(2);
        if pending > limit_to_wait {
            return match self.commit_now().map_err(|error| error.errno()) {
                // A deletion frees space. Other operations are refused where they request space.
                Err(errno) if errno.is_full() && pending <= self.options.pending_bytes => Ok(()),
                result => result,
            };
        }
        if files > limit_to_wait {
            return match self.sync_everything().map_err(|error| error.errno()) {
                // A deletion frees space.
                Err(errno) if errno.is_full() => Ok(()),
                result => result,
            };
        }
        if pending.max(files) > limit || self.contents.is_sync_due() {
            self.wake_background();
        }
        Ok(())
    }

    /// Bytes of changes beyond which a commit is started.
    pub(super) fn pending_limit(&self) -> usize {
        let limit = self.options.pending_bytes;
        self.ballast
            .pending_bytes()
            .map_or(limit, |bytes| bytes.min(limit))
    }
}

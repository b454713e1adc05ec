//! Room on a full disk: what was removed is given back before anybody is told that there is none.
//!
//! A removed file's objects go after the commit that removes their names, in the background, and what
//! only deleted views saw after that. Until then they take room that the caller believes to be free. So whoever meets a full disk has this
//! done at once and tries again; several who meet it share one turn. Of checkpoints the older one goes
//! too.
//!
//! Nothing may be held that a commit waits for: no inode, no file's gate, not the namespace.

use super::{Filesystem, FsError};
use crate::errno::Errno;

/// How often views that were deleted are worked on by one who waits for room.
const PURGE_TURNS: u32 = 20;

impl Filesystem {
    /// Runs a change; when there is no room for it, makes room and runs it once more. It must be
    /// one that may be run twice.
    pub(super) fn with_room<T, E: Into<Errno>>(
        &self,
        mut change: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Errno> {
        let seen = *self.room_made.lock();
        match change().map_err(Into::into) {
            Err(errno) if errno.is_full() && self.make_room(seen, errno) => {
                change().map_err(Into::into)
            }
            result => result,
        }
    }

    /// True while something that was removed has not given its room back: whoever needs it has that
    /// done.
    pub fn gives_room_back(&self) -> bool {
        !self.meta.leaving_views().is_empty()
            || !self.doomed.lock().is_empty()
            || self.contents.has_garbage().unwrap_or(false)
    }

    /// True when room was made since `seen`.
    fn make_room(&self, seen: u64, errno: Errno) -> bool {
        let mut made = self.room_made.lock();
        if *made != seen {
            return true;
        }
        let waits = self.gives_room_back();
        let gave_way = self.checkpoint_gives_way(errno);
        if !waits && !gave_way {
            return false;
        }
        self.remove_doomed();
        let mut turns = 0;
        while turns < PURGE_TURNS && self.purge_some() {
            turns += 1;
        }
        // What is committed already can go even if there is no room for a commit; and then there is.
        let freed = self.contents.collect().is_ok();
        let committed = self.commit_now().is_ok();
        let freed = self.contents.collect().is_ok() || freed || gave_way;
        self.ballast.allow_refill();
        tracing::info!(
            committed,
            freed,
            "the disk is full: removed files give their room back"
        );
        *made += 1;
        freed
    }

    /// Makes every change applied so far durable, and room for that if there is none.
    pub(super) fn commit_with_room(&self) -> Result<(), FsError> {
        let committed = self.with_room(|| self.commit_now().map_err(|error| error.errno()));
        // What went wrong is told in its own words.
        committed.or_else(|_| self.commit_now())
    }
}

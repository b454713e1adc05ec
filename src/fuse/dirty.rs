//! How much of what was written the kernel may hold back.
//!
//! [`HELD_BACK_BYTES`], which is work for a fraction of a second and less than what may wait for a
//! worker: the kernel sends it in the order in which it was written, so that everybody who closes
//! or syncs a file waits until what others have written before was read. Near the end of the room
//! only [`NEAR_THE_END_BYTES`]: so much may be lost by programs that never ask whether it was
//! written (fsync, close), and whoever writes on is told soon. Only root can tell the kernel;
//! others' mounts have its own limit, 1 % of what memory may be dirty.
//!
//! Source: Documentation/ABI/testing/sysfs-class-bdi of Linux (`max_bytes`: Linux 6.2).

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::Filesystem;

/// What may be held back.
const HELD_BACK_BYTES: u64 = 64 << 20;
/// What may be held back near the end of the room.
const NEAR_THE_END_BYTES: u64 = 32 << 20;
/// The room is looked at after so many bytes ...
const STEP_BYTES: u64 = 16 << 20;
/// ... and for the first write after so long.
const STEP_TIME: Duration = Duration::from_secs(1);
/// How far ahead the kernel reads a file that is read in order: two requests of full size.
const READ_AHEAD_KIB: u64 = 2048;

/// The kernel's limits of one mount.
#[derive(Debug, Default)]
pub(super) struct DirtyLimits {
    folder: OnceLock<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes_since: u64,
    looked_at: Option<Instant>,
    is_near: bool,
}

impl DirtyLimits {
    /// Lifts the limits that the kernel sets to FUSE mounts, in the folder of the mount's device.
    pub(super) fn lift(&self, folder: PathBuf, filesystem: &Filesystem) {
        let folder = self.folder.get_or_init(|| folder);
        for (name, value) in [
            ("read_ahead_kb", READ_AHEAD_KIB),
            ("max_bytes", HELD_BACK_BYTES),
            ("strict_limit", 1),
        ] {
            tell(folder, name, value);
        }
        self.look(&mut self.state.lock(), filesystem);
    }

    /// So many bytes came that the kernel had held back.
    pub(super) fn written(&self, bytes: usize, filesystem: &Filesystem) {
        // Somebody else looks.
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        state.bytes_since += bytes as u64;
        let is_due = state.bytes_since >= STEP_BYTES
            || state
                .looked_at
                .is_none_or(|then| then.elapsed() > STEP_TIME);
        if is_due {
            self.look(&mut state, filesystem);
        }
    }

    fn look(&self, state: &mut State, filesystem: &Filesystem) {
        state.bytes_since = 0;
        state.looked_at = Some(Instant::now());
        let Some(folder) = self.folder.get() else {
            return;
        };
        let Ok(space) = filesystem.statfs() else {
            return;
        };
        let room = space
            .blocks_available
            .saturating_mul(space.block_bytes.into());
        let is_near = room < most_dirty_bytes().saturating_add(2 * NEAR_THE_END_BYTES);
        if is_near == state.is_near {
            return;
        }
        state.is_near = is_near;
        let most = if is_near {
            NEAR_THE_END_BYTES
        } else {
            HELD_BACK_BYTES
        };
        tell(folder, "max_bytes", most);
        tracing::debug!(room, is_near, "what the kernel may hold back was changed");
    }
}

fn tell(folder: &std::path::Path, name: &str, value: u64) {
    if let Err(error) = fs::write(folder.join(name), value.to_string()) {
        tracing::debug!(name, %error, "a limit of the kernel stays as it is");
    }
}

/// What of memory may be dirty at most: `vm.dirty_bytes`, or `vm.dirty_ratio` percent of all.
fn most_dirty_bytes() -> u64 {
    let number = |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    match number("/proc/sys/vm/dirty_bytes") {
        Some(bytes) if bytes > 0 => bytes,
        _ => {
            let percent = number("/proc/sys/vm/dirty_ratio").unwrap_or(20).min(100);
            memory_bytes().unwrap_or(u64::MAX / 100) / 100 * percent
        }
    }
}

/// `MemTotal` of proc_meminfo(5).
fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn some_of_memory_may_be_dirty() {
        let (most, memory) = (super::most_dirty_bytes(), super::memory_bytes().unwrap());
        assert!(0 < most && most < memory.max(1 << 40), "{most} of {memory}");
    }
}

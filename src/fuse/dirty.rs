//! Limits of the kernel's dirty pages for the mount.
//!
//! The limit is [`DIRTY_BYTES_MAX`], which is work for a fraction of a second and less than what
//! may wait for a worker. The kernel sends dirty pages in the order in which they were written, so
//! a close or sync of a file waits until what others have written before was received. Near the end
//! of the free space the limit is [`DIRTY_BYTES_NEAR_FULL`]: programs that never check whether a
//! write succeeded (fsync, close) may lose that much, and programs that write on get an error soon.
//! Only root can set the limit. Mounts of other users have the kernel's own, 1 % of the memory that
//! may be dirty.
//!
//! Source: Documentation/ABI/testing/sysfs-class-bdi of Linux (`max_bytes`: Linux 6.2).

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::Filesystem;

/// Maximum dirty bytes of the mount.
const DIRTY_BYTES_MAX: u64 = 64 << 20;
/// Maximum dirty bytes near the end of the free space.
const DIRTY_BYTES_NEAR_FULL: u64 = 32 << 20;
/// The free space is checked after this number of written bytes ...
const STEP_BYTES: u64 = 16 << 20;
/// ... and at the first write after this time.
const STEP_TIME: Duration = Duration::from_secs(1);
/// Read-ahead of the kernel for sequential readers: two requests of full size.
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
    checked_at: Option<Instant>,
    is_near: bool,
}

impl DirtyLimits {
    /// Raises the limits that the kernel sets for FUSE mounts, in the sysfs folder of the mount's
    /// device.
    pub(super) fn raise(&self, folder: PathBuf, filesystem: &Filesystem) {
        let folder = self.folder.get_or_init(|| folder);
        for (name, value) in [
            ("read_ahead_kb", READ_AHEAD_KIB),
            ("max_bytes", DIRTY_BYTES_MAX),
            ("strict_limit", 1),
        ] {
            write_limit(folder, name, value);
        }
        self.update_limit(&mut self.state.lock(), filesystem);
    }

    /// Notes that the kernel has sent that many dirty bytes.
    pub(super) fn written(&self, bytes: usize, filesystem: &Filesystem) {
        // Another thread checks at this moment.
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        state.bytes_since += bytes as u64;
        let is_due = state.bytes_since >= STEP_BYTES
            || state
                .checked_at
                .is_none_or(|then| then.elapsed() > STEP_TIME);
        if is_due {
            self.update_limit(&mut state, filesystem);
        }
    }

    fn update_limit(&self, state: &mut State, filesystem: &Filesystem) {
        state.bytes_since = 0;
        state.checked_at = Some(Instant::now());
        let Some(folder) = self.folder.get() else {
            return;
        };
        let Ok(space) = filesystem.statfs() else {
            return;
        };
        let free_bytes = space
            .blocks_available
            .saturating_mul(space.block_bytes.into());
        let is_near =
            free_bytes < machine_dirty_bytes_max().saturating_add(2 * DIRTY_BYTES_NEAR_FULL);
        if is_near == state.is_near {
            return;
        }
        state.is_near = is_near;
        let most = if is_near {
            DIRTY_BYTES_NEAR_FULL
        } else {
            DIRTY_BYTES_MAX
        };
        write_limit(folder, "max_bytes", most);
        tracing::debug!(
            free_bytes,
            is_near,
            "the kernel's limit of dirty pages was changed"
        );
    }
}

fn write_limit(folder: &std::path::Path, name: &str, value: u64) {
    if let Err(error) = fs::write(folder.join(name), value.to_string()) {
        tracing::debug!(name, %error, "a limit of the kernel stays as it is");
    }
}

/// Maximum dirty memory of the machine: `vm.dirty_bytes`, or `vm.dirty_ratio` percent of all.
fn machine_dirty_bytes_max() -> u64 {
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
        let (most, memory) = (
            super::machine_dirty_bytes_max(),
            super::memory_bytes().unwrap(),
        );
        assert!(0 < most && most < memory.max(1 << 40), "{most} of {memory}");
    }
}

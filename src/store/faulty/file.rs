//! One file of the faulty store: the contents that programs see, and those that the disk may have.
//!
//! Invariants: `durable` holds the contents that the last successful sync covered. A page that
//! differs, or may have differed at some time since, has a history; a page without a history is the
//! same on both sides. The newest version of a history is the page that programs see.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::contents::{Contents, PAGE_BYTES, Page, SpaceBudget, end_of_range};
use super::random::{Chance, Random};
use super::{Effect, WriteUnit};

const PAGE: u64 = PAGE_BYTES as u64;
const SECTOR_BYTES: usize = 512;

/// Limit on the remembered versions of a page, and lengths of a file, between two syncs; the newest
/// are kept.
const REMEMBERED: usize = 16;

/// The versions of a page since it was last known to be durable.
#[derive(Debug, Default)]
struct History {
    /// Oldest first; a hole is `None`. The durable version is not among them.
    versions: Vec<Option<Arc<Page>>>,
    /// False after a failed sync: the kernel considers the page clean, and the next sync does not
    /// write it.
    dirty: bool,
}

/// Both sides of a file.
#[derive(Debug)]
pub(super) struct FaultyContents {
    current: Contents,
    durable: Contents,
    histories: BTreeMap<u64, History>,
    /// Lengths since the last sync, oldest first.
    lengths: Vec<u64>,
}

impl FaultyContents {
    /// An empty file, durably so (once its name is).
    pub(super) fn new(budget: Arc<SpaceBudget>) -> Self {
        Self::durable(Contents::new(budget))
    }

    /// A file whose every byte is on the disk.
    pub(super) fn durable(current: Contents) -> Self {
        Self {
            durable: current.copy_into(SpaceBudget::new(None)),
            current,
            histories: BTreeMap::new(),
            lengths: Vec::new(),
        }
    }

    /// The current contents.
    pub(super) const fn current(&self) -> &Contents {
        &self.current
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.current.write_at(bytes, offset)?;
        if !bytes.is_empty() {
            let end = offset + bytes.len() as u64;
            self.remember((offset / PAGE..end.div_ceil(PAGE)).collect());
        }
        Ok(())
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) -> io::Result<()> {
        let touched = self.known_pages(len_bytes / PAGE..u64::MAX);
        self.current.set_len(len_bytes)?;
        self.remember(touched);
        Ok(())
    }

    pub(super) fn punch(&mut self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let end = end_of_range(offset, len_bytes)?;
        let touched = self.known_pages(offset / PAGE..end.div_ceil(PAGE));
        self.current.punch(offset, len_bytes)?;
        self.remember(touched);
        Ok(())
    }

    /// Changes no bytes, so nothing can be lost.
    pub(super) fn reserve(&mut self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.current.reserve(offset, len_bytes)
    }

    /// Ends an fdatasync, successful or not.
    pub(super) fn end_sync(&mut self, effect: Effect) {
        match effect {
            Effect::GiveUp => self.fail_sync(),
            Effect::Whole | Effect::Short(_) => self.sync(),
        }
    }

    /// The effect of a successful fdatasync.
    fn sync(&mut self) {
        for (&index, _) in self.histories.iter().filter(|(_, history)| history.dirty) {
            self.durable
                .set_page(index, self.current.page(index).cloned());
        }
        self.histories.retain(|_, history| !history.dirty);
        self.durable.trim_to(self.current.len_bytes());
        self.lengths.clear();
    }

    /// The effect of a failed fdatasync: pages may or may not be on the disk, and no later sync
    /// covers them unless they are written again.
    fn fail_sync(&mut self) {
        for history in self.histories.values_mut() {
            history.dirty = false;
        }
    }

    /// The bytes that a power cut leaves.
    pub(super) fn survivor(
        &self,
        budget: Arc<SpaceBudget>,
        unit: WriteUnit,
        random: &mut Random,
    ) -> Contents {
        let mut survivor = self.durable.copy_into(budget);
        let chance = random.chance();
        for (&index, history) in &self.histories {
            let durable = self.durable.page(index).cloned();
            survivor.set_page(
                index,
                surviving_page(durable, history, chance, unit, random),
            );
        }
        let len_bytes = match pick(self.lengths.len(), chance, random) {
            0 => self.durable.len_bytes(),
            number => self.lengths[number - 1],
        };
        survivor.trim_to(len_bytes);
        survivor
    }

    /// Pages of the range that are allocated now, or were since the last sync.
    fn known_pages(&self, range: Range<u64>) -> Vec<u64> {
        let mut pages = self.current.allocated_in(range.clone());
        if !range.is_empty() {
            pages.extend(self.histories.range(range).map(|(&index, _)| index));
        }
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    fn remember(&mut self, pages: Vec<u64>) {
        for index in pages {
            let history = self.histories.entry(index).or_default();
            history.dirty = true;
            push_bounded(&mut history.versions, self.current.page(index).cloned());
        }
        let len_bytes = self.current.len_bytes();
        if *self.lengths.last().unwrap_or(&self.durable.len_bytes()) != len_bytes {
            push_bounded(&mut self.lengths, len_bytes);
        }
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T) {
    if list.len() == REMEMBERED {
        list.remove(0);
    }
    list.push(item);
}

/// Chooses the version that is on the disk: 0 stands for the durable one, `count` for the newest.
fn pick(count: usize, chance: Chance, random: &mut Random) -> usize {
    if random.happens(chance) {
        count
    } else {
        random.below(count)
    }
}

/// The page that the disk holds after the cut.
fn surviving_page(
    durable: Option<Arc<Page>>,
    history: &History,
    chance: Chance,
    unit: WriteUnit,
    random: &mut Random,
) -> Option<Arc<Page>> {
    let mut version = || match pick(history.versions.len(), chance, random) {
        0 => durable.clone(),
        number => history.versions[number - 1].clone(),
    };
    let (whole, other) = (version(), version());
    if unit == WriteUnit::Page || random.coin() {
        return whole;
    }
    let mut torn = whole.map_or([0; PAGE_BYTES], |page| *page);
    for start in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
        if random.coin() {
            let sector = start..start + SECTOR_BYTES;
            match &other {
                Some(page) => torn[sector.clone()].copy_from_slice(&page[sector]),
                None => torn[sector].fill(0),
            }
        }
    }
    Some(Arc::new(torn))
}

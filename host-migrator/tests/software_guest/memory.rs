// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stamped guest memory, its dirty log, and the oracle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use host_migrator::{
    DirtyLog, DirtyLogError, GuestMemory, GuestRam, LogSource, MigrationBitmap, RamRegion,
};
use spec::stamp::{PAGE_WORDS, Stamp};
use spec::{PAGE_SIZE, PageRange};

const SEED: u64 = 11;

/// Guest memory, and the guest's record of what it contains.
pub struct Memory {
    pub ram: Arc<GuestRam>,
    /// For each page of memory the version of its stamp; 0 while it is free.
    versions: Vec<AtomicU64>,
    writes: AtomicU64,
}

/// A page with wrong content at the destination.
#[derive(Debug, PartialEq)]
pub struct WrongPage {
    pub pfn: u64,
    pub in_use: bool,
}

impl Memory {
    /// Memory of `low` pages from 0 and `high` pages from 4 GiB minus 16 MiB, with a hole between them.
    pub fn new(low: u64, high: u64) -> Self {
        let ram = GuestRam::map(
            [(0, low), (1 << 24, high)]
                .into_iter()
                .filter(|(_, pages)| *pages > 0)
                .map(|(gpa, pages)| region(gpa, pages * PAGE_SIZE))
                .collect(),
        )
        .unwrap();
        Self::of(Arc::new(ram))
    }

    /// The record of a guest that has not used its memory yet.
    pub fn of(ram: Arc<GuestRam>) -> Self {
        Self {
            versions: (0..ram.pages()).map(|_| AtomicU64::new(0)).collect(),
            ram,
            writes: AtomicU64::new(0),
        }
    }

    /// The same record, for a copy of the memory in `ram`.
    pub fn moved_to(&self, ram: Arc<GuestRam>) -> Self {
        let copy = |from: &AtomicU64| AtomicU64::new(from.load(Ordering::Acquire));
        Self {
            ram,
            versions: self.versions.iter().map(copy).collect(),
            writes: copy(&self.writes),
        }
    }

    /// The version of page `pfn`.
    fn version(&self, pfn: u64) -> &AtomicU64 {
        let mut before = 0;
        for region in self.ram.regions() {
            if region.first() <= pfn && pfn < region.end() {
                return &self.versions[(before + pfn - region.first()) as usize];
            }
            before += region.count();
        }
        panic!("page {pfn:#x} is not memory");
    }

    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.ram.regions().iter().flat_map(|r| r.first()..r.end())
    }

    /// Writes the whole page `pfn` with a new version.
    pub fn write(&self, pfn: u64) {
        let version = self.writes.fetch_add(1, Ordering::AcqRel) + 1;
        let mut words = [0; PAGE_WORDS];
        stamp(pfn, version).write(SEED, &mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ram.write(one(pfn), &bytes).unwrap();
        self.version(pfn).store(version, Ordering::Release);
    }

    /// The guest frees `pfn`.
    pub fn free(&self, pfn: u64) {
        self.version(pfn).store(0, Ordering::Release);
    }

    pub fn in_use(&self, pfn: u64) -> bool {
        self.version(pfn).load(Ordering::Acquire) != 0
    }

    /// Compares every page of `there` with this memory, whose guest is stopped. Pages in use must have their stamp. All
    /// others must be equal, or zero if they were skipped.
    pub fn wrong_pages(
        &self,
        there: &GuestRam,
        skipped: Option<&MigrationBitmap>,
    ) -> Vec<WrongPage> {
        let mut wrong = Vec::new();
        for pfn in self.pages() {
            let version = self.version(pfn).load(Ordering::Acquire);
            let (ours, theirs) = (words(&self.ram, pfn), words(there, pfn));
            let right = if version != 0 {
                stamp(pfn, version).check(SEED, &theirs).is_ok()
            } else if skipped.is_some_and(|skipped| skipped.contains(pfn)) {
                theirs == [0; PAGE_WORDS]
            } else {
                ours == theirs
            };
            if !right {
                let in_use = version != 0;
                wrong.push(WrongPage { pfn, in_use });
            }
        }
        wrong
    }
}

/// New, empty memory with the layout of `memory`.
pub fn like(memory: &dyn GuestMemory) -> GuestRam {
    let regions = memory.layout().regions().iter();
    GuestRam::map(
        regions
            .map(|r| region(r.first() * PAGE_SIZE, r.bytes()))
            .collect(),
    )
    .unwrap()
}

fn region(gpa: u64, len: u64) -> RamRegion {
    RamRegion::new(gpa, len).unwrap()
}

pub fn one(pfn: u64) -> PageRange {
    PageRange::new(pfn, 1).unwrap()
}

fn stamp(pfn: u64, version: u64) -> Stamp {
    Stamp {
        address: pfn * PAGE_SIZE,
        version,
    }
}

fn words(ram: &GuestRam, pfn: u64) -> [u64; PAGE_WORDS] {
    let mut bytes = [0; PAGE_SIZE as usize];
    ram.read(one(pfn), &mut bytes).unwrap();
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|index| u64::from_le_bytes(words[index]))
}

/// A dirty log. Writers mark a page after they have written it.
#[derive(Clone)]
pub struct SoftLog {
    source: LogSource,
    dirty: Arc<MigrationBitmap>,
    runs: Arc<AtomicBool>,
}

impl SoftLog {
    pub fn new(source: LogSource, pages: u64) -> Self {
        Self {
            source,
            dirty: Arc::new(MigrationBitmap::new(pages)),
            runs: Arc::default(),
        }
    }

    pub fn mark(&self, pfn: u64) {
        if self.runs.load(Ordering::SeqCst) {
            self.dirty.insert(one(pfn));
        }
    }

    pub fn is_running(&self) -> bool {
        self.runs.load(Ordering::SeqCst)
    }
}

impl DirtyLog for SoftLog {
    fn source(&self) -> LogSource {
        self.source
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.dirty.clear_all();
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        Ok((self.dirty.occupied())
            .map(|index| {
                let bits = self.dirty.claim(index);
                bitmap.merge(index, bits);
                u64::from(bits.count_ones())
            })
            .sum())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.runs.store(false, Ordering::SeqCst);
        Ok(())
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving guest memory back to the host: holes in the memory files of its regions.
//!
//! A hole is made with `fallocate`. So the memory is freed for every process that has the file mapped, and reads as zeros
//! at the next access. The host frees only whole host pages, which may be larger than the guest's: huge pages, or pages
//! of another architecture. A host page is discarded only if all its guest pages may be; its neighbours do not change.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::io::Errno;
use spec::trace::Event;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::balloon::counters::Counters;
use crate::guest::state::whole_pages_of;
use crate::memory::dirty_log::LogBitmap;
use crate::memory::guest_memory::Memory;
use crate::trace::Trace;

/// The regions of guest memory, as far as discarding needs them.
#[derive(Debug, Default)]
pub struct Discarder {
    regions: Vec<Region>,
    trace: Trace,
}

#[derive(Debug)]
struct Region {
    pages: PageRange,
    /// Bytes of the region before its first whole page.
    lead: u64,
    /// The region's file; `None` if no hole can be made in it.
    hole: Option<MemoryFile>,
    dirty: LogBitmap,
}

#[derive(Debug)]
struct MemoryFile {
    file: Arc<File>,
    /// The region's first whole page, counted in guest pages from the start of the file.
    first: u64,
    /// Guest pages in a page of the host.
    host_page: u64,
}

impl Discarder {
    /// Records every discard from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: &Memory) {
        self.regions = memory.memory().iter().filter_map(Region::new).collect();
    }

    /// There is no guest memory any more.
    pub fn clear(&mut self) {
        self.regions.clear();
    }

    /// Discards the host pages that touch `runs`, which are in rising order, if `whole` says that every guest page of the
    /// host page may be discarded.
    pub fn discard(
        &mut self,
        runs: &[PageRange],
        whole: impl Fn(PageRange) -> bool,
        counters: &mut Counters,
    ) {
        let trace = &self.trace;
        for region in &mut self.regions {
            let pages = region.pages;
            let host_page = region.hole.as_ref().map_or(1, |hole| hole.host_page);
            let mut pending: Option<Range<u64>> = None;
            for run in runs.iter().filter_map(|run| run.intersection(pages)) {
                if host_page == 1 {
                    region.collect(&mut pending, run.first()..run.end(), trace, counters);
                    continue;
                }
                for page in region.host_pages(run).filter(|page| whole(*page)) {
                    region.collect(&mut pending, page.first()..page.end(), trace, counters);
                }
            }
            if let Some(range) = pending {
                region.punch(range, trace, counters);
            }
        }
    }
}

impl Region {
    fn new<R>(region: &R) -> Option<Self>
    where
        R: GuestMemoryRegion<B = LogBitmap>,
    {
        let pages = whole_pages_of(region)?;
        let lead = pages.first() * PAGE_SIZE - region.start_addr().0;
        Some(Self {
            pages,
            lead,
            hole: region.file_offset().and_then(|offset| {
                MemoryFile::new(offset.arc(), offset.start().checked_add(lead)?)
            }),
            dirty: region.bitmap(),
        })
    }

    /// The host pages that lie wholly in the region and touch `run`, which lies in it.
    fn host_pages(&self, run: PageRange) -> impl Iterator<Item = PageRange> + use<> {
        let (pages, (first, size)) = (
            self.pages,
            self.hole
                .as_ref()
                .map_or((0, 1), |hole| (hole.first, hole.host_page)),
        );
        // Host pages are aligned in the file, not in the guest's address space.
        let in_file = |page: u64| first + (page - pages.first());
        let numbers = in_file(run.first()) / size..in_file(run.end()).div_ceil(size);
        numbers.filter_map(move |number| {
            let start = (number * size).checked_sub(first)?;
            let page = PageRange::new(pages.first() + start, size)?;
            (page.end() <= pages.end()).then_some(page)
        })
    }

    /// Adds `next` to the pending range if they touch, or discards that first.
    fn collect(
        &mut self,
        pending: &mut Option<Range<u64>>,
        next: Range<u64>,
        trace: &Trace,
        counters: &mut Counters,
    ) {
        match pending {
            Some(range) if range.end >= next.start => range.end = range.end.max(next.end),
            _ => {
                if let Some(range) = pending.replace(next) {
                    self.punch(range, trace, counters);
                }
            }
        }
    }

    fn punch(&mut self, pages: Range<u64>, trace: &Trace, counters: &mut Counters) {
        let Some(hole) = &self.hole else {
            counters.failed_discards += 1;
            return;
        };
        let range = PageRange::new(pages.start, pages.end - pages.start);
        trace.record_each(range.as_slice(), Event::Discarding);
        let skipped = pages.start - self.pages.first();
        let bytes = (pages.end - pages.start) * PAGE_SIZE;
        match hole.punch(skipped, bytes) {
            Ok(()) => {
                counters.discards += 1;
                counters.discarded_bytes += bytes;
                // The pages have changed, so they must be in the dirty log. This comes after the change, because the
                // log may be read in between.
                let offset = self.lead + skipped * PAGE_SIZE;
                self.dirty.mark_dirty(offset as usize, bytes as usize);
            }
            Err(error) => {
                counters.failed_discards += 1;
                trace.record_each(range.as_slice(), Event::NotDiscarded);
                if error != Errno::NOMEM {
                    log::warn!(
                        "memory at guest page {:#x} cannot be given back to the host: {error}",
                        self.pages.first()
                    );
                    self.hole = None;
                }
            }
        }
    }
}

impl MemoryFile {
    /// `None` if the region's pages are not aligned with pages of the file.
    fn new(file: &Arc<File>, start: u64) -> Option<Self> {
        // tmpfs and memfd report the host's page size here, hugetlbfs that of its huge pages.
        let block = fstatfs(file)
            .ok()
            .and_then(|system| u64::try_from(system.f_bsize).ok())
            .unwrap_or(PAGE_SIZE);
        // A file system on a disk may have smaller blocks, or blocks of an odd size.
        let host_page = if block.is_power_of_two() {
            (block / PAGE_SIZE).max(1)
        } else {
            1
        };
        start.is_multiple_of(PAGE_SIZE).then(|| Self {
            file: Arc::clone(file),
            first: start / PAGE_SIZE,
            host_page,
        })
    }

    /// Makes a hole of `bytes` bytes, `skipped` pages after the first.
    fn punch(&self, skipped: u64, bytes: u64) -> Result<(), Errno> {
        let offset = self
            .first
            .checked_add(skipped)
            .and_then(|page| page.checked_mul(PAGE_SIZE))
            .ok_or(Errno::OVERFLOW)?;
        rustix::io::retry_on_intr(|| {
            fallocate(
                &self.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                bytes,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balloon::sparse_page_set::SparsePageSet;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::unix::fs::FileExt;

    /// Pages of the file in these tests.
    const PAGES: u64 = 1100;

    /// A region of `count` pages at guest page `first`, `skipped` pages into a file of the host's pages of
    /// `host_page` guest pages.
    struct Rig {
        file: Arc<File>,
        skipped: u64,
        pages: PageRange,
        host_page: u64,
        discarder: Discarder,
    }

    impl Rig {
        fn new(first: u64, count: u64, skipped: u64, host_page: u64) -> Self {
            let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            ftruncate(&file, PAGES * PAGE_SIZE).unwrap();
            let file = Arc::new(file);
            let pages = PageRange::new(first, count).unwrap();
            let region = Region {
                pages,
                lead: 0,
                hole: Some(MemoryFile {
                    file: Arc::clone(&file),
                    first: skipped,
                    host_page,
                }),
                dirty: LogBitmap::default(),
            };
            let discarder = Discarder {
                regions: vec![region],
                trace: Trace::default(),
            };
            let rig = Self {
                file,
                skipped,
                pages,
                host_page,
                discarder,
            };
            (0..PAGES).for_each(|page| rig.fill(page));
            rig
        }

        fn fill(&self, file_page: u64) {
            self.file.write_all_at(&[1], file_page * PAGE_SIZE).unwrap();
        }

        fn is_filled(&self, file_page: u64) -> bool {
            let mut byte = [0];
            self.file
                .read_exact_at(&mut byte, file_page * PAGE_SIZE)
                .unwrap();
            byte == [1]
        }

        /// Every page of the file that is in no balloon, or shares a host page with one that is not.
        fn must_stay(&self, balloon: &[bool]) -> Vec<u64> {
            let ballooned = |file_page: u64| {
                file_page
                    .checked_sub(self.skipped)
                    .is_some_and(|page| balloon.get(page as usize).copied().unwrap_or(false))
            };
            (0..PAGES)
                .filter(|page| {
                    let start = page / self.host_page * self.host_page;
                    !(start..start + self.host_page).all(ballooned)
                })
                .collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Batches against a list of booleans, one a page: what goes is what the rule says, and the file's
        /// other pages, before, between and after those of the region, stay.
        #[test]
        fn exactly_the_host_pages_that_are_wholly_in_the_balloon_go(
            first in 0u64..1000, count in 400u64..1000, skipped in 0u64..100,
            host_page in prop_oneof![Just(1u64), Just(16), Just(512)],
            batches in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec((0u64..1000, 1u64..600), 1..6)),
                1..8,
            ),
        ) {
            let mut rig = Rig::new(first, count, skipped, host_page);
            let (mut set, mut balloon) = (SparsePageSet::default(), vec![false; count as usize]);
            let mut counters = Counters::default();
            for (inflate, ranges) in batches {
                let mut batch = SparsePageSet::default();
                for (start, length) in ranges {
                    let range = PageRange::new(first + start, length).unwrap();
                    if let Some(range) = range.intersection(rig.pages) {
                        batch.insert(range);
                    }
                }
                let runs: Vec<_> = batch.runs().collect();
                for run in &runs {
                    let pages = (run.first() - first) as usize..(run.end() - first) as usize;
                    balloon[pages.clone()].fill(inflate);
                    if inflate {
                        set.insert(*run);
                    } else {
                        set.remove(*run);
                        // The guest uses what it has taken out.
                        pages.for_each(|page| rig.fill(skipped + page as u64));
                    }
                }
                if inflate {
                    rig.discarder.discard(&runs, |page| set.contains_all(page), &mut counters);
                }
                let stay = rig.must_stay(&balloon);
                for page in &stay {
                    let is_ballooned = page
                        .checked_sub(skipped)
                        .is_some_and(|page| balloon.get(page as usize) == Some(&true));
                    // A page whose host page went before, and had a neighbour taken out, is a zero page.
                    prop_assert!(rig.is_filled(*page) || is_ballooned, "page {}", page);
                }
                for page in (0..PAGES).filter(|page| stay.binary_search(page).is_err()) {
                    prop_assert!(!rig.is_filled(page), "page {}", page);
                }
            }
            prop_assert_eq!(counters.failed_discards, 0);
        }
    }

    #[test]
    fn a_batch_that_touches_costs_one_call_and_every_gap_one_more() {
        let mut rig = Rig::new(0, 1000, 0, 1);
        let runs = [(0, 100), (100, 50), (200, 1)].map(|(f, n)| PageRange::new(f, n).unwrap());
        let mut counters = Counters::default();
        rig.discarder.discard(&runs, |_| true, &mut counters);
        assert_eq!(
            (counters.discards, counters.discarded_bytes),
            (2, 151 * PAGE_SIZE)
        );
        assert!(rig.is_filled(150) && !rig.is_filled(149));
    }

    #[test]
    fn a_file_that_takes_no_holes_is_counted_and_not_tried_again() {
        let mut rig = Rig::new(0, 1000, 0, 1);
        let run = PageRange::new(5, 5).unwrap();
        let region = &mut rig.discarder.regions[0];
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&*rig.file)
        );
        if let Some(hole) = &mut region.hole {
            hole.file = Arc::new(File::open(path).unwrap());
        }
        let mut counters = Counters::default();
        for _ in 0..3 {
            rig.discarder.discard(&[run], |_| true, &mut counters);
        }
        assert!(rig.discarder.regions[0].hole.is_none());
        assert_eq!((counters.discards, counters.failed_discards), (0, 3));
        assert!(rig.is_filled(5));
    }

    #[test]
    fn an_offset_past_the_end_of_all_files_is_an_error_of_its_own() {
        let mut rig = Rig::new(0, 1000, 0, 1);
        if let Some(hole) = &mut rig.discarder.regions[0].hole {
            hole.first = u64::MAX / PAGE_SIZE;
        }
        let mut counters = Counters::default();
        let run = PageRange::new(0, 1000).unwrap();
        rig.discarder.discard(&[run], |_| true, &mut counters);
        assert_eq!(counters.failed_discards, 1);
        assert!((0..PAGES).all(|page| rig.is_filled(page)));
    }
}

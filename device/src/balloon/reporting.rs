// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page reporting: memory that the guest does not use now goes back to the host.
//!
//! Each device-writable descriptor is a report. Its memory is discarded before the buffer is returned, because until
//! then the guest does not use it. The device writes nothing into it, so it returns a length of zero. Reporting changes
//! neither the configuration space nor an epoch of hinting.

use spec::PageRange;
use spec::balloon::QueueRole;
use spec::trace::Event;
use virtio_queue::desc::split::Descriptor;

use crate::balloon::counters::Counters;
use crate::balloon::discard::Discarder;
use crate::balloon::sparse_page_set::SparsePageSet;
use crate::guest::Guest;
use crate::trace::Trace;
use crate::virtqueue::budget::DescriptorBudget;
use crate::virtqueue::buffers::{self, Chain};

/// How many chunks of memory the device keeps reported pages of: those of 8 TiB, 256 MiB in all. A front end can lend a
/// file of any size, so without a limit its guest could fill the process's memory.
const MAX_CHUNKS: usize = 1 << 16;

/// The reports of one pass over the queue.
#[derive(Debug, Default)]
struct ReportBatch {
    ranges: Vec<PageRange>,
    descriptors: DescriptorBudget,
    bad_buffers: u64,
    out_of_range: u64,
}

impl ReportBatch {
    fn chain(&mut self, mut chain: impl Iterator<Item = Descriptor>) {
        let mut has_end = false;
        while let Some(descriptor) = self.descriptors.next_of(&mut chain) {
            has_end = !descriptor.has_next();
            let (address, length) = (descriptor.addr().0, u64::from(descriptor.len()));
            if !descriptor.is_write_only() {
                self.bad_buffers += 1;
            } else if address.checked_add(length).is_none() {
                self.out_of_range += 1;
            } else {
                match PageRange::inside(address, length) {
                    Some(range) => self.ranges.push(range),
                    None => self.bad_buffers += 1,
                }
            }
        }
        self.bad_buffers += u64::from(!has_end);
    }
}

/// The reporting queue, and what was reported.
#[derive(Debug, Default)]
pub struct ReportingQueue {
    pages: SparsePageSet,
    counters: Counters,
    trace: Trace,
}

impl ReportingQueue {
    /// Records what happens from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// The pages that went back to the host because this guest reported them. Some may be in use again.
    pub fn pages(&self) -> &SparsePageSet {
        &self.pages
    }

    /// What the queue has brought.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes what the guest has queued up to now.
    pub fn take(&mut self, guest: &Guest, discarder: &mut Discarder) {
        let (mut batch, mut heads) = (ReportBatch::default(), Vec::new());
        let Some((ring, memory)) = guest.queue(QueueRole::Reporting) else {
            return;
        };
        let result = buffers::drain(ring, memory, |chain| {
            heads.push(chain.head_index());
            batch.chain(chain);
            Chain::Kept
        });
        if let Err(error) = result {
            log::debug!("reporting queue: {error}");
            batch.bad_buffers += 1;
        }
        let reported = merged(batch.ranges);
        let inside = guest.cut_to_memory(&reported);
        let counters = &mut self.counters;
        counters.bad_buffers += batch.bad_buffers;
        counters.out_of_range += batch.out_of_range + pages(&reported) - pages(&inside);
        counters.reported_pages += pages(&inside);
        self.trace.record_each(&inside, Event::GivenUp);
        if guest.poison() == 0 {
            for run in &inside {
                if !self.pages.insert_within(*run, MAX_CHUNKS) {
                    log::debug!("more pages are reported than the device remembers");
                }
            }
            discarder.discard(&inside, |page| covers(&inside, page), counters);
        } else {
            // The guest expects to find its poison in these pages again, not zeros.
            counters.poisoned_pages += pages(&inside);
        }
        self.trace.record_each(&inside, Event::TakenBack);
        guest.give_back(QueueRole::Reporting, &heads);
    }

    /// Only pages of these `regions` are guest memory now.
    pub fn keep_only(&mut self, regions: &[PageRange]) {
        self.pages.keep_only(regions);
    }

    /// The driver has gone. The next one may already use the pages that it reported.
    pub fn forget_driver(&mut self) {
        self.pages.clear();
    }
}

/// How many pages are in `ranges`.
fn pages(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| range.count()).sum()
}

/// The pages of `ranges` as maximal runs in ascending order.
fn merged(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
    ranges.sort_unstable();
    let mut runs: Vec<PageRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match runs.last_mut() {
            Some(run) if run.end() >= range.first() => {
                let end = run.end().max(range.end());
                if let Some(longer) = PageRange::new(run.first(), end - run.first()) {
                    *run = longer;
                }
            }
            _ => runs.push(range),
        }
    }
    runs
}

/// Whether one of the ascending `runs` contains all of `page`.
fn covers(runs: &[PageRange], page: PageRange) -> bool {
    let before = runs.partition_point(|run| run.first() <= page.first());
    runs[..before]
        .last()
        .is_some_and(|run| run.end() >= page.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn merged_ranges_hold_the_same_pages_and_do_not_touch(
            ranges in proptest::collection::vec((0u64..60, 1u64..9), 0..12),
            page in (0u64..70, 1u64..5),
        ) {
            let numbers: BTreeSet<u64> =
                ranges.iter().flat_map(|(first, count)| *first..first + count).collect();
            let range = |(first, count)| PageRange::new(first, count).unwrap();
            let runs = merged(ranges.into_iter().map(range).collect());
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first()));
            prop_assert_eq!(pages(&runs), numbers.len() as u64);
            let page = range(page);
            let all = (page.first()..page.end()).all(|page| numbers.contains(&page));
            prop_assert_eq!(covers(&runs, page), all);
        }
    }
}

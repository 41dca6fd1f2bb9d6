// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that the guest puts into the balloon, and takes out again.
//!
//! One pass reads both queues, changes the set of pages in the balloon, gives the memory of the new pages back to the
//! host, and only then returns the buffers. Until then an honest guest does not use the pages. The memory of pages that
//! the guest takes out in the same pass does not change.
//!
//! A long queue is read in several turns, so that others get the device's lock in between. Pages that the guest takes out
//! wait until all pages that it puts in were read.

use std::ops::ControlFlow;

use spec::PageRange;
use spec::balloon::QueueRole;
use spec::trace::Event;

use crate::balloon::counters::Counters;
use crate::balloon::discard::Discarder;
use crate::balloon::pfn::PfnBatch;
use crate::balloon::sparse_page_set::SparsePageSet;
use crate::guest::Guest;
use crate::trace::Trace;
use crate::virtqueue::buffers::{self, Chain};
use crate::virtqueue::position::QueuePosition;

/// The inflate and the deflate queue, and the pages in the balloon.
#[derive(Debug, Default)]
pub struct InflateQueues {
    pages: SparsePageSet,
    position: QueuePosition,
    counters: Counters,
    trace: Trace,
}

/// What one pass has taken from a queue.
#[derive(Default)]
struct Taken {
    batch: PfnBatch,
    /// The heads of the chains, to be returned.
    heads: Vec<u16>,
    /// Whether something is left on the queue.
    more: bool,
}

impl InflateQueues {
    /// Records what happens from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// The pages that are in the balloon, as far as the device has seen them go in.
    pub fn pages(&self) -> &SparsePageSet {
        &self.pages
    }

    /// The counters of these queues.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes what the guest has queued up to now on both queues, or as much as `is_enough`. Returns whether there is more.
    pub fn take(
        &mut self,
        guest: &Guest,
        discarder: &mut Discarder,
        is_enough: fn(&PfnBatch) -> bool,
    ) -> bool {
        let inflated = self.take_pfns(guest, QueueRole::Inflate, is_enough);
        if let Some(ring) = guest.running(QueueRole::Inflate) {
            self.position.leave(ring);
        }
        let deflated = if inflated.more {
            Taken::default()
        } else {
            self.take_pfns(guest, QueueRole::Deflate, is_enough)
        };
        let more = inflated.more || deflated.more;
        let incomplete = deflated.batch.is_incomplete();
        let pages_in = self.in_memory(guest, inflated.batch);
        let pages_out = self.in_memory(guest, deflated.batch);
        for run in &pages_in {
            let added = self.pages.insert(*run);
            self.counters.inflated_pages += added;
            self.counters.repeated_pages += run.count() - added;
        }
        for run in &pages_out {
            let removed = self.pages.remove(*run);
            self.counters.deflated_pages += removed;
            self.counters.repeated_pages += run.count() - removed;
        }
        if incomplete {
            // Some page may be in use again, and it is not known which.
            self.pages.clear();
        }
        self.trace.record_each(&pages_in, Event::GivenUp);
        self.trace.record_each(&pages_out, Event::TakenBack);
        let pages = &self.pages;
        discarder.discard(
            &without(&pages_in, &pages_out),
            |host_page| pages.contains_all(host_page),
            &mut self.counters,
        );
        guest.give_back(QueueRole::Inflate, &inflated.heads);
        guest.give_back(QueueRole::Deflate, &deflated.heads);
        more
    }

    /// The inflate queue is being stopped.
    pub fn stop(&mut self) {
        self.position.stop();
    }

    /// A new driver does not know the pages that an earlier one put into the balloon, and may use them already. A driver that
    /// was stopped and goes on knows them. Returns whether the driver is new.
    pub fn notice_new_driver(&mut self, guest: &Guest) -> bool {
        let ring = guest.running(QueueRole::Inflate);
        let is_new = ring.is_some_and(|ring| self.position.notice_new_ring(ring));
        if is_new {
            self.pages.clear();
        }
        is_new
    }

    /// The driver has gone. Forgets its pages.
    pub fn forget_driver(&mut self) {
        self.pages.clear();
        self.position = QueuePosition::default();
    }

    /// Only pages of these `regions` are guest memory now.
    pub fn keep_only(&mut self, regions: &[PageRange]) {
        self.pages.keep_only(regions);
    }

    /// The pages in the balloon are those of a device that migrated here.
    pub fn restore(&mut self, pages: SparsePageSet) {
        self.pages = pages;
    }

    /// Takes page numbers from the queue with `role` until there are enough.
    fn take_pfns(
        &mut self,
        guest: &Guest,
        role: QueueRole,
        is_enough: fn(&PfnBatch) -> bool,
    ) -> Taken {
        let mut taken = Taken::default();
        let Some((ring, memory)) = guest.queue(role) else {
            return taken;
        };
        let Taken { batch, heads, .. } = &mut taken;
        let result = buffers::drain_some(ring, memory, |chain| {
            heads.push(chain.head_index());
            batch.chain(chain);
            match is_enough(batch) {
                true => ControlFlow::Break(Chain::Kept),
                false => ControlFlow::Continue(Chain::Kept),
            }
        });
        taken.more = result.unwrap_or_else(|error| {
            log::debug!("{role:?} queue: {error}");
            taken.batch.cut();
            false
        });
        self.counters.bad_buffers += taken.batch.bad_buffers();
        taken
    }

    /// The pages of a batch that lie in guest memory. The others are counted.
    fn in_memory(&mut self, guest: &Guest, batch: PfnBatch) -> Vec<PageRange> {
        let (runs, twice) = batch.into_runs();
        self.counters.repeated_pages += twice;
        let sent: u64 = runs.iter().map(|run| run.count()).sum();
        let inside = guest.cut_to_memory(&runs);
        let kept: u64 = inside.iter().map(|run| run.count()).sum();
        self.counters.out_of_range += sent - kept;
        inside
    }
}

/// The pages of `runs` that are not in `others`. Both are in rising order without overlaps.
fn without(runs: &[PageRange], others: &[PageRange]) -> Vec<PageRange> {
    let (mut left, mut others) = (Vec::with_capacity(runs.len()), others.iter().peekable());
    for run in runs {
        let mut from = run.first();
        // One that reaches past this run may reach into the next.
        while let Some(other) = others.next_if(|other| other.end() <= run.end()) {
            left.extend(between(from, other.first()));
            from = from.max(other.end());
        }
        let end = others
            .peek()
            .map_or(run.end(), |other| other.first().min(run.end()));
        left.extend(between(from, end));
    }
    left
}

/// The pages from `first` up to `end`, if there are any.
fn between(first: u64, end: u64) -> Option<PageRange> {
    PageRange::new(first, end.checked_sub(first)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Rising runs with gaps, as lengths of a gap and of the run after it.
    fn runs() -> impl Strategy<Value = Vec<PageRange>> {
        proptest::collection::vec((0u64..5, 1u64..9), 0..8).prop_map(|lengths| {
            let mut next = 0;
            let run = |(gap, count): (u64, u64)| {
                let first = next + gap;
                next = first + count;
                PageRange::new(first, count).unwrap()
            };
            lengths.into_iter().map(run).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_the_others_do_not_have(some in runs(), others in runs()) {
            let pages = |runs: &[PageRange]| -> BTreeSet<u64> {
                runs.iter().flat_map(|run| run.first()..run.end()).collect()
            };
            let left = without(&some, &others);
            let expected: BTreeSet<u64> = &pages(&some) - &pages(&others);
            prop_assert_eq!(pages(&left), expected);
            prop_assert!(left.windows(2).all(|pair| pair[0].end() <= pair[1].first()));
        }
    }
}

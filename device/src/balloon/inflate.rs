// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that the guest puts into the balloon, and takes out again.
//!
//! One pass reads both queues, changes the set of pages in the balloon, gives the new ones' memory back to
//! the host, and only then returns the buffers: until then an honest guest leaves the pages alone. What a
//! guest takes out in the same pass stays as it is.
//!
//! A long queue is taken in several turns, so that others get the device's lock in between. Pages that the guest takes
//! out wait until all pages that it puts in have been read.

use std::ops::ControlFlow;

use spec::PageRange;
use spec::balloon::QueueRole;
use spec::trace::Event;

use crate::balloon::Balloon;
use crate::balloon::pfn::PfnBatch;
use crate::vhost_user::rings::{self, Chain};

impl Balloon {
    /// Takes what the guest has queued on the inflate and the deflate queue up to now, or a turn's worth of it. Whether
    /// there is more.
    pub(super) fn take_turn_of_pages(&mut self) -> bool {
        self.take_queued_pages(PfnBatch::is_enough)
    }

    /// Takes what the guest has queued on the inflate and the deflate queue up to now.
    pub(super) fn take_pages(&mut self) {
        self.take_queued_pages(|_| false);
    }

    fn take_queued_pages(&mut self, is_enough: fn(&PfnBatch) -> bool) -> bool {
        self.notice_new_driver();
        let (inflated, inflate_heads, mut more) = self.pfns(QueueRole::Inflate, is_enough);
        if let Some(ring) = self.running(QueueRole::Inflate) {
            self.inflate_place.leave(&ring);
        }
        let (mut deflated, mut deflate_heads) = (PfnBatch::default(), Vec::new());
        if !more {
            (deflated, deflate_heads, more) = self.pfns(QueueRole::Deflate, is_enough);
        }
        let incomplete = deflated.is_incomplete();
        let inflated = self.in_memory(inflated);
        let deflated = self.in_memory(deflated);
        for run in &inflated {
            let added = self.ballooned.insert(*run);
            self.counters.inflated_pages += added;
            self.counters.repeated_pages += run.count() - added;
        }
        for run in &deflated {
            let removed = self.ballooned.remove(*run);
            self.counters.deflated_pages += removed;
            self.counters.repeated_pages += run.count() - removed;
        }
        if incomplete {
            // Some page may be in use again, and nobody knows which.
            self.ballooned.clear();
        }
        self.trace.record_each(&inflated, Event::GivenUp);
        self.trace.record_each(&deflated, Event::TakenBack);
        let ballooned = &self.ballooned;
        self.discarder.discard(
            &without(&inflated, &deflated),
            |host_page| ballooned.contains_all(host_page),
            &mut self.counters,
        );
        self.give_back(QueueRole::Inflate, &inflate_heads);
        self.give_back(QueueRole::Deflate, &deflate_heads);
        more
    }

    /// The page numbers on the queue with `role` until they are enough, the heads of their chains, and whether there
    /// is more.
    fn pfns(
        &mut self,
        role: QueueRole,
        is_enough: fn(&PfnBatch) -> bool,
    ) -> (PfnBatch, Vec<u16>, bool) {
        let (mut batch, mut heads) = (PfnBatch::default(), Vec::new());
        let (Some(ring), Some(memory)) = (self.ring(role), &self.memory) else {
            return (batch, heads, false);
        };
        let result = rings::drain_some(ring, memory, |chain| {
            heads.push(chain.head_index());
            batch.chain(chain);
            match is_enough(&batch) {
                true => ControlFlow::Break(Chain::Kept),
                false => ControlFlow::Continue(Chain::Kept),
            }
        });
        let more = result.unwrap_or_else(|error| {
            log::debug!("{role:?} queue: {error}");
            batch.cut();
            false
        });
        self.counters.bad_buffers += batch.bad_buffers();
        (batch, heads, more)
    }

    /// The pages of a batch that lie in guest memory. The others are counted.
    fn in_memory(&mut self, batch: PfnBatch) -> Vec<PageRange> {
        let (runs, twice) = batch.into_runs();
        self.counters.repeated_pages += twice;
        let sent: u64 = runs.iter().map(|run| run.count()).sum();
        let inside = self.cut_to_memory(&runs);
        let kept: u64 = inside.iter().map(|run| run.count()).sum();
        self.counters.out_of_range += sent - kept;
        inside
    }

    /// The parts of `runs` that lie in guest memory; they rise as the runs do.
    pub(super) fn cut_to_memory(&self, runs: &[PageRange]) -> Vec<PageRange> {
        runs.iter()
            .flat_map(|run| {
                self.regions
                    .iter()
                    .filter_map(|region| region.intersection(*run))
            })
            .collect()
    }

    pub(super) fn give_back(&self, role: QueueRole, heads: &[u16]) {
        if let (Some(ring), Some(memory)) = (self.ring(role), &self.memory)
            && let Err(error) = rings::give_back(ring, memory, heads)
        {
            log::debug!("{role:?} queue: {error}");
        }
    }
}

/// The pages of `runs` that are not in `others`. Both rise, and their runs do not overlap.
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

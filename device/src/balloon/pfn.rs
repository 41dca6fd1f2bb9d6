// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page numbers from the guest, combined into ranges.
//!
//! A buffer of the inflate or deflate queue is an array of 32-bit little-endian numbers of 4 KiB pages. The driver may
//! split it into descriptors anywhere, so it is read as one stream of bytes. The work of one pass is bounded, whatever
//! the guest sends.

use std::ops::Deref;

use spec::PageRange;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::virtqueue::budget::DescriptorBudget;

/// The most page numbers that one pass takes from a queue: 256 MiB of guest memory, which takes less than a second
/// even if no two pages are neighbours. Linux sends 256 at a time and waits for them.
const MAX_PFNS: usize = 1 << 16;
/// The most page numbers in one turn of the device's lock; the rest of the queue waits for the next turn. So a migrator
/// that closes an epoch does not wait for a full queue of pages that are not neighbours.
const TURN_PFNS: usize = 1 << 13;
/// Bytes that are read from guest memory at once.
const CHUNK: usize = 4096;

/// The page numbers of one pass over a queue.
#[derive(Debug, Default)]
pub struct PfnBatch {
    pfns: Vec<u32>,
    descriptors: DescriptorBudget,
    bad_buffers: u64,
    incomplete: bool,
}

impl PfnBatch {
    /// Adds the page numbers in `chain`.
    pub fn chain<M>(&mut self, chain: DescriptorChain<M>)
    where
        M: Deref,
        M::Target: GuestMemory + Sized,
    {
        let mut chain = chain;
        let mut stream = PfnStream::default();
        let mut has_end = false;
        // Reading goes through the chain, so this cannot be a `for`.
        while let Some(descriptor) = self.descriptors.next_of(&mut chain) {
            has_end = !descriptor.has_next();
            if descriptor.is_write_only() {
                self.bad_buffers += 1;
            } else {
                self.read(
                    chain.memory(),
                    descriptor.addr(),
                    descriptor.len(),
                    &mut stream,
                );
            }
        }
        if !has_end {
            self.cut();
        }
        self.bad_buffers += u64::from(stream.partial > 0);
    }

    /// Whether the rest of the queue must wait.
    pub fn is_enough(&self) -> bool {
        self.pfns.len() >= TURN_PFNS
    }

    /// The ring could not be read to its end.
    pub fn cut(&mut self) {
        self.bad_buffers += 1;
        self.incomplete = true;
    }

    /// Buffers with a part that could not be used.
    pub fn bad_buffers(&self) -> u64 {
        self.bad_buffers
    }

    /// Whether the guest may have sent numbers that are not in the batch.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The pages as maximal runs in rising order, and how many numbers came twice.
    pub fn into_runs(mut self) -> (Vec<PageRange>, u64) {
        let numbers = self.pfns.len();
        self.pfns.sort_unstable();
        self.pfns.dedup();
        let twice = (numbers - self.pfns.len()) as u64;
        let runs = self
            .pfns
            .chunk_by(|before, after| before.checked_add(1) == Some(*after))
            .filter_map(|run| PageRange::new(u64::from(*run.first()?), run.len() as u64))
            .collect();
        (runs, twice)
    }

    fn read(
        &mut self,
        memory: &impl GuestMemory,
        address: GuestAddress,
        length: u32,
        stream: &mut PfnStream,
    ) {
        let mut bytes = [0; CHUNK];
        let end = address.0.saturating_add(u64::from(length));
        let mut at = address.0;
        while at < end {
            // In steps that end at multiples of the chunk: a buffer is readable up to the end of a page.
            let step = (end - at).min(CHUNK as u64 - at % CHUNK as u64) as usize;
            let room = MAX_PFNS.saturating_sub(self.pfns.len());
            let part = &mut bytes[..step];
            if room < CHUNK / 4 || memory.read_slice(part, GuestAddress(at)).is_err() {
                return self.cut();
            }
            stream.feed(part, &mut self.pfns);
            at += step as u64;
        }
    }
}

/// Bytes of an array that may be cut anywhere.
#[derive(Default)]
struct PfnStream {
    bytes: [u8; 4],
    partial: usize,
}

impl PfnStream {
    fn feed(&mut self, part: &[u8], pfns: &mut Vec<u32>) {
        let mut rest = part;
        if self.partial > 0 {
            let missing = (4 - self.partial).min(rest.len());
            let (head, tail) = rest.split_at(missing);
            self.bytes[self.partial..self.partial + missing].copy_from_slice(head);
            self.partial += missing;
            rest = tail;
            if self.partial < 4 {
                return;
            }
            pfns.push(u32::from_le_bytes(self.bytes));
        }
        let (whole, tail) = rest.as_chunks();
        pfns.extend(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        self.bytes[..tail.len()].copy_from_slice(tail);
        self.partial = tail.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_array_that_is_cut_anywhere_is_read_as_one(
            pfns in proptest::collection::vec(any::<u32>(), 0..40),
            cuts in proptest::collection::vec(0usize..160, 0..8),
            tail in 0usize..4,
        ) {
            let mut bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
            bytes.extend(vec![7; tail]);
            let mut borders: Vec<_> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
            borders.extend([0, bytes.len()]);
            borders.sort_unstable();
            let (mut stream, mut read) = (PfnStream::default(), Vec::new());
            for pair in borders.windows(2) {
                stream.feed(&bytes[pair[0]..pair[1]], &mut read);
            }
            prop_assert_eq!(read, pfns);
            prop_assert_eq!(stream.partial, tail);
        }

        #[test]
        fn runs_rise_do_not_touch_and_hold_every_number(
            pfns in proptest::collection::vec(
                prop_oneof![0u32..50, u32::MAX - 50..=u32::MAX],
                0..100,
            ),
        ) {
            let batch = PfnBatch { pfns: pfns.clone(), ..PfnBatch::default() };
            let (runs, twice) = batch.into_runs();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first()));
            let listed: Vec<_> = runs.iter().flat_map(|run| run.first()..run.end()).collect();
            let mut numbers: Vec<_> = pfns.iter().map(|pfn| u64::from(*pfn)).collect();
            numbers.sort_unstable();
            numbers.dedup();
            prop_assert_eq!(twice as usize, pfns.len() - numbers.len());
            prop_assert_eq!(listed, numbers);
        }
    }
}

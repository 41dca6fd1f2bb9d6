// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the hint queue's descriptor chains to bits of the map.
//!
//! A readable part of a chain is a command; each writable descriptor is a hint. The device neither reads nor writes the
//! buffers of hints, so they are neither faulted in nor logged as dirty.

use std::ops::Deref;

use spec::PageRange;
use spec::hint_map::{HintMap, Words};
use spec::trace::Event;
use spec::trace::event::Hinted;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemory};

use crate::hints::state_machine::{Hinting, Rejection};
use crate::trace::Trace;
use crate::virtqueue::budget::DescriptorBudget;

/// Takes the commands and hints of one pass over the hint queue.
#[derive(Debug)]
pub struct HintSink<'a, W> {
    hinting: &'a mut Hinting,
    map: Option<&'a HintMap<W>>,
    memory: &'a [PageRange],
    descriptors: DescriptorBudget,
    trace: Option<&'a Trace>,
}

impl<'a, W: Words> HintSink<'a, W> {
    /// A sink for the hints of a guest whose memory is `memory`.
    ///
    /// It walks at most `descriptors` descriptors.
    pub fn new(
        hinting: &'a mut Hinting,
        map: Option<&'a HintMap<W>>,
        memory: &'a [PageRange],
        descriptors: u32,
    ) -> Self {
        Self {
            hinting,
            map,
            memory,
            descriptors: DescriptorBudget::new(descriptors),
            trace: None,
        }
    }

    /// Records every hint in `trace`, too.
    pub fn recorded(self, trace: &'a Trace) -> Self {
        Self {
            trace: Some(trace),
            ..self
        }
    }

    /// Takes one chain: its commands and hints in order.
    pub fn chain<M>(&mut self, chain: DescriptorChain<M>)
    where
        M: Deref,
        M::Target: GuestMemory + Sized,
    {
        let mut chain = chain;
        let mut command = CommandBuffer::default();
        let mut hints_have_begun = false;
        let mut has_end = false;
        // The command reads guest memory through the chain, so this cannot be a `for`.
        while let Some(descriptor) = self.descriptors.next_of(&mut chain) {
            has_end = !descriptor.has_next();
            if descriptor.is_write_only() {
                if !std::mem::replace(&mut hints_have_begun, true) {
                    self.command(&command);
                }
                self.hint(descriptor.addr().0, u64::from(descriptor.len()));
            } else if hints_have_begun {
                // In every legal chain, device-readable descriptors come first.
                has_end = false;
                break;
            } else {
                command.append(chain.memory(), &descriptor);
            }
        }
        if !hints_have_begun {
            self.command(&command);
        }
        if !has_end {
            self.hinting.broken_chain();
        }
    }

    /// Takes one hint: the pages that lie wholly in the `length` bytes at guest-physical `address`.
    pub fn hint(&mut self, address: u64, length: u64) {
        if !self.hinting.takes_hint() {
            return;
        }
        if length == 0 {
            return self.hinting.rejected(Rejection::ZeroLength);
        }
        if address.checked_add(length).is_none() {
            return self.hinting.rejected(Rejection::OutOfRange);
        }
        let Some(range) = PageRange::inside(address, length) else {
            return self.hinting.rejected(Rejection::Partial);
        };
        let (mut inside, mut added) = (0, 0);
        if let Some(map) = self.map {
            let end = map.pages();
            for part in self
                .memory
                .iter()
                .filter_map(|region| region.intersection(range))
            {
                inside += end.saturating_sub(part.first()).min(part.count());
                if let Some(trace) = self.trace {
                    let epoch = self.hinting.epoch();
                    trace.record(Event::Hint(Hinted { epoch, pages: part }));
                }
                added += map.insert(part);
            }
        }
        if inside == 0 {
            self.hinting.rejected(Rejection::OutOfRange);
        } else {
            self.hinting.hinted(added, inside < range.count());
        }
    }

    fn command(&mut self, command: &CommandBuffer) {
        if !command.present {
            return;
        }
        self.hinting.guest_command(command.length, command.bytes);
    }
}

/// The readable part of a chain. A driver may spread it over several descriptors.
#[derive(Default)]
struct CommandBuffer {
    present: bool,
    length: u64,
    bytes: [u8; 4],
}

impl CommandBuffer {
    fn append(&mut self, memory: &impl GuestMemory, descriptor: &Descriptor) {
        self.present = true;
        let at = self.length.min(4) as usize;
        self.length = self.length.saturating_add(u64::from(descriptor.len()));
        let part = &mut self.bytes[at..self.length.min(4) as usize];
        if memory.read_slice(part, descriptor.addr()).is_err() {
            // An unreadable command gets a size that no command has.
            self.length = u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    const PAGES: u64 = 256;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    proptest! {
        /// Compared with a count of every page by hand.
        #[test]
        fn exactly_the_whole_pages_inside_guest_memory_are_marked(
            low in 1u64..60, hole in 1u64..40, high in 1u64..200,
            hints in proptest::collection::vec((0u64..300 * 4096, 0u64..100 * 4096), 1..8),
        ) {
            let words: Vec<AtomicU64> = (0..spec::hint_map::bytes_for(PAGES).unwrap() / 8)
                .map(|_| AtomicU64::new(0))
                .collect();
            let map = HintMap::format(&words[..], PAGES).unwrap();
            let memory = [range(0, low), range(low + hole, high)];
            let mut hinting = Hinting::default();
            let id = hinting.open(1).unwrap();
            hinting.guest_command(4, id.get().to_le_bytes());
            for &(address, length) in &hints {
                HintSink::new(&mut hinting, Some(&map), &memory, 1).hint(address, length);
            }
            let whole = |page: u64| hints.iter().any(|&(address, length)| {
                page * 4096 >= address && (page + 1) * 4096 <= address + length
            });
            let there = |page: u64| page < low || (low + hole..low + hole + high).contains(&page);
            for page in 0..PAGES {
                let bit = map.load((page / 64) as usize).driver >> (page % 64) & 1 == 1;
                prop_assert_eq!(bit, whole(page) && there(page), "page {}", page);
            }
            let report = hinting.close(1).unwrap();
            prop_assert_eq!(report.hints + report.rejected, hints.len() as u64);
            prop_assert_eq!(report.pages, map.hinted_pages());
        }
    }
}

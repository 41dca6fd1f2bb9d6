// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the hint queue's descriptor chains to bits of the map.
//!
//! A readable part of a chain is a command, each writable descriptor is a hint of its own. The buffers of
//! hints are never touched: neither read nor written, so neither faulted in nor logged as dirty.

use std::ops::Deref;

use spec::PageRange;
use spec::hint_map::{HintMap, Words};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory};

use crate::hinting::{Hinting, Rejection};

/// Takes what one pass over the hint queue finds.
#[derive(Debug)]
pub struct HintSink<'a, W> {
    hinting: &'a mut Hinting,
    map: Option<&'a HintMap<W>>,
    memory: &'a [PageRange],
    descriptors: u32,
}

impl<'a, W: Words> HintSink<'a, W> {
    /// A sink for the hints of a guest whose memory is `memory`.
    ///
    /// It walks at most `descriptors` descriptors: a pass is bounded even if chains share them, which
    /// no honest driver does.
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
            descriptors,
        }
    }

    /// Takes one chain: commands and hints in the order they have in it.
    pub fn chain<M>(&mut self, chain: DescriptorChain<M>)
    where
        M: Deref,
        M::Target: GuestMemory + Sized,
    {
        let mut command = CommandBuffer::default();
        let mut hints_follow = false;
        let mut ends = false;
        // A step with the chain's own methods after each descriptor, so no `for`.
        let mut chain = chain;
        while self.descriptors > 0 {
            let Some(descriptor) = chain.next() else {
                break;
            };
            self.descriptors -= 1;
            ends = !descriptor.has_next();
            if descriptor.is_write_only() {
                if !std::mem::replace(&mut hints_follow, true) {
                    self.command(&command);
                }
                self.hint(descriptor.addr().0, u64::from(descriptor.len()));
            } else if hints_follow {
                // Readable descriptors come first in every legal chain.
                ends = false;
                break;
            } else {
                command.append(chain.memory(), descriptor);
            }
        }
        if !hints_follow {
            self.command(&command);
        }
        if !ends {
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
        if let Some(map) = self.map {
            map.set_phase(self.hinting.phase());
        }
    }
}

/// The readable part of a chain. A driver may spread it over descriptors as it likes.
#[derive(Default)]
struct CommandBuffer {
    present: bool,
    length: u64,
    bytes: [u8; 4],
}

impl CommandBuffer {
    fn append(
        &mut self,
        memory: &impl GuestMemory,
        descriptor: virtio_queue::desc::split::Descriptor,
    ) {
        self.present = true;
        let wanted = (descriptor.len() as usize).min(4usize.saturating_sub(self.length as usize));
        let at = 4 - 4usize.saturating_sub(self.length as usize);
        let read = memory.read_slice(&mut self.bytes[at..at + wanted], descriptor.addr());
        // What cannot be read makes the command one of a wrong size.
        let length = if read.is_ok() {
            u64::from(descriptor.len())
        } else {
            u64::from(u32::MAX)
        };
        self.length = self.length.saturating_add(length);
    }
}

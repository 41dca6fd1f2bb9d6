// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bounds the work of one pass over a queue.

use virtio_queue::desc::split::Descriptor;

use crate::virtqueue::ring::MAX_QUEUE_SIZE;

/// How many more descriptors a pass may walk. Chains that share descriptors, which no honest driver makes, could
/// otherwise make a pass as long as the square of the queue's length.
#[derive(Debug)]
pub struct DescriptorBudget(u32);

impl Default for DescriptorBudget {
    /// As many as the longest queue holds.
    fn default() -> Self {
        Self(MAX_QUEUE_SIZE as u32)
    }
}

impl DescriptorBudget {
    /// A budget of so many `descriptors`.
    pub fn new(descriptors: u32) -> Self {
        Self(descriptors)
    }

    /// The next descriptor of `chain`, unless there is none or the budget is used up.
    pub fn next_of(&mut self, chain: &mut impl Iterator<Item = Descriptor>) -> Option<Descriptor> {
        // Looking past the end of a chain is free, so a full ring of single descriptors is taken whole.
        let left = self.0.checked_sub(1)?;
        let descriptor = chain.next()?;
        self.0 = left;
        Some(descriptor)
    }
}

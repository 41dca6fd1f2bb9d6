// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue of the console while its driver is up.
//!
//! A chain is returned before the next one is taken, so one number is the queue's position.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use crate::memory::OwnMemory;
use crate::virtio::queue::{MAX_QUEUE_SIZE, Ring};

/// A queue that runs.
#[derive(Debug)]
pub struct DriverRing(Queue);

/// A descriptor chain.
pub type Chain<'m> = DescriptorChain<&'m OwnMemory>;

impl DriverRing {
    /// A queue whose layout was checked ([`crate::virtio::Queue::check`]).
    ///
    /// # Errors
    /// [`Error`] if the layout is invalid.
    pub fn new(ring: &Ring) -> Result<Self, Error> {
        let mut queue = Queue::new(MAX_QUEUE_SIZE)?;
        queue.try_set_size(ring.queue.size)?;
        queue.try_set_desc_table_address(GuestAddress(ring.queue.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(ring.queue.available))?;
        queue.try_set_used_ring_address(GuestAddress(ring.queue.used))?;
        queue.set_next_avail(ring.base);
        queue.set_next_used(ring.base);
        queue.set_ready(true);
        Ok(Self(queue))
    }

    /// Takes the next chain, if there is one.
    ///
    /// # Errors
    /// [`Error`] if the driver's ring makes no sense. The queue cannot go on.
    pub fn take<'m>(&mut self, memory: &'m OwnMemory) -> Result<Option<Chain<'m>>, Error> {
        Ok(self.0.iter(memory)?.next())
    }

    /// Returns the taken chain to the available ring, for later.
    pub fn put_back(&mut self) {
        self.0.go_to_previous_position();
    }

    /// Gives the taken chain back to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// [`Error`] if the driver's ring makes no sense. The queue cannot go on.
    pub fn give_back(&mut self, memory: &OwnMemory, head: u16, written: u32) -> Result<(), Error> {
        self.0.add_used(memory, head, written)
    }

    /// The next available index.
    pub fn position(&self) -> u16 {
        self.0.next_avail()
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes buffers from a virtqueue and gives them back.
//!
//! Buffers are taken only from a running ring. They are given back even to a ring that has been disabled meanwhile.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::memory::guest_memory::{Memory, MemoryGuard};
use crate::virtqueue::ring::Ring;

/// A ring whose addresses or indices are invalid.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used: {0}")]
pub struct BrokenRing(#[from] virtio_queue::Error);

/// What happens to a chain that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The chain goes back to the guest with used length 0: nothing was written.
    Used,
    /// The chain is kept until [`give_back`].
    Kept,
}

/// Calls `take` with every chain that the guest has queued up to now, and with no later one.
///
/// Does nothing while the ring does not run. The ring's length bounds the work.
///
/// # Errors
/// [`BrokenRing`] if the available ring cannot be read or claims more than the ring holds.
pub fn drain(
    ring: &Ring,
    memory: &Memory,
    mut take: impl FnMut(DescriptorChain<MemoryGuard>) -> Chain,
) -> Result<(), BrokenRing> {
    drain_some(ring, memory, |chain| ControlFlow::Continue(take(chain))).map(|_| ())
}

/// As [`drain`], but stops when `take` breaks. Returns whether it did.
///
/// # Errors
/// As [`drain`].
pub fn drain_some(
    ring: &Ring,
    memory: &Memory,
    mut take: impl FnMut(DescriptorChain<MemoryGuard>) -> ControlFlow<Chain, Chain>,
) -> Result<bool, BrokenRing> {
    let mut state = ring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return Ok(false);
    }
    let memory = memory.memory();
    let queue = state.get_queue_mut();
    let (mut used, mut broken_off) = (Vec::new(), false);
    for chain in queue.iter(memory.clone())? {
        let head = chain.head_index();
        let taken = take(chain);
        broken_off = taken.is_break();
        let (ControlFlow::Break(what) | ControlFlow::Continue(what)) = taken;
        if what == Chain::Used {
            used.push(head);
        }
        if broken_off {
            break;
        }
    }
    return_used(ring, queue, &memory, &used)?;
    Ok(broken_off)
}

/// Gives back the chains at `heads`, which [`drain`] kept. Does nothing if the ring has been stopped meanwhile.
///
/// # Errors
/// [`BrokenRing`] if the used ring cannot be written.
pub fn give_back(ring: &Ring, memory: &Memory, heads: &[u16]) -> Result<(), BrokenRing> {
    let mut state = ring.get_mut();
    let queue = state.get_queue_mut();
    if !queue.ready() {
        return Ok(());
    }
    return_used(ring, queue, &memory.memory(), heads)
}

fn return_used(
    ring: &Ring,
    queue: &mut Queue,
    memory: &MemoryGuard,
    heads: &[u16],
) -> Result<(), BrokenRing> {
    let size = queue.size();
    // An invalid head cannot be put into the used ring.
    for &head in heads.iter().filter(|head| **head < size) {
        let slot = queue.next_used() % size;
        queue.add_used(&**memory, head, 0)?;
        ring.log_used(slot);
    }
    if !heads.is_empty() && wants_interrupt(queue, memory) {
        // Fails if the front end has closed its end. Then no guest is left to interrupt.
        let _ = ring.signal_used_queue();
    }
    Ok(())
}

/// Whether the driver wants an interrupt. Linux asks for none on the hint queue, and `virtio-queue` does not check.
fn wants_interrupt(queue: &Queue, memory: &MemoryGuard) -> bool {
    std::sync::atomic::fence(Ordering::SeqCst);
    let flags = GuestAddress(queue.avail_ring());
    memory
        .load::<u16>(flags, Ordering::Relaxed)
        .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

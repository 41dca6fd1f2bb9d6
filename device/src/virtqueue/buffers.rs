// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking buffers from a virtqueue and giving them back.
//!
//! Buffers are taken only from a ring that runs. What was taken goes back to a ring that is disabled meanwhile, too.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::memory::guest_memory::{Memory, MemoryGuard};
use crate::virtqueue::ring::Ring;

/// A ring that cannot be read: its addresses or its indices make no sense.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used: {0}")]
pub struct BrokenRing(#[from] virtio_queue::Error);

/// What becomes of a chain that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It goes back to the guest with used length 0: nothing was written.
    Used,
    /// It is kept, to be given back with [`give_back`].
    Kept,
}

/// Lets `take` have every chain that the guest has queued up to now, and no later one.
///
/// Does nothing while the ring does not run. A ring's length bounds the work.
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

/// As [`drain`], but takes no more chains once `take` breaks. Whether it did.
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

/// Gives back the chains at `heads`, which [`drain`] kept. A ring that was stopped meanwhile does not get them.
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
    // A head that is no descriptor has no place in the used ring either.
    for &head in heads.iter().filter(|head| **head < size) {
        let slot = queue.next_used() % size;
        queue.add_used(&**memory, head, 0)?;
        ring.log_used(slot);
    }
    if !heads.is_empty() && wants_interrupt(queue, memory) {
        // A front end that has closed its end has no guest to interrupt.
        let _ = ring.signal_used_queue();
    }
    Ok(())
}

/// Linux asks for no interrupts on the hint queue; `virtio-queue` does not look.
fn wants_interrupt(queue: &Queue, memory: &MemoryGuard) -> bool {
    std::sync::atomic::fence(Ordering::SeqCst);
    let flags = GuestAddress(queue.avail_ring());
    memory
        .load::<u16>(flags, Ordering::Relaxed)
        .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

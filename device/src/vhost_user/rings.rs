// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking buffers from a virtqueue and giving them back.
//!
//! A ring is *started* or stopped, and *enabled* or not, whatever the other. It *runs* while it is both: only then
//! are buffers taken from it. What was taken goes back to a ring that is disabled meanwhile, too.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

pub use crate::vhost_user::memory::{Memory, MemoryGuard};
pub use crate::vhost_user::ring::Ring;

/// A ring that cannot be read: its addresses or its indices make no sense.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used: {0}")]
pub struct BrokenRing(#[from] virtio_queue::Error);

/// Whether the front end has started the ring.
pub fn is_started(ring: &Ring) -> bool {
    ring.get_ref().get_queue().ready()
}

/// Whether the front end has started and enabled the ring.
pub fn runs(ring: &Ring) -> bool {
    let state = ring.get_ref();
    state.is_enabled() && state.get_queue().ready()
}

/// Where a ring was left when chains were last taken from it.
#[derive(Debug, Default)]
pub struct Place {
    next: Option<u16>,
    stopped: bool,
}

impl Place {
    /// The ring is left as it is now.
    pub fn leave(&mut self, ring: &Ring) {
        self.next = Some(next(ring));
    }

    /// The front end stops the ring.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether a driver has set up the ring anew since it was left: it does not go on where it was, or starts from
    /// the beginning after a stop.
    pub fn is_new(&mut self, ring: &Ring) -> bool {
        let next = next(ring);
        let stopped = std::mem::take(&mut self.stopped);
        let left = self.next.replace(next);
        left.is_some_and(|left| left != next) || stopped && next == 0
    }
}

/// Whether the guest has not queued anything on the ring, neither for this device nor for one before it.
pub fn is_at_start(ring: &Ring, memory: &Memory) -> bool {
    let state = ring.get_ref();
    let queue = state.get_queue();
    let queued = queue.avail_idx(&*memory.memory(), Ordering::Acquire);
    queue.next_avail() == 0 && queued.is_ok_and(|index| index.0 == 0)
}

/// The number of the next chain to be taken.
fn next(ring: &Ring) -> u16 {
    ring.get_ref().get_queue().next_avail()
}

/// Takes the ring for stopped, without a last look: its memory may be somebody else's. The crate waits for a new kick
/// only if there is none.
pub fn abandon(ring: &Ring) {
    ring.set_queue_ready(false);
    ring.set_kick(None);
}

/// Does `last` with a ring that the front end is stopping. The crate has stopped it already, but not answered.
pub fn before_it_stops(ring: &Ring, last: impl FnOnce()) {
    // The crate takes the kick away only afterwards: a ring without one was not started.
    if ring.get_ref().get_kick().is_some() {
        ring.set_queue_ready(true);
        last();
        ring.set_queue_ready(false);
    }
}

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

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking buffers from a virtqueue and giving them back.

use std::sync::atomic::Ordering;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard,
    GuestMemoryMmap,
};

/// Guest memory whose writes go to the vhost-user dirty log.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;
/// Guest memory at one moment.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemoryMmap<BitmapMmapRegion>>;
/// A virtqueue of a front end.
pub type Ring = VringRwLock<Memory>;

/// A ring that cannot be read: its addresses or its indices make no sense.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used: {0}")]
pub struct BrokenRing(#[from] virtio_queue::Error);

/// Whether the front end has started and enabled the ring.
pub fn runs(ring: &Ring) -> bool {
    let state = ring.get_ref();
    state.is_enabled() && state.get_queue().ready()
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
    let mut state = ring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return Ok(());
    }
    let memory = memory.memory();
    let mut used = Vec::new();
    for chain in state.get_queue_mut().iter(memory.clone())? {
        let head = chain.head_index();
        if take(chain) == Chain::Used {
            used.push(head);
        }
    }
    return_used(&mut state, &memory, &used)
}

/// Gives back the chain at `head`, which [`drain`] kept. Works on a stopped ring too.
///
/// # Errors
/// [`BrokenRing`] if the used ring cannot be written.
pub fn give_back(ring: &Ring, memory: &Memory, head: u16) -> Result<(), BrokenRing> {
    return_used(&mut ring.get_mut(), &memory.memory(), &[head])
}

fn return_used(
    state: &mut VringState<Memory>,
    memory: &MemoryGuard,
    heads: &[u16],
) -> Result<(), BrokenRing> {
    let size = state.get_queue().size();
    // A head that is no descriptor has no place in the used ring either.
    for &head in heads.iter().filter(|head| **head < size) {
        state.add_used(head, 0)?;
    }
    if !heads.is_empty() && wants_interrupt(state, memory) {
        // A front end that has closed its end has no guest to interrupt.
        let _ = state.signal_used_queue();
    }
    Ok(())
}

/// Linux asks for no interrupts on the hint queue; `virtio-queue` does not look.
fn wants_interrupt(state: &VringState<Memory>, memory: &MemoryGuard) -> bool {
    std::sync::atomic::fence(Ordering::SeqCst);
    let flags = GuestAddress(state.get_queue().avail_ring());
    memory
        .load::<u16>(flags, Ordering::Relaxed)
        .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

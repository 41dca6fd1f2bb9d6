// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring of the vhost-user-backend crate, with three additions: kicks and interrupts that never block, whatever the
//! front end does with its file descriptors, and a dirty log of the used ring.
//!
//! A ring is *started* or stopped. Independently of that, it is *enabled* or disabled. It *runs* while it is started
//! and enabled.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::net::SendFlags;
use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestAddressSpace;

use crate::memory::dirty_log::DirtyLog;
use crate::memory::guest_memory::Memory;

/// The longest queue that a front end may set up. Linux keeps one entry in flight for each hint block.
pub const MAX_QUEUE_SIZE: usize = 1024;

/// A virtqueue of a front end.
#[derive(Clone)]
pub struct Ring {
    inner: VringRwLock<Memory>,
    ends: Arc<Mutex<Ends>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// What the front end gave for the ring.
#[derive(Debug, Default)]
struct Ends {
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    used_log: Option<UsedLog>,
}

/// Where writes to the used ring are logged: from guest-physical `address` on.
#[derive(Clone, Debug)]
struct UsedLog {
    log: Arc<DirtyLog>,
    address: u64,
}

/// Parts of a used ring of the split format: `flags u16, idx u16`, then elements.
const USED_INDEX: u64 = 2;
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;

impl Ring {
    /// Whether the front end has started the ring.
    pub fn is_started(&self) -> bool {
        self.get_ref().get_queue().ready()
    }

    /// Whether the front end has started and enabled the ring.
    pub fn runs(&self) -> bool {
        let state = self.get_ref();
        state.is_enabled() && state.get_queue().ready()
    }

    /// Whether the guest has never queued anything on the ring, neither for this device nor for one before it.
    pub fn is_unused(&self, memory: &Memory) -> bool {
        let state = self.get_ref();
        let queue = state.get_queue();
        let queued = queue.avail_idx(&*memory.memory(), Ordering::Acquire);
        queue.next_avail() == 0 && queued.is_ok_and(|index| index.0 == 0)
    }

    /// The number of the next chain that will be taken.
    pub fn next_chain(&self) -> u16 {
        self.get_ref().get_queue().next_avail()
    }

    /// Stops the ring without a last look at its memory, which may have another use by now. The crate waits for a new
    /// kick only if the ring has none.
    pub fn abandon(&self) {
        self.set_queue_ready(false);
        self.set_kick(None);
    }

    /// Calls `last` while the front end is stopping the ring. The crate has stopped it already, but has not answered
    /// yet.
    pub fn before_it_stops(&self, last: impl FnOnce()) {
        // The crate takes the kick away only after this. A ring without a kick was not started.
        if self.get_ref().get_kick().is_some() {
            self.set_queue_ready(true);
            last();
            self.set_queue_ready(false);
        }
    }

    /// From now on, logs writes to the used ring as writes at `address`; with `None`, does not log them apart.
    pub fn set_used_log(&self, log: &Arc<DirtyLog>, address: Option<u64>) {
        self.ends.lock().used_log = address.map(|address| UsedLog {
            log: Arc::clone(log),
            address,
        });
    }

    /// Notes in the log that element `slot` of the used ring and its index have been written.
    pub fn log_used(&self, slot: u16) {
        let used_log = self.ends.lock().used_log.clone();
        if let Some(UsedLog { log, address }) = used_log {
            let element = USED_ELEMENTS + u64::from(slot) * USED_ELEMENT_BYTES;
            log.mark(address.saturating_add(element), USED_ELEMENT_BYTES);
            log.mark(address.saturating_add(USED_INDEX), 2);
        }
    }

    /// Has the worker come back to the ring, after it has done its other work.
    pub fn kick_again(&self) {
        let Some(kick) = self.ends.lock().kick.clone() else {
            return;
        };
        // If the kick has no room, the worker has still to read it. If it cannot be written, the front end is not
        // honest, and the guest kicks again anyway.
        let mut polled = [PollFd::new(&*kick, PollFlags::OUT)];
        if poll(&mut polled, Some(&Timespec::default())) == Ok(1) {
            let _ = rustix::io::write(&*kick, &1u64.to_ne_bytes());
        }
    }

    /// Begins where the used ring ends, if the front end says that the device shall begin a little later. No request is
    /// in flight when a ring starts, so nobody has taken the chains in between. (Cloud Hypervisor always gives the
    /// guest's newest position, even if the driver queued chains before the device started or after a device died.)
    fn begin_at_used(&self) {
        let mut state = self.inner.get_mut();
        let queue = state.get_queue_mut();
        let ahead = queue.next_avail().wrapping_sub(queue.next_used());
        if !queue.ready() && (1..=queue.size()).contains(&ahead) {
            queue.set_next_avail(queue.next_used());
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = <VringRwLock<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = <VringRwLock<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            inner: VringRwLock::new(memory, max_queue_size)?,
            ends: Arc::default(),
        })
    }

    /// Reads the guest's kick. Does not block if another thread has read it.
    fn read_kick(&self) -> io::Result<bool> {
        let kick = self.ends.lock().kick.clone();
        let mut count = [0; 8];
        match kick.map(|kick| {
            let mut bytes = [IoSliceMut::new(&mut count)];
            preadv2(&*kick, &mut bytes, u64::MAX, ReadWriteFlags::NOWAIT)
        }) {
            // The crate reports no event of a ring without a kick.
            None | Some(Ok(8) | Err(Errno::AGAIN | Errno::INTR)) => {
                Ok(self.inner.get_ref().is_enabled())
            }
            Some(Ok(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Interrupts the guest.
    fn signal_used_queue(&self) -> io::Result<()> {
        let Some(call) = self.ends.lock().call.clone() else {
            return Ok(());
        };
        let one = 1u64.to_ne_bytes();
        // The front end can make a socket block again at any time.
        match rustix::net::send(&*call, &one, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::NOTSOCK) => {}
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        // A full eventfd holds an interrupt that nobody has read yet.
        let mut polled = [PollFd::new(&*call, PollFlags::OUT)];
        if poll(&mut polled, Some(&Timespec::default()))? == 1 {
            rustix::io::write(&*call, &one)?;
        }
        Ok(())
    }

    /// A stopped ring starts when it gets its kick.
    fn set_kick(&self, file: Option<File>) {
        if file.is_some() {
            self.begin_at_used();
        }
        // The crate waits for its own duplicate. Without ours, only [`Ring::kick_again`] does nothing.
        let copy = file.as_ref().and_then(|file| file.try_clone().ok());
        self.ends.lock().kick = copy.map(|file| Arc::new(file.into()));
        self.inner.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.ends.lock().call = file.map(|file| Arc::new(file.into()));
    }

    fn set_err(&self, _file: Option<File>) {
        // Faults of a ring are reported in the program's log instead.
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, head: u16, length: u32) -> Result<(), QueueError> {
        self.inner.add_used(head, length)
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), QueueError> {
        self.inner.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.inner.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.inner.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
    }
}

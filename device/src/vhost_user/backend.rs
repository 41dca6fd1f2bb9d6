// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as the vhost-user crates see it.
//!
//! One lock serialises the crate's worker thread (queues), its daemon thread (messages of the front end) and the
//! control thread (the migrator).
//!
//! A thread that holds it may touch memory that the front end has lent, and hang there for ever. So only the device's
//! own threads wait for it without a limit ([`Backend::balloon`]). Threads that also serve other devices use
//! [`Backend::balloon_within`].
//!
//! A panic does not poison the device's locks (they are `parking_lot`'s). No code leaves what they guard half changed,
//! and a device with a bug should still tell its guest DONE.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{FairMutex, FairMutexGuard, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use spec::balloon::QueueNumbering;
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use crate::balloon::Balloon;
use crate::balloon::device_state::DeviceState;
use crate::memory::dirty_log::{DirtyLog, LogBitmap};
use crate::memory::guest_memory::{LentMemory, MAX_REGIONS, Memory};
use crate::memory::sigbus::Share;
use crate::vhost_user::transfer::Transfer;
use crate::vhost_user::worker::{self, WorkerCall};
use crate::virtqueue::ring::{MAX_QUEUE_SIZE, Ring};

/// The guards of one device: one for its regions, one for its log.
const GUARDS: usize = 2 * (MAX_REGIONS + 1);

/// A [`Balloon`] behind its lock.
#[derive(Debug)]
pub struct Backend {
    balloon: FairMutex<Balloon>,
    guards: Share,
    worker: WorkerCall,
    /// Has a lock of its own: waiting for the end of a transfer must not hold up the migrator.
    transfer: Mutex<Option<Transfer>>,
    log: Arc<DirtyLog>,
    memory: Mutex<LentMemory>,
    /// Written when the device touches memory that the front end has truncated.
    lost: OwnedFd,
}

impl Backend {
    /// Puts `balloon` behind a lock.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new(balloon: Balloon) -> io::Result<Self> {
        let guards = Share::new(GUARDS)?;
        Ok(Self {
            balloon: FairMutex::new(balloon),
            memory: Mutex::new(LentMemory::new(guards.clone())),
            guards,
            worker: WorkerCall::new()?,
            transfer: Mutex::new(None),
            log: Arc::default(),
            lost: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// The front end's dirty log.
    pub fn log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// The state that is being transferred, if any.
    pub fn transfer(&self) -> MutexGuard<'_, Option<Transfer>> {
        self.transfer.lock()
    }

    /// An eventfd that is written when the device touches memory that the front end has truncated.
    pub fn lost_event(&self) -> &OwnedFd {
        &self.lost
    }

    /// Whether the device has touched memory that the front end has truncated.
    pub fn has_lost_memory(&self) -> bool {
        self.memory.lock().is_lost() || self.log.is_lost()
    }

    /// What guards the mappings of this device's front end.
    pub fn guards(&self) -> &Share {
        &self.guards
    }

    /// Locks the balloon and waits for the lock without a limit. Only for threads of this device.
    pub fn balloon(&self) -> FairMutexGuard<'_, Balloon> {
        self.balloon.lock()
    }

    /// Locks the balloon, if that is possible within `patience`.
    pub fn balloon_within(&self, patience: Duration) -> Option<FairMutexGuard<'_, Balloon>> {
        self.balloon.try_lock_for(patience)
    }

    /// Prepares for a front end that `daemon` will serve. [`Backend::detach`] ends this.
    ///
    /// # Errors
    /// If the daemon's worker does not answer a call. Dropping the daemon would then wait for ever, so it is leaked
    /// instead.
    pub fn attach(
        &self,
        daemon: VhostUserDaemon<Arc<Self>>,
    ) -> io::Result<VhostUserDaemon<Arc<Self>>> {
        let workers = daemon.get_epoll_handlers();
        let attached = workers
            .iter()
            .try_for_each(|worker| self.worker.register(worker))
            .and_then(|()| self.worker.wait());
        match attached {
            Ok(()) => Ok(daemon),
            Err(error) => {
                std::mem::forget(daemon);
                Err(error)
            }
        }
    }

    /// Ends what [`Backend::attach`] began, after the front end of `daemon` has hung up.
    pub fn detach(&self, daemon: VhostUserDaemon<Arc<Self>>) {
        self.worker.dismiss();
        // Waits for the worker, so it comes last.
        drop(daemon);
        *self.transfer.lock() = None;
        self.balloon().front_end_gone();
        self.log.clear();
        self.memory.lock().clear();
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = LogBitmap;
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QueueNumbering::MAX_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.balloon().offered_features()
    }

    fn acked_features(&self, features: u64) {
        let mut balloon = self.balloon();
        self.log
            .log_every_write(features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0);
        balloon.acknowledge(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    /// A front end may reset the device without stopping its rings first. The crate has disabled them by now.
    fn reset_device(&self) {
        if let Err(error) = self.worker.wait() {
            log::warn!("the device is reset, but its worker does not answer: {error}");
        }
        let mut balloon = self.balloon();
        self.log.log_every_write(false);
        balloon.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let mut balloon = self.balloon();
        let memory = memory.memory().into_inner();
        let memory = self
            .memory
            .lock()
            .change(memory, &self.log, self.lost.as_fd())?;
        balloon.set_memory(memory);
        Ok(())
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if let Err(error) = self.worker.wait() {
            log::warn!("queue {index} stops, but its worker does not answer: {error}");
        }
        self.balloon().queue_stops(index as usize);
        Ok(())
    }

    /// Fails only when the worker thread shall end: the crate ends it on an error.
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        rings: &[Ring],
        _thread: usize,
    ) -> io::Result<()> {
        self.balloon().queue_event(usize::from(event), rings);
        if event == worker::EVENT {
            self.worker.pass()?;
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        pipe: File,
    ) -> io::Result<Option<File>> {
        let balloon = self.balloon();
        if balloon.is_started() {
            return Err(io::Error::other("the device is not suspended"));
        }
        let mut transfer = self.transfer.lock();
        *transfer = None;
        *transfer = Some(match direction {
            VhostTransferStateDirection::SAVE => Transfer::save(pipe, balloon.save().to_bytes())?,
            VhostTransferStateDirection::LOAD => Transfer::load(pipe)?,
        });
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        let transfer = self.transfer.lock().take();
        let transfer = transfer.ok_or_else(|| io::Error::other("no state was transferred"))?;
        let Some(bytes) = transfer.finish()? else {
            return Ok(());
        };
        let state = DeviceState::from_bytes(&bytes).map_err(io::Error::other)?;
        let mut balloon = self.balloon();
        if balloon.is_started() {
            return Err(io::Error::other("the device is not suspended"));
        }
        balloon.restore(state).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use crate::balloon::options::Options;

    /// One thread takes the device again and again, as for a guest that floods the inflate queue. Another waits for it,
    /// as the migrator does to close an epoch.
    #[test]
    fn a_waiting_thread_gets_the_device_before_one_that_takes_it_again_and_again() {
        const FLOOD: u32 = 2000;
        let balloon = Balloon::new(Options::default(), Arc::default());
        let backend = Backend::new(balloon).unwrap();
        let turns = AtomicU32::new(0);
        let over = AtomicU32::new(0);
        let had = thread::scope(|scope| {
            scope.spawn(|| {
                while turns.fetch_add(1, Ordering::SeqCst) < FLOOD
                    && over.load(Ordering::SeqCst) == 0
                {
                    let _held = backend.balloon();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            while turns.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            for _ in 0..20 {
                drop(backend.balloon());
            }
            over.store(1, Ordering::SeqCst);
            turns.load(Ordering::SeqCst)
        });
        assert!(
            had < FLOOD,
            "the flooding thread had the device {had} times"
        );
    }
}

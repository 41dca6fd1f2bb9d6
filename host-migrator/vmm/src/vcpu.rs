// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vCPUs. Each has a thread, which runs the guest or is parked.
//!
//! A thread parks only after KVM_RUN has failed with EINTR. Then KVM has completed the port or memory access that the
//! guest was in, so the registers of a parked vCPU are consistent and can be saved. For that, [`Vcpus::pause`] first sets
//! `immediate_exit`, which the next KVM_RUN reads, and then sends a signal, which interrupts a running KVM_RUN.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::signal::Killable;

use crate::dirty_ring::DirtyRings;
use crate::event::MachineEvent;
use crate::gate::{Gate, Wanted};
use crate::io_bus::{IoBus, Request};
use crate::kick::{ImmediateExit, kick_signal};
use crate::kvm_stats::KvmStats;
use crate::throttle::VcpuThrottle;
use crate::vcpu_times::{VcpuWatch, Watched};

/// The vCPUs cannot be made, paused or run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM or the system refused something.
    #[error("vCPU {vcpu}: cannot {action}: {source}")]
    Io {
        /// Which one.
        vcpu: usize,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Some vCPUs did not park.
    #[error("{0} vCPUs did not stop in time; the guest runs on")]
    DidNotPark(usize),
    /// The thread that throttles vCPUs.
    #[error("cannot start the thread that throttles vCPUs: {0}")]
    Throttler(#[source] io::Error),
    /// The guest has powered off or crashed.
    #[error("the guest has ended")]
    Ended,
}

/// The vCPUs of a machine. They start parked.
#[derive(Debug)]
pub struct Vcpus {
    gate: Arc<Gate>,
    vcpus: Vec<Vcpu>,
    /// They make the vCPUs leave the guest while it is throttled, one each.
    throttlers: Vec<JoinHandle<()>>,
    rings: Option<Arc<DirtyRings>>,
}

#[derive(Debug)]
struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    exit: Arc<Exit>,
    watched: Arc<Watched>,
}

/// How to make a vCPU leave the guest.
#[derive(Debug)]
struct Exit {
    index: usize,
    immediate: ImmediateExit,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Exit {
    fn kick(&self) -> Result<(), VcpuError> {
        let failed = |source| VcpuError::Io {
            vcpu: self.index,
            action: "be interrupted",
            source,
        };
        self.immediate.set(true);
        let signal = kick_signal().map_err(failed)?;
        match &*self.thread.lock() {
            Some(thread) => thread.kill(signal).map_err(|e| failed(e.into())),
            None => Ok(()),
        }
    }
}

impl Vcpus {
    /// Makes `count` vCPUs of `vm`, each with its thread. The guest's events go to `events`. With `rings` each has a dirty ring.
    ///
    /// # Errors
    /// [`VcpuError::Io`] if KVM or the system refuses something.
    pub fn new(
        vm: &VmFd,
        count: usize,
        bus: &Arc<IoBus>,
        events: &Sender<MachineEvent>,
        rings: Option<&Arc<DirtyRings>>,
    ) -> Result<Self, VcpuError> {
        let mut all = Self {
            gate: Arc::new(Gate::default()),
            vcpus: Vec::with_capacity(count),
            throttlers: Vec::new(),
            rings: rings.cloned(),
        };
        for index in 0..count {
            let failed = |action| {
                move |source| VcpuError::Io {
                    vcpu: index,
                    action,
                    source,
                }
            };
            let fd = vm
                .create_vcpu(index as u64)
                .map_err(|e| failed("be made")(e.into()))?;
            let immediate =
                ImmediateExit::of(&fd, vm.run_size()).map_err(failed("map its run structure"))?;
            let exit = Arc::new(Exit {
                index,
                immediate,
                thread: Mutex::new(None),
            });
            if let Some(rings) = rings {
                rings.add(&fd).map_err(failed("map its dirty ring"))?;
            }
            let stats = KvmStats::of(&fd)
                .inspect_err(|error| log::debug!("KVM does not count page faults: {error}"));
            let watched = Arc::new(Watched::new(stats.ok()));
            let fd = Arc::new(Mutex::new(fd));
            let runner = Runner {
                index,
                fd: Arc::clone(&fd),
                exit: Arc::clone(&exit),
                gate: Arc::clone(&all.gate),
                watched: Arc::clone(&watched),
                bus: Arc::clone(bus),
                events: events.clone(),
                rings: rings.cloned(),
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu-{index}"))
                .spawn(move || runner.live())
                .map_err(failed("start its thread"))?;
            *exit.thread.lock() = Some(thread);
            all.vcpus.push(Vcpu { fd, exit, watched });
        }
        for vcpu in &all.vcpus {
            let (gate, exit) = (Arc::clone(&all.gate), Arc::clone(&vcpu.exit));
            let throttler = thread::Builder::new()
                .name(format!("vcpu-hold-{}", exit.index))
                .spawn(move || {
                    gate.at_each_hold(exit.index, || {
                        // The vCPU is held when it leaves the guest by itself.
                        if let Err(error) = exit.kick() {
                            log::warn!("{error}");
                        }
                    });
                })
                .map_err(VcpuError::Throttler)?;
            all.throttlers.push(throttler);
        }
        Ok(all)
    }

    /// What slows the vCPUs down. A machine has one at a time.
    pub fn throttle(&self) -> VcpuThrottle {
        VcpuThrottle::new(Arc::clone(&self.gate), self.rings.clone())
    }

    /// Shows what keeps the vCPUs from running.
    pub fn watch(&self) -> VcpuWatch {
        let watched = self.vcpus.iter().map(|vcpu| Arc::clone(&vcpu.watched));
        VcpuWatch::new(watched.collect())
    }

    /// How many vCPUs there are.
    pub fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Locks the vCPUs, which must be paused: a running vCPU holds its lock.
    pub fn lock_all(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| vcpu.fd.lock())
    }

    /// Runs the vCPUs. Does nothing if they run.
    ///
    /// # Errors
    /// [`VcpuError::Ended`] if the guest has ended.
    pub fn run(&mut self) -> Result<(), VcpuError> {
        self.check_alive()?;
        // Each clears its `immediate_exit` when it passes the gate.
        self.gate.want(Wanted::Run);
        Ok(())
    }

    /// Stops the vCPUs. After the return none is in the guest, and no access of the guest is half done. Does nothing if
    /// they are stopped.
    ///
    /// # Errors
    /// [`VcpuError`] if a vCPU does not stop; then all run on.
    pub fn pause(&mut self) -> Result<(), VcpuError> {
        // For all vCPUs first, so that a vCPU that wakes from its sleep meanwhile does not run on.
        for vcpu in &self.vcpus {
            vcpu.exit.immediate.set(true);
        }
        self.gate.want(Wanted::Pause);
        let parked = || match self.gate.wait_parked(self.count()) {
            0 => Ok(()),
            missing => Err(VcpuError::DidNotPark(missing)),
        };
        let paused = self.kick().and_then(|()| parked());
        if paused.is_err() {
            self.run()?;
        }
        paused
    }

    /// # Errors
    /// [`VcpuError::Ended`] if the guest has powered off, reset itself or crashed.
    pub fn check_alive(&self) -> Result<(), VcpuError> {
        if self.gate.has_ended() {
            Err(VcpuError::Ended)
        } else {
            Ok(())
        }
    }

    fn kick(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(|vcpu| vcpu.exit.kick())
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.gate.want(Wanted::Quit);
        if let Err(error) = self.kick() {
            log::error!("{error}");
        }
        // A thread that panicked has printed why.
        self.throttlers.drain(..).for_each(|it| drop(it.join()));
        for vcpu in &mut self.vcpus {
            let thread = vcpu.exit.thread.lock().take();
            let _ = thread.map(JoinHandle::join);
        }
    }
}

/// The thread of a vCPU.
struct Runner {
    index: usize,
    fd: Arc<Mutex<VcpuFd>>,
    exit: Arc<Exit>,
    gate: Arc<Gate>,
    watched: Arc<Watched>,
    bus: Arc<IoBus>,
    events: Sender<MachineEvent>,
    rings: Option<Arc<DirtyRings>>,
}

impl Runner {
    fn live(self) {
        self.watched.is_this_thread();
        let enter = || self.exit.immediate.set(false);
        while self.gate.pass(self.index, &self.watched, enter) {
            if let Some(end) = self.run() {
                self.gate.end();
                // Nobody may be listening any more.
                let _ = self.events.send(end);
            }
        }
    }

    /// Runs the guest until it is interrupted (`None`) or ends.
    fn run(&self) -> Option<MachineEvent> {
        let mut fd = self.fd.lock();
        self.tell_of_pause(&fd);
        loop {
            match fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    if let Some(request) = self.bus.port_write(port, data)
                        && let Some(end) = self.obey(request)
                    {
                        return Some(end);
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => self.bus.port_read(port, data),
                Ok(VcpuExit::MmioRead(address, data)) => self.bus.memory_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => self.bus.memory_write(address, data),
                Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                    let emptied = self.rings.as_ref().map(|rings| rings.make_room());
                    if let Some(Err(error)) = emptied {
                        let what = format!("its dirty ring cannot be emptied: {error}");
                        return Some(self.crashed(&fd, &what));
                    }
                }
                Ok(VcpuExit::Shutdown) => return Some(self.crashed(&fd, "triple fault")),
                Ok(exit) => {
                    let exit = format!("unexpected exit {exit:?}");
                    return Some(self.crashed(&fd, &exit));
                }
                Err(error) if error.errno() == libc::EINTR => return None,
                // A vCPU that waits for another one to start it was woken.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Some(self.crashed(&fd, &format!("KVM_RUN failed: {error}"))),
            }
        }
    }

    /// Sets the flag of the guest's paravirtual clock that says that the guest was stopped. Otherwise its watchdogs would
    /// take the pause for a hanging processor.
    fn tell_of_pause(&self, fd: &VcpuFd) {
        if let Err(error) = fd.kvmclock_ctrl()
            // The guest has no such clock, or KVM does not have this call.
            && !matches!(error.errno(), libc::EINVAL | libc::ENOTTY)
        {
            log::warn!(
                "vCPU {}: the guest cannot be told of the pause: {error}",
                self.index
            );
        }
    }

    fn obey(&self, request: Request) -> Option<MachineEvent> {
        match request {
            Request::Sleep(duration) => self.gate.sleep(duration),
            Request::Announce(event) => {
                // Nobody may be listening any more.
                let _ = self.events.send(MachineEvent::Announced(event));
            }
            Request::PowerOff => return Some(MachineEvent::PoweredOff),
            Request::Reset => return Some(MachineEvent::Reset),
        }
        None
    }

    fn crashed(&self, fd: &VcpuFd, what: &str) -> MachineEvent {
        let at = fd.get_regs().map_or(0, |regs| regs.rip);
        MachineEvent::Crashed(format!("vCPU {}: {what} at {at:#x}", self.index))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::{MachineMemory, MemoryOptions};
    use crate::serial::Console;
    use crate::slots::MemorySlots;
    use kvm_bindings::{Msrs, kvm_msr_entry};
    use kvm_ioctls::{Cap, Kvm};
    use vm_memory::{Bytes, GuestAddress};

    const CODE: u64 = 0x1000;
    /// The address of the guest's clock, the register that tells KVM, and the offset of the flags.
    const CLOCK: u64 = 0x2000;
    const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    const FLAGS: GuestAddress = GuestAddress(CLOCK + 29);
    const GUEST_STOPPED: u8 = 1 << 1;

    /// The time limit for what must happen.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_guest_with_a_paravirtual_clock_is_told_of_every_pause() {
        let Ok(kvm) = Kvm::new() else {
            return spec_testing::skipped("/dev/kvm cannot be opened");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        if !vm.check_extension(Cap::KvmclockCtrl) {
            return spec_testing::skipped("this KVM cannot tell a guest that it was stopped");
        }
        let memory = MachineMemory::new(1 << 20, MemoryOptions::default()).unwrap();
        let _slots = MemorySlots::register(Arc::clone(&vm), Arc::clone(memory.ram())).unwrap();
        let console = Console::new(Box::new(io::sink())).unwrap();
        let bus = Arc::new(IoBus::new(console, Vec::new()));
        let (events, _) = std::sync::mpsc::channel();
        let mut vcpus = Vcpus::new(&vm, 1, &bus, &events, None).unwrap();
        // In real mode: a jump to itself.
        let memory = memory.ram().memory();
        memory
            .write_slice(&[0xeb, 0xfe], GuestAddress(CODE))
            .unwrap();
        for vcpu in vcpus.lock_all() {
            let mut sregs = vcpu.get_sregs().unwrap();
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            vcpu.set_sregs(&sregs).unwrap();
            let mut regs = vcpu.get_regs().unwrap();
            (regs.rip, regs.rflags) = (CODE, 2);
            vcpu.set_regs(&regs).unwrap();
            let enable = kvm_msr_entry {
                index: MSR_KVM_SYSTEM_TIME_NEW,
                data: CLOCK | 1,
                ..Default::default()
            };
            let set = vcpu.set_msrs(&Msrs::from_entries(&[enable]).unwrap());
            assert_eq!(set.unwrap(), 1);
        }
        for _ in 0..3 {
            memory.write_obj(0u8, FLAGS).unwrap();
            vcpus.run().unwrap();
            let end = Instant::now() + PATIENCE;
            while memory.read_obj::<u8>(FLAGS).unwrap() & GUEST_STOPPED == 0 {
                assert!(Instant::now() < end, "the guest is not told");
                thread::sleep(Duration::from_millis(1));
            }
            vcpus.pause().unwrap();
        }
    }
}

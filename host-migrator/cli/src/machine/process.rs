// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process of a machine: it receives the guest, follows the guest's events, and answers on the control socket.

mod answers;
mod leaving;
mod reports;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use host_migrator::wire::{Listener, TlsConfig};
use host_migrator::{
    GuestRam, Incoming, MachineError, Owner, OwnershipRecord, RamRegion, ReceiveStatus, Snapshot,
    Trace,
};
use parking_lot::Mutex;
use reference_vmm::virtio::VhostUserBalloon;
use reference_vmm::{IoBus, Machine, MachineEvent, VcpuWatch};
use spec::bare::Event;

use super::arriving::Arriving;
use super::console::LastReport;
use super::dirty_rate::DirtyRateMeasurement;
use super::life::{Ending, Life};
use super::outgoing::Outgoing;
use super::postcopying::Postcopying;
use super::restoring::{Restore, Restoring};
use super::shared::SharedMachine;
use super::{Parts, ProcessError, io_error};
use crate::args::{GuestKind, MachineArgs};

/// How long the console may take to write the guest's last output.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A machine, its migrations, and its guest's last report.
#[derive(Debug)]
pub struct Process {
    machine: SharedMachine,
    memory: Mutex<Memory>,
    bus: Arc<IoBus>,
    /// What keeps the vCPUs from running, which is asked for without the machine's lock.
    watch: VcpuWatch,
    guest: GuestKind,
    memory_bytes: u64,
    balloon: Option<Arc<VhostUserBalloon>>,
    balloon_control: Option<PathBuf>,
    trace: Trace,
    report: LastReport,
    outgoing: Arc<Outgoing>,
    dirty_rate: Arc<DirtyRateMeasurement>,
    ownership: OwnershipRecord,
    life: Arc<Life>,
    /// How long it took to load the guest that arrived here.
    load: OnceLock<Duration>,
    restoring: Restoring,
    postcopying: Postcopying,
    /// How the last connection was encrypted.
    tls: Mutex<Option<TlsConfig>>,
    /// How long a peer may be silent.
    peer_timeout: Duration,
    /// Where a guest is awaited, until it has arrived or the process ends.
    listener: Mutex<Option<Arc<Listener>>>,
}

/// The machine's memory.
#[derive(Debug)]
struct Memory {
    ram: Arc<GuestRam>,
    /// The memory files. They stay open so that other processes can open them by number.
    files: Vec<RamRegion>,
}

impl Memory {
    fn of(machine: &Machine) -> io::Result<Self> {
        Ok(Self {
            ram: Arc::clone(machine.ram()),
            files: machine.memory_files()?,
        })
    }
}

impl Process {
    /// A process for `machine`, whose guest is here, or comes `from` somewhere, such as to `listener`.
    ///
    /// # Errors
    /// [`ProcessError`] if its memory files cannot be opened or a thread cannot be started.
    pub(super) fn new(
        machine: Machine,
        args: &MachineArgs,
        parts: Parts,
        from: Option<String>,
        listener: Option<Listener>,
    ) -> Result<Arc<Self>, ProcessError> {
        let memory = Memory::of(&machine).map_err(io_error("share", &args.control))?;
        let outgoing = Arc::<Outgoing>::default();
        let (life, ownership) = match from {
            Some(from) => {
                let life = Life::awaiting(from, outgoing.clone());
                (life, OwnershipRecord::there())
            }
            None => (Life::with_guest(outgoing.clone()), OwnershipRecord::here()),
        };
        let process = Arc::new(Self {
            memory: Mutex::new(memory),
            bus: Arc::clone(machine.bus()),
            balloon: machine.balloon().cloned(),
            watch: machine.watch(),
            machine: SharedMachine::new(machine),
            guest: args.guest.kind,
            memory_bytes: args.guest.memory.0,
            balloon_control: args.balloon_control.clone(),
            trace: parts.trace,
            report: parts.report,
            outgoing,
            dirty_rate: Arc::default(),
            ownership,
            life: Arc::new(life),
            load: OnceLock::new(),
            restoring: Restoring::default(),
            postcopying: Postcopying::default(),
            tls: Mutex::default(),
            peer_timeout: args.peer_timeout,
            listener: Mutex::new(listener.map(Arc::new)),
        });
        let listener = Arc::clone(&process);
        thread::Builder::new()
            .name("guest-events".into())
            .spawn(move || {
                parts
                    .events
                    .iter()
                    .for_each(|event| listener.happened(event))
            })
            .map_err(io_error("start a thread for", &args.control))?;
        Ok(process)
    }

    /// Waits for a guest, or restores that of `snapshot`, and runs or holds it. If the arrival fails and the source keeps the guest, the process ends.
    /// If the guest may belong to this side, the process keeps it.
    pub(super) fn receive(self: &Arc<Self>, snapshot: Option<(Snapshot, Restore)>) {
        let _noticed = ReceiverDied(&self.life);
        let received = match snapshot {
            Some((snapshot, how)) => self.restore(snapshot, how).map(|report| report.load_ms),
            None => self.accept_and_receive(),
        };
        if let Ok(load_ms) = received {
            // A guest arrives only once.
            let _ = (self.load).set(Duration::from_secs_f64(load_ms / 1000.0));
        }
        let Err(error) = received else {
            return;
        };
        match self.ownership.get().owner {
            Owner::There => self.life.end(Ending::NotReceived(error)),
            owner @ (Owner::Here | Owner::Undecided) => {
                log::error!("{error}");
                self.stop_listening();
                self.life.kept(owner, &error.to_string());
            }
        }
    }

    /// Returns the milliseconds that loading the machine's state took.
    fn accept_and_receive(self: &Arc<Self>) -> Result<f64, ProcessError> {
        let listener = self.listener.lock().clone();
        let Some(listener) = listener else {
            return Ok(0.0);
        };
        let mut machine = Arriving(self);
        // The machine's own, whatever it takes instead.
        let own = self.ram();
        let source = Incoming::wait(&listener, &own, &mut machine)?;
        // `self.listener` is then the only owner, so it can be closed when the guest arrives.
        drop(listener);
        let observer = &mut |status: &ReceiveStatus| log::trace!("{status:?}");
        let early = self.postcopy_options();
        let report = source.receive_early(&own, &mut machine, &self.ownership, observer, early)?;
        Ok(report.load_ms)
    }

    pub(super) fn ram(&self) -> Arc<GuestRam> {
        Arc::clone(&self.memory.lock().ram)
    }

    /// The machine has other memory now: the source's, or new memory of its own.
    pub(super) fn memory_was_replaced(&self) -> Result<(), MachineError> {
        let memory = Memory::of(&self.machine.lock()).map_err(|error| MachineError {
            action: "share the machine's memory",
            reason: error.to_string(),
        })?;
        *self.memory.lock() = memory;
        Ok(())
    }

    /// Stops listening for a guest, and removes the socket's file.
    pub(super) fn stop_listening(&self) {
        let listener = self.listener.lock().take();
        // One that is still waited at does not end with this process's last use of it.
        if let Some(Err(waited_at)) = listener.map(Arc::try_unwrap) {
            waited_at.remove_file();
        }
    }

    /// Waits a moment for the guest's last output to be written, before the process ends.
    pub(super) fn drain_console(&self) {
        self.bus.console().drain(LAST_WORDS);
    }

    /// Its migrations away from here.
    pub(super) fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// Where the guest is.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// The machine.
    pub(super) fn machine(&self) -> &SharedMachine {
        &self.machine
    }

    /// Who owns the guest.
    pub(super) fn ownership(&self) -> &OwnershipRecord {
        &self.ownership
    }

    /// How its restore goes, if the guest comes from a file.
    pub(super) fn restoring(&self) -> &Restoring {
        &self.restoring
    }

    /// How the rest of the guest's memory comes, if it was handed over before that.
    pub(super) fn postcopying(&self) -> &Postcopying {
        &self.postcopying
    }

    /// How connections are encrypted from now on.
    pub(super) fn set_tls(&self, tls: Option<TlsConfig>) {
        *self.tls.lock() = tls;
    }

    fn happened(&self, event: MachineEvent) {
        log::info!("guest: {event:?}");
        let failure = match event {
            MachineEvent::Announced(Event::Ready) => return self.life.guest_is_ready(),
            MachineEvent::Announced(Event::Failed) => {
                "it has given up; its console says why".to_owned()
            }
            MachineEvent::PoweredOff => "it powered off".to_owned(),
            MachineEvent::Reset => "it reset itself".to_owned(),
            MachineEvent::Crashed(why) => why,
        };
        self.guest_has_ended(&failure);
    }

    /// The guest has ended for the reason `why`.
    pub(super) fn guest_has_ended(&self, why: &str) {
        // In this order, so that no migration begins in between.
        self.life.guest_ended(why);
        self.outgoing.guest_ended(why);
    }
}

/// Ends the process if the thread that receives the guest panics. Otherwise the process would wait for ever.
struct ReceiverDied<'a>(&'a Life);

impl Drop for ReceiverDied<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end(Ending::ReceiverDied);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process of a machine: it receives the guest, follows the guest's events, and answers on the control socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use host_migrator::hints::DeviceHints;
use host_migrator::snapshot::HalfFile;
use host_migrator::wire::{Listener, TlsConfig};
use host_migrator::{
    DestinationMachine, FileSink, GuestRam, HintSource, Incoming, MachineError, MigrationParams,
    Owner, OwnershipRecord, RamRegion, ReceiveStatus, STOP_AND_SAVE, Snapshot, SnapshotTarget,
    Source, SourceMachine, Trace,
};
use parking_lot::Mutex;
use reference_vmm::virtio::VhostUserBalloon;
use reference_vmm::{IoBus, Machine, MachineEvent, VcpuWatch, guest_gaps};
use serde_json::{Value, json};
use spec::PAGE_SIZE;
use spec::bare::{Event, StatusWord};

use super::arriving::Arriving;
use super::console::LastReport;
use super::dirty_rate::{DirtyRateMeasurement, Means};
use super::life::{Ending, Life};
use super::outgoing::Outgoing;
use super::postcopying::Postcopying;
use super::request::{file, needs_the_device, params, text};
use super::restoring::{Restore, Restoring};
use super::saving::Saving;
use super::shared::SharedMachine;
use super::way::Way;
use super::{
    FileRange, GuestStatus, MachineState, MemoryMap, Parts, ProcessError, Status, VcpuStatus,
    io_error,
};
use crate::args::{GuestKind, MachineArgs};
use crate::control::{
    Command, DirtyRateArguments, DirtyRateMode, Handler, MigrateArguments, QuitArguments,
};
use crate::gaps::{GapFigures, ReadFigures};

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

    pub(super) fn status(&self) -> Status {
        // In this order, so that the state shown is not older than the end of the migration shown.
        let migration = self.outgoing.status();
        Status {
            machine: self.life.state(),
            ownership: self.ownership.get(),
            guest: self.guest_status(),
            vcpus: self.vcpus(),
            restore: self.restoring.status(),
            postcopy: self.postcopying.status(),
            incoming: self
                .life
                .incoming()
                .or_else(|| self.postcopying.listening()),
            incoming_tls: (self.listener.lock().as_ref())
                .is_some_and(|listener| listener.is_encrypted()),
            balloon_lost: self.balloon.as_ref().and_then(|balloon| balloon.lost()),
            migration,
        }
    }

    /// The guest's report, if the guest is here and up.
    fn guest_status(&self) -> Option<GuestStatus> {
        let (ready, failure) = self.life.of_guest();
        let said = match self.guest {
            GuestKind::Bare => self
                .bare_status()
                .map(|status| GuestStatus { ready, ..status }),
            GuestKind::Linux => {
                let report = self.report.lock().clone();
                report.map(|report| GuestStatus {
                    in_use_bytes: self.memory_bytes.saturating_sub(report.free_bytes),
                    ..report.status
                })
            }
        };
        match (said, failure) {
            (said, None) => said,
            (said, failure) => Some(GuestStatus {
                failure,
                ..said.unwrap_or_default()
            }),
        }
    }

    fn bare_status(&self) -> Option<GuestStatus> {
        let status = reference_vmm::GuestStatus::read(&self.ram())
            .ok()
            .flatten()?;
        let word = |which| status.word(which);
        // The guest's program and tables are below the first page that its allocator manages.
        let pages = word(StatusWord::InUse).saturating_add(word(StatusWord::FirstPage));
        Some(GuestStatus {
            ready: false,
            in_use_bytes: pages.saturating_mul(PAGE_SIZE),
            checks: word(StatusWord::Checks),
            wrong: word(StatusWord::WrongStamps).saturating_add(word(StatusWord::WrongHeartbeats)),
            full_passes: word(StatusWord::FullPasses),
            hint_rounds: word(StatusWord::HintRounds),
            hinted_pages: word(StatusWord::HintedPages),
            early_releases: word(StatusWord::EarlyReleases),
            dones: word(StatusWord::Dones),
            longest_gap: 0,
            clock_behind_ms: None,
            failure: None,
        })
    }

    fn vcpus(&self) -> Vec<VcpuStatus> {
        let mut vcpus: Vec<_> = self
            .watch
            .times()
            .into_iter()
            .map(VcpuStatus::from)
            .collect();
        if self.guest == GuestKind::Bare
            && let Ok(noticed) = guest_gaps::read(&self.ram(), vcpus.len() as u8)
        {
            for (vcpu, noticed) in vcpus.iter_mut().zip(noticed) {
                vcpu.gap_ms = Some(GapFigures::of(&noticed.gaps));
                vcpu.read_us = Some(ReadFigures::of(&noticed.reads));
            }
        }
        vcpus
    }

    fn migrate(
        &self,
        arguments: &MigrateArguments,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        self.life.check_guest_is_here()?;
        // A page that is missing looks like one that was never touched.
        self.restoring.may_leave()?;
        let mut params = params(arguments)?.with_peer_timeout(self.peer_timeout);
        if params.vcpu_dirty_limit.is_some() && self.machine.lock().dirty_rings().is_none() {
            let text = "vcpu-dirty-limit needs to know which vCPU has written: start the machine with --dirty-log ring";
            return Err(text.into());
        }
        if let Some(load) = self.load.get() {
            // The next host takes about as long.
            params.besides_memory = STOP_AND_SAVE + *load;
        }
        let file = match SnapshotTarget::is_meant(&arguments.uri) {
            true => Some(file(arguments, &descriptors)?),
            false if arguments.hold => {
                return Err("only a guest that is saved into a file can be held here".into());
            }
            false => None,
        };
        let hints: Option<Box<dyn HintSource>> = match &self.balloon_control {
            Some(path) if !params.local && needs_the_device(params.sources) => {
                match DeviceHints::connect(path) {
                    Ok(hints) => Some(Box::new(hints)),
                    Err(error) => {
                        log::warn!("migrating without free page hints: {error}");
                        None
                    }
                }
            }
            _ => None,
        };
        let (channel, machine): (_, Box<dyn SourceMachine>) = match file {
            Some(_) => (
                None,
                Box::new(Saving::new(self.machine.clone(), arguments.hold)),
            ),
            None => {
                let way = Way::new(&arguments.uri, descriptors)?;
                let tls = arguments.tls()?;
                let channel = way.connect(tls.as_ref())?;
                self.set_tls(tls);
                (Some(channel), Box::new(self.machine.clone()))
            }
        };
        let (logs, throttle) = {
            let machine = self.machine.lock();
            (machine.dirty_logs(), machine.throttle())
        };
        let mut source = Source::new(machine, self.ram())
            .logs(logs)
            .throttle(throttle)
            .trace(self.trace.clone())
            .ownership(self.ownership.clone());
        source.hints = hints;
        let start = || {
            self.dirty_rate.give_way();
            match (channel, file) {
                (Some(channel), _) => self.outgoing.start(source, params, channel),
                (None, Some(file)) => self.save(source, params, &file, arguments),
                (None, None) => unreachable!("a migration goes over a connection or into a file"),
            }
        };
        self.life.send_away(start)
    }

    /// Starts to measure how fast the guest writes.
    fn calc_dirty_rate(&self, arguments: DirtyRateArguments) -> Result<(), String> {
        self.restoring.may_leave()?;
        let life = Arc::clone(&self.life);
        let runs = move || life.state() == MachineState::Running;
        if !runs() {
            return Err("no guest runs here, so nothing is written".into());
        }
        let start = |means| self.dirty_rate.start(arguments, means, runs);
        let (log, pages, rings) = {
            let machine = self.machine.lock();
            let rings = machine.dirty_rings().cloned();
            (
                machine.vcpu_dirty_log(),
                machine.ram().bitmap_pages(),
                rings,
            )
        };
        let means = match (arguments.mode, rings) {
            (DirtyRateMode::Sampling, _) => return start(Means::Sampling(self.ram())),
            (DirtyRateMode::Bitmap, None) => Means::Log(log, pages),
            (DirtyRateMode::Ring, Some(rings)) => Means::Rings(log, pages, rings),
            (DirtyRateMode::Bitmap, Some(_)) => {
                return Err("this machine logs in rings: use --mode ring".into());
            }
            (DirtyRateMode::Ring, None) => {
                return Err("this machine logs in a bitmap: use --mode bitmap, or start it with --dirty-log ring".into());
            }
        };
        let is_free = self.life.check_guest_is_here();
        is_free.map_err(|why| format!("{why}; --mode sampling needs no dirty log"))?;
        // No migration begins meanwhile.
        self.life.send_away(|| start(means))
    }

    /// Starts to save the guest into `file`.
    fn save(
        &self,
        mut source: Source<'static>,
        params: MigrationParams,
        file: &SnapshotTarget,
        arguments: &MigrateArguments,
    ) -> Result<(), String> {
        let hold = arguments.hold;
        let description = source.machine.describe().map_err(text)?;
        let direct_io = arguments.direct_io.into();
        let sink = FileSink::create(file, direct_io, source.ram.layout(), &description)
            .and_then(|sink| sink.with_writers(params.multifd_channels))
            .map_err(text)?;
        let (mut machine, life) = (self.machine.clone(), Arc::clone(&self.life));
        let ended = move |is_saved| match (hold, is_saved) {
            (true, true) => life.held_after_save(),
            (true, false) => {
                // It may have been stopped before the disk failed.
                if let Err(error) = machine.resume() {
                    log::error!("after a save that failed: {error}");
                }
            }
            (false, _) => {}
        };
        self.outgoing.start_save(source, params, sink, ended)
    }

    /// Goes on with a postcopy whose connection has broken: the destination listens at `uri`, or opens the source's half there; the source
    /// connects.
    fn recover(&self, uri: &str) -> Result<Value, String> {
        let tls = self.tls.lock().clone();
        let is_file = SnapshotTarget::is_meant(uri);
        if self.postcopying.status().is_some() {
            if self.ownership.get().owner != Owner::Here {
                let why = "it is not known whether the guest is here: decide that first, with `lacuna cont --destination-owns`";
                return Err(why.into());
            }
            if is_file {
                let half = HalfFile::open(&uri.parse().map_err(text)?).map_err(text)?;
                self.postcopying.go_on_from(half, self.ownership.get())?;
                return Ok(json!({}));
            }
            let patience = self.peer_timeout;
            let listening = self.postcopying.listen_again(uri, tls.as_ref(), patience)?;
            return Ok(json!({ "listening": listening }));
        }
        if is_file {
            let why = "a file takes the place of the source: it is for the destination";
            return Err(why.into());
        }
        let connect = || Way::new(uri, Vec::new())?.connect(tls.as_ref());
        self.outgoing.recover(connect).map(|()| json!({}))
    }

    fn claim(&self) -> Result<(), String> {
        self.ownership.claim(&self.trace).map_err(text)
    }

    fn memory(&self) -> MemoryMap {
        let memory = self.memory.lock();
        let regions = (memory.files.iter())
            .map(|region| FileRange {
                gpa: region.gpa,
                len: region.len,
                fd: region.file.as_raw_fd(),
                offset: region.offset,
            })
            .collect();
        let report = self.outgoing.report();
        let skipped = report.and_then(|report| report.skipped.clone());
        let words = skipped
            .iter()
            .flat_map(|map| (0..map.word_count()).map(|index| map.load(index)));
        MemoryMap {
            regions,
            skipped: words.collect(),
        }
    }
}

impl Handler for Process {
    fn handle(&self, command: Command, descriptors: Vec<OwnedFd>) -> Result<Value, String> {
        match command {
            Command::Status => serde_json::to_value(self.status()).map_err(text),
            Command::Migrate(arguments) => {
                (self.migrate(&arguments, descriptors)).map(|()| json!({}))
            }
            Command::MigrateSetParameters(arguments) => {
                self.outgoing.tune(&arguments).map(|()| json!({}))
            }
            Command::MigrateStartPostcopy => self.outgoing.start_postcopy().map(|()| json!({})),
            Command::MigrateRecover(arguments) => self.recover(&arguments.uri),
            Command::SaveHalf(arguments) => {
                serde_json::to_value(self.save_half(&arguments.uri)?).map_err(text)
            }
            Command::MigrateCancel => self.outgoing.cancel().map(|()| json!({})),
            Command::QueryEvents(known) => {
                serde_json::to_value(self.outgoing.events(known)).map_err(text)
            }
            Command::CalcDirtyRate(arguments) => {
                self.calc_dirty_rate(arguments).map(|()| json!({}))
            }
            Command::QueryDirtyRate => serde_json::to_value(self.dirty_rate.info()).map_err(text),
            Command::QueryReport => match self.outgoing.report() {
                Some(report) => serde_json::to_value(&*report).map_err(text),
                None => Err("no migration away from here has completed".into()),
            },
            Command::QueryMemory => serde_json::to_value(self.memory()).map_err(text),
            Command::Cont => {
                let run = || self.machine.lock().start().map_err(text);
                self.life.cont(run).map(|()| json!({}))
            }
            Command::Resume => {
                let run = || self.machine.clone().resume().map_err(text);
                self.life.resume(run)?;
                if self.machine.lock().is_running() {
                    self.life.runs();
                }
                Ok(json!({}))
            }
            Command::SourceOwns => {
                let take = || {
                    self.claim()?;
                    self.machine.lock().take_back().map_err(text)
                };
                self.life.source_owns(take).map(|()| json!({}))
            }
            Command::DestinationOwns => {
                let take = || {
                    self.claim()?;
                    let mut machine = self.machine.lock();
                    machine.run().map_err(text)?;
                    machine.start().map_err(text)
                };
                self.life.destination_owns(take).map(|()| json!({}))
            }
            Command::Quit(arguments) => {
                let QuitArguments { end_guest } = arguments.unwrap_or_default();
                self.life.quit(end_guest).map(|()| json!({}))
            }
        }
    }

    fn quit_was_answered(&self) {
        self.life.end(Ending::Quit);
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

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a machine in its process, and what it answers on the control socket.

use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use host_migrator::hints::DeviceHints;
use host_migrator::transport::{Address, Channel, Listener};
use host_migrator::{
    GuestRam, HintSource, MigrationParams, MigrationState, PageSource, PageSources, RamRegion,
    Source, Trace, receive,
};
use reference_vmm::{Machine, MachineEvent};
use serde_json::{Value, json};
use spec::PAGE_SIZE;
use spec::bare::{Event, StatusWord};

use super::console::LastReport;
use super::outgoing::Outgoing;
use super::shared::SharedMachine;
use super::{
    FileRange, GuestStatus, MachineState, MemoryMap, Parts, ProcessError, Status, io_error,
};
use crate::args::{GuestKind, MachineArgs};
use crate::control::{Command, Handler, MigrateArguments};

/// How long the destination may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to `quit` may take to leave.
const LAST_ANSWER: Duration = Duration::from_millis(50);

/// A machine, its migrations, and what its guest has said.
#[derive(Debug)]
pub struct Process {
    machine: SharedMachine,
    ram: Arc<GuestRam>,
    /// Open for as long as the process lives, so that others can open them by number.
    files: Vec<RamRegion>,
    guest: GuestKind,
    memory_bytes: u64,
    balloon_control: Option<PathBuf>,
    trace: Trace,
    report: LastReport,
    outgoing: Arc<Outgoing>,
    life: Mutex<Life>,
    quit: Sender<()>,
}

/// What changes in a machine's life.
#[derive(Debug)]
struct Life {
    state: MachineState,
    ready: bool,
    failure: Option<String>,
    incoming: Option<String>,
}

/// The end of a process.
#[derive(Debug)]
pub struct Quit(Receiver<()>);

impl Quit {
    /// Waits until somebody says `quit`.
    pub fn wait(&self) {
        // An error means that nobody can say it any more.
        let _ = self.0.recv();
        thread::sleep(LAST_ANSWER);
    }
}

impl Process {
    /// Looks after `machine` from now on.
    ///
    /// # Errors
    /// [`ProcessError`] if its memory files or a thread cannot be had.
    pub(super) fn new(
        machine: Machine,
        args: &MachineArgs,
        parts: Parts,
        state: MachineState,
    ) -> Result<(Arc<Self>, Quit), ProcessError> {
        let files = machine
            .memory_files()
            .map_err(io_error("share", &args.control))?;
        let (quit, wait) = channel();
        let process = Arc::new(Self {
            ram: Arc::clone(machine.ram()),
            machine: SharedMachine::new(machine),
            files,
            guest: args.guest.kind,
            memory_bytes: args.guest.memory.0,
            balloon_control: args.balloon_control.clone(),
            trace: parts.trace,
            report: parts.report,
            outgoing: Arc::default(),
            life: Mutex::new(Life {
                state,
                ready: false,
                failure: None,
                incoming: None,
            }),
            quit,
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
        Ok((process, Quit(wait)))
    }

    /// Says where a guest is awaited.
    pub fn listens_at(&self, address: String) {
        self.life().incoming = Some(address);
    }

    /// Waits for a guest, and runs it or holds it.
    ///
    /// # Errors
    /// [`ProcessError`] if it does not arrive whole.
    pub fn receive(&self, listener: &Listener, hold: bool) -> Result<(), ProcessError> {
        let channel = listener.accept(None)?;
        let mut machine = self.machine.clone();
        receive(channel, &self.ram, &mut machine, &mut |status| {
            log::trace!("{status:?}")
        })?;
        let mut life = self.life();
        life.incoming = None;
        life.ready = true;
        if life.state == MachineState::Incoming {
            life.state = if hold {
                MachineState::Held
            } else {
                MachineState::Running
            };
        }
        Ok(())
    }

    fn happened(&self, event: MachineEvent) {
        log::info!("guest: {event:?}");
        let mut life = self.life();
        let failure = match event {
            MachineEvent::Announced(Event::Ready) => {
                life.ready = true;
                return;
            }
            MachineEvent::Announced(Event::Failed) => "it gave up; its console says why".to_owned(),
            MachineEvent::PoweredOff => "it switched itself off".to_owned(),
            MachineEvent::Reset => "it reset itself".to_owned(),
            MachineEvent::Crashed(why) => why,
        };
        life.failure.get_or_insert(failure);
        life.state = MachineState::Ended;
    }

    fn status(&self) -> Status {
        let migration = self.outgoing.status();
        let guest = self.guest_status();
        let life = self.life();
        let handed_over = matches!(
            migration.status,
            MigrationState::Completed | MigrationState::HandedOverUnconfirmed
        );
        Status {
            machine: if handed_over {
                MachineState::HandedOver
            } else {
                life.state
            },
            guest,
            incoming: life.incoming.clone(),
            migration,
        }
    }

    /// What the guest says of itself, if it is here and up.
    fn guest_status(&self) -> Option<GuestStatus> {
        let (ready, failure) = {
            let life = self.life();
            (life.ready, life.failure.clone())
        };
        let said = match self.guest {
            GuestKind::Bare => self
                .bare_status()
                .map(|status| GuestStatus { ready, ..status }),
            GuestKind::Linux => {
                let report = self
                    .report
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
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
        let status = reference_vmm::GuestStatus::read(&self.ram).ok().flatten()?;
        let word = |which| status.word(which);
        // Everything below the first page that the guest's allocator manages is its program and its tables.
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
            failure: None,
        })
    }

    fn migrate(&self, arguments: &MigrateArguments) -> Result<(), String> {
        match self.status().machine {
            MachineState::Running | MachineState::Held => {}
            state => {
                return Err(format!(
                    "there is no guest here to migrate: the machine is {state:?}"
                ));
            }
        }
        let params = params(arguments)?;
        let address: Address = arguments.uri.parse().map_err(text)?;
        let hints: Option<Box<dyn HintSource>> = match &self.balloon_control {
            Some(path) if needs_the_device(params.sources) => match DeviceHints::connect(path) {
                Ok(hints) => Some(Box::new(hints)),
                Err(error) => {
                    log::warn!("the migration goes without free page hints: {error}");
                    None
                }
            },
            _ => None,
        };
        let channel = Channel::connect(&address, CONNECT_TIMEOUT).map_err(text)?;
        let logs = self.machine.lock().dirty_logs();
        let machine = Box::new(self.machine.clone());
        let source = Source {
            machine,
            ram: Arc::clone(&self.ram),
            logs,
            hints,
            trace: self.trace.clone(),
        };
        self.outgoing.start(source, params, channel)
    }

    fn memory(&self) -> MemoryMap {
        let regions = self
            .files
            .iter()
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

    fn cont(&self) -> Result<(), String> {
        let mut life = self.life();
        if life.state != MachineState::Held {
            return Err("no guest is held here".into());
        }
        self.machine.lock().start().map_err(text)?;
        life.state = MachineState::Running;
        Ok(())
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Process {
    fn handle(&self, command: Command) -> Result<Value, String> {
        match command {
            Command::Status => serde_json::to_value(self.status()).map_err(text),
            Command::Migrate(arguments) => self.migrate(&arguments).map(|()| json!({})),
            Command::MigrateCancel => self.outgoing.cancel().map(|()| json!({})),
            Command::QueryReport => match self.outgoing.report() {
                Some(report) => serde_json::to_value(&*report).map_err(text),
                None => Err("no migration away from here has completed".into()),
            },
            Command::QueryMemory => serde_json::to_value(self.memory()).map_err(text),
            Command::Cont => self.cont().map(|()| json!({})),
            Command::Quit => self.quit.send(()).map(|()| json!({})).map_err(text),
        }
    }
}

fn params(arguments: &MigrateArguments) -> Result<MigrationParams, String> {
    Ok(MigrationParams {
        max_bandwidth: arguments.max_bandwidth,
        downtime_limit: Duration::from_millis(arguments.downtime_limit),
        early_harvests: arguments.early_harvests,
        max_rounds: arguments.max_rounds.map(NonZeroU32::get),
        sources: arguments.hints.sources(arguments.sources),
        map_rounds: arguments.map_rounds,
        #[cfg(feature = "clause-switches")]
        switched_off: arguments
            .switched_off
            .iter()
            .map(|name| host_migrator::clause::switch(name).map_err(text))
            .collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

/// Whether anything but looking at pages is wanted: the device has the guest's hints, and knows why holes are holes.
fn needs_the_device(sources: PageSources) -> bool {
    sources.without(PageSource::Zero) != PageSources::NONE
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process of a machine: `lacuna run` and `lacuna receive`.
//!
//! They differ only in where the guest comes from. Then both show its state and can migrate it.

mod arriving;
mod console;
mod dirty_rate;
mod halves;
mod life;
mod metrics;
mod outgoing;
mod postcopying;
mod process;
mod request;
mod restoring;
mod saving;
mod shared;
mod status;
mod way;

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use host_migrator::destination::RestoreError;
use host_migrator::paging::{PagingOptions, Prefault};
use host_migrator::wire::{Access, Listener, TlsFileError, TransportError};
use host_migrator::{MachineError, RamError, ReceiveError, Snapshot, SnapshotError, Trace};
use reference_vmm::{
    BareWorkload, Guest, LinuxGuest, Machine, MachineConfig, MemoryOptions, Outlets, SetupError,
};
use spec::bare::{AnswerPolicy, HoldPolicy};
use vhost_device_balloon::daemon::signals::EndSignals;
use vhost_device_balloon::metrics::MetricsServer;
use vhost_device_balloon::sockets::BoundSocket;

pub use status::{
    FileRange, GuestStatus, MachineState, MemoryMap, RestoreStatus, Status, VcpuStatus,
};

use crate::args::{
    Answering, GuestKind, Hold, MachineArgs, ReceiveArgs, RunArgs, Target, WorkloadArgs,
};
use crate::control;
use console::{Console, LastReport};
use life::Ending;
use process::Process;
use restoring::Restore;

/// A machine that could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The machine could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The guest could not be run.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Nobody can connect.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The host has not enough memory.
    #[error("the guest's memory cannot be taken before it arrives (--populate): {0}")]
    Populate(#[source] RamError),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// The guest did not arrive.
    #[error("the guest did not arrive: {0}")]
    Receive(#[from] ReceiveError),
    /// There is no snapshot.
    #[error("the guest cannot be restored: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The guest could not be restored.
    #[error("the guest was not restored: {0}")]
    Restore(#[from] RestoreError),
    /// A file with the flags of a socket.
    #[error(
        "a snapshot file is restored without a connection: leave out the flags of TLS and of the socket"
    )]
    FlagsOfSocket,
    /// A socket with the flags of a file.
    #[error(
        "--lazy, --prefault and --threads are for a guest that is restored from a file: give file:PATH, or leave them out"
    )]
    FlagsOfFile,
    /// This guest cannot do the workload.
    #[error("only the Linux guest can fragment its memory (--fragment): choose --guest linux")]
    Fragment,
    /// This guest has work of its own.
    #[error("only the bare guest can be idle (--idle): leave out --guest linux")]
    Idle,
    /// The thread that receives the guest has panicked.
    #[error("the guest did not arrive: the thread that receives it has panicked")]
    ReceiverDied,
    /// A signal ended the process, and its guest.
    #[error("{0} has ended this machine and its guest")]
    Signal(&'static str),
    /// A file or a socket.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// `lacuna run`: starts a guest and stays until it is told to quit.
///
/// # Errors
/// [`ProcessError`] if the machine cannot be made, or a signal ends it with its guest.
pub fn run(args: RunArgs) -> Result<(), ProcessError> {
    let guest = guest(&args)?;
    let (outlets, parts) = outlets(&args.machine)?;
    let mut machine = Machine::new(&config(&args.machine, &parts), &guest, outlets)?;
    machine.start()?;
    let process = Process::new(machine, &args.machine, parts, None, None)?;
    live(&process, &args.machine)
}

/// `lacuna receive`: waits for a guest and stays until it is told to quit.
///
/// # Errors
/// [`ProcessError`] if the machine cannot be made, the guest does not arrive (a new process with new memory must
/// be started for another try), or a signal ends the machine with its guest.
pub fn receive(args: ReceiveArgs) -> Result<(), ProcessError> {
    let began = Instant::now();
    let tls = args.tls.load()?;
    // A file that is no snapshot is refused before memory is taken for the guest.
    let snapshot = match &args.address {
        Target::Address(_) if args.lazy || args.threads.is_some() => {
            return Err(ProcessError::FlagsOfFile);
        }
        Target::Address(_) => None,
        Target::File(_)
            if tls.is_some() || args.socket_mode.is_some() || args.socket_group.is_some() =>
        {
            return Err(ProcessError::FlagsOfSocket);
        }
        Target::File(file) => Some(Snapshot::open(file)?.with_direct_io(args.direct_io.into())?),
    };
    let (outlets, parts) = outlets(&args.machine)?;
    let guest = match args.machine.guest.kind {
        GuestKind::Bare => reference_vmm::GuestKind::Bare,
        GuestKind::Linux => reference_vmm::GuestKind::Linux,
    };
    let config = config(&args.machine, &parts);
    let machine = Machine::incoming(&config, guest, args.hold, outlets)?;
    if args.populate {
        // The machine has no guest yet, so nothing writes to the memory before one arrives.
        machine.ram().populate().map_err(ProcessError::Populate)?;
    }
    let listener = match &args.address {
        Target::Address(address) => {
            let access = Access::new(args.socket_mode, args.socket_group);
            let listener = Listener::bind_for(address, access)?;
            let listener = listener.with_patience(args.machine.peer_timeout);
            Some(match &tls {
                Some(tls) => listener.with_tls(tls),
                None => listener,
            })
        }
        Target::File(_) => None,
    };
    let from = match &listener {
        Some(listener) => listener.address().to_string(),
        None => args.address.to_string(),
    };
    let process = Process::new(machine, &args.machine, parts, Some(from), listener)?;
    process.set_tls(tls);
    let receiver = Arc::clone(&process);
    let restore = Restore {
        began,
        threads: args.threads.unwrap_or_else(|| match args.lazy {
            true => PagingOptions::default().threads,
            false => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }),
        lazy: args
            .lazy
            .then_some(args.prefault.unwrap_or(match args.record {
                // What was loaded before it was touched is not seen.
                true => Prefault::Off,
                false => Prefault::Max,
            })),
        record: args.record,
    };
    let thread = thread::Builder::new().name("receiver".into());
    thread
        .spawn(move || receiver.receive(snapshot.map(|snapshot| (snapshot, restore))))
        .map_err(io_error("start a thread for", &args.machine.control))?;
    live(&process, &args.machine)
}

/// Answers on the control socket until the process is to end, and leaves no socket behind.
fn live(process: &Arc<Process>, args: &MachineArgs) -> Result<(), ProcessError> {
    let control = &args.control;
    let access = Access::new(args.control_mode, args.control_group);
    let ended = hear_signals(process)
        .map_err(io_error("wait for signals for", control))
        .and_then(|()| {
            let handler: Arc<dyn control::Handler> = process.clone();
            let served =
                control::serve(control, access, handler).map_err(io_error("listen at", control))?;
            let metrics = (args.metrics_socket.as_deref())
                .map(|path| serve_metrics(process, path, access))
                .transpose()?;
            let ending = process.life().wait();
            drop(metrics);
            drop(served);
            Ok(ending)
        });
    process.stop_listening();
    process.drain_console();
    match ended? {
        Ending::Quit => Ok(()),
        Ending::NotReceived(error) => Err(error),
        Ending::ReceiverDied => Err(ProcessError::ReceiverDied),
        Ending::Signal(name) if process.life().has_guest() => Err(ProcessError::Signal(name)),
        Ending::Signal(_) => Ok(()),
    }
}

/// Serves the metrics of `process` at `path`, until the result is dropped.
fn serve_metrics(
    process: &Arc<Process>,
    path: &Path,
    access: Access,
) -> Result<MetricsServer, ProcessError> {
    let serve = || {
        let socket = BoundSocket::bind(path, access)?;
        MetricsServer::start(socket, metrics::registry(Arc::downgrade(process)))
    };
    serve().map_err(io_error("serve metrics at", path))
}

/// The first SIGTERM or SIGINT ends the process cleanly, the second at once.
fn hear_signals(process: &Arc<Process>) -> io::Result<()> {
    let signals = EndSignals::register()?;
    let process = Arc::clone(process);
    let thread = thread::Builder::new().name("signals".into());
    thread.spawn(move || process.life().end(Ending::Signal(signals.wait())))?;
    Ok(())
}

fn config(args: &MachineArgs, parts: &Parts) -> MachineConfig {
    MachineConfig {
        memory_bytes: args.guest.memory.0,
        memory: MemoryOptions::default(),
        vcpus: args.guest.vcpus,
        balloon_socket: args.balloon.clone(),
        agent_socket: args.agent_socket.clone(),
        dirty_log: args.dirty_log.into(),
        trace: parts.trace.clone(),
    }
}

/// The machine, and what the process keeps to look after it.
struct Parts {
    trace: Trace,
    report: LastReport,
    events: mpsc::Receiver<reference_vmm::MachineEvent>,
}

fn outlets(args: &MachineArgs) -> Result<(Outlets, Parts), ProcessError> {
    let out: Box<dyn io::Write + Send> = match &args.console {
        Some(path) => Box::new(File::create(path).map_err(io_error("write", path))?),
        None => Box::new(io::stderr()),
    };
    let trace = args
        .trace
        .open()
        .map_err(|(path, source)| ProcessError::Io {
            action: "record in",
            path,
            source,
        })?;
    let console = Console::new(out);
    let report = console.report();
    let (sender, events) = mpsc::channel();
    Ok((
        Outlets {
            console: Box::new(console),
            events: sender,
        },
        Parts {
            trace,
            report,
            events,
        },
    ))
}

fn guest(args: &RunArgs) -> Result<Guest, ProcessError> {
    Ok(match args.machine.guest.kind {
        GuestKind::Bare if args.workload.fragment.0 > 0 => return Err(ProcessError::Fragment),
        GuestKind::Bare => Guest::Bare(bare_workload(&args.workload)),
        GuestKind::Linux if args.workload.idle => return Err(ProcessError::Idle),
        GuestKind::Linux => {
            let read = |path: &PathBuf| fs::read(path).map_err(io_error("read", path));
            let initrd = args.initrd.as_ref().map(read).transpose()?;
            let kernel = args
                .kernel
                .as_ref()
                .map(read)
                .transpose()?
                .unwrap_or_default();
            let command_line = linux_command_line(&args.workload);
            Guest::Linux(LinuxGuest {
                kernel,
                initrd,
                command_line,
            })
        }
    })
}

fn bare_workload(args: &WorkloadArgs) -> BareWorkload {
    BareWorkload {
        seed: args.seed,
        in_use_bytes: args.in_use.0,
        freed_bytes: args.freed.0,
        dirty_rate: args.dirty_rate.0,
        churn_rate: args.churn,
        hold: match args.hold {
            Hold::UntilDone => HoldPolicy::UntilDone,
            Hold::Early => HoldPolicy::Early,
        },
        answer: match args.answer {
            Answering::Prompt => AnswerPolicy::Prompt,
            Answering::Silent => AnswerPolicy::Silent,
            Answering::Late => AnswerPolicy::Late,
            Answering::Slow => AnswerPolicy::Slow,
            Answering::Flood => AnswerPolicy::Flood,
        },
        idle: args.idle,
    }
}

/// Kernel arguments: a serial console, no firmware except our tables, and no waiting for missing devices. The workload
/// for the first process follows them.
const LINUX_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 reboot=k pci=off no_timer_check tsc=reliable mitigations=off";

fn linux_command_line(workload: &WorkloadArgs) -> String {
    format!("{LINUX_ARGUMENTS} {}", guest_parameters(workload))
}

/// The arguments of the Linux guest's kernel: the workload, which the guest's first process reads from them, and
/// arguments of the kernel itself.
pub fn guest_parameters(workload: &WorkloadArgs) -> String {
    // The Linux guest frees and allocates its churned pages once a second.
    let churn = workload.churn.saturating_mul(spec::PAGE_SIZE);
    let parameters = format!(
        "lacuna.in_use={} lacuna.freed={} lacuna.fragment={} lacuna.dirty_rate={} lacuna.churn={churn} \
         lacuna.seed={} {}",
        workload.in_use.0,
        workload.freed.0,
        workload.fragment.0,
        workload.dirty_rate.0,
        workload.seed,
        workload.append
    );
    parameters.trim_end().to_owned()
}

/// Milliseconds since `began`.
fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

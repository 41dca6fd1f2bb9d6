// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process: binds its sockets, enters the sandbox, serves its devices, and ends on a signal.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use spec_sockets::SocketFile;

use super::device::{Device, Prepared, listen};
use super::error::{DaemonError, DaemonEvent};
use super::service_manager::{Activation, METRICS, Notifier};
use super::signals::EndSignals;
use crate::args::{Args, CAPABILITIES, Program, description};
use crate::metrics::{MetricsServer, registry};
use crate::sandbox::seccomp::Group;
use crate::sandbox::{self, SandboxMode, remover::Remover};
use crate::sockets::{BoundFile, BoundSocket};
use crate::threads;

/// How long a device may take to tell its guest that hinting is over. A device that takes longer counts as hung.
const LAST_WORD: Duration = Duration::from_millis(800);
/// How long a guest has to read that hinting is over. Then its front end is hung up on.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// How long a device may take to end after its front end was hung up on.
const HANG_UP: Duration = Duration::from_secs(2);
/// How often the program checks whether a device has ended.
const GLANCE: Duration = Duration::from_millis(2);
/// A program that takes longer to end counts as stuck.
const GRACE: Duration = Duration::from_secs(5);

impl Args {
    /// Does what the command line says: prints something, or runs the program.
    ///
    /// # Errors
    /// As [`Program::run`], and an invalid command line.
    pub fn run(self) -> Result<(), DaemonError> {
        if self.print_capabilities {
            return print(CAPABILITIES);
        }
        if let Some(binary) = &self.print_description {
            let binary = binary.clone().map_or_else(env::current_exe, Ok);
            return print(&description(&binary.map_err(DaemonError::Print)?));
        }
        Program::try_from(self)?.run()
    }
}

fn print(text: &str) -> Result<(), DaemonError> {
    writeln!(io::stdout(), "{text}").map_err(DaemonError::Print)
}

impl Program {
    /// Runs the devices until all have ended, or until SIGTERM or SIGINT. Then it tells the guests to take back their
    /// hinted pages, hangs up on the front ends, and removes the sockets. Call this before the process has other
    /// threads.
    ///
    /// # Errors
    /// [`DaemonError`] if not all devices can start, or else the error of the first device that ended with one. The end
    /// of one device does not end the others.
    pub fn run(self) -> Result<(), DaemonError> {
        let (events, inbox) = mpsc::channel();
        let signals = EndSignals::register().map_err(DaemonError::Signals)?;
        let notifier = Notifier::from_env();
        let mut activation = Activation::from_env()?;
        let only = self.devices.len() == 1;
        let mut prepared: Vec<Prepared> = self
            .devices
            .into_iter()
            .map(|device| Prepared::new(device, &mut activation, only))
            .collect::<Result<_, _>>()?;
        let mut metrics = match &self.metrics_socket {
            Some(path) => Some(listen(path, self.metrics_access)?),
            None => activation.take(METRICS).map(BoundSocket::from),
        };
        activation.finish()?;

        let files: Vec<SocketFile> = prepared
            .iter()
            .flat_map(Prepared::files)
            .chain(metrics.as_ref().and_then(BoundSocket::file))
            .map(BoundFile::socket_file)
            .cloned()
            .collect();
        let remover = start_remover(files, self.sandbox)?;
        if let Some(remover) = &remover {
            prepared.iter_mut().for_each(|it| it.removed_by(remover));
            metrics.iter_mut().for_each(|it| it.removed_by(remover));
        }
        threads::set_filters(sandbox::enter(self.sandbox, prepared.len())?);
        let weak = remover.as_ref().map(Arc::downgrade).unwrap_or_default();
        watch_signals(signals, weak, events.clone()).map_err(DaemonError::Signals)?;
        let devices: Vec<Device> = prepared
            .into_iter()
            .map(|device| device.start(events.clone()))
            .collect::<Result<_, _>>()?;
        let metrics = metrics.map(|socket| {
            let devices = devices.iter().map(Device::observed).collect();
            MetricsServer::start(socket, registry(devices)).map_err(DaemonError::Device)
        });
        let _metrics = metrics.transpose()?;
        threads::confine(Group::Main);

        notifier.ready(&status(&devices));
        let (result, running) = wait(&devices, &inbox, &notifier);
        notifier.stopping();
        result.and(end(devices, running, &inbox))
    }
}

/// The process that removes `files` at the end. None is needed without a sandbox, or if the service manager has all sockets.
fn start_remover(
    files: Vec<SocketFile>,
    sandbox: SandboxMode,
) -> Result<Option<Arc<Remover>>, DaemonError> {
    if files.is_empty() || sandbox == SandboxMode::Off {
        return Ok(None);
    }
    let remover = Remover::start(files, sandbox).map_err(DaemonError::Remover)?;
    Ok(Some(Arc::new(remover)))
}

/// Starts a thread that waits for the signal to end. If the end then hangs, it is cut short, and the sockets are removed.
fn watch_signals(
    signals: EndSignals,
    remover: Weak<Remover>,
    events: Sender<DaemonEvent>,
) -> io::Result<()> {
    threads::spawn(Group::Signals, move || {
        let _ = events.send(DaemonEvent::End(signals.wait()));
        thread::sleep(GRACE);
        log::error!("the orderly end takes too long: the process ends at once");
        if let Some(remover) = remover.upgrade() {
            remover.remove_all();
        }
        std::process::exit(1);
    })
    .map(drop)
}

/// Waits for the end. Returns its result and the devices that still run.
fn wait(
    devices: &[Device],
    inbox: &Receiver<DaemonEvent>,
    notifier: &Notifier,
) -> (Result<(), DaemonError>, BTreeSet<Arc<str>>) {
    let mut result = Ok(());
    let mut running: BTreeSet<_> = devices.iter().map(|it| Arc::clone(it.name())).collect();
    while !running.is_empty() {
        match inbox.recv() {
            Ok(DaemonEvent::Changed) => notifier.status(&status(devices)),
            Ok(DaemonEvent::Ended(device, ended)) => {
                running.remove(&device);
                if let Err(error) = &ended {
                    threads::set_device(Some(device));
                    log::error!("{error}");
                    threads::set_device(None);
                }
                result = result.and(ended);
            }
            Ok(DaemonEvent::End(why)) => {
                log::info!("ends because of {why}");
                return (result, running);
            }
            // As long as a device runs, it holds the other end.
            Err(_) => running.clear(),
        }
    }
    (result, running)
}

/// Ends the devices, of which those in `running` still run. A device that hangs holds up no other.
fn end(
    devices: Vec<Device>,
    mut running: BTreeSet<Arc<str>>,
    inbox: &Receiver<DaemonEvent>,
) -> Result<(), DaemonError> {
    let mut devices = devices;
    let until = Instant::now() + LAST_WORD;
    let mut told = Vec::new();
    while !devices.is_empty() && Instant::now() < until {
        told.extend(devices.extract_if(.., Device::end_hinting));
        thread::sleep(GLANCE);
    }
    let until = Instant::now() + LAST_LOOK;
    while told.iter().any(Device::waits_for_guest_to_read) && Instant::now() < until {
        thread::sleep(GLANCE);
    }
    let mut stuck = devices;
    told.iter()
        .chain(&stuck)
        .for_each(|device| device.link().end());
    let until = Instant::now() + HANG_UP;
    let is_stuck = |stuck: &[Device], name: &Arc<str>| stuck.iter().any(|it| it.name() == name);
    while running.iter().any(|name| !is_stuck(&stuck, name)) {
        match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(DaemonEvent::Ended(name, _)) => {
                running.remove(&name);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    stuck.extend(told.extract_if(.., |device| running.contains(device.name())));
    let names: Vec<String> = stuck.iter().map(|it| it.name().to_string()).collect();
    stuck.into_iter().for_each(Device::abandon);
    match names.is_empty() {
        true => Ok(()),
        false => Err(DaemonError::Stuck(names.join("', '"))),
    }
}

fn status(devices: &[Device]) -> String {
    let connected = devices
        .iter()
        .filter(|device| device.link().is_connected())
        .count();
    match devices.len() {
        1 if connected == 0 => "waiting for a front end".into(),
        1 => "serving a front end".into(),
        count => format!("serving {connected} front ends for {count} devices"),
    }
}

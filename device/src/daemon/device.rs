// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device: a balloon, its sockets and its threads. Its failures do not affect other devices.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use parking_lot::FairMutexGuard;
use spec::agent::proof::Key;
use spec_sockets::Access;

use super::error::{DaemonError, DaemonEvent};
use super::front_ends::{FrontEndSource, FrontEnds};
use super::inherited::inherited;
use super::service_manager::{AGENT, Activation, CONTROL, VHOST_USER};
use super::ticker::Ticker;
use crate::agent::{AgentServer, key};
use crate::args::values::AgentTransport;
use crate::args::{Config, FrontEnd};
use crate::balloon::Balloon;
use crate::control::ControlServer;
use crate::guest::config_channel::ConfigChannel;
use crate::metrics::Observed;
use crate::sandbox::remover::Remover;
use crate::sandbox::seccomp::Group;
use crate::sockets::{BoundFile, BoundSocket};
use crate::threads;
use crate::trace::{Trace, TraceFile};
use crate::vhost_user::backend::Backend;
use crate::vhost_user::link::FrontEndLink;

/// How long to wait for a busy balloon. After that the device reports that its guest was told nothing.
const GLANCE: Duration = Duration::from_millis(1);

/// A device whose sockets exist but are not served yet.
#[derive(Debug)]
pub struct Prepared {
    name: Arc<str>,
    balloon: Balloon,
    channel: Arc<ConfigChannel>,
    source: FrontEndSource,
    control: Option<BoundSocket>,
    /// The agent's socket, and the key that the agent must have.
    agent: Option<(BoundSocket, Option<Key>)>,
}

impl Prepared {
    /// Makes the device and binds its sockets, or takes them from the service manager. `only` says that there is no
    /// other device.
    ///
    /// # Errors
    /// [`DaemonError`] if a socket cannot be bound or taken.
    pub fn new(
        config: Config,
        activation: &mut Activation,
        only: bool,
    ) -> Result<Self, DaemonError> {
        let source = match config.front_end {
            FrontEnd::Inherited(fd) => FrontEndSource::Connected(
                inherited(fd).map_err(|source| DaemonError::Inherited { fd, source })?,
            ),
            FrontEnd::Listen { path, once } => FrontEndSource::Listener {
                socket: listen(&path, config.socket_access)?,
                once,
            },
            FrontEnd::Activated { once } => FrontEndSource::Listener {
                socket: activation
                    .take_for_device(VHOST_USER, &config.name, only)
                    .ok_or_else(|| DaemonError::NoFrontEnd(config.name.clone()))?
                    .into(),
                once,
            },
        };
        if let FrontEndSource::Listener { socket, .. } = &source {
            socket.set_nonblocking(true).map_err(DaemonError::Accept)?;
        }
        let control = match &config.control_socket {
            Some(path) => Some(listen(path, config.control_access)?),
            None => activation
                .take_for_device(CONTROL, &config.name, only)
                .map(Into::into),
        };
        let agent = match &config.agent_socket {
            Some(path) => Some(listen(path, config.agent_access)?),
            None => activation
                .take_for_device(AGENT, &config.name, only)
                .map(Into::into),
        };
        let agent = match agent {
            Some(socket) => {
                let key = agent_key(&config.name, config.agent_transport, config.agent_key)?;
                Some((socket, key))
            }
            None => None,
        };
        let channel = Arc::new(ConfigChannel::default());
        let mut balloon = Balloon::new(config.options, Arc::clone(&channel));
        balloon.set_target(config.target);
        balloon.set_auto_shrink(config.auto_shrink);
        balloon.set_statistics_interval(config.statistics_interval);
        balloon.set_round_limit(config.round_limit);
        if let Some(TraceFile { path, host }) = config.trace {
            let trace = Trace::open(&path, host);
            balloon.record_in(trace.map_err(|source| DaemonError::Trace { path, source })?);
        }
        Ok(Self {
            name: config.name.into(),
            balloon,
            channel,
            source,
            control,
            agent,
        })
    }

    /// The sockets' files that the device must remove at its end.
    pub fn files(&self) -> impl Iterator<Item = &BoundFile> {
        let front_end = match &self.source {
            FrontEndSource::Listener { socket, .. } => socket.file(),
            FrontEndSource::Connected(_) => None,
        };
        let agent = self.agent.as_ref().map(|(socket, _)| socket);
        let others = self.control.iter().chain(agent);
        let others = others.filter_map(BoundSocket::file);
        front_end.into_iter().chain(others)
    }

    /// Lets `remover` remove the sockets' files.
    pub fn removed_by(&mut self, remover: &Arc<Remover>) {
        let front_end = match &mut self.source {
            FrontEndSource::Listener { socket, .. } => Some(socket),
            FrontEndSource::Connected(_) => None,
        };
        let agent = self.agent.as_mut().map(|(socket, _)| socket);
        for socket in front_end.into_iter().chain(&mut self.control).chain(agent) {
            socket.removed_by(remover);
        }
    }

    /// Starts to serve. Events go to `events`.
    ///
    /// # Errors
    /// If the system allows no more threads or file descriptors.
    pub fn start(self, events: Sender<DaemonEvent>) -> Result<Device, DaemonError> {
        threads::set_device(Some(Arc::clone(&self.name)));
        let device = self.start_threads(events);
        threads::set_device(None);
        device.map_err(DaemonError::Device)
    }

    fn start_threads(self, events: Sender<DaemonEvent>) -> io::Result<Device> {
        let files = self.files().cloned().collect();
        let backend = Arc::new(Backend::new(self.balloon)?);
        let link = Arc::new(FrontEndLink::new()?);
        let ticker = Ticker::start(Arc::clone(&backend))?;
        let control = self
            .control
            .map(|listener| ControlServer::start(listener, Arc::clone(&backend)))
            .transpose()?;
        let agent = self
            .agent
            .map(|(listener, key)| AgentServer::start(listener, key, Arc::clone(&backend)))
            .transpose()?;
        let front_ends = FrontEnds {
            source: self.source,
            backend: Arc::clone(&backend),
            channel: self.channel,
            link: Arc::clone(&link),
            events: events.clone(),
        };
        let name = Arc::clone(&self.name);
        // The thread reports its end itself.
        drop(threads::spawn(Group::FrontEnds, move || {
            let result = catch_unwind(AssertUnwindSafe(|| front_ends.serve()));
            drop(front_ends);
            let result = result.unwrap_or(Err(DaemonError::Panicked));
            let _ = events.send(DaemonEvent::Ended(name, result));
        })?);
        Ok(Device {
            name: self.name,
            backend,
            link,
            control,
            _agent: agent,
            ticker,
            files,
        })
    }
}

/// A device that serves.
#[derive(Debug)]
pub struct Device {
    name: Arc<str>,
    backend: Arc<Backend>,
    link: Arc<FrontEndLink>,
    control: Option<ControlServer>,
    _agent: Option<AgentServer>,
    ticker: Ticker,
    files: Vec<BoundFile>,
}

impl Device {
    /// The device's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The device for the metrics.
    pub fn observed(&self) -> Observed {
        Observed {
            name: Arc::clone(&self.name),
            backend: Arc::clone(&self.backend),
            link: Arc::clone(&self.link),
        }
    }

    /// The connection to its front end.
    pub fn link(&self) -> &FrontEndLink {
        &self.link
    }

    /// Closes the control socket and ends hinting: the guest is told DONE. Call this until it returns true, which means
    /// that hinting has ended. It never waits.
    pub fn end_hinting(&mut self) -> bool {
        if let Some(control) = &self.control
            && !control.has_stopped()
        {
            control.stop();
            return false;
        }
        // Only after the control socket is closed, because a round could be started there.
        self.ticker.end_hinting();
        self.ticker.has_ended()
    }

    /// Whether the guest has been told of a change that it has not read yet.
    pub fn waits_for_guest_to_read(&self) -> bool {
        let is_unread = |balloon: FairMutexGuard<'_, Balloon>| balloon.is_change_unread();
        self.link.is_connected() && self.backend.balloon_within(GLANCE).is_some_and(is_unread)
    }

    /// Abandons the device: one of its threads hangs, and nobody waits for it. Its sockets are removed.
    pub fn abandon(self) {
        for file in &self.files {
            // The process is ending, so an error cannot be handled.
            let _ = file.remove();
        }
        std::mem::forget(self);
    }
}

/// The agent's key of device `name`, if the agent must prove itself.
fn agent_key(
    name: &str,
    transport: AgentTransport,
    file: Option<PathBuf>,
) -> Result<Option<Key>, DaemonError> {
    match (file, transport) {
        (Some(path), _) => match key::read(&path) {
            Ok(key) => Ok(Some(key)),
            Err(source) => Err(DaemonError::AgentKey { path, source }),
        },
        (None, AgentTransport::Console) => Ok(None),
        (None, AgentTransport::Vsock) => Err(DaemonError::AgentUnknown(name.into())),
    }
}

/// Listens at `path` for clients that `access` lets connect.
pub(super) fn listen(path: &Path, access: Access) -> Result<BoundSocket, DaemonError> {
    BoundSocket::bind(path, access).map_err(|source| DaemonError::Listen {
        path: PathBuf::from(path),
        source,
    })
}

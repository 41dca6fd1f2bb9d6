// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest goes away from here: over a connection, into a file, or to a destination whose connection had broken.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use host_migrator::hints::DeviceHints;
use host_migrator::snapshot::HalfFile;
use host_migrator::{
    FileSink, HintSource, MigrationParams, Owner, STOP_AND_SAVE, SnapshotTarget, Source,
    SourceMachine,
};
use serde_json::{Value, json};

use super::Process;
use crate::control::MigrateArguments;
use crate::machine::request::{file, needs_the_device, params, text};
use crate::machine::saving::Saving;
use crate::machine::way::Way;

impl Process {
    /// Starts a migration.
    pub(super) fn migrate(
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
    pub(super) fn recover(&self, uri: &str) -> Result<Value, String> {
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
}

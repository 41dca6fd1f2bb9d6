// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine's process does at each command of its control socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use host_migrator::{DestinationMachine, SourceMachine};
use serde_json::{Value, json};

use super::Process;
use crate::control::{Command, DirtyRateArguments, DirtyRateMode, Handler, QuitArguments};
use crate::machine::MachineState;
use crate::machine::dirty_rate::Means;
use crate::machine::life::Ending;
use crate::machine::request::text;

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

impl Process {
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

    fn claim(&self) -> Result<(), String> {
        self.ownership.claim(&self.trace).map_err(text)
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saves what this side of a broken postcopy has left of the guest.

use host_migrator::destination::StoppedGuest;
use host_migrator::snapshot::{Saved, Storage, open_storage};
use host_migrator::{DirectIo, SnapshotTarget, SourceMachine};

use super::process::Process;
use super::request::text;
use crate::control::HalfSaved;

impl Process {
    /// Saves what this side of a broken postcopy has left of the guest at `uri`.
    pub(super) fn save_half(&self, uri: &str) -> Result<HalfSaved, String> {
        let target: SnapshotTarget = uri.parse().map_err(text)?;
        let open = || open_storage(&target, DirectIo::Auto).map_err(text);
        let is_destination = self.postcopying().status().is_some();
        let saved = match is_destination {
            true => self.save_destination_half(open)?,
            false => self.outgoing().save_half(open)?,
        };
        Ok(HalfSaved {
            side: if is_destination {
                "destination"
            } else {
                "source"
            }
            .into(),
            pages: saved.pages,
            file_bytes: saved.length,
        })
    }

    /// Stops the guest, whose other memory may never come, and saves it. It never runs here again, unless it cannot be saved.
    fn save_destination_half(
        &self,
        open: impl FnOnce() -> Result<Box<dyn Storage>, String>,
    ) -> Result<Saved, String> {
        let postcopy = self.postcopying().paused()?;
        let storage = open()?;
        let path = storage.path().display().to_string();
        let held = self.life().begin_half()?;
        let mut machine = self.machine().clone();
        let saved = (|| -> Result<Saved, String> {
            let description = machine.describe().map_err(text)?;
            machine.stop_vcpus().map_err(text)?;
            machine.stop_devices().map_err(text)?;
            let state = machine.save().map_err(text)?;
            let guest = StoppedGuest {
                ram: &self.ram(),
                description: &description,
                state: &state,
                ownership: self.ownership().get(),
            };
            postcopy.save_half(guest, storage).map_err(text)
        })();
        match &saved {
            Ok(_) => self.guest_has_ended(&format!(
                "it was saved into {path}, as the destination's half, and never runs here again"
            )),
            Err(_) => {
                // It may be stopped.
                if !held && let Err(error) = self.machine().clone().resume() {
                    log::error!("after a half that could not be saved: {error}");
                }
                self.life().no_half(held);
            }
        }
        saved
    }
}

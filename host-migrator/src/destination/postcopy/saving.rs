// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saves what a guest has here, where the rest of its memory may never come.

use spec::file::Side;

use super::handle::Postcopy;
use super::status::PostcopyPhase;
use crate::destination::error::ReceiveError;
use crate::memory::bitmap::MigrationBitmap;
use crate::memory::ram::GuestRam;
use crate::ownership::Ownership;
use crate::snapshot::{Saved, SavedHalf, Storage};
use crate::vm::state::MachineState;

/// A guest that was stopped: nothing of its machine changes any more.
#[derive(Clone, Copy, Debug)]
pub struct StoppedGuest<'a> {
    /// Its memory.
    pub ram: &'a GuestRam,
    /// What it needs of its machine.
    pub description: &'a [u8],
    /// Its machine's state.
    pub state: &'a MachineState,
    /// Who owns it.
    pub ownership: Ownership,
}

impl Postcopy {
    /// Saves this side's half of a guest that was stopped while the connection was broken. Afterwards the guest must never run here
    /// again. [`reconcile`](crate::snapshot::reconcile) makes a guest of both halves.
    ///
    /// # Errors
    /// [`ReceiveError::NotPaused`] if the connection has not broken, or another one is waited for;
    /// [`ReceiveError::Half`] if it cannot be saved. The guest may run on then.
    pub fn save_half(
        &self,
        guest: StoppedGuest<'_>,
        storage: Box<dyn Storage>,
    ) -> Result<Saved, ReceiveError> {
        self.enter_from_paused(PostcopyPhase::Saved)?;
        let known = MigrationBitmap::new(guest.ram.bitmap_pages());
        guest.ram.regions().iter().for_each(|it| known.insert(*it));
        for run in self.missing() {
            known.remove(run);
        }
        let half = SavedHalf {
            half: guest.ownership.half(Side::Destination),
            layout: guest.ram.layout(),
            description: guest.description,
            state: guest.state,
            known: &known,
        };
        // Of a missing page nothing is read, so nobody waits for one.
        let saved = half.save(storage, |range, out| guest.ram.peek(range, out));
        if saved.is_err() {
            self.pause_again();
        }
        Ok(saved?)
    }
}

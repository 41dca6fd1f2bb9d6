// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migrator. It arms pages, opens epochs, claims and sends pages, harvests, pauses the guest and hands it over.
//!
//! | module | what it is |
//! |---|---|
//! | `choices` | the steps that it may take next |
//! | `steps` | the effect of each step |

mod choices;
mod steps;

pub(crate) use choices::actions;
pub(crate) use steps::step;

use crate::pages::{ModelPages, Page, Renaming};

/// The migrator's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Before a migration.
    #[default]
    Idle,
    /// Logging is on.
    Arming,
    /// The memory is lent to the destination, and the guest still runs here.
    Lent,
    /// Waits for the device to open the epoch.
    Opening,
    /// Sends a round.
    Sending,
    /// Waits for the device to close the epoch.
    Closing,
    /// Next, reads KVM's log.
    Reading,
    /// Next, clears in KVM's log what it has read.
    Clearing,
    /// Next, clears in KVM's log what an early harvest has read.
    ClearingEarly,
    /// Next, harvests the back end's log.
    TakingBackEnd,
    /// Next, harvests the VMM's own writes.
    TakingOwn,
    /// The harvest is complete.
    Harvested,
    /// Sends the remaining pages while the guest is stopped.
    Rest,
    /// Waits for the destination to be ready.
    Committed,
    /// Waits for the destination to run the guest.
    HandedOver,
    /// The migration is over: logging stops, and the device is told.
    PuttingBack,
    /// Waits until the device has told the guest DONE.
    Finishing,
    /// Nothing more is tried.
    Over,
}

/// Who owns the guest, as far as the source knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The source.
    #[default]
    Source,
    /// The source has handed the guest over, and the destination has not confirmed that it runs.
    Unknown,
    /// The destination, which has confirmed it.
    Destination,
}

/// The migrator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    pub(crate) step: Step,
    /// Pages to be sent: the migration bitmap.
    pub(crate) pending: ModelPages,
    /// Pages that were claimed and not copied yet.
    pub(crate) claimed: ModelPages,
    /// Pages that were copied before they were claimed, where a switch allows that.
    pub(crate) copied: ModelPages,
    /// Pages that an early harvest of this round found and that were not copied since.
    pub(crate) early: ModelPages,
    /// Pages that an early harvest found and that were copied since, until the next harvest.
    pub(crate) early_copied: ModelPages,
    /// Pages that were holes when the round began, and are still taken for holes.
    pub(crate) holes: ModelPages,
    /// Whether the next round asks for holes.
    pub(crate) asks_for_holes: bool,
    /// Pages whose record waits in the table: they become zero at the destination.
    pub(crate) table: ModelPages,
    /// Pages whose content at the destination may not be zero.
    pub(crate) sent: ModelPages,
    /// Pages that were hinted after they had been sent, remembered beyond a harvest where a switch allows that.
    pub(crate) late: ModelPages,
    /// Pages whose hints count in this epoch.
    pub(crate) eligible: ModelPages,
    /// The number of the last epoch.
    pub(crate) epoch: u8,
    /// Whether this migration lends its memory.
    pub(crate) lends: bool,
    /// Whether an epoch is open.
    pub(crate) open: bool,
    /// The device did not answer: there are no more hints.
    pub(crate) hints_lost: bool,
    /// How many rounds have ended.
    pub(crate) round: u8,
    /// How many background harvests are left.
    pub(crate) background: u8,
    /// How many early harvests are left.
    pub(crate) early_harvests: u8,
    /// How often a migration can still fail.
    pub(crate) failures: u8,
    /// How often it can still stop waiting for the device.
    pub(crate) impatience: u8,
    /// Who owns the guest, as far as the source knows.
    pub(crate) owner: Owner,
    /// Whether the source's process has ended.
    pub(crate) ended: bool,
}

impl Host {
    pub(crate) fn is_handing_over(&self) -> bool {
        self.step == Step::HandedOver
    }

    pub(crate) fn renamed(&self, names: &Renaming) -> Self {
        Self {
            pending: names.set(self.pending),
            claimed: names.set(self.claimed),
            copied: names.set(self.copied),
            early: names.set(self.early),
            early_copied: names.set(self.early_copied),
            holes: names.set(self.holes),
            table: names.set(self.table),
            sent: names.set(self.sent),
            late: names.set(self.late),
            eligible: names.set(self.eligible),
            ..*self
        }
    }
}

/// A step of the migrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAction {
    /// Starts all logs. Where bits are cleared at once, this arms every page.
    StartLogging,
    /// Gives the destination the memory itself. Nothing is logged, and no hint is asked for.
    Lend,
    /// Clears what was read in KVM's log.
    ClearLog,
    /// Clears one page in KVM's log.
    ClearLogOf(Page),
    /// Begins a round, or goes on with one: opens an epoch.
    Begin,
    /// Receives the device's answer.
    HearDevice,
    /// Stops waiting for the device, and goes on without hints.
    GiveUpDevice,
    /// Takes a page out of the bitmap, and checks whether it is hinted.
    Claim(Page),
    /// Copies a page and sends it on a channel.
    Send(Page, u8),
    /// Sends the records that wait in the table; with several channels, one of them on the first channel.
    Flush,
    /// Tells the destination to discard a page that was hinted after it was sent. The record goes over the first channel.
    DiscardLate(Page),
    /// The bitmap is empty: ends the round.
    EndRound,
    /// Harvests in mid-round.
    HarvestInBackground,
    /// Reads KVM's log in mid-round, and leaves the epoch open.
    ReadLogEarly,
    /// Reads KVM's log into the bitmap.
    ReadLog,
    /// Takes the back end's log into the bitmap.
    HarvestBackEnd,
    /// Takes the VMM's own writes into the bitmap.
    HarvestOwnWrites,
    /// Stops the guest and its devices.
    Pause,
    /// Tells the destination that everything was sent.
    Commit,
    /// Gives the guest to the destination.
    HandOver,
    /// Receives the confirmation that the guest runs there.
    HearRunning,
    /// Notices that the connection broke during the hand-over.
    NoticeBreak,
    /// Fails, or is cancelled.
    Fail,
    /// The link takes no byte of the hand-over, so the guest is still the source's.
    TakeBack,
    /// The source's side, a device of it perhaps, makes a page of the memory zero that it has given away.
    Stray(Page),
    /// Stops logging, and tells the device that hinting is over.
    PutBack,
    /// Does not try again.
    Abandon,
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migrator: arms, opens epochs, claims and sends pages, harvests, pauses the guest, hands it over.
//!
//! | module | what it is |
//! |---|---|
//! | `choices` | what it may do next |
//! | `steps` | what comes of it |

mod choices;
mod steps;

pub(crate) use choices::actions;
pub(crate) use steps::step;

use crate::pages::{Page, PageSet, Renaming};

/// Where the migrator is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Before a migration.
    #[default]
    Idle,
    /// Logging is on.
    Arming,
    /// Waits for the device to open the epoch.
    Opening,
    /// Sends a round.
    Sending,
    /// Waits for the device to close the epoch.
    Closing,
    /// Reads KVM's log next.
    Reading,
    /// Clears in KVM's log what it has read next.
    Clearing,
    /// The same, of an early harvest.
    ClearingEarly,
    /// Takes the back end's log next.
    TakingBackEnd,
    /// Takes the VMM's own writes next.
    TakingOwn,
    /// The harvest is complete.
    Harvested,
    /// Sends what is left, with the guest stopped.
    Rest,
    /// Waits for the destination to be ready.
    Committed,
    /// Waits for the destination to run the guest.
    HandedOver,
    /// The migration is over: logging stops, and the device is told.
    PuttingBack,
    /// Waits for the device to have told the guest.
    Finishing,
    /// Nothing more is tried.
    Over,
}

/// Who has the guest, as far as the source knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The source.
    #[default]
    Source,
    /// It was handed over, and the destination has not said that it runs.
    Unknown,
    /// The destination, which said so.
    Destination,
}

/// The migrator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    pub(crate) step: Step,
    /// Pages to be sent: the migration bitmap.
    pub(crate) pending: PageSet,
    /// Claimed, and not copied yet.
    pub(crate) claimed: PageSet,
    /// Copied before they were claimed, where that is allowed.
    pub(crate) copied: PageSet,
    /// Found by an early harvest of this round, and not copied since.
    pub(crate) early: PageSet,
    /// Holes when the round began, as far as that still counts.
    pub(crate) holes: PageSet,
    /// The next round asks for holes.
    pub(crate) asks_for_holes: bool,
    /// Pages whose record waits in the table: the destination is to make them zero.
    pub(crate) table: PageSet,
    /// Pages that may be other than zero at the destination.
    pub(crate) sent: PageSet,
    /// Pages whose hints count in this epoch.
    pub(crate) eligible: PageSet,
    /// Epochs that were opened.
    pub(crate) epoch: u8,
    /// An epoch is open.
    pub(crate) open: bool,
    /// The device failed to answer: no hints any more.
    pub(crate) hints_lost: bool,
    /// Rounds that have ended.
    pub(crate) round: u8,
    /// Background harvests that are left.
    pub(crate) background: u8,
    /// Early harvests that are left.
    pub(crate) early_harvests: u8,
    /// How often a migration can still fail.
    pub(crate) failures: u8,
    /// How often it can still be impatient with the device.
    pub(crate) impatience: u8,
    /// Who has the guest, as far as the source knows.
    pub(crate) owner: Owner,
    /// The source's process has ended.
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
            holes: names.set(self.holes),
            table: names.set(self.table),
            sent: names.set(self.sent),
            eligible: names.set(self.eligible),
            ..*self
        }
    }
}

/// What the migrator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAction {
    /// Starts all logs; where bits are cleared at once, every page is armed by it.
    StartLogging,
    /// Clears what was read in KVM's log.
    ClearLog,
    /// Clears one page of it.
    ClearLogOf(Page),
    /// Begins a round, or goes on with one: opens an epoch.
    Begin,
    /// Hears the device's answer.
    HearDevice,
    /// Does not wait for the device any more, and does without hints.
    GiveUpDevice,
    /// Takes a page out of the bitmap, and looks whether it is hinted.
    Claim(Page),
    /// Copies a page and sends it on a channel.
    Send(Page, u8),
    /// Sends the records that wait in the table.
    Flush,
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
    /// Tells the destination that all has been sent.
    Commit,
    /// Gives the guest to the destination.
    HandOver,
    /// Hears that the guest runs there.
    HearRunning,
    /// Learns that the connection broke while it handed the guest over.
    NoticeBreak,
    /// Fails, or is cancelled.
    Fail,
    /// Stops logging, and tells the device that hinting is over.
    PutBack,
    /// Does not try again.
    Abandon,
}

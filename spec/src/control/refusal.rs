// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why the device refused.

/// Why the device refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The first frame was no [`super::Request::Hello`], or of another version.
    Version = 1,
    /// The guest's driver has not negotiated free page hinting (or is not up yet).
    NotNegotiated = 2,
    /// No hint map has been set, or it could not be used.
    HintMap = 3,
    /// An epoch is open already.
    EpochOpen = 4,
    /// The epoch to be closed is not the open one.
    NoSuchEpoch = 5,
    /// The guest fills its free pages with a non-zero poison value: hints cannot be used.
    Poison = 6,
    /// The frame could not be read.
    BadFrame = 7,
    /// The rings do not run (device suspended, or being reset).
    Stopped = 8,
    /// The front end takes no configuration change messages: the guest cannot be asked.
    Unreachable = 9,
    /// The hints are a migrator's: another one, or, for a person, any.
    Migrating = 10,
    /// A person's round has been started already.
    RoundOpen = 11,
    /// No person's round has been started.
    NoRound = 12,
    /// Nothing has been hinted yet, or the map of the last round has gone with its migrator.
    NoMap = 13,
    /// The guest has sent no statistics.
    NoStatistics = 14,
    /// The device has no memory or file descriptor left for the answer.
    Resources = 15,
    /// The device is busy for so long that it may never answer: it touches memory that its front end has lent.
    Busy = 16,
}

impl Refusal {
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        [
            Self::Version,
            Self::NotNegotiated,
            Self::HintMap,
            Self::EpochOpen,
            Self::NoSuchEpoch,
            Self::Poison,
            Self::BadFrame,
            Self::Stopped,
            Self::Unreachable,
            Self::Migrating,
            Self::RoundOpen,
            Self::NoRound,
            Self::NoMap,
            Self::NoStatistics,
            Self::Resources,
            Self::Busy,
        ]
        .into_iter()
        .find(|refusal| *refusal as u32 == raw)
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Version => "the device speaks another version of the control protocol",
            Self::NotNegotiated => "the guest's driver has not negotiated free page hinting",
            Self::HintMap => "the hint map cannot be used",
            Self::EpochOpen => "an epoch is open already",
            Self::NoSuchEpoch => "that epoch is not open",
            Self::Poison => "the guest poisons its free pages with a value other than zero",
            Self::BadFrame => "the device could not read the request",
            Self::Stopped => "the device's rings do not run",
            Self::Unreachable => "the guest cannot be told that its configuration has changed",
            Self::Migrating => "a migration uses the hints",
            Self::RoundOpen => "the guest has been asked for hints already",
            Self::NoRound => "no hints have been asked for",
            Self::NoMap => "nothing has been hinted",
            Self::NoStatistics => "the guest has sent no statistics",
            Self::Resources => "the device has no memory or file descriptor left",
            Self::Busy => {
                "the device does not come out of its front end's memory: it may be a file that never answers"
            }
        })
    }
}

impl core::error::Error for Refusal {}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why the device refused.

/// Why the device refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The first frame was not [`super::Request::Hello`], or had another version.
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
    /// The rings do not run (the device is suspended or being reset).
    Stopped = 8,
    /// The front end takes no configuration change messages, so the guest cannot be asked.
    Unreachable = 9,
    /// A migrator, other than the client, uses the hints.
    Migrating = 10,
    /// A round for a person is under way already.
    RoundOpen = 11,
    /// There is no round for a person.
    NoRound = 12,
    /// Nothing has been hinted yet, or the last map was a migrator's and is gone.
    NoMap = 13,
    /// The guest has sent no statistics.
    NoStatistics = 14,
    /// The device has no memory or file descriptor left for the answer.
    Resources = 15,
    /// The device has been busy for too long: an access to its front end's memory may never return.
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
                "the device is blocked in an access to its front end's memory, which may be a file that never answers"
            }
        })
    }
}

impl core::error::Error for Refusal {}

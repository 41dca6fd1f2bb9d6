// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What would be lost if a machine ended now, in words for people.

/// The situation of a guest that would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stake {
    Arriving,
    Guest,
    Leaving,
    Unconfirmed,
    Serving,
    Saving,
    Undecided,
}

impl Stake {
    /// Whether the guest is changing hands, or may do so at any moment, so that it must not be ended now.
    pub(super) fn moves(self) -> bool {
        matches!(self, Self::Arriving | Self::Leaving | Self::Saving)
    }

    /// What would be lost, and why.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Arriving => "the guest is being taken over from its source",
            Self::Guest => "the guest is here and would end with the machine",
            Self::Leaving => "the guest is being migrated away",
            Self::Unconfirmed => {
                "the guest was handed over, but the destination did not confirm that it runs: this may be its only copy"
            }
            Self::Serving => {
                "the guest runs at the destination, which still needs memory from here"
            }
            Self::Saving => "the guest is being saved, as the destination's half",
            Self::Undecided => {
                "all of the guest is here, and it is not known whether the source has given it up: this may be its only copy"
            }
        }
    }

    /// What to do instead.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Saving => "wait for the end of that",
            Self::Arriving => "try again when `lacuna status` shows it running or held",
            Self::Guest => "to end both, use `lacuna quit --end-guest`",
            Self::Leaving => "use `lacuna cancel` first, or wait for the end of the migration",
            Self::Unconfirmed => {
                "look at the destination first; to give this copy up, use `lacuna quit --end-guest`"
            }
            Self::Serving => {
                "wait for the end of the migration, or use `lacuna recover`; to give the guest up, use `lacuna quit --end-guest`"
            }
            Self::Undecided => {
                "look at the source first; to give this copy up, use `lacuna quit --end-guest`"
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The clauses of the rule, each with a switch.

use std::fmt;
use std::str::FromStr;

/// What a system must do, and what it can leave out to show why it must.
///
/// The numbers are those of `spec/free-page-hinting.md`; a clause that says two things has two switches. The
/// ones without a number are not about hints, but no hinted migration is safe without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Clause {
    /// 1: every page is armed before the guest is asked.
    ArmFirst,
    /// 1, where pages are armed piece by piece: a hint counts only for pages that were armed when the guest
    /// was asked. That they are armed when the hint arrives is not enough.
    ArmedWhenAsked,
    /// 1, where pages are armed piece by piece: a page is armed before it is sent.
    ArmBeforeCopy,
    /// 2: a hint clears no dirty bit.
    KeepLog,
    /// 2: a hint discards no memory.
    KeepMemory,
    /// 3: an epoch is closed before a harvest.
    CloseBeforeHarvest,
    /// 3: what the map holds is forgotten between two epochs.
    ForgetOldHints,
    /// 3: hints that carry an old id are dropped.
    CheckCommandId,
    /// 3, where hints come in frames that carry their epoch: it is the one in which the pages were looked at.
    TagWhenLookedAt,
    /// 3: a harvest has cleared what it read before the next epoch opens.
    CompleteHarvest,
    /// 4: the log of a vhost-user back end is harvested, too.
    MergeBackEnd,
    /// 4: the VMM's own writes are harvested, too.
    MergeOwnWrites,
    /// 4: a page whose memory the VMM or the balloon device discards counts as written.
    LogDiscards,
    /// 5: no hint is taken once the guest is paused.
    NoHintAfterPause,
    /// 5: in the end the guest is told to take its pages back.
    SayDone,
    /// 5: in the end logging stops.
    StopLogging,
    /// 6: a retry starts from "all dirty".
    StartFromAllDirty,
    /// 6: a guest that was paused for a migration that failed runs on.
    ResumeOnFailure,
    /// 7: a hinted page that was sent before is made zero at the destination.
    DiscardAtDestination,
    /// 8: a range that covers a part of a page covers nothing of it.
    RoundInward,
    /// No id is used twice, not even by a device that was started anew.
    FreshIds,
    /// A device that starts tells the guest to take its pages back: they were hinted to one that is gone.
    SayDoneAtStart,
    /// The sender claims a page first and copies it then.
    ClaimBeforeCopy,
    /// All channels have delivered before a harvest brings pages back.
    DrainChannels,
    /// A back end has logged all its writes before the last harvest.
    DrainBackEnds,
    /// From the first byte of the hand-over on the source never runs the guest again.
    TwoPhaseHandOver,
}

impl Clause {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::ArmFirst,
        Self::ArmedWhenAsked,
        Self::ArmBeforeCopy,
        Self::KeepLog,
        Self::KeepMemory,
        Self::CloseBeforeHarvest,
        Self::ForgetOldHints,
        Self::CheckCommandId,
        Self::TagWhenLookedAt,
        Self::CompleteHarvest,
        Self::MergeBackEnd,
        Self::MergeOwnWrites,
        Self::LogDiscards,
        Self::NoHintAfterPause,
        Self::SayDone,
        Self::StopLogging,
        Self::StartFromAllDirty,
        Self::ResumeOnFailure,
        Self::DiscardAtDestination,
        Self::RoundInward,
        Self::FreshIds,
        Self::SayDoneAtStart,
        Self::ClaimBeforeCopy,
        Self::DrainChannels,
        Self::DrainBackEnds,
        Self::TwoPhaseHandOver,
    ];

    /// Its number in `spec/free-page-hinting.md`, if it is of the one rule.
    pub const fn number(self) -> Option<u8> {
        Some(match self {
            Self::ArmFirst | Self::ArmedWhenAsked | Self::ArmBeforeCopy => 1,
            Self::KeepLog | Self::KeepMemory => 2,
            Self::CloseBeforeHarvest
            | Self::ForgetOldHints
            | Self::CheckCommandId
            | Self::TagWhenLookedAt
            | Self::CompleteHarvest => 3,
            Self::MergeBackEnd | Self::MergeOwnWrites | Self::LogDiscards => 4,
            Self::NoHintAfterPause | Self::SayDone | Self::StopLogging => 5,
            Self::StartFromAllDirty | Self::ResumeOnFailure => 6,
            Self::DiscardAtDestination => 7,
            Self::RoundInward => 8,
            Self::FreshIds
            | Self::SayDoneAtStart
            | Self::ClaimBeforeCopy
            | Self::DrainChannels
            | Self::DrainBackEnds
            | Self::TwoPhaseHandOver => return None,
        })
    }

    /// Its name on a command line, as in `close-before-harvest`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }

    /// The clause in a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ArmFirst => "arm first",
            Self::ArmedWhenAsked => "a hint counts only for pages armed when the guest was asked",
            Self::ArmBeforeCopy => "arm a page before it is sent",
            Self::KeepLog => "a hint clears no dirty bit",
            Self::KeepMemory => "a hint discards no memory",
            Self::CloseBeforeHarvest => "close before harvest",
            Self::ForgetOldHints => "forget the hints of an epoch before the next",
            Self::CheckCommandId => "drop hints that carry an old id",
            Self::TagWhenLookedAt => "a frame carries the epoch in which its pages were looked at",
            Self::CompleteHarvest => "complete the harvest before the next epoch",
            Self::MergeBackEnd => "harvest the back ends' logs",
            Self::MergeOwnWrites => "harvest the VMM's own writes",
            Self::LogDiscards => "log what is discarded",
            Self::NoHintAfterPause => "no hint after the pause",
            Self::SayDone => "tell the guest DONE in the end",
            Self::StopLogging => "stop logging in the end",
            Self::StartFromAllDirty => "a retry starts from all dirty",
            Self::ResumeOnFailure => "a migration that fails lets the guest run on",
            Self::DiscardAtDestination => "a hinted page reads as zero at the destination",
            Self::RoundInward => "round inward",
            Self::FreshIds => "no id is used twice",
            Self::SayDoneAtStart => "a device that starts says DONE",
            Self::ClaimBeforeCopy => "claim before copy",
            Self::DrainChannels => "drain the channels before a harvest",
            Self::DrainBackEnds => "drain the back ends before the last harvest",
            Self::TwoPhaseHandOver => "hand over in two phases",
        }
    }
}

/// A name that is no clause's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no clause is called {0:?}")]
pub struct UnknownClause(String);

impl FromStr for Clause {
    type Err = UnknownClause;

    fn from_str(name: &str) -> Result<Self, UnknownClause> {
        Self::ALL
            .into_iter()
            .find(|clause| clause.name() == name)
            .ok_or_else(|| UnknownClause(name.into()))
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => write!(f, "clause {number}: {}", self.words()),
            None => f.write_str(self.words()),
        }
    }
}

/// The clauses that hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    switched_off: u32,
}

impl Rule {
    /// Every clause holds.
    pub const WHOLE: Self = Self { switched_off: 0 };

    /// The rule without `clauses`.
    pub fn without(clauses: &[Clause]) -> Self {
        Self {
            switched_off: clauses
                .iter()
                .fold(0, |off, &clause| off | 1 << clause as u8),
        }
    }

    /// Whether `clause` holds.
    pub const fn holds(self, clause: Clause) -> bool {
        self.switched_off & (1 << clause as u8) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name() {
        for clause in Clause::ALL {
            assert_eq!(clause.name().parse(), Ok(clause));
        }
        assert_eq!(Clause::ArmFirst.name(), "arm-first");
        assert!("arm".parse::<Clause>().is_err());
    }

    #[test]
    fn a_rule_without_a_clause_has_all_the_others() {
        for off in Clause::ALL {
            let rule = Rule::without(&[off]);
            for clause in Clause::ALL {
                assert_eq!(rule.holds(clause), clause != off);
            }
        }
    }
}

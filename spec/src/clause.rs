// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The clauses of the rule by name. The model and test builds of the migrator can switch them off one by one.

use core::fmt;
use core::str::FromStr;

/// Defines [`Clause`] with numbers, names and descriptions.
macro_rules! clauses {
    ($( $(#[$doc:meta])* $number:literal $clause:ident $name:literal $words:literal, )*) => {
        /// A clause of the rule, which the model and test builds can switch off to show why it is needed.
        ///
        /// The numbers are those of `spec/free-page-hinting.md`. A clause that has several parts there is several here.
        /// Clauses without a number are not about hints, but no migration with hints is safe without them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Clause {
            $( $(#[$doc])* $clause, )*
        }

        impl Clause {
            /// All clauses.
            pub const ALL: &[Self] = &[$( Self::$clause ),*];

            /// Its number in `spec/free-page-hinting.md`; `None` if it is not a clause of the rule there.
            pub const fn number(self) -> Option<u8> {
                let number = match self {
                    $( Self::$clause => $number, )*
                };
                if number == 0 { None } else { Some(number) }
            }

            /// Its name on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$clause => $name, )*
                }
            }

            /// The clause in a few words.
            pub const fn words(self) -> &'static str {
                match self {
                    $( Self::$clause => $words, )*
                }
            }
        }
    };
}

// The number, 0 for none; the name; the clause in a few words.
clauses! {
    /// 1: every page is armed before the guest is asked.
    1 ArmFirst "arm-first" "arm first",
    /// 1, where pages are armed piece by piece: a hint counts only for pages that were armed when the guest
    /// was asked. That they are armed when the hint arrives is not enough.
    1 ArmedWhenAsked "armed-when-asked" "a hint counts only for pages armed when the guest was asked",
    /// 1, where pages are armed piece by piece: a page is armed before it is sent.
    1 ArmBeforeCopy "arm-before-copy" "arm a page before it is sent",
    /// 2: a hint clears no dirty bit.
    2 KeepLog "keep-log" "a hint clears no dirty bit",
    /// 2: a hint does not take a page out of the early pages.
    2 KeepEarly "keep-early" "a hint takes no page out of the early pages",
    /// 2: a page that an early harvest brought and that was copied since is not discarded for a hint of this epoch. The hint may
    /// be older than the write, and no log has the write any more.
    2 SpareEarlyCopies "spare-early-copies" "a late hint discards no page that was copied after an early harvest brought it",
    /// 2: a hint discards no memory.
    2 KeepMemory "keep-memory" "a hint discards no memory",
    /// 3: an epoch is closed before a harvest.
    3 CloseBeforeHarvest "close-before-harvest" "close before harvest",
    /// 3: the map is cleared between two epochs.
    3 ForgetOldHints "forget-old-hints" "forget the hints of an epoch before the next",
    /// 3: hints that carry an old id are dropped.
    3 CheckCommandId "check-command-id" "drop hints that carry an old id",
    /// 3, where hints come in frames that carry an epoch: it is the epoch in which the page flags were read.
    3 TagWhenLookedAt "tag-when-looked-at" "a frame carries the epoch in which its page flags were read",
    /// 3: a harvest has cleared what it read before the next epoch opens.
    3 CompleteHarvest "complete-harvest" "complete the harvest before the next epoch",
    /// 3: the known holes are forgotten before a harvest.
    3 ForgetHoles "forget-holes" "forget the holes before a harvest",
    /// 3: a page that is hinted after it was sent is discarded at the destination before the next harvest, or not at all.
    3 DiscardBeforeHarvest "discard-before-harvest" "discard a page that was hinted late before the next harvest",
    /// 4: the log of a vhost-user back end is harvested, too.
    4 MergeBackEnd "merge-back-end" "harvest the back ends' logs",
    /// 4: the VMM's own writes are harvested, too.
    4 MergeOwnWrites "merge-own-writes" "harvest the VMM's own writes",
    /// 4: a page whose memory the VMM or the balloon device discards counts as written.
    4 LogDiscards "log-discards" "log what is discarded",
    /// 4, where vCPUs log their writes in rings: a page that was taken out of a ring stays in the log until a harvest.
    4 KeepTaken "keep-taken" "a page that was taken out of a ring stays in the log until a harvest",
    /// 4, where vCPUs log their writes in rings: a vCPU whose ring is full writes no protected page before there is room.
    4 WaitWhenFull "wait-when-full" "a vCPU whose ring is full waits",
    /// 5: no hint is taken once the guest is paused.
    5 NoHintAfterPause "no-hint-after-pause" "no hint after the pause",
    /// 5: at the end the guest is told DONE.
    5 SayDone "say-done" "tell the guest DONE at the end",
    /// 5: at the end logging stops.
    5 StopLogging "stop-logging" "stop logging at the end",
    /// 6: a retry starts from "all dirty".
    6 StartFromAllDirty "start-from-all-dirty" "a retry starts from all dirty",
    /// 6: a guest that was paused for a migration that failed runs on.
    6 ResumeOnFailure "resume-on-failure" "a migration that fails lets the guest run on",
    /// 7: a hinted page that was sent before is made zero at the destination.
    7 DiscardAtDestination "discard-at-destination" "a hinted page reads as zero at the destination",
    /// 8: a range that covers a part of a page covers nothing of it.
    8 RoundInward "round-inward" "round inward",
    /// No id is used twice, not even by a restarted device.
    0 FreshIds "fresh-ids" "no id is used twice",
    /// A restarted device tells the guest DONE, because the pages were hinted to its predecessor.
    0 SayDoneAtStart "say-done-at-start" "a restarted device says DONE",
    /// The sender claims a page first and copies it then.
    0 ClaimBeforeCopy "claim-before-copy" "claim before copy",
    /// Records that wait in a table are sent before a harvest brings pages back.
    0 FlushTables "flush-tables" "flush the tables before a harvest",
    /// All channels have delivered before a harvest brings pages back.
    0 DrainChannels "drain-channels" "drain the channels before a harvest",
    /// A channel that died with records on it ends the migration: these records are not taken for delivered.
    0 NoticeDeadChannels "notice-dead-channels" "count what a dead channel carried as lost",
    /// A back end has logged all its writes before the last harvest.
    0 DrainBackEnds "drain-back-ends" "drain the back ends before the last harvest",
    /// After the first byte of the hand-over the source never runs the guest again.
    0 TwoPhaseHandOver "two-phase-hand-over" "hand over in two phases",
    /// A hand-over of which the link took no byte, and which the source therefore took back, is never sent: what encrypts must
    /// not keep it.
    0 NeverSendVoid "never-send-void" "a hand-over that was taken back is never sent",
    /// If the link died in the hand-over and neither side can know who owns the guest, an operator can decide.
    0 OperatorDecides "operator-decides" "an operator can decide when neither side can know",
    /// A destination that was ready keeps the guest, stopped, when the link dies.
    0 KeepHeld "keep-held" "a destination that was ready keeps the guest when the link dies",
    /// An operator decides for one side only when the other can no longer run the guest.
    0 LookFirst "look-first" "an operator decides for one side only if the other cannot run the guest",
    /// In a local hand-over the destination maps the source's memory. It changes nothing there before it owns the guest.
    0 KeepLent "keep-lent" "the destination changes no lent memory before it owns the guest",
    /// In a local hand-over the source still has the memory that it gave away. Neither it nor its devices change it.
    0 LetGo "let-go" "after the hand-over the source changes nothing in the memory that it lent",
    /// A destination that does not get the guest unmaps the memory that was lent to it, and never uses it as its own.
    0 GiveLentBack "give-lent-back" "a destination that does not get the guest lets go of the lent memory",
}

/// The name is not that of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownClause;

impl fmt::Display for UnknownClause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no clause of the rule has this name")
    }
}

impl core::error::Error for UnknownClause {}

impl FromStr for Clause {
    type Err = UnknownClause;

    fn from_str(name: &str) -> Result<Self, UnknownClause> {
        let mut clauses = Self::ALL.iter().copied();
        clauses
            .find(|clause| clause.name() == name)
            .ok_or(UnknownClause)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name() {
        for clause in Clause::ALL {
            assert_eq!(clause.name().parse(), Ok(*clause));
        }
        assert_eq!("arm".parse::<Clause>(), Err(UnknownClause));
    }

    #[test]
    fn names_are_what_the_clauses_are_called_in_the_code() {
        for clause in Clause::ALL {
            let spoken = clause.name().split('-').flat_map(str::chars);
            let written = std::format!("{clause:?}").to_lowercase();
            assert!(spoken.eq(written.chars()), "{}", clause.name());
        }
    }

    #[test]
    fn a_clause_tells_its_number_if_it_has_one() {
        let told = [Clause::RoundInward, Clause::FreshIds].map(|clause| std::format!("{clause}"));
        assert_eq!(told, ["clause 8: round inward", "no id is used twice"]);
    }
}

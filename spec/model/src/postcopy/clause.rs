// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must be done so that a guest which runs before its memory was sent loses nothing. Each clause has a switch.

use crate::switches::switches;

switches! {
    /// A clause about a guest that was handed over before its memory.
    PostcopyClause,
    /// The clauses that hold.
    PostcopyRule;

    /// Old content of promised pages is removed before the guest runs.
    EmptyFirst "empty-first" "a page that is promised is empty before the guest runs",
    /// Pages that were not promised are answered with zeros by the destination itself.
    ZeroHere "zero-here" "a page that was not promised is zero, and nobody is asked for it",
    /// Content is placed only in pages that are missing.
    PlaceMissingOnly "place-missing-only" "content is placed only where it is still missing",
    /// The source does not run the guest after the hand-over.
    NeverRunAgain "never-run-again" "the source never runs the guest after the hand-over, whatever breaks",
    /// Whoever needs a missing page waits while there is no connection.
    WaitForRecovery "wait-for-recovery" "while there is no connection, who needs a missing page waits",
    /// The destination says what it has, and the source sends the rest again.
    ExchangeReceived "exchange-received" "after a break the destination says what it has, and the source sends all else again",
    /// A recovery that fails leaves both sides as they were before it.
    BackToPaused "back-to-paused" "a recovery that breaks can be tried again",
    /// Only the source that handed the guest over may go on.
    SameSession "same-session" "only the source that handed this guest over may go on",
    /// The source keeps everything until the destination has everything.
    KeepUntilComplete "keep-until-complete" "the source keeps its memory until the destination says that nothing is missing",
    /// The source saves every page of which it does not know that it arrived.
    SaveUnconfirmed "save-unconfirmed" "a source that ends saves every page of which it does not know that it has arrived",
    /// A file is read only if this guest's source has saved it.
    MatchFile "match-file" "the destination goes on from a file only if its own source has saved it",
    /// The guest is taken back only from a destination that has ended and never ran it.
    TakeBackUnrun "take-back-unrun" "an operator takes the guest back only if the destination has ended, and never ran it",
    /// The destination stops the guest before it saves its half, and never runs it again.
    StopForHalf "stop-for-half" "a destination that saves its half stops the guest, and never runs it again",
    /// What the destination has is newer than what the source has.
    DestinationFirst "destination-first" "of two halves, a page that the destination has is taken from the destination",
    /// Halves of two hand-overs are not put together.
    MatchHalves "match-halves" "two halves make a guest only if they are of the same hand-over",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name_and_no_other_model_has_it() {
        for clause in PostcopyClause::ALL {
            assert_eq!(clause.name().parse(), Ok(*clause));
            assert!(clause.name().parse::<crate::Clause>().is_err());
            assert!(clause.name().parse::<crate::file::FileClause>().is_err());
            assert!(clause.name().parse::<crate::lazy::LazyClause>().is_err());
        }
    }
}

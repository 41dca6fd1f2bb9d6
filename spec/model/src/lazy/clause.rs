// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must be done so that a guest which runs before its memory is there sees the right bytes. Each clause has a switch.

use crate::switches::switches;

switches! {
    /// A clause about memory that comes while the guest runs.
    LazyClause,
    /// The clauses that hold.
    LazyRule;

    /// A discarded page is taken out of what is missing.
    TellDiscards "tell-discards" "a page that is discarded is no longer missing",
    /// That is done before the page is discarded.
    TellFirst "tell-first" "a page is taken out of what is missing before it is discarded",
    /// A page is placed only if it is still absent.
    LookBeforePlacing "look-before-placing" "content is placed only where it is still absent",
    /// A process whose faults are not handled touches the memory only when all of it is there.
    BackEndsWait "back-ends-wait" "back ends in other processes run when nothing is missing",
    /// Whoever asks which pages were never touched waits until nothing is missing.
    SavesWait "saves-wait" "the guest is migrated or saved when nothing is missing",
    /// A fault is answered with right content or not at all.
    RightOrNever "right-or-never" "whoever needs a page that cannot be had waits, and the guest stops",
    /// The kernel answers faults again when nothing is missing.
    LetGoLast "let-go-last" "the kernel answers faults by itself when nothing is missing",
    /// A page is answered without its neighbours.
    SmallAnswers "small-answers" "an answer makes only its own page present",
    /// A page that the loader could not have is wanted again.
    GiveBack "give-back" "a page that the loader could not have is wanted again",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name_and_no_other_model_has_it() {
        for clause in LazyClause::ALL {
            assert_eq!(clause.name().parse(), Ok(*clause));
            assert!(clause.name().parse::<crate::Clause>().is_err());
            assert!(clause.name().parse::<crate::file::FileClause>().is_err());
        }
    }
}

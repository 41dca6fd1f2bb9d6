// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is found.

use alloc::string::String;
use core::fmt;

use super::attempt::Attempt;
use crate::trace::Record;
use crate::trace::event::Outcome;

/// What of the rule an event breaks. The numbers are those of `spec/free-page-hinting.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clause {
    /// 1: every page is armed before an epoch opens.
    ArmFirst,
    /// 2: a hint takes no memory away from the guest.
    HintDiscardsNothing,
    /// 3: an epoch is closed before a harvest, and its hints end with it.
    CloseBeforeHarvest,
    /// 4: a harvest takes from every log, and what it brings is sent.
    HarvestEverything,
    /// 5: no hint is used once the guest is stopped; in the end logs stop and the guest is told DONE.
    NoHintAfterPause,
    /// 6: a migration that fails leaves a guest that runs, and nothing missing for the next.
    PutBack,
    /// 7: a hinted page reads as zero at the destination.
    ReadsAsZero,
    /// A page is claimed before it is copied, and what is claimed is sent.
    ClaimBeforeCopy,
    /// One side owns the guest, and only it runs it.
    OneOwner,
    /// Nothing of the rule: these events cannot follow each other.
    Order,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArmFirst => "clause 1, arm first",
            Self::HintDiscardsNothing => "clause 2, a hint discards nothing",
            Self::CloseBeforeHarvest => "clause 3, close before harvest",
            Self::HarvestEverything => "clause 4, harvest everything",
            Self::NoHintAfterPause => "clause 5, no hint after the pause",
            Self::PutBack => "clause 6, put back",
            Self::ReadsAsZero => "clause 7, a hinted page reads as zero",
            Self::ClaimBeforeCopy => "claim before copy",
            Self::OneOwner => "one owner",
            Self::Order => "order of events",
        })
    }
}

/// The first event that the rule does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Its number in the trace, from 0.
    pub index: usize,
    /// The event.
    pub record: Record,
    /// What it breaks.
    pub clause: Clause,
    /// How, in a sentence.
    pub why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "event {} ({}) breaks {}: {}",
            self.index, self.record, self.clause, self.why
        )
    }
}

/// What a trace held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Migrations that have ended.
    pub migrations: u64,
    /// Of these, completed ones.
    pub completed: u64,
    /// Epochs that were opened in them.
    pub epochs: u64,
    /// Harvests.
    pub harvests: u64,
    /// Pages hinted, each time counted.
    pub hinted: u64,
    /// Pages skipped as hinted, each time counted.
    pub skipped: u64,
    /// Pages copied, each time counted.
    pub copied: u64,
}

impl Summary {
    pub(super) fn add(&mut self, attempt: &Attempt, outcome: Outcome) {
        self.migrations += 1;
        self.completed += u64::from(outcome == Outcome::Completed);
        self.epochs += attempt.hints.opened;
        self.harvests += attempt.harvests;
        self.hinted += attempt.hints.pages;
        self.skipped += attempt.sending.skipped;
        self.copied += attempt.sending.copied;
    }
}

/// What the checker says of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every event is allowed.
    Holds(Summary),
    /// One is not.
    Broken(Breach),
    /// The records that are there are allowed, but some are missing, so the trace proves nothing.
    Incomplete {
        /// How many.
        missing: u64,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds(summary) => write!(
                f,
                "the rule holds: {} events, {} migrations ({} completed), {} epochs, {} harvests, \
                 {} pages hinted, {} skipped, {} copied",
                summary.events,
                summary.migrations,
                summary.completed,
                summary.epochs,
                summary.harvests,
                summary.hinted,
                summary.skipped,
                summary.copied
            ),
            Self::Broken(breach) => breach.fmt(f),
            Self::Incomplete { missing } => {
                write!(
                    f,
                    "incomplete: {missing} records are missing, so nothing is shown"
                )
            }
        }
    }
}
